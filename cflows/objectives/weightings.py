"""Where denoising objectives draw their times and how much each counts."""

import abc
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cflows.sde import SDE


class Weighting(abc.ABC):
    """Where times are drawn and how much each counts: E_t[w(t) ‖σ s + ε‖²/D] under its own law of t."""

    @abc.abstractmethod
    def times(self, u: Float[Tensor, " rows"], sde: SDE, t_min: float) -> tuple[Tensor, Tensor]:
        """Times and weights, each `(rows,)`, from u uniform on [0, 1)."""


@dataclass(frozen=True, kw_only=True)
class VarianceWeighting(Weighting):
    """t uniform on [t_min, 1], w = 1: λ(t) = σ(t)² ∝ 1/E ‖∇ log p(x_t | x_0)‖² on the score (Song et al., 2021, eq. 7).

    Checked by tests/cflows/test_weightings.py.
    """

    def times(self, u: Float[Tensor, " rows"], sde: SDE, t_min: float) -> tuple[Tensor, Tensor]:
        """t = t_min + (1 - t_min) u, w = 1."""
        return t_min + (1 - t_min) * u, torch.ones_like(u)


@dataclass(frozen=True, kw_only=True)
class LikelihoodWeighting(Weighting):
    """The integral of ½ g² ‖s - ∇ log p‖² over t, in nats per dimension, up to a constant.

    It bounds KL(p_data ‖ p_SDE), p_SDE the law of the reverse SDE, up to the prior's mismatch; the density of the
    probability-flow ODE, which `ScoreSDE.log_prob` returns, is close to it but not bounded by it. Since
    g² = -σ² dλ/dt, drawing t uniformly in log-SNR λ makes every time count alike, w = ½ (λ(t_min) - λ(1)): exactly
    the paper's importance sampling. Of `uniform` times w = ½ (1 - t_min) g²/σ²: the same integral, a larger variance.

    References:
        Song, Durkan, Murray, Ermon, "Maximum likelihood training of score-based diffusion models", 2021, theorem 1, §5.
        Kingma et al., "Variational diffusion models", 2021, eq. 17.

    Checked by tests/cflows/test_weightings.py.

    Attributes:
        sampling: `importance` or `uniform`.

    Raises:
        ValueError: another sampling.

    Example:
        >>> from cflows import VPSDE
        >>> u = torch.tensor([0.0, 0.5], dtype=torch.float64)
        >>> [v.round(decimals=3).tolist() for v in LikelihoodWeighting().times(u, VPSDE(), 1e-3)]
        [[0.001, 0.305], [9.583, 9.583]]
    """

    sampling: Literal["importance", "uniform"] = "importance"

    def __post_init__(self) -> None:
        if self.sampling not in ("importance", "uniform"):
            raise ValueError(f"LikelihoodWeighting's sampling is importance or uniform, not {self.sampling!r}.")

    def times(self, u: Float[Tensor, " rows"], sde: SDE, t_min: float) -> tuple[Tensor, Tensor]:
        """t with log-SNR λ(t_min) + u (λ(1) - λ(t_min)) and constant w, or t_min + (1 - t_min) u."""
        if self.sampling == "uniform":
            t = (t_min + (1 - t_min) * u).clamp(t_min, 1.0)
            return t, 0.5 * (1 - t_min) * (sde.diffusion(t) / sde.marginal(t)[1]).square()
        return _spread_over_log_snr(u, sde, t_min)


