import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from cflows.samplers.langevin import check_walk
from cflows.samplers.mala import mala
from cflows.score import LogDensity
from core.density import DensityModel
from core.rng import Rng


@dataclass(frozen=True)
class NormalizingConstant:
    """log Z of an unnormalized density, with how far it can be trusted; every field is 0-dimensional.

    Attributes:
        log_z_nats: log of the unbiased estimate Ẑ; its own mean lies below log Z, by about ½ std_error_nats².
        std_error_nats: sd(w)/(mean(w) √n), the delta method; too small where few particles carry the weight.
        effective_sample_size: (Σ w)²/Σ w², of the n particles.
        acceptance: mean share of accepted transitions, NaN where there were none.
    """

    log_z_nats: Float[Tensor, ""]
    std_error_nats: Float[Tensor, ""]
    effective_sample_size: Float[Tensor, ""]
    acceptance: Float[Tensor, ""]


@torch.no_grad()
def annealed_importance_sampling(
    log_density: LogDensity,
    base: DensityModel,
    *,
    particles: int,
    temperatures: int | Sequence[float],
    transitions: int = 1,
    step_size: float,
    generator: Rng = None,
) -> NormalizingConstant:
    """Ẑ = mean of w = Π_k (p̃/q)(x_{k-1})^{β_k - β_{k-1}} along chains from x₀ ~ q: E[Ẑ] = Z = ∫ p̃ dx, at any K.

    x_k is drawn from x_{k-1} by `mala` on π_k ∝ q^{1-β_k} p̃^{β_k}, 0 = β₀ < ... < β_K = 1, which leaves π_k as it is.

    References:
        Neal, "Annealed importance sampling", 2001, eq. 3 and 11 and section 4.

    Checked by tests/cflows/test_annealed_importance.py (Gaussians and mixtures of known Z).

    Args:
        log_density: log p̃(x), `(rows,)`, nats, differentiable.
        base: q, wider than p, evaluated and sampled.
        particles: number n of chains, 2 or more.
        temperatures: K, for equal steps of β, or β₀ to β_K themselves.
        transitions: steps of `mala` at each β strictly between 0 and 1.
        step_size: ε of `mala`, the same at every β.
        generator: draws particles and transitions.

    Returns:
        log Z with its error; see `NormalizingConstant`.

    Raises:
        ValueError: fewer than 2 particles, temperatures that do not rise from 0 to 1, a step size that is not positive,
            or no transitions.

    Note:
        The error bar knows only what the particles saw. A mode of p that q hardly reaches is missing from both: compare
        runs of more temperatures.

    Example:
        >>> from core import DiagonalNormal
        >>> base = DiagonalNormal(1, scale=2.0, learnable=False)
        >>> z = annealed_importance_sampling(
        ...     lambda x: -x.square().sum(1) / 2, base, particles=1000, temperatures=10, step_size=0.5,
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> round(z.log_z_nats.item(), 1)  # ½ log 2π
        0.9
    """
    check_walk("annealed_importance_sampling", step_size, transitions)
    if particles < 2:
        raise ValueError(f"annealed_importance_sampling needs 2 particles or more for an error, but has {particles}.")
    betas = _betas(temperatures)
    x = base.sample((particles,), generator=generator)
    log_w, accepted = x.new_zeros(particles), []
    for before, beta in pairwise(betas):
        log_w = log_w + (beta - before) * (log_density(x) - base.log_prob(x))
        if beta < 1:
            between = _geometric(base, log_density, beta)
            x, share = mala(between, x, step_size=step_size, steps=transitions, generator=generator)
            accepted.append(share.mean())
    return _summary(log_w, torch.stack(accepted).mean() if accepted else log_w.new_tensor(math.nan))


def _betas(temperatures: int | Sequence[float]) -> list[float]:
    if isinstance(temperatures, int):
        betas = [0.0, *(k / temperatures for k in range(1, temperatures + 1))]
    else:
        betas = [float(beta) for beta in temperatures]
    if len(betas) < 2 or (betas[0], betas[-1]) != (0.0, 1.0) or any(a >= b for a, b in pairwise(betas)):
        raise ValueError(f"temperatures must be 1 or more, or rise strictly from 0 to 1, but are {temperatures}.")
    return betas


def _geometric(base: DensityModel, log_density: LogDensity, beta: float) -> LogDensity:
    return lambda x: (1 - beta) * base.log_prob(x) + beta * log_density(x)


def _summary(log_w: Tensor, acceptance: Tensor) -> NormalizingConstant:
    n = len(log_w)
    share = torch.softmax(log_w, 0)  # w/Σw, whose mean is 1/n
    return NormalizingConstant(
        torch.logsumexp(log_w, 0) - math.log(n), share.std() * n**0.5, 1 / share.square().sum(), acceptance
    )
