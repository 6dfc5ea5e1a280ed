from collections.abc import Sequence
from typing import Literal

import torch

from core.bases import StandardNormal
from core.density import DensityModel
from core.shapes import as_event_shape
from discrete.bijection import Bijection, Compose
from discrete.bijections.mint import Activation
from discrete.bijections.mintnet import MaskedConvolution, Scan
from discrete.bijections.multiscale import squeeze_if_even
from discrete.bijections.normalization import ActNorm
from discrete.flow import Flow


def MintNet(
    event_shape: int | Sequence[int],
    *,
    layers: int | None = None,
    levels: int | None = None,
    filters: int = 32,
    kernel: int = 3,
    scan: Scan = "channels",
    activation: Activation = "elu",
    context_features: int = 0,
    log_scale_bound: float = 3.0,
    normalization: Literal["actnorm", "none"] = "actnorm",
    step: float = 1.0,
    tolerance: float | None = None,
    iterations: int = 100,
    base: DensityModel | None = None,
) -> Flow:
    """MintNet: pairs of masked convolutions, one in raster order, one in reversed order, so that all values mix.

    Images go through `levels` such groups with a `Squeeze` between each two, which a level whose side is odd skips;
    nothing is factored out, and the latent has the shape of what comes out last. As channels become four, filters a
    channel become a quarter, so that the inner layers keep their width.

    References:
        Song, Meng, Ermon, "MintNet: building invertible neural networks with masked convolutions", 2019; sizes and the
        order of channels from its code. `ActNorm` in front of each pair is not the paper's.

    Checked by tests/contracts/densities.py and tests/discrete/test_mintnet.py.

    Args:
        event_shape: number of features, or (channels, height, width).
        layers: pairs a level; 4 for vectors and 2 for images where omitted; 7 in the paper's CIFAR-10 model, 6, 6 and 8
            in the one of MNIST.
        levels: of an image, 3 where omitted, as in the paper.
        filters: K of the first level, 45 for MNIST and 85 for CIFAR-10 in the paper.
        kernel: odd size of the kernels.
        scan: `channels`, all pixels of a channel before the next one, as in the paper's code, or `pixels`.
        activation: h, `elu` or `tanh`.
        context_features: width of the context, 0 for none.
        log_scale_bound: soft bound on every log t.
        normalization: what each pair follows: `actnorm` or `none`, as in the paper.
        step: α of every inverse, see `MaskedConvolution.invert`.
        tolerance: residual at which a row of an inverse rests, likewise.
        iterations: most iterations of a row, likewise.
        base: density of the latent; a standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: no layer or level, levels of a vector, an unknown normalization, an option that
            `MaskedConvolution` refuses, or a base over another shape.

    Example:
        >>> flow = MintNet((1, 28, 28), layers=1, filters=4)
        >>> flow.bijection.latent_shape
        torch.Size([16, 7, 7])
        >>> flow.sample((2,), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 28, 28])
    """
    shape = as_event_shape(event_shape)
    image = len(shape) == 3
    if (layers is not None and layers < 1) or (levels is not None and (levels < 1 or not image)):
        raise ValueError(f"MintNet needs 1 pair of layers and, of an image, 1 level or more, but {layers=}, {levels=}.")
    if normalization not in ("actnorm", "none"):
        raise ValueError(f"normalization must be actnorm or none, but is {normalization!r}.")

    def pair(shape: torch.Size, filters: int) -> list[Bijection]:
        steps: list[Bijection] = [ActNorm(shape)] if normalization == "actnorm" else []
        for order in ("raster", "reversed"):
            steps.append(
                MaskedConvolution(
                    shape,
                    filters=filters,
                    kernel=kernel,
                    order=order,
                    scan=scan,
                    activation=activation,
                    context_features=context_features,
                    log_scale_bound=log_scale_bound,
                    step=step,
                    tolerance=tolerance,
                    iterations=iterations,
                )
            )
        return steps

    steps: list[Bijection] = []
    for level in range((levels or 3) if image else 1):
        if level and (squeeze := squeeze_if_even(shape)):
            steps += squeeze
            shape, filters = squeeze[0].latent_shape, max(filters // 4, 1)
        steps += [step for _ in range(layers or (2 if image else 4)) for step in pair(shape, filters)]
    return Flow(Compose(*steps), StandardNormal(steps[-1].latent_shape) if base is None else base)
