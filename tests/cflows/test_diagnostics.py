import math

import pytest
import torch
from contracts import langevin as contracts
from helpers import rng
from torch import Tensor

from cflows import Trajectory, effective_sample_size, langevin, r_hat

# ArviZ 0.23.4: rhat(method="rank") and ess(method="mean") of the chains below.
ARVIZ = {
    "independent": (1.000514197979171, 1554.2956340537223),
    "autoregressive": (1.0084247257219083, 308.03946210583956),
    "shifted": (1.203653696309034, 15.131625413353396),
    "scaled": (1.1957230734221205, 1758.7041956090604),
    "heavy tails": (1.0001393386981616, 1616.2129669365222),
    "ties": (1.0088178918333046, 326.61057355660955),
    "odd length": (1.0101661419827825, 310.0492372828396),
    "drift": (1.1065101889574007, 24.49220938253739),
    "anticorrelated": (0.9997312215616799, 5126.591972249479),
}


def chains() -> dict[str, Tensor]:
    """Chains of 400 draws by a rule, without a generator."""
    n, m = torch.arange(1, 401, dtype=torch.float64)[:, None], torch.arange(4, dtype=torch.float64)
    z = torch.special.ndtri((n * (math.sqrt(5) - 1) / 2 + m * math.sqrt(2) + n.square() * math.sqrt(3)) % 1.0)
    rows = [z[0]]
    for noise in z[1:]:
        rows.append(0.7 * rows[-1] + noise)
    x = torch.stack(rows)
    return {
        "independent": z,
        "autoregressive": x,
        "shifted": x + torch.tensor([0.0, 0.0, 0.0, 2.0]),
        "scaled": z * torch.tensor([1.0, 1.0, 1.0, 4.0]),
        "heavy tails": z / z.roll(7, 0).abs(),
        "ties": x.round(),
        "odd length": x[:397],
        "drift": z + 0.005 * n,
        "anticorrelated": z - 0.6 * z.roll(1, 0),
    }


@pytest.mark.parametrize("name", ARVIZ)
def test_values_of_arviz(name: str) -> None:
    """R-hat to nine digits; the sample size within 2 %, for ArviZ scales autocovariances and ends sums otherwise."""
    expected, size = ARVIZ[name]
    assert r_hat(chains()[name]).item() == pytest.approx(expected, rel=1e-9)
    assert effective_sample_size(chains()[name]).item() == pytest.approx(size, rel=0.02)


def test_effective_sample_size_of_autoregressions() -> None:
    contracts.counts_draws(effective_sample_size)


def test_effective_sample_size_of_independent_draws() -> None:
    x = torch.randn(1000, 8, generator=rng(0), dtype=torch.float64)
    assert effective_sample_size(x).item() == pytest.approx(8000, rel=0.08)


def test_effective_sample_size_is_bounded() -> None:
    """Alternating draws have a mean without error; S log₁₀ S is what is claimed at most."""
    x = torch.tensor([1.0, -1.0]).double().repeat(200)[:, None].repeat(1, 4)
    assert effective_sample_size(x).item() <= 1600 * math.log10(1600) + 1e-6


def test_chains_that_disagree_are_worth_little() -> None:
    x = torch.randn(500, 4, generator=rng(0)) + torch.tensor([0.0, 0.0, 3.0, 3.0])
    assert effective_sample_size(x) < 20


def test_r_hat_sees_location_scale_and_drift() -> None:
    contracts.sees_what_differs(r_hat)


def test_r_hat_does_not_depend_on_the_scale_of_measurement() -> None:
    """Ranks are those of any rising function; heavy tails do no harm."""
    x = torch.randn(500, 4, generator=rng(0), dtype=torch.float64)
    cauchy = torch.tan(math.pi * (torch.special.ndtr(x) - 0.5))
    assert r_hat(cauchy).item() == pytest.approx(r_hat(x).item(), abs=2e-3)
    assert r_hat(cauchy + torch.tensor([0.0, 0.0, 0.0, 4.0])) > 1.1


@pytest.mark.parametrize("diagnostic", ["r_hat", "effective_sample_size"])
def test_each_number_of_the_event_by_itself(diagnostic: str) -> None:
    x = torch.randn(100, 3, 2, 4, generator=rng(0), dtype=torch.float64)
    function = {"r_hat": r_hat, "effective_sample_size": effective_sample_size}[diagnostic]
    together = function(x)
    alone = [[function(x[:, :, i, j]).item() for j in range(4)] for i in range(2)]
    torch.testing.assert_close(together, torch.tensor(alone, dtype=torch.float64))
    torch.testing.assert_close(function(x.float()), together.float(), rtol=1e-3, atol=1e-3)
    assert function(x.to("meta")).shape == (2, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_averaged_away(value: float) -> None:
    x = torch.randn(100, 4, 2, generator=rng(0))
    x[7, 1, 0] = value
    for found in (r_hat(x), effective_sample_size(x)):
        assert found.isnan().tolist() == [True, False]


def test_constant_draws_say_nothing() -> None:
    x = torch.full((100, 4), 0.1)
    assert r_hat(x).isnan()
    assert effective_sample_size(x).isnan()


def test_draws_of_two_values() -> None:
    """Their distances from the median are all the same: location alone decides."""
    x = (torch.rand(1000, 4, generator=rng(0)) < 0.5).double()
    assert r_hat(x) < 1.02
    assert r_hat(torch.cat([x[:, :3], torch.ones(1000, 1)], 1)) > 1.1


@pytest.mark.parametrize("shape", [(3, 4), (10, 0)])
def test_too_few_draws(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="with 4 draws and 1 chain or more"):
        r_hat(torch.zeros(shape))


def test_trajectory() -> None:
    """Every third step from the fifth on, as copies."""
    path = Trajectory(every=3, skip=4)
    x = torch.zeros(2, 3)
    for step in range(12):
        x += 1
        path(step, x)
    assert path.stack().shape == (3, 2, 3)
    assert path.stack()[:, 0, 0].tolist() == [5.0, 8.0, 11.0]


def test_trajectory_of_a_sampler() -> None:
    path = Trajectory(skip=20)
    end = langevin(lambda x: -x, torch.zeros(4, 2), step_size=0.5, steps=220, generator=rng(0), callback=path)
    assert torch.equal(path.stack()[-1], end)
    assert (r_hat(path.stack()) < 1.1).all()
    assert (effective_sample_size(path.stack()) < 800).all()


def test_trajectory_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="every at 1 or more"):
        Trajectory(every=0)
    with pytest.raises(ValueError, match="nothing to stack"):
        Trajectory(skip=5).stack()
