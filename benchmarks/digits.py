"""RealNVP and VP-SDE on the digits: test bits/dim over 20 dequantization draws, from the configs of the demo."""

from typing import Any

from benchmarks.record import DOCS, RUNS
from experiment import compare, load_config, train
from experiment.files import write_atomic

MODELS = ("real_nvp", "vp_sde")
COLUMNS = (
    "run",
    "kind",
    "log_prob_nats",
    "sampling_error_nats",
    "dequantization_error_nats",
    "trace_error_nats",
    "solver_error_nats",
    "truncation_nats",
    "bits_per_dim",
    "bits_per_dim_error",
    "bits_per_dim_log_mean_exp",
    "nfe",
    "parameters",
    "train_seconds",
    "seconds",
)


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Trains both, compares them, and keeps the two figures."""
    folders = []
    for model in MODELS:
        folder = RUNS / "digits" / model
        train(load_config(f"configs/digits/{model}.toml"), folder, resume=True, progress_bar=True)
        folders.append(folder)
    found = compare(folders, RUNS / "digits", with_baselines=False, progress_bar=True)
    for name in ("samples", "likelihoods"):
        picture = (RUNS / "digits" / f"{name}.png").read_bytes()
        write_atomic(DOCS / "figures" / f"digits-{name}.png", picture)
    settings = {"configs": [f"configs/digits/{model}.toml" for model in MODELS], "draws": found.summaries[0].draws}
    return settings, [{column: getattr(s, column) for column in COLUMNS} for s in found.summaries]
