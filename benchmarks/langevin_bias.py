"""The error that a step of finite size makes: variance of Langevin chains on N(0, 1), with and without adjustment."""

import math
from typing import Any

import torch
from torch import Tensor

from cflows import langevin, mala

CHAINS, TIME = 100_000, 10.0
STEP_SIZES = (0.4, 0.2, 0.1, 0.05)


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One row a step size; chains start as N(0, 1) and run for ε · steps = 10."""
    torch.set_num_threads(1)
    return {"chains": CHAINS, "time": TIME, "variance": 1.0}, [_row(step_size) for step_size in STEP_SIZES]


def _row(step_size: float) -> dict[str, Any]:
    options = {"step_size": step_size, "steps": round(TIME / step_size), "generator": torch.Generator().manual_seed(1)}
    start = torch.randn(CHAINS, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = langevin(lambda x: -x, start, **options)
    adjusted, acceptance = mala(lambda x: -0.5 * x.square().sum(1), start, **options)
    return {
        "step_size": step_size,
        "closed_form": 1 / (1 - step_size / 2),
        **_variance("langevin", plain),
        **_variance("mala", adjusted),
        "acceptance": acceptance.mean().item(),
    }


def _variance(name: str, x: Tensor) -> dict[str, float]:
    variance = x.var().item()
    return {f"{name}_variance": variance, f"{name}_error": variance * math.sqrt(2 / len(x))}
