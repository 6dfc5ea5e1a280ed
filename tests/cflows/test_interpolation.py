import math

import pytest
import torch
from cases import COVARIANCES, MEANS, SDES, WEIGHTS
from contracts import deterministic, samplers
from contracts.solvers import exact_score
from helpers import normal, rng
from torch import Tensor

from cflows import VPSDE
from cflows.interpolation import interpolate
from cflows.samplers.probability_flow_ode import ProbabilityFlow
from core import GaussianMixture

FLOW = ProbabilityFlow(method="rk4", steps=50, spacing="karras")
PLANE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)


def turned(z_0: Tensor, z_1: Tensor, tau: float) -> Tensor:
    """[sin((1 - τ) ω) z_0 + sin(τ ω) z_1]/sin ω, row by row."""
    omega = torch.arccos((z_0 * z_1).sum(1, keepdim=True) / (z_0.norm(dim=1) * z_1.norm(dim=1))[:, None])
    return (torch.sin((1 - tau) * omega) * z_0 + torch.sin(tau * omega) * z_1) / torch.sin(omega)


@pytest.mark.parametrize("name", ["vp", "ve-narrow"])
def test_gaussian_data_in_closed_form(name: str) -> None:
    """Both latents by the flow map of N(0.7, 0.4) data, the arc between them, and back by the flow map."""
    sde, x_0, x_1 = SDES[name][0], normal(5, (3,), rng(1)), normal(5, (3,), rng(2))
    path = interpolate(FLOW, samplers.gaussian_score(sde, 0.7, 0.4), sde, x_0, x_1, steps=3)
    z_0, z_1 = (deterministic.gaussian_flow(sde, x, 1e-3, 1.0) for x in (x_0, x_1))
    for step, tau in enumerate((0.0, 0.5, 1.0)):
        expected = deterministic.gaussian_flow(sde, turned(z_0, z_1, tau), 1.0, 1e-3)
        torch.testing.assert_close(path[step], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vp", "ve-narrow"])
def test_ends_are_the_events(name: str) -> None:
    sde, (x_0, x_1) = SDES[name][0], PLANE.sample((2, 6), generator=rng(3))
    path = interpolate(FLOW, exact_score(PLANE, sde), sde, x_0, x_1, steps=3)
    assert path.shape == (3, 6, 2)
    assert not path.requires_grad
    torch.testing.assert_close(path[0], x_0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(path[2], x_1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("event", [(1,), (2, 1, 2)])
@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0])
def test_the_way_is_straight_where_there_is_no_angle(factor: float, event: tuple[int, ...]) -> None:
    """Latents that are parallel or opposite; x is its own latent, N(0, I) data under VP."""
    x_0 = normal(4, event, rng(4))
    path = interpolate(ProbabilityFlow(method="euler", steps=2), lambda x, t: -x, VPSDE(), x_0, factor * x_0, steps=5)
    share = torch.linspace(0, 1, 5, dtype=torch.float64).reshape(5, *(1 for _ in x_0.shape))
    torch.testing.assert_close(path, (1 - share) * x_0 + share * factor * x_0)


def test_the_angle_is_that_of_the_whole_event() -> None:
    """Images of radius 2 at 0° and 120°: radius 2 at even angles between."""
    angles = torch.linspace(0, 2 * math.pi / 3, 5, dtype=torch.float64)
    circle = 2 * torch.stack([angles.cos(), angles.sin()], 1).reshape(5, 1, 1, 2, 1)
    torch.testing.assert_close(interpolate(FLOW, lambda x, t: -x, VPSDE(), circle[0], circle[-1], steps=5), circle)


def test_the_score_sees_the_rows_of_its_context() -> None:
    """Data N(c, 0.4) with a context c a row."""
    sde, context, seen = VPSDE(), torch.tensor([[-1.0], [2.0]]).double(), []

    def score(x: Tensor, t: Tensor) -> Tensor:
        seen.append(len(x))
        return samplers.gaussian_score(sde, context, 0.4)(x, t)

    x_0, x_1 = context + normal(2, (1,), rng(5)), context + normal(2, (1,), rng(6))
    path = interpolate(FLOW, score, sde, x_0, x_1, steps=4)
    torch.testing.assert_close(path[[0, -1]], torch.stack([x_0, x_1]), rtol=1e-5, atol=1e-5)
    assert set(seen) == {2}


@pytest.mark.parametrize(("x_1", "steps"), [(torch.zeros(2, 3), 1), (torch.zeros(2, 4), 4)])
def test_what_is_no_way_is_refused(x_1: Tensor, steps: int) -> None:
    with pytest.raises(ValueError, match="2 steps or more between events of one shape"):
        interpolate(FLOW, lambda x, t: -x, VPSDE(), torch.zeros(2, 3), x_1, steps=steps)
