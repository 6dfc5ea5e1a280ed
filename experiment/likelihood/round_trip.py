"""How exactly a trained flow gives back what it was shown, in the precision in which it runs."""

import math

import torch
from torch import Tensor

from core import DensityModel
from core.bases import Base
from core.density import Context
from discrete import Compose
from experiment.batches import batches
from experiment.errors import NumericalError
from experiment.likelihood.transport import transport
from experiment.likelihood.unwrapped import innermost, steps


@torch.no_grad()
def round_trip_error(
    model: DensityModel, rows: Tensor, context: Context = None, *, generator: torch.Generator
) -> Tensor | None:
    """max |x - f⁻¹(f(x))| over the values of each row, in units of the data, of [0, 1) for dequantized integers.

    An ODE goes down to the noise and back by the solver of its likelihood.

    Args:
        model: a trained model.
        rows: raw data, `(rows, *event)`.
        context: of the rows, `(rows, features)`.
        generator: noise of a dequantization, after which the trip begins.

    Returns:
        `(rows,)`, or None for a model that is no flow down to a base in closed form and no ODE.
    """
    inner, bijections, x = innermost(model), list(steps(model)), rows
    way = transport(inner, context)
    if way is None and not (bijections and isinstance(inner, Base)):
        return None
    while bijections and bijections[0].forward_direction.kind == "bound":  # a surjection gives integers back anyway
        x, _ = bijections.pop(0)(x, context, generator=generator)
    whole = Compose(*bijections) if bijections else None
    z = x if whole is None else whole(x, context, generator=generator)[0]
    if way is not None:
        z = way.decode(way.encode(z.to(inner.anchor))).to(z)
    back = z if whole is None else whole.inverse(z, context, generator=generator)[0]
    return (back - x).abs().flatten(1).amax(1)


def largest_round_trip_error(model: DensityModel, x: Tensor, context: Context = None, *, run: str) -> float | None:
    """The largest error of any row, of the first batch alone where an ODE makes the trip dear.

    Raises:
        NumericalError: an error that is not finite.
        RuntimeError: an ODE that cannot be solved.
    """
    errors = []
    for batch in batches(x, context, device=model.anchor.device):
        error = round_trip_error(model, batch.x, batch.context, generator=batch.generator)
        if error is None:
            return None
        errors.append(error)
        if not isinstance(innermost(model), Base):
            break
    largest = float(torch.cat(errors).max())
    if not math.isfinite(largest):
        raise NumericalError(f"{run}: the inverse of the flow gives values that are not finite on the test rows.")
    return largest
