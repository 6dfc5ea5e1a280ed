"""The contracts of the continuous side bite: each passes what is right and rejects what is wrong in one place."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from cases import COVARIANCES, MEANS, WEIGHTS
from cases import SDES as CASES
from contracts import divergences, objectives, samplers, sdes, solvers
from helpers import Tooth, rng, unit
from torch import Tensor
from wrong import (
    FirstColumn,
    TamperedDenoising,
    TamperedDivergence,
    TamperedSampler,
    TamperedSDE,
    TamperedWeighting,
    naive_vp_marginal,
    tampered,
    velocity_without_half,
)

from cflows import (
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    LikelihoodWeighting,
    SubVPSDE,
    ode_log_prob,
    prior_kl,
    probability_flow_log_prob,
)
from cflows.objectives.weightings import Weighting
from cflows.sde import Score, probability_flow
from core import DensityModel, ExactDivergence, GaussianMixture, Hutchinson, LikelihoodEstimate, StandardNormal
from core.divergence import Divergence

VP, SUB_VP, VE, EXACT = VPSDE(), SubVPSDE(), VESDE(), ExactDivergence()
COSINE, ANGLE = CosineVPSDE(), CASES["affine-angle"][0]
MOMENTS = sdes.marginal_solves_the_moment_equations
SDES: dict[str, tuple[Callable[[SDE], None], SDE, dict[str, Callable]]] = {
    "sub-VP with the diffusion of VP": (MOMENTS, SUB_VP, {"diffusion": VP.diffusion}),
    "VP std without its root": (MOMENTS, VP, {"marginal": lambda t: (VP.marginal(t)[0], VP.marginal(t)[1].square())}),
    "drift reversed": (MOMENTS, VP, {"drift": lambda x, t: -VP.drift(x, t)}),
    "VE with g² for g": (MOMENTS, VE, {"diffusion": lambda t: VE.diffusion(t).square()}),
    "VE by its convention": (sdes.starts_at_the_data, VE, {"marginal": VESDE(transition="convention").marginal}),
    "log-SNR of the std": (sdes.log_snr_matches, VP, {"log_snr": lambda t: VP.log_snr(t) / 2}),
    "time that is no inverse": (sdes.log_snr_matches, VP, {"time": SUB_VP.time}),
    "std that loses its digits": (sdes.float32_keeps_its_digits, VP, {"marginal": naive_vp_marginal}),
    "cosine VP with β/2": (MOMENTS, COSINE, {"diffusion": lambda t: COSINE.diffusion(t) / 2**0.5}),
    "cosine VP without its offset": (
        sdes.starts_at_the_data,
        COSINE,
        {"marginal": lambda t: (torch.cos(0.5 * math.pi * (t + 0.008) / 1.008), COSINE.marginal(t)[1])},
    ),
    "affine with g² = (σ²)' alone": (
        MOMENTS,
        ANGLE,
        {"diffusion": lambda t: (3.06 * torch.sin(1.53 * t) * torch.cos(1.53 * t)).sqrt()},
    ),
    "affine with drift α'": (MOMENTS, ANGLE, {"drift": lambda x, t: ANGLE.drift(x, t) * ANGLE.marginal(t)[0][:, None]}),
    "kernel of the marginal": (
        sdes.kernels_compose,
        VP,
        {"transition_kernel": lambda s, t: (VP.marginal(t)[0] / VP.marginal(s)[0], VP.marginal(t)[1])},
    ),
    "kernel run backwards": (sdes.kernels_compose, VP, {"transition_kernel": lambda s, t: VP.transition_kernel(t, s)}),
    "prior of half the width": (
        sdes.prior_is_close_to_the_marginal,
        VE,
        {"prior": VESDE(sigma_min=0.01, sigma_max=25.0).prior},
    ),
    "drift with an offset": (sdes.drift_is_linear, VP, {"drift": lambda x, t: VP.drift(x, t) + 1}),
    "diffusion that loses its shape": (
        sdes.shapes_and_dtypes_follow_time,
        VP,
        {"diffusion": lambda t: VP.diffusion(t).reshape(-1)},
    ),
}


@pytest.mark.parametrize("name", SDES)
def test_sde(name: str) -> None:
    contract, right, replaced = SDES[name]
    Tooth(contract, lambda: right, lambda: TamperedSDE(right, **replaced)).bites()


PLANE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)
POINTS = PLANE.sample((4,), generator=rng(0))


def likelihood(velocity: Callable[[Score, SDE], Score] = probability_flow, divergence: Divergence = EXACT) -> Callable:
    def solve(score: Score, sde: SDE, base: DensityModel, x: Tensor, t_min: float) -> LikelihoodEstimate:
        options = {"divergence": divergence, "t_min": t_min, "rtol": 1e-6, "atol": 1e-6, "error_factor": None}
        return ode_log_prob(velocity(score, sde), base, x, **options)

    return solve


@pytest.mark.parametrize(
    "fault",
    [
        {"velocity": velocity_without_half},
        {"velocity": lambda score, sde: lambda x, t: -probability_flow(score, sde)(x, t)},
        {"divergence": TamperedDivergence(EXACT, lambda v: -v)},
        {"divergence": TamperedDivergence(EXACT, lambda v: 0 * v)},
        {"divergence": FirstColumn()},
    ],
    ids=["without ½", "velocity reversed", "divergence sign flipped", "divergence zeroed", "first column"],
)
def test_likelihood(fault: dict[str, Any]) -> None:
    def contract(solve: solvers.Likelihood) -> None:
        solvers.mixture_likelihood(solve, VP, PLANE, POINTS)

    Tooth(contract, likelihood, partial(likelihood, **fault)).bites()


def fixed(method: str) -> solvers.OrderedSolver:
    return lambda v, base, x, n: ode_log_prob(v, base, x, method=method, steps=int(n), error_factor=None).log_prob


@pytest.mark.parametrize(
    ("order", "right", "wrong"), [(4, "rk4", "euler"), (2, "midpoint", "euler"), (1, "euler", "rk4")]
)
def test_order(order: int, right: str, wrong: str) -> None:
    Tooth(partial(solvers.order_is, order=order), partial(fixed, right), partial(fixed, wrong)).bites()


def adaptive(floor: float = 0.0) -> solvers.OrderedSolver:
    """Never tighter than the floor."""
    return lambda v, base, x, tolerance: (
        ode_log_prob(v, base, x, rtol=max(floor, tolerance), atol=max(floor, tolerance), error_factor=None).log_prob
    )


def test_tolerance_that_is_not_kept() -> None:
    contract = partial(solvers.error_follows_the_tolerance, tolerances=(1e-5, 1e-7))
    Tooth(contract, adaptive, partial(adaptive, 1e-5)).bites()


def test_velocity_asked_after_its_end() -> None:
    def solve(overshoot: float) -> Callable[..., None]:
        return lambda velocity, base, x: velocity(x, x.new_tensor(1.0 + overshoot))

    Tooth(partial(solvers.time_stays_inside, t_min=0.5), lambda: solve(0.0), lambda: solve(0.1)).bites()


def full(factor: float = 1.0) -> solvers.Likelihood:
    def solve(score: Score, sde: SDE, base: DensityModel, x: Tensor, t_min: float) -> LikelihoodEstimate:
        options = {"base": base, "divergence": EXACT, "t_min": t_min, "method": "euler", "steps": 2}
        return tampered(probability_flow_log_prob(score, sde, x, **options), truncation=factor)

    return solve


@pytest.mark.parametrize(
    "wrong",
    [
        lambda **data: 2 * prior_kl(VP, **data),
        lambda *, mean, variance: prior_kl(VP, mean=mean, variance=variance**2),
        lambda *, mean, variance: prior_kl(VP, mean=2**0.5 * mean, variance=variance),
    ],
    ids=["without ½", "variance squared", "mean without ½"],
)
def test_mismatch_of_the_prior(wrong: Callable[..., float]) -> None:
    Tooth(sdes.mismatch_is_published, lambda: partial(prior_kl, VP), lambda: wrong).bites()


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.5])
def test_truncation(factor: float) -> None:
    def contract(solve: solvers.Likelihood) -> None:
        solvers.truncation_is_first_order(solve, VP, PLANE, POINTS)

    Tooth(contract, full, partial(full, factor)).bites()


def estimated(factor: float = 1.0) -> LikelihoodEstimate:
    """A linear field whose divergence is 2, from many rows of 8 probes."""
    x, base = torch.zeros(1000, 3, dtype=torch.float64), StandardNormal(3).double()
    options = {
        "divergence": Hutchinson(probes=8),
        "method": "rk4",
        "steps": 2,
        "generator": rng(1),
        "error_factor": None,
    }
    return tampered(ode_log_prob(lambda x, t: divergences.linear(x), base, x, **options), std_error=factor)


@pytest.mark.parametrize("factor", [8**0.5, 8**-0.5, 0.0])
def test_standard_error(factor: float) -> None:
    """That of one probe, that of the sum of squares divided twice, none."""
    exact = -1.5 * math.log(2 * math.pi) + 2.0
    Tooth(lambda e: solvers.std_error_covers(e, exact), estimated, partial(estimated, factor)).bites()


def grown(factor: float = 1.0) -> tuple[LikelihoodEstimate, Tensor]:
    x, base = 0.1 + 0.7 * unit(20, (2,), rng(2)), StandardNormal(2).double()
    estimate = ode_log_prob(solvers.logistic_growth, base, x, method="rk4", steps=10)
    return tampered(estimate, solver_error=factor), solvers.logistic_log_prob(base, x)


def test_solver_error_zeroed() -> None:
    Tooth(lambda pair: solvers.solver_error_is_not_small(*pair), grown, partial(grown, 0.0)).bites()


def reaches(sampler: TamperedSampler) -> None:
    data = {"mean": torch.tensor([0.5, -1.0]).double(), "variance": torch.tensor([1.0, 0.25]).double()}
    samplers.reaches_gaussian_data(sampler, VP, rows=10_000, bias=0.1, generator=rng(3), **data)


def first_order(sampler: TamperedSampler) -> None:
    samplers.weak_order_is(lambda n: replace(sampler, steps=n, t_min=0.3), VP, 1, t_min=0.3)


def clean(sampler: TamperedSampler) -> None:
    samplers.is_clean(sampler, VP, steps=sampler.steps)


def one_step(sampler: TamperedSampler) -> None:
    """Moments of one step from t = 1 to ½ in closed form: a = -10, g² = 20, and V = α² c + σ²."""
    (_, total), step = samplers.marginal_moments(VP, 1.0, variance=0.4), replace(sampler, steps=1, t_min=0.5)
    slope = 1 + 10 * 0.5 - 20 * 0.5 / total
    samplers.moments_are(step, VP, (0.0, slope**2 * total + 20 * 0.5), mean=0.0, variance=0.4, draws=1)


SAMPLERS = {
    "drift reversed": (reaches, {"drift": -1.0}),
    "score reversed": (reaches, {"score": -1.0}),
    "score halved": (reaches, {"score": 0.5}),
    "noise doubled": (reaches, {"noise": 2.0}),
    "noise left out": (reaches, {"noise": 0.0}),
    "Δt for its root": (reaches, {"fault": "dt for its root"}),
    "noise one percent off": (first_order, {"noise": 1.01}),
    "noise one millionth off": (one_step, {"noise": 1.000001}),
    "time one step late": (one_step, {"fault": "late time"}),
    "global generator": (clean, {"fault": "global generator"}),
    "in place": (clean, {"fault": "in place"}),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler(name: str) -> None:
    contract, fault = SAMPLERS[name]
    right = TamperedSampler(steps=60)
    Tooth(contract, lambda: right, lambda: replace(right, **fault)).bites()


def minimum(objective: objectives.Objective) -> None:
    objectives.minimum_is(objective, VP, t=0.5, c=1.0, expected=0.07906381)


def minimiser(objective: objectives.Objective) -> None:
    objectives.minimiser_is_the_score(objective, VP, t=0.5, c=1.0)


def elsewhere(objective: objectives.Objective) -> None:
    objectives.loss_of_any_linear_score_is(objective, VP, t=0.5, c=1.0)


@pytest.mark.parametrize("contract", [minimum, minimiser, elsewhere])
@pytest.mark.parametrize("fault", [{"sign": -1.0}, {"sign": 0.5}], ids=["wrong sign", "wrong factor"])
def test_denoising(fault: dict[str, float], contract: Callable[[objectives.Objective], None]) -> None:
    Tooth(contract, lambda: TamperedDenoising, lambda: partial(TamperedDenoising, **fault)).bites()


def test_denoising_summed_over_dimensions() -> None:
    Tooth(minimum, lambda: TamperedDenoising, lambda: partial(TamperedDenoising, reduce="sum")).bites()


@pytest.mark.parametrize(
    "change", [lambda w: 2 * w, lambda w: torch.ones_like(w), lambda w: -w], ids=["without ½", "unweighted", "negative"]
)
def test_likelihood_weighting(change: Callable[[Tensor], Tensor]) -> None:
    def contract(weighting: Weighting) -> None:
        objectives.weighting_integrates(weighting, VP, objectives.half_squared_diffusion(VP))

    Tooth(contract, LikelihoodWeighting, lambda: TamperedWeighting(LikelihoodWeighting(), change)).bites()
