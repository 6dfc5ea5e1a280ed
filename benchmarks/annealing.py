"""Plain, adjusted and annealed Langevin on two modes far apart."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.record import DOCS
from cflows import annealed_langevin, geometric_ladder, langevin, mala
from core import GaussianMixture
from experiment.files import write_atomic
from experiment.plots import COLOURS, INK, MUTED, png

WEIGHT, HALF_SIDE, CHAINS, GROUPS = 0.2, 8.0, 4000, 8
LADDER = {"sigma_max": 10.0, "sigma_min": 0.1, "levels": 10}

Row = dict[str, Any]
Chain = Callable[..., tuple[Tensor, float]]  # chain(x, step_size=, steps=, generator=) -> x, acceptance


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a chain, and the figure."""
    torch.set_num_threads(1)
    data = mixture()
    ends = {"data": data.sample((CHAINS,), generator=_rng(2))}
    rows = [{"chain": "exact draws", **_fit(data, ends["data"])}]
    for name, chain, options in _chains(data):
        x, row = _run(chain, **options)
        levels = {"levels": LADDER["levels"]} if name == "annealed Langevin" else {}
        rows.append({"chain": name, **options, **levels, **row, **_fit(data, x)})
        ends[name] = x
    write_atomic(DOCS / "figures" / "annealing.png", png(_figure(data, ends)))
    return {"weight": WEIGHT, "half_side": HALF_SIDE, "chains": CHAINS, **LADDER}, rows


def mixture() -> GaussianMixture:
    """1/5 N((-5, -5), I) + 4/5 N((5, 5), I) (Song and Ermon, 2019, section 3.2.2)."""
    means = torch.tensor([[-5.0, -5.0], [5.0, 5.0]], dtype=torch.float64)
    covariances = torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    return GaussianMixture(means, covariances, torch.tensor([WEIGHT, 1 - WEIGHT], dtype=torch.float64))


def _chains(data: GaussianMixture) -> list[tuple[str, Chain, dict[str, Any]]]:
    """Name, chain and options; of those of one name the last is drawn."""
    ladder = geometric_ladder(**LADDER)

    def noisy_score(x: Tensor, sigma: Tensor) -> Tensor:
        return data.perturbed_score(x, torch.ones_like(sigma), sigma)

    def plain(x: Tensor, **options: Any) -> tuple[Tensor, float]:
        return langevin(data.score, x, **options), math.nan

    def adjusted(x: Tensor, **options: Any) -> tuple[Tensor, float]:
        x, acceptance = mala(data.log_prob, x, **options)
        return x, acceptance.mean().item()

    def annealed(x: Tensor, **options: Any) -> tuple[Tensor, float]:
        return annealed_langevin(noisy_score, ladder, x, **options), math.nan

    return [
        ("Langevin", plain, {"step_size": 0.1, "steps": 1000}),
        ("Langevin", plain, {"step_size": 0.1, "steps": 4000}),
        ("MALA", adjusted, {"step_size": 0.5, "steps": 1000}),
        ("annealed Langevin", annealed, {"step_size": 0.016, "steps": 100}),
        ("annealed Langevin", annealed, {"step_size": 0.004, "steps": 100}),
        ("annealed Langevin", annealed, {"step_size": 0.004, "steps": 400}),
        ("annealed Langevin", annealed, {"step_size": 0.001, "steps": 400}),
    ]


def _run(chain: Chain, **options: Any) -> tuple[Tensor, Row]:
    x = HALF_SIDE * (2 * torch.rand(CHAINS, 2, generator=_rng(0), dtype=torch.float64) - 1)
    started = time.perf_counter()
    x, acceptance = chain(x, **options, generator=_rng(1))
    row: Row = {"seconds": time.perf_counter() - started}
    return x, row if math.isnan(acceptance) else {**row, "acceptance": acceptance}


def _fit(data: GaussianMixture, x: Tensor) -> Row:
    """Weight of the small mode, and the energy distance to the data, each with its standard error."""
    weight = _weight(x)
    own = data.sample((len(x),), generator=_rng(3))
    distances = torch.stack([_energy_distance(a, b) for a, b in zip(x.chunk(GROUPS), own.chunk(GROUPS), strict=True)])
    return {
        "weight": weight,
        "weight_error": math.sqrt(weight * (1 - weight) / len(x)),
        "energy_distance": distances.mean().item(),
        "energy_distance_error": distances.std().item() / GROUPS**0.5,
    }


def _weight(x: Tensor) -> float:
    return (x.sum(1) < 0).double().mean().item()


def _energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 E‖x - y‖ - E‖x - x'‖ - E‖y - y'‖, unbiased: 0 on average where the laws agree."""
    within = sum(torch.cdist(v, v).sum() / (len(v) * (len(v) - 1)) for v in (x, y))
    return 2 * torch.cdist(x, y).mean() - within


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _figure(data: GaussianMixture, ends: dict[str, Tensor]) -> Figure:
    """The data, and where plain and annealed chains end, over the density."""
    panels = {name: ends[name] for name in ("data", "Langevin", "annealed Langevin")}
    figure = Figure(figsize=(10.2, 3.9), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    for axis, (name, x), colour in zip(axes, panels.items(), COLOURS, strict=False):
        _contours(axis, data)
        axis.scatter(*x[:1500].T.numpy(), s=2, alpha=0.5, color=colour, linewidths=0)
        axis.set_title(f"{name}: {100 * _weight(x):.0f} % at the lower left", fontsize=11, color=INK)
        axis.set_aspect("equal")
        axis.tick_params(colors=MUTED, labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.suptitle("Chains from uniform starts, with exact scores", fontsize=12, color=INK)
    return figure


def _contours(axis: Axes, data: GaussianMixture) -> None:
    side = torch.linspace(-9, 9, 181, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    log_density = data.log_prob(points).reshape(181, 181).T.numpy()
    levels = np.log(WEIGHT / (2 * np.pi)) - 0.5 * np.array([3.0, 2.0, 1.0]) ** 2
    axis.contour(side.numpy(), side.numpy(), log_density, levels=levels, colors=MUTED, linewidths=0.8, linestyles="-")
