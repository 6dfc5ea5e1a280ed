"""What a density at t_min > 0 says of that at t = 0: how far apart they are, and how much of it is noise."""

import torch
from jaxtyping import Float
from torch import Tensor

from cflows.sde import SDE, Rows, Score
from core.divergence import Divergence
from core.rng import Rng
from core.shapes import sum_event


@torch.no_grad()
def truncation(
    score: Score, sde: SDE, x: Rows, *, divergence: Divergence, t_min: float, generator: Rng = None
) -> Float[Tensor, " rows"]:
    """log p_0(x) - log p_{t_min}(x) to first order in 1 - α and σ², all taken at t_min, nats.

    -(1 - α)(D + x·s) - ½ σ² (∇·s + ‖s‖²): what scale and variance change by up to t_min, times ∂ log p/∂α and
    ∂ log p/∂σ².

    Checked by tests/cflows/test_truncation.py and tests/cflows/test_probability_flow.py.

    Args:
        score: s(x, t).
        sde: the noising process.
        x: `(rows, *event)`.
        divergence: estimator of ∇·s.
        t_min: the time, within [0, 1).
        generator: draws the probes.
    """
    if t_min == 0 or len(x) == 0:
        return x.new_zeros(len(x))
    # In float32 the change of a scale near 1 would have no digits.
    scale, std = sde.marginal(torch.tensor([0.0, t_min], dtype=torch.float64, device=x.device))
    lost, gained = (scale[0] - scale[1]).to(x), (std[1].square() - std[0].square()).to(x)
    s, div = _score_and_divergence(score, x, divergence, t_min, generator)
    return -lost * (x[0].numel() + sum_event(x * s)) - 0.5 * gained * (div + sum_event(s.square()))


@torch.no_grad()
def noise_share(
    score: Score, sde: SDE, x: Rows, *, divergence: Divergence, t_min: float, generator: Rng = None
) -> Float[Tensor, " rows"]:
    """-σ² ∇·s(x, t_min)/D: the share of the D dimensions in which the noise of t_min sets the density at x.

    Data of covariance C have, about their mean, ∇s = -(α² C + σ² I)⁻¹: a direction of variance v counts
    σ²/(α² v + σ²), next to nothing where the data are wider than the noise and 1 where they are constant. For any law
    I + σ² ∇s = α²/σ² Cov(x_0 | x) (Tweedie's second moment), so that a row's share is at most 1, and its mean over the
    noised law is E ‖σ s‖²/D ≥ 0.

    A dimension that is all noise has a density that grows without bound as t_min → 0: the number then says what t_min
    was, `truncation` to first order is not to be trusted, and neither is a comparison with another t_min.

    References:
        Efron, "Tweedie's formula and selection bias", 2011, section 2, for the second moment.

    Checked by tests/cflows/test_truncation.py.

    Args:
        score: s(x, t).
        sde: the noising process.
        x: data as the score sees them, `(rows, *event)`.
        divergence: estimator of ∇·s.
        t_min: the time, within (0, 1).
        generator: draws the probes.

    Returns:
        `(rows,)`, within [0, 1] up to the errors of score and probes.

    Example:
        Data on a line of the plane, N(0, 1) along it: one dimension of two is noise.

        >>> from cflows import VPSDE
        >>> from core import ExactDivergence
        >>> sde = VPSDE()
        >>> def score(x, t):
        ...     scale, std = sde.marginal(t)
        ...     return -x / (scale**2 * torch.tensor([1.0, 0.0]) + std**2)
        >>> share = noise_share(score, sde, torch.zeros(1, 2), divergence=ExactDivergence(), t_min=1e-5)
        >>> round(share.item(), 4)
        0.5
    """
    _, std = sde.marginal(torch.tensor(t_min, dtype=torch.float64))
    _, div = _score_and_divergence(score, x, divergence, t_min, generator)
    return -(std.square().item() / max(1, x.shape[1:].numel())) * div


def _score_and_divergence(
    score: Score, x: Rows, divergence: Divergence, t_min: float, generator: Rng
) -> tuple[Tensor, Tensor]:
    s, columns = divergence(lambda y: score(y, x.new_tensor(t_min)), x, divergence.draw(x, generator))
    return s, columns.mean(1)
