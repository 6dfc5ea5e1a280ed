import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from cases import SDES
from contracts import sdes

from cflows import SDE, VESDE, VPSDE, AffineSDE, CosineVPSDE, SubVPSDE, prior_kl
from cflows.sde import reverse_drift

CONTRACTS = [
    sdes.marginal_solves_the_moment_equations,
    sdes.drift_is_linear,
    sdes.log_snr_matches,
    sdes.kernels_compose,
    sdes.prior_is_close_to_the_marginal,
    sdes.shapes_and_dtypes_follow_time,
    sdes.float32_keeps_its_digits,
]

# t, VP scale, VP std, sub-VP std, VE std under the convention, VE std of the exact transition.
PUBLISHED = [
    (1e-5, 0.9999994995, 1.000497126e-3, 1.000994499e-6, 0.01000085176, 1.305214056e-4),
    (1e-3, 0.9999450265, 0.01048541634, 1.099439557e-4, 0.01008553568, 1.310736391e-3),
    (0.1, 0.9467217988, 0.3220525355, 0.1037178356, 0.02343672912, 0.02119623249),
    (0.5, 0.2811828808, 0.9596542021, 0.9209361875, 0.7071067812, 0.707036067),
    (1.0, 0.006571586495, 0.9999784069, 0.9999568143, 50.0, 49.999999),
]


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("name", SDES)
def test_contract(name: str, contract: Callable[[SDE], None]) -> None:
    contract(SDES[name][0])


@pytest.mark.parametrize("name", SDES)
def test_starts_at_the_data(name: str) -> None:
    sde, std = SDES[name]
    sdes.starts_at_the_data(sde, std=std)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-6)])
@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"t={row[0]:g}")
def test_published_marginals(row: tuple[float, ...], dtype: torch.dtype, tolerance: float) -> None:
    t = torch.tensor(row[0], dtype=dtype)
    found = (
        *VPSDE().marginal(t),
        SubVPSDE().marginal(t)[1],
        VESDE(transition="convention").marginal(t)[1],
        VESDE().marginal(t)[1],
    )
    for value, expected in zip(found, row[1:], strict=True):
        assert value.dtype == dtype
        assert abs(value.item() / expected - 1) < tolerance
    torch.testing.assert_close(SubVPSDE().marginal(t)[0], found[0], rtol=0, atol=0)
    assert VESDE().marginal(t)[0].item() == 1.0


