"""Models on two-dimensional toys of known entropy, with their densities as figures; RealNVP and VP-SDE on two."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.record import DOCS, RUNS
from core import DensityModel
from experiment import evaluate, load_config, load_run, train
from experiment.config import Config
from experiment.data import TOY_ENTROPY_NATS, sample_toy
from experiment.files import write_atomic
from experiment.plots import density_figure, png

TOYS = ("8gaussians", "moons")
MODELS = ("real_nvp", "vp_sde")
EXTENT, SIDE = (-5.0, 5.0, -5.0, 5.0), 200
TARGET_NATS = 0.10

Row = dict[str, Any]
Measured = tuple[dict[str, Any], list[Row]]


def measure() -> Measured:
    """Each model by the config of its toy."""
    configs = {(model, toy): f"configs/{toy}/{model}.toml" for toy in TOYS for model in MODELS}
    rows = [row(load_config(path), toy, model) for (model, toy), path in configs.items()]
    for toy in TOYS:
        write_figure("toy", toy, MODELS)
    return {"configs": [*configs.values()]}, rows


def on_all_toys(models: Sequence[str], *, figures: str) -> Measured:
    """Each model by one config for all eight."""
    configs = {model: f"configs/moons/{model}.toml" for model in models}
    rows = [
        row(load_config(configs[model], [f"data.name={toy}"]), toy, model)
        for model in models
        for toy in TOY_ENTROPY_NATS
    ]
    for toy in TOY_ENTROPY_NATS:
        write_figure(figures, toy, models)
    return {"configs": [*configs.values()], "target_nats": TARGET_NATS}, rows


def row(config: Config, toy: str, model: str) -> Row:
    """Test -log p beside the entropy, which nothing can beat by more than the noise; trains, or goes on."""
    run = train(config, RUNS / f"{toy}-{model}", resume=True, progress_bar=True)
    s = evaluate(run.path, progress_bar=True)
    gap = -s.log_prob_nats - TOY_ENTROPY_NATS[toy]
    return {
        "toy": toy,
        "model": model,
        "entropy_nats": TOY_ENTROPY_NATS[toy],
        "nll_nats": -s.log_prob_nats,
        "error_nats": s.error_nats,
        "solver_error_nats": s.solver_error_nats,
        "gap_nats": gap,
        "met": gap <= TARGET_NATS,
        "steps": s.train_step,
        "train_seconds": s.train_seconds,
        "evaluation_seconds": s.seconds,
    }


def write_figure(name: str, toy: str, models: Sequence[str]) -> None:
    """The densities of the models beside that of the data."""
    found = {model: load_run(RUNS / f"{toy}-{model}") for model in models}
    panels = {f"{toy}: data": histogram(toy)} | {k: density(m, extent=EXTENT) for k, m in found.items()}
    figure = density_figure(panels, extent=EXTENT, title=f"{toy}, entropy {TOY_ENTROPY_NATS[toy]:.3f} nats")
    write_atomic(DOCS / "figures" / f"{name}-{toy}.png", png(figure))


def histogram(toy: str) -> np.ndarray:
    """The density of two million draws in the cells of `density`."""
    x = sample_toy(toy, 2_000_000, torch.Generator().manual_seed(0)).numpy()
    span = [list(EXTENT[:2]), list(EXTENT[2:])]
    return np.histogram2d(x[:, 1], x[:, 0], bins=SIDE, range=[span[1], span[0]], density=True)[0]


@torch.no_grad()
def density(model: DensityModel, *, extent: tuple[float, float, float, float]) -> np.ndarray:
    """At the centres of SIDE × SIDE cells of a square, rows upwards."""
    axis = torch.linspace(extent[0], extent[1], SIDE + 1)
    centres = (axis[1:] + axis[:-1]) / 2
    grid = torch.cartesian_prod(centres, centres).flip(1)  # rows run over y, columns over x
    log_prob = torch.cat([model.log_prob(part) for part in grid.split(10_000)])
    return log_prob.exp().reshape(SIDE, SIDE).double().numpy()
