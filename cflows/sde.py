"""Noising processes dx = f(x, t) dt + g(t) dw from data (t = 0) to noise (t = 1), linear in x, all in closed form.

Given x_0 each has a Gaussian marginal x_t ~ N(α(t) x_0, σ(t)² I), the scale and std of `marginal`. They satisfy
α' = a α and (σ²)' = 2 a σ² + g² for the drift f = a(t) x. Therefore g² = -σ² dλ/dt for every one of them, with the
log-SNR λ = log(α²/σ²): the likelihood weighting is uniform in λ.

References:
    Song et al., "Score-based generative modeling through stochastic differential equations", 2021, section 3.4, app. B.
"""

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cflows.ode.field import rows_of
from core.bases import Base, DiagonalNormal, StandardNormal
from core.shapes import align

Rows = Float[Tensor, "rows ..."]
Time = Float[Tensor, "*rows"]  # 0-dimensional or (rows,), within [0, 1]
Score = Callable[[Tensor, Tensor], Tensor]  # score(x, t) like x


class SDE(abc.ABC):
    """A noising process; `t` is 0-dimensional or `(rows,)`, within [0, 1]."""

    @abc.abstractmethod
    def drift(self, x: Rows, t: Time) -> Rows:
        """f(x, t), like `x`."""

    @abc.abstractmethod
    def diffusion(self, t: Time) -> Time:
        """g(t), like `t`."""

    @abc.abstractmethod
    def marginal(self, t: Time) -> tuple[Time, Time]:
        """(scale, std) of x_t | x_0 ~ N(scale x_0, std² I), each like `t`."""

    @abc.abstractmethod
    def prior(self, event_shape: int | Sequence[int]) -> Base:
        """Distribution of x_1 that sampling starts from."""

    @abc.abstractmethod
    def log_snr(self, t: Time) -> Time:
        """λ(t) = log(scale²/std²), the log signal-to-noise ratio, which falls with t."""

    @abc.abstractmethod
    def time(self, log_snr: Time) -> Time:
        """The t with this log-SNR."""

    def transition_kernel(self, s: Time, t: Time) -> tuple[Time, Time]:
        """(scale, std) of x_t | x_s ~ N(scale x_s, std² I) for s ≤ t: the exact discretization of the process.

        scale = α(t)/α(s) and std² = σ(t)² (1 - exp(λ(t) - λ(s))), which is σ(t)² - scale² σ(s)² without a difference of
        variances that are nearly the same: its digits are those of λ(t) - λ(s).
        """
        alpha_t, sigma_t = self.marginal(t)
        alpha_s, _ = self.marginal(s)
        return alpha_t / alpha_s, sigma_t * torch.sqrt(-torch.expm1(self.log_snr(t) - self.log_snr(s)))


@dataclass(frozen=True, kw_only=True)
class _LinearBeta(SDE, abc.ABC):
    """Drift -½ β(t) x with β(t) = β_min + t (β_max - β_min), B(t) = ∫β, and a standard normal prior."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(f"beta needs 0 < beta_min < beta_max, but they are {self.beta_min} and {self.beta_max}.")

    def drift(self, x: Rows, t: Time) -> Rows:
        """-½ β(t) x."""
        return -0.5 * align(self.beta(t), x) * x

    def prior(self, event_shape: int | Sequence[int]) -> Base:
        """N(0, I)."""
        return StandardNormal(event_shape)

    def beta(self, t: Time) -> Time:
        """β(t)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t.square()

    def _inverse_integral(self, b: Tensor) -> Tensor:
        # The root of the quadratic in the form that keeps its digits as b → 0.
        slope = self.beta_max - self.beta_min
        return 2 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * b))


@dataclass(frozen=True, kw_only=True)
class VPSDE(_LinearBeta):
    """dx = -½ β(t) x dt + √β(t) dw: α = exp(-B/2), σ² = 1 - exp(-B), B(t) = ∫β.

    References:
        Song et al., 2021, eq. 11, 32, 33.

    Checked by tests/contracts/sdes.py (moment equations) and tests/cflows/test_sde.py (published values).

    Attributes:
        beta_min: β(0) > 0.
        beta_max: β(1) > β(0).

    Example:
        >>> scale, std = VPSDE().marginal(torch.tensor(0.5))
        >>> round(scale.item(), 4), round(std.item(), 4)
        (0.2812, 0.9597)
    """

    def diffusion(self, t: Time) -> Time:
        """√β(t)."""
        return self.beta(t).sqrt()

    def marginal(self, t: Time) -> tuple[Time, Time]:
        """exp(-B/2) and √(1 - exp(-B))."""
        b = self._integral(t)
        return torch.exp(-0.5 * b), torch.sqrt(-torch.expm1(-b))

    def log_snr(self, t: Time) -> Time:
        """-log(exp(B) - 1) = -B - log(1 - exp(-B))."""
        b = self._integral(t)
        return -b - torch.log(-torch.expm1(-b))

    def time(self, log_snr: Time) -> Time:
        """B = log(1 + exp(-λ)), then t."""
        return self._inverse_integral(_softplus(-log_snr))


