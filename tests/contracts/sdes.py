"""What every noising process keeps, in float64; each function raises AssertionError where the claim is broken."""

from collections.abc import Callable

import torch
from torch import Tensor

from cflows import SDE

TIMES = (1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def times(dtype: torch.dtype = torch.float64) -> Tensor:
    """Times from just above 0, where derivatives of the standard deviation blow up, to 1."""
    return torch.tensor(TIMES, dtype=dtype)


def _derivative(value: Tensor, t: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(value.sum() + 0.0 * t.sum(), t, retain_graph=True)
    return slope


def marginal_solves_the_moment_equations(sde: SDE, *, tolerance: float = 1e-9) -> None:
    """α' = a α and (σ²)' = 2 a σ² + g², for the drift a(t) x."""
    t = times().requires_grad_()
    scale, std = sde.marginal(t)
    a = sde.drift(torch.ones(len(t), 1, dtype=t.dtype), t)[:, 0]
    torch.testing.assert_close(_derivative(scale, t), a * scale, rtol=tolerance, atol=tolerance)
    growth = 2 * a * std.square() + sde.diffusion(t).square()
    torch.testing.assert_close(_derivative(std.square(), t), growth, rtol=tolerance, atol=tolerance)


def starts_at_the_data(sde: SDE, *, std: float = 0.0) -> None:
    """At t = 0 the scale is 1 and the standard deviation is the stated one, 0 for an exact transition."""
    scale, found = sde.marginal(torch.zeros((), dtype=torch.float64))
    assert scale.item() == 1.0, f"scale(0) is {scale.item()}"
    assert abs(found.item() - std) <= 1e-15, f"std(0) is {found.item()}, not {std}"


def drift_is_linear(sde: SDE) -> None:
    """f(x, t) = a(t) x for any event shape, t 0-dimensional or one a row."""
    x = torch.linspace(-2, 3, 24, dtype=torch.float64).reshape(4, 3, 2)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    f = sde.drift(x, t)
    assert f.shape == x.shape
    torch.testing.assert_close(sde.drift(-3 * x, t), -3 * f, rtol=1e-12, atol=1e-12)
    for i in range(4):
        torch.testing.assert_close(sde.drift(x[i : i + 1], t[i]), f[i : i + 1], rtol=1e-12, atol=1e-12)


def log_snr_matches(sde: SDE, *, tolerance: float = 1e-9) -> None:
    """λ = log(α²/σ²), strictly falling; `time` is its inverse; g² = -σ² dλ/dt."""
    t = times().requires_grad_()
    scale, std = sde.marginal(t)
    log_snr = sde.log_snr(t)
    torch.testing.assert_close(log_snr, 2 * (scale / std).log(), rtol=tolerance, atol=tolerance)
    assert (log_snr.diff() < 0).all(), "the log-SNR does not fall"
    torch.testing.assert_close(sde.time(log_snr.detach()), t.detach(), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(
        sde.diffusion(t).square(), -std.square() * _derivative(log_snr, t), rtol=tolerance, atol=tolerance
    )


def kernels_compose(sde: SDE, *, tolerance: float = 1e-9) -> None:
    """From s to t and on to u is from s to u; from the law at s comes the law at t; a short way has variance g² dt."""
    s, t, u = (torch.tensor(value, dtype=torch.float64) for value in ([1e-3, 0.2, 0.5], [0.1, 0.3, 0.9], [0.4, 0.6, 1]))
    first, second, whole = sde.transition_kernel(s, t), sde.transition_kernel(t, u), sde.transition_kernel(s, u)
    torch.testing.assert_close(first[0] * second[0], whole[0], rtol=tolerance, atol=0)
    variance = (second[0] * first[1]).square() + second[1].square()
    torch.testing.assert_close(variance, whole[1].square(), rtol=tolerance, atol=0)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = sde.marginal(s), sde.marginal(t)
    torch.testing.assert_close(first[0] * alpha_s, alpha_t, rtol=tolerance, atol=0)
    reached = (first[0] * sigma_s).square() + first[1].square()
    torch.testing.assert_close(reached, sigma_t.square(), rtol=tolerance, atol=0)
    gap = 1e-7
    growth = sde.transition_kernel(s, s + gap)[1].square() / gap
    torch.testing.assert_close(growth, sde.diffusion(s).square(), rtol=1e-3, atol=0)
    assert (sde.transition_kernel(t, t)[1] == 0).all(), "no time, and yet some noise"


def prior_is_close_to_the_marginal(sde: SDE, *, scale_left: float = 0.06, tolerance: float = 1e-3) -> None:
    """At t = 1 little of unit data is left, and the prior has the mean and standard deviation of what there is."""
    scale, std = sde.marginal(torch.ones((), dtype=torch.float64))
    draws = sde.prior(2).double().sample((40_000,), generator=torch.Generator().manual_seed(0))
    assert draws.shape == (40_000, 2)
    assert (scale / std).item() < scale_left, f"{(scale / std).item():.3f} standard deviations of data are left"
    # Twice the log-density difference of two normals at 0 and at one deviation gives scale and standard deviation.
    prior = sde.prior(1).double()
    at = prior.log_prob(torch.stack([torch.zeros(1, dtype=torch.float64), std.reshape(1)]))
    assert abs((at[0] - at[1]).item() - 0.5) < tolerance, "the prior's width is not that of the marginal"
    assert draws.mean(0).abs().max() < 5 * std / 200, "the prior is not centred"
    torch.testing.assert_close(draws.std(0), std.expand(2), rtol=0.02, atol=0)


def mismatch_is_published(kl: Callable[..., float]) -> None:
    """KL(p_1 ‖ N(0, 1)) under VP, nats per dimension, and ½ α(1)² for each unit of the squared mean."""
    for variance, expected in ((0.01, 4.6e-10), (0.25, 2.6e-10), (4.0, 4.2e-9)):
        found = kl(mean=0.0, variance=variance)
        assert abs(found / expected - 1) < 0.03, f"{found:.2e} nats for variance {variance}"
        shift = kl(mean=2.0, variance=variance) - found
        assert abs(shift / (4 * 2.1593e-5) - 1) < 1e-4, f"{shift:.3e} nats for mean 2"


def shapes_and_dtypes_follow_time(sde: SDE) -> None:
    """Every coefficient of t is like t, 0-dimensional or `(rows,)`, float32 or float64."""
    for dtype in (torch.float32, torch.float64):
        for t in (torch.tensor(0.3, dtype=dtype), times(dtype), times(dtype)[:0]):
            values = (sde.diffusion(t), *sde.marginal(t), sde.log_snr(t), sde.time(sde.log_snr(t)))
            for value in values:
                assert value.shape == t.shape, f"{tuple(value.shape)} for t of shape {tuple(t.shape)}"
                assert value.dtype == dtype, f"{value.dtype} for t in {dtype}"


def float32_keeps_its_digits(sde: SDE, *, tolerance: float = 3e-6) -> None:
    """From t = 1e-5 on, every coefficient in float32 against float64 at the same t, relative."""
    t = torch.logspace(-5, 0, 60, dtype=torch.float32)
    pairs = {
        "scale": (sde.marginal(t)[0], sde.marginal(t.double())[0]),
        "std": (sde.marginal(t)[1], sde.marginal(t.double())[1]),
        "diffusion": (sde.diffusion(t), sde.diffusion(t.double())),
        # Measured in exp λ: where λ hardly moves, t itself cannot be told.
        "exp log_snr(time)": (sde.log_snr(sde.time(sde.log_snr(t)).double()).exp(), sde.log_snr(t.double()).exp()),
    }
    for name, (single, double) in pairs.items():
        error = (single.double() / double - 1).abs().max().item()
        # A round trip through λ of size 20 costs |λ| rounding units more.
        limit = 10 * tolerance if name.startswith("exp") else tolerance
        assert error <= limit, f"{name} in float32 is off by {error:.1e}, relative"
