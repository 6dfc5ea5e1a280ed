"""What lies before t_min, and how much of the density there is the noise of t_min."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import COVARIANCES, MEANS, SDES, WEIGHTS
from contracts import solvers
from helpers import Tooth, normal, rng
from torch import Tensor

from cflows import SDE, VESDE, VPSDE, noise_share, probability_flow_log_prob
from cflows.sde import Score
from cflows.truncation import truncation
from core import ExactDivergence, GaussianMixture, Hutchinson

PLANE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)
EXACT = ExactDivergence()
Share = Callable[..., Tensor]
VARIANCES = torch.tensor([0.0, 1e-6, 1e-3, 2.0], dtype=torch.float64)  # of four directions, two of them next to none


def test_truncation_is_that_of_the_likelihood() -> None:
    sde, x, score = VPSDE(), PLANE.sample((5,), generator=rng(0)), solvers.exact_score(PLANE, VPSDE())
    options = {"divergence": EXACT, "t_min": 1e-3}
    estimate = probability_flow_log_prob(score, sde, x, method="euler", steps=2, **options)
    torch.testing.assert_close(truncation(score, sde, x, **options), estimate.truncation)
    assert (truncation(score, sde, x, divergence=EXACT, t_min=0.0) == 0).all()


def gaussian_score(sde: SDE, turn: Tensor) -> Score:
    """Data N(0, Q diag(VARIANCES) Qᵀ)."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        scale, std = sde.marginal(t)
        return -(x @ turn / (scale**2 * VARIANCES + std**2)) @ turn.T

    return score


def counts_the_noisy_directions(share: Share) -> None:
    """Each direction of variance v counts σ²/(α² v + σ²), whichever way it points."""
    turn, _ = torch.linalg.qr(normal(4, (4,), rng(1)))
    for sde, t_min in ((VPSDE(), 1e-5), (VESDE(), 1e-3), (VPSDE(), 0.1)):
        scale, std = (v.square() for v in sde.marginal(torch.tensor(t_min, dtype=torch.float64)))
        expected = (std / (scale * VARIANCES + std)).mean()
        found = share(gaussian_score(sde, turn), sde, normal(3, (4,), rng(2)), divergence=EXACT, t_min=t_min)
        torch.testing.assert_close(found, expected.expand(3), rtol=1e-9, atol=0)


def stays_within_0_and_1(share: Share) -> None:
    """At most 1 everywhere, by Tweedie; the mean over the noised law is E ‖σ s‖²/D, for every process."""
    for name, (sde, _) in SDES.items():
        t = torch.tensor(0.05, dtype=torch.float64)
        scale, std = sde.marginal(t)
        x = scale * PLANE.sample((20_000,), generator=rng(3)) + std * normal(20_000, (2,), rng(4))
        score = solvers.exact_score(PLANE, sde)
        found = share(score, sde, x, divergence=EXACT, t_min=0.05)
        assert (found <= 1 + 1e-9).all(), f"{name}: {found.max()}"
        difference = found - (std * score(x, t)).square().mean(1)
        assert difference.mean().abs() < 4 * difference.std() / 20_000**0.5 + 1e-12, f"{name}: {difference.mean()}"


CONTRACTS = [counts_the_noisy_directions, stays_within_0_and_1]


@pytest.mark.parametrize("contract", CONTRACTS)
def test_contract(contract: Callable[[Share], None]) -> None:
    contract(noise_share)


WRONG: dict[str, Share] = {
    "sign": lambda *a, **k: -noise_share(*a, **k),
    "sum over dimensions": lambda score, sde, x, **k: x.shape[1] * noise_share(score, sde, x, **k),
    "σ for σ²": lambda score, sde, x, **k: (
        noise_share(score, sde, x, **k) / sde.marginal(torch.tensor(k["t_min"], dtype=torch.float64))[1]
    ),
    "half": lambda *a, **k: 0.5 * noise_share(*a, **k),
    "another time": lambda score, sde, x, **k: noise_share(score, sde, x, **{**k, "t_min": 2 * k["t_min"]}),
    "‖σ s‖²": lambda score, sde, x, **k: squared(score, sde, x, k["t_min"]),
}


def squared(score: Score, sde: SDE, x: Tensor, t_min: float) -> Tensor:
    """The same in the mean over noised rows, and nothing where the data themselves are."""
    t = torch.tensor(t_min, dtype=torch.float64)
    return (sde.marginal(t)[1] * score(x, t)).square().mean(1)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_share_is_noticed(name: str) -> None:
    Tooth(counts_the_noisy_directions, lambda: noise_share, lambda: WRONG[name]).bites()


def test_probes_and_images() -> None:
    """Rademacher probes are exact where the Jacobian is diagonal; rows of images have a share each."""
    sde = VPSDE()
    _, std = sde.marginal(torch.tensor(1e-4, dtype=torch.float64))

    def score(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([-x[:, :, :1] / sde.marginal(t)[1].square(), -x[:, :, 1:]], 2)

    share = partial(noise_share, score, sde, normal(3, (1, 4, 2), rng(5)), t_min=1e-4)
    found = share(divergence=Hutchinson(probes=2), generator=rng(6))
    torch.testing.assert_close(found, share(divergence=EXACT))
    expected = 0.25 + 0.75 * std.square()  # one line of four is noise
    torch.testing.assert_close(found, expected.expand(3))
    assert noise_share(score, sde, torch.zeros(0, 1, 4, 2), divergence=EXACT, t_min=1e-4).shape == (0,)
    assert not noise_share(
        score, sde, torch.zeros(1, 1, 4, 2).requires_grad_(), divergence=EXACT, t_min=1e-4
    ).requires_grad
