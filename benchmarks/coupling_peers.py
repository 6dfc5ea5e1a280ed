"""Couplings of nflows, normflows, FrEIA and zuko with the networks of ours, and the weights of ours where they fit."""

import copy
import importlib
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.flow_peers import Rival, ours
from core.bases import StandardNormal
from discrete import Flow
from discrete.bijection import Compose
from discrete.bijections.coupling import AdditiveCoupling, AffineCoupling, Coupling, SplineCoupling

BINS, BOUND, LOG_SCALE_BOUND, STD = 8, 3.0, 3.0, 0.05
KINDS: dict[str, Callable[..., Coupling]] = {
    "additive": AdditiveCoupling,
    "affine": AffineCoupling,
    "spline": SplineCoupling,
}


class Size(NamedTuple):
    """Even features, couplings and the widths of their networks."""

    D: int
    layers: int
    hidden: tuple[int, ...]


class Rivals(NamedTuple):
    """Flows to time.

    Attributes:
        all: by the library's name.
        twins: names of those that hold the weights of ours: the same density.
    """

    all: dict[str, Rival]
    twins: tuple[str, ...]


class _Network(nn.Sequential):
    """As in ours; what else a library hands to its networks is ignored."""

    def __init__(self, inputs: int, outputs: int, hidden: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise([inputs, *hidden, outputs]):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU(inplace=True)]
        super().__init__(*layers[:-1])
        self.double()

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        """Outputs of the last layer."""
        return super().forward(x)


def rivals(kind: str, size: Size) -> Rivals:
    """Couplings between halves, which move in turn, the first half first, over a standard normal; in float64."""
    masks = [("half_flipped", "half")[i % 2] for i in range(size.layers)]
    options = {"affine": {"log_scale_bound": LOG_SCALE_BOUND}, "spline": {"bins": BINS, "bound": BOUND}}.get(kind, {})
    couplings = [KINDS[kind](size.D, mask=mask, hidden=size.hidden, **options) for mask in masks]
    with torch.no_grad():
        for p in nn.ModuleList(couplings).double().parameters():
            p += STD * torch.randn(p.shape)
    found: Rivals = {"additive": _additive, "affine": _affine, "spline": _spline}[kind](couplings, size)
    for rival in found.all.values():
        rival.module.double()
    return found


def _additive(couplings: list[Coupling], size: Size) -> Rivals:
    T = importlib.import_module("nflows.transforms")
    nflows = _nflows(couplings, size, lambda mask, net: T.AdditiveCouplingTransform(mask, net), torch.clone)
    freia = _freia(couplings, size, "NICECouplingBlock", ("F", "G"), torch.clone)
    peers = {"nflows": nflows, "FrEIA": freia, "normflows": _normflows(couplings, size, torch.neg)}
    return Rivals({**_ours(couplings, size), **peers}, tuple(peers))


def _affine(couplings: list[Coupling], size: Size) -> Rivals:
    """The scales of nflows, normflows and zuko are bounded otherwise or not at all."""
    T = importlib.import_module("nflows.transforms")
    nflows = _nflows(couplings, size, lambda mask, net: T.AffineCouplingTransform(mask, net), None)

    def apart(p: Tensor) -> Tensor:
        return torch.cat([p[0::2] / LOG_SCALE_BOUND, p[1::2]])

    options = {"clamp": LOG_SCALE_BOUND, "clamp_activation": "TANH"}
    freia = _freia(couplings, size, "GLOWCouplingBlock", ("subnet2", "subnet1"), apart, **options)
    zuko = importlib.import_module("zuko").flows.NICE(size.D, transforms=size.layers, hidden_features=size.hidden)
    others = {"nflows": nflows, "normflows": _normflows(couplings, size, None)}
    others["zuko"] = Rival(zuko, lambda x: zuko().log_prob(x), lambda rows: zuko().sample((rows,)))
    return Rivals({**_ours(couplings, size), "FrEIA": freia, **others}, ("FrEIA",))


