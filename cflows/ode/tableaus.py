"""Explicit Runge-Kutta methods: how the slopes at some nodes of a step weigh into the next place."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Row = tuple[float, ...]


class Tableau(NamedTuple):
    """Row i weighs slopes 0 to i into the place of slope i + 1, the last into x; `nodes` are shares of the step.

    With an `error`, what the slopes, one at the step's end included, weigh into the estimate of the local error; the
    last row's slope is then the first of the next step.
    """

    order: float
    nodes: Row
    rows: tuple[Row, ...]
    error: Row = ()

    def weighs_rate(self, stage: int) -> bool:
        """Whether an integral whose rate x does not depend on needs it at this stage."""
        weights = (self.rows[-1], self.error)
        return any(stage < len(row) and row[stage] != 0 for row in weights)


FIXED_TABLEAUS = {
    "euler": Tableau(1.0, (0.0,), ((1.0,),)),
    "midpoint": Tableau(2.0, (0.0, 1 / 2), ((1 / 2,), (0.0, 1.0))),
    "heun2": Tableau(2.0, (0.0, 1.0), ((1.0,), (1 / 2, 1 / 2))),
    "heun3": Tableau(3.0, (0.0, 1 / 3, 2 / 3), ((1 / 3,), (0.0, 2 / 3), (1 / 4, 0.0, 3 / 4))),
    "rk4": Tableau(
        4.0, (0.0, 1 / 3, 2 / 3, 1.0), ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0), (1 / 8, 3 / 8, 3 / 8, 1 / 8))
    ),
}

DORMAND_PRINCE = Tableau(
    5.0,
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)


def combine(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h Σ wᵢ kᵢ without the terms of weight 0, in as few passes over memory as torch allows."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = torch.add(x, slope, alpha=h * weight)
    return x
