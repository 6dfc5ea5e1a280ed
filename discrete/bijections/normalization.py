"""Layers that keep activations near zero mean and unit scale."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.density import Rng
from discrete.bijection import Bijection, Context, Direction, Events, Mapped


class ActNorm(Bijection):
    """z = exp(s) ⊙ (x + b), per feature of a vector or per channel of an image: log|det| = H W Σ s_c.

    The first training batch sets b and s so that z has zero mean and unit variance; from then on both are ordinary
    parameters. Evaluation, the inverse and a loaded model never initialise.

    References:
        Kingma and Dhariwal, "Glow", 2018, section 3.1.

    Checked by tests/contracts/bijections.py and tests/discrete/test_normalization.py.

    Args:
        event_shape: features of a vector, or (channels, height, width).

    Example:
        >>> norm = ActNorm(1).train()
        >>> z, _ = norm(torch.tensor([[1.0], [3.0]]))
        >>> [round(v, 4) for v in z.flatten().tolist()]
        [-1.0, 1.0]
    """

    forward_direction = inverse_direction = Direction(0)
    initialised: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__(event_shape)
        channels, *spatial = self.event_shape
        self.positions = math.prod(spatial)
        self.bias = nn.Parameter(torch.zeros(channels, *(1 for _ in spatial)))
        self.log_scale = nn.Parameter(torch.zeros_like(self.bias))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and its log-determinant; the first call in training mode initialises.

        Raises:
            ValueError: the initialising batch has one row, which has no variance.
        """
        if self.training and not x.is_meta and not self.initialised:
            self._initialise(x)
        return self.log_scale.exp() * (x + self.bias), self._log_det(x)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and its log-determinant."""
        return torch.exp(-self.log_scale) * z - self.bias, -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.positions * self.log_scale.sum()).expand(x.shape[0])

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        if x.shape[0] < 2:
            raise ValueError(f"ActNorm needs 2 rows or more in its first training batch, but got {x.shape[0]}.")
        dims = [d for d in range(x.ndim) if d != 1]
        std, mean = torch.std_mean(x, dims, correction=0, keepdim=True)
        self.bias.copy_(-mean[0])
        self.log_scale.copy_(-torch.log(std[0] + 1e-6))
        self.initialised.fill_(True)
