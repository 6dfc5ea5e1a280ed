from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from core.shapes import align


def preconditioned_score(
    net: Callable[[Tensor], Tensor],
    x: Float[Tensor, "rows ..."],
    scale: Float[Tensor, "*rows"],
    std: Float[Tensor, "*rows"],
    *,
    data_std: float,
) -> Float[Tensor, "rows ..."]:
    """s(x) = -x/V + α √v/(σ √V) F(x/√V) with V = α² v + σ²: F = 0 is the exact score of data N(0, v I) under (α, σ).

    What F has to learn has unit variance at every noise level.

    References:
        Karras et al., "Elucidating the design space of diffusion-based generative models", 2022, table 1, written for
        any (α, σ).

    Checked by tests/cflows/test_preconditioning.py.

    Args:
        net: F, of the rescaled rows.
        x: noisy rows α x₀ + σ ε.
        scale: α, 0-dimensional or `(rows,)`.
        std: σ, likewise.
        data_std: √v.
    """
    alpha, sigma = align(scale, x), align(std, x)
    total = torch.sqrt((alpha * data_std).square() + sigma.square())
    return -x / total.square() + alpha * data_std / (sigma * total) * net(x / total)
