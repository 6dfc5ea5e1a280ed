"""Products of Householder reflections: trained orthogonal matrices, QR factors and random rotations."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from discrete.bijections.matrices import MANY, Matrix, Nats, Rows, Square, TriangularMatrix

BLOCK = 128  # reflections at a time: V Vᵀ of all 784 at once takes three times as long as blocks on 100 rows


class HouseholderMatrix(Matrix):
    """W = Q = H₁ ⋯ H_K with Hᵢ = I - 2 vᵢ vᵢᵀ/|vᵢ|²: orthogonal whatever the vectors, det Q = (-1)ᴷ.

    In compact form Q = I - Vᵀ T V, where V holds the vectors as rows and T⁻¹ = triu(V Vᵀ, 1) + diag(½|vᵢ|²); it is
    applied block by block of V, each by two products and one substitution. Every orthogonal matrix is such a product
    with K ≤ n. Lengths do not matter. With K = 0, where Q = I, or n = 1, where Hᵢ = -1, there is nothing to train and V
    is a buffer.

    References:
        Tomczak and Welling, "Improving variational auto-encoders using Householder flow", 2016.
        Joffrain et al., "Accumulating Householder transformations, revisited", 2006, for T⁻¹.

    Checked by tests/discrete/test_linear.py.

    Args:
        vectors: V at the start, `(K, n)`, no row zero.

    Example:
        >>> HouseholderMatrix(torch.tensor([[1.0, -1.0]])).multiply(torch.tensor([[5.0, 7.0]])).tolist()
        [[7.0, 5.0]]
    """

    vectors: Tensor

    def __init__(self, vectors: Float[Tensor, "K n"]) -> None:
        super().__init__()
        if vectors.shape[0] and vectors.shape[1] > 1:
            self.vectors = nn.Parameter(vectors.clone())
        else:
            self.register_buffer("vectors", vectors.clone())

    def multiply(self, x: Rows) -> Rows:
        """x Qᵀ, O(K n) a row; many rows by Q itself, O(n²)."""
        if len(x) > MANY * x.shape[1]:
            return x @ self.matrix().mT
        for V in reversed(self.vectors.split(BLOCK)):
            x = x - torch.linalg.solve_triangular(_inverse_t(V).mT, x @ V.mT, upper=False, left=False) @ V
        return x

    def solve(self, z: Rows) -> Rows:
        """z Q, O(K n) a row; many rows by Q itself, O(n²)."""
        if len(z) > MANY * z.shape[1]:
            return z @ self.matrix()
        for V in self.vectors.split(BLOCK):
            z = z - torch.linalg.solve_triangular(_inverse_t(V), z @ V.mT, upper=True, left=False) @ V
        return z

    def matrix(self) -> Square:
        """Q itself, O(K n²)."""
        return self.solve(torch.eye(self.vectors.shape[1], dtype=self.vectors.dtype, device=self.vectors.device))

    def log_abs_det(self) -> Nats:
        """Zero."""
        return self.vectors.new_zeros(())


def _inverse_t(V: Tensor) -> Tensor:
    """T⁻¹ of the reflections V."""
    gram = V @ V.mT
    return gram.triu(1) + gram.diagonal().mul(0.5).diag()


class QRMatrix(Matrix):
    """W = Q R: Q a product of K Householder reflections, R upper triangular with diagonal exp(s): log|det W| = Σ sᵢ.

    With K = n or n - 1, whichever is even, this is every matrix of positive determinant, with the other every one of
    negative determinant; signs on the diagonal of R would add nothing. Starts at R = I.

    References:
        Hoogeboom, van den Berg, Welling, "Emerging convolutions for generative normalizing flows", 2019.

    Checked by tests/discrete/test_linear.py.

    Args:
        vectors: the vectors of the reflections at the start, `(K, n)`, no row zero.

    Example:
        >>> QRMatrix(torch.tensor([[1.0, -1.0]])).matrix().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """

    def __init__(self, vectors: Float[Tensor, "K n"]) -> None:
        super().__init__()
        self.Q = HouseholderMatrix(vectors)
        self.R = TriangularMatrix(vectors.shape[1], triangle="upper")

    def multiply(self, x: Rows) -> Rows:
        """x Rᵀ Qᵀ, O(n²) a row."""
        return self.Q.multiply(self.R.multiply(x))

    def solve(self, z: Rows) -> Rows:
        """z Q R⁻ᵀ, O(n²) a row."""
        return self.R.solve(self.Q.solve(z))

    def matrix(self) -> Square:
        """W, O(n³)."""
        return self.Q.multiply(self.R.matrix().mT).mT

    def log_abs_det(self) -> Nats:
        """Σ sᵢ, O(n)."""
        return self.R.log_abs_det()


def random_reflections(count: int, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "K n"]:
    """Vectors vᵢ = xᵢ - |xᵢ| eᵢ, xᵢ Gaussian from coordinate i on: for K of n or n - 1, Q is Haar at det (-1)ᴷ.

    Hᵢ takes eᵢ to xᵢ/|xᵢ|, uniform on its sphere, and Hᵢ₊₁, ..., H_K leave eᵢ alone.

    References:
        Stewart, "The efficient generation of random orthogonal matrices", 1980, theorem 3.3.

    Checked by tests/discrete/test_linear.py.

    Args:
        count: number K of reflections, 0 to n.
        n: size of the vectors.
        generator: draws them.

    Returns:
        The vectors, `(K, n)`, each of length √n, so that their entries are of the order of 1.

    Raises:
        ValueError: a count outside 0..n.

    Example:
        >>> random_reflections(2, 4).norm(dim=1).round().tolist()
        [2.0, 2.0]
    """
    if not 0 <= count <= n:
        raise ValueError(f"the number of reflections must be within 0..{n}, but is {count}.")
    x = torch.randn(count, n, generator=generator, dtype=torch.float64).triu()
    e = torch.eye(count, n, dtype=x.dtype)
    e[n - 1 :] = 0  # of a single coordinate x - |x| may vanish; x itself does not
    v = x - x.norm(dim=1, keepdim=True) * e
    return (math.sqrt(n) * F.normalize(v)).to(torch.get_default_dtype())


@torch.no_grad()
def reflections_of(matrix: Square, count: int | None = None) -> Float[Tensor, "K n"]:
    """Vectors of reflections whose product H₁ ⋯ H_K is an orthogonal matrix Q, by Householder's triangularization.

    H_i takes what H_{i-1} ⋯ H₁ Q has in column i to +e_i, so that the triangle that remains is I and not diag(±1). A
    column that is there already needs none, and pairs of one reflection, which are I, fill up to K.

    Checked by tests/discrete/test_linear.py.

    Args:
        matrix: Q, orthogonal.
        count: K, as many as suffice for every Q of this determinant where omitted: n or n - 1, with (-1)ᴷ = det Q.

    Returns:
        The vectors, `(K, n)`, each of length √n.

    Raises:
        ValueError: a matrix that is not orthogonal, or one that K reflections do not make.

    Example:
        >>> reflections_of(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor([[-1.0000,  1.0000]])
    """
    n = len(matrix)
    error = (matrix @ matrix.mT - torch.eye(n, dtype=matrix.dtype, device=matrix.device)).abs().max().item()
    if error > 1e3 * n * torch.finfo(matrix.dtype).eps:
        raise ValueError(f"reflections make orthogonal matrices, but of this one Q Qᵀ is {error:.1g} away from I.")
    rest, vectors = matrix.clone(), []
    for i in range(n):
        x = rest[i:, i]
        tail = x[1:].square().sum()
        if tail > 0 or x[0] < 0:
            v = torch.zeros_like(rest[0])
            # x₁ - 1 where |x| = 1, without cancellation for x₁ near 1
            v[i:] = torch.cat([(-tail / (1 + x[0]) if x[0] > 0 else x[0] - 1).reshape(1), x[1:]])
            v = F.normalize(v, dim=0)
            rest = rest - 2 * torch.outer(v, v @ rest)
            vectors.append(v)
    if count is None:
        count = n - (n - len(vectors)) % 2
    if len(vectors) > count or (count - len(vectors)) % 2:
        raise ValueError(f"this orthogonal matrix is a product of {len(vectors)} reflections, not of {count}.")
    pairs = torch.eye(n, dtype=matrix.dtype, device=matrix.device)[:1].expand(count - len(vectors), n)
    return math.sqrt(n) * torch.cat([torch.stack(vectors), pairs]) if vectors else math.sqrt(n) * pairs


def rotation_reflections(n: int) -> int:
    """How many reflections make every rotation: the even one of n and n - 1."""
    return 2 * (n // 2)


def random_rotation(n: int, *, generator: torch.Generator | None = None) -> Square:
    """A Haar-random orthogonal n × n matrix of determinant +1.

    Checked by tests/discrete/test_linear.py.

    Args:
        n: size.
        generator: draws it.

    Returns:
        The matrix, `(n, n)`: that of `random_reflections`, given the same generator.

    Example:
        >>> random_rotation(1).tolist()
        [[1.0]]
    """
    vectors = random_reflections(rotation_reflections(n), n, generator=generator)
    return HouseholderMatrix(vectors).matrix().detach()
