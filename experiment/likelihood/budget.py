"""The mean log-likelihood of test rows and the parts of its error, from each row, draw and probe."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core import bits_per_dim
from core.density import Kind
from experiment.data import Dataset

Array = NDArray[np.float64]


def error_budget(arrays: dict[str, Array], kind: Kind, dataset: Dataset) -> dict[str, Any]:
    """The fields of a `Summary` that are means and errors over rows and draws.

    Args:
        arrays: `log_prob`, `std_error`, `solver_error`, `truncation` and `nfe`, each `(draws, rows)`.
        kind: exact, estimate or bound.
        dataset: where the rows come from.
    """
    log_prob = arrays["log_prob"]
    draws, rows = log_prob.shape
    sampling, solver = standard_error(log_prob.mean(0)), float(arrays["solver_error"].mean())
    dequantization = 0.0 if dataset.bins is None or kind == "exact" else None
    if draws > 1:
        dequantization = math.sqrt(log_prob.var(0, ddof=1).sum() / draws) / rows
    trace = math.sqrt(np.square(arrays["std_error"]).sum()) / log_prob.size
    found: dict[str, Any] = {
        "rows": rows,
        "draws": draws,
        "kind": kind,
        "log_prob_nats": float(log_prob.mean()),
        "sampling_error_nats": sampling,
        "dequantization_error_nats": dequantization,
        "trace_error_nats": None if math.isnan(trace) else trace,
        "solver_error_nats": solver,
        "truncation_nats": float(arrays["truncation"].mean()),
        "nfe": float(arrays["nfe"].mean()),
        "bits_per_dim": None,
        "bits_per_dim_error": None,
        "bits_per_dim_log_mean_exp": None,
        "bits_per_dim_log_mean_exp_error": None,
    }
    if dataset.bins is not None:
        found["bits_per_dim"] = _bits(found["log_prob_nats"], dataset)
        found["bits_per_dim_error"] = -_bits(math.hypot(sampling, solver), dataset)
        if kind != "exact" and not arrays["std_error"].any():
            tighter = np.logaddexp.reduce(log_prob) - math.log(draws)
            found["bits_per_dim_log_mean_exp"] = _bits(float(tighter.mean()), dataset)
            error = math.hypot(standard_error(tighter), solver)
            found["bits_per_dim_log_mean_exp_error"] = -_bits(error, dataset)
    return found


def standard_error(values: Array) -> float:
    """Standard deviation over √n."""
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def expected_standard_error(log_prob: Array, *, rows: int, draws: int) -> float:
    """Standard error of the mean over `rows` rows with `draws` draws each, from fewer of both.

    The variance over rows of the mean over d draws is that of the rows plus that of a draw over d.

    Checked by tests/experiment/likelihood/test_solver_share.py.

    Args:
        log_prob: `(d, n)`, nats; with d = 1 what a draw adds counts as the row's own.
        rows: of the mean to come.
        draws: of the mean to come.
    """
    d = len(log_prob)
    between = float(log_prob.mean(0).var(ddof=1))
    within = float(log_prob.var(0, ddof=1).mean()) if d > 1 else 0.0
    return math.sqrt(max(0.0, between - within / d) / rows + within / draws / rows)


def _bits(nats: float, dataset: Dataset) -> float:
    return float(bits_per_dim(torch.tensor(nats, dtype=torch.float64), dataset.event_shape))
