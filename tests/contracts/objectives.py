"""What a denoising objective keeps on Gaussian data N(0, c), where minimum and minimiser are known at every t."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cflows import SDE
from cflows.objectives.weightings import EDMWeighting, Weighting
from cflows.sde import Score

# (score, sde, weighting) -> a loss module
Objective = Callable[[Score, SDE, Weighting], nn.Module]


@dataclass(frozen=True)
class At(Weighting):
    """One time alone, with weight 1."""

    t: float

    def times(self, u: Tensor, sde: SDE, t_min: float) -> tuple[Tensor, Tensor]:
        return torch.full_like(u, self.t), torch.ones_like(u)


def total_variance(sde: SDE, t: float | Tensor, c: float) -> tuple[Tensor, Tensor, Tensor]:
    """α² c, σ² and their sum at t."""
    scale, std = sde.marginal(torch.as_tensor(t, dtype=torch.float64))
    signal, noise = scale.square() * c, std.square()
    return signal, noise, signal + noise


def linear_score(sde: SDE, c: float, factor: float) -> Score:
    """`factor` times the exact score -x/(α² c + σ²)."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        scale, std = (v.reshape(-1, *(1,) * (x.ndim - 1)) for v in sde.marginal(t))
        return -factor * x / (scale.square() * c + std.square())

    return score


def expected_loss(sde: SDE, t: float | Tensor, c: float, factor: float) -> Tensor:
    """E (σ s + ε)² per dimension of that score: 1 - 2 k σ²/V + k² σ²/V, k the factor, V = α² c + σ²."""
    _, noise, total = total_variance(sde, t, c)
    return 1 - (2 * factor - factor**2) * noise / total


def _loss(objective: Objective, sde: SDE, weighting: Weighting, c: float, factor: float) -> float:
    generator = torch.Generator().manual_seed(0)
    data = c**0.5 * torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    return objective(linear_score(sde, c, factor), sde, weighting)(data, generator=generator).item()


def minimum_is(objective: Objective, sde: SDE, *, t: float, c: float, expected: float) -> None:
    """At the exact score the loss per dimension is α² c/(α² c + σ²), within five Monte Carlo errors."""
    found = _loss(objective, sde, At(t), c, 1.0)
    error = expected * (2 / 80_000) ** 0.5  # a squared normal
    assert abs(found - expected) < 5 * error, f"the loss at the exact score is {found:.5f}, not {expected:.5f}"


def minimiser_is_the_score(objective: Objective, sde: SDE, *, t: float, c: float) -> None:
    """Along multiples of the exact score the loss is a parabola with its minimum at 1."""
    low, middle, high = (_loss(objective, sde, At(t), c, factor) for factor in (0.5, 1.0, 1.5))
    curvature = low - 2 * middle + high
    assert curvature > 0, "the loss has no minimum along the score"
    minimiser = 1.0 + 0.25 * (low - high) / curvature
    _, noise, total = total_variance(sde, t, c)
    allowed = 5 * (total / noise / 80_000).item() ** 0.5
    assert abs(minimiser - 1) < allowed, f"the minimum lies at {minimiser:.4f} of the exact score, ± {allowed:.4f}"


def loss_of_any_linear_score_is(objective: Objective, sde: SDE, *, t: float, c: float) -> None:
    """Away from the minimum too, the loss is 1 - (2k - k²) σ²/V."""
    for factor in (0.0, 0.5, 2.0):
        found, expected = _loss(objective, sde, At(t), c, factor), expected_loss(sde, t, c, factor).item()
        assert abs(found - expected) < 0.03 * expected, f"the loss is {found:.4f}, not {expected:.4f}"


def weighting_integrates(
    weighting: Weighting,
    sde: SDE,
    density: Callable[[Tensor], Tensor],
    *,
    t_min: float = 1e-4,
    tolerance: float = 1e-4,
) -> None:
    """E_u[w h(t)] = ∫ density(t) h(t) dt over [t_min, 1], h the loss of a wrong score; times stay inside."""
    # In logit u, which is fine near 0 and 1, where a law of normal tails puts its largest weights.
    logit = torch.linspace(-36, 36, 40_001, dtype=torch.float64)
    u = torch.sigmoid(logit)
    t, w = weighting.times(u, sde, t_min)
    assert t.shape == w.shape == u.shape
    assert ((t >= t_min) & (t <= 1)).all(), "a time outside [t_min, 1]"
    slope = u * torch.sigmoid(-logit)
    found = torch.trapezoid(w * expected_loss(sde, t, 0.3, 0.6) * slope, logit).item()
    # In log t, where the integrand is smooth down to t_min.
    log_t = torch.linspace(math.log(t_min), 0.0, 20_001, dtype=torch.float64)
    time = log_t.exp().clamp(t_min, 1.0)
    expected = torch.trapezoid(density(time) * expected_loss(sde, time, 0.3, 0.6) * time, log_t).item()
    assert abs(found / expected - 1) < tolerance, f"the weighted loss is {found:.6f}, the integral {expected:.6f}"


