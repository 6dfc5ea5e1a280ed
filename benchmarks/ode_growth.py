"""How the cost of an ODE likelihood grows with dimension and with batch, at the yardstick's tolerance."""

from typing import Any

import torch

from benchmarks.ode_likelihood import DEFAULT, ROUNDS, Level, field_routine, measured, ours, reference
from benchmarks.ode_problems import T_MIN, cloud, costly, perceptron

SIZES, BATCHES = (2, 16, 128, 1024, 4096), (1, 16, 256, 4096)
ROWS, SIZE = 64, 64  # of the other axis
METHODS = ("dopri5", "dopri5_per_sample")

Row = dict[str, Any]


def measure() -> tuple[Row, list[Row]]:
    """Eight narrow modes: along D with 64 rows, along the rows of a batch with D = 64."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [row for size in SIZES for row in _rows("D", size, size=size, rows=ROWS)]
    rows += [row for batch in BATCHES for row in _rows("rows", batch, size=SIZE, rows=batch)]
    return {"t_min": T_MIN, "tolerance": DEFAULT, "rounds": ROUNDS, "dtype": "float32", "probes": 1}, rows


def _rows(along: str, at: int, *, size: int, rows: int) -> list[Row]:
    """A row's share of CPU time and of passes of the network, and its error."""
    problem = costly("8 modes", cloud(size), perceptron(size), rows=rows, batches=1)
    score, batches = problem.score, problem.batches
    solves = {"yardstick": field_routine(score)} | {method: ours(score, Level(method)) for method in METHODS}
    found = measured(solves, score, batches, [reference(problem, batches[0], 0)])
    return [{"along": along, "at": at, "method": method, **_share(point, rows)} for method, point in found.items()]


def _share(point: Row, rows: int) -> Row:
    kept = {name: point[name] for name in ("nfe", "model_rows", "rms_error_nats")}
    return kept | {"ms_a_row": 1000 * point["seconds"] / rows}