@dataclass(frozen=True, kw_only=True)
class EDMWeighting(Weighting):
    """log σ̃ ~ N(P_mean, P_std²) of σ̃ = σ/α, truncated to the process; w = (σ̃² + σ_d²)/σ_d².

    That is the weight (σ̃² + σ_d²)/(σ̃ σ_d)² on ‖D - x_0‖²/D, the error of the denoiser D = (x + σ² s)/α, which is
    σ̃ (σ s + ε): under it the preconditioned network's own loss has weight 1.

    References:
        Karras et al., "Elucidating the design space of diffusion-based generative models", 2022, table 1, section 5.

    Checked by tests/cflows/test_weightings.py.

    Attributes:
        P_mean: mean of log σ̃.
        P_std: standard deviation of log σ̃.
        data_std: σ_d, standard deviation of the data that the model sees.

    Raises:
        ValueError: P_std or data_std not positive.

    Note:
        The process must reach where σ̃ is drawn: with both ends beyond 5 P_std above P_mean float32 has no digits left.

    Example:
        >>> from cflows import VPSDE
        >>> t, w = EDMWeighting().times(torch.tensor([0.5], dtype=torch.float64), VPSDE(), 1e-5)
        >>> round(w.item(), 3)  # 1 + (exp(-1.2)/0.5)²
        1.363
    """

    P_mean: float = -1.2
    P_std: float = 1.2
    data_std: float = 0.5

    def __post_init__(self) -> None:
        if not self.P_std > 0 or not self.data_std > 0:
            raise ValueError(
                f"EDMWeighting needs P_std > 0 and data_std > 0, but they are {self.P_std} and {self.data_std}."
            )

    def times(self, u: Float[Tensor, " rows"], sde: SDE, t_min: float) -> tuple[Tensor, Tensor]:
        """log σ̃ = P_mean + P_std Φ⁻¹(Φ(a) + u (Φ(b) - Φ(a))), a and b the standardized ends."""
        low, high = -0.5 * _ends(u, sde, t_min)
        below, above = torch.special.ndtr((torch.stack([low, high]) - self.P_mean) / self.P_std)
        normal = torch.special.ndtri(below + u * (above - below))
        log_std = (self.P_mean + self.P_std * normal).clamp(low, high)
        return _times(-2 * log_std, sde, t_min), 1 + (log_std.exp() / self.data_std).square()


@dataclass(frozen=True, kw_only=True)
class CosineWeighting(Weighting):
    """The times of the cosine schedule on any process, w = 1: the angle arctan(σ/α) is uniform between its ends.

    So λ has the law sech(λ/2)/(2π) of α = cos(½πu), σ = sin(½πu) with u uniform, truncated.

    References:
        Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, eq. 17, without its offset.
        Kingma and Gao, "Understanding diffusion objectives as the ELBO with simple data augmentation", 2023: the law.

    Checked by tests/cflows/test_weightings.py.

    Example:
        >>> from cflows import CosineVPSDE
        >>> t, _ = CosineWeighting().times(torch.tensor([0.5], dtype=torch.float64), CosineVPSDE(), 1e-5)
        >>> round(t.item(), 1)  # even ones, where the process has that schedule itself
        0.5
    """

    def times(self, u: Float[Tensor, " rows"], sde: SDE, t_min: float) -> tuple[Tensor, Tensor]:
        """λ = -2 log tan φ, φ uniform; w = 1."""
        start, end = torch.atan(torch.exp(-0.5 * _ends(u, sde, t_min)))
        return _times(-2 * torch.tan(start + u * (end - start)).log(), sde, t_min), torch.ones_like(u)


