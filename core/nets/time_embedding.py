import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FourierEmbedding(nn.Module):
    """e(u) = [u, sin ω₁u, cos ω₁u, ..., sin ω_n u, cos ω_n u], ω geometric from π/2 to `max_frequency`.

    References:
        Tancik et al., "Fourier features let networks learn high frequency functions", 2020, section 6.

    Args:
        frequencies: number n of frequencies.
        max_frequency: largest ω; `u` is expected within [-1, 1].

    Example:
        >>> FourierEmbedding(frequencies=2)(torch.zeros(1)).tolist()
        [[0.0, 0.0, 0.0, 1.0, 1.0]]
    """

    omega: Tensor

    def __init__(self, *, frequencies: int = 8, max_frequency: float = 8 * math.pi) -> None:
        super().__init__()
        exponents = torch.linspace(math.log(math.pi / 2), math.log(max_frequency), frequencies)
        self.register_buffer("omega", exponents.exp())

    @property
    def out_features(self) -> int:
        """Width 2 n + 1 of the embedding."""
        return 2 * len(self.omega) + 1

    def forward(self, u: Float[Tensor, " rows"]) -> Float[Tensor, "rows features"]:
        """Embeds times `(rows,)` to `(rows, 2 n + 1)`."""
        phase = u[:, None] * self.omega
        return torch.cat([u[:, None], phase.sin(), phase.cos()], -1)
