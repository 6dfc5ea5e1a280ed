"""What a density over raw data is made of: bijections down to a base, which may be solved by an ODE."""

import copy
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from cflows import SDE, ODESolver
from core import AtContext, DensityModel, MixtureOfDensities
from core.bases import Base
from core.density import Context
from core.divergence import Divergence
from core.rng import Rng
from discrete import Bijection, Compose, Flow
from discrete.mass import MassModel

M = TypeVar("M", bound=DensityModel)


@runtime_checkable
class SolvedByODE(Protocol):
    """A density whose likelihood an ODE gives, with settings that stand as attributes."""

    solver: ODESolver
    divergence: Divergence
    error_factor: float | None


@runtime_checkable
class ScoreUnderSDE(SolvedByODE, Protocol):
    """The density of a score under a noising process, at t_min."""

    sde: SDE
    prior: Base
    t_min: float

    def score(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """s(x, t), like `x`."""


def innermost(model: DensityModel) -> DensityModel:
    """The base of the last flow: that to which no bijection leads on."""
    return innermost(model.base) if isinstance(model, Flow) else model


def is_mass(model: DensityModel) -> bool:
    """Whether a model gives whole numbers a mass and needs no noise, or is a mixture of such models."""
    if isinstance(model, MixtureOfDensities):
        return all(is_mass(part) for part in model.parts if isinstance(part, DensityModel))
    return is_mass(model.model) if isinstance(model, AtContext) else isinstance(model, MassModel)


def steps(model: DensityModel) -> Iterator[Bijection]:
    """All bijections in the order in which data meet them, none of them a `Compose`."""
    if isinstance(model, Flow):
        yield from _parts(model.bijection)
        yield from steps(model.base)


def encoded(model: DensityModel, x: Tensor, context: Context = None, *, generator: Rng = None) -> Tensor:
    """Rows as the innermost density sees them."""
    return model.encode(x, context, generator=generator) if isinstance(model, Flow) else x


def variant(model: M, **settings: Any) -> M:
    """The same model, its parameters shared, with other settings."""
    twin = copy.copy(model)
    for name, value in settings.items():
        setattr(twin, name, value)
    return twin


def _parts(bijection: Bijection) -> Iterator[Bijection]:
    if isinstance(bijection, Compose):
        for part in bijection.bijections:
            yield from _parts(part)  # type: ignore[arg-type]
    else:
        yield bijection
