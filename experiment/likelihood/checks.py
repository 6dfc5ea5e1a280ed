"""What a likelihood is checked by, beside its error budget."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from core import DensityModel
from core.density import Context
from experiment.batches import NOISE_SEED
from experiment.data import Dataset
from experiment.likelihood.audit import audit
from experiment.likelihood.both_ends import both_ends, column_range, constant_columns
from experiment.likelihood.normalization_check import POINTS, integral
from experiment.likelihood.round_trip import largest_round_trip_error

T = TypeVar("T")


def check(
    model: DensityModel, dataset: Dataset, x: Tensor, context: Context = None, *, run: str, audit_rows: int
) -> dict[str, Any]:
    """The fields of a `Summary` that no likelihood enters: round trip, audit, integral, both ends, and notes.

    A check that cannot be made leaves a note and not an error: the likelihood stands without it.

    Args:
        model: a density over raw data.
        dataset: the data.
        x: its test rows, which go to the model's device batch by batch.
        context: of the rows, `(rows, features)`.
        run: what errors call the model.
        audit_rows: rows to audit; 0 for none.

    Raises:
        NumericalError: a flow whose inverse is not finite.
    """
    notes: list[str] = []

    def attempt(what: str, make: Callable[[], T | None]) -> T | None:
        try:
            return make()
        except RuntimeError as error:
            notes.append(f"{what} could not be made: {error}.")
            return None

    place = model.anchor.device
    few = x[:audit_rows].to(place), None if context is None else context[:audit_rows].to(place)
    found: dict[str, Any] = {
        "round_trip_max": attempt("the round trip", lambda: largest_round_trip_error(model, x, context, run=run)),
        "constant_columns": constant_columns(dataset),
        "notes": notes,
    }
    audited = attempt("the audit", lambda: audit(model, *few, seed=NOISE_SEED) if audit_rows else None)
    if audited is not None:
        found["audit_rows"], found["audit_max_nats"], found["audit_max_std_errors"], note = audited
        notes += [note] if note else []
    if dataset.bins is None and x[0].numel() in POINTS:
        around = column_range(dataset).reshape(2, *dataset.event_shape).to(few[0])
        whole = attempt("the integral", lambda: integral(model, around, few[1], seed=NOISE_SEED))
        found["integral"], found["integral_error"] = whole or (None, None)
    ends = attempt("the check of both ends", lambda: both_ends(model, x, context))
    if ends is not None:
        found["prior_mismatch_nats"], found["noise_share"], note = ends
        notes += [note] if note else []
    if found["constant_columns"]:
        notes.append(
            f"{found['constant_columns']} of {x[0].numel()} columns hold one value in all rows: a density has no bound "
            "there, and the log-likelihood says how sharply the model could follow; drop them."
        )
    return found
