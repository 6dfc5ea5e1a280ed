"""The ways to invert one masked autoregressive layer, where features depend on one another weakly and strongly."""

import math
import os
from statistics import median
from typing import Any

import torch

from benchmarks.flow_peers import STD, seconds
from benchmarks.peers import prepare
from discrete import MaskedAutoregressive, invert_autoregressive
from discrete.bijections.autoregressive_inverse import MODES

D, HIDDEN, ROWS, RHO, BUDGET = 64, (256, 256), 1024, 0.9, 5.0

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a layer and mode."""
    load = os.getloadavg()[0]
    prepare()
    layers = {f"weights N(0, {STD}²) off the identity": _weak(), f"AR(1), ρ = {RHO}": _ar1()}
    rows = [row for name, layer in layers.items() for row in _rows(name, layer)]
    settings = {"features": D, "hidden": HIDDEN, "rows": ROWS, "dtype": "float32", "load_average_at_start": load}
    return settings, rows


@torch.no_grad()
def _weak() -> MaskedAutoregressive:
    layer = MaskedAutoregressive(D, hidden=HIDDEN)
    for p in layer.parameters():
        p += STD * torch.randn(p.shape)
    return layer


@torch.no_grad()
def _ar1() -> MaskedAutoregressive:
    """x_d = ρ x_(d-1) + σ z_d with σ² = 1 - ρ², which is z_d = x_d/σ - (ρ/σ) x_(d-1), by the direct weights."""
    layer = MaskedAutoregressive(D, hidden=HIDDEN, direct=True)
    sigma, bound = math.sqrt(1 - RHO**2), layer.transformer.log_scale_bound
    direct = layer.conditioner.linears[-2]
    for d in range(1, D):
        direct.weight[D + d, d - 1] = -RHO / sigma
        direct.bias[d] = bound * math.atanh(-math.log(sigma) / bound)
    return layer


@torch.no_grad()
def _rows(name: str, layer: MaskedAutoregressive) -> list[Row]:
    z = torch.randn(ROWS, D)
    invert = {mode: _inversion(layer, z, mode) for mode in MODES}
    taken = seconds({mode: lambda run=run: run().x for mode, run in invert.items()}, budget=BUDGET)
    found = {mode: run() for mode, run in invert.items()}
    reference = layer.double().inverse(z.double())[0]
    layer.float()
    return [
        {
            "layer": name,
            "mode": mode,
            "ms": 1e3 * median(taken[mode]),
            "mean_passes": inversion.iterations.double().mean().item(),
            "max_passes": int(inversion.iterations.max()),
            "max_residual": inversion.residual.max().item(),
            "max_error": (inversion.x - reference).abs().max().item(),
        }
        for mode, inversion in found.items()
    ]


def _inversion(layer: MaskedAutoregressive, z: torch.Tensor, mode: Any) -> Any:
    return lambda: invert_autoregressive(layer.conditioner, layer.transformer, z, mode=mode)
