"""What the matrices of linear layers keep, in float64, against dense matrices written out here from the definitions."""

from functools import reduce

import torch
from helpers import normal, rng
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.utils._python_dispatch import TorchDispatchMode

from discrete import Bijection, Flow
from discrete.bijections.matrices import DenseMatrix, LUMatrix, Matrix, TriangularMatrix
from discrete.bijections.reflections import HouseholderMatrix, QRMatrix


def reflections(vectors: Tensor) -> Tensor:
    """H₁ H₂ ⋯ H_K, each I - 2 v vᵀ/|v|² as a matrix."""
    eye = torch.eye(vectors.shape[1], dtype=vectors.dtype)
    return reduce(torch.matmul, [eye - 2 * torch.outer(v, v) / v.dot(v) for v in vectors], eye)


def dense(matrix: Matrix) -> Tensor:
    """W from the parameters, by its definition."""
    if isinstance(matrix, DenseMatrix):
        return matrix.weight.detach()
    if isinstance(matrix, HouseholderMatrix):
        return reflections(matrix.vectors.detach())
    if isinstance(matrix, QRMatrix):
        return dense(matrix.Q) @ dense(matrix.R)
    if isinstance(matrix, TriangularMatrix):
        T = matrix.factor.detach()
        return torch.where(torch.eye(len(T)) == 1, T.exp(), T.triu() if matrix.upper else T.tril())
    assert isinstance(matrix, LUMatrix)
    F, eye = matrix.factors.detach(), torch.eye(len(matrix.order), dtype=torch.float64)
    L = torch.where(eye == 1, eye, F.tril())
    U = torch.where(eye == 1, matrix.sign[:, None] * F.exp(), F.triu())
    return eye[matrix.order] @ L @ U


def matches_dense(matrix: Matrix, W: Tensor, *, tolerance: float = 1e-10) -> None:
    """matrix(), multiply, solve and log_abs_det are W, x Wᵀ, z W⁻ᵀ and log|det W|, of few rows and of many."""
    few, many = normal(2, (len(W),), rng(0)), normal(3 * len(W), (len(W),), rng(1))
    pairs = {
        "matrix": (matrix.matrix(), W),
        "multiply": (matrix.multiply(few), few @ W.T),
        "multiply, many": (matrix.multiply(many), many @ W.T),
        "solve": (matrix.solve(few), few @ torch.linalg.inv(W).T),
        "solve, many": (matrix.solve(many), many @ torch.linalg.inv(W).T),
        "log_abs_det": (matrix.log_abs_det(), torch.linalg.slogdet(W).logabsdet),
    }
    for name, (found, expected) in pairs.items():
        torch.testing.assert_close(
            found.detach(), expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def is_a_rotation(Q: Tensor, *, tolerance: float = 1e-12) -> None:
    """Q Qᵀ = I and det Q = 1."""
    torch.testing.assert_close(Q @ Q.T, torch.eye(len(Q), dtype=Q.dtype), rtol=0, atol=tolerance)
    torch.testing.assert_close(torch.linalg.det(Q), torch.ones((), dtype=Q.dtype), rtol=0, atol=1e-9)


def is_haar(draws: Tensor) -> None:
    """Moments of n × n rotations, `(draws, n, n)`, are those of Haar measure within five standard errors.

    E Qᵢⱼ = 0, E Qᵢⱼ² = 1/n, E Qᵢⱼ⁴ = 3/(n (n + 2)); E (tr Q)² = 1, but 2 for n = 2, where tr Q = 2 cos θ.
    """
    n = draws.shape[-1]
    trace = draws.diagonal(dim1=1, dim2=2).sum(1)
    moments = {
        "mean": (draws, 0.0),
        "second moment": (draws.square(), 1 / n),
        "fourth moment": (draws**4, 3 / (n * (n + 2))),
        "squared trace": (trace.square(), 2.0 if n == 2 else 1.0),
    }
    for name, (value, expected) in moments.items():
        error = (value.mean(0) - expected).abs() - 5 * value.std(0) / len(draws) ** 0.5
        assert (error <= 0).all(), f"{name} is {value.mean(0).tolist()}, not {expected}"


class _Operations(TorchDispatchMode):
    """Names of what torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.add(operation.overloadpacket.__name__)
        return operation(*args, **(kwargs or {}))


def log_det_costs_o_of_n(matrix: Matrix) -> None:
    """log_abs_det reads a diagonal and sums it: no product, no factorization, no determinant."""
    with _Operations() as operations:
        matrix.log_abs_det()
    extra = operations.names - {"diagonal", "sum", "new_zeros"}
    assert not extra, f"log_abs_det calls {extra}"


def is_gaussian(flow: Flow, W: Tensor, b: Tensor, *, tolerance: float = 1e-10) -> None:
    """log_prob of z = W x + b on N(0, I) is that of N(-W⁻¹ b, (Wᵀ W)⁻¹)."""
    x = normal(20, flow.event_shape, rng(0))
    expected = MultivariateNormal(-torch.linalg.solve(W, b), precision_matrix=W.T @ W).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x).detach(), expected, rtol=tolerance, atol=tolerance)


def jacobian_is_kron(convolution: Bijection, W: Tensor) -> None:
    """dz/dx = W ⊗ I_HW and dx/dz = W⁻¹ ⊗ I_HW: the same matrix for every pixel, and nothing of its neighbours."""
    shape = convolution.event_shape
    pixels = torch.eye(shape[1] * shape[2], dtype=torch.float64)
    for mapping, expected in ((convolution.forward, W), (convolution.inverse, torch.linalg.inv(W))):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, f=mapping: f(x[None])[0].flatten(), normal(1, shape, rng(0))[0]
        )
        torch.testing.assert_close(
            jacobian.reshape(len(W) * len(pixels), -1),
            torch.kron(expected.contiguous(), pixels),
            rtol=1e-10,
            atol=1e-10,
        )
