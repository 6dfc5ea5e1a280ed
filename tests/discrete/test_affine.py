"""The affine elementwise map with each of its scales."""

import copy
import pickle
from functools import partial

import pytest
import torch
from contracts import transformers
from helpers import Tooth, normal, rng
from torch import Tensor

from discrete import AffineCoupling
from discrete.bijections.transformers import AffineTransformer, Transformer

SCALES = pytest.mark.parametrize("scale", ["tanh", "sigmoid", "gated"])
X, THETA = 3 * normal(100, (4,), rng(0)), normal(100, (4, 2), rng(1))


@SCALES
@pytest.mark.parametrize("std", [1.0, 5.0])
def test_keeps_the_contracts_of_a_transformer(scale: str, std: float) -> None:
    affine = AffineTransformer(scale=scale)
    transformers.forward_log_derivative_is_that_of_autograd(affine, X, std * THETA)
    transformers.inverse_log_derivative_is_that_of_autograd(affine, X, std * THETA)
    transformers.round_trips(affine, X, std * THETA)
    transformers.gradients_are_finite(affine, X, std * THETA)


@SCALES
@pytest.mark.parametrize("a", [-1e4, -50.0, 50.0, 1e4])
def test_a_saturated_scale_has_finite_gradients_forward(scale: str, a: float) -> None:
    theta = torch.tensor([[[a, 1.5]]], requires_grad=True)
    z, log_derivative = AffineTransformer(scale=scale).forward(torch.ones(1, 1), theta)
    (gradient,) = torch.autograd.grad((z + log_derivative).sum(), theta)
    assert z.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", ["sigmoid", "gated"])
def test_the_inverse_of_a_contraction_is_finite_far_out(scale: str) -> None:
    """Where σ itself would be 0 in float32, at rows of 1e6; where z = t no NaN."""
    theta = torch.tensor([[[-1e4, 1.5]]]).expand(3, 1, 2)
    z = torch.tensor([[1e6], [-1e6], [1.5]])
    x, log_derivative = AffineTransformer(scale=scale).inverse(z, theta)
    assert x.isfinite().all()
    assert torch.equal(log_derivative, torch.full((3, 1), 60.0))


def gated_is_that_of_the_paper(affine: Transformer) -> None:
    """z = σ x + (1 - σ) m with σ = sigmoid(a + 2), log dz/dx = log σ."""
    a, m = THETA.unbind(-1)
    z, log_derivative = affine.forward(X, THETA)
    sigma = 1 / (1 + torch.exp(-(a + 2)))
    torch.testing.assert_close(z, sigma * X + (1 - sigma) * m, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(log_derivative, sigma.log(), rtol=1e-13, atol=1e-13)


def test_gated_is_that_of_the_paper() -> None:
    gated_is_that_of_the_paper(AffineTransformer(scale="gated"))


def test_gated_lies_between_the_old_value_and_the_new() -> None:
    z, _ = AffineTransformer(scale="gated").forward(X, 20 * THETA)
    m = 20 * THETA[..., 1]
    rounding = 1e-14 * (X.abs() + m.abs())
    assert (z >= torch.minimum(X, m) - rounding).all()
    assert (z <= torch.maximum(X, m) + rounding).all()


def test_gated_keeps_its_digits_where_the_gate_is_open() -> None:
    """1 - σ is a sigmoid of its own: at a = 40 it is 6e-19 and not the 0 that 1 - σ rounds to."""
    z, _ = AffineTransformer(scale="gated").forward(torch.zeros(1, 1), torch.tensor([[[40.0, 1.0]]]))
    assert z.item() == pytest.approx(5.749522264293559e-19, rel=1e-6)


@SCALES
def test_the_bound_matters_to_tanh_alone(scale: str) -> None:
    narrow, wide = (AffineTransformer(scale=scale, log_scale_bound=b).forward(X, THETA)[0] for b in (0.5, 3.0))
    assert torch.equal(narrow, wide) == (scale != "tanh")


@SCALES
def test_copies_agree_and_meta_runs(scale: str) -> None:
    affine = AffineTransformer(scale=scale)
    for copied in (copy.deepcopy(affine), pickle.loads(pickle.dumps(affine))):
        assert torch.equal(copied.forward(X, THETA)[0], affine.forward(X, THETA)[0])
    for part in affine.inverse(X.to("meta"), THETA.to("meta")):
        assert (part.shape, part.device.type) == (X.shape, "meta")


def test_a_coupling_takes_the_gated_scale() -> None:
    """z = 0.88 x and log-derivative log 0.88 where the network says nothing."""
    z, log_det = AffineCoupling(2, scale="gated", hidden=()).double()(X[:, :2])
    sigma = torch.sigmoid(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(z, torch.stack([X[:, 0], sigma * X[:, 1]], 1))
    torch.testing.assert_close(log_det, sigma.log().expand(100))


def test_impossible_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="log_scale_bound must be positive"):
        AffineTransformer(log_scale_bound=0.0)


class OneForOneMinus(AffineTransformer):
    """z = σ x + m."""

    def _unpack(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return super()._unpack(theta)[0], theta[..., 1]


class SwappedGate(AffineTransformer):
    """1 - σ where σ belongs, and the reverse."""

    def _unpack(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        a, m = theta.unbind(-1)
        return super()._unpack(torch.stack([-a - 4, m], -1))


class WithoutBias(AffineTransformer):
    """σ = sigmoid(a)."""

    def _unpack(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        a, m = theta.unbind(-1)
        return super()._unpack(torch.stack([a - 2, m], -1))


@pytest.mark.parametrize("wrong", [OneForOneMinus, SwappedGate, WithoutBias])
def test_teeth_of_the_gate(wrong: type[AffineTransformer]) -> None:
    Tooth(gated_is_that_of_the_paper, partial(AffineTransformer, scale="gated"), partial(wrong, scale="gated")).bites()
