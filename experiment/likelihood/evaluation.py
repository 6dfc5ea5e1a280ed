"""Held-out likelihood with its error budget and checks, from the same noise for every model."""

import math
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from core import DensityModel
from core.density import Context, Kind
from experiment.batches import BATCH_ROWS, NOISE_SEED, batch_at, batch_count
from experiment.data import Dataset
from experiment.device import resolve_device
from experiment.distributed.ranks import ALONE, Ranks
from experiment.errors import NumericalError, UserError
from experiment.files import file_digest, read_json, write_arrays, write_json
from experiment.likelihood.budget import Array, error_budget
from experiment.likelihood.checks import check
from experiment.likelihood.partial import NOTHING_KEPT, Partial
from experiment.likelihood.solver_share import ERROR_FACTOR, described, solver_for_share
from experiment.likelihood.summary import Subject, Summary
from experiment.likelihood.unwrapped import SolvedByODE, innermost, is_mass
from experiment.run import Run, load_best, load_run, open_run
from experiment.threads import set_threads

AUDIT_ROWS = 4
FIELDS = ("log_prob", "std_error", "solver_error", "truncation", "nfe")


def evaluate(
    run: str | Path,
    *,
    draws: int | None = None,
    solver_share: float | None = None,
    audit_rows: int = AUDIT_ROWS,
    data_root: str | Path | None = None,
    device: str = "cpu",
    threads: int = 0,
    progress_bar: bool = False,
    ranks: Ranks = ALONE,
) -> Summary:
    """Measures a trained run on its test split and writes `evaluation.json` and `evaluation.npz` beside it.

    Dequantization noise comes from a seed that counts the draw, so that every model sees the same noisy rows; trace
    probes are drawn after it.

    Args:
        run: the run folder.
        draws: dequantization draws a row; the config's where omitted.
        solver_share: choose the ODE's tolerances, or steps, so that the mean solver error stays below this share of the
            standard error of the mean; the run's own where omitted. Flows and masses have no solver.
        audit_rows: rows whose log-likelihood is found another way as well; 0 for none.
        data_root: folder of the data files, where it moved since training.
        device: where to compute.
        threads: CPU threads, 0 to choose by the size of the model.
        progress_bar: show progress on the terminal.
        ranks: the processes that share the batches, whose noise does not depend on who computes them, and find the same
            as one; this one alone where omitted.

    Returns:
        The summary.

    Raises:
        UserError: no run, no data, or a damaged checkpoint.
        NumericalError: a likelihood that is not finite; it names the row.
    """
    check_options(draws=draws, solver_share=solver_share, audit_rows=audit_rows)
    folder = open_run(run)
    place = ranks.place(resolve_device(device))
    model = load_density(folder, device=place)
    set_threads(threads, model)
    return measure(
        model,
        folder.load_data(None if data_root is None else Path(data_root)),
        _subject(folder),
        folder.path,
        draws=asked_draws(folder, draws),
        solver_share=solver_share,
        audit_rows=audit_rows,
        device=place,
        progress_bar=progress_bar,
        ranks=ranks,
    )


def measure(
    model: DensityModel,
    dataset: Dataset,
    subject: Subject,
    folder: Path,
    *,
    draws: int,
    solver_share: float | None = None,
    audit_rows: int = AUDIT_ROWS,
    device: torch.device,
    progress_bar: bool = False,
    ranks: Ranks = ALONE,
) -> Summary:
    """Measures a model on the test split and writes `evaluation.json` and `evaluation.npz` into a folder.

    Args:
        model: a density over raw data, on the device; its solver becomes the one that is chosen.
        dataset: the data.
        subject: who the model is.
        folder: where the files go.
        draws: of the noise of integer data; continuous data and models of mass have none.
        solver_share: as in `evaluate`.
        audit_rows: as in `evaluate`.
        device: where to compute.
        progress_bar: show progress on the terminal.
        ranks: as in `evaluate`; the first one writes.
    """
    if len(dataset.test) < 2:
        raise UserError(f"{dataset.name} has 1 test row, but an error bar needs 2 or more.")
    count = noise_draws(model, dataset, draws)
    x, context = dataset.test, dataset.context("test")
    started, notes = time.monotonic(), list[str]()
    if solver_share is not None:
        notes += _choose_solver(model, x, context, share=solver_share, draws=count, run=subject.run, ranks=ranks)
    kept = _kept(model, dataset, subject, folder, count, ranks)
    arrays, kind = likelihoods(
        model, x, count, context=context, run=subject.run, progress_bar=progress_bar, ranks=ranks, kept=kept
    )
    seconds = round(time.monotonic() - started, 2)
    found = ranks.agreed(lambda: check(model, dataset, x, context, run=subject.run, audit_rows=audit_rows))
    found["notes"] = [*notes, *found["notes"]]
    inner = innermost(model)
    if isinstance(inner, SolvedByODE):
        found |= {"solver": described(inner.solver), "solver_share": solver_share}
    summary = _summarise(subject, dataset, arrays, kind, seconds=seconds, **found)
    if ranks.first:
        write_arrays(folder / "evaluation.npz", **arrays)
        write_json(folder / "evaluation.json", asdict(summary))
        for left in folder.glob("evaluation-*.part"):  # of every process, of one that has not come back as well
            Partial(left, key="").drop()
    return summary


