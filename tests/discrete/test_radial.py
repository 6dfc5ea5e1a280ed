"""Radial layers and flows: the paper's formula, the quadratic inverse, the centre."""

from functools import partial

import pytest
import torch
from contracts import bijections, planar
from helpers import normal, perturb, rng, seeded

from discrete import Radial, RadialFlow


def layer(seed: int = 1, **keywords: int) -> Radial:
    return perturb(seeded(partial(Radial, 4, **keywords)), rng(seed), std=1.0)


def steep(alpha: float, beta: float, dtype: torch.dtype = torch.float64) -> Radial:
    """With the parameters of the two softplus."""
    made = layer().to(dtype)
    with torch.no_grad():
        made.alpha.fill_(alpha)
        made.beta.fill_(beta)
    return made


@pytest.mark.parametrize("seed", range(5))
def test_paper(seed: int) -> None:
    planar.radial_is_the_papers(layer(seed), 3 * normal(40, (4,), rng(2)))


@pytest.mark.parametrize("beta", [-60.0, -5.0, 5.0, 200.0])
@pytest.mark.parametrize("alpha", [-10.0, 0.0, 200.0])
def test_round_trip_at_any_parameters(alpha: float, beta: float) -> None:
    """From within 1e-6 of the centre to 1e6 from it; where the map contracts to nothing z holds no digits of x."""
    made = steep(alpha, beta)
    directions = torch.nn.functional.normalize(normal(61, (4,), rng(3)))
    z = made.center.detach() + torch.logspace(-6, 6, 61, dtype=torch.float64)[:, None] * directions
    x, log_det = made.inverse(z)
    again, opposite = made(x)
    assert log_det.isfinite().all()
    torch.testing.assert_close(again, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(opposite, -log_det, rtol=1e-6, atol=1e-6)


def test_the_centre_stays_and_its_gradients_are_finite() -> None:
    """There log|det| = D log(κ/α)."""
    made = layer()
    x = made.center.detach()[None].clone().requires_grad_()
    for direction, sign in ((made, 1), (made.inverse, -1)):
        y, log_det = direction(x)
        torch.testing.assert_close(y.detach(), x.detach())
        softplus = torch.nn.functional.softplus
        expected = sign * 4 * (softplus(made.beta) / softplus(made.alpha)).log()
        torch.testing.assert_close(log_det, expected.reshape(1))
        for gradient in torch.autograd.grad(y.sum() + log_det.sum(), [x, *made.parameters()]):
            assert gradient.isfinite().all()
        (slope,) = torch.autograd.grad(direction(x)[0][0, 0], x)
        torch.testing.assert_close(slope[0, 0].log() * 4, log_det[0])


def test_implicit_gradients() -> None:
    planar.inverse_has_implicit_gradients(layer(), normal(6, (4,), rng(4)))
    planar.inverse_has_implicit_gradients(layer(context_features=2), normal(6, (4,), rng(4)), normal(6, (2,), rng(5)))


def test_in_float32_as_in_float64() -> None:
    for alpha, beta in ((0.0, 3.0), (3.0, -9.0), (200.0, 0.0), (-20.0, 20.0)):
        made = steep(alpha, beta, torch.float32)
        double = steep(alpha, beta)
        double.load_state_dict(made.state_dict())
        x = 3 * normal(50, (4,), rng(6)).float()
        for single, expected in zip(made.inverse(x), double.inverse(x.double()), strict=True):
            torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_fresh_layer_is_the_identity() -> None:
    made = seeded(partial(Radial, (2, 3), context_features=2))
    x, context = torch.randn(7, 2, 3, generator=rng(7)), torch.randn(7, 2, generator=rng(8))
    z, log_det = made(x, context)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_det, torch.zeros(7), rtol=0, atol=1e-6)


def test_fast_directions_are_each_others_inverse() -> None:
    there, back = (
        perturb(seeded(partial(RadialFlow, 3, layers=4, fast=fast)), rng(1)) for fast in ("sample", "log_prob")
    )
    y = normal(5, (3,), rng(9))
    torch.testing.assert_close(there.decode(y), back.encode(y))
    bijections.round_trips(there.bijection, y, y)
