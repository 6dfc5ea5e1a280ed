"""Laws of times and their weights: the integral that each one is, and how noisy its estimate."""

import inspect

import pytest
import torch
from cases import SDES, WEIGHTINGS
from contracts import objectives
from helpers import normal, rng
from torch import Tensor, nn
from wrong import TamperedDenoising

from cflows import (
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    CosineWeighting,
    DenoisingScoreMatching,
    EDMWeighting,
    LearnedWeighting,
    LikelihoodWeighting,
    SubVPSDE,
    VarianceWeighting,
)
from cflows.objectives.weightings import Weighting
from cflows.parametrization import convert
from cflows.sde import Score

BOTH = pytest.mark.parametrize("sampling", ["importance", "uniform"])
EVERY_SDE = pytest.mark.parametrize("name", SDES)
T_MIN = 1e-5


def spread(score: Score, sde: SDE, weighting: Weighting) -> nn.Module:
    return DenoisingScoreMatching(score, sde, weighting=weighting, t_min=T_MIN)


@BOTH
@EVERY_SDE
def test_likelihood_weighting_is_the_integral(name: str, sampling: str) -> None:
    """Of ½ g² ‖s - ∇ log p‖², whichever way the times are drawn."""
    sde, weighting = SDES[name][0], LikelihoodWeighting(sampling=sampling)
    objectives.weighting_integrates(weighting, sde, objectives.half_squared_diffusion(sde), t_min=T_MIN)


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve"])
def test_variance_weighting_is_uniform_in_t(name: str) -> None:
    def uniform(t: Tensor) -> Tensor:
        return torch.full_like(t, 1 / (1 - T_MIN))

    objectives.weighting_integrates(VarianceWeighting(), SDES[name][0], uniform, t_min=T_MIN)


@EVERY_SDE
def test_edm_is_the_integral_and_has_its_law(name: str) -> None:
    sde = SDES[name][0]
    for weighting in (EDMWeighting(), EDMWeighting(P_mean=0.3, P_std=0.7, data_std=0.9)):
        density = objectives.edm_density(weighting, sde, T_MIN)
        objectives.weighting_integrates(weighting, sde, density, t_min=T_MIN)
        objectives.times_have_the_law(weighting, sde, objectives.edm_law(weighting), t_min=T_MIN)


@EVERY_SDE
def test_cosine_has_its_law(name: str) -> None:
    sde = SDES[name][0]
    objectives.times_have_the_law(CosineWeighting(), sde, objectives.cosine_law, t_min=T_MIN)
    t, w = CosineWeighting().times(torch.rand(9), sde, T_MIN)
    assert torch.equal(w, torch.ones_like(t))


def test_cosine_times_of_the_cosine_process_are_even() -> None:
    """Its angle is linear in t, but for its offset of 0.008 near the data."""
    u = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    t, _ = CosineWeighting().times(u, CosineVPSDE(), 1e-5)
    torch.testing.assert_close(t, u, rtol=0, atol=0.008)


@EVERY_SDE
def test_edm_weighs_the_error_of_the_denoiser(name: str) -> None:
    """w ‖σ s + ε‖² is (σ̃² + σ_d²)/(σ̃ σ_d)² ‖D - x_0‖² row by row, D = (x + σ² s)/α of any score."""
    sde, weighting = SDES[name][0], EDMWeighting(data_std=0.7)
    t, w = weighting.times(torch.linspace(0.01, 0.99, 20, dtype=torch.float64), sde, T_MIN)
    (scale, std), x_0, eps = sde.marginal(t), normal(20, (3,), rng(0)), normal(20, (3,), rng(1))
    x = scale[:, None] * x_0 + std[:, None] * eps
    s = torch.sin(x) / std[:, None]
    denoised = convert(s, x, scale, std, source="score", target="data")
    sigma = std / scale
    expected = (sigma**2 + 0.49) / (0.7 * sigma) ** 2 * (denoised - x_0).square().sum(1)
    torch.testing.assert_close(w * (std[:, None] * s + eps).square().sum(1), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("sde", "normaliser"), [(VPSDE(), 23.86447237), (SubVPSDE(), 37.67894573)])
