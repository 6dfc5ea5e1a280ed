"""Planar flows and their relatives: the keywords of their constructors."""

from typing import Literal

from experiment.sections.base import Count, Section

Fast = Literal["sample", "log_prob"]


class PlanarModel(Section):
    """See `discrete.PlanarFlow`."""

    kind: Literal["planar"]
    layers: Count = 10
    activation: Literal["tanh", "leaky_relu"] = "tanh"
    fast: Fast = "sample"


class RadialModel(Section):
    """See `discrete.RadialFlow`."""

    kind: Literal["radial"]
    layers: Count = 10
    fast: Fast = "sample"


class SylvesterModel(Section):
    """See `discrete.SylvesterFlow`."""

    kind: Literal["sylvester"]
    layers: Count = 4
    parametrization: Literal["orthogonal", "householder"] = "orthogonal"
    rank: Count | None = None
    fast: Fast = "sample"
