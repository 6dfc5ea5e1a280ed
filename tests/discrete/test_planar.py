"""Planar layers and flows: the paper's formula, its constraint at any size of the parameters, the root, the context."""

from functools import partial

import pytest
import torch
from contracts import planar
from helpers import normal, perturb, rng, seeded
from torch import Tensor

from core import StandardUniform
from discrete import Inverse, Planar, PlanarFlow
from discrete.bijections.amortization import Amortization
from discrete.bijections.root_find import LeakyReLU, Tanh, log_cosh, log_softplus, softplus

ACTIVATIONS = pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def layer(activation: str = "tanh", **keywords: int) -> Planar:
    return perturb(seeded(partial(Planar, 4, activation=activation, **keywords)), rng(1))


def steep(a: float, *, length: float = 1.0, activation: str = "tanh", dtype: torch.dtype = torch.float64) -> Planar:
    """With wᵀu = a and |w| = length."""
    made = layer(activation).to(dtype)
    with torch.no_grad():
        direction = made.w / made.w.norm()
        across = made.u - (made.u @ direction) * direction
        made.w.copy_(length * direction)
        made.u.copy_(across + a / length * direction)
    return made


@ACTIVATIONS
@pytest.mark.parametrize("seed", range(5))
def test_paper(activation: str, seed: int) -> None:
    """Both branches of the leaky ReLU are in the batch."""
    made = perturb(seeded(partial(Planar, 4, activation=activation)), rng(seed), std=1.0)
    planar.planar_is_the_papers(made, 3 * normal(40, (4,), rng(2)), activation=activation)


@ACTIVATIONS
@pytest.mark.parametrize("a", [-200.0, -30.0, -1.0, 0.0, 1.0, 30.0, 200.0])
def test_rises_along_w(activation: str, a: float) -> None:
    planar.rises_along_w(steep(a, activation=activation))


@ACTIVATIONS
@pytest.mark.parametrize("a", [-200.0, -100.0, 100.0, 200.0])
def test_large_products_in_float32(activation: str, a: float) -> None:
    """As the same layer in float64; on the plane itself the slope is e⁻²⁰⁰, and its log -200."""
    single = steep(a, activation=activation, dtype=torch.float32)
    double = steep(a, activation=activation)
    double.load_state_dict(single.state_dict())
    x = normal(200, (4,), rng(3))
    w, b = double.w.detach(), double.b.detach()
    x[0] = -b * w / (w @ w)  # on the plane, s = 0 but for rounding
    z, log_det = single(x.float())
    expected, expected_log_det = double(x.float().double())
    torch.testing.assert_close(z.double(), expected, rtol=1e-5, atol=1e-4)
    away = (x.float().double() @ w + b).abs() > 1e-2
    torch.testing.assert_close(log_det[away].double(), expected_log_det[away], rtol=1e-4, atol=1e-4)
    assert log_det.isfinite().all()


def test_slope_on_the_plane() -> None:
    """log g'(0) = log κ in both dtypes, where κ itself underflows in float32, with a gradient of 1 in it."""
    for dtype in (torch.float32, torch.float64):
        log_kappa = torch.tensor([-200.0, -1.0, 5.0], dtype=dtype, requires_grad=True)
        s = torch.zeros(3, dtype=dtype, requires_grad=True)
        found = Tanh().log_slope(s, log_kappa)
        torch.testing.assert_close(found, log_kappa)
        by_kappa, by_s = torch.autograd.grad(found.sum(), (log_kappa, s))
        assert torch.equal(by_kappa, torch.ones(3, dtype=dtype))
        assert torch.equal(by_s, torch.zeros(3, dtype=dtype))


@DTYPES
@pytest.mark.parametrize("length", [1e-30, 1e-10, 1e10])
def test_tiny_and_huge_directions(dtype: torch.dtype, length: float) -> None:
    """|w|² would underflow at 1e-30 in float32; û is 0.3/|w|, and what it does to x of the order of 1."""
    made = layer().to(dtype)
    with torch.no_grad():
        made.b.zero_()
        made.w.mul_(length / made.w.norm())
    x = normal(20, (4,), rng(4)).to(dtype) / max(length, 1)
    z, log_det = made(x)
    double = layer()
    double.load_state_dict(made.state_dict())
    expected, expected_log_det = double(x.double())
    torch.testing.assert_close(z.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log_det.double(), expected_log_det, rtol=1e-4, atol=1e-5)
    back, _ = made.inverse(z)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5)
    for gradient in torch.autograd.grad(log_det.sum(), [made.u, made.w, made.b]):
        assert gradient.isfinite().all()


@DTYPES
def test_root_is_exact(dtype: torch.dtype) -> None:
    planar.root_is_exact(Tanh().root, dtype)


