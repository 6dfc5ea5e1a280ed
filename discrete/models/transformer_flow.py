import math
from collections.abc import Sequence

from core.bases import StandardNormal
from core.density import DensityModel
from core.shapes import as_event_shape
from discrete.bijection import Compose
from discrete.bijections.autoregressive_inverse import InverseMode
from discrete.bijections.patch_autoregressive import PatchAutoregressive, PatchOrder
from discrete.flow import Flow


def TransformerFlow(
    event_shape: int | Sequence[int],
    *,
    patch: int | None = None,
    layers: int = 8,
    depth: int = 2,
    hidden: int = 128,
    heads: int = 4,
    context_features: int = 0,
    log_scale_bound: float = 3.0,
    inverse_mode: InverseMode = "incremental",
    tolerance: float | None = None,
    base: DensityModel | None = None,
) -> Flow:
    """Transformer flow (TarFlow): autoregressive affine maps of patches by causal transformers, the order in turn.

    `log_prob` is one pass a block, `sample` one token after the other with keys and values kept. Nothing stands between
    the blocks but the reversal of the order.

    References:
        Zhai et al., "Normalizing flows are capable generative models", 2024, section 2.

    Checked by tests/contracts/densities.py and tests/discrete/test_transformer_flow.py.

    Args:
        event_shape: features of a vector, or (channels, height, width).
        patch: side of a patch, or values of a vector that make a token; where omitted 1 for vectors, and for images
            the largest of 4, 2 and 1 that divides both sides.
        layers: number of flow blocks, 8 in the paper.
        depth: transformer blocks of each, 8 in the paper.
        hidden: width of the transformers, a multiple of `heads`.
        heads: attention heads.
        context_features: width of the context, 0 for none.
        log_scale_bound: soft bound on every log-scale.
        inverse_mode: how blocks are inverted, see `invert_autoregressive`.
        tolerance: residual at which a row of an iteration rests, likewise.
        base: density of the latent; a standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: an event that is neither vector nor image, a patch that does not divide it, no block, or a base over
            another shape.

    Example:
        >>> import torch
        >>> flow = TransformerFlow((1, 8, 8), layers=2, depth=1, hidden=16)
        >>> flow.sample((2,), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 8, 8])
    """
    shape = as_event_shape(event_shape)
    if layers < 1:
        raise ValueError(f"TransformerFlow needs 1 block or more, but has layers={layers}.")
    if patch is None:
        patch = math.gcd(4, *shape[1:]) if len(shape) == 3 else 1
    orders: list[PatchOrder] = ["raster", "reversed"]
    blocks = [
        PatchAutoregressive(
            shape,
            patch=patch,
            order=orders[i % 2],
            depth=depth,
            hidden=hidden,
            heads=heads,
            context_features=context_features,
            log_scale_bound=log_scale_bound,
            inverse_mode=inverse_mode,
            tolerance=tolerance,
        )
        for i in range(layers)
    ]
    return Flow(Compose(*blocks), StandardNormal(shape) if base is None else base)
