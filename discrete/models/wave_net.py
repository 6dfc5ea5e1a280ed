from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from core.nets.causal_conv import CausalConvNet
from core.rng import Rng
from core.shapes import vector_size
from discrete.likelihoods import LikelihoodName, build_likelihood
from discrete.mass import MassModel


class WaveNet(MassModel):
    """P(x) = Π_t P(x_t | x_<t, context) over a sequence of whole numbers: audio, or an image flattened.

    θ of every step comes from one pass of dilated causal convolutions over the sequence one step late. Sampling takes
    the steps in turn, each in work that grows with the number of layers alone: every layer keeps its last inputs, as
    many as its dilation, for the time of the call.

    References:
        van den Oord et al., "WaveNet", 2016, eq. 1 and 2, sections 2.1 to 2.5.
        Paine et al., "Fast WaveNet generation algorithm", 2016, section 2 (the cache).

    Checked by tests/test_masses.py and tests/discrete/test_wave_net.py.

    Args:
        event_shape: number T of steps.
        bins: number K of levels of a value, 2 or more.
        likelihood: `mixture` of discretized logistics, or `categorical` with K logits.
        components: logistics of the mixture.
        layers: dilated layers of a cycle, of dilations 1, 2, 4, ..., 2^(layers-1).
        cycles: how often the dilations run through.
        hidden: width of the dilated layers, then of the skips and of each 1×1 layer behind them; two or more.
        context_features: width of the context, 0 for none.

    Raises:
        ValueError: an event that is no vector, or a setting out of its range.

    Note:
        A step sees the 1 + cycles (2^layers - 1) steps before it, `receptive_field`; nothing farther back.

    Example:
        >>> model = WaveNet(16, bins=8, layers=4, cycles=1, hidden=(8, 8), components=2)
        >>> x = model.sample((2,))
        >>> x.shape, model.log_prob(x).shape, model.receptive_field
        (torch.Size([2, 16]), torch.Size([2]), 16)
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        bins: int = 256,
        likelihood: LikelihoodName = "mixture",
        components: int = 10,
        layers: int = 8,
        cycles: int = 2,
        hidden: Sequence[int] = (64, 128, 128),
        context_features: int = 0,
    ) -> None:
        vector_size(event_shape, owner="WaveNet")
        super().__init__(event_shape, likelihood=build_likelihood(likelihood, bins=bins, components=components))
        if layers < 1 or cycles < 1:
            raise ValueError(f"WaveNet needs 1 layer and 1 cycle or more, but has layers={layers}, cycles={cycles}.")
        self.network = CausalConvNet(
            2,  # the value and a one, which tells the sequence from what lies before it
            self.likelihood.parameters_per_value,
            dilations=[2**i for i in range(layers)] * cycles,
            hidden=hidden,
            context_features=context_features,
        )

    @property
    def receptive_field(self) -> int:
        """Number of steps before it that a step sees."""
        return 1 + sum(self.network.dilations)

    def _theta(self, u: Tensor, context: Tensor | None) -> Tensor:
        late = F.pad(_with_one(u), (0, 0, 1, 0))[:, :-1]
        return self.network(late, context)

    def _draw(self, rows: int, context: Tensor | None, generator: Rng) -> Tensor:
        memory, steps = self.network.memory(rows, context), []
        before = self.anchor.new_zeros(rows, 2)
        for _ in range(self.event_shape[0]):
            theta = self.network.step(before, memory)
            k = self.likelihood.sample(theta, generator=generator)
            before = _with_one(self.likelihood.rescale(k))
            steps.append(k)
        return torch.stack(steps, -1)


def _with_one(u: Tensor) -> Tensor:
    return torch.stack([u, torch.ones_like(u)], -1)
