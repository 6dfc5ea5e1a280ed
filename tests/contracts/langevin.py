"""What chains of Langevin steps keep: their exact law on Gaussians, where they are affine, and the law of a mixture."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from contracts.samplers import affine_moments
from helpers import rng
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from cflows.samplers.annealed_importance import NormalizingConstant
from cflows.samplers.mala import Point
from core import DensityModel, GaussianMixture

Walk = Callable[..., Tensor]  # walk(score, x, *, step_size, steps, generator=None) -> x
Annealed = Callable[..., Tensor]  # annealed(score, sigmas, x, *, step_size, steps, denoise=False) -> x
Adjusted = Callable[..., tuple[Tensor, Tensor]]  # adjusted(log_density, x, *, step_size, steps, generator=None)
Acceptance = Callable[..., Tensor]  # acceptance(here, there, *, step_size), nats
Weighted = Callable[..., NormalizingConstant]
Run = Callable[..., Tensor]  # run(x, *, generator=None, callback=None) -> x, towards N(0, I)


def gaussian_score(mean: float, variance: float) -> Callable[..., Tensor]:
    """s(x), or s(x, σ) of the data with noise added."""
    return lambda x, sigma=None: -(x - mean) / (variance + (0.0 if sigma is None else sigma.square()[:, None]))


def _close(found: tuple[float, float], expected: tuple[float, float]) -> None:
    for name, a, b in zip(("mean", "variance"), found, expected, strict=True):
        assert math.isclose(a, b, rel_tol=1e-10, abs_tol=1e-12), f"the {name} is {a}, not {b}"


def after(
    moments: tuple[float, float], *, mean: float, variance: float, step_size: float, steps: int
) -> tuple[float, float]:
    """Mean and variance after steps x ← x - ε (x - mean)/variance + √(2ε) z: a geometric series."""
    q = 1 - step_size / variance
    noise = 2 * step_size * (1 - q ** (2 * steps)) / (1 - q**2)
    return mean + q**steps * (moments[0] - mean), q ** (2 * steps) * moments[1] + noise


def follows_the_recursion(walk: Walk) -> None:
    """Mean and variance after several steps, to ten digits."""
    start, law, steps = (-1.0, 2.0), {"mean": 0.7, "variance": 0.4}, 7
    score = gaussian_score(**law)
    found = affine_moments(lambda x: walk(score, x, step_size=0.1, steps=steps), draws=steps, start=start)
    _close(found, after(start, step_size=0.1, steps=steps, **law))


def stationary_variance(walk: Walk, *, variance: float, step_size: float) -> float:
    """Of N(0, variance), from one step: what is added over what is lost."""

    def from_variance(v: float) -> float:
        score = gaussian_score(0.0, variance)
        return affine_moments(lambda x: walk(score, x, step_size=step_size, steps=1), draws=1, start=(0.0, v))[1]

    added = from_variance(0.0)
    return added / (1 + added - from_variance(1.0))


def bias_is_linear(walk: Walk) -> None:
    """Half the step size halves the error of the stationary variance, within 10 %."""
    errors = [stationary_variance(walk, variance=0.5, step_size=0.04 / 2**k) - 0.5 for k in range(4)]
    ratios = [a / b for a, b in pairwise(errors)]
    assert all(abs(ratio - 2) < 0.2 for ratio in ratios), f"half the step divides the bias by {ratios}"


def anneals_exactly(annealed: Annealed, *, sigmas: list[float], steps: int, denoise: bool = False) -> None:
    """Mean and variance at the end of the ladder, and with its noise taken out, to ten digits."""
    mean, variance, step_size = 0.7, 0.4, 2e-3
    moments = start = (-1.0, 3.0)
    for sigma in sigmas:
        half = step_size * sigma**2 / sigmas[-1] ** 2 / 2
        moments = after(moments, mean=mean, variance=variance + sigma**2, step_size=half, steps=steps)
    if denoise:
        kept = variance / (variance + sigmas[-1] ** 2)
        moments = mean + kept * (moments[0] - mean), kept**2 * moments[1]

    def run(x: Tensor) -> Tensor:
        options = {"step_size": step_size, "steps": steps, "denoise": denoise}
        return annealed(gaussian_score(mean, variance), sigmas, x, **options)

    _close(affine_moments(run, draws=len(sigmas) * steps, start=start), moments)


def has_the_law(x: Tensor, mixture: GaussianMixture, *, errors: float = 5.0) -> None:
    """Means, second moments and weights of two components in two dimensions, within so many Monte Carlo errors."""
    rotation = mixture.eigenvectors
    covariances = rotation @ torch.diag_embed(mixture.eigenvalues) @ rotation.mT
    weights = mixture.log_weights.exp()
    joint = MultivariateNormal(mixture.means, covariances).log_prob(x[:, None]) + mixture.log_weights
    i, j = torch.triu_indices(2, 2)
    second = covariances + mixture.means[:, :, None] * mixture.means[:, None, :]
    found = torch.cat([x, x[:, i] * x[:, j], torch.softmax(joint, 1)[:, :1]], 1)
    expected = torch.cat([weights @ mixture.means, torch.einsum("k,kij->ij", weights, second)[i, j], weights[:1]])
    z = (found.mean(0) - expected) / (found.std(0) / len(x) ** 0.5)
    assert z.abs().max() < errors, f"means, second moments and weight are off by {z.tolist()} standard errors"


def keeps_the_law(adjusted: Adjusted, mixture: GaussianMixture, *, step_size: float) -> None:
    """Draws of the density still are after some steps, most of which move."""
    x = mixture.sample((10_000,), generator=rng(0))
    x, acceptance = adjusted(mixture.log_prob, x, step_size=step_size, steps=25, generator=rng(1))
    assert acceptance.mean() > 0.1, "hardly anything moved"
    has_the_law(x, mixture)


def balances(acceptance: Acceptance) -> None:
    """π(x) q(y|x) a(x, y) = π(y) q(x|y) a(y, x) at every pair of points."""
    step_size, mixture = 0.3, GaussianMixture(*_plane())
    x, y = (mixture.sample((64,), generator=rng(seed)) for seed in (0, 1))
    here, there = (Point(v, mixture.log_prob(v), mixture.score(v)) for v in (x, y))

    def flow(a: Point, b: Point) -> Tensor:
        proposal = Normal(a.x + step_size * a.score, (2 * step_size) ** 0.5).log_prob(b.x).sum(1)
        return a.log_density + proposal + acceptance(a, b, step_size=step_size).clamp(max=0)

    off = (flow(here, there) - flow(there, here)).abs().max().item()
    assert off < 1e-10, f"the flow between two points differs by {off:.2e} nats"


def _plane() -> tuple[Tensor, Tensor, Tensor]:
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0]], dtype=torch.float64)
    covariances = torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[1.0, -0.6], [-0.6, 0.8]]], dtype=torch.float64)
    return means, covariances, torch.tensor([0.3, 0.7], dtype=torch.float64)


def weight_and_error(x: Tensor) -> tuple[float, float]:
    """Share of the mode in the lower left, and its standard error."""
    share = (x.sum(1) < 0).double().mean().item()
    return share, math.sqrt(max(share * (1 - share), 1 / len(x)) / len(x))


def normalizer_is_covered(
    weighted: Weighted, log_density: Callable[[Tensor], Tensor], base: DensityModel, *, log_z: float, repeats: int = 50
) -> None:
    """Over repeats (log Ẑ - log Z)/error has spread 1 and the mean of Ẑ is Z, within Monte Carlo error."""
    found = [weighted(log_density, base, generator=rng(seed)) for seed in range(repeats)]
    off = torch.stack([f.log_z_nats for f in found]) - log_z
    z = off / torch.stack([f.std_error_nats for f in found])
    spread, allowed = z.square().mean().sqrt().item(), 3.5 / math.sqrt(2 * repeats)
    assert abs(spread - 1) < allowed, f"log Z is off by {spread:.2f} times its errors, ± {allowed:.2f}"
    ratio = off.exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / repeats**0.5, f"the mean of Ẑ/Z is {ratio.mean():.4f}"


def autoregression(rho: float, *, draws: int, chains: int, seed: int = 0) -> Tensor:
    """Stationary chains of variance 1 with ρ_t = ρ^t, `(draws, chains)`."""
    z = torch.randn(draws, chains, generator=rng(seed), dtype=torch.float64)
    x = [z[0]]
    for noise in z[1:]:
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * noise)
    return torch.stack(x)


def counts_draws(effective: Callable[[Tensor], Tensor]) -> None:
    """n (1 - ρ)/(1 + ρ) for autoregressive chains, within 15 %."""
    for rho in (-0.4, 0.0, 0.5, 0.8):
        expected = 8000 * (1 - rho) / (1 + rho)
        found = effective(autoregression(rho, draws=2000, chains=4)).item()
        assert abs(found / expected - 1) < 0.15, f"ρ = {rho} leaves {found:.0f} of 8000 draws, not {expected:.0f}"


def sees_what_differs(r_hat: Callable[[Tensor], Tensor]) -> None:
    """Chains of one law give 1; another location, another scale and a drift that all chains share do not."""
    x = autoregression(0.0, draws=1000, chains=4)
    assert abs(r_hat(x).item() - 1) < 0.01
    drift = torch.linspace(-1, 1, 1000, dtype=x.dtype)[:, None]
    shift, scale = (torch.tensor([*first, last], dtype=x.dtype) for first, last in (((0.0,) * 3, 2.0), ((1.0,) * 3, 4)))
    for name, chains in {"location": x + shift, "scale": x * scale, "drift": x + drift}.items():
        assert r_hat(chains) > 1.1, f"chains that differ in {name} pass with {r_hat(chains).item():.3f}"


def is_clean(run: Run, *, calls: int) -> None:
    """The generator alone decides, x stays as it was, no gradient; the callback sees every step and the result."""
    for event, dtype in (((2,), torch.float64), ((1, 2, 2), torch.float32)):
        x = torch.linspace(-1, 1, 3 * math.prod(event), dtype=dtype).reshape(3, *event).requires_grad_()
        before, seen = x.detach().clone(), []

        def draw(seed: int, x: Tensor = x, **keywords: Any) -> Tensor:
            return run(x, generator=rng(seed), **keywords)

        end = draw(0, callback=lambda step, value, seen=seen: seen.append((step, value.clone())))
        assert (end.shape, end.dtype) == (x.shape, dtype)
        assert not end.requires_grad, "the sample carries gradient"
        assert torch.equal(x.detach(), before), "x was changed in place"
        assert [step for step, _ in seen] == list(range(calls)), "the callback did not see every step"
        assert torch.equal(seen[-1][1], end), "the callback's last state is not the result"
        with torch.random.fork_rng():
            torch.manual_seed(99)
            state = torch.get_rng_state()
            assert torch.equal(draw(0), end), "the same generator gives another path"
            assert torch.equal(state, torch.get_rng_state()), "the global generator was moved"
        assert not torch.equal(draw(1), end), "the generator is ignored"
        moved = torch.cat([x[:1] + 1, x[1:]])
        assert torch.equal(draw(0, moved)[1:], end[1:]), "a row depends on another"
        assert draw(0, x[:0]).shape == (0, *event), "no rows in, some out"