class LearnedWeighting(nn.Module, Weighting):
    """The integral of `LikelihoodWeighting`, times drawn where the loss is large: its variance falls, it does not.

    The log-SNR range is cut in K equal bins. Bin k has the probability q_k = (1 - f) √m_k/Σ√m + f/K, m_k a running
    mean of ℓ² over the rows seen there, ℓ = ‖σ s + ε‖²/D, and f the floor; λ is uniform within it, w = Λ/(2 K q_k) with
    Λ = λ(t_min) - λ(1). Whatever q, E[w ℓ] = ½ Λ E_λ[ℓ], λ uniform. Of all laws constant on the bins q ∝ √m gives
    independent rows the least variance, by Cauchy-Schwarz of E[(w ℓ)²] ∝ Σ m_k/q_k. It starts uniform.

    References:
        Kingma et al., "Variational diffusion models", 2021, app. I.2: the integral does not depend on the schedule, its
        variance does, so that the schedule is trained to lower it; there a network, by gradient.

    Checked by tests/cflows/test_weightings.py.

    Args:
        bins: K.
        memory: d within [0, 1): each row seen in a bin leaves a share d of what its mean was.
        floor: f within (0, 1]: no weight exceeds 1/f times that of `LikelihoodWeighting`.

    Raises:
        ValueError: a setting outside its range.

    Example:
        >>> weighting = LearnedWeighting(bins=2, memory=0.0, floor=0.01)
        >>> weighting.observe(torch.tensor([0.2, 0.7]), torch.tensor([0.9, 0.1]))  # a row in each bin
        >>> [round(q, 3) for q in weighting.probabilities.tolist()]  # 0.99 · (0.9, 0.1) + 0.005
        [0.896, 0.104]
    """

    second_moments: Tensor

    def __init__(self, *, bins: int = 32, memory: float = 0.99, floor: float = 0.1) -> None:
        super().__init__()
        if bins < 1 or not 0 <= memory < 1 or not 0 < floor <= 1:
            raise ValueError(
                f"LearnedWeighting needs bins of 1 or more, memory within [0, 1) and floor within (0, 1], but has "
                f"{bins=}, {memory=} and {floor=}."
            )
        self.memory, self.floor = memory, floor
        self.register_buffer("second_moments", torch.ones(bins))

    @property
    def probabilities(self) -> Float[Tensor, " bins"]:
        """q, the bin of the highest log-SNR first."""
        root = self.second_moments.sqrt()
        return (1 - self.floor) * root / root.sum() + self.floor / len(root)

    def times(self, u: Float[Tensor, " rows"], sde: SDE, t_min: float) -> tuple[Tensor, Tensor]:
        """t at the share of the log-SNR range that the inverse of the distribution function of q has at u; w."""
        q, below, index = self._bins(u)
        within = ((u - below[index]) / q[index]).clamp(0, 1)
        t, w = _spread_over_log_snr((index + within) / len(q), sde, t_min)
        return t, w / (len(q) * q[index])

    @torch.no_grad()
    def observe(self, u: Float[Tensor, " rows"], losses: Float[Tensor, " rows"]) -> None:
        """Takes in ℓ of the rows whose times came of u under the law as it is; of those alone that are finite."""
        _, _, index = self._bins(u)
        known, bins = losses.isfinite(), torch.arange(len(self.second_moments), device=u.device)
        # A product with indicators sums in the same order every time; scattering on a GPU does not.
        seen = ((index[:, None] == bins) & known[:, None]).to(self.second_moments)
        rows = seen.sum(0)
        means = losses.to(seen.dtype).where(known, 0).square() @ seen / rows.clamp(min=1)
        self.second_moments.lerp_(means, 1 - self.memory**rows)

    def _bins(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, the probability below each bin, and the bin of each u."""
        q = self.probabilities.to(u.dtype)
        up_to = q.cumsum(0)
        return q, up_to - q, (u[:, None] >= up_to[:-1]).sum(1)


def _ends(u: Tensor, sde: SDE, t_min: float) -> Tensor:
    """λ(t_min) and λ(1), in the dtype and on the device of u."""
    return sde.log_snr(u.new_tensor([t_min, 1.0]))


def _times(log_snr: Tensor, sde: SDE, t_min: float) -> Tensor:
    return sde.time(log_snr).clamp(t_min, 1.0)


def _spread_over_log_snr(share: Tensor, sde: SDE, t_min: float) -> tuple[Tensor, Tensor]:
    """t at a share of the way from λ(t_min) to λ(1), and ½ (λ(t_min) - λ(1))."""
    high, low = _ends(share, sde, t_min)
    return _times(high + share * (low - high), sde, t_min), (0.5 * (high - low)).expand_as(share)
