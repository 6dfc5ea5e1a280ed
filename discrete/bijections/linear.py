"""Linear flows z = W x + b whose log-determinant costs O(D): diagonal, triangular, LU, QR and orthogonal matrices."""

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.rng import Rng
from core.shapes import as_float, vector_size
from discrete.bijection import Bijection, Context, Direction, Events, Mapped
from discrete.bijections.matrices import LUMatrix, Matrix, Side, Square, TriangularMatrix
from discrete.bijections.permutation import Order, as_indices
from discrete.bijections.reflections import (
    HouseholderMatrix,
    QRMatrix,
    random_reflections,
    reflections_of,
    rotation_reflections,
)


class Diagonal(Bijection):
    """z = S x with S = diag(exp(s)) > 0: log|det| = Σ sᵢ, the final rescaling of NICE.

    References:
        Dinh, Krueger, Bengio, "NICE", 2014, section 3.3.

    Checked by tests/contracts/bijections.py.

    Args:
        event_shape: shape of one event.
        scale: initial S, positive, broadcast to the event.

    Raises:
        ValueError: a scale that is not positive.

    Example:
        >>> z, log_det = Diagonal(2, scale=2.0)(torch.ones(1, 2))
        >>> round(log_det.item(), 4)  # 2 log 2
        1.3863
    """

    forward_direction = inverse_direction = Direction(0)

    def __init__(self, event_shape: int | Sequence[int], *, scale: Tensor | float = 1.0) -> None:
        super().__init__(event_shape)
        scale = as_float(scale)
        if not bool((scale > 0).all()):
            raise ValueError(f"Diagonal needs a positive scale, but its smallest is {scale.min().item():g}.")
        self.log_scale = nn.Parameter(scale.log().broadcast_to(self.event_shape).clone())

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and Σ sᵢ."""
        return x * self.log_scale.exp(), self.log_scale.sum().expand(x.shape[0])

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and -Σ sᵢ."""
        return z * torch.exp(-self.log_scale), -self.log_scale.sum().expand(z.shape[0])


class Linear(Bijection, abc.ABC):
    """z = W x + b: log|det| = log|det W|, the same at every x."""

    forward_direction = inverse_direction = Direction(0)

    @abc.abstractmethod
    def __init__(self, features: int, weight: Matrix) -> None:
        super().__init__(features)
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and log|det W|."""
        return self.weight.multiply(x) + self.bias, self.weight.log_abs_det().expand(x.shape[0])

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x = W⁻¹(z - b) and -log|det W|."""
        return self.weight.solve(z - self.bias), -self.weight.log_abs_det().expand(z.shape[0])


class Triangular(Linear):
    """z = T x + b, T triangular with diagonal exp(s) > 0: log|det| = Σ sᵢ; both directions O(D²) a row.

    Starts at the identity.

    Checked by tests/contracts/bijections.py and tests/discrete/test_linear.py.

    Args:
        event_shape: number of features.
        triangle: `lower` or `upper`.

    Raises:
        ValueError: an event that is no vector, or another triangle.

    Example:
        >>> z, log_det = Triangular(2)(torch.ones(3, 2))
        >>> log_det.tolist()
        [0.0, 0.0, 0.0]
    """

    def __init__(self, event_shape: int | Sequence[int], *, triangle: Side = "lower") -> None:
        n = vector_size(event_shape, owner="Triangular")
        super().__init__(n, TriangularMatrix(n, triangle=triangle))


