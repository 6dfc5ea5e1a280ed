import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from cflows.samplers.posterior_mean import posterior_mean
from cflows.samplers.sampler import Callback, Orders, Sampler, normal_like
from cflows.sde import SDE, Rows, Score
from cflows.time_grid import Spacing, check_grid, time_grid
from core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class DPMSolver(Sampler):
    """DPM-Solver++, multistep: x_s = (σ_s/σ_t) x_t + σ_s ∫ e^λ x̂_0 dλ from λ_t to λ_s, with λ = log(α/σ) = ½ log-SNR.

    The data prediction x̂_0 = (x + σ² s)/α is carried on from those of the last steps, m_0, m_1, m_2, newest first. With
    h = λ_s - λ_t, h_{-1} the step before, and J_k = h ∫ e^{h(u - 1)} u^k du over [0, 1], so that J_0 = 1 - e^{-h}:

    - order 1 (DDIM): x_s = (σ_s/σ_t) x_t + α_s J_0 m_0;
    - order 2 (2M): m_0 + (m_0 - m_1)/(2r) for m_0, r = h_{-1}/h;
    - order 3 (3M): the parabola through the three, integrated by J_0, J_1, J_2;
    - `sde`, orders 1 and 2: the reverse SDE. J_0 = 1 - e^{-2h}, x_t is damped by another e^{-h}, and noise
      σ_s √(1 - e^{-2h}) ε is added.

    One score evaluation a step, and one to denoise. Only α and σ enter: every SDE is served alike.

    References:
        Lu et al., "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models", 2022,
        proposition 4.1, algorithm 2 (2M) and section 5 (SDE). Song et al., "Denoising diffusion implicit
        models", 2021, eq. 12. Public code for 3M takes ½ J_2 for J_2, which leaves order 2. A first step of order 1
        would, too: it is taken again for 3M when m at its end is known, for no evaluation more, as by the corrector of
        Zhao et al., "UniPC: a unified predictor-corrector framework for fast sampling of diffusion models", 2023.

    Checked by tests/cflows/test_dpm_solver.py (orders on Gaussians and mixtures, on every spacing).

    Attributes:
        steps: number of steps.
        order: 1, 2 or 3; the first steps have the order that their past allows.
        spacing: how the times are spread, as in `time_grid`.
        t_min: last time, above 0.
        variant: `ode`, or `sde`, which draws noise.
        denoise: end with x̂_0 at t_min instead of x at t_min.

    Raises:
        ValueError: fewer than one step, t_min outside (0, 1), an unknown spacing or variant, or an order outside 1 to 3
            (1 to 2 of the SDE).

    Note:
        A step that is long in λ after short ones carries a line far: with `time` the last steps are, and 20 steps of 2M
        under VP are off by 0.10 on a mixture of unit size where `log_snr` is off by 0.016 (root mean square).

    Example:
        Data N(0, 1) stay N(0, 1) under the VP process.

        >>> from cflows import VPSDE
        >>> x = DPMSolver(steps=40)(lambda x, t: -x, VPSDE(), torch.ones(1, 1))
        >>> round(x.item(), 2)
        1.0
    """

    steps: int = 20
    order: int = 2
    spacing: Spacing = "log_snr"
    t_min: float = 1e-3
    variant: Literal["ode", "sde"] = "ode"
    denoise: bool = False

    def __post_init__(self) -> None:
        check_grid("DPMSolver", steps=self.steps, t_min=self.t_min, spacing=self.spacing)
        if self.t_min == 0:
            raise ValueError("DPMSolver needs t_min above 0, where the log-SNR is finite, but t_min=0.")
        if self.variant not in ("ode", "sde"):
            raise ValueError(f"DPMSolver's variant is ode or sde, not {self.variant!r}.")
        highest = 3 if self.variant == "ode" else 2
        if self.order not in range(1, highest + 1):
            raise ValueError(f"DPMSolver's {self.variant} has order 1 to {highest}, not {self.order}.")

    @property
    def orders(self) -> Orders:
        """(order, order) of the ODE; strong 1 and weak `order` of the SDE."""
        return Orders(1.0 if self.variant == "sde" else float(self.order), float(self.order))

    @torch.no_grad()
    def __call__(
        self, score: Score, sde: SDE, x_T: Rows, *, generator: Rng = None, callback: Callback | None = None
    ) -> Rows:
        """x_0 like `x_T`; the generator serves the SDE alone."""
        # Times are on the CPU: the coefficients of all steps are numbers before the first one.
        times = time_grid(sde, steps=self.steps, t_min=self.t_min, spacing=self.spacing)
        alpha, sigma = (part.tolist() for part in sde.marginal(times))
        h = (sde.log_snr(times) / 2).diff().tolist()
        rate = 2 if self.variant == "sde" else 1
        x, clock, draw, predictions = x_T, times.to(x_T), normal_like(generator), list[Rows]()
        for i in range(self.steps):
            predictions = [posterior_mean(score, sde, x, clock[i]), *predictions][: self.order]
            if self.order == 3 and i == 1:
                x = x + alpha[1] * _second_take(h[0]) * (predictions[0] - predictions[1])
            past = h[max(0, i + 1 - self.order) : i][::-1]
            x = sigma[i + 1] / sigma[i] * math.exp((1 - rate) * h[i]) * x
            for weight, prediction in zip(_weights(h[i], past, rate), predictions, strict=True):
                x = x + alpha[i + 1] * weight * prediction
            if self.variant == "sde":
                x = x + sigma[i + 1] * math.sqrt(-math.expm1(-2 * h[i])) * draw(x)
            if self.denoise and i == self.steps - 1:
                x = posterior_mean(score, sde, x, clock[-1])
            if callback is not None:
                callback(i, x)
        return x


def _weights(h: float, past: Sequence[float], rate: int) -> tuple[float, ...]:
    """What the predictions weigh, newest first, for a step h after steps `past`, newest first."""
    j_0 = -math.expm1(-rate * h)
    if not past:
        return (j_0,)
    r = past[0] / h
    if len(past) == 1:
        return j_0 * (1 + 0.5 / r), -j_0 * 0.5 / r
    j_1 = 1 - j_0 / h
    j_2 = 1 - 2 * j_1 / h
    # Newton's form at u = 0, -r, -(r + q): the integrals of u and of u (u + r) weigh the divided differences.
    q, last = past[1] / h, j_2 + r * j_1
    return j_0 + j_1 / r + last / (r * (r + q)), -j_1 / r - last / (r * q), last / (q * (r + q))


def _second_take(h: float) -> float:
    """J_1: what a step of order 1 lacks of the line through the predictions at both ends, as a share of its rise."""
    return 1 + math.expm1(-h) / h
