from collections.abc import Sequence

import torch
from torch import Tensor

from core.nets.masked_conv import MaskedConvNet
from core.rng import Rng
from core.shapes import as_event_shape
from discrete.likelihoods import LikelihoodName, build_likelihood
from discrete.mass import MassModel


class PixelCNN(MassModel):
    """P(x) = Π_i P(x_i | x_<i, context) over the values of an image in raster order, the channels of a pixel in turn.

    θ of every value comes from one pass of gated masked convolutions, without a blind spot. Sampling takes the values
    in turn: the vertical stack runs once a row and the horizontal one at the next pixel alone, once a channel, so that
    an image costs no more arithmetic than `channels` passes of the network, not channels · height · width of them.

    References:
        van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016, eq. 1, 2 and 4.
        Salimans, Karpathy, Chen, Kingma, "PixelCNN++", 2017, eq. 2; masks tie the channels of a pixel in place of its
        linear eq. 3.

    Checked by tests/test_masses.py and tests/discrete/test_pixel_cnn.py.

    Args:
        event_shape: (channels, height, width).
        bins: number K of levels of a value, 2 or more.
        likelihood: `mixture` of discretized logistics, or `categorical` with K logits.
        components: logistics of the mixture.
        layers: gated layers.
        hidden: width of the gated layers, then of each 1×1 layer behind them; none below the number of channels.
        kernel: size of the convolutions, odd and 3 or more.
        context_features: width of the context, 0 for none.

    Raises:
        ValueError: an event that is no image, or a setting out of its range.

    Note:
        A value sees 1 + layers (kernel - 1)/2 rows above and layers (kernel - 1)/2 columns to either side; what lies
        farther away it does not know.

    Example:
        >>> model = PixelCNN((3, 4, 4), bins=8, layers=2, hidden=(6,), components=2)
        >>> x = model.sample((2,))
        >>> x.shape, model.log_prob(x).shape
        (torch.Size([2, 3, 4, 4]), torch.Size([2]))
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        bins: int = 256,
        likelihood: LikelihoodName = "mixture",
        components: int = 10,
        layers: int = 8,
        hidden: Sequence[int] = (64, 128),
        kernel: int = 5,
        context_features: int = 0,
    ) -> None:
        shape = as_event_shape(event_shape)
        if len(shape) != 3:
            raise ValueError(f"PixelCNN takes images (channels, height, width), but event_shape is {tuple(shape)}.")
        super().__init__(shape, likelihood=build_likelihood(likelihood, bins=bins, components=components))
        self.network = MaskedConvNet(
            shape[0],
            self.likelihood.parameters_per_value,
            layers=layers,
            kernel=kernel,
            hidden=hidden,
            context_features=context_features,
        )

    def _theta(self, u: Tensor, context: Tensor | None) -> Tensor:
        return self.network(u, context)

    def _draw(self, rows: int, context: Tensor | None, generator: Rng) -> Tensor:
        channels, height, width = self.event_shape
        raster, pixels = self.network.raster(rows, width, context), []
        for _ in range(height):
            raster.start_row()
            for _ in range(width):
                k = self.anchor.new_zeros(rows, channels)
                for c in range(channels):
                    theta = raster.output(self.likelihood.rescale(k))
                    k[:, c] = self.likelihood.sample(theta[:, c], generator=generator)
                raster.push(self.likelihood.rescale(k))
                pixels.append(k)
        return torch.stack(pixels, -1).reshape(rows, channels, height, width)
