"""Layers beside those of nflows, normflows and FrEIA with the same weights: values and log-determinants, both ways.

A peer is run as a black box, in float64; without it its tests are skipped. All go from data to noise but those of
normflows, which go from noise to data.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import Tooth, normal, perturb, rng
from peers import ROWS, Mapping, agree, made, quiet
from torch import Tensor, nn
from torch.nn import functional as F
from wrong import Tampered

from benchmarks import glow_speed
from core.nets import MLP, ConvNet
from discrete import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Bijection,
    Invertible1x1Conv,
    LULinear,
    QRLinear,
    SplineCoupling,
)
from discrete.bijections.matrices import DenseMatrix, LUMatrix, Matrix
from discrete.bijections.partition import coupling_mask

CONTEXT, BOUND, BINS = 2, 3.0, 8
EVENTS = pytest.mark.parametrize("event_shape", [(5,), (4, 2, 3)])
MASKS = pytest.mark.parametrize("mask", ["half", "half_flipped", "alternating"])
IMAGE = (2, 8, 12)
FAULTS = {
    "log-determinant doubled": lambda x, y, log_det: (y, 2 * log_det),
    "values off by 1e-8": lambda x, y, log_det: (y + 1e-8, log_det),
}


@pytest.fixture
def nflows() -> Any:
    return pytest.importorskip("nflows.transforms")


@pytest.fixture
def normflows() -> Any:
    return pytest.importorskip("normflows")


@pytest.fixture
def freia() -> Any:
    return pytest.importorskip("FrEIA.modules")


@torch.no_grad()
def fill(module: nn.Module, **values: Tensor) -> nn.Module:
    """Puts values into parameters and buffers, in their shapes."""
    state = module.state_dict()
    for name, value in values.items():
        state[name].copy_(value.reshape(state[name].shape))
    return module


# Couplings: one network of the test's own serves both sides; what it gives is rearranged for ours.


class Rearranged(nn.Module):
    """A network of (x_b, context), its output changed by a function."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.change(self.network(x, context))


def network(event_shape: tuple[int, ...], channels_in: int, channels_out: int, *, context: int = CONTEXT) -> nn.Module:
    kind = MLP if len(event_shape) == 1 else ConvNet
    net = kind(channels_in, channels_out, hidden=(8,), context_features=context, activation="tanh")
    return perturb(net, rng(11))


def interleaved(a: Tensor, t: Tensor) -> Tensor:
    return torch.stack([a, t], 2).flatten(1, 2)


def unbounded(s: Tensor) -> Tensor:
    """a of s = B tanh(a/B)."""
    assert s.abs().max() < BOUND
    return BOUND * torch.atanh(s / BOUND)


def of_nflows_affine(out: Tensor) -> Tensor:
    """(shift, u) with s = log(sigmoid(u + 2) + 0.001)."""
    shift, u = out.chunk(2, 1)
    return interleaved(unbounded(torch.log(torch.sigmoid(u + 2) + 1e-3)), shift)


def of_freia(out: Tensor) -> Tensor:
    """(u, t) with s = 2 · 0.636 arctan u."""
    u, t = out.chunk(2, 1)
    return interleaved(unbounded(2 * 0.636 * torch.atan(u)), t)


def of_nflows_spline(out: Tensor) -> Tensor:
    """Their derivatives are softplus(u) + 0.001, ours softplus(u + c) + 0.001 with 1 at u = 0."""
    theta = out.unflatten(1, (-1, 3 * BINS - 1))
    u = theta[:, :, 2 * BINS :] - torch.tensor(1 - 1e-3, dtype=torch.float64).expm1().log()
    return torch.cat([theta[:, :, : 2 * BINS], u], 2).flatten(1, 2)