def _spline(couplings: list[Coupling], size: Size) -> Rivals:
    T = importlib.import_module("nflows.transforms")

    def build(mask: Tensor, net: Callable[[int, int], nn.Module]) -> nn.Module:
        return T.PiecewiseRationalQuadraticCouplingTransform(mask, net, num_bins=BINS, tails="linear", tail_bound=BOUND)

    def shifted(p: Tensor) -> Tensor:
        """Ours has derivative 1 where its parameter is 0."""
        if p.ndim == 1:
            p = p.clone()
            p.unflatten(0, (-1, 3 * BINS - 1))[:, 2 * BINS :] += math.log(math.expm1(1 - 1e-3))
        return p

    return Rivals({**_ours(couplings, size), "nflows": _nflows(couplings, size, build, shifted)}, ("nflows",))


def _ours(couplings: list[Coupling], size: Size) -> dict[str, Rival]:
    networks = copy.deepcopy(nn.ModuleList(coupling.conditioner for coupling in couplings))

    def bare(x: Tensor) -> Tensor:
        half = x[:, : size.D // 2].contiguous()
        return torch.stack([network(half).sum() for network in networks])

    flow = Flow(Compose(*couplings), StandardNormal(size.D))
    return {"bare": Rival(networks, bare, lambda rows: bare(torch.randn(rows, size.D))), "ours": ours(flow)}


Rows = Callable[[Tensor], Tensor]  # rows of a last layer, weights or biases, in the order of another library


@torch.no_grad()
def copy_network(source: nn.Module, target: nn.Module, rows: Rows) -> None:
    """Weights of one network in another."""
    pairs = [[m for m in network.modules() if isinstance(m, nn.Linear)] for network in (source, target)]
    for ours_layer, theirs in zip(*pairs, strict=True):
        last = ours_layer is pairs[0][-1]
        theirs.weight.copy_(rows(ours_layer.weight) if last else ours_layer.weight)
        theirs.bias.copy_(rows(ours_layer.bias) if last else ours_layer.bias)


def _nflows(couplings: list[Coupling], size: Size, build: Callable[..., nn.Module], rows: Rows | None) -> Rival:
    mask = torch.arange(size.D) < size.D // 2
    chain = [build(mask if i % 2 == 0 else ~mask, lambda a, b: _Network(a, b, size.hidden)) for i in range(size.layers)]
    base = importlib.import_module("nflows.distributions").StandardNormal([size.D])
    transforms = importlib.import_module("nflows.transforms").CompositeTransform(chain)
    flow = importlib.import_module("nflows.flows").Flow(transforms, base)
    for coupling, layer in zip(couplings, chain, strict=True):
        if rows is not None:
            copy_network(coupling.conditioner, layer.transform_net, rows)
    return Rival(flow, flow.log_prob, flow.sample)


def _normflows(couplings: list[Coupling], size: Size, rows: Rows | None) -> Rival:
    """Its layers go from noise to data, and only additive ones, x = z - t, can be told by the networks of ours."""
    F = importlib.import_module("normflows")
    chain = []
    for i, coupling in reversed([*enumerate(couplings)]):
        network = _Network(size.D // 2, size.D // 2 if rows else size.D, size.hidden)
        if rows is not None:
            copy_network(coupling.conditioner, network, rows)
        split = ("channel_inv", "channel")[i % 2]
        chain.append(F.flows.AffineCouplingBlock(network, scale=rows is None, split_mode=split))
    flow = F.NormalizingFlow(F.distributions.DiagGaussian(size.D, trainable=False), chain)
    return Rival(flow, flow.log_prob, lambda rows: flow.sample(rows)[0])


def _freia(
    couplings: list[Coupling], size: Size, block: str, names: tuple[str, str], rows: Rows, **options: Any
) -> Rival:
    """A block moves its first half and then its second."""
    flow = importlib.import_module("FrEIA.framework").SequenceINN(size.D, force_tuple_output=False)
    kind = getattr(importlib.import_module("FrEIA.modules"), block)
    for i in range(0, size.layers, 2):
        flow.append(kind, subnet_constructor=lambda a, b: _Network(a, b, size.hidden), **options)
        for coupling, name in zip(couplings[i : i + 2], names, strict=True):
            copy_network(coupling.conditioner, getattr(flow[i // 2], name), rows)
    base = StandardNormal(size.D)

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = flow(x)
        return base.log_prob(z) + log_det

    return Rival(flow, log_prob, lambda rows: flow(torch.randn(rows, size.D), rev=True)[0])
