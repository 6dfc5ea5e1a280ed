"""Masked autoregressive layers and their flows against closed forms, and MAF against IAF."""

from typing import Any

import pytest
import torch
from helpers import normal, perturb, rng, seeded
from torch import Tensor
from torch.distributions import MultivariateNormal

from core import DiagonalNormal
from core.nets.masked import MaskedMLP
from discrete import IAF, MAF, NSF, Flow, Inverse, MaskedAutoregressive

BOUND = 3.0
MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[2.0, 0.6, -0.3], [0.6, 0.5, 0.1], [-0.3, 0.1, 1.5]], dtype=torch.float64)
ORDERS = {"natural": [0, 1, 2], "reversed": [2, 1, 0], "given": [1, 2, 0]}


def linear_layer(matrix: Tensor, shift: Tensor, order: list[int]) -> MaskedAutoregressive:
    """z = matrix x + shift, lower triangular with a positive diagonal in this order, in the weights of one layer."""
    layer = MaskedAutoregressive(3, hidden=(), order=torch.tensor(order), log_scale_bound=BOUND).double()
    (linear,) = layer.conditioner.linears
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[3:] = matrix - torch.diag(matrix.diagonal())
        linear.bias[:3] = BOUND * torch.atanh(matrix.diagonal().log() / BOUND)
        linear.bias[3:] = shift
    return layer


def cholesky(order: list[int]) -> Tensor:
    """L with L Lᵀ the covariance, lower triangular in this order of the features."""
    L = torch.linalg.cholesky(COVARIANCE[order][:, order])
    back = torch.tensor(order).argsort()
    return L[back][:, back]


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_maf_with_cholesky_weights_is_a_multivariate_normal(order: list[int]) -> None:
    whiten = torch.linalg.inv(cholesky(order))
    flow = Flow(linear_layer(whiten, -whiten @ MEAN, order), DiagonalNormal(3).double())
    x = 3 * normal(50, (3,), rng(0))
    torch.testing.assert_close(flow.log_prob(x), MultivariateNormal(MEAN, COVARIANCE).log_prob(x))
    z = normal(50, (3,), rng(1))
    torch.testing.assert_close(flow.decode(z), z @ cholesky(order).T + MEAN)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_iaf_with_cholesky_weights_is_a_multivariate_normal(order: list[int]) -> None:
    flow = Flow(Inverse(linear_layer(cholesky(order), MEAN, order)), DiagonalNormal(3).double())
    x = 3 * normal(50, (3,), rng(0))
    expected = MultivariateNormal(MEAN, COVARIANCE)
    torch.testing.assert_close(flow.log_prob(x), expected.log_prob(x))
    draws, log_prob = flow.rsample_and_log_prob((50,), generator=rng(2))
    torch.testing.assert_close(log_prob, expected.log_prob(draws))


OPTIONS: dict[str, dict[str, Any]] = {
    "affine": {},
    "spline": {"transformer": "spline", "order": "random"},
    "actnorm": {"normalization": "actnorm", "conditioner": "resnet", "context_features": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_maf_and_iaf_on_the_same_weights_undo_each_other(options: dict[str, Any]) -> None:
    keywords = {"layers": 3, "hidden": (16,), "normalization": "none", **options}
    maf = perturb(seeded(lambda: MAF(5, **keywords)), rng(3), std=0.2)
    iaf = seeded(lambda: IAF(5, **keywords), seed=1).double().eval()
    iaf.bijection.bijection.load_state_dict(maf.bijection.state_dict())
    x, context = normal(20, (5,), rng(4)), normal(20, (2,), rng(5)) if "context_features" in options else None
    for first, second in ((maf, iaf), (iaf, maf)):
        z, there = first.bijection(x, context)
        back, again = second.bijection(z, context)
        torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(again, -there, rtol=1e-9, atol=1e-9)
        assert (z - x).abs().max() > 0.1


def test_orders_of_the_layers() -> None:
    def orders(**keywords: Any) -> list[list[int]]:
        flow = seeded(lambda: MAF(5, layers=3, hidden=(8,), normalization="none", **keywords))
        return [layer.conditioner.degrees.tolist() for layer in flow.bijection.bijections]

    up, down = [1, 2, 3, 4, 5], [5, 4, 3, 2, 1]
    assert orders() == [up, down, up]
    assert orders(order="natural") == [up, up, up]
    first, second, third = orders(order="random")
    assert first == up
    assert sorted(second) == sorted(third) == up
    assert second != third


def test_directions_say_what_they_cost() -> None:
    def cost(flow: Flow) -> tuple[tuple[int, int | None], ...]:
        return tuple((d.passes, d.steps) for d in (flow.log_prob_direction, flow.sample_direction))

    assert cost(MAF(6, layers=2)) == ((2, 2), (2, 12))
    assert cost(IAF(6, layers=2)) == ((2, 12), (2, 2))
    assert cost(MAF(6, layers=2, inverse_mode="sequential")) == ((2, 2), (12, 12))


def test_one_feature_has_a_constant_map() -> None:
    layer = perturb(MaskedAutoregressive(1, hidden=(4,)), rng(6))
    x = normal(5, (1,), rng(7))
    z, log_det = layer(x)
    shift = z - x * log_det.exp()[:, None]
    torch.testing.assert_close(shift, shift[:1].expand(5, 1))
    torch.testing.assert_close(log_det, log_det[:1].expand(5))
    assert min(shift[0].abs(), log_det[0].abs()) > 1e-3


@pytest.mark.parametrize("build", [MAF, IAF, NSF, MaskedAutoregressive])
def test_a_width_too_small_for_the_features_is_refused(build: Any) -> None:
    options = {"structure": "autoregressive"} if build is NSF else {}
    with pytest.raises(ValueError, match=r"over 20 features needs a width of 19 or more.*\(18,\)"):
        build(20, hidden=(18,), **options)
    with pytest.raises(ValueError, match="needs a width of 20 or more"):
        build(20, hidden=(19,), context_features=1, **options)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="layers=0"):
        MAF(4, layers=0)
    with pytest.raises(ValueError, match=r"'autoregressive' over an event of shape \(1, 4, 4\)"):
        NSF((1, 4, 4), structure="autoregressive")
    with pytest.raises(ValueError, match="given a factory"):
        NSF(4, structure="autoregressive", conditioner=lambda i, o: torch.nn.Linear(i, o))
    with pytest.raises(ValueError, match=r"each of 0\.\.2 once, but is \[0, 1, 1\]"):
        MaskedAutoregressive(3, order=torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match=r"each of 0\.\.2 once"):
        MaskedAutoregressive(3, order=torch.tensor([0.4, 2.2, 1.9]))
    with pytest.raises(ValueError, match=r"equal widths.*\(8, 9\)"):
        MaskedAutoregressive(3, conditioner="resnet", hidden=(8, 9))


def test_random_orders_are_drawn_behind_the_first_layer() -> None:
    flow = seeded(lambda: MAF(16, layers=3, hidden=(16,), order="random", normalization="none"))
    first, *others = (m.degrees.argsort().tolist() for m in flow.modules() if isinstance(m, MaskedMLP))
    assert first == [*range(16)]
    assert len(others) == 2
    assert all(sorted(order) == first != order for order in others)
