from collections.abc import Sequence

from torch import Tensor

from core.nets import CausalTransformer
from core.rng import Rng
from core.shapes import cut
from discrete.likelihoods import LikelihoodName, build_likelihood
from discrete.mass import MassModel


class AutoregressiveTransformer(MassModel):
    """log P(k) = Σ_i log P(k_i; θ_i(k_1, ..., k_{i-1})) of whole numbers, θ from a causal transformer.

    One token a value, in raster order, the channels of a pixel one after the other. A mass, not a density: exact, and
    nothing is dequantized. `log_prob` is one pass; `sample` takes D steps that keep keys and values, together the
    multiply-adds of one pass.

    References:
        Parmar et al., "Image transformer", 2018, section 3; Chen et al., "Generative pretraining from pixels", 2020.

    Checked by tests/discrete/test_autoregressive_transformer.py.

    Args:
        event_shape: features of a vector, or (channels, height, width), of whole numbers 0..K-1 stored as floats.
        bins: number K of levels.
        likelihood: law of one value: `categorical`, or `mixture` of discretized logistics.
        components: logistics of the mixture.
        layers: blocks of the transformer.
        hidden: its width, a multiple of `heads`.
        heads: attention heads a block.
        context_features: width of the context, 0 for none.

    Raises:
        ValueError: an event that is neither vector nor image, an unknown likelihood, or counts that do not fit.

    Note:
        Values that are no whole number within 0..K-1 have log-mass -inf.

    Example:
        >>> import torch
        >>> model = AutoregressiveTransformer((1, 4, 4), bins=16, layers=1, hidden=8)
        >>> x = model.sample((5,), generator=torch.Generator().manual_seed(0))
        >>> x.shape, model.log_prob(x).shape
        (torch.Size([5, 1, 4, 4]), torch.Size([5]))
    """

    places: Tensor
    inverse_places: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        bins: int = 256,
        likelihood: LikelihoodName = "categorical",
        components: int = 10,
        layers: int = 4,
        hidden: int = 128,
        heads: int = 4,
        context_features: int = 0,
    ) -> None:
        super().__init__(event_shape, likelihood=build_likelihood(likelihood, bins=bins, components=components))
        places = cut(self.event_shape, patch=1).flatten()
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("inverse_places", places.argsort(), persistent=False)
        self.network = CausalTransformer(
            1,
            self.likelihood.parameters_per_value,
            tokens=len(places),
            layers=layers,
            hidden=hidden,
            heads=heads,
            context_features=context_features,
        )

    def _theta(self, u: Tensor, context: Tensor | None) -> Tensor:
        tokens = u.flatten(1).index_select(1, self.places)
        return self._to_event(self.network(tokens.unsqueeze(-1), context))

    def _draw(self, rows: int, context: Tensor | None, generator: Rng) -> Tensor:
        k = self.anchor.new_empty(rows, len(self.places))

        def choose(i: int, theta: Tensor) -> Tensor:
            k[:, i] = self.likelihood.sample(theta, generator=generator)
            return self.likelihood.rescale(k[:, i, None])

        self.network.sweep(choose, rows, context)
        return self._to_event(k)

    def _to_event(self, values: Tensor) -> Tensor:
        return values.index_select(1, self.inverse_places).unflatten(1, self.event_shape)
