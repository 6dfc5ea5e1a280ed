from collections.abc import Callable
from functools import partial

import pytest
import torch
from contracts import matrices
from helpers import normal, perturb, rng
from torch import nn

from core import StandardNormal
from discrete import (
    Bijection,
    Flow,
    Invertible1x1Conv,
    LinearFlow,
    LULinear,
    Permutation,
    QRLinear,
    Rotation,
    Triangular,
)
from discrete.bijections.matrices import DenseMatrix, LUMatrix, Matrix, TriangularMatrix
from discrete.bijections.reflections import HouseholderMatrix, QRMatrix, random_reflections, random_rotation

SIZES = pytest.mark.parametrize("n", [1, 2, 7])
PARAMETRIZATIONS = ("lu", "dense", "qr")


def gaussian(n: int) -> torch.Tensor:
    return normal(n, (n,), rng(n))


MATRICES: dict[str, Callable[[int], Matrix]] = {
    "dense": lambda n: DenseMatrix(gaussian(n)),
    "lower": partial(TriangularMatrix, triangle="lower"),
    "upper": partial(TriangularMatrix, triangle="upper"),
    "lu": lambda n: LUMatrix(gaussian(n)),
    "householder-none": lambda n: HouseholderMatrix(random_reflections(0, n)),
    "householder-half": lambda n: HouseholderMatrix(random_reflections((n + 1) // 2, n, generator=rng())),
    "householder": lambda n: HouseholderMatrix(random_reflections(n, n, generator=rng())),
    "qr-none": lambda n: QRMatrix(random_reflections(0, n)),
    "qr-half": lambda n: QRMatrix(random_reflections((n + 1) // 2, n, generator=rng())),
    "qr": lambda n: QRMatrix(random_reflections(n, n, generator=rng())),
}
LAYERS: dict[str, Callable[[int], Bijection]] = {
    "lower": Triangular,
    "upper": partial(Triangular, triangle="upper"),
    "lu": LULinear,
    "lu-reverse": partial(LULinear, permutation="reverse"),
    "qr": QRLinear,
    "qr-none": partial(QRLinear, reflections=0),
    "qr-one": partial(QRLinear, reflections=1),
}


@SIZES
@pytest.mark.parametrize("name", MATRICES)
def test_matrix_is_what_its_parameters_say(name: str, n: int) -> None:
    matrix = perturb(MATRICES[name](n), rng(1))
    matrices.matches_dense(matrix, matrices.dense(matrix))


@pytest.mark.parametrize("K", [128, 129, 300])
def test_many_reflections_in_blocks(K: int) -> None:
    """As many as fill a block, one more, and more reflections than coordinates need."""
    matrix = HouseholderMatrix(normal(K, (40,), rng(2)))
    matrices.matches_dense(matrix, matrices.reflections(matrix.vectors.detach()))


@SIZES
def test_lu_takes_any_matrix_apart(n: int) -> None:
    """Pivots of either sign."""
    for seed in range(5):
        W = normal(n, (n,), rng(seed))
        matrices.matches_dense(LUMatrix(W), W)


@pytest.mark.parametrize("name", [name for name in MATRICES if name != "dense"])
def test_log_det_costs_o_of_n(name: str) -> None:
    matrices.log_det_costs_o_of_n(MATRICES[name](7))


@SIZES
@pytest.mark.parametrize("name", LAYERS)
def test_on_a_standard_normal_every_linear_layer_is_a_gaussian(name: str, n: int) -> None:
    flow = perturb(Flow(LAYERS[name](n), StandardNormal(n)), rng(3))
    matrices.is_gaussian(flow, matrices.dense(flow.bijection.weight), flow.bijection.bias.detach())


@SIZES
@pytest.mark.parametrize("parametrization", ["lu", "qr", "triangular"])
def test_linear_flow(parametrization: str, n: int) -> None:
    """N(0, I) before training, N(-W⁻¹ b, (Wᵀ W)⁻¹) after."""
    flow = LinearFlow(n, parametrization=parametrization).double()
    x = normal(5, (n,), rng(4))
    torch.testing.assert_close(flow.log_prob(x), StandardNormal(n).double().log_prob(x), rtol=1e-6, atol=1e-6)
    perturb(flow, rng(5))
    matrices.is_gaussian(flow, matrices.dense(flow.bijection.weight), flow.bijection.bias.detach())


def test_linear_flow_fits_a_gaussian_by_maximum_likelihood() -> None:
    """Half a dozen quasi-Newton steps reach the sample mean and covariance."""
    x = normal(500, (3,), rng(6)) @ torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.5, 0.3], [0.0, 0.0, 2.0]]).double() + 3.0
    for parametrization in ("lu", "qr", "triangular"):
        flow = LinearFlow(3, parametrization=parametrization).double()
        optimizer = torch.optim.LBFGS(flow.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def closure(flow: Flow = flow, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = -flow.log_prob(x).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        W, b = matrices.dense(flow.bijection.weight), flow.bijection.bias.detach()
        torch.testing.assert_close(-torch.linalg.solve(W, b), x.mean(0), rtol=0, atol=1e-3)
        torch.testing.assert_close(torch.linalg.inv(W.T @ W), torch.cov(x.T, correction=0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 2, 1), (4, 1, 3)])
def test_jacobian_of_the_convolution_is_a_kronecker_product(parametrization: str, shape: tuple[int, ...]) -> None:
    convolution = perturb(Invertible1x1Conv(shape, parametrization=parametrization), rng(7))
    matrices.jacobian_is_kron(convolution, matrices.dense(convolution.weight))


@pytest.mark.parametrize("channels", [1, 2, 5, 12])
def test_every_parametrization_starts_at_the_same_rotation(channels: int) -> None:
    x = normal(2, (channels, 2, 2), rng(8)).float()
    expected = random_rotation(channels, generator=rng(9))
    for parametrization in PARAMETRIZATIONS:
        convolution = Invertible1x1Conv((channels, 2, 2), parametrization=parametrization, generator=rng(9))
        torch.testing.assert_close(convolution.weight.matrix().detach(), expected, rtol=0, atol=1e-5)
        z, log_det = convolution(x)
        torch.testing.assert_close(z, torch.einsum("ij,rjhw->rihw", expected, x), rtol=0, atol=1e-5)
        torch.testing.assert_close(log_det, torch.zeros(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n", "K"), [(1, None), (2, None), (3, None), (7, None), (7, 2), (200, None)])
def test_rotation_stays_one_whatever_its_parameters(n: int, K: int | None) -> None:
    rotation = perturb(Rotation(n, reflections=K, generator=rng(10)), rng(11), std=3.0)
    Q = rotation(torch.eye(n, dtype=torch.float64))[0].detach().T
    matrices.is_a_rotation(Q)
    torch.testing.assert_close(Q, matrices.dense(rotation.rotation), rtol=0, atol=1e-11)


@pytest.mark.parametrize("n", [1, 2, 3, 12, 13])
def test_random_rotation_is_a_rotation(n: int) -> None:
    Q = random_rotation(n, generator=rng(12)).double()
    matrices.is_a_rotation(Q / torch.linalg.det(Q) ** (1 / n), tolerance=1e-5)
    assert torch.equal(random_rotation(n, generator=rng(12)), Q.float())


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_random_rotation_is_haar(n: int) -> None:
    generator = rng(13)
    matrices.is_haar(torch.stack([random_rotation(n, generator=generator) for _ in range(2000)]).double())


def test_reflections_that_make_a_coordinate_axis_are_never_zero() -> None:
    vectors = torch.stack([random_reflections(4, 4, generator=rng(seed)) for seed in range(500)])
    torch.testing.assert_close(vectors.norm(dim=2), torch.full((500, 4), 2.0))


@SIZES
def test_layers_start_where_they_say(n: int) -> None:
    x = normal(3, (n,), rng(14))
    lu, permutation = LULinear(n, generator=rng(15)).double(), Permutation(n, order="random", generator=rng(15))
    assert torch.equal(lu(x)[0], permutation(x)[0])
    assert torch.equal(LULinear(n, permutation="identity").double()(x)[0], x)
    assert torch.equal(Triangular(n).double()(x)[0], x)
    qr = QRLinear(n, generator=rng(15)).double()
    torch.testing.assert_close(qr(x)[0], x @ random_rotation(n, generator=rng(15)).double().T, rtol=0, atol=1e-6)
    for layer in (lu, qr):
        assert layer(x)[1].count_nonzero() == 0


@pytest.mark.parametrize("name", ["lower", "lu", "qr", "rotation"])
def test_large_round_trip_in_float32(name: str) -> None:
    n, build = 512, {**LAYERS, "rotation": Rotation}[name]
    layer = build(n)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 / n**0.5 * torch.randn(parameter.shape, generator=rng(16))
    x = torch.randn(10, n, generator=rng(17))
    z, log_det = layer(x)
    again, opposite = layer.inverse(z)
    assert (again - x).abs().max() < 2e-5
    assert torch.equal(opposite, -log_det)


def test_permutation_of_an_image_moves_whole_channels() -> None:
    x = normal(2, (3, 2, 2), rng(18))
    z, log_det = Permutation((3, 2, 2), order=torch.tensor([2, 0, 1]))(x)
    assert torch.equal(z, x[:, [2, 0, 1]])
    assert torch.equal(log_det, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("build", [LULinear, QRLinear, Triangular, Rotation, LinearFlow])
def test_images_are_refused(build: Callable[[tuple[int, ...]], nn.Module]) -> None:
    with pytest.raises(ValueError, match=f"{build.__name__} takes vectors"):
        build((1, 2, 2))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"images \(channels, height, width\), but event_shape is \(4,\)"):
        Invertible1x1Conv(4)
    with pytest.raises(ValueError, match=r"within 0\.\.3, but is 4"):
        QRLinear(3, reflections=4)
    with pytest.raises(ValueError, match="even number of reflections, but has 3"):
        Rotation(3, reflections=3)
    with pytest.raises(ValueError, match=r"0\.\.2 once"):
        LULinear(3, permutation=torch.tensor([0, 1, 1]))


def test_lu_signs_are_those_of_the_determinant() -> None:
    """z = P diag(signs) x at the start; det W keeps the sign of det P times theirs, however the factors move."""
    layer = LULinear(3, permutation=torch.tensor([1, 0, 2]), signs=torch.tensor([1.0, 1.0, -1.0]))
    z, _ = layer(torch.tensor([[1.0, 2.0, 3.0]]))
    assert z.tolist() == [[2.0, 1.0, -3.0]]
    for seed in range(5):
        assert torch.linalg.det(perturb(layer, rng(seed)).weight.matrix()) > 0
    with pytest.raises(ValueError, match="signs must hold 1 or -1 for each of 3"):
        LULinear(3, signs=torch.tensor([1, 0, 1]))


def test_the_inverse_convolution_leaves_no_residual() -> None:
    """W x = z to rounding of W x however far W is from orthogonal: a product with W⁻¹ would be 5e-3 off in float32."""
    Q, R = (random_rotation(48, generator=rng(i)) for i in range(2))
    convolution = Invertible1x1Conv((48, 4, 4), parametrization="dense")
    convolution.weight.weight.data = Q @ torch.logspace(0, -6, 48).diag() @ R
    z, _ = convolution(torch.randn(20, 48, 4, 4, generator=rng(2)))
    x, _ = convolution.inverse(z)
    back = torch.einsum("ij,rjhw->rihw", convolution.weight.weight.double(), x.double())
    assert (back - z).norm() < 1e-5 * z.norm()
