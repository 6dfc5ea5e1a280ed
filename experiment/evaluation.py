"""Held-out likelihood with its error budget, from the same noise for every model."""

import io
import math
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor
from tqdm import tqdm

from core import DensityModel, bits_per_dim
from discrete.mass import MassModel
from experiment.data import Dataset
from experiment.device import resolve_device
from experiment.errors import NumericalError, UserError
from experiment.files import file_digest, read_json, write_atomic, write_json
from experiment.round_trip import round_trip_error
from experiment.run import Run, load_best, load_run, open_run
from experiment.threads import set_threads

# The noise of a draw follows from these two: with other batches every model would see other noise.
NOISE_SEED = 10_000_000
BATCH_ROWS = 1000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Mean log-likelihood of held-out rows and every part of its uncertainty, nats unless named otherwise.

    Attributes:
        run: name of the run.
        model: kind of the model.
        data: name of the data.
        data_fingerprint: digest of the test rows.
        rows: number of test rows.
        draws: dequantization draws a row; 1 for continuous data and for models of probability mass.
        dimensions: values a row.
        kind: exact, estimate or bound.
        log_prob_nats: mean over rows and draws.
        sampling_error_nats: standard error over rows, the noise of draws and probes included.
        dequantization_error_nats: the part of it that more draws would take away; None where one draw cannot tell.
        trace_error_nats: the part of it that more trace probes would take away; None where one probe cannot tell.
        solver_error_nats: mean size of the ODE solver's error, which no average takes away.
        truncation_nats: mean of what lies before t_min, to first order; not added to anything.
        bits_per_dim: the mean in bits per dimension; None for continuous data.
        bits_per_dim_error: error bar of it.
        bits_per_dim_log_mean_exp: the tighter bound from the log-mean-exp over draws; None for continuous data, where
            the mass is exact, and where probes make the terms noisy, which would push the mean of exponentials up.
        nfe: mean calls of the vector field a solve; 0 for flows.
        round_trip_max: largest |x - f⁻¹(f(x))| of any value of any row, in units of the data, of [0, 1) for integers;
            None for models that are no flow.
        seconds: wall time of the evaluation.
        parameters: trainable values of the model.
        train_step: step from which the weights come.
        checkpoint_sha256_16: digest of their file: another one makes the evaluation stale.
        train_seconds: training time until then.
        entropy_nats: entropy of the source where it is known.
        conditional: whether the model was told the label of each row: log p(x | y) instead of log p(x).
    """

    run: str
    model: str
    data: str
    data_fingerprint: str
    rows: int
    draws: int
    dimensions: int
    kind: str
    log_prob_nats: float
    sampling_error_nats: float
    dequantization_error_nats: float | None
    trace_error_nats: float | None
    solver_error_nats: float
    truncation_nats: float
    bits_per_dim: float | None
    bits_per_dim_error: float | None
    bits_per_dim_log_mean_exp: float | None
    nfe: float
    round_trip_max: float | None
    seconds: float
    parameters: int
    train_step: int
    checkpoint_sha256_16: str
    train_seconds: float
    entropy_nats: float | None
    conditional: bool = False

    @property
    def error_nats(self) -> float:
        """Error bar: standard error and solver error added in quadrature."""
        return math.hypot(self.sampling_error_nats, self.solver_error_nats)

    def text(self) -> str:
        """The likelihood and its error budget in a few lines."""
        bits = (
            "" if self.bits_per_dim is None else f", {self.bits_per_dim:.4f} ± {self.bits_per_dim_error:.4f} bits/dim"
        )
        trip = "" if self.round_trip_max is None else f"; round trip within {self.round_trip_max:.1e}"
        given = "log p(x | y)" if self.conditional else "log p"
        drawn, trace = known(self.dequantization_error_nats), known(self.trace_error_nats)
        return (
            f"{self.run}: {given} = {self.log_prob_nats:.4f} ± {self.error_nats:.4f} nats{bits} ({self.kind}), "
            f"{self.rows} test rows of {self.data}, {self.draws} draw(s)\n"
            f"  error budget in nats: rows {self.sampling_error_nats:.4f} (of it draws "
            f"{drawn}, trace {trace}), solver {self.solver_error_nats:.4f}; "
            f"truncation {self.truncation_nats:+.4f}; NFE {self.nfe:.0f}{trip}; {self.seconds:.1f} s"
        )


def evaluate(
    run: str | Path,
    *,
    draws: int | None = None,
    data_root: str | Path | None = None,
    device: str = "cpu",
    threads: int = 0,
    progress_bar: bool = False,
) -> Summary:
    """Measures a trained run on its test split and writes `evaluation.json` and `evaluation.npz` beside it.

    Dequantization noise comes from a seed that counts the draw, so that every model sees the same noisy rows; trace
    probes are drawn after it.

    Args:
        run: the run folder.
        draws: dequantization draws a row; the config's where omitted.
        data_root: folder of the data files, where it moved since training.
        device: where to compute.
        threads: CPU threads, 0 to choose by the size of the model.
        progress_bar: show progress on the terminal.

    Returns:
        The summary.

    Raises:
        UserError: no run, no data, or a damaged checkpoint.
        NumericalError: a likelihood that is not finite; it names the row.
    """
    if draws is not None and draws < 1:
        raise UserError(f"--draws must be 1 or more, but is {draws}.")
    folder = open_run(run)
    place = resolve_device(device)
    model = load_run(folder.path, device=place)
    if not isinstance(model, DensityModel):
        raise UserError(
            f"{folder.name} has no likelihood to evaluate: model.kind={folder.config.model.kind} gives scores and "
            "samples; draw from it with sample.py."
        )
    set_threads(threads, model)
    dataset = folder.load_data(None if data_root is None else Path(data_root))
    if len(dataset.test) < 2:
        raise UserError(f"{dataset.name} has 1 test row, but an error bar needs 2 or more.")
    count = 1 if dataset.bins is None or isinstance(model, MassModel) else _draws(folder, draws)
    started = time.monotonic()
    x, context = dataset.test.to(place), dataset.context("test")
    context = None if context is None else context.to(place)
    arrays, kind = _measure(model, x, count, context=context, run=folder.name, progress_bar=progress_bar)
    trips = _round_trips(model, x, context=context, run=folder.name)
    summary = _summarise(folder, dataset, arrays, kind, round_trip=trips, seconds=time.monotonic() - started)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(folder.path / "evaluation.npz", buffer.getvalue())
    write_json(folder.path / "evaluation.json", asdict(summary))
    return summary


def known(error: float | None) -> str:
    """An error in nats, or that a single draw or probe cannot tell it."""
    return "unknown" if error is None else f"{error:.4f}"


def saved_summary(run: Run, *, draws: int | None = None) -> Summary | None:
    """The summary that `evaluate` left, or None where there is none or it is of other weights or draws."""
    try:
        summary = replace(Summary(**read_json(run.path / "evaluation.json")), run=run.name)
        shape = saved_log_prob(run).shape
    except (UserError, TypeError):  # absent, damaged, or written by another version
        return None
    wanted = _draws(run, draws) if summary.kind != "exact" and summary.bits_per_dim is not None else 1
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


def _draws(run: Run, draws: int | None) -> int:
    return run.config.evaluate.draws if draws is None else draws


@torch.no_grad()
def _measure(
    model: DensityModel, x: Tensor, draws: int, *, context: Tensor | None = None, run: str, progress_bar: bool
) -> tuple[dict[str, Array], str]:
    """Each field of the estimates as `(draws, rows)`, and their kind."""
    batches, contexts = x.split(BATCH_ROWS), _split(context, x)
    jobs = [(draw, i) for draw in range(draws) for i in range(len(batches))]
    fields: dict[str, list[Array]] = {}
    kind = ""
    for draw, i in tqdm(jobs, desc=f"evaluate {run}", unit="batch", disable=not progress_bar):
        generator = torch.Generator(x.device).manual_seed(NOISE_SEED + draw * len(batches) + i)
        try:
            estimate = model.estimate_log_prob(batches[i], contexts[i], generator=generator)
        except (RuntimeError, ValueError) as error:
            raise NumericalError(f"{run}: the likelihood could not be computed: {error}") from error
        kind = estimate.kind
        _check_finite(estimate.log_prob, run=run, first_row=i * BATCH_ROWS)
        for name in ("log_prob", "std_error", "solver_error", "truncation", "nfe"):
            value = getattr(estimate, name)
            value = torch.zeros_like(estimate.log_prob) if value is None else value
            fields.setdefault(name, []).append(value.double().cpu().numpy())
    return {name: np.concatenate(parts).reshape(draws, len(x)) for name, parts in fields.items()}, kind


def _split(context: Tensor | None, x: Tensor) -> Sequence[Tensor | None]:
    """The contexts of each batch of rows."""
    batches = len(x.split(BATCH_ROWS))
    return [None] * batches if context is None else context.split(BATCH_ROWS)


def _round_trips(model: DensityModel, x: Tensor, *, context: Tensor | None = None, run: str) -> float | None:
    """The largest round-trip error of any row."""
    errors = []
    for i, (batch, of_batch) in enumerate(zip(x.split(BATCH_ROWS), _split(context, x), strict=True)):
        generator = torch.Generator(x.device).manual_seed(NOISE_SEED + i)
        error = round_trip_error(model, batch, of_batch, generator=generator)
        if error is None:
            return None
        errors.append(error)
    largest = float(torch.cat(errors).max())
    if not math.isfinite(largest):
        raise NumericalError(f"{run}: the inverse of the flow gives values that are not finite on the test rows.")
    return largest


def _check_finite(log_prob: Tensor, *, run: str, first_row: int) -> None:
    bad = (~log_prob.isfinite()).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        raise NumericalError(
            f"{run}: the log-likelihood of test row {first_row + row} is {log_prob[row].item()}; a likelihood that is "
            "not finite is never averaged away."
        )


def _summarise(
    run: Run,
    dataset: Dataset,
    arrays: dict[str, Array],
    kind: str,
    *,
    round_trip: float | None = None,
    seconds: float,
) -> Summary:
    log_prob = arrays["log_prob"]
    draws, rows = log_prob.shape
    sampling = _standard_error(log_prob.mean(0))
    dequantization = 0.0 if dataset.bins is None or kind == "exact" else None
    if draws > 1:
        dequantization = math.sqrt(log_prob.var(0, ddof=1).sum() / draws) / rows
    trace = math.sqrt(np.square(arrays["std_error"]).sum()) / log_prob.size
    solver = float(arrays["solver_error"].mean())
    noisy_terms = bool(arrays["std_error"].any())
    log_mean_exp = None
    if dataset.bins is not None and kind != "exact" and not noisy_terms:
        log_mean_exp = _bits(float((logsumexp(log_prob, 0) - math.log(draws)).mean()), dataset)
    best = load_best(run)
    return Summary(
        run=run.name,
        model=run.config.model.kind,
        data=dataset.name,
        data_fingerprint=dataset.fingerprint,
        rows=rows,
        draws=draws,
        dimensions=dataset.event_shape.numel(),
        kind=kind,
        log_prob_nats=float(log_prob.mean()),
        sampling_error_nats=sampling,
        dequantization_error_nats=dequantization,
        trace_error_nats=None if math.isnan(trace) else trace,
        solver_error_nats=solver,
        truncation_nats=float(arrays["truncation"].mean()),
        bits_per_dim=None if dataset.bins is None else _bits(float(log_prob.mean()), dataset),
        bits_per_dim_error=None if dataset.bins is None else -_bits(math.hypot(sampling, solver), dataset),
        bits_per_dim_log_mean_exp=log_mean_exp,
        nfe=float(arrays["nfe"].mean()),
        round_trip_max=round_trip,
        seconds=round(seconds, 2),
        parameters=best["parameters"],
        train_step=best["step"],
        checkpoint_sha256_16=file_digest(run.best),
        train_seconds=round(best["seconds"], 2),
        entropy_nats=dataset.entropy_nats,
        conditional=dataset.labels is not None,
    )


def _standard_error(values: Array) -> float:
    """Standard deviation over √n."""
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _bits(nats: float, dataset: Dataset) -> float:
    return float(bits_per_dim(torch.tensor(nats, dtype=torch.float64), dataset.event_shape))