def _kept(model: DensityModel, dataset: Dataset, subject: Subject, folder: Path, draws: int, ranks: Ranks) -> Partial:
    """The batches of the same weights, rows, noise and solver that this process had done when it was stopped."""
    inner = innermost(model)
    solver = described(inner.solver) if isinstance(inner, SolvedByODE) else None
    weights, rows = subject.checkpoint_sha256_16, dataset.fingerprint
    work = (weights, rows, draws, BATCH_ROWS, NOISE_SEED, solver, ranks.rank, ranks.world)
    return Partial(folder / f"evaluation-{ranks.rank}.part", key=repr(work))


def load_density(run: Run, *, device: torch.device) -> DensityModel:
    """The trained density of a run.

    Raises:
        UserError: it has none, or as of `load_run`.
    """
    model = load_run(run.path, device=device)
    if not isinstance(model, DensityModel):
        raise UserError(
            f"{run.name} has no likelihood to evaluate: model.kind={run.config.model.kind} gives scores and samples; "
            "draw from it with sample.py."
        )
    return model


def noise_draws(model: DensityModel, dataset: Dataset, draws: int) -> int:
    """How often rows are scored: once where there is no noise, of continuous data and of masses of whole numbers."""
    return 1 if dataset.bins is None or is_mass(model) else draws


def check_options(*, draws: int | None, solver_share: float | None, audit_rows: int) -> None:
    """Refuses what no evaluation can do.

    Raises:
        UserError: an option out of its range.
    """
    if draws is not None and draws < 1:
        raise UserError(f"--draws must be 1 or more, but is {draws}.")
    if solver_share is not None and not 0 < solver_share < float("inf"):
        raise UserError(f"--solver-share must be above 0, such as 0.1, but is {solver_share}.")
    if audit_rows < 0:
        raise UserError(f"--audit-rows must be 0 or more, but is {audit_rows}.")


def saved_summary(run: Run, *, draws: int | None = None) -> Summary | None:
    """The summary that `evaluate` left, or None where there is none or it is of other weights or draws."""
    try:
        summary = replace(Summary(**read_json(run.path / "evaluation.json")), run=run.name)
        shape = saved_log_prob(run).shape
    except (UserError, TypeError):  # absent, damaged, or written by another version
        return None
    wanted = 1 if summary.bits_per_dim is None or summary.mass else asked_draws(run, draws)
    whole = shape == (summary.draws, summary.rows) and summary.draws == wanted
    return summary if whole and summary.checkpoint_sha256_16 == file_digest(run.best) else None


def saved_log_prob(run: Run) -> Array:
    """Log-densities of an evaluated run, `(draws, rows)`, nats."""
    path = run.path / "evaluation.npz"
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return arrays["log_prob"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); evaluate the run again.") from error


def asked_draws(run: Run, draws: int | None) -> int:
    """Dequantization draws a row: those asked for, or the config's."""
    return run.config.evaluate.draws if draws is None else draws


def _subject(run: Run) -> Subject:
    best = load_best(run)
    return Subject(
        run=run.name,
        model=run.config.model.kind,
        parameters=best["parameters"],
        train_step=best["step"],
        checkpoint_sha256_16=file_digest(run.best),
        train_seconds=round(best["seconds"], 2),
    )


