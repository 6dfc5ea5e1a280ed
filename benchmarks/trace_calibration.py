"""How often the interval of a likelihood from a few probes holds the one with the exact trace, on a trained model."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from scipy.stats import norm, t
from torch import Tensor

from benchmarks.record import RUNS
from cflows import ScoreSDE, probability_flow_log_prob
from core import ExactDivergence, Hutchinson, HutchPlusPlus
from core.divergence import Divergence
from experiment import load_config, load_run, train
from experiment.run import open_run
from experiment.threads import available_cores

CONFIG, ROWS, DRAWS, LEVEL = "configs/digits/vp_sde.toml", 256, 16, 0.95
ESTIMATORS: dict[str, Divergence] = {
    "Rademacher, 8": Hutchinson(probes=8),
    "Rademacher, 16": Hutchinson(probes=16),
    "Rademacher, 4": Hutchinson(probes=4),
    "Gaussian, 8": Hutchinson(probes=8, distribution="gaussian"),
    "sphere, 8": Hutchinson(probes=8, distribution="sphere"),
    "Hutch++, 24 products": HutchPlusPlus(probes=24),
}
SOLVER = {"method": "rk4", "steps": 16, "t_min": 1e-5, "error_factor": None}

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row an estimator, from the same rows and the same fixed grid, so that the trace alone differs."""
    torch.set_num_threads(available_cores())
    run = train(load_config(CONFIG), RUNS / "digits-vp_sde", resume=True, progress_bar=True)
    model, x = _as_the_model_sees_them(run.path)
    exact = _log_prob(model, x, ExactDivergence(chunk=64), seed=0)[0]
    rows = [_row(name, divergence, model, x, exact) for name, divergence in ESTIMATORS.items()]
    settings = {"config": CONFIG, "rows": ROWS, "draws": DRAWS, "level": LEVEL, "solver": SOLVER}
    return settings, rows


def _as_the_model_sees_them(path: Path) -> tuple[ScoreSDE, Tensor]:
    """The score model, and test rows behind the preprocessing."""
    flow, rows = load_run(path), open_run(path).load_data().test[:ROWS]
    z, _ = flow.bijection(rows, generator=torch.Generator().manual_seed(0))
    return flow.base, z


@torch.no_grad()
def _log_prob(model: ScoreSDE, x: Tensor, divergence: Divergence, *, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    options = {**SOLVER, "divergence": divergence, "base": model.prior, "generator": generator}
    estimate = probability_flow_log_prob(model.score, model.sde, x, **options)
    return estimate.log_prob.double(), estimate.std_error.double()


def _row(name: str, divergence: Divergence, model: ScoreSDE, x: Tensor, exact: Tensor) -> Row:
    found = [_log_prob(model, x, divergence, seed=1 + draw) for draw in range(DRAWS)]
    off, std_error = (torch.stack(parts) for parts in zip(*((v - exact, e) for v, e in found), strict=True))
    degrees = divergence.columns - 1
    within = lambda quantile: (off.abs() <= quantile * std_error).double().mean().item()  # noqa: E731
    tail = 0.5 + 0.5 * LEVEL
    return {
        "estimator": name,
        "probes": asdict(divergence)["probes"],
        "point_draws": off.numel(),
        "covered_student": within(t.ppf(tail, degrees)),
        "covered_normal": within(norm.ppf(tail)),
        "mean_std_error_nats": std_error.mean().item(),
        "rms_error_nats": off.square().mean().sqrt().item(),
        "bias_nats": off.mean().item(),
        "bias_error_nats": (off.mean(0).std() / math.sqrt(off.shape[1])).item(),
    }
