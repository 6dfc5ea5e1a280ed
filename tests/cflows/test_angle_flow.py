import math

import pytest
import torch
from cases import COVARIANCES, MEANS, SDES, WEIGHTS
from contracts import solvers
from helpers import Tooth, normal, rng
from torch import Tensor

from cflows import SDE, VPSDE, probability_flow_log_prob
from cflows.angle_flow import WARP, AngleFlow, angle_grid
from cflows.ode.log_prob import ode_log_prob
from cflows.sde import probability_flow
from core import ExactDivergence, GaussianMixture

PLANE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)
TIMES = (1e-3, 0.1, 0.5, 0.9, 0.999)


def is_the_flow_in_t(flow: AngleFlow, sde: SDE) -> None:
    """dy/du du/dt is the derivative of y = x/r along dx/dt = f - ½ g² s, by differences of φ and r in t."""
    velocity, y = probability_flow(flow.score, sde), normal(5, (2,), rng(0))
    for time in TIMES:
        h = 1e-4 * min(time, 1 - time)
        around = torch.tensor([time - h, time, time + h], dtype=torch.float64)
        scale, std = sde.marginal(around)
        phi, log_r = torch.atan2(std, scale), torch.hypot(scale, std).log()
        u = torch.asinh(phi / flow.warp) if flow.warp else phi
        rate, growth = ((part[2] - part[0]) / (2 * h) for part in (u, log_r))
        r = log_r[1].exp()
        expected = velocity(r * y, around[1]) / r - growth * y
        torch.testing.assert_close(flow(y, u[1]) * rate, expected, rtol=1e-5, atol=1e-5 * rate.item())


@pytest.mark.parametrize("warp", [0.0, 0.1])
@pytest.mark.parametrize("name", [name for name in SDES if SDES[name][1] == 0])
def test_it_is_the_probability_flow(name: str, warp: float) -> None:
    sde = SDES[name][0]
    is_the_flow_in_t(AngleFlow(score=solvers.exact_score(PLANE, sde), sde=sde, warp=warp), sde)


@pytest.mark.parametrize("wrong", ["sign", "radius", "tangent", "rate"])
def test_its_teeth(wrong: str) -> None:
    """On sub-VP, where r is not 1."""
    sde = SDES["sub-vp"][0]
    right = AngleFlow(score=solvers.exact_score(PLANE, sde), sde=sde, warp=0.1)

    class Wrong(AngleFlow):
        def __call__(self, y: Tensor, u: Tensor) -> Tensor:
            phi = 0.1 * u.sinh()
            t = sde.time(-2 * phi.tan().log())
            r = torch.hypot(*sde.marginal(t))
            s = self.score(r * y, t)
            sign, radius = (-1 if wrong == "sign" else 1), (1 if wrong == "radius" else r)
            tangent, rate = (phi.sin() if wrong == "tangent" else phi.tan()), (1 if wrong == "rate" else 0.1 * u.cosh())
            return -rate * tangent * (y + sign * radius * s)

    Tooth(
        lambda flow: is_the_flow_in_t(flow, sde), lambda: right, lambda: Wrong(score=right.score, sde=sde, warp=0.1)
    ).bites()


def test_a_time_for_each_row() -> None:
    sde = SDES["ve"][0]
    flow = AngleFlow(score=solvers.exact_score(PLANE, sde), sde=sde, warp=0.1)
    y, u = normal(3, (2,), rng(1)), torch.tensor([0.1, 1.0, 2.5], dtype=torch.float64)
    together = flow(y, u)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], flow(y[i : i + 1], u[i]), rtol=1e-12, atol=1e-12)


def test_float32_keeps_small_angles() -> None:
    sde = VPSDE()
    flow = AngleFlow(score=solvers.exact_score(PLANE, sde), sde=sde)
    y, phi = normal(4, (2,), rng(2)), torch.tensor(flow.angles(1e-5)[0], dtype=torch.float64)
    exact = flow(y, phi)
    found = flow(y.float(), phi.float()).double()
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6 * exact.abs().max().item())


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve"])
def test_likelihood_is_that_of_the_ode_in_t(name: str) -> None:
    sde = SDES[name][0]
    score, base, x = (
        solvers.exact_score(PLANE, sde),
        solvers.exact_base(PLANE, sde),
        PLANE.sample((4,), generator=rng(3)),
    )
    options = {"divergence": ExactDivergence(), "rtol": 1e-8, "atol": 1e-8, "t_min": 1e-2, "error_factor": None}
    in_t = ode_log_prob(probability_flow(score, sde), base, x, **options)
    torch.testing.assert_close(
        probability_flow_log_prob(score, sde, x, base=base, **options).log_prob, in_t.log_prob, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(("start", "end"), [(1e-3, 1.5), (0.0, 1.57), (1.5, 1e-3)])
def test_grid(start: float, end: float) -> None:
    """Even in asinh(φ/k) + φ, and exact at both ends."""
    phi = angle_grid(start, end, 20)
    assert (phi[0].item(), phi[-1].item()) == (start, end)
    u = torch.asinh(phi / WARP) + phi
    torch.testing.assert_close(u.diff(), (u[-1] - u[0]).expand(20) / 20, rtol=1e-9, atol=1e-9)


def test_ends_and_radii() -> None:
    """VP has r = 1 throughout; VE at t = 1 is all noise: φ = atan 50."""
    vp, ve = (AngleFlow(score=lambda x, t: x, sde=sde, warp=0.1) for sde in (VPSDE(), SDES["ve"][0]))
    assert vp.radii(1e-5) == pytest.approx((1.0, 1.0), abs=1e-12)
    assert ve.angles(0.0)[0] == 0.0
    assert math.tan(ve.angles(0.5)[1]) == pytest.approx(ve.radii(0.5)[1], rel=1e-3)
    assert vp.ends(1e-5)[1] == pytest.approx(math.asinh(vp.angles(1e-5)[1] / 0.1))