def _choose_solver(
    model: DensityModel, x: Tensor, context: Context, *, share: float, draws: int, run: str, ranks: Ranks
) -> list[str]:
    """Gives the model the solver of the share; a sentence where none keeps it."""
    inner = innermost(model)
    try:
        choice = ranks.agreed(lambda: solver_for_share(model, x, context, share=share, draws=draws, seed=NOISE_SEED))
    except (RuntimeError, ValueError) as error:
        raise NumericalError(f"{run}: no solver could be chosen: {error}") from error
    if choice is None or not isinstance(inner, SolvedByODE):
        return []
    inner.solver, inner.error_factor = choice.solver, ERROR_FACTOR
    if choice.met:
        return []
    found = ", ".join(f"{key}={value}" for key, value in described(choice.solver).items())
    return [
        f"no solver down to {found} keeps its error below {share:g} of the standard error: it is "
        f"{choice.solver_error:.2g} nats on the pilot rows, and {choice.allowed:.2g} are allowed."
    ]


@torch.no_grad()
def likelihoods(
    model: DensityModel,
    x: Tensor,
    draws: int,
    *,
    context: Context = None,
    first_draw: int = 0,
    finite: bool = True,
    what: str = "test row",
    run: str,
    progress_bar: bool = False,
    ranks: Ranks = ALONE,
    kept: Partial = NOTHING_KEPT,
) -> tuple[dict[str, Array], Kind]:
    """Each field of the estimates of rows as `(draws, rows)`, and their kind.

    Args:
        model: a density over raw data, on the device.
        x: the rows, which go to the model's device batch by batch.
        draws: of the noise of integer data.
        context: of the rows, `(rows, features)`.
        first_draw: which noise the first draw has.
        finite: whether a density of 0 is refused; NaN and +inf are refused in any case.
        what: what messages call a row.
        run: what they call the model.
        progress_bar: show progress on the terminal.
        ranks: the processes that share the batches; all get the whole.
        kept: the batches of this process that were done before it was stopped.

    Raises:
        NumericalError: a likelihood that cannot be computed or is not finite.
    """
    count, device = batch_count(x), model.anchor.device
    mine = ranks.share(range(draws * count))
    found: list[Sequence[Array] | Array] = [*kept.load()[: len(mine) - 1]]  # the last tells the kind
    kind: Kind = "exact"
    bar = {"desc": f"evaluate {run}", "unit": "batch", "disable": not (progress_bar and ranks.first)}
    for number in tqdm(mine[len(found) :], initial=len(found), total=len(mine), **bar):
        draw, place = divmod(number, count)
        batch = batch_at(place, x, context, draw=first_draw + draw, device=device)
        try:
            estimate = model.estimate_log_prob(batch.x, batch.context, generator=batch.generator)
        except (RuntimeError, ValueError) as error:
            raise NumericalError(
                f"{run}: the likelihood could not be computed in the batch from {what} {batch.first_row} on: {error}"
            ) from error
        kind = estimate.kind
        _check_finite(estimate.log_prob, what=what, run=run, first_row=batch.first_row, finite=finite)
        values = (getattr(estimate, name) for name in FIELDS)
        found.append([_array(value, len(batch.x)) for value in values])
        kept.keep(found)
    fields = (_joined(parts, (draws, len(x))) for parts in zip(*ranks.merged(found), strict=True))
    return dict(zip(FIELDS, fields, strict=True)), ranks.agreed(lambda: kind)


def _array(value: Tensor | None, rows: int) -> Array:
    """A field of a batch; one that is zero in every row takes no memory."""
    if value is None or not value.any():
        return np.broadcast_to(0.0, (rows,))
    return value.double().cpu().numpy()


def _joined(parts: Sequence[Array], shape: tuple[int, int]) -> Array:
    """A field of all batches, in as little memory."""
    if not any(part.any() for part in parts):
        return np.broadcast_to(0.0, shape)
    return np.concatenate(parts).reshape(shape)


def _check_finite(log_prob: Tensor, *, run: str, first_row: int, what: str = "test row", finite: bool = True) -> None:
    bad = ~log_prob.isfinite() if finite else ~(log_prob < math.inf)
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise NumericalError(
            f"{run}: the log-likelihood of {what} {first_row + row} is {log_prob[row].item()}; a likelihood that is "
            "not finite is never averaged away."
        )


def _summarise(
    subject: Subject, dataset: Dataset, arrays: dict[str, Array], kind: Kind, *, seconds: float, **checks: Any
) -> Summary:
    return Summary(
        **asdict(subject),
        **error_budget(arrays, kind, dataset),
        **{"round_trip_max": None, **checks},
        data=dataset.name,
        data_fingerprint=dataset.fingerprint,
        dimensions=dataset.event_shape.numel(),
        seconds=seconds,
        entropy_nats=dataset.entropy_nats,
        conditional=dataset.labels is not None,
    )
