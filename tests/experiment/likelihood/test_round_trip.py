import math
from functools import partial
from typing import Any

import pytest
import torch
from helpers import normal, perturb
from torch import Tensor

from cflows import FFJORD, VPSDE, ODESolver, ScoreSDE
from core import StandardNormal, StandardUniform
from discrete import AffineCoupling, Bijection, Compose, Dequantization, Flow, Glow, Logit
from discrete.bijections.preprocessing import Scaling
from experiment import batches
from experiment.errors import NumericalError
from experiment.likelihood.round_trip import largest_round_trip_error, round_trip_error
from experiment.likelihood.score_density import ScoreDensity
from experiment.likelihood.transport import transport


class Drifting(Bijection):
    """x, whose inverse is off by a tenth in the second value of the third row."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor, context: Tensor | None = None, **_: object) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(len(x))

    def inverse(self, z: Tensor, context: Tensor | None = None, **_: object) -> tuple[Tensor, Tensor]:
        off = torch.zeros_like(z)
        off[2, 1] = 0.1
        return z + off, z.new_zeros(len(z))


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_error_is_found_in_its_row_and_in_units_of_the_data() -> None:
    """Scaled by 4 on the way in, an error of 0.1 inside is one of 0.4 in the data."""
    flow = Flow(Scaling(2, scale=4.0), Flow(Drifting(), StandardNormal(2)))
    error = round_trip_error(flow, torch.zeros(4, 2), generator=noise())
    torch.testing.assert_close(error, torch.tensor([0.0, 0.0, 0.4, 0.0]))


def test_an_exact_flow_has_none_and_integers_are_compared_before_they_are_rounded() -> None:
    k = torch.randint(4, (50, 2), generator=noise()).float()
    steps = Compose(Dequantization(2, bins=4), Scaling(2, loc=0.5, scale=0.5))
    assert round_trip_error(Flow(steps, StandardNormal(2)), k, generator=noise()).max() < 1e-7
    drifting = Flow(Compose(Dequantization(2, bins=4), Drifting()), StandardNormal(2))
    assert round_trip_error(drifting, k, generator=noise()).max() > 0.09
    assert round_trip_error(Flow(Dequantization(2, bins=4), StandardUniform(2)), k, generator=noise()).max() == 0


def test_float32_error_of_an_image_flow_is_small_but_not_zero() -> None:
    inner = Glow((1, 8, 8), levels=2, depth=2, hidden=(8,)).eval()
    flow = Flow(Compose(Dequantization((1, 8, 8), bins=256), Logit((1, 8, 8))), inner)
    k = torch.randint(256, (20, 1, 8, 8), generator=noise())
    error = round_trip_error(flow, k, generator=noise())
    assert error.shape == (20,)
    assert 0 < error.max() < 1e-5


class Sensitive(Bijection):
    """x, whose inverse adds a hundredth to a first value of 7 and cannot bring back an 8."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor, context: Tensor | None = None, **_: object) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(len(x))

    def inverse(self, z: Tensor, context: Tensor | None = None, **_: object) -> tuple[Tensor, Tensor]:
        bad = torch.where(z[:, :1] == 8, math.inf, 0.0)
        return z + 0.01 * (z[:, :1] == 7) + bad, z.new_zeros(len(z))


@pytest.mark.parametrize("place", [0, 2, 4])
def test_the_worst_row_of_any_batch_is_reported(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows in batches of two."""
    monkeypatch.setattr(batches, "BATCH_ROWS", 2)
    flow, x = Flow(Sensitive(), StandardNormal(2)), torch.zeros(5, 2)
    assert largest_round_trip_error(flow, x, run="a") == 0
    x[place, 0] = 7
    assert largest_round_trip_error(flow, x, run="a") == pytest.approx(0.01, rel=1e-4)
    x[place, 0] = 8
    with pytest.raises(NumericalError, match="a: the inverse of the flow gives values that are not finite"):
        largest_round_trip_error(flow, x, run="a")


def test_a_density_without_layers_makes_no_trip() -> None:
    assert round_trip_error(StandardNormal(2), torch.zeros(3, 2), generator=noise()) is None


@pytest.mark.parametrize(("build", "std"), [(partial(ScoreSDE, t_min=1e-2), 0.1), (FFJORD, 0.3)])
@pytest.mark.parametrize("method", ["dopri5", "dopri5_per_sample", "rk4"])
def test_an_ode_goes_down_and_back_by_its_own_solver(build: Any, std: float, method: str) -> None:
    """A hundredth of the tolerance, ten times the steps, leave less than a tenth of the error."""
    inner = perturb(build(2, hidden=(8,)), noise(), std=std)
    model, x = Flow(AffineCoupling(2).double(), inner), normal(20, (2,), noise())

    def largest(factor: float) -> float:
        inner.solver = ODESolver(method=method, rtol=1e-3 * factor, atol=1e-3 * factor, steps=int(10 / factor**0.5))
        return round_trip_error(model, x, generator=noise()).max().item()

    loose, tight = largest(1.0), largest(0.01)
    assert tight < loose / 10
    assert 1e-10 < loose < 1


def test_the_trip_of_a_score_ends_where_the_flow_of_a_gaussian_ends() -> None:
    """Data N(0, 2²): x(1) is x times the ratio of the two standard deviations, and the trip comes back."""
    sde = VPSDE()
    (a, b), (s, r) = sde.marginal(torch.tensor([1e-5, 1.0], dtype=torch.float64))
    model = ScoreDensity(1, score=lambda x, t: -x / wide(sde, t), sde=sde).double()
    way, x = transport(model), torch.tensor([[1.5], [-0.3]], dtype=torch.float64)
    ratio = torch.sqrt((4 * b**2 + r**2) / (4 * a**2 + s**2))
    torch.testing.assert_close(way.encode(x), x * ratio, rtol=1e-4, atol=0)
    torch.testing.assert_close(way.decode(x * ratio), x, rtol=1e-4, atol=0)


def wide(sde: VPSDE, t: Tensor) -> Tensor:
    scale, std = sde.marginal(t)
    return 4 * scale**2 + std**2
