"""Tables of speed: beside peers and bare networks, of starts and data."""

from benchmarks.columns.cells import Columns, Row, met, ratio

ARITHMETIC = ("float32", "convolutions in TF32", "TF32", "bfloat16")


def _peers(row: Row) -> str:
    return ", ".join(f"{name} {ms:.2f}" for name, ms in row["ms"].items() if name not in ("ours", "bare"))


def _difference(row: Row) -> str:
    """The largest of those whose weights were copied."""
    return f"{max(row['differences_nats'].values()):.0e}"


def _target(row: Row) -> str:
    faster = "" if row["faster_target"] is None else f"≥ {row['faster_target']:g}×"
    return faster if row["over_bare_target"] is None else f"{faster}, ≤ {row['over_bare_target']:g} bare"


def _optional(row: Row, name: str) -> str:
    return "" if row.get(name) is None else f"{row[name]:.2f}"


def _lost(row: Row, arithmetic: str) -> str:
    """The mean error of a log-likelihood and the largest, nats."""
    return "{mean:.1e} ({largest:.1e})".format(**row["errors_nats"][arithmetic])


def _grown(row: Row, name: str, digits: int) -> str:
    """What it was at the least and at the most, and the power in between."""
    return f"{row[name][0]:,.{digits}f} → {row[name][-1]:,.{digits}f}, {row['power'][name]:.2f}"


def _mode(row: Row, mode: str) -> str:
    """How many times as fast as it comes, and what is lost, nats."""
    return f"{row['faster'][mode]:.2f} ({row['lost_nats'][mode]:.0e})"


ON_GPU: dict[str, Columns] = {
    "device_modes": [
        ("model", lambda r: r["model"]),
        ("task", lambda r: r["task"]),
        ("as it comes (ms)", lambda r: f"{r['ms']['as it comes']:.2f}"),
        *((mode, lambda r, mode=mode: _mode(r, mode)) for mode in ("TF32", "compiled", "CUDA graphs")),
    ],
}

TABLES: dict[str, Columns] = {
    "speed": [
        ("case", lambda r: r["case"]),
        ("beside", lambda r: r["peer"]),
        ("times as fast", lambda r: f"{r['faster']:.2f}"),
        ("over bare networks", lambda r: _optional(r, "over_bare")),
        ("target", _target),
        ("met", met),
        ("measured", lambda r: r["date"]),
    ],
    "coupling_speed": [
        ("coupling", lambda r: r["coupling"]),
        ("task", lambda r: r["task"]),
        ("bare (ms)", lambda r: f"{r['ms']['bare']:.2f}"),
        ("ours (ms)", lambda r: f"{r['ms']['ours']:.2f}"),
        ("peers (ms)", _peers),
        ("over bare", lambda r: ratio(r, "over_bare")),
        ("fastest peer / ours", lambda r: ratio(r, "faster_than_peer")),
        ("difference (nats)", _difference),
        ("met", met),
    ],
    "planar_speed": [
        ("direction", lambda r: r["direction"]),
        ("h", lambda r: f"`{r['activation']}`"),
        ("task", lambda r: r["task"]),
        ("ours (ms)", lambda r: f"{r['ms']['ours']:.2f}"),
        ("peers (ms)", _peers),
        ("fastest peer / ours", lambda r: ratio(r, "faster_than_peer")),
        ("difference (nats)", _difference),
        ("met", met),
    ],
    "linear_speed": [
        ("layer", lambda r: r["layer"]),
        ("size", lambda r: str(r["size"])),
        ("task", lambda r: r["task"]),
        ("ours (ms)", lambda r: f"{r['ms']['ours']:.2f}"),
        ("peer (ms)", _peers),
        ("peer / ours", lambda r: ratio(r, "faster_than_peer")),
        ("difference (nats)", _difference),
        ("met", met),
    ],
    "continuous_speed": [
        ("task", lambda r: r["task"]),
        ("ours (ms)", lambda r: f"{r['ms']['ours']:.2f}"),
        ("peer (ms)", _peers),
        ("peer / ours", lambda r: ratio(r, "faster_than_peer")),
        ("met", met),
    ],
    "start_time": [
        ("what", lambda r: f"`{r['case']}`"),
        ("seconds", lambda r: f"{r['seconds']:.2f}"),
        ("of `import torch`", lambda r: ratio(r, "over_torch")),
        ("target", lambda r: r["target"]),
        ("met", met),
    ],
    "data_loading": [
        ("data", lambda r: f"`{r['data']}`"),
        ("rows", lambda r: f"{r['rows']:,}"),
        ("batch", lambda r: str(r["batch"])),
        ("ours (ms)", lambda r: f"{r['ms']['ours']:.3f}"),
        ("DataLoader (ms)", lambda r: f"{r['ms']['DataLoader']:.2f}"),
        ("of whole batches (ms)", lambda r: f"{r['ms']['whole batches']:.3f}"),
        ("times as fast as the faster", lambda r: ratio(r, "faster_than_peer")),
        ("training step (ms)", lambda r: f"{r['ms']['steps']:.1f}"),
    ],
    "compile_speed": [
        ("model", lambda r: r["model"]),
        ("task", lambda r: r["task"]),
        ("as it comes (ms)", lambda r: f"{r['ms']['eager']:.1f}"),
        ("compiled (ms)", lambda r: f"{r['ms']['compiled']:.1f}"),
        ("times as fast", lambda r: ratio(r, "compiled_faster")),
        ("the compiler takes (s)", lambda r: f"{r['compiling_s']:.0f}"),
        ("lost (nats)", lambda r: f"{r['lost_nats']:.0e}"),
    ],
    "arithmetic": [
        ("model", lambda r: r["model"]),
        ("dimensions", lambda r: str(r["dimensions"])),
        *((name, lambda r, name=name: _lost(r, name)) for name in ARITHMETIC),
    ],
    "scaling": [
        ("model", lambda r: r["model"]),
        ("in", lambda r: r["axis"]),
        ("from → to", lambda r: f"{r['values'][0]:,} → {r['values'][-1]:,}"),
        ("in theory", lambda r: str(r["theory"])),
        ("log-likelihood (ms)", lambda r: _grown(r, "log_prob_ms", 1)),
        ("training step (ms)", lambda r: _grown(r, "training_ms", 1)),
        ("log-likelihood (MiB)", lambda r: _grown(r, "log_prob_mib", 0)),
        ("training step (MiB)", lambda r: _grown(r, "training_mib", 0)),
    ],
    "reduction": [
        ("config", lambda r: f"`{r['config']}`"),
        ("parameters", lambda r: f"{r['parameters']:,}"),
        ("step (ms)", lambda r: f"{r['step_ms']:.1f}"),
        ("reduction, 2 processes (ms)", lambda r: f"{r['reduction_ms']:.2f}"),
        ("of the step", lambda r: f"{100 * r['share']:.1f} %"),
        ("even at processes", lambda r: f"{r['even_processes']:,}"),
        ("two even at million parameters", lambda r: f"{r['even_parameters'] / 1e6:.1f}"),
    ],
}
