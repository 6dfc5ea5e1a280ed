"""Rotation-based iterative Gaussianization: a flow fitted layer by layer, without gradients."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.bases import StandardNormal
from discrete.bijection import Bijection, Compose
from discrete.bijections.empirical import EmpiricalGaussianization
from discrete.bijections.gaussianization import MixtureGaussianization
from discrete.bijections.linear import Rotation
from discrete.bijections.matrices import Square
from discrete.bijections.reflections import random_reflections, rotation_reflections
from discrete.flow import Flow

RotationName = Literal["pca", "random"]
MarginalName = Literal["mixture", "kde", "empirical"]
Rows = Float[Tensor, "rows features"]
CHUNK = 4096  # rows at a time


@torch.no_grad()
def rbig(
    x: Rows,
    *,
    layers: int = 20,
    rotation: RotationName = "pca",
    marginal: MarginalName = "mixture",
    components: int | None = None,
    validation: Float[Tensor, "others features"] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Flow, Float[Tensor, " layers"]]:
    """Gaussianizes the features one by one, rotates, and does so again: a flow to N(0, I), and what each layer brought.

    A rotation leaves KL(p ‖ N(0, I)) alone; Gaussianizing what it gives takes off Σ_d KL(p_d ‖ N(0, 1)), the
    negentropies of the marginals where those are standardized. Layer n thus removes
    E[log φ(z_n) + log|det| - log φ(z_{n-1})] nats, and all layers together the mean of log p(x) - log φ(x). What the
    first one leaves, and the others remove, is the total correlation of the features.

    References:
        Laparra, Camps-Valls, Malo, "Iterative Gaussianization: from ICA to random rotations", 2011, sections II and
        III. Chen, Gopinath, "Gaussianization", 2000.

    Checked by tests/discrete/test_rbig.py.

    Args:
        x: rows to which every layer is fitted.
        layers: number of marginal layers, with a rotation between every two.
        rotation: `pca`, to principal axes, or `random`. In two dimensions the axes of features of equal variance are
            the diagonals, so that `pca` stops early: take `random`.
        marginal: `mixture` of logistics by expectation maximization, `kde`, a kernel density estimate of logistics on
            quantiles, or `empirical`, the empirical CDF with exponential tails.
        components: logistics of each feature, or knots of the empirical CDF; 16, 50 and 100 where omitted.
        validation: rows on which to measure what layers remove; `x` where omitted, which flatters.
        generator: draws the rotations.

    Returns:
        The flow, and the nats that each layer removed.

    Raises:
        ValueError: no layer, an unknown name, fewer than 2 rows, or a constant feature.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(4000, 2, generator=g) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
        >>> flow, removed = rbig(x, layers=3, generator=g)
        >>> round(removed[1:].sum().item(), 1)  # the total correlation is -½ log(1 - 0.8²) = 0.51 nats
        0.5
    """
    sizes = {"mixture": 16, "kde": 50, "empirical": 100}
    if layers < 1 or marginal not in sizes or rotation not in ("pca", "random"):
        raise ValueError(
            "rbig needs 1 layer or more, a marginal mixture, kde or empirical, and a rotation pca or random, but has "
            f"{layers=}, {marginal=} and {rotation=}."
        )
    n, size = x.shape[1], components or sizes[marginal]
    make: Callable[[], Bijection] = partial(EmpiricalGaussianization, n, knots=size)
    if marginal != "empirical":
        make = partial(MixtureGaussianization, n, components=size)
    chain = [part for _ in range(layers) for part in (Rotation(n), make())][1:]
    bijection = Compose(*chain).to(x)
    updates = 0 if marginal == "kde" else 10
    removed = fit_layers(bijection, x, rotation=rotation, updates=updates, validation=validation, generator=generator)
    return Flow(bijection, StandardNormal(n)), removed


@torch.no_grad()
def fit_layers(
    bijection: Compose,
    x: Rows,
    *,
    rotation: RotationName = "pca",
    updates: int = 10,
    validation: Float[Tensor, "others features"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " layers"]:
    """Fits each rotation and each Gaussianization of a chain to the rows that reach it; see `rbig`.

    Args:
        bijection: of these layers alone. A rotation of fewer reflections than make every one is drawn in any case.
        x: rows that enter the first.
        rotation: `pca` or `random`.
        updates: of a mixture, see `MixtureGaussianization.fit`.
        validation: rows on which to measure; `x` where omitted.
        generator: draws the rotations.

    Returns:
        The nats that each Gaussianization removed.
    """
    y, removed = x if validation is None else validation, []
    for layer in bijection.bijections:
        if isinstance(layer, Rotation):
            vectors, n = layer.rotation.vectors, x.shape[1]
            if rotation == "pca" and len(vectors) == rotation_reflections(n):
                layer.turn_to(principal_axes(x).to(x))
            else:
                vectors.copy_(random_reflections(len(vectors), n, generator=generator))
        elif isinstance(layer, MixtureGaussianization):
            layer.fit(x, updates=updates)
        elif isinstance(layer, EmpiricalGaussianization):
            layer.fit(x)
        before = y.square().sum(1)
        z, log_det = _pass(layer, y)
        if not isinstance(layer, Rotation):
            removed.append((log_det + (before - z.square().sum(1)) / 2).mean())
        x, y = (z, z) if validation is None else (_pass(layer, x)[0], z)
    return torch.stack(removed)


def principal_axes(x: Rows) -> Square:
    """The rotation to the axes of greatest variance, largest first; the last is turned round where it would mirror.

    Checked by tests/discrete/test_rbig.py.

    Args:
        x: 2 rows or more.

    Returns:
        Q, one axis a row, float64: Q x has a diagonal covariance.
    """
    centred = x.double() - x.double().mean(0)
    axes = torch.linalg.eigh(centred.mT @ centred).eigenvectors.mT.flip(0)
    axes[-1] *= torch.linalg.det(axes).sign()
    return axes


def _pass(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    parts: Iterable[tuple[Tensor, Tensor]] = [layer(part) for part in x.split(CHUNK)]
    z, log_det = zip(*parts, strict=True)
    return torch.cat(z), torch.cat(log_det)
