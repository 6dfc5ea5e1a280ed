"""Autoregressive layers and flows beside those of nflows, zuko and Pyro, with the weights of the peer.

The units of our networks take the degrees of the peer's, so that its weights go over one to one and its masks must be
ours; a transformer of the test's own turns the peer's parameters into those of ours.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from helpers import Tooth, normal, perturb, rng
from peers import (
    ROWS,
    Linear,
    Reparametrised,
    affine,
    agree,
    agree_as_flows,
    agree_with_law,
    attributes,
    float64_by_default,
    layers_of,
    lent,
    made,
    masked,
    take,
    take_masked,
)
from torch import Tensor, nn
from torch.nn import functional as F

from discrete import IAF, MAF, Flow, MaskedAutoregressive
from discrete.bijections.spline import SplineTransformer
from discrete.bijections.transformers import Transformer

D, H, CONTEXT, BINS, LAYERS = 5, 12, 2, 8, 3
CONTEXTS = pytest.mark.parametrize("context", [0, CONTEXT])
PLACES = torch.arange(1, D + 1)


@pytest.fixture
def nflows() -> Iterator[Any]:
    with lent("nflows.transforms") as peer:
        yield peer


@pytest.fixture
def zuko() -> Iterator[Any]:
    with lent("zuko") as peer:
        yield peer


@pytest.fixture
def pyro() -> Iterator[Any]:
    """Its inverse starts from zeros of the default dtype."""
    with lent("pyro.distributions") as peer, float64_by_default():
        yield peer


@pytest.mark.parametrize("name", ["nflows.transforms", "zuko", "pyro.distributions"])
def test_peers_leave_torch_as_it_was(name: str) -> None:
    before = attributes()
    for _ in range(2):
        with lent(name):
            pass
        assert attributes() == before


def interleaved(rows: Tensor) -> Tensor:
    """From blocks, one a parameter, to the parameters of each feature together."""
    return rows.unflatten(0, (-1, D)).transpose(0, 1).flatten(0, 1)


def given(context: int) -> list[Tensor]:
    """The context to hand in, if any."""
    return [normal(ROWS, (context,), rng(2))] if context else []


# nflows


def of_nflows(u: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.log(F.softplus(u) + 1e-3), t


def nflows_layer(nflows: Any, **options: Any) -> nn.Module:
    return perturb(made(partial(nflows.MaskedAffineAutoregressiveTransform, D, H, **options)), rng(1))


def beside_nflows(hidden: Sequence[int], *, context: int = 0, conditioner: str = "plain") -> MaskedAutoregressive:
    return MaskedAutoregressive(
        D, transformer=affine(of_nflows), hidden=hidden, context_features=context, conditioner=conditioner
    ).double()


@pytest.mark.parametrize("blocks", [1, 2])
def test_plain_layer_of_nflows(nflows: Any, blocks: int) -> None:
    theirs = nflows_layer(nflows, num_blocks=blocks, use_residual_blocks=False)
    ours = beside_nflows((H,) * (blocks + 1))
    net = theirs.autoregressive_net
    layers = [net.initial_layer, *(block.linear for block in net.blocks), net.final_layer]
    take_masked(ours.conditioner, PLACES, list(map(masked, layers)))
    agree(ours, theirs.forward, theirs.inverse)


def test_plain_layer_of_nflows_with_context(nflows: Any) -> None:
    """Its act(Lx + act(Cc)) takes a layer more here, which carries v = Lx as relu(v) - relu(-v)."""
    theirs = nflows_layer(nflows, context_features=CONTEXT, num_blocks=1, use_residual_blocks=False)
    ours = beside_nflows((3 * H, H, H), context=CONTEXT)
    net = theirs.autoregressive_net
    L, C, block, last = net.initial_layer, net.context_layer, net.blocks[0].linear, net.final_layer
    linears = [
        (torch.block_diag(torch.cat([L.weight, -L.weight]), C.weight), torch.cat([L.bias, -L.bias, C.bias])),
        (torch.eye(H).repeat(1, 3) * torch.tensor([1, -1, 1]).repeat_interleave(H), torch.zeros(H)),
        (block.weight, block.bias),
        (last.weight, last.bias),
    ]
    m = L.degrees
    take(ours.conditioner, PLACES, [torch.cat([m, m, 0 * m]), m, m], linears)
    agree(ours, theirs.forward, theirs.inverse, *given(CONTEXT))


@CONTEXTS
def test_residual_layer_of_nflows(nflows: Any, context: int) -> None:
    """Ours activates before its last layer as well and reads the context in its first alone.

    Its stream holds h, -h, Cc, c and -c, so that v = relu(v) - relu(-v) hands h and c on; a first block adds relu(Cc).
    """
    theirs = nflows_layer(nflows, context_features=context or None, num_blocks=2, use_residual_blocks=True)
    net = theirs.autoregressive_net
    m = net.initial_layer.degrees
    degrees = torch.cat([m, m, 0 * m, m.new_zeros(2 * context)])
    S = len(degrees)
    plus, minus, a, c, minus_c = torch.eye(S).double().split([H, H, H, context, context], 1)
    h, c = plus - minus, c - minus_c
    (L, b), (C, d) = weight_and_bias(net.initial_layer), context_layer(net)
    linears = [(torch.cat([h @ L, a @ C + c @ torch.eye(context).double()], 1), h @ b + a @ d)]
    linears += [(plus @ a.T, torch.zeros(S)), (h @ plus.T, torch.zeros(S))]
    for block in net.blocks:
        (L, b), (C, d) = weight_and_bias(block.linear_layers[0]), context_layer(block)
        linears.append((plus @ L @ plus.T + plus @ C @ c.T, plus @ (b + d)))
        L, b = weight_and_bias(block.linear_layers[1])
        linears.append((h @ L @ plus.T, h @ b))
    L, b = weight_and_bias(net.final_layer)
    ours = beside_nflows((S,) * 3, context=context, conditioner="resnet")
    take(ours.conditioner, PLACES, [degrees] * 7, [*linears, (L @ h.T, b)])
    agree(ours, theirs.forward, theirs.inverse, *given(context))


def weight_and_bias(linear: nn.Module) -> Linear:
    return linear.weight, linear.bias


def context_layer(module: nn.Module) -> Linear:
    """Of no columns where there is none."""
    if hasattr(module, "context_layer"):
        return weight_and_bias(module.context_layer)
    return torch.zeros(H, 0).double(), torch.zeros(H).double()


# zuko


def of_zuko(t: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    return a / (1 + abs(a / math.log(1e-3))), t


def spline_of_zuko() -> Transformer:
    """Shares are the softmax of clipped logits without a least share, derivatives exp of them; ours at a tiny least."""
    least, clip = 1e-6, -math.log(1e-3)

    def logits(a: Tensor) -> Tensor:
        share = (a / (1 + abs(2 * a / clip))).softmax(-1)
        return torch.log(share - least)

    def change(theta: Tensor) -> Tensor:
        widths, heights, a = theta.split([BINS, BINS, BINS - 1], -1)
        derivative = torch.exp(a / (1 + abs(a / clip)))
        u = torch.log(torch.expm1(derivative - least)) - math.log(math.expm1(1 - least))
        return torch.cat([logits(widths), logits(heights), u], -1)

    spline = SplineTransformer(bins=BINS, bound=5.0, min_width=least, min_height=least, min_derivative=least)
    return Reparametrised(spline, change)


def zuko_flow(build: Callable[..., nn.Module], context: int, **options: Any) -> nn.Module:
    options = {"transforms": LAYERS, "hidden_features": (H, H), **options}
    return perturb(made(partial(build, D, context, **options)), rng(3), std=0.2)


def take_flow(ours: Flow, theirs: nn.Module, transformer: Transformer) -> Flow:
    """Layer by layer; the order of a layer says the place of each feature, from 0."""
    for layer, peer in zip(layers_of(ours.double().eval()), theirs.transform.transforms, strict=True):
        layer.transformer = transformer
        layers = [masked(module) for module in peer.hyper if hasattr(module, "mask")]
        take_masked(layer.conditioner, peer.order + 1, layers)
    return ours


def agree_with_zuko(ours: Flow, theirs: nn.Module) -> None:
    context = given(layers_of(ours)[0].conditioner.context_features)
    law = theirs(*context)
    forward, inverse = law.transform.call_and_ladj, law.transform.inv.call_and_ladj
    agree_as_flows(ours, lambda x, *_: forward(x), lambda z, *_: inverse(z), *context)
    agree_with_law(ours, law, *context)


@CONTEXTS
@pytest.mark.parametrize("randperm", [False, True])
def test_maf_of_zuko(zuko: Any, context: int, randperm: bool) -> None:
    theirs = zuko_flow(zuko.flows.MAF, context, randperm=randperm)
    ours = MAF(D, layers=LAYERS, hidden=(H, H), context_features=context, normalization="none")
    if not randperm:
        for layer, peer in zip(layers_of(ours), theirs.transform.transforms, strict=True):
            assert torch.equal(layer.conditioner.degrees, peer.order + 1)
    agree_with_zuko(take_flow(ours, theirs, affine(of_zuko)), theirs)


@CONTEXTS
def test_nsf_of_zuko(zuko: Any, context: int) -> None:
    theirs = zuko_flow(zuko.flows.NSF, context, bins=BINS)
    ours = MAF(
        D, layers=LAYERS, hidden=(H, H), transformer="spline", bins=BINS, context_features=context, normalization="none"
    )
    agree_with_zuko(take_flow(ours, theirs, spline_of_zuko()), theirs)


# Pyro, from noise to data


def of_pyro(t: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    return a.clamp(-5, 3), t


@CONTEXTS
def test_iaf_of_pyro(pyro: Any, context: int) -> None:
    """In random orders. Its networks read the context first and give blocks, one a parameter."""
    ours = IAF(D, layers=LAYERS, hidden=(H, H), context_features=context).double().eval()
    networks, transforms = zip(*(pyro_layer(pyro, context, seed=i) for i in range(LAYERS)), strict=True)
    for layer, network in zip(layers_of(ours), networks, strict=True):
        (W, b, M), *middle, last = map(masked, network.layers)
        layer.transformer = affine(of_pyro)
        layers = [(W.roll(-context, 1), b, M.roll(-context, 1)), *middle, tuple(map(interleaved, last))]
        take_masked(layer.conditioner, 1 + network.permutation.argsort(), layers)
    agree_as_flows(ours, partial(undone, transforms), partial(done, transforms), *given(context))
    base = pyro.Normal(torch.zeros(D), torch.ones(D)).to_event(1)
    agree_with_law(ours, pyro.TransformedDistribution(base, list(transforms)), *given(context))


def pyro_layer(pyro: Any, context: int, *, seed: int) -> tuple[nn.Module, Any]:
    """Its network, and the transform from noise to data."""
    T = pyro.transforms
    if not context:
        transform = perturb(made(lambda: T.affine_autoregressive(D, [H, H])), rng(seed), std=0.2)
        return transform.arn, transform
    module = perturb(made(lambda: T.conditional_affine_autoregressive(D, context, [H, H])), rng(seed), std=0.2)
    return module.nn, module.condition(*given(context))


def done(transforms: Sequence[Any], z: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    log_det = torch.zeros(len(z))
    for transform in transforms:
        x = transform(z)
        z, log_det = x, log_det + transform.log_abs_det_jacobian(z, x)
    return z, log_det


def undone(transforms: Sequence[Any], x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    log_det = torch.zeros(len(x))
    for transform in reversed(transforms):
        z = transform.inv(x)
        x, log_det = z, log_det - transform.log_abs_det_jacobian(z, x)
    return x, log_det


# Each way to be wrong is noticed.


@pytest.mark.parametrize("wrong", ["degrees", "order", "layout", "scale"])
def test_agreement_bites(nflows: Any, wrong: str) -> None:
    """Hidden degrees off by one, the features turned around, parameters in blocks, the scale of another peer."""
    theirs = nflows_layer(nflows, num_blocks=1, use_residual_blocks=False)
    net = theirs.autoregressive_net

    def build(fault: str) -> MaskedAutoregressive:
        ours = beside_nflows((H, H))
        linears = [weight_and_bias(linear) for linear in (net.initial_layer, net.blocks[0].linear, net.final_layer)]
        m = net.initial_layer.degrees
        degrees = {"degrees": m % (D - 1) + 1}.get(fault, m)
        if fault == "layout":
            linears[-1] = tuple(map(interleaved, linears[-1]))
        if fault == "scale":
            ours.transformer = affine(lambda a, t: of_zuko(t, a))
        take(ours.conditioner, PLACES.flip(0) if fault == "order" else PLACES, [m, degrees], linears)
        return ours

    contract = partial(agree, forward=theirs.forward, inverse=theirs.inverse)
    Tooth(contract, partial(build, "none"), partial(build, wrong)).bites()
