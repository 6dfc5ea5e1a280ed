"""Draws of NCSN on digits and MNIST, judged by a small classifier of the data."""

import time
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from benchmarks.labels import Labelled, labelled_digits, labelled_mnist
from benchmarks.record import DATA, DOCS, RUNS
from experiment import load_config, load_run, train
from experiment.files import write_atomic
from experiment.plots import png, sample_figure
from experiment.run import load_best

SAMPLES = {"digits": 512, "mnist": 256}
CONFIDENT = 0.9


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The share of draws of which the classifier is more than 0.9 sure, beside that of test images and of noise."""
    rows = []
    for name, count in SAMPLES.items():
        config = load_config(f"configs/{name}/ncsn.toml")
        run = train(config, RUNS / f"{name}-ncsn", data_root=DATA, resume=True, progress_bar=True)
        best, model = load_best(run), load_run(run.path)
        started = time.monotonic()
        draws = model.sample((count,), generator=torch.Generator().manual_seed(0)).flatten(1).numpy()
        seconds = time.monotonic() - started
        bins, image_shape = run.environment["bins"], tuple(run.environment["image_shape"])
        known, unseen = labelled_digits() if name == "digits" else labelled_mnist(DATA)
        judge = classifier(known)
        p = judge.predict_proba(draws / (bins - 1))
        share = float((p.max(1) > CONFIDENT).mean())
        rows.append(
            {
                "data": name,
                "samples": count,
                "confident_share": share,
                "confident_share_error": (share * (1 - share) / count) ** 0.5,
                "test_share": confident_share(judge, unseen[0]),
                "mixed_share": confident_share(judge, mixed_pixels(known[0], 2000)),
                "classifier_accuracy": float(judge.score(*unseen)),
                "classes": np.bincount(p.argmax(1), minlength=10).tolist(),
                "parameters": best["parameters"],
                "train_step": best["step"],
                "train_seconds": best["seconds"],
                "sigma_max": model.base.sigmas[0].item(),
                "score_evaluations": len(model.base.sigmas) * config.model.sampler.steps + 1,
                "sample_seconds": seconds,
            }
        )
        panels = {"test images": unseen[0][:64] * (bins - 1), "NCSN": draws[:64].astype(np.float64)}
        figure = sample_figure(panels, image_shape=image_shape, bins=bins, title=f"{name}: data and draws")
        write_atomic(DOCS / "figures" / f"ncsn-{name}.png", png(figure))
    return {"confidence": CONFIDENT, "configs": [f"configs/{name}/ncsn.toml" for name in SAMPLES]}, rows


def classifier(known: Labelled) -> MLPClassifier:
    """One hidden layer; twenty passes over many rows, as many as it takes over few."""
    x, y = known
    judge = MLPClassifier((128,), alpha=1e-3, max_iter=20 if len(x) > 10_000 else 300, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return judge.fit(x, y)


def confident_share(judge: MLPClassifier, x: NDArray[np.float64]) -> float:
    """Share of rows whose likeliest class has more than 0.9."""
    return float((judge.predict_proba(x).max(1) > CONFIDENT).mean())


def mixed_pixels(x: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """Each pixel from an image of its own: every pixel keeps its law, and no digit is left."""
    picked = np.random.default_rng(0).integers(len(x), size=(rows, x.shape[1]))
    return x[picked, np.arange(x.shape[1])]