def test_gold_importance_normaliser(sde: SDE, normaliser: float) -> None:
    """w = ½ ∫ g²/σ² dt over [1e-5, 1]."""
    _, w = LikelihoodWeighting().times(torch.zeros(3, dtype=torch.float64), sde, 1e-5)
    assert w.tolist() == pytest.approx([normaliser / 2] * 3, abs=1e-7)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_times_stay_inside_in_float32(name: str) -> None:
    u = torch.cat([torch.zeros(1), torch.rand(1000, generator=rng(0)), torch.tensor([1 - 2.0**-24])])
    for sde, _ in SDES.values():
        t, w = WEIGHTINGS[name].times(u, sde, 1e-5)
        assert ((t >= 1e-5) & (t <= 1)).all()
        assert (w > 0).all()
        assert w.isfinite().all()
        assert t.dtype == w.dtype == torch.float32


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_times_are_those_of_float64_and_run_on_meta(name: str) -> None:
    """Within a millionth of the log-SNR's range, and where that leaves the weight."""
    weighting, u = WEIGHTINGS[name], torch.linspace(0.01, 0.99, 50)
    for sde in (VPSDE(), VESDE()):
        single, double = weighting.times(u, sde, 1e-4), weighting.times(u.double(), sde, 1e-4)
        torch.testing.assert_close(single[0].double(), double[0], rtol=1e-3, atol=0)
        torch.testing.assert_close(single[1].double(), double[1], rtol=1e-3, atol=0)
    if not isinstance(weighting, nn.Module):
        assert weighting.times(u.to("meta"), VPSDE(), 1e-4)[0].device.type == "meta"


def test_a_learned_weighting_runs_on_meta() -> None:
    loss = DenoisingScoreMatching(lambda x, t: -x, VPSDE(), weighting=LearnedWeighting()).to("meta")
    assert loss(torch.zeros(3, 2, device="meta")).device.type == "meta"


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_importance_has_the_smaller_variance(name: str) -> None:
    """Hundreds of times smaller, on data N(0, ½) at the exact score, as measured."""
    options = {"c": 0.5, "dimensions": 4, "rows": 500, "batches": 200}
    importance, uniform = (
        objectives.batch_variance(TamperedDenoising, SDES[name][0], LikelihoodWeighting(sampling=s), **options)[0]
        for s in ("importance", "uniform")
    )
    assert importance < 0.01 * uniform


def test_times_are_spread_evenly_over_the_batch() -> None:
    seen: list[Tensor] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return -x

    loss = DenoisingScoreMatching(score, VPSDE(), t_min=1e-3)
    loss(torch.zeros(10, 2, dtype=torch.float64), generator=rng(6))
    t = seen[0].sort().values
    torch.testing.assert_close(t.diff(), torch.full((9,), 0.0999, dtype=torch.float64))
    assert t[0] >= 1e-3
    assert t[-1] <= 1


def test_even_times_take_out_the_variance_between_times() -> None:
    """Of E_λ[ℓ²] - E_λ[ℓ]² = Var_λ(L) + 2/D E[L²] the first part goes: 3/4 and more of all at D = 32."""
    sde, weighting, rows, dimensions = VPSDE(), LikelihoodWeighting(), 64, 32
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    t, w = weighting.times(u, sde, T_MIN)
    loss = w * objectives.expected_loss(sde, t, 0.5, 1.0)
    between, within = loss.var(correction=0).item(), 2 / dimensions * loss.square().mean().item()
    options = {"c": 0.5, "dimensions": dimensions, "rows": rows, "batches": 400}
    independent, error = objectives.batch_variance(TamperedDenoising, sde, weighting, **options)
    even, _ = objectives.batch_variance(spread, sde, weighting, **options)
    assert independent * rows == pytest.approx(between + within, rel=5 * error)
    assert even * rows == pytest.approx(within, rel=5 * error)
    assert even < 0.25 * independent


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="importance or uniform, not 'even'"):
        inspect.unwrap(LikelihoodWeighting.__init__)(LikelihoodWeighting(), sampling="even")
    for keywords in ({"P_std": 0.0}, {"data_std": -1.0}):
        with pytest.raises(ValueError, match="P_std > 0 and data_std > 0"):
            EDMWeighting(**keywords)
    for keywords in ({"bins": 0}, {"memory": 1.0}, {"floor": 0.0}):
        with pytest.raises(ValueError, match="bins of 1 or more, memory within"):
            LearnedWeighting(**keywords)


# Losses that are uneven in log-SNR: at the exact score of N(0, c) they go from 1 to 0 where α² c = σ².
C, D, ROWS = 0.5, 16, 128


def learn(steps: int, sde: SDE, weighting: LearnedWeighting) -> DenoisingScoreMatching:
    loss, generator = spread(objectives.linear_score(sde, C, 1.0), sde, weighting), rng(2)
    for _ in range(steps):
        loss(C**0.5 * normal(ROWS, (D,), generator), generator=generator)
    return loss


