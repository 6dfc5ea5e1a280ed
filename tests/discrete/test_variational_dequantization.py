import math
from collections.abc import Callable

import pytest
import torch
from cases import SURJECTIONS
from helpers import Tooth, perturb, rng, seeded
from torch import Tensor
from torch.nn import functional as F
from wrong import Change, Tampered

from core import StandardUniform, bits_per_dim
from discrete import Bijection, Dequantization, Flow, VariationalDequantization

BINS = 5


def noisy(seed: int = 1, **keywords: object) -> VariationalDequantization:
    return perturb(seeded(lambda: VariationalDequantization(3, bins=BINS, hidden=(8,), **keywords)), rng(seed), std=0.2)


def weights_average_to_the_mass(layer: Bijection, *, draws: int = 10_000) -> None:
    """E_q[p(z)/q(u | k)]/K^D = P(k) for any q: here p(z) = 2/3 (z₁ + z₂ + z₃), whose cells have their centre's mass."""
    k = torch.tensor([[0, 3, 1], [4, 4, 2]])
    rows = k.repeat_interleave(draws, 0)
    z, log_det = layer(rows, generator=rng(5))
    w = (2 / 3 * z.sum(1) * log_det.exp()).detach().reshape(len(k), draws)
    mass = 2 / 3 * ((k + 0.5) / BINS).sum(1).double() / BINS**3
    error = w.std(1) / math.sqrt(draws)
    assert ((w.mean(1) - mass).abs() <= 5 * error).all(), (
        f"weights average to {w.mean(1).tolist()}, not {mass.tolist()}"
    )
    assert (error < 0.04 * mass).all(), "the draws are too few to tell"


def test_weights_average_to_the_mass() -> None:
    weights_average_to_the_mass(noisy())


def _without_sigmoid(k: Tensor, z: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    """The density of v where that of u = sigmoid(v) belongs."""
    u = z * BINS - k
    v = u.log() - (-u).log1p()
    return z, log_det + (F.softplus(v) + F.softplus(-v)).sum(1)


BREAKS: dict[str, Change] = {
    "without the cell's volume": lambda k, z, log_det: (z, log_det + 3 * math.log(BINS)),
    "log q of the wrong sign": lambda k, z, log_det: (z, -log_det - 6 * math.log(BINS)),
    "without the sigmoid's derivative": _without_sigmoid,
    "log q forgotten": lambda k, z, log_det: (z, torch.zeros_like(log_det) - 3 * math.log(BINS)),
}


@pytest.mark.parametrize("name", BREAKS)
def test_tooth(name: str) -> None:
    Tooth(weights_average_to_the_mass, noisy, lambda: Tampered(noisy(), forward=BREAKS[name])).bites()


def test_fresh_layer_is_uniform() -> None:
    """Zero-initialised couplings leave logistic noise, whose sigmoid is uniform: -D log K, whatever the draw."""
    layer = VariationalDequantization((1, 4, 4), bins=256).double()
    k = torch.randint(256, (50, 1, 4, 4), generator=rng(2))
    z, log_det = layer(k, generator=rng(3))
    torch.testing.assert_close(log_det, torch.full_like(log_det, -16 * math.log(256)), rtol=1e-12, atol=0)
    u = (z * 256 - k).flatten()
    assert abs(u.mean().item() - 0.5) < 5 / math.sqrt(12 * len(u))
    found = bits_per_dim(Flow(layer, StandardUniform((1, 4, 4)).double()).log_prob(k, generator=rng(3)), (1, 4, 4))
    torch.testing.assert_close(found, torch.full_like(found, 8.0))


@pytest.mark.parametrize("name", [name for name in SURJECTIONS if name.startswith("variational")])
def test_noise_stays_within_its_cell_and_takes_gradient(name: str) -> None:
    layer = perturb(seeded(SURJECTIONS[name]), rng(4), std=0.5)
    k = torch.randint(5, (100, *layer.event_shape), generator=rng(6))
    z, log_det = layer(k, generator=rng(7))
    assert torch.equal(layer.inverse(z)[0], k.double())
    assert log_det.std() > 0
    gradients = torch.autograd.grad(z.square().sum() + log_det.sum(), list(layer.parameters()))
    assert all(g.isfinite().all() and g.count_nonzero() for g in gradients)


def test_context_steers_the_noise() -> None:
    layer = noisy(context_features=2)
    k = torch.ones(4, 3)
    z, _ = layer(k, torch.zeros(4, 2, dtype=torch.float64), generator=rng(8))
    other, _ = layer(k, torch.ones(4, 2, dtype=torch.float64), generator=rng(8))
    assert ((z - other).abs().amax(1) > 1e-9).all()


def gap(layer: Bijection, log_p: Callable[[Tensor], Tensor]) -> Tensor:
    """log P(k) minus the bound, for P(0) = P(1) = ½."""
    k = torch.arange(2.0)[:, None].repeat(500, 1)
    z, log_det = layer(k, generator=rng(9))
    return math.log(0.5) - (log_p(z[:, 0]) + log_det).mean()


def test_training_closes_the_gap_of_the_bound() -> None:
    """p(z) = 12 (z - ½)²: uniform noise pays E log 12 (u/2)² = log 3 - 2 nats, so its gap is 2 - log 3 = 0.901 nats."""

    def log_p(z: Tensor) -> Tensor:
        return math.log(12) + 2 * (z - 0.5).abs().log()

    uniform = gap(Dequantization(1, bins=2), log_p).item()
    layer = seeded(lambda: VariationalDequantization(1, bins=2, layers=2, hidden=(16,)))
    optimizer = torch.optim.Adam(layer.parameters(), lr=2e-2)
    for _ in range(100):
        loss = gap(layer, log_p)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = gap(layer, log_p).item()
    assert uniform == pytest.approx(2 - math.log(3), abs=0.1)
    assert 0 < trained < 0.4 * uniform


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(ValueError, match="layers=0"):
        VariationalDequantization(3, bins=5, layers=0)
    with pytest.raises(ValueError, match="bins must be 2"):
        VariationalDequantization(3, bins=1)
