"""Invertible square matrices whose factors are trained: products, solves and log-determinants without inverses."""

import abc
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from core.staircase import Stair, staircase_linear, stairs_of

Rows = Float[Tensor, "rows n"]
Square = Float[Tensor, "n n"]
Nats = Float[Tensor, ""]
Side = Literal["lower", "upper"]
MANY = 2  # rows a feature from which on a product of factors is multiplied out before it meets them


class Matrix(nn.Module, abc.ABC):
    """An invertible n × n matrix W that acts on rows."""

    @abc.abstractmethod
    def multiply(self, x: Rows) -> Rows:
        """W x for each row: x Wᵀ."""

    @abc.abstractmethod
    def solve(self, z: Rows) -> Rows:
        """W⁻¹ z for each row: z W⁻ᵀ."""

    @abc.abstractmethod
    def matrix(self) -> Square:
        """W itself."""

    @abc.abstractmethod
    def log_abs_det(self) -> Nats:
        """log|det W|, 0-dimensional, nats."""


class DenseMatrix(Matrix):
    """W with every entry free: log|det W| costs O(n³), and nothing keeps W from becoming singular.

    Checked by tests/discrete/test_linear.py.

    Args:
        initial: W at the start, invertible, `(n, n)`.

    Example:
        >>> DenseMatrix(torch.tensor([[0.0, 2.0], [1.0, 0.0]])).solve(torch.tensor([[4.0, 3.0]])).tolist()
        [[3.0, 2.0]]
    """

    def __init__(self, initial: Square) -> None:
        super().__init__()
        self.weight = nn.Parameter(initial.clone())

    def multiply(self, x: Rows) -> Rows:
        """x Wᵀ, O(n²) a row."""
        return F.linear(x, self.weight)

    def solve(self, z: Rows) -> Rows:
        """z W⁻ᵀ by one factorization, O(n³), and O(n²) a row."""
        return torch.linalg.solve(self.weight.mT, z, left=False)

    def matrix(self) -> Square:
        """W itself."""
        return self.weight

    def log_abs_det(self) -> Nats:
        """log|det W| by a factorization, O(n³)."""
        return torch.linalg.slogdet(self.weight).logabsdet


class TriangularMatrix(Matrix):
    """W = T, triangular with diagonal exp(s) > 0: log det W = Σ sᵢ. Starts at the identity.

    One square parameter holds T off the diagonal and s on it; its other triangle is never read.

    Checked by tests/discrete/test_linear.py.

    Args:
        n: size.
        triangle: `lower` or `upper`.

    Raises:
        ValueError: another triangle.

    Example:
        >>> TriangularMatrix(2, triangle="upper").log_abs_det().item()
        0.0
    """

    def __init__(self, n: int, *, triangle: Side) -> None:
        super().__init__()
        if triangle not in ("lower", "upper"):
            raise ValueError(f"triangle must be lower or upper, but is {triangle!r}.")
        self.upper = triangle == "upper"
        self.factor = nn.Parameter(torch.zeros(n, n))
        self.stairs = triangle_stairs(n, upper=self.upper)

    def multiply(self, x: Rows) -> Rows:
        """x Tᵀ, O(n²) a row."""
        return staircase_linear(x, self.matrix(), None, self.stairs)

    def solve(self, z: Rows) -> Rows:
        """z T⁻ᵀ by substitution, O(n²) a row."""
        return torch.linalg.solve_triangular(self.matrix().mT, z, upper=not self.upper, left=False)

    def matrix(self) -> Square:
        """T itself."""
        strict = self.factor.triu(1) if self.upper else self.factor.tril(-1)
        return strict + self.factor.diagonal().exp().diag()

    def log_abs_det(self) -> Nats:
        """Σ sᵢ, O(n)."""
        return self.factor.diagonal().sum()


class LUMatrix(Matrix):
    """W = P L U, P a permutation, L unit lower, U upper triangular with diagonal sign ⊙ exp(s): log|det W| = Σ sᵢ.

    P and the signs are fixed. As in LAPACK one square parameter holds L below its diagonal and U above it, here with s
    on it.

    References:
        Kingma and Dhariwal, "Glow", 2018, eq. 10-11. Oliva et al., "Transformation autoregressive networks", 2018.

    Checked by tests/discrete/test_linear.py.

    Args:
        initial: W at the start, invertible, `(n, n)`.

    Example:
        >>> LUMatrix(torch.tensor([[0.0, -1.0], [1.0, 0.0]])).matrix().tolist()
        [[0.0, -1.0], [1.0, 0.0]]
    """

    order: Tensor
    inverse_order: Tensor
    sign: Tensor

    def __init__(self, initial: Square) -> None:
        super().__init__()
        P, L, U = torch.linalg.lu(initial)
        order = P.argmax(1)
        s = U.diagonal().abs().log()
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())
        self.register_buffer("sign", U.diagonal().sign())
        self.factors = nn.Parameter(L.tril(-1) + s.diag() + U.triu(1))
        self.lower_stairs, self.upper_stairs = (triangle_stairs(len(order), upper=upper) for upper in (False, True))

    def multiply(self, x: Rows) -> Rows:
        """x Uᵀ Lᵀ Pᵀ, O(n²) a row; many rows by W itself."""
        if len(x) > MANY * x.shape[1]:
            return F.linear(x, self.matrix())
        y = staircase_linear(x, self._upper(), None, self.upper_stairs)
        return (y + staircase_linear(y, self.factors.tril(-1), None, self.lower_stairs)).index_select(1, self.order)

    def solve(self, z: Rows) -> Rows:
        """z P L⁻ᵀ U⁻ᵀ by two substitutions, O(n²) a row."""
        y = z.index_select(1, self.inverse_order)
        y = torch.linalg.solve_triangular(self.factors.mT, y, upper=True, left=False, unitriangular=True)
        return torch.linalg.solve_triangular(self._upper().mT, y, upper=False, left=False)

    def matrix(self) -> Square:
        """W, O(n³)."""
        U = self._upper()
        return (U + self.factors.tril(-1) @ U).index_select(0, self.order)

    def log_abs_det(self) -> Nats:
        """Σ sᵢ, O(n)."""
        return self.factors.diagonal().sum()

    def _upper(self) -> Tensor:
        return self.factors.triu(1) + (self.sign * self.factors.diagonal().exp()).diag()


def triangle_stairs(n: int, *, upper: bool) -> list[Stair]:
    """Of an n × n triangle."""
    ones = torch.ones(n, n, dtype=torch.bool, device="cpu")
    return stairs_of(ones.triu() if upper else ones.tril())