@dataclass(frozen=True, kw_only=True)
class SubVPSDE(_LinearBeta):
    """dx = -½ β(t) x dt + √(β(t)(1 - exp(-2B))) dw: α = exp(-B/2), σ = 1 - exp(-B).

    References:
        Song et al., 2021, eq. 12, 29.

    Checked by tests/contracts/sdes.py (moment equations) and tests/cflows/test_sde.py (published values).

    Attributes:
        beta_min: β(0) > 0.
        beta_max: β(1) > β(0).

    Example:
        >>> round(SubVPSDE().marginal(torch.tensor(0.5))[1].item(), 4)
        0.9209
    """

    def diffusion(self, t: Time) -> Time:
        """√(β(t)(1 - exp(-2B)))."""
        return torch.sqrt(self.beta(t) * -torch.expm1(-2 * self._integral(t)))

    def marginal(self, t: Time) -> tuple[Time, Time]:
        """exp(-B/2) and 1 - exp(-B)."""
        b = self._integral(t)
        return torch.exp(-0.5 * b), -torch.expm1(-b)

    def log_snr(self, t: Time) -> Time:
        """-2 log(1 - exp(-B)) - B."""
        b = self._integral(t)
        return -2 * torch.log(-torch.expm1(-b)) - b

    def time(self, log_snr: Time) -> Time:
        """2 sinh(B/2) = exp(-λ/2), then t."""
        return self._inverse_integral(2 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr)))


@dataclass(frozen=True, kw_only=True)
class VESDE(SDE):
    """dx = g(t) dw with g² = d[s²]/dt, s(t) = σ_min (σ_max/σ_min)^t: α = 1, σ² = s(t)² - σ_min².

    References:
        Song et al., 2021, eq. 9, 30. Their code takes s(t) itself for σ(t), as if data came with noise σ_min; that is
        the option `convention`, whose score the transition of the SDE does not satisfy.

    Checked by tests/contracts/sdes.py (moment equations) and tests/cflows/test_sde.py (published values).

    Attributes:
        sigma_min: σ_min > 0.
        sigma_max: σ_max > σ_min, of the order of the largest distance between two data points.
        transition: `exact` or `convention`.

    Example:
        >>> round(VESDE().marginal(torch.tensor(1.0))[1].item(), 4)
        50.0
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    transition: Literal["exact", "convention"] = "exact"

    def __post_init__(self) -> None:
        if self.transition not in ("exact", "convention"):
            raise ValueError(f"VESDE's transition is exact or convention, not {self.transition!r}.")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"VESDE needs 0 < sigma_min < sigma_max, but they are {self.sigma_min} and {self.sigma_max}."
            )

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def drift(self, x: Rows, t: Time) -> Rows:
        """Zero."""
        return torch.zeros_like(x)

    def diffusion(self, t: Time) -> Time:
        """s(t) √(2 log(σ_max/σ_min))."""
        return self.sigma_min * torch.exp(t * self._log_ratio) * math.sqrt(2 * self._log_ratio)

    def marginal(self, t: Time) -> tuple[Time, Time]:
        """1 and √(s(t)² - σ_min²), or s(t) under the convention."""
        if self.transition == "convention":
            return torch.ones_like(t), self.sigma_min * torch.exp(t * self._log_ratio)
        return torch.ones_like(t), self.sigma_min * torch.sqrt(torch.expm1(2 * t * self._log_ratio))

    def prior(self, event_shape: int | Sequence[int]) -> Base:
        """N(0, σ(1)² I), fixed."""
        _, std = self.marginal(torch.ones((), dtype=torch.float64))
        return DiagonalNormal(event_shape, scale=std.item(), learnable=False)

    def log_snr(self, t: Time) -> Time:
        """-log σ(t)²."""
        return -2 * self.marginal(t)[1].log()

    def time(self, log_snr: Time) -> Time:
        """The t with log σ(t)² = -λ."""
        relative = -log_snr - 2 * math.log(self.sigma_min)  # log(σ²/σ_min²)
        if self.transition == "convention":
            return relative / (2 * self._log_ratio)
        return _softplus(relative) / (2 * self._log_ratio)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), which torch's own takes for x above 20, fewer digits than float64 has."""
    return torch.logaddexp(x, torch.zeros_like(x))


