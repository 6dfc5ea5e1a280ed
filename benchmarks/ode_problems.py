"""Scores that are exact and yet cost what a network costs: a network's output times zero is added to them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cflows import VPSDE, ScoreSDE
from core.shapes import align

SDE, T_MIN = VPSDE(), 1e-5


@dataclass(frozen=True, eq=False)
class Normal:
    """N(0, diag(v)) noised by α and σ."""

    variances: Tensor

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """-x/(α² v + σ²)."""
        return -x / (align(alpha, x).square() * self.variances.to(x) + align(sigma, x).square())

    def log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Nats."""
        v = alpha.square() * self.variances.to(x) + sigma.square()
        return -0.5 * (x.square() / v + (2 * math.pi * v).log()).flatten(1).sum(1)

    def sample(self, rows: int, generator: torch.Generator) -> Tensor:
        """Float64 draws."""
        x = torch.randn(rows, *self.variances.shape, dtype=torch.float64, generator=generator)
        return x * self.variances.sqrt()


@dataclass(frozen=True, eq=False)
class Modes:
    """Equal modes N(m, s² I) noised by α and σ."""

    means: Tensor
    std: float

    def _parts(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = alpha.square() * self.std**2 + sigma.square()
        from_modes = x[:, None] - alpha[..., None, None] * self.means.to(x)
        return v, from_modes, -0.5 * from_modes.square().sum(2) / v[..., None]

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """-E[x - α m | x]/(α² s² + σ²)."""
        v, from_modes, logits = self._parts(x, alpha, sigma)
        return -torch.einsum("nk,nkd->nd", logits.softmax(1), from_modes) / align(v, x)

    def log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Nats."""
        v, _, logits = self._parts(x, alpha, sigma)
        constant = math.log(len(self.means)) + 0.5 * x.shape[1] * (2 * math.pi * v).log()
        return logits.logsumexp(1) - constant

    def sample(self, rows: int, generator: torch.Generator) -> Tensor:
        """Float64 draws."""
        k = torch.randint(len(self.means), (rows,), generator=generator)
        noise = torch.randn(rows, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[k] + self.std * noise


class Costly(nn.Module):
    """The exact score at the price of a network, whose parameters want gradients as trained ones do."""

    def __init__(self, law: Normal | Modes, net: nn.Module) -> None:
        super().__init__()
        self.law, self.net, self.calls, self.rows_seen = law, net, 0, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """s(x, t) like x."""
        self.calls, self.rows_seen = self.calls + 1, self.rows_seen + len(x)
        return self.law.score(x, *SDE.marginal(t)) + 0.0 * self.net(x, t.expand(len(x)), None)


class Problem(NamedTuple):
    """What is solved, on how many rows at once."""

    name: str
    law: Normal | Modes
    net: Callable[[], nn.Module]
    rows: int
    batches: int


def problems() -> list[Problem]:
    """A Gaussian of image size, variances from 1e-4 to 1, and mixtures in 2 and 64 dimensions."""
    variances = torch.logspace(-4, 0, 3072, dtype=torch.float64).reshape(3, 32, 32)
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    ring = torch.stack([angles.cos(), angles.sin()], 1)
    cloud = torch.randn(8, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return [
        Problem("Gaussian, D = 3072", Normal(variances), convolutions, 4, 2),
        Problem("8 modes, D = 2", Modes(ring, 0.05), lambda: perceptron(2), 256, 2),
        Problem("8 modes, D = 64", Modes(cloud, 0.1), lambda: perceptron(64), 256, 2),
    ]


def convolutions() -> nn.Module:
    """A U-Net of 32 and 64 channels, modulated by time."""
    return ScoreSDE((3, 32, 32), network="unet", hidden=(32, 64), depth=1).net


def perceptron(size: int) -> nn.Module:
    """That of `ScoreSDE` where nothing else is said: three residual blocks of 256, modulated by time."""
    return ScoreSDE(size).net
