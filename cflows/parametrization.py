"""What a network may predict of x = α x₀ + σ ε, and the score that each prediction stands for."""

from collections.abc import Callable
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from core.shapes import align

Parametrization = Literal["score", "noise", "data", "velocity"]


def convert(
    value: Float[Tensor, "rows ..."],
    x: Float[Tensor, "rows ..."],
    scale: Float[Tensor, "*rows"],
    std: Float[Tensor, "*rows"],
    *,
    source: Parametrization,
    target: Parametrization,
) -> Float[Tensor, "rows ..."]:
    """One prediction as another: score s = -ε/σ, noise ε, data x₀, velocity v = α ε - σ x₀, for any α and σ.

    With x = α x₀ + σ ε two of the four follow from any one: x₀ = (x - σ ε)/α, ε = (x - α x₀)/σ, and from a velocity
    x₀ = (α x - σ v)/(α² + σ²) and ε = (σ x + α v)/(α² + σ²), where papers have α² + σ² = 1. The same equations hold
    between posterior means given x, so that the score of p_t is -E[ε | x]/σ.

    References:
        Salimans and Ho, "Progressive distillation for fast sampling of diffusion models", 2022, section 4, app. D.

    Checked by tests/cflows/test_parametrization.py.

    Args:
        value: the prediction that `source` names.
        x: noisy rows, like it.
        scale: α > 0, 0-dimensional or `(rows,)`.
        std: σ > 0, likewise.
        source: what `value` is.
        target: what is asked for.

    Returns:
        Like `value`; `value` itself where both are the same.

    Raises:
        ValueError: an unknown parametrization.

    Note:
        A difference of x and a prediction loses digits: x₀ or v from a score or the noise a factor σ/α (VP at t = 1:
        150, VE: 50), a score, the noise or v from x₀ a factor α/σ (at t = 1e-5, VP: 1000, VE: 8000; sub-VP: 1e6, all
        digits of float32). From v nothing is lost.

    Example:
        >>> import torch
        >>> x, scale, std = torch.tensor([[0.6 * 2 + 0.8 * 1]]), torch.tensor(0.6), torch.tensor(0.8)
        >>> v = convert(torch.tensor([[1.0]]), x, scale, std, source="noise", target="velocity")
        >>> round(v.item(), 4)  # 0.6 · 1 - 0.8 · 2
        -1.0
    """
    for name in (source, target):
        if name not in get_args(Parametrization):
            raise ValueError(f"a parametrization is one of {', '.join(get_args(Parametrization))}, not {name!r}.")
    if source == target:
        return value
    alpha, sigma = align(scale, x), align(std, x)
    x_0, eps = _parts(value, x, alpha, sigma, source)
    if target == "velocity":
        return alpha * eps() - sigma * x_0()
    if target == "data":
        return x_0()
    return eps() if target == "noise" else -eps() / sigma


def _parts(
    value: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, source: Parametrization
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """x₀ and ε, each worked out only where it is asked for."""
    if source == "velocity":
        total = alpha.square() + sigma.square()
        return lambda: (alpha * x - sigma * value) / total, lambda: (sigma * x + alpha * value) / total
    if source == "data":
        return lambda: value, lambda: (x - alpha * value) / sigma
    eps = value if source == "noise" else -sigma * value
    return lambda: (x - sigma * eps) / alpha, lambda: eps
