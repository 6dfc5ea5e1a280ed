"""Invertible convolutions."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from core.rng import Rng
from discrete.bijection import Bijection, Context, Direction, Events, Mapped
from discrete.bijections.matrices import DenseMatrix, LUMatrix, Matrix
from discrete.bijections.reflections import QRMatrix, random_reflections, random_rotation, rotation_reflections

Parametrization = Literal["lu", "dense", "qr"]


class Invertible1x1Conv(Bijection):
    """z_{hw} = W x_{hw}: the channels of every pixel times one C × C matrix: log|det| = H W log|det W|.

    W starts at a random rotation. `lu` and `qr` train its factors: log|det W| costs O(C), W stays invertible and the
    sign of its determinant, +1, is kept. `dense` trains W itself: O(C³), and nothing keeps W from becoming singular.

    References:
        Kingma and Dhariwal, "Glow", 2018, section 3.2, eq. 9-11.
        Hoogeboom, van den Berg, Welling, "Emerging convolutions for generative normalizing flows", 2019.

    Checked by tests/contracts/bijections.py and tests/discrete/test_linear.py.

    Args:
        event_shape: (channels, height, width).
        parametrization: `lu` for P L U, `dense` for W, or `qr` for reflections times R.
        generator: draws the initial rotation.

    Raises:
        ValueError: an event that is no image, or an unknown parametrization.

    Example:
        >>> convolution = Invertible1x1Conv((3, 8, 8))
        >>> z, log_det = convolution(torch.ones(2, 3, 8, 8))
        >>> z.shape, log_det.shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2]))
    """

    forward_direction = inverse_direction = Direction(0)

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        parametrization: Parametrization = "lu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 3:
            raise ValueError(
                "Invertible1x1Conv takes images (channels, height, width), but event_shape is "
                f"{tuple(self.event_shape)}."
            )
        channels, height, width = self.event_shape
        self.pixels = height * width
        self.weight = _random_rotation(channels, parametrization, generator)

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and H W log|det W|."""
        # A batch of products with one shared W is faster than a 1 × 1 convolution.
        W = self.weight.matrix().expand(x.shape[0], -1, -1)
        return torch.bmm(W, x.flatten(2)).view(x.shape), self._log_det(x)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and -H W log|det W|."""
        pixels = z.movedim(1, -1)
        x = self.weight.solve(pixels.flatten(0, -2)).view(pixels.shape).movedim(-1, 1)
        return x, -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.pixels * self.weight.log_abs_det()).expand(x.shape[0])


def _random_rotation(channels: int, parametrization: Parametrization, generator: torch.Generator | None) -> Matrix:
    """The same rotation, given the same generator, in each parametrization."""
    if parametrization == "qr":
        return QRMatrix(random_reflections(rotation_reflections(channels), channels, generator=generator))
    if parametrization == "lu":
        return LUMatrix(random_rotation(channels, generator=generator))
    if parametrization == "dense":
        return DenseMatrix(random_rotation(channels, generator=generator))
    raise ValueError(f"parametrization must be lu, dense or qr, but is {parametrization!r}.")