@pytest.mark.parametrize("activation", [Tanh(), LeakyReLU()])
def test_root_derivatives_of_two_orders(activation: Tanh) -> None:
    y = torch.tensor([-3.0, -0.4, 0.2, 0.7, 6.0], dtype=torch.float64, requires_grad=True)
    log_kappa = torch.tensor([-2.0, -0.5, 0.1, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(activation.root, (y, log_kappa))
    assert torch.autograd.gradgradcheck(activation.root, (y, log_kappa))
    assert torch.autograd.gradcheck(activation.log_slope, (y, log_kappa))


@ACTIVATIONS
def test_implicit_gradients(activation: str) -> None:
    planar.inverse_has_implicit_gradients(layer(activation), normal(6, (4,), rng(5)))
    planar.inverse_has_implicit_gradients(
        layer(activation, context_features=2), normal(6, (4,), rng(5)), normal(6, (2,), rng(6))
    )


def test_second_derivatives_of_the_inverse() -> None:
    made = layer()
    z = normal(2, (4,), rng(7)).requires_grad_()
    w = made.w.detach().clone().requires_grad_()

    def inverse(z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(Inverse(made), {"bijection.w": w}, (z,))

    assert torch.autograd.gradgradcheck(inverse, (z, w), fast_mode=True)


def test_inverse_under_vmap_and_jacrev() -> None:
    made, z = layer(), normal(3, (4,), rng(8))
    rows = torch.func.vmap(torch.func.jacrev(lambda row: made.inverse(row[None])[0][0]))(z)
    torch.testing.assert_close(torch.linalg.slogdet(rows).logabsdet, made.inverse(z)[1])


@pytest.mark.parametrize("event_shape", [1, 5, (2, 3)])
def test_a_fresh_layer_is_the_identity(event_shape: int) -> None:
    made = seeded(partial(Planar, event_shape))
    x = torch.randn(7, *made.event_shape, generator=rng(9))
    z, log_det = made(x)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_det, torch.zeros(7), rtol=0, atol=1e-6)


def test_context_does_nothing_at_first_and_is_learned() -> None:
    made = seeded(partial(Planar, 3, context_features=2))
    x, context = torch.randn(5, 3, generator=rng(10)), torch.randn(5, 2, generator=rng(11))
    z, log_det = made(x, context)
    torch.testing.assert_close(z, made(x, context + 1)[0])
    (gradient,) = torch.autograd.grad((z.square().sum() + log_det.sum()), made.amortization.linear.weight)
    assert gradient.count_nonzero() > 0


def test_context_gives_each_row_its_own_parameters() -> None:
    """As a layer without a context whose parameters are those of the row."""
    made = layer(context_features=2)
    x, context = normal(3, (4,), rng(12)), normal(3, (2,), rng(13))
    z, log_det = made(x, context)
    for i in range(3):
        shifts = dict(zip("uwb", made.amortization.linear(context[i]).split([4, 4, 1]), strict=True))
        own = Planar(4).double()
        own.load_state_dict({n: (p := made.get_parameter(n)) + shifts[n].reshape(p.shape) for n in shifts})
        one, one_log_det = own(x[i : i + 1])
        torch.testing.assert_close(z[i], one[0])
        torch.testing.assert_close(log_det[i], one_log_det[0])


def test_amortization_of_no_rows() -> None:
    parameter = torch.zeros(2, 3)
    (rows,) = Amortization([parameter], context_features=4)([parameter], torch.zeros(0, 4))
    assert rows.shape == (0, 2, 3)


@pytest.mark.parametrize("context_features", [0, 2])
def test_a_wrong_context_is_refused(context_features: int) -> None:
    with pytest.raises(ValueError, match="context has 3"):
        Planar(3, context_features=context_features)(torch.zeros(1, 3), torch.zeros(1, 3))


def test_a_flow_of_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="1 layer or more"):
        PlanarFlow(2, layers=0)


def test_fast_directions_are_each_others_inverse() -> None:
    """x = f_K(... f_1(z)) where `sample` is fast, z = f_K(... f_1(x)) where `log_prob` is."""
    there, back = (
        perturb(seeded(partial(PlanarFlow, 3, layers=4, fast=fast)), rng(1)) for fast in ("sample", "log_prob")
    )
    y = normal(5, (3,), rng(14))
    expected = y
    for part in back.bijection.bijections:
        expected, _ = part(expected)
    torch.testing.assert_close(there.decode(y), expected)
    torch.testing.assert_close(back.encode(y), expected)


def test_a_flow_on_a_uniform_base_scores_every_point() -> None:
    """Of draws it knows the density; outside the support it is 0."""
    flow = perturb(seeded(partial(PlanarFlow, 2, layers=3, base=StandardUniform(2))), rng(1))
    x, log_q = flow.rsample_and_log_prob((50,), generator=rng(15))
    torch.testing.assert_close(flow.log_prob(x), log_q)
    assert (flow.log_prob(torch.full((1, 2), 50.0, dtype=torch.float64)) == -torch.inf).all()


def test_helpers_keep_their_digits() -> None:
    a = torch.tensor([-700.0, -40.0, -36.0, -20.0, -1.0, 0.0, 1.0, 20.0, 25.0, 700.0], dtype=torch.float64)
    exact = torch.tensor([-700.0, -40.0], dtype=torch.float64)
    torch.testing.assert_close(log_softplus(a)[:2], exact, rtol=1e-15, atol=0)
    torch.testing.assert_close(log_softplus(a)[2:], softplus(a)[2:].log(), rtol=1e-14, atol=0)
    torch.testing.assert_close(softplus(a)[4:8], torch.log1p(a[4:8].exp()), rtol=1e-15, atol=0)
    torch.testing.assert_close(log_cosh(a[3:8]), a[3:8].cosh().log(), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(log_cosh(a), log_cosh(-a), rtol=1e-13, atol=1e-15)
