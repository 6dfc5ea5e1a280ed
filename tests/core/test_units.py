import math

import pytest
import torch
from helpers import normal, rng

from core import DiagonalNormal, LikelihoodEstimate, StandardNormal, bits_per_dim
from core.density import weakest
from core.shapes import fold_batch, fold_context
from core.units import dequantization_nats


@pytest.mark.parametrize("bins", [2, 5, 256, 65536])
def test_a_uniform_density_costs_log2_of_the_bins(bins: int) -> None:
    log_prob = torch.zeros(3, dtype=torch.float64)
    assert bits_per_dim(log_prob, (3, 8, 8), bins=bins).tolist() == pytest.approx([math.log2(bins)] * 3, abs=1e-12)


def test_both_routes_agree() -> None:
    """Density on [0, 1)^D with bins named, or log-probability of the integers themselves with none."""
    log_prob = normal(4, (), rng(0)) * 50
    own = log_prob - dequantization_nats((1, 2, 2), bins=256)
    torch.testing.assert_close(bits_per_dim(own, (1, 2, 2)), bits_per_dim(log_prob, (1, 2, 2), bins=256))


def test_bits_per_dim_is_entropy_in_bits() -> None:
    """A normal of standard deviation σ costs log2 σ + ½ log2 2πe per dimension on average."""
    base = DiagonalNormal(4, scale=3.0, learnable=False).double()
    x = base.sample((40_000,), generator=rng(1))
    expected = math.log2(3) + 0.5 * math.log2(2 * math.pi * math.e)
    assert bits_per_dim(base.log_prob(x), 4).mean().item() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("bins", [1, 0, -3])
def test_bins_must_be_two_or_more(bins: int) -> None:
    with pytest.raises(ValueError, match="2 or more levels"):
        bits_per_dim(torch.zeros(1), 2, bins=bins)


def test_an_estimate_is_shifted_and_reshaped_whole() -> None:
    value = torch.arange(6.0)
    estimate = LikelihoodEstimate(value, value + 1, value + 2, None, "estimate", value.long())
    shifted = estimate.shifted(10 * value, kind="bound").reshape((2, 3))
    assert shifted.kind == "bound"
    assert shifted.truncation is None
    torch.testing.assert_close(shifted.log_prob, (11 * value).reshape(2, 3))
    torch.testing.assert_close(shifted.std_error, (value + 1).reshape(2, 3))
    torch.testing.assert_close(shifted.solver_error, (value + 2).reshape(2, 3))
    assert shifted.nfe.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_weakest_kind_wins() -> None:
    assert weakest("exact", "estimate") == "estimate"
    assert weakest("bound", "estimate", "exact") == "bound"
    assert weakest("exact", "exact") == "exact"


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"mine takes events of shape \(3,\), but x has shape \(4, 2\)"):
        fold_batch(torch.zeros(4, 2), torch.Size((3,)), owner="mine")
    with pytest.raises(ValueError, match=r"\(5, 2\) does not broadcast to the batch \(4,\)"):
        fold_context(torch.zeros(5, 2), torch.Size((4,)))
    with pytest.raises(ValueError, match="at least one size"):
        StandardNormal(())
    with pytest.raises(ValueError, match="each 1 or more"):
        StandardNormal((3, 0))