def best_second_moment(sde: SDE) -> float:
    """(½ Λ E_λ √E[ℓ²])², of the law that follows the root of E[ℓ²] = L² (1 + 2/D) exactly."""
    u = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    t, w = LikelihoodWeighting().times(u, sde, T_MIN)
    return (w * objectives.expected_loss(sde, t, C, 1.0)).mean().square().item() * (1 + 2 / D)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_learned_is_unbiased_at_every_moment(name: str) -> None:
    sde, weighting = SDES[name][0], LearnedWeighting(bins=16)
    for steps in (0, 1, 5, 50):
        learn(steps, sde, weighting)
        density = objectives.half_squared_diffusion(sde)
        objectives.weighting_integrates(weighting, sde, density, t_min=T_MIN, tolerance=1e-3)
    assert weighting.probabilities.max() > 3 * weighting.probabilities.min()


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve"])
def test_learned_lowers_the_variance_to_its_bound(name: str) -> None:
    """The second moment of a row is that of the best law of all but for floor, bins and what is still forgotten."""
    sde, weighting = SDES[name][0], LearnedWeighting(memory=0.98, floor=0.02)
    uniform = objectives.second_moment(LikelihoodWeighting(), sde, c=C, dimensions=D, t_min=T_MIN)
    assert objectives.second_moment(weighting, sde, c=C, dimensions=D, t_min=T_MIN) == pytest.approx(uniform, rel=1e-4)
    learn(400, sde, weighting)
    learned = objectives.second_moment(weighting, sde, c=C, dimensions=D, t_min=T_MIN)
    best = best_second_moment(sde)
    assert best < learned < 1.03 * best
    assert learned < 0.8 * uniform


@pytest.mark.parametrize(
    ("objective", "share"), [(TamperedDenoising, 0.3), (spread, 0.75)], ids=["independent times", "even times"]
)
def test_learned_lowers_the_measured_variance(objective: objectives.Objective, share: float) -> None:
    """To a fifth of that of uniform log-SNR where times are independent; even ones leave less to take out."""
    sde, weighting = VPSDE(), LearnedWeighting()
    learn(400, sde, weighting)

    def standing(*parts: object) -> nn.Module:
        return objective(*parts).eval()

    options = {"c": C, "dimensions": D, "rows": ROWS, "batches": 400}
    before, error = objectives.batch_variance(standing, sde, LikelihoodWeighting(), **options)
    after, _ = objectives.batch_variance(standing, sde, weighting, **options)
    assert after < share * before
    if objective is TamperedDenoising:
        for found, law in ((before, LikelihoodWeighting()), (after, weighting)):
            second = objectives.second_moment(law, sde, c=C, dimensions=D, t_min=T_MIN)
            assert found * ROWS == pytest.approx(second - best_second_moment(sde) / (1 + 2 / D), rel=5 * error)


def test_learned_moments_are_those_of_the_losses() -> None:
    sde, weighting = VPSDE(), LearnedWeighting(bins=8, memory=0.995)
    learn(300, sde, weighting)
    u = (torch.arange(8000, dtype=torch.float64) + 0.5) / 8000
    t, _ = LikelihoodWeighting().times(u, sde, T_MIN)
    expected = objectives.expected_loss(sde, t, C, 1.0).square().reshape(8, 1000).mean(1) * (1 + 2 / D)
    seen = expected > 1e-3  # where what it started from is forgotten
    torch.testing.assert_close(weighting.second_moments.double()[seen], expected[seen], rtol=0.25, atol=0.01)


def test_learned_forgets_row_by_row() -> None:
    """m ← dⁿ m + (1 - dⁿ) mean ℓ² of the n rows in a bin; a bin without rows keeps what it has."""
    weighting = LearnedWeighting(bins=4, memory=0.5)
    weighting.observe(torch.tensor([0.1, 0.3, 0.4]), torch.tensor([2.0, 1.0, 3.0]))
    assert weighting.second_moments.tolist() == [0.5 * 1 + 0.5 * 4, 0.25 * 1 + 0.75 * 5, 1.0, 1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_learned_leaves_out_rows_that_are_not_finite(bad: float) -> None:
    """A step that is left out for its loss leaves nothing behind; its other rows count."""
    weighting = LearnedWeighting(bins=4, memory=0.5)
    weighting.observe(torch.tensor([0.1, 0.3, 0.4, 0.9]), torch.tensor([2.0, bad, 3.0, bad]))
    assert weighting.second_moments.tolist() == [0.5 * 1 + 0.5 * 4, 0.5 * 1 + 0.5 * 9, 1.0, 1.0]


def test_learned_stands_still_in_evaluation_and_learns_in_training() -> None:
    weighting = LearnedWeighting(bins=4)
    loss = spread(lambda x, t: -x, VPSDE(), weighting)
    x, before = normal(8, (2,), rng(3)), weighting.second_moments.clone()
    loss.eval()(x)
    assert torch.equal(weighting.second_moments, before)
    trained = loss.train()(x.requires_grad_())
    assert not torch.equal(weighting.second_moments, before)
    assert not weighting.second_moments.requires_grad
    trained.backward()
    assert loss.state_dict().keys() == {"weighting.second_moments"}
    assert weighting.probabilities.sum().item() == pytest.approx(1.0)
    assert weighting.probabilities.min() >= 0.1 / 4
