"""The contracts of linear layers bite: each passes what is right and rejects what is wrong in one place."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from contracts import bijections, matrices
from helpers import Tooth, normal, perturb, rng
from torch import Tensor
from wrong import Tampered

from core import StandardNormal
from discrete import Bijection, Flow, Invertible1x1Conv, LULinear, QRLinear
from discrete.bijections.matrices import DenseMatrix, LUMatrix, Matrix, TriangularMatrix
from discrete.bijections.reflections import HouseholderMatrix

CYCLE = torch.tensor([1, 2, 0])  # not its own inverse
X, Z, IMAGE, LATENT = (
    normal(3, (3,), rng(0)),
    normal(3, (3,), rng(1)),
    normal(2, (3, 2, 2), rng(2)),
    normal(2, (3, 2, 2), rng(3)),
)
VECTORS = normal(3, (3,), rng(4))
W = normal(3, (3,), rng(5))


def convolution(**keywords: str) -> Invertible1x1Conv:
    return perturb(Invertible1x1Conv((3, 2, 2), generator=rng(6), **keywords), rng(7))


def lu(change: Callable[[LUMatrix], None] = lambda matrix: None) -> LUMatrix:
    matrix = LUMatrix(W)
    change(matrix)
    return matrix


def lu_layer(*, inverse_order: Tensor | None = None) -> LULinear:
    layer = perturb(LULinear(3, permutation=CYCLE), rng(8))
    if inverse_order is not None:
        layer.weight.inverse_order = inverse_order
    return layer


def compact(fault: str) -> Tensor:
    """I - Vᵀ T V with one thing wrong: the diagonal of T⁻¹, its triangle, or T transposed."""
    gram = VECTORS @ VECTORS.T
    strict = gram.tril(-1) if fault == "lower triangle" else gram.triu(1)
    T = torch.linalg.inv(strict + (1.0 if fault == "full diagonal" else 0.5) * gram.diagonal().diag())
    return torch.eye(3, dtype=torch.float64) - VECTORS.T @ (T.T if fault == "transposed" else T) @ VECTORS


def product(vectors: Tensor = VECTORS) -> Tensor:
    return HouseholderMatrix(vectors).matrix().detach()


def is_the_product_of_reflections(Q: Tensor) -> None:
    torch.testing.assert_close(Q, matrices.reflections(VECTORS), rtol=0, atol=1e-12)


def gram_schmidt(*, sign_fix: bool) -> Tensor:
    """Rotations from the QR factorization of Gaussian matrices; Haar only where the diagonal of R is made positive."""
    Q, R = torch.linalg.qr(normal(2000, (3, 3), rng(9)))
    Q = Q * R.diagonal(dim1=1, dim2=2).sign()[:, None] if sign_fix else Q
    flip = torch.ones_like(Q)
    flip[:, :, 2] = torch.linalg.det(Q)[:, None]
    return Q * flip


def reflected_gaussians(count: int) -> Tensor:
    """Products of reflections in full Gaussian vectors: rotations, but not Haar."""
    generator = rng(10)
    return torch.stack([matrices.reflections(normal(count, (3,), generator)) for _ in range(2000)])


def is_w(matrix: Matrix) -> None:
    matrices.matches_dense(matrix, W)


def tril_of(matrix: TriangularMatrix) -> None:
    """What a lower triangle of these parameters must be."""
    F = matrix.factor.detach()
    matrices.matches_dense(matrix, F.tril(-1) + F.diagonal().exp().diag())


def triangular(**keywords: str) -> TriangularMatrix:
    return perturb(TriangularMatrix(3, **keywords), rng(11))


def qr_layer() -> Bijection:
    return perturb(QRLinear(3, generator=rng(12)), rng(13))


def gaussian_flow(layer: Bijection) -> Flow:
    return Flow(layer, StandardNormal(3)).double()


def is_its_gaussian(flow: Flow) -> None:
    layer = qr_layer()
    matrices.is_gaussian(flow, matrices.dense(layer.weight), layer.bias.detach())


def conv_log_det(direction: str) -> Callable[[Bijection], None]:
    if direction == "forward":
        return lambda b: bijections.forward_log_det_is_that_of_the_jacobian(b, IMAGE)
    return lambda b: bijections.inverse_log_det_is_that_of_the_jacobian(b, LATENT)


def layer_log_det(b: Bijection) -> None:
    bijections.forward_log_det_is_that_of_the_jacobian(b, X)


def vector_round_trip(b: Bijection) -> None:
    bijections.round_trips(b, X, Z)


def once_a_channel(x: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    return y, log_det / 4


def pixel_major(x: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    """W over whatever lies next in memory: the log-determinant is right, the map is not."""
    weight = matrices.dense(convolution().weight)
    return (x.reshape(len(x), 4, 3) @ weight.T).reshape(x.shape), log_det


def bias_first(x: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    layer = qr_layer()
    return (x + layer.bias) @ matrices.dense(layer.weight).T, log_det


def transposed(x: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    return x @ matrices.dense(qr_layer().weight) + qr_layer().bias, log_det


TEETH = {
    "log-det of one pixel for H W": Tooth(
        conv_log_det("forward"), convolution, lambda: Tampered(convolution(), forward=once_a_channel)
    ),
    "log-det of one pixel for H W, inverse": Tooth(
        conv_log_det("inverse"), convolution, lambda: Tampered(convolution(), inverse=once_a_channel)
    ),
    "channels and pixels confused": Tooth(
        lambda b: matrices.jacobian_is_kron(b, matrices.dense(convolution().weight)),
        convolution,
        lambda: Tampered(convolution(), forward=pixel_major),
    ),
    "signs of the pivots dropped": Tooth(is_w, lu, lambda: lu(lambda m: m.sign.abs_())),
    "permutation dropped": Tooth(is_w, lu, lambda: lu(lambda m: m.order.copy_(m.order.sort().values))),
    "permutation transposed": Tooth(
        lambda m: matrices.matches_dense(m, torch.eye(3, dtype=torch.float64)[CYCLE]),
        lambda: LUMatrix(torch.eye(3, dtype=torch.float64)[CYCLE]),
        lambda: LUMatrix(torch.eye(3, dtype=torch.float64)[CYCLE].T),
    ),
    "permutation transposed in the inverse alone": Tooth(
        vector_round_trip, lu_layer, lambda: lu_layer(inverse_order=CYCLE)
    ),
    "log-det the product of the diagonal for its logarithm": Tooth(
        layer_log_det, qr_layer, lambda: Tampered(qr_layer(), forward=lambda x, y, log_det: (y, log_det.exp()))
    ),
    "the other triangle": Tooth(tril_of, partial(triangular, triangle="lower"), partial(triangular, triangle="upper")),
    "QR multiplied as R Q": Tooth(
        lambda W: torch.testing.assert_close(W, matrices.dense(qr_layer().weight)),
        lambda: qr_layer().weight.matrix().detach(),
        lambda: matrices.dense(qr_layer().weight.R) @ matrices.dense(qr_layer().weight.Q),
    ),
    "log-det by a factorization": Tooth(matrices.log_det_costs_o_of_n, lu, lambda: DenseMatrix(W)),
    "b added before W": Tooth(
        is_its_gaussian,
        lambda: gaussian_flow(qr_layer()),
        lambda: gaussian_flow(Tampered(qr_layer(), forward=bias_first)),
    ),
    "covariance of the transpose": Tooth(
        is_its_gaussian,
        lambda: gaussian_flow(qr_layer()),
        lambda: gaussian_flow(Tampered(qr_layer(), forward=transposed)),
    ),
    "an odd number of reflections": Tooth(matrices.is_a_rotation, lambda: product(VECTORS[:2]), product),
    "T with the full diagonal is not orthogonal": Tooth(
        lambda Q: torch.testing.assert_close(Q @ Q.T, torch.eye(3, dtype=torch.float64)),
        product,
        partial(compact, "full diagonal"),
    ),
    "T with the full diagonal": Tooth(is_the_product_of_reflections, product, partial(compact, "full diagonal")),
    "T lower for upper": Tooth(is_the_product_of_reflections, product, partial(compact, "lower triangle")),
    "T transposed": Tooth(is_the_product_of_reflections, product, partial(compact, "transposed")),
    "reflections in reversed order": Tooth(is_the_product_of_reflections, product, lambda: product(VECTORS.flip(0))),
    "QR of a Gaussian without its signs": Tooth(
        matrices.is_haar, partial(gram_schmidt, sign_fix=True), partial(gram_schmidt, sign_fix=False)
    ),
    "reflections in any vectors taken for Haar": Tooth(
        matrices.is_haar, partial(gram_schmidt, sign_fix=True), partial(reflected_gaussians, 2)
    ),
}


@pytest.mark.parametrize("name", TEETH)
def test_linear(name: str) -> None:
    TEETH[name].bites()
