"""MADE, MADE of mixtures and MAF(5) on MNIST for a few minutes each: nats in logit space, as in the MAF paper."""

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import DATA, RUNS
from discrete import Compose, Flow
from experiment import evaluate, load_config, load_run, train
from experiment.data import mnist

# The paper's widths and batches; steps and rates for a fraction of its epochs. The paper's figures are in its table 2.
OVERRIDES = {
    "maf": ["train.steps=3000", "train.learning_rate=1e-3"],
    "made": ["train.steps=8000"],
    "made_mog": ["train.steps=1500"],
}
PUBLISHED_NATS = {"maf": -1300.5, "made": -1380.8, "made_mog": -1038.5}
COLUMNS = ("kind", "bits_per_dim", "bits_per_dim_error", "parameters", "train_step", "train_seconds")


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One row a model."""
    rows = []
    for name, overrides in OVERRIDES.items():
        config = load_config(f"configs/mnist/{name}.toml", overrides)
        folder = RUNS / f"mnist-{name}"
        train(config, folder, data_root=DATA, resume=True, device="cpu", progress_bar=True)
        summary = evaluate(folder, data_root=DATA, progress_bar=True)
        nats = torch.cat(
            [_logit_space_nats(load_run(folder), x, seed) for seed, x in enumerate(mnist(DATA).test.split(1000))]
        )
        rows.append(
            {
                "model": name,
                "logit_space_nats": nats.mean().item(),
                "logit_space_error_nats": nats.std().item() / math.sqrt(len(nats)),
                "published_nats": PUBLISHED_NATS[name],
                **{column: getattr(summary, column) for column in COLUMNS},
            }
        )
    return {"overrides": OVERRIDES, "device": "cpu"}, rows


@torch.no_grad()
def _logit_space_nats(model: Flow, x: Tensor, seed: int) -> Tensor:
    """log p of y = logit(α + (1 - 2α)(x + u)/256), `(rows,)`: the log-mass without what lies before y."""
    _, log_det = Compose(*model.bijection.bijections[:2])(x, generator=torch.Generator().manual_seed(seed))
    return model.log_prob(x, generator=torch.Generator().manual_seed(seed)) - log_det
