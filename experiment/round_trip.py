"""How exactly a trained flow gives back what it was shown, in the precision in which it runs."""

from collections.abc import Iterator

import torch
from torch import Tensor

from core import DensityModel
from core.bases import Base
from core.density import Context
from discrete import Bijection, Compose, Flow


@torch.no_grad()
def round_trip_error(
    model: DensityModel, rows: Tensor, context: Context = None, *, generator: torch.Generator
) -> Tensor | None:
    """max |x - f⁻¹(f(x))| over the values of each row, in units of the data, of [0, 1) for dequantized integers.

    Args:
        model: a trained model.
        rows: raw data, `(rows, *event)`.
        context: of the rows, `(rows, features)`.
        generator: noise of a dequantization, after which the trip begins.

    Returns:
        `(rows,)`, or None for a model that is no flow down to a base in closed form.
    """
    if not isinstance(model, Flow) or not isinstance(_innermost(model), Base):
        return None
    bijections, x = list(_steps(model)), rows
    while bijections and bijections[0].forward_direction.kind == "bound":  # a surjection gives integers back anyway
        x, _ = bijections.pop(0)(x, context, generator=generator)
    if not bijections:
        return torch.zeros(len(rows), device=rows.device)
    whole = Compose(*bijections)
    z, _ = whole(x, context, generator=generator)
    back, _ = whole.inverse(z, context, generator=generator)
    return (back - x).abs().flatten(1).amax(1)


def _innermost(model: Flow) -> DensityModel:
    return _innermost(model.base) if isinstance(model.base, Flow) else model.base


def _steps(flow: Flow) -> Iterator[Bijection]:
    yield from _parts(flow.bijection)
    if isinstance(flow.base, Flow):
        yield from _steps(flow.base)


def _parts(bijection: Bijection) -> Iterator[Bijection]:
    if isinstance(bijection, Compose):
        for part in bijection.bijections:
            yield from _parts(part)  # type: ignore[arg-type]
    else:
        yield bijection
