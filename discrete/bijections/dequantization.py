"""From integers to densities: noise within each cell makes the log-likelihood of a density a bound on log P(k)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from core.bases import StandardLogistic
from core.precision import whole_numbers
from core.rng import Rng, rand
from core.shapes import sum_event
from core.units import dequantization_nats
from discrete.bijection import Bijection, Compose, Context, Direction, Events, Mapped
from discrete.bijections.coupling import AffineCoupling


class Dequantization(Bijection):
    """z = (k + u)/K, u uniform on [0, 1)^D, for integers k in 0..K-1: log-det -D log K; a bound, by Jensen.

    E_u[log p(z)] - D log K ≤ log P(k). A surjection: only inverse ∘ forward is exact, with k = ⌊K z⌋.

    References:
        Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016, section 3.1.

    Checked by tests/discrete/test_preprocessing.py.

    Args:
        event_shape: shape of one event.
        bins: number K of levels, 2 or more.

    Raises:
        ValueError: fewer than two bins.

    Example:
        >>> layer = Dequantization(2, bins=4)
        >>> z, log_det = layer(torch.tensor([[0, 3]]))
        >>> layer.inverse(z)[0].tolist(), round(log_det.item(), 4)  # -2 log 4
        ([[0.0, 3.0]], -2.7726)
    """

    forward_direction = Direction(0, "bound")
    inverse_direction = Direction(0, "bound")
    levels: Tensor

    def __init__(self, event_shape: int | Sequence[int], *, bins: int) -> None:
        super().__init__(event_shape)
        self.bins = bins
        self.log_volume = dequantization_nats(event_shape, bins=bins)
        self.register_buffer("levels", torch.tensor(float(bins)))

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """A random z and -D log K."""
        k = whole_numbers(x, like=self.levels, owner=type(self).__name__)
        u = rand(k.shape, generator, like=k)
        return _fill(k, u, self.levels, self.bins), k.new_full((k.shape[0],), -self.log_volume)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """k = ⌊K z⌋, the nearest level where z leaves [0, 1), and D log K."""
        return _floor(z, self.levels), z.new_full((z.shape[0],), self.log_volume)


class VariationalDequantization(Bijection):
    """z = (k + u)/K, u ~ q(u | k) a flow: log-det -log q(u | k) - D log K; a bound, tighter the better q is trained.

    E_q[log p(z) - log q(u | k)] - D log K ≤ log P(k), equal where q(u | k) ∝ p((k + u)/K). The noise is u = sigmoid(v)
    with v from affine couplings of logistic noise ε, steered by k and half of ε in turn; fresh couplings are the
    identity, which makes u uniform and the layer `Dequantization`. A surjection: only inverse ∘ forward is exact.

    References:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, section 3.1.
        Hoogeboom, Cohen, Tomczak, "Learning discrete distributions by dequantization", 2020.

    Checked by tests/discrete/test_variational_dequantization.py.

    Args:
        event_shape: features of a vector, or (channels, height, width).
        bins: number K of levels, 2 or more.
        layers: couplings of the noise.
        hidden: widths of their networks.
        context_features: width of the context, 0 for none.

    Raises:
        ValueError: fewer than two bins, or no coupling.

    Example:
        >>> layer = VariationalDequantization(2, bins=4)
        >>> z, log_det = layer(torch.tensor([[0, 3]]))
        >>> layer.inverse(z)[0].tolist(), round(log_det.item(), 4)  # -2 log 4
        ([[0.0, 3.0]], -2.7726)
    """

    forward_direction = Direction(0, "bound")
    inverse_direction = Direction(0, "bound")
    levels: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        bins: int,
        layers: int = 4,
        hidden: Sequence[int] = (64, 64),
        context_features: int = 0,
    ) -> None:
        super().__init__(event_shape)
        if layers < 1:
            raise ValueError(f"VariationalDequantization needs 1 coupling or more, but has layers={layers}.")
        self.bins = bins
        self.log_volume = dequantization_nats(event_shape, bins=bins)
        self.register_buffer("levels", torch.tensor(float(bins)))
        self.noise = StandardLogistic(self.event_shape)
        masks = [_beside_integers(self.event_shape, i) for i in range(layers)]
        self.couplings = Compose(
            *(AffineCoupling(m.shape, mask=m, hidden=hidden, context_features=context_features) for m in masks)
        )

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """A random z and -log q(u | k) - D log K."""
        k = whole_numbers(x, like=self.levels, owner=type(self).__name__)
        epsilon, log_noise = self.noise.rsample_and_log_prob((k.shape[0],), generator=generator)
        steering = 2 * k / (self.levels - 1) - 1
        both, log_det = self.couplings(torch.cat([steering, epsilon], 1), context)
        v = both[:, self.event_shape[0] :]
        log_q = log_noise - log_det + sum_event(F.softplus(v) + F.softplus(-v))
        return _fill(k, torch.sigmoid(v), self.levels, self.bins), -log_q - self.log_volume

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """k = ⌊K z⌋, the nearest level where z leaves [0, 1), and D log K."""
        return _floor(z, self.levels), z.new_full((z.shape[0],), self.log_volume)


def _fill(k: Tensor, u: Tensor, levels: Tensor, bins: int) -> Tensor:
    """(k + u)/K; at the very edge of a cell rounding would carry it over into the neighbour."""
    edge = 2 * bins * torch.finfo(k.dtype).eps
    return (k + u.clamp(edge, 1 - edge)) / levels


def _floor(z: Tensor, levels: Tensor) -> Tensor:
    return (z * levels).floor().clamp(min=0).minimum(levels - 1)


def _beside_integers(event_shape: torch.Size, layer: int) -> Tensor:
    """Mask of integers, which all pass, and noise after them, of which every other value does, neighbours in turn."""
    places = torch.meshgrid(*(torch.arange(size) for size in event_shape), indexing="ij")
    passes = torch.stack(places).sum(0) % 2 == layer % 2
    if passes.all():  # a single value of noise has nothing but the integer to steer it
        passes = ~passes
    return torch.cat([torch.ones_like(passes), passes])
