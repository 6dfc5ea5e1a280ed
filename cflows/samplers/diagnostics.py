"""Whether chains have converged and what they are worth: R-hat, effective sample size, and a record of their paths.

References:
    Vehtari, Gelman, Simpson, Carpenter, Bürkner, "Rank-normalization, folding, and localization: an improved R-hat for
    assessing convergence of MCMC", 2021.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Chains = Float[Tensor, "draws chains ..."]


def r_hat(chains: Chains) -> Float[Tensor, "..."]:
    """R̂ = √(var⁺/W), var⁺ = (N-1)/N W + B/N, of chains cut in half, each number of the event by itself.

    W is the mean of the variances within chains of N draws, B/N the variance of their means. Draws are replaced by the
    normal quantiles of their ranks, Φ⁻¹((r - 3/8)/(S + 1/4)) among all S; the larger of two values is returned, of the
    draws (location) and of their distances from the median (scale). Near 1 when converged: below 1.01 is what the paper
    asks of four chains or more.

    References:
        Vehtari et al., 2021, eq. 1 to 4 (split), 14 (ranks) and section 4.1 (folding).

    Checked by tests/cflows/test_diagnostics.py (values of ArviZ).

    Args:
        chains: `(draws, chains, *event)`, 4 draws or more; `Trajectory.stack()` has this shape.

    Returns:
        `(*event)`, NaN for draws that are not finite and for draws that are all the same.

    Raises:
        ValueError: fewer than 4 draws, or no chain.

    Example:
        >>> chains = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
        >>> round(r_hat(chains).item(), 2), round(r_hat(chains + torch.tensor([0.0, 0.0, 0.0, 3.0])).item(), 1)
        (1.0, 1.5)
    """
    split = _split(chains, owner="r_hat")
    pooled = split.flatten(-2).sort(-1).values
    size = pooled.shape[-1]
    median = (pooled[..., (size - 1) // 2] + pooled[..., size // 2]) / 2
    # Distances that are all the same, of draws that take two values, say nothing: then the first alone counts.
    value = torch.fmax(_ratio(_normal_scores(split)), _ratio(_normal_scores((split - median[..., None, None]).abs())))
    return torch.where(split.isfinite().all(-1).all(-1), value, math.nan)


def effective_sample_size(chains: Chains) -> Float[Tensor, "..."]:
    """S/τ, τ = -1 + 2 Σ_k P_k: number of independent draws whose mean is as good as that of these S.

    P_k = ρ_{2k} + ρ_{2k+1} sums neighbouring autocorrelations, taken while positive and never to rise (Geyer's initial
    monotone sequence); ρ_t = 1 - (W - mean_m s_m² ρ_{t,m})/var⁺ of chains cut in half counts chains that disagree as
    correlated. It may exceed S where draws are anticorrelated, up to S log₁₀ S.

    References:
        Vehtari et al., 2021, eq. 10 and 11, on draws as they are (not their ranks).
        Geyer, "Practical Markov chain Monte Carlo", 1992, section 3.3.

    Checked by tests/cflows/test_diagnostics.py (values of ArviZ, autoregressive chains).

    Args:
        chains: `(draws, chains, *event)`, 4 draws or more; `Trajectory.stack()` has this shape.

    Returns:
        `(*event)`, NaN for draws that are not finite and for draws that are all the same.

    Raises:
        ValueError: fewer than 4 draws, or no chain.

    Example:
        >>> chains = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
        >>> effective_sample_size(chains).item()
        4...
    """
    split = _split(chains, owner="effective_sample_size")
    split = split - split[..., :1, :1]  # so that draws which are all the same have variance 0, not that of rounding
    draws = split.shape[-1]
    within, total = _variances(split)
    rho = 1 - (within[..., None] - _autocovariance(split).mean(-2)) / total[..., None]
    pairs = rho[..., : draws - draws % 2].unflatten(-1, (-1, 2)).sum(-1)
    positive = (pairs > 0).cumprod(-1)
    tau = -1 + 2 * (pairs.cummin(-1).values * positive).sum(-1)
    size = split.shape[-2] * draws
    return size / torch.maximum(tau, tau.new_tensor(1 / math.log10(size)))


class Trajectory:
    """A callback that keeps copies of where a sampler's chains were.

    Checked by tests/cflows/test_diagnostics.py.

    Args:
        every: keep one step in so many.
        skip: steps at the start that are left out, before the chains have converged.

    Raises:
        ValueError: every below 1, or skip below 0.

    Example:
        >>> from cflows import langevin
        >>> path = Trajectory(every=10, skip=50)
        >>> x = langevin(lambda x: -x, torch.zeros(4, 2), step_size=0.1, steps=100, callback=path)
        >>> path.stack().shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, *, every: int = 1, skip: int = 0) -> None:
        if every < 1 or skip < 0:
            raise ValueError(f"Trajectory needs every at 1 or more and skip at 0 or more, but has {every} and {skip}.")
        self.every, self.skip = every, skip
        self.states: list[Tensor] = []

    def __call__(self, step: int, x: Tensor) -> None:
        """Keeps a copy of `x` where its turn has come."""
        if step >= self.skip and (step - self.skip) % self.every == 0:
            self.states.append(x.detach().clone())

    def stack(self) -> Float[Tensor, "draws rows ..."]:
        """What was kept, `(draws, rows, *event)`, in order.

        Raises:
            ValueError: nothing was kept.
        """
        if not self.states:
            raise ValueError(f"a Trajectory that skips {self.skip} steps has seen no later one: nothing to stack.")
        return torch.stack(self.states)


def _split(chains: Tensor, *, owner: str) -> Tensor:
    """Halves of the chains, `(*event, 2 chains, draws // 2)`; a draw in the middle is left out.

    Raises:
        ValueError: fewer than 4 draws, or no chain.
    """
    if chains.ndim < 2 or chains.shape[0] < 4 or chains.shape[1] < 1:
        raise ValueError(
            f"{owner} takes (draws, chains, *event) with 4 draws and 1 chain or more, but got {tuple(chains.shape)}."
        )
    half = chains.shape[0] // 2
    return torch.cat([chains[:half], chains[-half:]], 1).movedim((1, 0), (-2, -1))


def _variances(split: Tensor) -> tuple[Tensor, Tensor]:
    """W and var⁺, `(*event)`."""
    draws = split.shape[-1]
    within = split.var(-1).mean(-1)
    return within, (draws - 1) / draws * within + split.mean(-1).var(-1)


def _ratio(split: Tensor) -> Tensor:
    within, total = _variances(split)
    return (total / within).sqrt()


def _normal_scores(split: Tensor) -> Tensor:
    """Φ⁻¹((r - 3/8)/(S + 1/4)), r the rank among all draws of all chains, its mean for ties."""
    values = split.flatten(-2)
    ordered = values.sort(-1).values
    below = torch.searchsorted(ordered, values)
    through = torch.searchsorted(ordered, values, right=True)
    rank = (below + through + 1).to(values.dtype) / 2
    return torch.special.ndtri((rank - 3 / 8) / (values.shape[-1] + 1 / 4)).reshape(split.shape)


def _autocovariance(split: Tensor) -> Tensor:
    """s_m² ρ_{t,m} of each chain at every lag, by the transform of twice the length: no draw meets the other end."""
    draws = split.shape[-1]
    centred = split - split.mean(-1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * draws)
    power = spectrum.real.square() + spectrum.imag.square()
    return torch.fft.irfft(power, n=2 * draws)[..., :draws] / (draws - 1)
