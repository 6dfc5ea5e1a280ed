"""What predictor-corrector, inpainting and guidance keep on Gaussian data, mostly without Monte Carlo error."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from contracts.samplers import gaussian_score, marginal_moments
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cflows import SDE
from cflows.samplers.sampler import Noise, OneStepSampler, Orders, Sampler
from cflows.sde import Score
from core import GaussianMixture
from core.shapes import align

Moments = tuple[float, float]
Law = tuple[Tensor, Tensor]  # mean (features,) and covariance (features, features)

EYE = torch.eye(2, dtype=torch.float64)
KNOWN = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
HIDDEN = EYE - KNOWN


@dataclass(frozen=True, kw_only=True)
class Still(OneStepSampler):
    """Moves nothing, and keeps what it is handed."""

    seen: list[Tensor] = field(default_factory=list)

    @property
    def orders(self) -> Orders:
        return Orders(None, None)

    def step(self, score: Score, sde: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        self.seen.append(x)
        return x


class _Impulses(TorchFunctionMode):
    """Coordinate j of the k-th draw is 1 in row D k + j and 0 elsewhere."""

    calls = 0

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.randn:
            features = result.shape[1]
            rows = slice(features * self.calls, features * (self.calls + 1))
            result.zero_()
            result[rows] = torch.eye(features, dtype=result.dtype)
            self.calls += 1
        return result


def affine_law(run: Callable[[Tensor], Tensor], *, draws: int, start: Law) -> Law:
    """Law of what an affine chain `(rows, features)` with exactly so many draws of noise makes of N(start)."""
    mean, covariance = start
    features = len(mean)
    x = torch.zeros(features * (draws + 1) + 1, features, dtype=torch.float64)
    x[features * draws : -1] = torch.eye(features, dtype=torch.float64)
    with _Impulses() as impulses:
        end = run(x)
    assert impulses.calls == draws, f"{impulses.calls} draws of noise, {draws} expected"
    columns = (end[:-1] - end[-1]).T
    noise, slope = columns[:, : features * draws], columns[:, features * draws :]
    return slope @ mean + end[-1], slope @ covariance @ slope.T + noise @ noise.T


def corrected(sde: SDE, t: float, moments: Moments, *, mean: float, variance: float, snr: float) -> Moments:
    """Mean and variance after one Langevin step of ε = 2 (snr σ)² on the exact score at t."""
    location, total = marginal_moments(sde, t, mean=mean, variance=variance)
    eps = 2 * (snr * sde.marginal(torch.tensor(t, dtype=torch.float64))[1].item()) ** 2
    slope = 1 - eps / total
    return location + slope * (moments[0] - location), slope**2 * moments[1] + 2 * eps


def reversed_kernel(
    sde: SDE, t: float, s: float, moments: Moments, *, mean: float, variance: float, noise: float = 1.0
) -> Moments:
    """Mean and variance after x ← (2 - a) x + b² score + b ε from t to s, with the kernel x_t | x_s ~ N(a x_s, b²)."""
    a, b = (v.item() for v in sde.transition_kernel(*(torch.tensor(v, dtype=torch.float64) for v in (s, t))))
    location, total = marginal_moments(sde, t, mean=mean, variance=variance)
    slope = 2 - a - b**2 / total
    return slope * moments[0] + b**2 * location / total, slope**2 * moments[1] + noise * b**2


def plane_score(sde: SDE, data: Law) -> Score:
    """Score of N(mean, covariance) data; t 0-dimensional."""
    mean, covariance = data

    def score(x: Tensor, t: Tensor) -> Tensor:
        scale, std = sde.marginal(t)
        noised = scale.square() * covariance + std.square() * torch.eye(len(mean), dtype=x.dtype)
        return -(x - scale * mean) @ torch.linalg.inv(noised)

    return score


def conditional_law(data: Law, known: float) -> Moments:
    """Mean and variance of coordinate 1 given coordinate 0."""
    mean, covariance = data
    slope = covariance[0, 1] / covariance[0, 0]
    return (mean[1] + slope * (known - mean[0])).item(), (covariance[1, 1] - slope * covariance[0, 1]).item()


def follows_the_correctors_recursion(build: Callable[[int, int], Sampler], sde: SDE, *, snr: float) -> None:
    """build(steps, corrector_steps) over reverse diffusion, evenly in time down to 0.1, last step without noise."""
    data, start = {"mean": 0.7, "variance": 0.4}, (0.3, 2.0)
    for steps, corrections in ((3, 1), (5, 2)):
        moments, times = start, torch.linspace(1, 0.1, steps + 1, dtype=torch.float64).tolist()
        for step, (t, s) in enumerate(pairwise(times)):
            for _ in range(corrections):
                moments = corrected(sde, t, moments, snr=snr, **data)
            moments = reversed_kernel(sde, t, s, moments, noise=float(step < steps - 1), **data)
        score, sampler = gaussian_score(sde, **data), build(steps, corrections)
        law = torch.full((1,), start[0], dtype=torch.float64), torch.full((1, 1), start[1], dtype=torch.float64)
        found = affine_law(partial(sampler, score, sde), draws=steps * (corrections + 1) - 1, start=law)
        expected = torch.tensor(moments, dtype=torch.float64)
        torch.testing.assert_close(torch.cat([p.flatten() for p in found]), expected, rtol=1e-10, atol=1e-12)


def corrections_do_not_know_the_steps(build: Callable[[OneStepSampler], Sampler], sde: SDE) -> None:
    """The first of them, at t = 1, is the same however many steps the predictor takes."""
    x_T, first = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2), []
    for steps in (1, 10, 100):
        still = Still(steps=steps)
        build(still)(gaussian_score(sde, 0.0, 1.0), sde, x_T, generator=torch.Generator().manual_seed(0))
        first.append(still.seen[0])
    assert not torch.equal(first[0], x_T), "nothing was corrected"
    assert torch.equal(first[0], first[1]), "ten steps are corrected otherwise than one"
    assert torch.equal(first[0], first[2]), "a hundred steps are corrected otherwise than one"


def follows_the_inpainting_recursion(
    sampler: Sampler, sde: SDE, data: Law, *, known: float, steps: int, resample: int, t_min: float = 0.1
) -> None:
    """Coordinate 0 known, over reverse diffusion, evenly in time, last step without noise: the law step by step."""
    times = torch.linspace(1, t_min, steps + 1, dtype=torch.float64)
    law = _insert(sde, (torch.zeros(2, dtype=torch.float64), EYE), times[0], known)
    for step, (t, s) in enumerate(pairwise(times)):
        last = step == steps - 1
        for _ in range(resample - 1):
            mean, covariance = _insert(sde, _reverse(sde, data, law, t, s, noise=1.0), s, known)
            a, b = sde.transition_kernel(s, t)
            law = a * mean, a.square() * covariance + b.square() * EYE
        law = _insert(sde, _reverse(sde, data, law, t, s, noise=float(not last)), s, known)
    law = HIDDEN @ law[0] + known * KNOWN.diagonal(), HIDDEN @ law[1] @ HIDDEN  # the known values themselves
    found = inpainted_law(sampler, sde, data, steps=steps, resample=resample)
    for name, a, b in zip(("mean", "covariance"), found, law, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10), f"the {name} is {a.tolist()}, not {b.tolist()}"


def _insert(sde: SDE, law: Law, time: Tensor, known: float) -> Law:
    """Coordinate 0 replaced by a draw of x_time | x_0 = known."""
    (mean, covariance), (scale, std) = law, sde.marginal(time)
    return HIDDEN @ mean + scale * known * KNOWN.diagonal(), HIDDEN @ covariance @ HIDDEN + std.square() * KNOWN


def _reverse(sde: SDE, data: Law, law: Law, t: Tensor, s: Tensor, *, noise: float) -> Law:
    """A step of reverse diffusion."""
    (a, b), (scale, std) = sde.transition_kernel(s, t), sde.marginal(t)
    precision = torch.linalg.inv(scale.square() * data[1] + std.square() * EYE)
    slope = (2 - a) * EYE - b.square() * precision
    mean = slope @ law[0] + b.square() * precision @ (scale * data[0])
    return mean, slope @ law[1] @ slope.T + noise * b.square() * EYE


def inpainted_law(sampler: Sampler, sde: SDE, data: Law, *, steps: int, resample: int) -> Law:
    """Exact law of what inpainting over a predictor of one draw a step, denoised, makes of N(0, I) noise."""
    draws = 1 + steps * (2 + 3 * (resample - 1)) - 2  # the last step draws neither noise nor the known part
    start, score = (torch.zeros(2, dtype=torch.float64), EYE), plane_score(sde, data)
    return affine_law(partial(sampler, score, sde), draws=draws, start=start)


def guides(guide: Callable[..., Any], sde: SDE, *, guidance: float) -> None:
    """∇ log p_t(x) + w ∇ log p_t(c | x), by autograd from densities of two classes in the plane, at every t."""
    classes = [
        GaussianMixture(torch.tensor([m]).double(), torch.tensor([c]).double(), torch.ones(1).double())
        for m, c in (([-1.0, 0.5], [[0.5, 0.2], [0.2, 0.3]]), ([1.5, 0.0], [[1.0, -0.6], [-0.6, 0.8]]))
    ]
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)

    def log_joint(x: Tensor, t: Tensor) -> Tensor:
        parts = [c.perturbed_log_prob(x, *sde.marginal(t)) for c in classes]
        return weights.log() + torch.stack(parts, 1)

    def score(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """That of the class where the context names one, of both together where it is zero."""
        share = torch.where(context.sum(1, keepdim=True) > 0, context, torch.softmax(log_joint(x, t), 1))
        parts = torch.stack([c.perturbed_score(x, *sde.marginal(t)) for c in classes], 1)
        return (share[:, :, None] * parts).sum(1)

    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(6, 2, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    context = torch.eye(2, dtype=torch.float64)[labels]
    for t in (torch.tensor(0.4).double(), torch.linspace(0.05, 1.0, 6, dtype=torch.float64)):
        y = x.clone().requires_grad_()
        joint = log_joint(y, t)
        log_p, log_class = torch.logsumexp(joint, 1), torch.log_softmax(joint, 1).gather(1, labels[:, None])
        (expected,) = torch.autograd.grad((log_p + guidance * log_class[:, 0]).sum(), y)
        found = guide(score, context, guidance=guidance)(x, t)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def reaches_the_guided_class(guide: Callable[..., Any], sampler: Sampler, sde: SDE, *, guidance: float) -> None:
    """Classes N(c m, v) about an unconditional N(0, v): guided, their scores are those of N(w c m, v) at every t."""
    mean, variance, rows = torch.tensor([0.5, -0.3]).double(), 0.25, 4000

    def score(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        scale, std = (align(v, x) for v in sde.marginal(t))
        return -(x - scale * context * mean) / (scale.square() * variance + std.square())

    generator = torch.Generator().manual_seed(0)
    context = torch.tensor([-1.0, 2.0]).double().repeat(rows // 2)[:, None]
    x_T = sde.prior(2).double().sample((rows,), generator=generator)
    x = sampler(guide(score, context, guidance=guidance), sde, x_T, generator=generator)
    for c in (-1.0, 2.0):
        some = x[context[:, 0] == c]
        off = (some.mean(0) - guidance * c * mean).abs().max() / variance**0.5
        assert off < 0.03 + 4 / len(some) ** 0.5, f"class {c} is {off:.3f} standard deviations off"
        assert (some.var(0) / variance - 1).abs().max() < 0.05 + 4 * (2 / len(some)) ** 0.5
