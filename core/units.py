"""Nats, bits per dimension, and the constant that dequantization adds."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from core.shapes import as_event_shape


def dequantization_nats(event_shape: int | Sequence[int], *, bins: int) -> float:
    """D log K: what a density on [0, 1)^D gains over the one on integers 0..K-1 whose cells it fills, nats.

    Example:
        >>> dequantization_nats(2, bins=256) == 2 * math.log(256)
        True
    """
    if bins < 2:
        raise ValueError(f"bins must be 2 or more levels, but is {bins}.")
    return math.prod(as_event_shape(event_shape)) * math.log(bins)


def bits_per_dim(
    log_prob: Float[Tensor, "*batch"], event_shape: int | Sequence[int], *, bins: int | None = None
) -> Float[Tensor, "*batch"]:
    """Bits per dimension -log p(x) / (D log 2), plus log2 K where `log_prob` is a density on [0, 1)^D of K levels.

    A model that owns a `Dequantization` layer already answers for the integers themselves: leave `bins` out. A density
    of values rescaled to [0, 1) does not know how fine the levels were: name them.

    Checked by tests/core/test_units.py.

    Args:
        log_prob: nats, `(*batch,)`.
        event_shape: shape of one event, D values in all.
        bins: levels K of the integers behind values in [0, 1)^D, or None.

    Returns:
        Bits per dimension, `(*batch,)`; lower is better.

    Raises:
        ValueError: fewer than two bins.

    Example:
        >>> import torch
        >>> bits_per_dim(torch.zeros(1), (28, 28), bins=256).item()  # a uniform density on 8-bit pixels
        8.0
    """
    dimensions = math.prod(as_event_shape(event_shape))
    offset = 0.0 if bins is None else dequantization_nats(event_shape, bins=bins)
    return (offset - log_prob) / (dimensions * math.log(2))
