"""Each toy against its density, written independently of the sampler: closed form, or quadrature along its curves."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from experiment.data import TOY_ENTROPY_NATS, sample_toy, toy
from experiment.errors import UserError

PI = math.pi


def draws(name: str, rows: int, seed: int = 0) -> Tensor:
    return sample_toy(name, rows, torch.Generator().manual_seed(seed)).double()


def nodes(count: int) -> Tensor:
    """Midpoints of `count` equal parts of [0, 1]."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def ring(radius: float, count: int) -> Tensor:
    angle = 2 * PI * nodes(count)
    return radius * torch.stack([angle.cos(), angle.sin()], dim=-1)


def blurred(x: Tensor, curve: Tensor, std: float) -> Tensor:
    """log p of a point drawn evenly from `curve` (points, 2) plus Gaussian noise."""
    square = torch.cdist(x, curve, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.logsumexp(-square / (2 * std**2), dim=1) - math.log(len(curve) * 2 * PI * std**2)


def eight_gaussians(x: Tensor) -> Tensor:
    diagonal = math.sqrt(8)
    centres = [(4, 0), (0, 4), (-4, 0), (0, -4)]
    centres += [(sign * diagonal, other * diagonal) for sign in (-1, 1) for other in (-1, 1)]
    return blurred(x, torch.tensor(centres, dtype=torch.float64) / 1.414, 0.5 / 1.414)


def checkerboard(x: Tensor) -> Tensor:
    dark = ((x / 2).floor().sum(1) % 2 == 0) & (x.abs() <= 4).all(1)
    return torch.where(dark, -math.log(32), -math.inf)


def moons(x: Tensor) -> Tensor:
    angle = PI * nodes(300)
    upper = torch.stack([2 * angle.cos() - 1, 2 * angle.sin() - 0.2], dim=-1)
    lower = torch.stack([1 - 2 * angle.cos(), 0.8 - 2 * angle.sin()], dim=-1)
    return blurred(x, torch.cat([upper, lower]), 0.2)


def swissroll(x: Tensor) -> Tensor:
    angle = PI * (1.5 + 3 * nodes(600))
    return blurred(x, torch.stack([angle * angle.cos(), angle * angle.sin()], dim=-1) / 5, 0.2)


def circles(x: Tensor) -> Tensor:
    return blurred(x, torch.cat([ring(3, 300), ring(1.5, 300)]), 0.24)


def rings(x: Tensor) -> Tensor:
    return blurred(x, torch.cat([ring(radius, 400) for radius in (0.75, 1.5, 2.25, 3)]), 0.08)


def two_spirals(x: Tensor) -> Tensor:
    """The noise around the curve is a uniform square of side 1/6 plus a Gaussian, in each coordinate by itself."""
    angle = 3 * PI * nodes(500).sqrt()
    arm = torch.stack([-angle * angle.cos(), angle * angle.sin()], dim=-1) / 3

    def one_arm(x: Tensor) -> Tensor:
        offset = x.unsqueeze(1) - arm
        cdf = torch.special.ndtr
        return (6 * (cdf(offset / 0.1) - cdf((offset - 1 / 6) / 0.1))).prod(2).mean(1)

    return (0.5 * one_arm(x) + 0.5 * one_arm(-x)).log()


def unwind(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Radial and tangential feature and arm of each pinwheel point, by a contracting fixed-point iteration."""
    z = torch.view_as_complex(x.contiguous()) / 2
    r = z.abs()
    for _ in range(30):
        straight = z * torch.exp(0.25j * r.exp())
        arm = (-straight.angle() / (2 * PI / 5)).round()
        blade = straight * torch.exp(2j * PI / 5 * arm)
        r = blade.real
    return blade.real, blade.imag, arm % 5


def pinwheel(x: Tensor) -> Tensor:
    """N(r; 1, 0.3²) N(t; 0, 0.1²) / 5 over the Jacobian 4 (1 + t exp(r)/4), where arms do not overlap (0.003 nats)."""
    r, t, _ = unwind(x)
    log_normal = -0.5 * ((r - 1) / 0.3).square() - 0.5 * (t / 0.1).square() - math.log(2 * PI * 0.03)
    return log_normal - (5 * 4 * (1 + t * r.exp() / 4)).abs().log()


LOG_DENSITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "8gaussians": eight_gaussians,
    "checkerboard": checkerboard,
    "moons": moons,
    "pinwheel": pinwheel,
    "2spirals": two_spirals,
    "swissroll": swissroll,
    "circles": circles,
    "rings": rings,
}


@pytest.mark.parametrize("name", sorted(LOG_DENSITIES.keys() - {"checkerboard", "pinwheel"}))
def test_the_density_integrates_to_one_and_its_entropy_is_tabulated(name: str) -> None:
    axis = 11 * nodes(120) - 5.5
    log_p = torch.cat([LOG_DENSITIES[name](part) for part in torch.cartesian_prod(axis, axis).split(2_000)])
    cell, p = (11 / 120) ** 2, log_p.exp()
    assert (p.sum() * cell).item() == pytest.approx(1, abs=1e-4)
    assert -(torch.xlogy(p, p).sum() * cell).item() == pytest.approx(TOY_ENTROPY_NATS[name], abs=2e-4)


@pytest.mark.parametrize("name", TOY_ENTROPY_NATS)
def test_draws_follow_the_density(name: str) -> None:
    """E[-log p] under the sampler equals the entropy; any other sampler moves it."""
    rows = 200_000 if name in {"8gaussians", "checkerboard", "pinwheel"} else 20_000
    loss = -torch.cat([LOG_DENSITIES[name](part) for part in draws(name, rows).split(5_000)])
    assert loss.mean().item() == pytest.approx(TOY_ENTROPY_NATS[name], abs=0.02)


def test_the_checkerboard_fills_its_eight_squares_evenly() -> None:
    x = draws("checkerboard", 80_000)
    squares, counts = (x / 2).floor().unique(dim=0, return_counts=True)
    assert len(squares) == 8
    assert (counts - 10_000).abs().max() < 400, "four standard deviations of a count"
    within = x / 2 - (x / 2).floor()
    assert torch.allclose(within.mean(0), torch.full((2,), 0.5, dtype=torch.float64), atol=0.005)
    assert torch.allclose(within.var(0), torch.full((2,), 1 / 12, dtype=torch.float64), atol=0.001)


def test_the_pinwheel_unwinds_to_its_features() -> None:
    r, t, arm = unwind(draws("pinwheel", 50_000))
    assert (r.mean().item(), r.std().item()) == (pytest.approx(1, abs=0.006), pytest.approx(0.3, abs=0.004))
    assert (t.mean().item(), t.std().item()) == (pytest.approx(0, abs=0.002), pytest.approx(0.1, abs=0.0014))
    assert (arm.unique(return_counts=True)[1] - 10_000).abs().max() < 400


@pytest.mark.parametrize(
    ("name", "mean", "square"),
    [
        ("8gaussians", (0, 0), (16 + 2 * 0.5**2) / 1.414**2),
        ("checkerboard", (0, 0), 2 * 16 / 3),
        ("moons", (0, 0.3), 2 * (3.25 - 2 / PI) - 2.2 + 1.04 + 8 * 0.1**2),
        ("pinwheel", (0, 0), 4 * (1 + 0.3**2 + 0.1**2)),
        ("2spirals", (0, 0), PI**2 / 2 + (1 / 6 + 1 + 2 / (3 * PI) - 4 / (9 * PI**2)) / 9 + 2 * 0.1**2),
        ("swissroll", (0.4, 2 / (15 * PI)), (9.75 * PI**2 + 2) / 25),
        ("circles", (0, 0), 9 * (1 + 0.25) / 2 + 2 * 0.24**2),
        ("rings", (0, 0), 9 * (1 + 0.5625 + 0.25 + 0.0625) / 4 + 2 * 0.08**2),
    ],
)
def test_moments_are_those_of_the_definition(name: str, mean: tuple[float, float], square: float) -> None:
    x = draws(name, 400_000)
    assert x.mean(0).tolist() == pytest.approx(mean, abs=0.02)
    assert x.square().sum(1).mean().item() == pytest.approx(square, rel=0.003)


def test_a_toy_has_three_splits_of_its_own() -> None:
    data = toy("moons", train_rows=300, validation_rows=200, test_rows=100)
    assert (data.train.shape, data.validation.shape, data.test.shape) == ((300, 2), (200, 2), (100, 2))
    assert (data.name, data.bins, data.train.dtype) == ("moons", None, torch.float32)
    assert data.entropy_nats == TOY_ENTROPY_NATS["moons"]
    again, other = (toy("moons", train_rows=300, validation_rows=20, test_rows=100, seed=seed) for seed in (0, 1))
    assert again.fingerprint == data.fingerprint != other.fingerprint
    assert torch.equal(again.train, data.train)
    equal = toy("moons", train_rows=200, validation_rows=200, test_rows=200)
    assert len(torch.cat([equal.train, equal.validation, equal.test])[:, 0].unique()) == 600, "no shared random numbers"


def test_sampling_follows_the_generator_alone() -> None:
    for name in TOY_ENTROPY_NATS:
        before = torch.get_rng_state()
        x = sample_toy(name, 50, torch.Generator().manual_seed(1))
        assert (x.shape, x.dtype) == ((50, 2), torch.float32)
        assert torch.equal(x, sample_toy(name, 50, torch.Generator().manual_seed(1)))
        assert not torch.equal(x, sample_toy(name, 50, torch.Generator().manual_seed(2)))
        assert torch.equal(before, torch.get_rng_state()), "the global generator is not touched"


def test_an_unknown_toy_is_refused_with_a_hint() -> None:
    with pytest.raises(UserError, match=r"^toy: there is no '8gausians'; did you mean '8gaussians'\?$"):
        toy("8gausians")
    with pytest.raises(UserError, match=r"^toy: there is no 'spam'; known: 2spirals, 8gaussians, .*swissroll\.$"):
        sample_toy("spam", 5, torch.Generator())