@pytest.mark.parametrize(
    ("sde", "at_zero", "at_one"), [(VPSDE(), 0.31622777, 4.4721360), (VESDE(), 0.041272735, 206.36367)]
)
def test_published_diffusion(sde: SDE, at_zero: float, at_one: float) -> None:
    found = sde.diffusion(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    assert found == pytest.approx([at_zero, at_one], rel=1e-7)


def test_sub_vp_diffusion_starts_at_zero_and_stays_below_vp() -> None:
    t = torch.tensor([0.0, 0.1, 0.5], dtype=torch.float64)
    g, bound = SubVPSDE().diffusion(t), VPSDE().diffusion(t)
    assert g[0] == 0
    assert (g < bound).all()


def test_reverse_drift_of_a_stationary_process() -> None:
    """N(0, 1) under VP: f - g² s = -½ β x + β x = ½ β x."""
    x, t = torch.tensor([[2.0], [-1.0]], dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    beta = 0.1 + 0.5 * 19.9
    torch.testing.assert_close(reverse_drift(lambda x, t: -x, VPSDE(), x, t), 0.5 * beta * x)


def test_simulation_reaches_the_marginal() -> None:
    """Forward Euler-Maruyama of drift and diffusion: mean and variance at t = ½ are those of `marginal`."""
    generator, steps, rows = torch.Generator().manual_seed(0), 200, 20_000
    for sde in (VPSDE(), SubVPSDE(), VESDE()):
        x, dt = torch.full((rows, 1), 0.7, dtype=torch.float64), 0.5 / steps
        for step in range(steps):
            t = torch.tensor((step + 0.5) * dt, dtype=torch.float64)
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = x + sde.drift(x, t) * dt + sde.diffusion(t) * math.sqrt(dt) * noise
        scale, std = (v.item() for v in sde.marginal(torch.tensor(0.5, dtype=torch.float64)))
        assert abs(x.mean().item() - 0.7 * scale) < 5 * std / rows**0.5 + 0.01 * std
        assert abs(x.std().item() / std - 1) < 5 / (2 * rows) ** 0.5 + 0.02


@pytest.mark.parametrize(("build", "letter"), [(VPSDE, "beta"), (SubVPSDE, "beta"), (VESDE, "sigma")])
def test_schedule_must_rise(build: type[SDE], letter: str) -> None:
    with pytest.raises(ValueError, match=r"beta_min < beta_max|sigma_min < sigma_max"):
        build(**{f"{letter}_min": 2.0, f"{letter}_max": 1.0})
    with pytest.raises(ValueError, match="needs 0 <"):
        build(**{f"{letter}_min": 0.0, f"{letter}_max": 1.0})


def test_an_unknown_transition_is_refused() -> None:
    with pytest.raises(ValueError, match="exact or convention, not 'other'"):
        # Called past the shape hook of the test suite, as a user calls it.
        VESDE.__post_init__(SimpleNamespace(transition="other"))


@pytest.mark.parametrize("sde", [VPSDE(beta_max=200.0), SubVPSDE(beta_max=200.0)])
def test_log_snr_of_a_steep_schedule_stays_finite_in_float32(sde: SDE) -> None:
    assert sde.log_snr(torch.ones(())).item() == pytest.approx(-100.05, abs=0.01)


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve", "cosine-vp"])
def test_affine_finds_drift_and_diffusion_of_the_named_ones(name: str) -> None:
    sde = SDES[name][0]
    affine = AffineSDE(scale=lambda t: sde.marginal(t)[0], std=lambda t: sde.marginal(t)[1])
    t, x = sdes.times(), torch.ones(len(sdes.TIMES), 1, dtype=torch.float64)
    torch.testing.assert_close(affine.diffusion(t), sde.diffusion(t), rtol=1e-9, atol=0)
    torch.testing.assert_close(affine.drift(x, t), sde.drift(x, t), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(affine.log_snr(t), sde.log_snr(t), rtol=1e-9, atol=1e-12)


def test_affine_works_where_gradients_are_off() -> None:
    """Samplers call it so."""
    sde, t = SDES["affine-angle"][0], torch.tensor(0.5)
    with torch.no_grad():
        drift, diffusion = sde.drift(torch.ones(1, 1), t), sde.diffusion(t)
    angle = 1.53 * 0.5
    assert drift.item() == pytest.approx(-1.53 * math.tan(angle), rel=1e-5)
    assert diffusion.item() ** 2 == pytest.approx(2 * 1.53 * math.tan(angle), rel=1e-5)


@pytest.mark.parametrize(
    ("scale", "std"),
    [
        (torch.ones_like, lambda t: 1 - t),
        (lambda t: 0.5 - t, lambda t: t),
        (torch.ones_like, lambda t: -t),
        (torch.ones_like, torch.ones_like),
    ],
    ids=["std falls", "scale crosses zero", "negative std", "nothing happens"],
)
def test_affine_refuses_what_is_no_noising(scale: Callable, std: Callable) -> None:
    with pytest.raises(ValueError, match="AffineSDE needs scale and std positive"):
        AffineSDE(scale=scale, std=std)


def test_cosine_is_the_published_schedule() -> None:
    """ᾱ = f(t')/f(0), f = cos²(½ π (t' + s)/(1 + s)), where t' < 1 ends at the given scale."""
    sde, t = CosineVPSDE(), torch.linspace(0, 1, 11, dtype=torch.float64)

    def f(t: torch.Tensor) -> torch.Tensor:
        return torch.cos(0.5 * math.pi * (t + 0.008) / 1.008).square()

    end = math.acos(0.006571586495 * math.cos(0.5 * math.pi * 0.008 / 1.008)) * 1.008 / (0.5 * math.pi) - 0.008
    assert 0.99 < end < 1
    torch.testing.assert_close(sde.marginal(t)[0].square(), f(end * t) / f(0 * t), rtol=1e-9, atol=1e-15)
    assert sde.marginal(t[-1])[0].item() == pytest.approx(0.006571586495, rel=1e-12)


@pytest.mark.parametrize("keywords", [{"offset": 0.0}, {"scale_min": 0.0}, {"scale_min": 1.0}])
def test_cosine_settings_that_make_no_sense(keywords: dict) -> None:
    with pytest.raises(ValueError, match="CosineVPSDE needs offset > 0 and scale_min within"):
        CosineVPSDE(**keywords)


def test_published_mismatch_of_the_prior() -> None:
    sdes.mismatch_is_published(partial(prior_kl, VPSDE()))


@pytest.mark.parametrize("name", SDES)
def test_mismatch_of_the_prior_is_the_divergence(name: str) -> None:
    """Against torch's closed form for two normals, where its digits reach."""
    sde = SDES[name][0]
    scale, std = (v.item() for v in sde.marginal(torch.ones((), dtype=torch.float64)))
    widths = torch.tensor([math.sqrt(scale**2 * 9.0 + std**2), 1.0 if "vp" in name else std], dtype=torch.float64)
    p_1, prior = (torch.distributions.Normal(m, s) for m, s in zip((scale * 3.0, 0.0), widths, strict=True))
    expected = torch.distributions.kl_divergence(p_1, prior).item()
    assert prior_kl(sde, mean=3.0, variance=9.0) == pytest.approx(expected, rel=1e-4, abs=1e-14)


def test_mismatch_needs_a_variance() -> None:
    with pytest.raises(ValueError, match="positive variance, but it is 0"):
        prior_kl(VPSDE(), variance=0.0)


@pytest.mark.parametrize("name", SDES)
def test_time_keeps_the_digits_of_float64(name: str) -> None:
    """Also where the log-SNR is extreme."""
    t = torch.linspace(0.02, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(SDES[name][0].time(SDES[name][0].log_snr(t)), t, rtol=1e-12, atol=1e-14)
