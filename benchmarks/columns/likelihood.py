"""Tables of likelihoods on both sides, and of what an ODE likelihood costs."""

from benchmarks.columns.cells import Columns, Row, met

EIGHT_TOYS: Columns = [
    ("toy", lambda r: r["toy"]),
    ("model", lambda r: r["model"]),
    ("entropy (nats)", lambda r: f"{r['entropy_nats']:.3f}"),
    ("test -log p (nats)", lambda r: f"{r['nll_nats']:.3f} ± {r['error_nats']:.3f}"),
    ("± solver", lambda r: f"{r['solver_error_nats']:.4f}" if r["solver_error_nats"] else ""),
    ("gap (nats), target 0.10", lambda r: f"{r['gap_nats']:+.3f}"),
    ("met", met),
    ("steps", lambda r: f"{r['steps']:,}"),
    ("training (s)", lambda r: f"{r['train_seconds']:.0f}"),
]
TABLES: dict[str, Columns] = {
    "closed_form": [
        ("process", lambda r: r["process"]),
        ("D", lambda r: str(r["dimensions"])),
        ("largest error (nats)", lambda r: f"{r['max_error_nats']:.1e}"),
        ("largest reported solver error (nats)", lambda r: f"{r['max_reported_solver_error_nats']:.1e}"),
        ("NFE", lambda r: f"{r['mean_nfe']:.0f}"),
    ],
    "toys": [
        ("toy", lambda r: r["toy"]),
        ("model", lambda r: r["model"]),
        ("entropy (nats)", lambda r: f"{r['entropy_nats']:.3f}"),
        ("test -log p (nats)", lambda r: f"{r['nll_nats']:.3f} ± {r['error_nats']:.3f}"),
        ("gap (nats)", lambda r: f"{r['gap_nats']:+.3f}"),
        ("training (s)", lambda r: f"{r['train_seconds']:.0f}"),
    ],
    "continuous_toys": EIGHT_TOYS,
    "discrete_toys": EIGHT_TOYS,
    "digits": [
        ("model", lambda r: r["run"]),
        ("kind", lambda r: r["kind"]),
        ("log p (nats)", lambda r: f"{r['log_prob_nats']:.2f}"),
        ("bits/dim", lambda r: f"{r['bits_per_dim']:.3f} ± {r['bits_per_dim_error']:.3f}"),
        ("± rows", lambda r: f"{r['sampling_error_nats']:.3f}"),
        ("± draws", lambda r: f"{r['dequantization_error_nats']:.3f}"),
        ("± trace", lambda r: f"{r['trace_error_nats']:.3f}"),
        ("± solver", lambda r: f"{r['solver_error_nats']:.4f}"),
        ("parameters", lambda r: f"{r['parameters']:,}"),
        ("training (s)", lambda r: f"{r['train_seconds']:.0f}"),
        ("evaluation (s)", lambda r: f"{r['seconds']:.0f}"),
    ],
    "ode_likelihood": [
        ("problem", lambda r: r["problem"]),
        ("method", lambda r: r["method"] if r["method"] == "yardstick" else f"`{r['method']}`"),
        ("at", lambda r: _level(r["at"] or {})),
        ("evaluations a row", lambda r: f"{r['at']['nfe']:.0f}" if r["at"] else ""),
        ("passes of the network", lambda r: f"{r['at']['model_rows']:.0f}" if r["at"] else ""),
        ("rms error (nats)", lambda r: f"{r['at']['rms_error_nats']:.1e}" if r["at"] else ""),
        ("CPU (s)", lambda r: f"{r['at']['seconds']:.2f}" if r["at"] else ""),
        ("times as fast", lambda r: f"{r['speed_up']:.2f}" if r["speed_up"] else "none as close"),
    ],
    "ode_growth": [
        ("along", lambda r: r["along"]),
        ("at", lambda r: str(r["at"])),
        ("method", lambda r: r["method"] if r["method"] == "yardstick" else f"`{r['method']}`"),
        ("evaluations a row", lambda r: f"{r['nfe']:.0f}"),
        ("passes of the network", lambda r: f"{r['model_rows']:.0f}"),
        ("rms error (nats)", lambda r: f"{r['rms_error_nats']:.1e}"),
        ("CPU (ms a row)", lambda r: f"{r['ms_a_row']:.2f}"),
    ],
    "ode_overhead": [
        ("what", lambda r: r["what"]),
        ("ms", lambda r: f"{r['ms']:.2f}"),
        ("forward passes", lambda r: f"{r['forwards']:.1f}" if "forwards" in r else ""),
        ("target", lambda r: _within(r)),
    ],
    "trace_calibration": [
        ("estimator", lambda r: r["estimator"]),
        ("point-draws", lambda r: str(r["point_draws"])),
        ("standard error (nats)", lambda r: f"{r['mean_std_error_nats']:.3f}"),
        ("rms error (nats)", lambda r: f"{r['rms_error_nats']:.3f}"),
        ("mean error (nats)", lambda r: f"{r['bias_nats']:+.3f} ± {r['bias_error_nats']:.3f}"),
        ("Student-t 95 % holds it", lambda r: f"{100 * r['covered_student']:.1f} %"),
        ("normal 95 % holds it", lambda r: f"{100 * r['covered_normal']:.1f} %"),
    ],
}


def _within(row: Row) -> str:
    """What was asked of a row of overheads, and whether it is so."""
    if "met" not in row:
        return ""
    said = f"{row['over_one_probe']:.1f} × one probe, target 5" if "over_one_probe" in row else "0.8 ms"
    return f"{said}: {'met' if row['met'] else 'missed'}"


def _level(at: Row) -> str:
    """Tolerance or steps; empty of the yardstick, and where no level is as close."""
    return at.get("level", "").partition(", ")[2]
