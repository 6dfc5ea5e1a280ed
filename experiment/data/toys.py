"""The eight 2-D densities that FFJORD made customary, at its scales.

Every row is an independent draw: angles and components are random where the originals space or count them evenly, which
leaves the densities as they are and makes error bars over rows valid. A point of the plane is a complex number until
`sample_toy` returns it.
"""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from experiment.data.dataset import Dataset
from experiment.errors import UserError
from experiment.messages import did_you_mean

# Exact for the checkerboard, else -∫ p log p by quadrature to the last digit; the small overlap of the pinwheel's arms
# is a Monte Carlo estimate with standard error 0.0001.
TOY_ENTROPY_NATS = {
    "8gaussians": 2.8319,
    "checkerboard": math.log(32),
    "moons": 2.3939,
    "pinwheel": 2.3214,
    "2spirals": 2.6454,
    "swissroll": 2.6696,
    "circles": 3.2681,
    "rings": 2.6232,
}


def toy(
    name: str, *, train_rows: int = 50_000, validation_rows: int = 5_000, test_rows: int = 10_000, seed: int = 0
) -> Dataset:
    """A 2-D density of known entropy, which no model's test loss can beat by more than its error bar.

    Args:
        name: one of the keys of `TOY_ENTROPY_NATS`.
        train_rows: number of training rows.
        validation_rows: number of validation rows.
        test_rows: number of test rows.
        seed: each split of each toy has its own random stream, derived from it.

    Returns:
        The dataset, with `entropy_nats`.

    Raises:
        UserError: there is no such toy.

    Example:
        >>> toy("moons", train_rows=100).train.shape
        torch.Size([100, 2])
    """
    rows = {"train": train_rows, "validation": validation_rows, "test": test_rows}
    train, validation, test = (sample_toy(name, rows[split], _stream(name, split, seed)) for split in rows)
    return Dataset(name, train, validation, test, entropy_nats=TOY_ENTROPY_NATS[name])


def sample_toy(name: str, rows: int, generator: torch.Generator) -> Tensor:
    """Independent draws from a toy density.

    Args:
        name: one of the keys of `TOY_ENTROPY_NATS`.
        rows: number of draws.
        generator: source of the randomness, on the CPU.

    Returns:
        (rows, 2) float32.

    Raises:
        UserError: there is no such toy.
    """
    if name not in _SAMPLERS:
        raise UserError(f"toy: there is no {name!r}; {did_you_mean(name, _SAMPLERS)}")
    return torch.view_as_real(_SAMPLERS[name](rows, generator))


def _stream(*key: object) -> torch.Generator:
    """A generator that depends on every part of the key, so that no two keys share random numbers."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def _uniform(rows: int, generator: torch.Generator) -> Tensor:
    """Uniform on [0, 1), (rows,)."""
    return torch.rand(rows, generator=generator, dtype=torch.float32)


def _normal(rows: int, generator: torch.Generator) -> Tensor:
    """Standard normal in both coordinates, (rows,) complex."""
    return torch.view_as_complex(torch.randn(rows, 2, generator=generator, dtype=torch.float32))


def _choice(count: int, rows: int, generator: torch.Generator) -> Tensor:
    """One of 0, ..., count - 1 with equal chances, (rows,)."""
    return torch.randint(count, (rows,), generator=generator, dtype=torch.float32)


def _unit(angle: Tensor) -> Tensor:
    """The complex number e(a) = exp(ia) of each angle."""
    return torch.polar(torch.ones_like(angle), angle)


# In the equations below u is uniform on [0, 1), n standard normal in both coordinates, k one of 0, 1, ... at random.


def _eight_gaussians(rows: int, generator: torch.Generator) -> Tensor:
    """Draw (4 e(2πk/8) + 0.5 n) / 1.414."""
    centre = 4 * _unit(_choice(8, rows, generator) * math.pi / 4)
    return (centre + 0.5 * _normal(rows, generator)) / 1.414


def _checkerboard(rows: int, generator: torch.Generator) -> Tensor:
    """Draw from the eight squares of side 2 in [-4, 4]², those where floor(x/2) + floor(y/2) is even."""
    across = 4 * _uniform(rows, generator) - 2
    up = _uniform(rows, generator) - 2 * _choice(2, rows, generator) + across.floor() % 2
    return 2 * torch.complex(across, up)


def _moons(rows: int, generator: torch.Generator) -> Tensor:
    """Draw 2 (m + 0.1 n) - (1 + 0.2i) for m on the half circle e(πu) or on (1 + 0.5i) - e(πu)."""
    upper = _unit(math.pi * _uniform(rows, generator))
    moon = torch.where(_choice(2, rows, generator) == 0, upper, 1 + 0.5j - upper)
    return 2 * (moon + 0.1 * _normal(rows, generator)) - (1 + 0.2j)


def _pinwheel(rows: int, generator: torch.Generator) -> Tensor:
    """Draw 2 (r + it) e(-2πk/5 - exp(r)/4) for r normal around 1 with std 0.3, t normal around 0 with std 0.1."""
    noise = _normal(rows, generator)
    blade = torch.complex(1 + 0.3 * noise.real, 0.1 * noise.imag)
    return 2 * blade * _unit(-2 * math.pi * _choice(5, rows, generator) / 5 - blade.real.exp() / 4)


def _two_spirals(rows: int, generator: torch.Generator) -> Tensor:
    """Draw ±(-a e(-a) + v) / 3 + 0.1 n for a = 3π sqrt(u) and v uniform on the square [0, 0.5)²."""
    angle = 3 * math.pi * _uniform(rows, generator).sqrt()
    jitter = 0.5 * torch.complex(_uniform(rows, generator), _uniform(rows, generator))
    sign = 2 * _choice(2, rows, generator) - 1
    return sign * (jitter - angle * _unit(-angle)) / 3 + 0.1 * _normal(rows, generator)


def _swissroll(rows: int, generator: torch.Generator) -> Tensor:
    """Draw (a e(a) + n) / 5 for a = 1.5π (1 + 2u)."""
    angle = 1.5 * math.pi * (1 + 2 * _uniform(rows, generator))
    return (angle * _unit(angle) + _normal(rows, generator)) / 5


def _circles(rows: int, generator: torch.Generator) -> Tensor:
    """Draw 3 (r e(2πu) + 0.08 n) for a radius r of 0.5 or 1."""
    radius = (1 + _choice(2, rows, generator)) / 2
    return 3 * (radius * _unit(2 * math.pi * _uniform(rows, generator)) + 0.08 * _normal(rows, generator))


def _rings(rows: int, generator: torch.Generator) -> Tensor:
    """Draw 3 r e(2πu) + 0.08 n for a radius r of 0.25, 0.5, 0.75 or 1."""
    radius = (1 + _choice(4, rows, generator)) / 4
    return 3 * radius * _unit(2 * math.pi * _uniform(rows, generator)) + 0.08 * _normal(rows, generator)


_SAMPLERS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "8gaussians": _eight_gaussians,
    "checkerboard": _checkerboard,
    "moons": _moons,
    "pinwheel": _pinwheel,
    "2spirals": _two_spirals,
    "swissroll": _swissroll,
    "circles": _circles,
    "rings": _rings,
}
