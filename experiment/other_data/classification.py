"""Which class a row is of, by Bayes' rule, under a run that was told the labels."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import logsumexp
from tqdm import tqdm

from core import MixtureOfDensities
from experiment.batches import batches
from experiment.device import resolve_device
from experiment.distributed.ranks import ALONE, Ranks
from experiment.errors import NumericalError, UserError
from experiment.files import write_arrays, write_json
from experiment.likelihood.budget import Array, standard_error
from experiment.likelihood.evaluation import asked_draws, check_options, load_density, noise_draws
from experiment.other_data.anomaly import marginal
from experiment.run import open_run
from experiment.threads import set_threads


@dataclass(frozen=True)
class Classification:
    """How well p(y | x) = p(y) p(x | y)/Σ_y' p(y') p(x | y') names the labels of test rows.

    Attributes:
        run: name of the run.
        data: name of the data.
        rows: number of test rows.
        classes: number of classes.
        draws: of the noise of integer data, over which p(x | y) is the mean.
        accuracy: share of rows whose likeliest class is theirs.
        accuracy_error: its standard error.
        log_loss_nats: mean of -log p(y | x).
        log_loss_error_nats: its standard error.
        prior_log_loss_nats: mean of -log p(y): what the frequencies of the classes have without a look at x.
    """

    run: str
    data: str
    rows: int
    classes: int
    draws: int
    accuracy: float
    accuracy_error: float
    log_loss_nats: float
    log_loss_error_nats: float
    prior_log_loss_nats: float

    def text(self) -> str:
        """In two lines."""
        return (
            f"{self.run}: p(y | x) names {self.accuracy:.2%} ± {self.accuracy_error:.2%} of {self.rows} test rows of "
            f"{self.data}, {self.classes} classes, {self.draws} draw(s)\n"
            f"  log loss {self.log_loss_nats:.4f} ± {self.log_loss_error_nats:.4f} nats, of the frequencies alone "
            f"{self.prior_log_loss_nats:.4f}"
        )


def classify(
    run: str | Path,
    *,
    draws: int | None = None,
    data_root: str | Path | None = None,
    device: str = "cpu",
    threads: int = 0,
    progress_bar: bool = False,
    ranks: Ranks = ALONE,
) -> Classification:
    """Names the class of each test row and writes `classification.json` and `.npz`, log p(y | x), into the run folder.

    p(y) are the frequencies of the classes in training. All classes see the same noise, and p(x | y) is the mean over
    its draws.

    Checked by tests/experiment/other_data/test_classification.py.

    Args:
        run: the folder of a run with labels.
        draws: dequantization draws a row; the config's where omitted.
        data_root: folder of the data files, where it moved since training.
        device: where to compute.
        threads: CPU threads, 0 to choose by the size of the model.
        progress_bar: show progress on the terminal.
        ranks: the processes that share the batches, as in `evaluate`; the first one writes.

    Raises:
        UserError: no run, or one without labels.
        NumericalError: a row that no class has a density for.
    """
    check_options(draws=draws, solver_share=None, audit_rows=0)
    folder, place = open_run(run), ranks.place(resolve_device(device))
    dataset = folder.load_data(None if data_root is None else Path(data_root))
    if dataset.labels is None:
        raise UserError(f"--classify needs a run that was told the labels, but {folder.name} was not.")
    model = marginal(load_density(folder, device=place), dataset).to(place).eval()
    if not isinstance(model, MixtureOfDensities):
        raise UserError(f"--classify needs densities of each class, but {folder.name} has none.")
    set_threads(threads, model)
    count = noise_draws(model, dataset, asked_draws(folder, draws))
    jobs = [batch for draw in range(count) for batch in batches(dataset.test.to(place), draw=draw)]
    joint: list[Array] = []
    with torch.no_grad():
        progress_bar = progress_bar and ranks.first
        for b in tqdm(ranks.share(jobs), desc=f"classify {folder.name}", unit="batch", disable=not progress_bar):
            joint.append(model.log_joint(b.x, generator=b.generator).double().cpu().numpy())
    log_p = logsumexp(np.concatenate(ranks.merged(joint)).reshape(count, len(dataset.test), -1), 0)
    log_p = log_p - logsumexp(log_p, 1, keepdims=True)
    bad = np.flatnonzero(np.isnan(log_p).any(1))
    if len(bad):
        raise NumericalError(f"{folder.name}: no class has a density at test row {bad[0]}.")
    y = dataset.labels.test.numpy()
    told, right = log_p[np.arange(len(y)), y], (log_p.argmax(1) == y).astype(np.float64)
    found = Classification(
        run=folder.name,
        data=dataset.name,
        rows=len(y),
        classes=dataset.classes,
        draws=count,
        accuracy=float(right.mean()),
        accuracy_error=standard_error(right) if len(y) > 1 else math.nan,
        log_loss_nats=-float(told.mean()),
        log_loss_error_nats=standard_error(told) if len(y) > 1 else math.nan,
        prior_log_loss_nats=-float(model.log_weights.cpu()[dataset.labels.test].double().mean()),
    )
    if ranks.first:
        write_arrays(folder.path / "classification.npz", log_prob=log_p, labels=y)
        write_json(folder.path / "classification.json", asdict(found))
    return found