def agree_as_couplings(
    build: Callable[..., Bijection],
    peer: Callable[..., nn.Module],
    change: Callable[[Tensor], Tensor],
    event_shape: tuple[int, ...],
    mask: str,
) -> None:
    """With a coupling of nflows, whose mask is 1 where values move; both networks have a context."""
    conditioner = lambda *channels: Rearranged(network(event_shape, *channels), change)  # noqa: E731
    ours = build(event_shape, mask=mask, conditioner=conditioner)
    moves = 1 - coupling_mask(event_shape, mask).int()
    theirs = made(lambda: peer(moves, lambda *_: ours.conditioner.network))
    agree(ours, theirs.forward, theirs.inverse, normal(ROWS, (CONTEXT,), rng(12)))


@EVENTS
@MASKS
def test_affine_coupling_of_nflows(nflows: Any, event_shape: tuple[int, ...], mask: str) -> None:
    build = partial(AffineCoupling, log_scale_bound=BOUND)
    agree_as_couplings(build, nflows.AffineCouplingTransform, of_nflows_affine, event_shape, mask)


@EVENTS
@MASKS
def test_additive_coupling_of_nflows(nflows: Any, event_shape: tuple[int, ...], mask: str) -> None:
    agree_as_couplings(AdditiveCoupling, nflows.AdditiveCouplingTransform, lambda out: out, event_shape, mask)


@EVENTS
@MASKS
def test_spline_coupling_of_nflows(nflows: Any, event_shape: tuple[int, ...], mask: str) -> None:
    build = partial(SplineCoupling, bins=BINS, bound=BOUND)
    peer = nflows.PiecewiseRationalQuadraticCouplingTransform
    peer = partial(peer, num_bins=BINS, tails="linear", tail_bound=BOUND)
    agree_as_couplings(build, peer, of_nflows_spline, event_shape, mask)


@pytest.mark.parametrize("event_shape", [(6,), (4, 2, 3)])
def test_affine_coupling_of_freia(freia: Any, event_shape: tuple[int, ...]) -> None:
    """Its second half moves."""
    half = event_shape[0] // 2
    net = network(event_shape, half, 2 * half, context=0)
    build = partial(AffineCoupling, mask="half", log_scale_bound=BOUND)
    ours = build(event_shape, conditioner=lambda *_: Rearranged(net, of_freia))
    theirs = made(lambda: freia.AffineCouplingOneSided([event_shape], subnet_constructor=lambda *_: net))

    def run(x: Tensor, *, rev: bool) -> tuple[Tensor, Tensor]:
        (z,), log_det = theirs([x], rev=rev)
        return z, log_det

    agree(ours, partial(run, rev=False), partial(run, rev=True))


def test_lu_linear_of_nflows(nflows: Any) -> None:
    """L and U row by row, U's diagonal softplus(u) + 0.001."""
    ours = perturb(LULinear(5, permutation="identity"), rng(1))
    factors = ours.weight.factors.detach()
    lower, upper = torch.tril_indices(5, 5, -1), torch.triu_indices(5, 5, 1)
    theirs = fill(
        made(lambda: nflows.LULinear(5)),
        lower_entries=factors[*lower],
        upper_entries=factors[*upper],
        unconstrained_upper_diag=torch.expm1(factors.diagonal().exp() - 1e-3).log(),
        bias=ours.bias,
    )
    agree(ours, theirs.forward, theirs.inverse)


@pytest.mark.parametrize("K", [1, 4, 5])
def test_qr_linear_of_nflows(nflows: Any, K: int) -> None:
    """It applies its first reflection first; Q x = H₁ ⋯ H_K x applies the last."""
    ours = perturb(QRLinear(5, reflections=K), rng(2))
    R = ours.weight.R.factor.detach()
    values = {
        "upper_entries": R[*torch.triu_indices(5, 5, 1)],
        "log_upper_diag": R.diagonal(),
        "bias": ours.bias,
        "orthogonal.q_vectors": ours.weight.Q.vectors.flip(0),
    }
    theirs = fill(made(lambda: nflows.QRLinear(5, K)), **values)
    agree(ours, theirs.forward, theirs.inverse)