def reverse_drift(score: Score, sde: SDE, x: Rows, t: Time) -> Rows:
    """f(x, t) - g(t)² ∇ log p_t(x): drift of the same process run backwards (Anderson, 1982; Song et al., eq. 6)."""
    return sde.drift(x, t) - align(sde.diffusion(t).square(), x) * score(x, t)


@dataclass(frozen=True, eq=False)
class _ProbabilityFlow:
    score: Score
    sde: SDE

    def __call__(self, x: Rows, t: Time) -> Rows:
        return self.sde.drift(x, t) - 0.5 * align(self.sde.diffusion(t).square(), x) * self.score(x, t)

    def rows(self, index: Tensor) -> "_ProbabilityFlow":
        return _ProbabilityFlow(rows_of(self.score, index), self.sde)


def probability_flow(score: Score, sde: SDE) -> Score:
    """v(x, t) = f(x, t) - ½ g(t)² ∇ log p_t(x): the ODE with the marginals of the SDE (Song et al., 2021, eq. 13).

    The ½ is what some lecture slides drop. For some of the rows it asks the score for theirs, as solvers need it whose
    rows arrive at different times.

    Checked by tests/cflows/test_probability_flow.py.
    """
    return _ProbabilityFlow(score, sde)


def prior_kl(sde: SDE, *, mean: float = 0.0, variance: float = 1.0) -> float:
    """KL(p_1 ‖ prior) in nats per dimension for data N(mean, variance): what sampling from the prior costs at least.

    ½ (r - 1 - log r) + ½ α² mean²/p with V = α² variance + σ² at t = 1, the prior's variance p and r = V/p. For other
    data of these two moments it is a lower bound, since a Gaussian has the largest entropy.

    Checked by tests/cflows/test_sde.py (published values).

    Args:
        sde: the noising process.
        mean: of the data, every dimension alike.
        variance: of the data, likewise.

    Raises:
        ValueError: a variance that is not positive.

    Example:
        >>> prior_kl(VPSDE(), variance=4.0)
        4.19...e-09
    """
    if not variance > 0:
        raise ValueError(f"prior_kl needs a positive variance, but it is {variance}.")
    scale, std = sde.marginal(torch.ones((), dtype=torch.float64))
    p = _prior_variance(sde)
    excess = (scale.square() * variance + std.square() - p) / p  # r - 1
    return (0.5 * (excess - torch.log1p(excess)) + 0.5 * (scale * mean).square() / p).item()


def prior_mismatch(sde: SDE, x: Rows) -> Float[Tensor, " rows"]:
    """KL(N(α x, σ² I) ‖ prior) of each row at t = 1, nats: their mean is at least KL(p_1 ‖ prior) of the rows' law.

    ½ D (r - 1 - log r) + ½ α² ‖x‖²/p with the prior's variance p and r = σ²/p. p_1 is the mean of N(α x, σ² I) over the
    data and KL is convex, so that the mean over rows bounds from above what `prior_kl` bounds from below: how much the
    mean log-likelihood of a perfect score changes where the prior stands in for p_1.

    References:
        Song, Durkan, Murray, Ermon, "Maximum likelihood training of score-based diffusion models", 2021, theorem 1,
        whose KL(p_T ‖ π) this bounds.

    Checked by tests/cflows/test_prior_mismatch.py.

    Args:
        sde: the noising process.
        x: data as the score sees them, `(rows, *event)`.

    Returns:
        Nats a row, for all its dimensions together.

    Example:
        >>> prior_mismatch(VPSDE(), torch.tensor([[0.0], [3.0]])).tolist()  # ½ α² 9 = 1.9e-4
        [4.66...e-10, 0.000194...]
    """
    scale, std = sde.marginal(torch.ones((), dtype=torch.float64))
    p = _prior_variance(sde)
    excess = (std.square() - p) / p  # r - 1
    rows = x.double().flatten(1)
    at_mean = (0.5 * rows.shape[1] * (excess - torch.log1p(excess))).item()
    return (at_mean + 0.5 * (scale.square() / p).item() * rows.square().sum(1)).to(x)


def _prior_variance(sde: SDE) -> Tensor:
    """Of one dimension: twice the log-density difference of a normal at 0 and at 1 is 1/p."""
    at_zero, at_one = sde.prior(1).double().log_prob(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    return 0.5 / (at_zero - at_one)
