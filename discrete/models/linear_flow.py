from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from core.bases import StandardNormal
from core.density import DensityModel
from core.shapes import vector_size
from discrete.bijection import Bijection
from discrete.bijections.linear import LULinear, QRLinear, Triangular
from discrete.flow import Flow


def LinearFlow(
    event_shape: int | Sequence[int],
    *,
    parametrization: Literal["lu", "qr", "triangular"] = "lu",
    base: DensityModel | None = None,
) -> Flow:
    """A linear flow z = W x + b: on the standard normal, exactly every Gaussian with a covariance of full rank.

    log p(x) = log p_base(W x + b) + log|det W|. Where z has mean 0 and covariance I, x has mean -W⁻¹ b and covariance
    (Wᵀ W)⁻¹.

    Checked by tests/contracts/densities.py and tests/discrete/test_linear.py.

    Args:
        event_shape: number of features.
        parametrization: `lu` for W = L U and `triangular` for W = T, both from W = I on, or `qr` for reflections times
            R, from a random rotation on.
        base: density of z; the standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: an event that is no vector, an unknown parametrization, or a base over another shape.

    Example:
        >>> import torch
        >>> LinearFlow(2).log_prob(torch.zeros(2)).item()  # -log 2π
        -1.8378770351409912
    """
    n = vector_size(event_shape, owner="LinearFlow")
    layers: dict[str, Callable[[], Bijection]] = {
        "lu": partial(LULinear, n, permutation="identity"),
        "qr": partial(QRLinear, n),
        "triangular": partial(Triangular, n),
    }
    if parametrization not in layers:
        raise ValueError(f"parametrization must be one of {', '.join(layers)}, but is {parametrization!r}.")
    return Flow(layers[parametrization](), StandardNormal(n) if base is None else base)
