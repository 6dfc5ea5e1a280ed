from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from core.nets.masked import MaskedMLP
from core.rng import Rng
from core.shapes import cut
from discrete.conditionals import draw_in_turn
from discrete.likelihoods import LikelihoodName, build_likelihood
from discrete.mass import MassModel


class AutoregressiveMLP(MassModel):
    """log P(k) = Σ_i log P(k_i; θ_i(k_1, ..., k_{i-1})) of whole numbers, θ from a network of masked shared weights.

    Values come in raster order, the channels of a pixel one after the other. A mass, not a density: exact, and nothing
    is dequantized. `log_prob` is one pass; `sample` takes D steps, together the multiply-adds of one pass.

    References:
        Bengio and Bengio, "Modeling high-dimensional discrete data with multi-layer neural networks", 2000;
        weights shared by masks, Germain et al., "MADE", 2015, eq. 8-13.

    Checked by tests/test_masses.py and tests/discrete/test_made.py.

    Args:
        event_shape: features of a vector, or (channels, height, width), of whole numbers 0..K-1 stored as floats.
        bins: number K of levels, 2 or more.
        likelihood: law of one value: `categorical`, or `mixture` of discretized logistics.
        components: logistics of the mixture.
        hidden: widths of the hidden layers, or of the residual blocks.
        conditioner: `plain` or `resnet`.
        direct: whether θ depends on the values before linearly as well.
        activation: activation of the network.
        context_features: width of the context, 0 for none.

    Raises:
        ValueError: an event that is neither vector nor image, a hidden width too small for the number of values, an
            unknown name, or a count out of range.

    Note:
        Values that are no whole number within 0..K-1 have log-mass -inf. A network of D values has weights for each
        place: `PixelCNN` shares them along an image.

    Example:
        >>> import torch
        >>> model = AutoregressiveMLP((1, 2, 2), bins=4, hidden=(8,))
        >>> x = model.sample((5,), generator=torch.Generator().manual_seed(0))
        >>> x.shape, model.log_prob(x).shape
        (torch.Size([5, 1, 2, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        bins: int = 256,
        likelihood: LikelihoodName = "categorical",
        components: int = 10,
        hidden: Sequence[int] = (128, 128),
        conditioner: Literal["plain", "resnet"] = "plain",
        direct: bool = False,
        activation: str = "relu",
        context_features: int = 0,
    ) -> None:
        super().__init__(event_shape, likelihood=build_likelihood(likelihood, bins=bins, components=components))
        self.network = MaskedMLP(
            self.event_shape.numel(),
            self.likelihood.parameters_per_value,
            hidden=hidden,
            order=cut(self.event_shape, patch=1).flatten(),
            conditioner=conditioner,
            direct=direct,
            context_features=context_features,
            activation=activation,
        )

    def _theta(self, u: Tensor, context: Tensor | None) -> Tensor:
        return self.network(u.flatten(1), context).unflatten(1, self.event_shape)

    def _draw(self, rows: int, context: Tensor | None, generator: Rng) -> Tensor:
        k = draw_in_turn(self.network, self.likelihood, rows, context, generator)
        return k.unflatten(1, self.event_shape)
