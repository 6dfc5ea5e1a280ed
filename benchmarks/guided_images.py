"""Digits asked for by their label: how many a classifier recognises as what was asked, and how sure it is."""

import math
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.judge import CONFIDENT, confident_share, features_of, trained_judge
from benchmarks.labels import labelled_mnist
from benchmarks.record import RUNS
from benchmarks.sampler_images import DATA
from cflows import AncestralSampling, DPMSolver, classifier_free
from cflows.samplers.sampler import Sampler
from experiment import load_config, load_run, train
from experiment.draws.reverse_process import ReverseProcess
from experiment.threads import set_threads

CONFIG, RUN, SAMPLES = "configs/mnist/vp_sde_labels.toml", RUNS / "mnist-vp_sde_labels", 400
SOLVERS: dict[str, Sampler] = {
    "ancestral, 100 steps in log-SNR": AncestralSampling(steps=100, spacing="log_snr"),
    "DPM-Solver++ 2M, 20 steps": DPMSolver(steps=20),
}

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a solver and guidance: 0 ignores the label, 1 takes it as it was learned."""
    run = train(load_config(CONFIG), RUN, data_root=DATA, resume=True, progress_bar=True)
    process = ReverseProcess.of(load_run(run.path))
    set_threads(0, process.inner)
    known, _ = labelled_mnist(DATA)
    judge = trained_judge(known)
    labels = torch.arange(SAMPLES) % 10
    rows = []
    for solver, sampler in SOLVERS.items():
        for guidance in (0.0, 1.0, 2.0):
            features = features_of(judge, _draw(process, sampler, labels, guidance).flatten(1).clamp(0, 1))
            with torch.no_grad():
                right = (judge.classes(features).argmax(1) == labels).double().mean().item()
            share = confident_share(judge, features)
            error = math.sqrt(share * (1 - share) / SAMPLES)
            rows.append({"solver": solver, "guidance": guidance, "confident": [share, error], "right": right})
            print(f"   {rows[-1]}", flush=True)
    settings = {"config": CONFIG, "samples": SAMPLES, "confident_above": CONFIDENT}
    return settings, rows


@torch.no_grad()
def _draw(process: ReverseProcess, sampler: Sampler, labels: torch.Tensor, guidance: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x_T = process.inner.prior.sample((len(labels),), generator=generator)
    score = classifier_free(process.inner.score, F.one_hot(labels, 10).to(x_T), guidance=guidance)
    return process.decode(sampler(score, process.inner.sde, x_T, generator=generator)) / 255
