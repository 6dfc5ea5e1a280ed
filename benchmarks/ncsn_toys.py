"""Draws of score models against the data by energy distance and MMD, with a permutation test."""

from typing import Any

import torch

from benchmarks.record import DOCS, RUNS
from experiment import load_config, load_run, train
from experiment.comparison.two_sample import two_sample_test
from experiment.data import sample_toy
from experiment.files import write_atomic
from experiment.plots import png, sample_figure

MODELS = {"8gaussians": ("ncsn",), "moons": ("ncsn", "energy")}
ROWS, PERMUTATIONS = 2000, 999


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Fresh rows of the toy against others of its own, and against draws of each model."""
    rows = []
    for toy, models in MODELS.items():
        data = sample_toy(toy, ROWS, _seeded(1))
        fresh = sample_toy(toy, ROWS, _seeded(2))
        draws = {"the toy itself": fresh, "the toy, shifted by 0.2": fresh + torch.tensor([0.2, 0.0])}
        for model in models:
            run = train(load_config(f"configs/{toy}/{model}.toml"), RUNS / f"{toy}-{model}", resume=True)
            draws[model] = load_run(run.path).sample((ROWS,), generator=_seeded(3))
        for name, x in draws.items():
            rows.append({"toy": toy, "draws": name})
            for statistic in ("energy_distance", "mmd"):
                found = two_sample_test(data, x, statistic=statistic, permutations=PERMUTATIONS, generator=_seeded(4))
                rows[-1][statistic] = vars(found)
        panels = {"data": data} | {name: x for name, x in draws.items() if name in models}
        figure = sample_figure(
            {name: x.double().numpy() for name, x in panels.items()}, image_shape=None, title=f"{toy}: {ROWS} draws"
        )
        write_atomic(DOCS / "figures" / f"ncsn-{toy}.png", png(figure))
    return {"rows": ROWS, "permutations": PERMUTATIONS}, rows


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
