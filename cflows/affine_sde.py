from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cflows.sde import SDE, Rows, Time
from core.bases import Base, DiagonalNormal
from core.shapes import align

HALVINGS = 60  # of [0, 1]: beyond the digits of float64


@dataclass(frozen=True, kw_only=True)
class AffineSDE(SDE):
    """The process dx = (α'/α) x dt + g dw of any α(t) and σ(t): g² = (σ²)' - 2 (α'/α) σ², derivatives by autograd.

    References:
        Song et al., 2021, eq. 29, solved for drift and diffusion; Kingma et al., "Variational diffusion models", 2021,
        section 3.1; Karras et al., 2022, app. B.2.

    Checked by tests/contracts/sdes.py (moment equations) and tests/cflows/test_sde.py (VP, sub-VP and VE come out).

    Attributes:
        scale: α(t) > 0 of a tensor of times, like it, in differentiable torch operations.
        std: σ(t) ≥ 0, likewise, positive for t > 0.

    Raises:
        ValueError: α or σ not positive, or a log-SNR that does not fall, at one of a thousand times in (0, 1].

    Note:
        At t = 0 itself the diffusion is NaN where σ starts as a root. Drift and diffusion need autograd, which is there
        under `torch.no_grad`, but not under `torch.inference_mode`. The digits of α and σ in float32 are those of the
        functions: write 1 - exp(-b) as -expm1(-b).

    Example:
        Karras et al.'s process, σ = 80 t:

        >>> sde = AffineSDE(scale=torch.ones_like, std=lambda t: 80 * t)
        >>> sde.diffusion(torch.tensor(0.5)).item()  # √(2 · 80² t)
        80.0
        >>> round(sde.time(torch.tensor(0.0)).item(), 6)  # σ = α = 1
        0.0125
    """

    scale: Callable[[Time], Time]
    std: Callable[[Time], Time]

    def __post_init__(self) -> None:
        t = torch.linspace(0, 1, 1001, dtype=torch.float64)[1:]
        scale, std = self.marginal(t)
        if not (scale > 0).all() or not (std > 0).all() or not (self.log_snr(t).diff() < 0).all():
            raise ValueError(
                "AffineSDE needs scale and std positive on (0, 1] and scale/std falling, but from t = 0.001 to 1 scale "
                f"goes from {scale[0]:.4g} to {scale[-1]:.4g} and std from {std[0]:.4g} to {std[-1]:.4g}."
            )

    def drift(self, x: Rows, t: Time) -> Rows:
        """(α'/α) x."""
        return align(self._log_slope(t), x) * x

    def diffusion(self, t: Time) -> Time:
        """√((σ²)' - 2 (α'/α) σ²)."""
        std = self.std(t)
        return torch.sqrt(2 * std * (_slope(self.std, t) - self._log_slope(t) * std))

    def marginal(self, t: Time) -> tuple[Time, Time]:
        """α and σ."""
        return self.scale(t), self.std(t)

    def prior(self, event_shape: int | Sequence[int]) -> Base:
        """N(0, σ(1)² I), fixed."""
        return DiagonalNormal(event_shape, scale=self.std(torch.ones((), dtype=torch.float64)).item(), learnable=False)

    def log_snr(self, t: Time) -> Time:
        """2 log(α/σ)."""
        return 2 * (self.scale(t).log() - self.std(t).log())

    def time(self, log_snr: Time) -> Time:
        """The t with this log-SNR by bisection, in float64; 0 or 1 for one outside its range."""
        target = log_snr.double()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            late = self.log_snr(middle) < target
            low, high = torch.where(late, low, middle), torch.where(late, middle, high)
        return high.to(log_snr.dtype)

    def _log_slope(self, t: Time) -> Time:
        """α'/α."""
        return _slope(self.scale, t) / self.scale(t)


def _slope(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Its derivative at each t, also where gradients are off."""
    with torch.enable_grad():
        u = t.detach().requires_grad_()
        (slope,) = torch.autograd.grad((function(u) + 0.0 * u).sum(), u)  # a constant has a slope, too
    return slope
