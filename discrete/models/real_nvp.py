from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from core.bases import StandardNormal
from core.density import DensityModel
from core.shapes import as_event_shape
from discrete.bijection import Bijection, Compose
from discrete.bijections.coupling import AffineCoupling, Conditioner
from discrete.bijections.multiscale import multi_scale, squeeze_if_even
from discrete.bijections.normalization import ActNorm, BatchNorm
from discrete.bijections.partition import MaskName, alternating_mask
from discrete.flow import Flow

Normalization = Literal["actnorm", "batch", "none"]
NORMALIZATIONS: dict[str, list[type[ActNorm] | type[BatchNorm]]] = {
    "actnorm": [ActNorm],
    "batch": [BatchNorm],
    "none": [],
}
Step = Callable[[torch.Size, MaskName | Tensor], list[Bijection]]  # a coupling of this shape and mask


def RealNVP(
    event_shape: int | Sequence[int],
    *,
    layers: int | None = None,
    levels: int | None = None,
    strides: Sequence[int] = (1,),
    hidden: Sequence[int] = (128, 128),
    conditioner: Conditioner | None = None,
    dropout: float = 0.0,
    activation: str = "relu",
    context_features: int = 0,
    log_scale_bound: float = 3.0,
    normalization: Normalization = "actnorm",
    base: DensityModel | None = None,
) -> Flow:
    """RealNVP: affine couplings over partitions in turn, each after a normalization.

    Vectors: alternating partitions. Images: at each level couplings over checkerboards, a squeeze, couplings over
    halves of the channels, and half of them factored out (see `Split`); at the last level one checkerboard more and no
    squeeze. A level whose side is odd skips its squeeze, and with a single channel its couplings over channels too. The
    latent of an image is one vector, see `MultiScale`.

    References:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, sections 3.2-3.7. By default `ActNorm`
        (Kingma and Dhariwal, 2018) stands where the paper has batch normalization: rows stay independent.

    Checked by tests/contracts/densities.py and tests/discrete/test_image_models.py.

    Args:
        event_shape: number of features, 2 or more, or (channels, height, width).
        layers: vectors: number of couplings, 8 where omitted; each two in a row share a partition, first one part
            passing, then the other. Images: couplings a group, 3 in the paper and where omitted.
        levels: of an image, 2 where omitted.
        strides: of a vector, lengths of the runs in which partitions alternate, used in turn: (1,) for neighbours,
            (1, W) for columns and then rows of a flattened image of even width W.
        hidden: widths of each coupling's network, (64,) * 8 in the paper's CIFAR-10 model.
        conditioner: `plain`, `resnet`, or a factory as of `AffineCoupling`; where omitted plain for vectors and resnet
            for images.
        dropout: dropout probability in training.
        activation: activation of the networks.
        context_features: width of the context, 0 for none.
        log_scale_bound: soft bound on every log-scale.
        normalization: what each coupling follows: `actnorm`, `batch` as in the paper, or `none`.
        base: density of the latent; a standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: an event that is neither vector nor image, an option of the other kind, a stride that leaves a part
            empty, an unknown normalization, or a base over another shape.

    Example:
        >>> flow = RealNVP(2)
        >>> flow.sample((5,), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
    """
    shape = as_event_shape(event_shape)
    image = len(shape) == 3
    if (layers is not None and layers < 1) or not strides:
        raise ValueError(f"RealNVP needs 1 coupling and 1 stride or more, but has {layers=} and {strides=}.")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be actnorm, batch or none, but is {normalization!r}.")
    if (image and tuple(strides) != (1,)) or (not image and levels is not None):
        raise ValueError(f"RealNVP takes strides for vectors and levels for images, but has {strides=} and {levels=}.")

    def step(shape: torch.Size, mask: MaskName | Tensor) -> list[Bijection]:
        coupling = AffineCoupling(
            shape,
            mask=mask,
            hidden=hidden,
            activation=activation,
            dropout=dropout,
            context_features=context_features,
            log_scale_bound=log_scale_bound,
            conditioner=conditioner or ("resnet" if image else "plain"),
        )
        return [*(kind(shape) for kind in NORMALIZATIONS[normalization]), coupling]

    bijection: Bijection
    if image:
        bijection = _image(
            shape,
            step,
            layers=layers or 3,
            levels=levels or 2,
            context_features=context_features,
            log_scale_bound=log_scale_bound,
        )
    else:
        masks = [
            alternating_mask(shape[0], strides[i // 2 % len(strides)], flipped=i % 2 == 1) for i in range(layers or 8)
        ]
        bijection = Compose(*(layer for mask in masks for layer in step(shape, mask)))
    return Flow(bijection, StandardNormal(bijection.latent_shape) if base is None else base)


def _image(
    shape: torch.Size, step: Step, *, layers: int, levels: int, context_features: int, log_scale_bound: float
) -> Bijection:
    def level(shape: torch.Size, i: int) -> Bijection:
        if i == levels - 1:
            return Compose(*_group(shape, step, "checkerboard", "checkerboard_flipped", count=layers + 1))
        made = _group(shape, step, "checkerboard", "checkerboard_flipped", count=layers)
        squeeze = squeeze_if_even(shape)
        shape = squeeze[0].latent_shape if squeeze else shape
        channelwise = _group(shape, step, "half", "half_flipped", count=layers if shape[0] > 1 else 0)
        return Compose(*made, *squeeze, *channelwise)

    return multi_scale(
        shape, levels=levels, level=level, context_features=context_features, log_scale_bound=log_scale_bound
    )


def _group(shape: torch.Size, step: Step, *masks: MaskName, count: int) -> list[Bijection]:
    return [layer for i in range(count) for layer in step(shape, masks[i % 2])]
