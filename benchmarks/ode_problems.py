"""Scores to solve with: exact ones at the price of a network, whose output times zero is added, and learned ones."""

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.record import DATA, RUNS
from cflows import VPSDE, ScoreSDE
from cflows.sde import Score
from core.shapes import align
from discrete import Flow
from experiment import load_config, load_run, train
from experiment.building.builder import load_data

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


class Counted(nn.Module):
    """A score that counts its calls and the rows it sees."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score, self.calls, self.rows_seen = score, 0, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """s(x, t) like x."""
        self.calls, self.rows_seen = self.calls + 1, self.rows_seen + len(x)
        return self.score(x, t)


class Problem(NamedTuple):
    """What is solved: a score in float32, the same in float64, and batches of float64 rows."""

    name: str
    score: Counted
    exact: Score
    batches: list[Tensor]


def problems() -> list[Problem]:
    """A Gaussian of image size, variances from 1e-4 to 1, mixtures in 2 and 64 dimensions, digits and MNIST learned."""
    torch.manual_seed(0)
    variances = torch.logspace(-4, 0, 3072, dtype=torch.float64).reshape(3, 32, 32)
    return [
        costly("Gaussian, D = 3072", Normal(variances), convolutions(), rows=4),
        costly("8 modes, D = 2", ring(), perceptron(2), rows=256),
        costly("8 modes, D = 64", cloud(64), perceptron(64), rows=256),
        learned("digits, learned, D = 64", "digits/vp_sde", rows=64),
        learned("MNIST, learned, D = 784", "mnist/vp_sde_unet", rows=4),
    ]


def ring() -> Modes:
    """Eight narrow modes on the unit circle."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return Modes(torch.stack([angles.cos(), angles.sin()], 1), 0.05)


def cloud(size: int) -> Modes:
    """Eight narrow modes at draws of a standard normal."""
    means = torch.randn(8, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Modes(means, 0.1)


def costly(name: str, law: Normal | Modes, net: nn.Module, *, rows: int, batches: int = 2) -> Problem:
    """The exact score of a law at the price of a network, whose parameters want gradients as trained ones do."""

    def exact(x: Tensor, t: Tensor) -> Tensor:
        return law.score(x, *SDE.marginal(t))

    def score(x: Tensor, t: Tensor) -> Tensor:
        return exact(x, t) + 0.0 * net(x, t.expand(len(x)), None)

    data = [law.sample(rows, torch.Generator().manual_seed(10 + i)) for i in range(batches)]
    return Problem(name, Counted(score), exact, data)


def learned(name: str, config_name: str, *, rows: int, batches: int = 2) -> Problem:
    """The score of a run of a config, trained where it is not there yet, on preprocessed test rows."""
    config = load_config(f"configs/{config_name}.toml")
    run = train(config, RUNS / config_name.replace("/", "-"), data_root=DATA, resume=True, progress_bar=True)
    flow = load_run(run.path)
    if not isinstance(flow, Flow) or not isinstance(flow.base, ScoreSDE):
        raise TypeError(f"{config_name} must be a preprocessed ScoreSDE, but is a {type(flow).__name__}.")
    test = load_data(config.data, DATA).test[: rows * batches]
    with torch.no_grad():
        x, _ = flow.bijection(test, generator=torch.Generator().manual_seed(0))
    exact = copy.deepcopy(flow.base).double()
    return Problem(name, Counted(flow.base.score), exact.score, list(x.double().split(rows)))


def convolutions() -> nn.Module:
    """A U-Net of 32 and 64 channels, modulated by time."""
    return ScoreSDE((3, 32, 32), network="unet", hidden=(32, 64), depth=1).net


def perceptron(size: int) -> nn.Module:
    """That of `ScoreSDE` where nothing else is said: three residual blocks of 256, modulated by time."""
    return ScoreSDE(size).net
