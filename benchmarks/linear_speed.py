"""LU and QR layers and the invertible 1×1 convolution beside those of nflows and normflows."""

import importlib
import importlib.metadata
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.flow_peers import Rival, ours
from benchmarks.glow_speed import copy_lu
from benchmarks.peers import TASKS, compared, differences, prepare, runs_of
from core.bases import StandardNormal
from discrete import Flow
from discrete.bijection import Bijection
from discrete.bijections.convolution import Invertible1x1Conv
from discrete.bijections.linear import LULinear, QRLinear

SIZES, ROWS, BUDGET, STD = (16, 64, 256, 784, 1024), 1024, 5.0, 0.02
CHANNELS, SIDE, IMAGES = (12, 48, 192), 8, 32
FASTER = {("QR", 784): 3.0}  # at least so many times as fast; else not slower

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a layer, size and task."""
    load = prepare(1)
    warnings.filterwarnings("ignore", message="torch.triangular_solve")  # of nflows
    rows = []
    for D in SIZES:
        x = torch.randn(ROWS, D)
        rows += _rows("LU", D, _lu(D), x) + _rows("QR", D, _qr(D), x)
    for channels in CHANNELS:
        images = torch.randn(IMAGES, channels, SIDE, SIDE)
        rows += _rows("1×1 convolution", channels, _convolution(channels), images)
    versions = {peer: importlib.metadata.version(peer) for peer in ("nflows", "normflows")}
    settings = {"rows": ROWS, "images": IMAGES, "side": SIDE, "dtype": "float32", "threads": 1}
    return {**settings, **versions, "load_average_at_start": load}, rows


def _rows(layer: str, size: int, rivals: dict[str, Rival], x: Tensor) -> list[Row]:
    twins = tuple(name for name in rivals if name != "ours")
    about = {"layer": layer, "size": size, "differences_nats": differences(rivals, twins, x)}
    faster = FASTER.get((layer, size), 1.0)
    return [
        {**about, "task": task, **compared(runs_of(task, rivals, x), budget=BUDGET, faster=faster)} for task in TASKS
    ]


@torch.no_grad()
def _perturbed(bijection: Bijection) -> Bijection:
    for p in bijection.double().parameters():
        p += STD * torch.randn(p.shape)
    return bijection


def _rival(bijection: Bijection) -> Rival:
    return ours(Flow(bijection, StandardNormal(bijection.latent_shape)).double())


def _nflows(layer: nn.Module, D: int) -> Rival:
    base = importlib.import_module("nflows.distributions").StandardNormal([D])
    flow = importlib.import_module("nflows.flows").Flow(layer, base).double()
    return Rival(flow, flow.log_prob, flow.sample)


@torch.no_grad()
def _lu(D: int) -> dict[str, Rival]:
    """Without permutation; theirs has softplus(u) + 0.001 on the diagonal."""
    mine = _perturbed(LULinear(D, permutation="identity"))
    theirs = importlib.import_module("nflows.transforms").LULinear(D).double()
    factors = mine.weight.factors
    theirs.lower_entries.copy_(factors[tuple(theirs.lower_indices)])
    theirs.upper_entries.copy_(factors[tuple(theirs.upper_indices)])
    theirs.unconstrained_upper_diag.copy_(torch.special.expm1(factors.diagonal().exp() - theirs.eps).log())
    theirs.bias.copy_(mine.bias)
    return {"ours": _rival(mine), "nflows": _nflows(theirs, D)}


@torch.no_grad()
def _qr(D: int) -> dict[str, Rival]:
    mine = _perturbed(QRLinear(D))
    vectors, R = mine.weight.Q.vectors, mine.weight.R.factor
    theirs = importlib.import_module("nflows.transforms").QRLinear(D, num_householder=len(vectors)).double()
    theirs.orthogonal.q_vectors.copy_(vectors.flip(0))  # the first is applied first
    theirs.upper_entries.copy_(R[tuple(theirs.upper_indices)])
    theirs.log_upper_diag.copy_(R.diagonal())
    theirs.bias.copy_(mine.bias)
    return {"ours": _rival(mine), "nflows": _nflows(theirs, D)}


@torch.no_grad()
def _convolution(channels: int) -> dict[str, Rival]:
    """That of normflows is the inverse of ours."""
    mine = _perturbed(Invertible1x1Conv((channels, SIDE, SIDE)))
    F = importlib.import_module("normflows")
    theirs = F.flows.Invertible1x1Conv(channels, use_lu=True).double()
    copy_lu(mine.weight, theirs)
    base = StandardNormal((channels, SIDE, SIDE)).double()

    def density(x: Tensor) -> Tensor:
        z, log_det = theirs.inverse(x)
        return base.log_prob(z) + log_det

    def draw(rows: int) -> Tensor:
        return theirs(torch.randn(rows, channels, SIDE, SIDE))[0]

    return {"ours": _rival(mine), "normflows": Rival(theirs, density, draw)}
