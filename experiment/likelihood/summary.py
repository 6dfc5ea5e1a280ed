"""What an evaluation found: the likelihood, every part of its uncertainty, and the checks that it passed."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Subject:
    """Who is measured: the part of a `Summary` that no measurement changes.

    Attributes:
        run: name of the run.
        model: kind of the model.
        parameters: trainable values of the model.
        train_step: step from which the weights come; 0 where they were not trained here.
        checkpoint_sha256_16: digest of their file: another one makes the evaluation stale.
        train_seconds: training time until then.
    """

    run: str
    model: str
    parameters: int
    train_step: int = 0
    checkpoint_sha256_16: str = ""
    train_seconds: float = 0.0


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
            of an ODE, down to noise and back, of the first rows; None where nothing is inverted.
        seconds: wall time of the likelihoods, pilot solves included, checks not.
        parameters: trainable values of the model.
        train_step: step from which the weights come.
        checkpoint_sha256_16: digest of their file: another one makes the evaluation stale.
        train_seconds: training time until then.
        entropy_nats: entropy of the source where it is known.
        conditional: whether the model was told the label of each row: log p(x | y) instead of log p(x).
        bits_per_dim_log_mean_exp_error: error bar of that bound, the standard error over rows.
        solver: method of the ODE with its tolerances or steps; None for models without one.
        solver_share: share of the standard error that the solver was chosen to stay below; None where it was given.
        audit_rows: rows whose log-likelihood was found another way as well.
        audit_max_nats: largest difference of the two; None where there is no other way.
        audit_max_std_errors: the largest in units of the estimate's standard error; None where it has none.
        integral: ∫ p(x) dx by quadrature, of one or two continuous values.
        integral_error: its difference from half the grid.
        prior_mismatch_nats: most that the prior in the place of p_1 changes the mean, of a score model.
        noise_share: share of the dimensions in which the noise of t_min sets the density, of a score model.
        constant_columns: columns of continuous data that have one value in all training and test rows.
        notes: sentences on what the numbers do not show.
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
    # Absent from what an earlier version wrote.
    bits_per_dim_log_mean_exp_error: float | None = None
    solver: dict[str, Any] | None = None
    solver_share: float | None = None
    audit_rows: int = 0
    audit_max_nats: float | None = None
    audit_max_std_errors: float | None = None
    integral: float | None = None
    integral_error: float | None = None
    prior_mismatch_nats: float | None = None
    noise_share: float | None = None
    constant_columns: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def mass(self) -> bool:
        """Whether whole numbers are given a probability: no noise is drawn, and nothing is a bound."""
        return self.kind == "exact" and self.bits_per_dim is not None

    @property
    def error_nats(self) -> float:
        """Error bar: standard error and solver error added in quadrature."""
        return math.hypot(self.sampling_error_nats, self.solver_error_nats)

    def text(self) -> str:
        """The likelihood, its error budget and its checks in a few lines."""
        given = "log p(x | y)" if self.conditional else "log p"
        lines = [
            f"{self.run}: {given} = {self.log_prob_nats:.4f} ± {self.error_nats:.4f} nats{self._bits()} ({self.kind}), "
            f"{self.rows} test rows of {self.data}, {self.draws} draw(s)",
            f"  error budget in nats: rows {self.sampling_error_nats:.4f} (of it draws "
            f"{known(self.dequantization_error_nats)}, trace {known(self.trace_error_nats)}), "
            f"solver {self.solver_error_nats:.4f}; {self._ends()}",
            f"  cost: NFE {self.nfe:.0f}{self._solver()}; {self.seconds:.1f} s",
        ]
        checks = self._checks()
        lines += [f"  checks: {'; '.join(checks)}"] if checks else []
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _bits(self) -> str:
        if self.bits_per_dim is None:
            return ""
        tighter = self.bits_per_dim_log_mean_exp
        more = "" if tighter is None or self.draws == 1 else f", {tighter:.4f} by log-mean-exp over draws"
        return f", {self.bits_per_dim:.4f} ± {self.bits_per_dim_error:.4f} bits/dim{more}"

    def _ends(self) -> str:
        mismatch = self.prior_mismatch_nats
        prior = "" if mismatch is None else f", prior in place of p_1 at most {mismatch:.4f}"
        return f"truncation {self.truncation_nats:+.4f}{prior}"

    def _solver(self) -> str:
        if self.solver is None:
            return ""
        settings = ", ".join(f"{key}={value:g}" for key, value in self.solver.items() if key != "method")
        chosen = "" if self.solver_share is None else f", chosen for a share of {self.solver_share:g}"
        return f" by {self.solver['method']} with {settings}{chosen}"

    def _checks(self) -> list[str]:
        checks = [] if self.round_trip_max is None else [f"round trip within {self.round_trip_max:.1e}"]
        if self.audit_max_nats is not None:
            errors = self.audit_max_std_errors
            ratio = "" if errors is None else f", {errors:.1f} standard errors"
            checks.append(f"audit of {self.audit_rows} row(s) within {self.audit_max_nats:.1e} nats{ratio}")
        if self.integral is not None:
            checks.append(f"integral {self.integral:.4f} ± {self.integral_error:.4f}")
        return checks


def known(error: float | None) -> str:
    """An error in nats, or that a single draw or probe cannot tell it."""
    return "unknown" if error is None else f"{error:.4f}"
