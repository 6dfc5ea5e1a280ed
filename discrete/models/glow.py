from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from core.bases import StandardNormal
from core.density import DensityModel
from discrete.bijection import Bijection, Compose
from discrete.bijections.convolution import Invertible1x1Conv, Parametrization
from discrete.bijections.coupling import AdditiveCoupling, AffineCoupling, Conditioner
from discrete.bijections.multiscale import MultiScale, multi_scale, squeeze_if_even
from discrete.bijections.normalization import ActNorm
from discrete.bijections.transformers import ScaleName
from discrete.flow import Flow
from discrete.reversible import Reversible


def Glow(
    event_shape: int | Sequence[int],
    *,
    levels: int = 3,
    depth: int = 16,
    hidden: Sequence[int] = (128, 128),
    coupling: Literal["affine", "additive"] = "affine",
    conditioner: Conditioner = "plain",
    parametrization: Parametrization = "lu",
    scale: ScaleName = "tanh",
    activation: str = "relu",
    dropout: float = 0.0,
    context_features: int = 0,
    log_scale_bound: float = 3.0,
    reversible: bool = False,
    base: DensityModel | None = None,
) -> Flow:
    """Glow: at each level a squeeze and `depth` steps of ActNorm, invertible 1×1 convolution and channel-wise coupling.

    Between two levels half of the channels leave as a learned Gaussian given the others, see `Split`. The latent is
    one vector, see `MultiScale`. A level whose side is odd skips its squeeze: 28×28 goes 14×14, 7×7, 7×7.

    References:
        Kingma and Dhariwal, "Glow: generative flow with invertible 1×1 convolutions", 2018, section 3, figure 2.

    Checked by tests/contracts/densities.py and tests/discrete/test_image_models.py.

    Args:
        event_shape: (channels, height, width); one channel needs even sides.
        levels: number of levels, 3 in the paper's CIFAR-10 model.
        depth: steps a level, 32 in the paper.
        hidden: widths of each coupling's network, (512, 512) in the paper.
        coupling: `affine` or `additive`.
        conditioner: `plain`, the paper's three convolutions, `resnet`, or a factory as of `AffineCoupling`.
        parametrization: of the 1×1 convolutions: `dense`, `lu` or `qr`.
        scale: `tanh`, or `sigmoid` as in the paper's code.
        activation: activation of the networks.
        dropout: dropout probability in training.
        context_features: width of the context, 0 for none.
        log_scale_bound: soft bound on every log-scale.
        reversible: recompute activations in the backward pass, so that memory does not grow with depth.
        base: density of the latent vector; a standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: an event that is no image, one channel with an odd side, or a base over another shape.

    Example:
        >>> flow = Glow((1, 28, 28), levels=2, depth=1, hidden=(8,))
        >>> flow.sample((2,), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 28, 28])
    """
    if coupling not in ("affine", "additive"):
        raise ValueError(f"Glow's coupling must be affine or additive, but is {coupling!r}.")

    def coupled(shape: torch.Size) -> Bijection:
        network: dict[str, Any] = {
            "mask": "half",
            "hidden": hidden,
            "activation": activation,
            "dropout": dropout,
            "context_features": context_features,
            "conditioner": conditioner,
        }
        if coupling == "additive":
            return AdditiveCoupling(shape, **network)
        return AffineCoupling(shape, log_scale_bound=log_scale_bound, scale=scale, **network)

    bijection = glow_levels(
        event_shape,
        levels=levels,
        depth=depth,
        coupling=coupled,
        parametrization=parametrization,
        reversible=reversible,
        context_features=context_features,
        log_scale_bound=log_scale_bound,
    )
    return Flow(bijection, StandardNormal(bijection.latent_shape) if base is None else base)


def glow_levels(
    event_shape: int | Sequence[int],
    *,
    levels: int,
    depth: int,
    coupling: Callable[[torch.Size], Bijection],
    parametrization: Parametrization,
    reversible: bool = False,
    context_features: int = 0,
    log_scale_bound: float = 3.0,
) -> MultiScale:
    """Glow's bijection around any coupling over channels, made by `coupling` from the shape that reaches it.

    Raises:
        ValueError: no step, an event that is no image, or a shape that `coupling` refuses.
    """
    if depth < 1:
        raise ValueError(f"Glow needs 1 step a level or more, but has depth={depth}.")

    def step(shape: torch.Size) -> tuple[Bijection, ...]:
        return ActNorm(shape), Invertible1x1Conv(shape, parametrization=parametrization), coupling(shape)

    def level(shape: torch.Size, i: int) -> Bijection:
        squeeze = squeeze_if_even(shape)
        shape = squeeze[0].latent_shape if squeeze else shape
        if shape[0] < 2:
            raise ValueError(
                f"couplings over channels need 2 channels or more, but level {i + 1} of {levels} gets {tuple(shape)}, "
                f"whose sides are not both even; use fewer levels, or RealNVP, which also couples over checkerboards."
            )
        steps = [layer for _ in range(depth) for layer in step(shape)]
        return (Reversible if reversible else Compose)(*squeeze, *steps)

    return multi_scale(
        event_shape,
        levels=levels,
        level=level,
        context_features=context_features,
        log_scale_bound=log_scale_bound,
    )