@EVENTS
def test_act_norm_of_nflows(nflows: Any, event_shape: tuple[int, ...]) -> None:
    """exp(s) (x + b) = exp(s) x + shift."""
    ours = perturb(ActNorm(event_shape), rng(3))
    theirs = fill(
        made(lambda: nflows.ActNorm(event_shape[0])),
        log_scale=ours.log_scale,
        shift=ours.log_scale.exp() * ours.bias,
        initialized=torch.tensor(True),
    )
    agree(ours, theirs.forward, theirs.inverse)


@pytest.mark.parametrize("matrix", [DenseMatrix, LUMatrix])
def test_one_by_one_convolution_of_nflows(nflows: Any, matrix: Callable[[Tensor], Matrix]) -> None:
    """W x = L U x_π, with a bias that ours lacks; here their weights go to ours."""
    theirs = perturb(made(lambda: nflows.OneByOneConvolution(4)), rng(4))
    fill(theirs, bias=torch.zeros(4))
    L, U = torch.eye(4).double(), (F.softplus(theirs.unconstrained_upper_diag) + 1e-3).diag().detach()
    L[*torch.tril_indices(4, 4, -1)] = theirs.lower_entries.detach()
    U[*torch.triu_indices(4, 4, 1)] = theirs.upper_entries.detach()
    ours = Invertible1x1Conv((4, 2, 3))
    ours.weight = matrix(L @ U @ torch.eye(4).double()[theirs.permutation._permutation])
    agree(ours, theirs.forward, theirs.inverse)


def test_one_by_one_convolution_of_normflows(normflows: Any) -> None:
    ours = perturb(Invertible1x1Conv((4, 2, 3)), rng(5))
    theirs = made(lambda: normflows.flows.Invertible1x1Conv(4, use_lu=True))
    glow_speed.copy_lu(ours.weight, theirs)

    def rows(mapping: Mapping, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = mapping(x)  # one log-determinant for all rows
        return z, log_det.expand(len(x))

    agree(ours, partial(rows, theirs.inverse), partial(rows, theirs.forward))


def made_twins(*, levels: int) -> glow_speed.Twins:
    with quiet():
        return glow_speed.twins(glow_speed.Case(IMAGE, levels, 2, 8, ROWS))


@pytest.mark.parametrize("levels", [1, 2])
def test_glow_of_normflows(normflows: Any, levels: int) -> None:
    """The whole density, its gradient in x, and what is drawn from the same latents, coarsest first."""
    ours, theirs = made_twins(levels=levels)
    x = normal(ROWS, IMAGE, rng(6)).requires_grad_()
    log_probs = ours.log_prob(x), theirs.log_prob(x, None)
    gradients = [torch.autograd.grad(log_prob.sum(), x)[0] for log_prob in log_probs]
    z = normal(ROWS, ours.latent_shape, rng(7))
    draws = ours.decode(z), theirs.forward_and_log_det(ours.bijection.unpack(z)[::-1])[0]
    for pair in (log_probs, gradients, draws):
        torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-10)


def test_speed_is_not_measured_of_flows_that_differ(normflows: Any) -> None:
    x = normal(3, IMAGE, rng(6))
    models = made_twins(levels=1)
    assert glow_speed.checked_difference(models, x) < 1e-10
    with torch.no_grad():
        models.ours.bijection.levels[0].bijections[-1].conditioner.layers[-1].bias += 1e-6
    with pytest.raises(RuntimeError, match="differ by"):
        glow_speed.checked_difference(models, x)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("fault", FAULTS)
def test_agreement_bites(direction: str, fault: str) -> None:
    layer = perturb(LULinear(5), rng(8))
    wrong = Tampered(layer, **{direction: FAULTS[fault]})
    Tooth(lambda ours: agree(ours, layer.forward, layer.inverse), lambda: layer, lambda: wrong).bites()
