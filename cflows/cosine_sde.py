import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cflows.sde import SDE, Rows, Time
from core.bases import Base, StandardNormal
from core.shapes import align


@dataclass(frozen=True, kw_only=True)
class CosineVPSDE(SDE):
    """dx = -½ β(t) x dt + √β(t) dw with β = 2 θ' tan θ: α = cos θ(t)/cos θ(0), σ² = 1 - α², θ linear in t.

    θ(0) = ½ π s/(1 + s) with the offset s; θ(1) is where the scale is `scale_min`, short of ½ π, where β is infinite.
    The published schedule caps β instead, step by step.

    References:
        Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, eq. 17.

    Checked by tests/contracts/sdes.py (moment equations) and tests/cflows/test_sde.py.

    Attributes:
        offset: s > 0, which keeps the noise from vanishing too fast near the data.
        scale_min: α(1), within (0, 1): how much of the data is left at the end. That of `VPSDE()` where omitted.

    Raises:
        ValueError: a setting outside its range.

    Example:
        >>> scale, std = CosineVPSDE().marginal(torch.tensor(0.5))
        >>> round(scale.item(), 2), round(std.item(), 2)
        (0.71, 0.71)
    """

    offset: float = 0.008
    scale_min: float = 0.006571586495

    def __post_init__(self) -> None:
        if not self.offset > 0 or not 0 < self.scale_min < 1:
            raise ValueError(
                f"CosineVPSDE needs offset > 0 and scale_min within (0, 1), but they are {self.offset} and "
                f"{self.scale_min}."
            )

    @property
    def _start(self) -> float:
        """θ(0)."""
        return 0.5 * math.pi * self.offset / (1 + self.offset)

    @property
    def _left(self) -> float:
        """½ π - θ(1), the angle to the pole."""
        return math.asin(self.scale_min * math.cos(self._start))

    @property
    def _speed(self) -> float:
        """θ'."""
        return 0.5 * math.pi - self._left - self._start

    def _to_pole(self, t: Time) -> Time:
        """½ π - θ(t), counted from t = 1, where the cosine of θ itself would lose its digits."""
        return self._left + self._speed * (1 - t)

    def beta(self, t: Time) -> Time:
        """β(t) = 2 θ' tan θ."""
        return 2 * self._speed * (self._start + self._speed * t).sin() / self._to_pole(t).sin()

    def drift(self, x: Rows, t: Time) -> Rows:
        """-½ β(t) x."""
        return -0.5 * align(self.beta(t), x) * x

    def diffusion(self, t: Time) -> Time:
        """√β(t)."""
        return self.beta(t).sqrt()

    def marginal(self, t: Time) -> tuple[Time, Time]:
        """cos θ/cos θ(0), and σ² = sin(θ - θ(0)) sin(θ + θ(0))/cos² θ(0)."""
        turned, cos = self._speed * t, math.cos(self._start)
        variance = turned.sin() * (turned + 2 * self._start).sin()
        return self._to_pole(t).sin() / cos, variance.sqrt() / cos

    def prior(self, event_shape: int | Sequence[int]) -> Base:
        """N(0, I)."""
        return StandardNormal(event_shape)

    def log_snr(self, t: Time) -> Time:
        """log(α²/σ²)."""
        scale, std = self.marginal(t)
        return 2 * (scale.log() - std.log())

    def time(self, log_snr: Time) -> Time:
        """tan² θ = tan² θ(0) + exp(-λ)/cos² θ(0), then θ - θ(0) by the difference of two tangents, then t."""
        tan_start = math.tan(self._start)
        grown = torch.exp(-log_snr) / math.cos(self._start) ** 2
        tan = torch.sqrt(tan_start**2 + grown)
        return torch.atan(grown / ((tan + tan_start) * (1 + tan * tan_start))) / self._speed
