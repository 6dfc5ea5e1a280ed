"""What an evaluation of the right-hand side costs beside the network: the solvers' own work, and that of the probes."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ode_problems import convolutions, perceptron
from cflows import ode_log_prob
from core import ExactDivergence, Hutchinson, StandardNormal
from core.divergence import Divergence

ROWS, SIZE, ROUNDS, TARGET_MS, TARGET_PROBES = 64, 3072, 7, 0.8, 5.0
SOLVERS = {"adams": 40, "rk4": 10, "dopri5_per_sample": 0, "dopri5": 0}

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """Rows of three kinds: solver, probes, product."""
    torch.set_num_threads(1)
    rows = [*_solvers(), *_probes()]
    settings = {"rows": ROWS, "size": SIZE, "dtype": "float32", "rounds": ROUNDS}
    return settings, rows


class _Turning(Divergence):
    """A divergence that costs nothing beside its velocity, so that the solver's own work is left."""

    exact, columns = True, 1

    def draw(self, x: Tensor, generator: object) -> Tensor:
        """Nothing."""
        return x.new_zeros(0, *x.shape)

    def __call__(self, field: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), and zeros."""
        return field(x), x.new_zeros(len(x), 1)


@torch.no_grad()
def _solvers() -> list[Row]:
    """Milliseconds an evaluation above the velocity itself, x ↦ x cos 9t, on a state of 64 × 3072."""
    x, base = torch.randn(ROWS, SIZE), StandardNormal(SIZE)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return x * torch.cos(9 * t).reshape(-1, 1)

    t = torch.tensor(0.3)

    def fifty() -> None:
        for _ in range(50):
            velocity(x, t)

    bare = _milliseconds(fifty) / 50
    rows = []
    for method, steps in SOLVERS.items():
        options = {"method": method, "rtol": 1e-4, "atol": 1e-4, "steps": max(steps, 2), "error_factor": None}
        nfe = int(ode_log_prob(velocity, base, x, divergence=_Turning(), **options).nfe.max())
        spent = _milliseconds(lambda options=options: ode_log_prob(velocity, base, x, divergence=_Turning(), **options))
        above = spent / nfe - bare
        rows.append({"what": f"solver: {method}", "nfe": nfe, "ms": above, "met": above <= TARGET_MS})
    return rows


def _probes() -> list[Row]:
    """Costs in forward passes of the network, by reverse products."""
    rows = []
    for name, net, x in (
        ("MLP of 3 × 256 on 64 rows of 64", perceptron(64), torch.randn(64, 64)),
        ("U-Net on 4 rows of 3 × 32 × 32", convolutions(), torch.randn(4, 3, 32, 32)),
    ):
        rows += _of_one(name, net, x)
    return rows


@torch.no_grad()
def _of_one(name: str, net: nn.Module, x: Tensor) -> list[Row]:
    t = torch.full((len(x),), 0.3)
    forward = _milliseconds(lambda: net(x, t, None))
    rows = []
    for label, divergence in (
        ("1 probe", Hutchinson()),
        ("8 probes", Hutchinson(probes=8)),
        *([("exact", ExactDivergence(chunk=64))] if x[0].numel() <= 64 else []),
    ):
        probes = divergence.draw(x, torch.Generator().manual_seed(0))
        spent = _milliseconds(lambda d=divergence, p=probes: d(lambda y: net(y, t, None), x, p))
        rows.append({"what": f"{name}: {label}", "ms": spent, "forwards": spent / forward})
    rows.append({"what": f"{name}: forward mode, 1 probe", **_forward_mode(net, x, t, forward)})
    one, eight = rows[0]["ms"], rows[1]["ms"]
    rows[1] |= {"over_one_probe": eight / one, "met": eight / one <= TARGET_PROBES}
    return rows


def _forward_mode(net: nn.Module, x: Tensor, t: Tensor, forward: float) -> Row:
    v = torch.randn_like(x).sign()
    spent = _milliseconds(lambda: torch.func.jvp(lambda y: net(y, t, None), (x,), (v,)))
    return {"ms": spent, "forwards": spent / forward}


def _milliseconds(run: Callable[[], Any]) -> float:
    run()
    taken = []
    for _ in range(ROUNDS):
        started = time.process_time()
        run()
        taken.append(1e3 * (time.process_time() - started))
    return median(taken)
