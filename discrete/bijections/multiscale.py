"""The multi-scale architecture: pixels turned into channels, half of them factored out at each level."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor

from core.nets import ConvNet
from core.rng import Rng
from core.shapes import as_event_shape, sum_event
from discrete.bijection import Bijection, Context, Direction, Events, Mapped
from discrete.bijections.transformers import soft_bound


class Squeeze(Bijection):
    """Each 2×2 square of pixels becomes four channels, (C, H, W) to (4 C, H/2, W/2): log|det| = 0.

    Channel 4 c + 2 a + b of the result holds the pixels of even or odd row a and column b of channel c.

    References:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, section 3.6.

    Checked by tests/contracts/bijections.py and tests/discrete/test_multiscale.py.

    Args:
        event_shape: (channels, height, width), both sides even.

    Raises:
        ValueError: an event that is no image, or a side that is odd.

    Example:
        >>> z, _ = Squeeze((1, 2, 2))(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
        >>> z.flatten().tolist()
        [1.0, 2.0, 3.0, 4.0]
    """

    forward_direction = inverse_direction = Direction(0)

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        shape = as_event_shape(event_shape)
        if len(shape) != 3 or shape[1] % 2 or shape[2] % 2:
            raise ValueError(
                f"Squeeze takes (channels, height, width) of even sides, but event_shape is {tuple(shape)}."
            )
        channels, height, width = shape
        super().__init__(shape, latent_shape=(4 * channels, height // 2, width // 2))

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and zero."""
        return rearrange(x, "r c (h a) (w b) -> r (c a b) h w", a=2, b=2), x.new_zeros(x.shape[0])

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and zero."""
        return rearrange(z, "r (c a b) h w -> r c (h a) (w b)", a=2, b=2), z.new_zeros(z.shape[0])


class Split(Bijection):
    """z_1 = x_1, z_2 = (x_2 - μ(x_1))/σ(x_1): the second half of the channels given the first as a Gaussian.

    log|det| = -Σ log σ. What comes out as z_2 is standard normal where the model is right, so that `MultiScale` can
    take it off and the flow still ends at a standard base. log σ = B tanh(·/B) is bounded softly; a fresh layer has
    μ = 0 and σ = 1.

    References:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, eq. 14-16; the learned Gaussian is that
        of the code of Kingma and Dhariwal, "Glow", 2018.

    Checked by tests/contracts/bijections.py and tests/discrete/test_multiscale.py.

    Args:
        event_shape: (channels, height, width), 2 channels or more; the first ⌈C/2⌉ are kept.
        hidden: widths of the network of μ and log σ; with none it is one 3×3 convolution.
        context_features: width of the context, 0 for none.
        log_scale_bound: B > 0.

    Raises:
        ValueError: an event that is no image of 2 channels or more.

    Example:
        >>> Split((4, 2, 2)).kept_shape
        torch.Size([2, 2, 2])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        hidden: Sequence[int] = (),
        context_features: int = 0,
        log_scale_bound: float = 3.0,
    ) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 3 or self.event_shape[0] < 2:
            raise ValueError(
                f"Split takes (channels, height, width) of 2 channels or more, but event_shape is "
                f"{tuple(self.event_shape)}."
            )
        channels, *pixels = self.event_shape
        self.kept_shape = torch.Size(((channels + 1) // 2, *pixels))
        self.noise_shape = torch.Size((channels // 2, *pixels))
        self.log_scale_bound = log_scale_bound
        self.network = ConvNet(
            self.kept_shape[0],
            2 * self.noise_shape[0],
            hidden=hidden,
            context_features=context_features,
            zero_output=True,
        )

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and -Σ log σ."""
        kept, x_2 = self.halves(x)
        mu, log_sigma = self._gaussian(kept, context)
        return torch.cat([kept, (x_2 - mu) * torch.exp(-log_sigma)], 1), -sum_event(log_sigma)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and Σ log σ."""
        kept, z_2 = self.halves(z)
        mu, log_sigma = self._gaussian(kept, context)
        return torch.cat([kept, mu + log_sigma.exp() * z_2], 1), sum_event(log_sigma)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The channels that are kept, and the others."""
        return x[:, : self.kept_shape[0]], x[:, self.kept_shape[0] :]

    def _gaussian(self, kept: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        mu, a = self.network(kept, context).chunk(2, 1)
        return mu, soft_bound(a, self.log_scale_bound)


class MultiScale(Bijection):
    """z = (z_1, ..., z_L): each level maps what the one before kept, and a `Split` takes half of it off as z_l.

    The latent is one vector of D values: z_1, ..., z_L flattened one after the other, coarsest last. `unpack` gives it
    as a list of images, `pack` takes one back.

    References:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, section 3.6, eq. 13-16.

    Checked by tests/contracts/bijections.py and tests/discrete/test_multiscale.py.

    Args:
        levels: L bijections of images.
        splits: L - 1 splits, one between each two.

    Raises:
        ValueError: numbers or shapes that do not fit.

    Example:
        >>> split = Split((4, 4, 4))
        >>> flow = MultiScale([Squeeze((1, 8, 8)), Squeeze(split.kept_shape)], [split])
        >>> z, _ = flow(torch.zeros(5, 1, 8, 8))
        >>> z.shape, [tuple(part.shape) for part in flow.unpack(z)]
        (torch.Size([5, 64]), [(5, 2, 4, 4), (5, 8, 2, 2)])
    """

    def __init__(self, levels: Sequence[Bijection], splits: Sequence[Split]) -> None:
        if len(levels) != len(splits) + 1:
            raise ValueError(
                f"MultiScale needs a split between each two levels, but has {len(levels)} and {len(splits)}."
            )
        for level, split, following in zip(levels, splits, levels[1:], strict=False):
            if level.latent_shape != split.event_shape or split.kept_shape != following.event_shape:
                raise ValueError(
                    f"MultiScale cannot join a level that gives {tuple(level.latent_shape)}, a split of "
                    f"{tuple(split.event_shape)} that keeps {tuple(split.kept_shape)}, and a level of "
                    f"{tuple(following.event_shape)}."
                )
        super().__init__(levels[0].event_shape, latent_shape=math.prod(levels[0].event_shape))
        self.levels, self.splits = torch.nn.ModuleList(levels), torch.nn.ModuleList(splits)
        self.latent_shapes = [*(split.noise_shape for split in splits), levels[-1].latent_shape]
        self.forward_direction = sum((b.forward_direction for b in (*levels, *splits)), Direction(0))
        self.inverse_direction = sum((b.inverse_direction for b in (*levels, *splits)), Direction(0))

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """The latent vector, and the sum of the log-determinants."""
        parts, log_dets = [], []
        joints, last = self._joints()
        for level, split in joints:
            x, of_level = level(x, context, generator=generator)
            z, of_split = split(x, context, generator=generator)
            x, noise = split.halves(z)
            parts.append(noise)
            log_dets += [of_level, of_split]
        x, log_det = last(x, context, generator=generator)
        return self.pack([*parts, x]), torch.stack([*log_dets, log_det]).sum(0)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """The image, and the sum of the log-determinants."""
        *noises, x = self.unpack(z)
        joints, last = self._joints()
        x, log_det = last.inverse(x, context, generator=generator)
        log_dets = [log_det]
        for (level, split), noise in zip(reversed(joints), reversed(noises), strict=True):
            x, of_split = split.inverse(torch.cat([x, noise], 1), context, generator=generator)
            x, of_level = level.inverse(x, context, generator=generator)
            log_dets += [of_split, of_level]
        return x, torch.stack(log_dets).sum(0)

    def _joints(self) -> tuple[list[tuple[Bijection, Split]], Bijection]:
        """Each level but the last with the split behind it, and the last level."""
        *levels, last = cast("list[Bijection]", list(self.levels))
        return list(zip(levels, cast("list[Split]", list(self.splits)), strict=True)), last

    def pack(self, latents: Sequence[Tensor]) -> Tensor:
        """Latents of each level, `(rows, *shape)`, as one vector `(rows, D)`."""
        return torch.cat([z.flatten(1) for z in latents], 1)

    def unpack(self, z: Tensor) -> list[Tensor]:
        """The vector `(rows, D)` as the latents of each level, `(rows, *shape)`."""
        sizes = [math.prod(shape) for shape in self.latent_shapes]
        parts = z.split(sizes, 1)
        return [part.unflatten(1, tuple(shape)) for part, shape in zip(parts, self.latent_shapes, strict=True)]


def multi_scale(
    event_shape: int | Sequence[int],
    *,
    levels: int,
    level: Callable[[torch.Size, int], Bijection],
    context_features: int = 0,
    log_scale_bound: float = 3.0,
) -> MultiScale:
    """Bijections made by `level` from the shape that reaches them and their number, a `Split` between each two.

    Raises:
        ValueError: an event that is no image, or fewer than one level.
    """
    shape = as_event_shape(event_shape)
    if len(shape) != 3 or levels < 1:
        raise ValueError(
            f"a multi-scale flow takes images (channels, height, width) and 1 level or more, but event_shape is "
            f"{tuple(shape)} and levels={levels}."
        )
    made, splits = [level(shape, 0)], []
    for i in range(1, levels):
        splits.append(Split(made[-1].latent_shape, context_features=context_features, log_scale_bound=log_scale_bound))
        made.append(level(splits[-1].kept_shape, i))
    return MultiScale(made, splits)


def squeeze_if_even(event_shape: Sequence[int]) -> list[Squeeze]:
    """One `Squeeze`, or none where a side is odd: padding would change the number of dimensions."""
    return [] if event_shape[1] % 2 or event_shape[2] % 2 else [Squeeze(event_shape)]