class LULinear(Linear):
    """z = P L U x + b, P a fixed permutation, L unit lower, U upper with diagonal ±exp(s): log|det| = Σ sᵢ.

    Both directions cost O(D²) a row. Starts at z = P x, that is L = U = I, or U = diag(signs).

    References:
        Kingma and Dhariwal, "Glow", 2018, eq. 10-11. Oliva et al., "Transformation autoregressive networks", 2018.

    Checked by tests/contracts/bijections.py and tests/discrete/test_linear.py.

    Args:
        event_shape: number of features.
        permutation: P as zᵢ = x_π(i): `random` (drawn once, at construction), `identity`, `reverse`, or the indices π.
        signs: fixed signs of U's diagonal, 1 or -1, `(features,)`; all 1 where omitted. P and these decide the sign of
            det W, which training cannot change.
        generator: draws the random permutation.

    Raises:
        ValueError: an event that is no vector, an unknown name, or indices or signs that are none.

    Example:
        >>> z, _ = LULinear(3, permutation=torch.tensor([2, 0, 1]))(torch.tensor([[1.0, 2.0, 3.0]]))
        >>> z.tolist()
        [[3.0, 1.0, 2.0]]
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        permutation: Order = "random",
        signs: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        n = vector_size(event_shape, owner="LULinear")
        indices = as_indices(permutation, n, generator=generator)
        diagonal = torch.ones(n) if signs is None else as_float(signs)
        if diagonal.shape != (n,) or not bool((diagonal.abs() == 1).all()):
            raise ValueError(f"signs must hold 1 or -1 for each of {n} features, but is {diagonal.tolist()}.")
        super().__init__(n, LUMatrix(torch.eye(n).index_select(0, indices) * diagonal))


class QRLinear(Linear):
    """z = Q R x + b, Q a product of K Householder reflections, R upper with diagonal exp(s) > 0: log|det| = Σ sᵢ.

    Both directions cost O(D²) a row. Starts at z = Q x with Q random.

    References:
        Hoogeboom, van den Berg, Welling, "Emerging convolutions for generative normalizing flows", 2019.

    Checked by tests/contracts/bijections.py and tests/discrete/test_linear.py.

    Args:
        event_shape: number D of features.
        reflections: K, 0 to D. The even one of D and D - 1 where omitted: Q R is then any matrix of positive
            determinant, which is every W up to a mirror image; with fewer, Q turns a subspace.
        generator: draws the initial Q.

    Raises:
        ValueError: an event that is no vector, or reflections outside 0..D.

    Example:
        >>> z, log_det = QRLinear(5)(torch.ones(3, 5))
        >>> log_det.tolist()
        [0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        reflections: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        n = vector_size(event_shape, owner="QRLinear")
        K = rotation_reflections(n) if reflections is None else reflections
        super().__init__(n, QRMatrix(random_reflections(K, n, generator=generator)))


class Rotation(Bijection):
    """z = Q x, Q a product of an even number K of Householder reflections: log|det| = 0.

    With K the even one of D and D - 1, Q is any rotation, and starts Haar-random among them.

    References:
        Tomczak and Welling, "Improving variational auto-encoders using Householder flow", 2016.
        Meng, Song, Song, Ermon, "Gaussianization flows", 2020.

    Checked by tests/contracts/bijections.py and tests/discrete/test_linear.py.

    Args:
        event_shape: number D of features.
        reflections: K, even, 0 to D; the largest where omitted.
        generator: draws the initial Q.

    Raises:
        ValueError: an event that is no vector, or reflections that are odd or outside 0..D.

    Example:
        >>> z, _ = Rotation(2)(torch.tensor([[3.0, 4.0]]))
        >>> round(z.norm().item(), 4)
        5.0
        >>> quarter = Rotation.from_matrix(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
        >>> quarter(torch.tensor([[3.0, 4.0]]))[0].round(decimals=4).tolist()
        [[-4.0, 3.0]]
    """

    forward_direction = inverse_direction = Direction(0)

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        reflections: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(event_shape)
        n = vector_size(event_shape, owner="Rotation")
        K = rotation_reflections(n) if reflections is None else reflections
        if K % 2:
            raise ValueError(f"Rotation needs an even number of reflections, but has {K}: an odd number mirrors.")
        self.rotation = HouseholderMatrix(random_reflections(K, n, generator=generator))

    @classmethod
    def from_matrix(cls, matrix: Square) -> "Rotation":
        """The layer whose Q is this matrix at the start, such as the principal axes of some data.

        Raises:
            ValueError: a matrix that is not orthogonal, or of determinant -1.
        """
        layer = cls(len(matrix)).to(matrix)
        layer.turn_to(matrix)
        return layer

    @torch.no_grad()
    def turn_to(self, matrix: Square) -> None:
        """Makes Q this matrix.

        Raises:
            ValueError: a matrix that is not orthogonal, of determinant -1, or one that needs more reflections.
        """
        vectors = self.rotation.vectors
        vectors.copy_(reflections_of(matrix, len(vectors)))

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and zero."""
        return self.rotation.multiply(x), x.new_zeros(x.shape[0])

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x = Qᵀ z and zero."""
        return self.rotation.solve(z), z.new_zeros(z.shape[0])
