"""What a solver is given: a velocity and the rates of integrals along its path."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

Rows = Float[Tensor, "rows ..."]
Function = Any  # of (x, t)
Report = Callable[[int, Tensor], None]  # step counted from 0, and x at its end


class Field(abc.ABC):
    """(v(x, t), rates): `(rows, *event)` and `(rows, columns)`, the rates of integrals that x does not depend on."""

    @abc.abstractmethod
    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Both at time t, 0-dimensional or `(rows,)`."""

    @abc.abstractmethod
    def slope(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t) alone, where a method gives the rates no weight."""

    @abc.abstractmethod
    def rows(self, index: Tensor) -> "Field":
        """The same field for some of the rows alone, as a solver needs it whose rows arrive at different times."""


@dataclass(frozen=True, eq=False)
class Plain(Field):
    """A velocity without integrals."""

    velocity: Function

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """v(x, t), and no rates."""
        return self.velocity(x, t), x.new_zeros(len(x), 0)

    def slope(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t)."""
        return self.velocity(x, t)

    def rows(self, index: Tensor) -> "Plain":
        """The same for some of the rows."""
        return Plain(rows_of(self.velocity, index))


class Solution(NamedTuple):
    """Where an ODE ends.

    Attributes:
        x: place, `(rows, *event)`.
        integrals: of the rates, `(rows, columns)`.
        nfe: calls of the field that each row took part in, `(rows,)`.
        increments: of a fixed grid, what each step adds to the mean of a row's integrals, without gradient,
            `(steps, rows)`.
        local_error: of an adaptive method, what the errors of all steps may do to log p, nats, `(rows,)`.
    """

    x: Rows
    integrals: Float[Tensor, "rows columns"]
    nfe: Int[Tensor, " rows"]
    increments: Float[Tensor, "steps rows"] | None = None
    local_error: Float[Tensor, " rows"] | None = None


def local_error(x: Rows, integrals: Float[Tensor, "rows columns"]) -> Float[Tensor, " rows"]:
    """3 (|δI| + |δx|), nats: what a step's errors may do to log p, which moves by δI + ∇ log p · δx to first order.

    An error that points anywhere meets |δx| of a gradient as long as a standard normal's, √D, in root mean square. All
    are taken three times, and none to be lost or to cancel on the way.

    Checked by tests/cflows/test_solver_error.py.

    Args:
        x: error of the place.
        integrals: errors of the integrals, whose mean counts.
    """
    of_integral = integrals.sum(1).abs() / max(1, integrals.shape[1])
    return 3 * (of_integral + x.flatten(1).norm(dim=1))


def rows_of(function: Function, index: Tensor) -> Function:
    """The function for some of the rows: its own `rows(index)` where it holds something for each, or itself."""
    return function.rows(index) if hasattr(function, "rows") else function