def half_squared_diffusion(sde: SDE) -> Callable[[Tensor], Tensor]:
    """½ g²/σ², the density in t of ½ g² ‖s - ∇ log p‖² when that is written with (σ s + ε)²."""
    return lambda t: 0.5 * sde.diffusion(t).square() / sde.marginal(t)[1].square()


def slope_of_log_std(sde: SDE, t: Tensor) -> Tensor:
    """d log σ̃/dt = ½ g²/σ², σ̃ = σ/α: what a density in log σ̃ is multiplied by to be one in t."""
    return half_squared_diffusion(sde)(t)


def log_std(sde: SDE, t: float | Tensor) -> Tensor:
    """log(σ/α)."""
    scale, std = sde.marginal(torch.as_tensor(t, dtype=torch.float64))
    return (std / scale).log()


def times_have_the_law(weighting: Weighting, sde: SDE, law: Callable[[Tensor], Tensor], *, t_min: float = 1e-4) -> None:
    """u is the distribution function of log σ̃ at the time that u gives; `law` is that without its ends."""
    u = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    t, _ = weighting.times(u, sde, t_min)
    start, end = law(log_std(sde, t_min)), law(log_std(sde, 1.0))
    found = (law(log_std(sde, t)) - start) / (end - start)
    torch.testing.assert_close(found, u, rtol=0, atol=1e-8, msg=lambda text: f"the law of the times is another: {text}")


def _normal(weighting: EDMWeighting) -> torch.distributions.Normal:
    mean, std = torch.tensor([weighting.P_mean, weighting.P_std], dtype=torch.float64)
    return torch.distributions.Normal(mean, std)


def edm_law(weighting: EDMWeighting) -> Callable[[Tensor], Tensor]:
    """Φ((log σ̃ - P_mean)/P_std)."""
    return _normal(weighting).cdf


def cosine_law(log_std: Tensor) -> Tensor:
    """∫ sech(λ/2)/(2π) dλ above λ = -2 log σ̃: ½ - gd(λ/2)/π with gd(x) = 2 arctan tanh(x/2), gd' = sech."""
    return 0.5 - 2 * torch.atan(torch.tanh(-0.5 * log_std)) / math.pi


def edm_density(weighting: EDMWeighting, sde: SDE, t_min: float) -> Callable[[Tensor], Tensor]:
    """Karras et al.'s weight (σ̃² + σ_d²)/(σ̃ σ_d)² on σ̃² (σ s + ε)², times the truncated normal density, in t."""
    normal = _normal(weighting)
    mass = normal.cdf(log_std(sde, 1.0)) - normal.cdf(log_std(sde, t_min))

    def density(t: Tensor) -> Tensor:
        level = log_std(sde, t)
        sigma, data = level.exp(), weighting.data_std
        weight = (sigma**2 + data**2) / (sigma * data) ** 2 * sigma**2
        return normal.log_prob(level).exp() / mass * slope_of_log_std(sde, t) * weight

    return density


def second_moment(weighting: Weighting, sde: SDE, *, c: float, dimensions: int, t_min: float = 1e-4) -> float:
    """E[(w ℓ)²] at the exact score, independent rows: ℓ is L χ²/D, L the expected loss, so E[ℓ²] = L² (1 + 2/D)."""
    u = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    t, w = weighting.times(u, sde, t_min)
    return ((w * expected_loss(sde, t, c, 1.0)).square().mean() * (1 + 2 / dimensions)).item()


def batch_variance(
    objective: Objective, sde: SDE, weighting: Weighting, *, c: float, dimensions: int, rows: int, batches: int
) -> tuple[float, float]:
    """Variance over batches of the loss at the exact score, and its relative standard error."""
    loss, generator = objective(linear_score(sde, c, 1.0), sde, weighting), torch.Generator().manual_seed(0)
    values = []
    for _ in range(batches):
        data = c**0.5 * torch.randn(rows, dimensions, generator=generator, dtype=torch.float64)
        values.append(loss(data, generator=generator))
    return torch.stack(values).var().item(), (2 / (batches - 1)) ** 0.5
