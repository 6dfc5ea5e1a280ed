import math

import pytest
import torch
from cases import SURJECTIONS
from helpers import normal, rng, unit
from torch import Tensor

from core import DensityModel, StandardLogistic, StandardUniform, bits_per_dim
from discrete import Compose, Dequantization, Flow, Inverse, Logit, RealNVP
from discrete.bijections.preprocessing import Scaling


def integers(rows: int, event_shape: tuple[int, ...], bins: int, seed: int = 0) -> Tensor:
    return torch.randint(bins, (rows, *event_shape), generator=rng(seed))


def logit_flow(alpha: float, base: DensityModel) -> Flow:
    return Flow(Compose(Dequantization(base.event_shape, bins=256), Logit(base.event_shape, alpha=alpha)), base)


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.05, 0.2])
def test_logistic_base_costs_exactly_8_minus_log2(alpha: float) -> None:
    """Whatever the integers and the draws: 8 - log2(1 - 2α) bits/dim, 8.15200309 at α = 0.05."""
    flow = logit_flow(alpha, StandardLogistic((1, 4, 4))).double()
    found = bits_per_dim(flow.log_prob(integers(20, (1, 4, 4), 256), generator=rng(1)), flow.event_shape)
    assert found.tolist() == pytest.approx([8 - math.log2(1 - 2 * alpha)] * 20, abs=1e-10)
    assert alpha != 0.05 or found[0].item() == pytest.approx(8.15200309, abs=1e-8)


def test_uniform_base_costs_exactly_8() -> None:
    flow = Flow(Dequantization(6, bins=256), StandardUniform(6)).double()
    found = bits_per_dim(flow.log_prob(integers(50, (6,), 256), generator=rng(2)), 6)
    assert found.tolist() == pytest.approx([8.0] * 50, abs=1e-12)


def test_a_range_of_minus_one_to_one_costs_log2_128() -> None:
    """Values in [-1, 1): half the density of [0, 1), so 7 bits/dim are left of a density of 1 there."""
    steps = Compose(Dequantization(6, bins=256), Scaling(6, loc=0.5, scale=0.5))
    _, log_det = steps.double()(integers(3, (6,), 256), generator=rng(3))
    torch.testing.assert_close(bits_per_dim(log_det, 6), torch.full((3,), 7.0, dtype=torch.float64))


