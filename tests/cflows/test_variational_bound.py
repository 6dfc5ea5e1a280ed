import math
from collections.abc import Callable

import pytest
import torch
from cases import COVARIANCES, MEANS, SDES, WEIGHTS
from contracts import solvers
from helpers import Tooth, rng
from torch import Tensor

from cflows import SDE, VPSDE, score_flow_bound
from cflows.sde import Score
from core import ExactDivergence, GaussianMixture, Hutchinson, LikelihoodEstimate
from core.density import DensityModel

PLANE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)
T_MIN, SAMPLES = 1e-3, 4000
Bound = Callable[[Score, SDE, DensityModel, Tensor], LikelihoodEstimate]


def bound(score: Score, sde: SDE, base: DensityModel, x: Tensor) -> LikelihoodEstimate:
    return score_flow_bound(
        score, sde, x, base=base, samples=SAMPLES, divergence=ExactDivergence(), t_min=T_MIN, generator=rng(0)
    )


def exact(sde: SDE, x: Tensor) -> Tensor:
    return PLANE.perturbed_log_prob(x, *sde.marginal(x.new_tensor(T_MIN)))


def is_tight(found: Bound, sde: SDE) -> None:
    """With the exact score it is the log-density at t_min, within four standard errors, which are small."""
    x = PLANE.sample((5,), generator=rng(1))
    estimate = found(solvers.exact_score(PLANE, sde), sde, solvers.exact_base(PLANE, sde), x)
    assert estimate.std_error.max() < 0.2
    off = (estimate.log_prob - exact(sde, x)) / estimate.std_error
    assert off.abs().max() < 4, f"off by {off} standard errors"


@pytest.mark.parametrize("name", ["vp", "cosine", "sub-vp", "ve"])
def test_it_is_tight_for_the_exact_score(name: str) -> None:
    name = name if name in SDES else next(key for key in SDES if name in key)
    is_tight(bound, SDES[name][0])


def test_a_wrong_score_is_below() -> None:
    """Data N(0, 1) under VP with s = -c x: ½ ∫ g² (c - 1)² dt below, in closed form by hand."""
    sde, c, x = VPSDE(), 1.5, torch.zeros(3, 1, dtype=torch.float64)
    estimate = score_flow_bound(
        lambda y, t: -c * y, sde, x, samples=20_000, divergence=ExactDivergence(), t_min=T_MIN, generator=rng(2)
    )
    t = torch.linspace(T_MIN, 1, 200_001, dtype=torch.float64)
    scale, std = sde.transition_kernel(torch.full_like(t, T_MIN), t)
    integral = torch.trapezoid(sde.diffusion(t) ** 2 * (c**2 * std**2 - 2 * c), t)
    base = -0.5 * (math.log(2 * math.pi) + std[-1] ** 2)
    expected = base + scale[-1].log() - 0.5 * integral
    assert ((estimate.log_prob - expected) / estimate.std_error).abs().max() < 4
    assert (estimate.log_prob + 4 * estimate.std_error < -0.5 * math.log(2 * math.pi)).all()


@pytest.mark.parametrize("wrong", ["half", "two", "sign", "volume"])
def test_teeth(wrong: str) -> None:
    """½ dropped, the divergence once, its sign, and the volume forgotten."""
    sde = VPSDE()

    def broken() -> Bound:
        def found(score: Score, sde: SDE, base: DensityModel, x: Tensor) -> LikelihoodEstimate:
            class Broken(ExactDivergence):
                def __call__(self, field, y, probes):  # type: ignore[no-untyped-def]
                    value, div = ExactDivergence.__call__(self, field, y, probes)
                    norm = value.square().sum(1, keepdim=True)
                    changed = {"half": 2 * div + 0.5 * norm, "two": 0.5 * div, "sign": -div, "volume": div}[wrong]
                    return value, changed

            estimate = score_flow_bound(
                score, sde, x, base=base, samples=SAMPLES, divergence=Broken(), t_min=T_MIN, generator=rng(0)
            )
            lost = 2 * math.log(0.00657) if wrong == "volume" else 0.0
            return LikelihoodEstimate(estimate.log_prob - lost, estimate.std_error)

        return found

    Tooth(lambda found: is_tight(found, sde), lambda: bound, broken).bites()


def test_shapes_kind_and_errors() -> None:
    x = torch.zeros(2, 3, 2)
    estimate = score_flow_bound(lambda y, t: -y, VPSDE(), x[0], samples=2, divergence=Hutchinson())
    assert estimate.kind == "bound"
    assert estimate.log_prob.shape == estimate.std_error.shape == (3,)
    assert estimate.nfe.tolist() == [2, 2, 2]
    assert score_flow_bound(lambda y, t: -y, VPSDE(), x[0], samples=1).std_error.isnan().all()
    with pytest.raises(ValueError, match="needs 1 sample or more and t_min above 0"):
        score_flow_bound(lambda y, t: -y, VPSDE(), x[0], samples=0)
