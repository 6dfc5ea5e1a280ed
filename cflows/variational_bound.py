import torch
from torch import Tensor

from cflows.ode.log_prob import Events, check_start, default_divergence
from cflows.sde import SDE, Score
from core.density import DensityModel, LikelihoodEstimate
from core.divergence import Divergence
from core.precision import check_floating, outside_autocast
from core.rng import Rng, rand, randn
from core.shapes import align, fold_batch, sum_event


@torch.no_grad()
@outside_autocast
def score_flow_bound(
    score: Score,
    sde: SDE,
    x: Events,
    *,
    base: DensityModel | None = None,
    samples: int = 64,
    divergence: Divergence | None = None,
    t_min: float = 1e-5,
    generator: Rng = None,
) -> LikelihoodEstimate:
    """log p(x) ≥ E[log p_base(x_1)] + D log(α(1)/α(t_min)) - ½ ∫ g² E[‖s(x_t, t)‖² + 2 ∇·s(x_t, t)] dt.

    p is the law at t_min of the reverse *SDE* with this score, x_t the noising of x from t_min on. With the exact score
    the bound is log p_{t_min}(x) itself, which the ODE's likelihood is then too; with a learned one it bounds the SDE's
    density, and tells nothing of the ODE's. It is what likelihood weighting trains. g² dt = -σ² dλ: times are drawn
    evenly in the log-SNR λ, one in each of as many strata as there are samples.

    References:
        Song, Durkan, Murray, Ermon, "Maximum likelihood training of score-based diffusion models", 2021, theorem 3,
        eq. 11, its conditional score replaced by the divergence through integration by parts.

    Checked by tests/cflows/test_variational_bound.py (Gaussians and mixtures, where it is tight).

    Args:
        score: s(x, t), called with a time for each row.
        sde: the noising process.
        x: `(*batch, *event)`.
        base: density at t = 1; the SDE's prior where omitted.
        samples: times and noises a row, each one evaluation; 2 or more for a standard error.
        divergence: as in `ode_log_prob`.
        t_min: start, within (0, 1).
        generator: draws times, noises and probes.

    Returns:
        The bound in nats, of kind `bound`, with the standard error of its samples, each `(*batch,)`; without gradient.

    Raises:
        ValueError: `x` does not end in the base's event shape, no sample, or t_min outside (0, 1).

    Example:
        >>> from cflows import VPSDE
        >>> x = torch.zeros(1, 2)
        >>> generator = torch.Generator().manual_seed(0)
        >>> bound = score_flow_bound(lambda x, t: -x, VPSDE(), x, samples=2000, generator=generator)
        >>> abs(bound.log_prob.item() + 1.8379) < 4 * bound.std_error.item()  # -log 2π
        True
    """
    check_start(t_min)
    if samples < 1 or t_min == 0:
        raise ValueError(f"score_flow_bound needs 1 sample or more and t_min above 0, but has {samples=} and {t_min=}.")
    check_floating(x, owner="score_flow_bound")
    prior = sde.prior(x.shape[1:]).to(x) if base is None else base
    rows, batch_shape = fold_batch(x, prior.event_shape, owner="score_flow_bound")
    divergence = default_divergence(prior.event_shape.numel()) if divergence is None else divergence
    ends = torch.tensor([t_min, 1.0], dtype=torch.float64, device=x.device)
    high, low = sde.log_snr(ends)
    # Sample-major: every row has one time in each stratum.
    again = rows.repeat(samples, *[1] * (rows.ndim - 1))
    strata = torch.arange(samples, device=x.device).repeat_interleave(len(rows))
    share = (strata + rand((len(again),), generator, like=again).double()) / samples
    t = sde.time(high + share * (low - high)).clamp(t_min, 1.0)
    start = ends[0].expand_as(t)
    x_t, excess_t = _noised(sde, again, start, t, generator)
    s, div = divergence(lambda y: score(y, t.to(y)), x_t, divergence.draw(x_t, generator))
    scale, std = sde.marginal(t)
    x_1, excess_1 = _noised(sde, again, start, torch.ones_like(t), generator)
    # Of mean 0: the part of σ² ‖s‖² and of the prior that would be chance if the data had unit variance.
    share_t = (std.square() / (scale.square() + std.square())).square().to(x)
    integrand = std.square().to(x) * (sum_event(s.square()) + 2 * div.mean(1)) - share_t * excess_t
    ends_scale, _ = sde.marginal(ends)
    shrunk = prior.event_shape.numel() * (ends_scale[1] / ends_scale[0]).log().to(x)
    each = prior.log_prob(x_1) + 0.5 * excess_1 + shrunk - 0.5 * (high - low).to(x) * integrand
    each = each.reshape(samples, len(rows))
    # Between neighbouring strata, so that the profile over time, which they resolve, does not count as noise.
    squares = each.diff(dim=0).square().mean(0) / 2 if samples > 1 else torch.full_like(each[0], torch.nan)
    std_error = (squares / samples).sqrt()
    nfe = torch.full((len(rows),), samples, dtype=torch.long, device=x.device)
    return LikelihoodEstimate(each.mean(0), std_error, None, None, "bound", nfe).reshape(batch_shape)


def _noised(sde: SDE, x: Tensor, s: Tensor, t: Tensor, generator: Rng) -> tuple[Tensor, Tensor]:
    """A draw of x_t given x_s = x, and ‖ε‖² - D of its noise."""
    scale, std = (align(part.to(x), x) for part in sde.transition_kernel(s, t))
    noise = randn(x.shape, generator, like=x)
    return scale * x + std * noise, sum_event(noise.square()) - x[0].numel()