def test_both_routes_to_bits_per_dim_agree() -> None:
    """Dequantization inside the flow, or dequantized by hand and `bins` named."""
    k = integers(10, (2,), 256)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = Flow(Logit(2), RealNVP(2, layers=2, hidden=(8,))).double().eval()
    whole = Flow(Dequantization(2, bins=256), inner).double()
    u = torch.rand(k.shape, generator=rng(4), dtype=torch.float64)
    by_hand = bits_per_dim(inner.log_prob((k + u) / 256), 2, bins=256)
    torch.testing.assert_close(bits_per_dim(whole.log_prob(k, generator=rng(4)), 2), by_hand, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("name", SURJECTIONS)
def test_inverse_of_forward_is_exact(name: str, dtype: torch.dtype) -> None:
    layer = SURJECTIONS[name]()
    k = integers(200, layer.event_shape, int(layer.levels.item())).to(dtype)
    z, log_det = layer(k, generator=rng(5))
    back, opposite = layer.inverse(z)
    assert ((z >= 0) & (z < 1)).all()
    assert torch.equal(back, k.to(back.dtype))
    if isinstance(layer, Dequantization):
        torch.testing.assert_close(log_det + opposite, torch.zeros(200), rtol=0, atol=0)
    assert log_det[0].item() == pytest.approx(-math.prod(layer.event_shape) * math.log(layer.levels.item()), rel=1e-6)


@pytest.mark.parametrize("bins", [3, 100, 256, 65536])
@pytest.mark.parametrize("extreme", [0.0, 2.0**-24, 1 - 2.0**-24])
def test_rounding_keeps_every_level(bins: int, extreme: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 at the generator's extreme draws: neither k + u nor K z may round into a neighbouring level."""
    monkeypatch.setattr(torch, "rand", lambda shape, **keywords: torch.full(shape, extreme))
    layer, k = Dequantization(1, bins=bins), torch.arange(bins)[:, None]
    z, _ = layer(k)
    assert (z < 1).all()
    assert torch.equal(layer.inverse(z)[0].long(), k)


def test_dequantization_fills_the_cells_evenly() -> None:
    z, _ = Dequantization(1, bins=4).double()(torch.full((40_000, 1), 2), generator=rng(6))
    u = 4 * z - 2
    assert ((u >= 0) & (u < 1)).all()
    assert abs(u.mean().item() - 0.5) < 5 / math.sqrt(12 * 40_000)
    assert abs(u.var().item() - 1 / 12) < 0.002


def test_dequantization_is_decided_by_its_generator() -> None:
    layer, k = Dequantization(3, bins=8), integers(5, (3,), 8)
    assert torch.equal(layer(k, generator=rng(7))[0], layer(k, generator=rng(7))[0])
    assert not torch.equal(layer(k, generator=rng(7))[0], layer(k, generator=rng(8))[0])


def test_values_outside_the_cells_go_to_the_nearest_level() -> None:
    z = torch.tensor([[-0.3], [0.0], [0.999], [1.0], [7.0]])
    assert Dequantization(1, bins=4).inverse(z)[0].flatten().tolist() == [0.0, 0.0, 3.0, 3.0, 3.0]


def test_a_surjection_has_no_inverse() -> None:
    layer = Dequantization(2, bins=4)
    for wrong in (layer, Compose(layer, Logit(2))):
        with pytest.raises(ValueError, match="is a surjection"):
            Inverse(wrong)


def test_a_dequantized_figure_says_that_it_is_a_bound() -> None:
    flow = logit_flow(0.05, StandardLogistic(2)).double()
    assert flow.log_prob_direction.kind == "bound"
    assert flow.estimate_log_prob(integers(3, (2,), 256), generator=rng(9)).kind == "bound"
    assert Flow(Logit(2), StandardLogistic(2)).estimate_log_prob(torch.full((1, 2), 0.5)).kind == "exact"


def test_samples_of_an_integer_flow_are_levels() -> None:
    x = logit_flow(0.05, StandardLogistic(2)).sample((500,), generator=rng(10))
    assert torch.equal(x, x.round())
    assert (x.min().item(), x.max().item()) == (0.0, 255.0)


def test_bound_stays_below_the_log_probability() -> None:
    """E_u log p(z) - D log K < log P(k), the flow's own mass of the cell, while E_u p(z) K^-D is that mass."""
    alpha, bins, width = 0.05, 4, 0.3
    steps = Compose(Dequantization(1, bins=bins), Logit(1, alpha=alpha), Scaling(1, scale=width))
    flow, k = Flow(steps, StandardLogistic(1)).double(), torch.arange(bins)[:, None]
    edges = torch.stack([k, k + 1]).double()[..., 0] / bins
    cdf = torch.sigmoid(torch.logit(alpha + (1 - 2 * alpha) * edges) / width)
    mass = cdf[1] - cdf[0]
    draws = flow.log_prob(k.expand(20_000, bins, 1), generator=rng(10))
    assert (draws.mean(0) < mass.log() - 0.05).all()
    torch.testing.assert_close(draws.exp().mean(0), mass, rtol=0.05, atol=0)


def test_logit_has_no_density_outside_its_range() -> None:
    """Beyond where α lets the line reach, the density is zero: log-density -inf, never NaN."""
    flow = Flow(Logit(2), StandardLogistic(2)).double()
    x = torch.tensor([[0.5, 1.2], [-0.2, 0.5], [1e6, -1e6], [0.5, 0.5]], dtype=torch.float64)
    log_prob = flow.log_prob(x)
    assert log_prob[:3].tolist() == [-math.inf] * 3
    assert log_prob[3].isfinite()


def test_logit_inverse_covers_more_than_the_unit_interval_by_alpha() -> None:
    ends = torch.tensor([[-800.0], [800.0]], dtype=torch.float64)
    x, log_det = Logit(1, alpha=0.05).double().inverse(ends)
    assert x.flatten().tolist() == pytest.approx([-0.05 / 0.9, 0.95 / 0.9])
    assert log_det.isfinite().all()


@pytest.mark.parametrize("alpha", [-0.1, 0.5, 0.7])
def test_alpha_must_leave_room(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha within"):
        Logit(2, alpha=alpha)


def test_scaling_is_standardization() -> None:
    x = 4 * normal(2000, (3,), rng(11)) + 9
    z, _ = Scaling(3, loc=x.mean(0), scale=x.std(0))(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.std(0), torch.ones(3, dtype=torch.float64))


def test_logit_is_the_inverse_of_a_shrunk_sigmoid() -> None:
    x = unit(50, (2,), rng(12))
    z, _ = Logit(2, alpha=0.1)(x)
    torch.testing.assert_close(torch.sigmoid(z), 0.1 + 0.8 * x, rtol=1e-12, atol=1e-12)
