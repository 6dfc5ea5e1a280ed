"""RealNVP and VP-SDE on two-dimensional toys of known entropy, with their densities as a figure."""

from typing import Any

import numpy as np
import torch

from benchmarks.record import DOCS, RUNS
from core import DensityModel
from experiment import evaluate, load_config, load_run, train
from experiment.data import TOY_ENTROPY_NATS, sample_toy
from experiment.files import write_atomic
from experiment.plots import density_figure, png

TOYS = ("8gaussians", "moons")
MODELS = ("real_nvp", "vp_sde")
EXTENT, SIDE = (-5.0, 5.0, -5.0, 5.0), 200


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Test -log p beside the entropy, which nothing can beat by more than the noise."""
    rows = []
    for toy in TOYS:
        panels = {f"{toy}: data": histogram(toy)}
        for model in MODELS:
            config = load_config(f"configs/{toy}/{model}.toml")
            run = train(config, RUNS / f"{toy}-{model}", resume=True, progress_bar=True)
            s = evaluate(run.path, progress_bar=True)
            rows.append(
                {
                    "toy": toy,
                    "model": model,
                    "entropy_nats": TOY_ENTROPY_NATS[toy],
                    "nll_nats": -s.log_prob_nats,
                    "error_nats": s.error_nats,
                    "solver_error_nats": s.solver_error_nats,
                    "gap_nats": -s.log_prob_nats - TOY_ENTROPY_NATS[toy],
                    "train_seconds": s.train_seconds,
                }
            )
            panels[f"{model}: {-s.log_prob_nats:.3f} nats"] = density(load_run(run.path), extent=EXTENT)
        figure = density_figure(panels, extent=EXTENT, title=f"{toy}, entropy {TOY_ENTROPY_NATS[toy]:.3f} nats")
        write_atomic(DOCS / "figures" / f"toy-{toy}.png", png(figure))
    return {"configs": [f"configs/{toy}/{model}.toml" for toy in TOYS for model in MODELS]}, rows


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
