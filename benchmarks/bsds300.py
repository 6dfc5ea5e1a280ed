"""MAF(5) on natural image patches, within 20 minutes on two CPU cores: test log-likelihood in nats."""

from typing import Any

from benchmarks.record import DATA, RUNS
from experiment import evaluate, load_config, train

CONFIG = "configs/bsds300_patches/maf_small.toml"
COLUMNS = (
    "kind",
    "rows",
    "log_prob_nats",
    "sampling_error_nats",
    "round_trip_max",
    "parameters",
    "train_step",
    "train_seconds",
    "seconds",
)


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Trains and evaluates."""
    config = load_config(CONFIG)
    folder = RUNS / "bsds300"
    train(config, folder, data_root=DATA, resume=True, device="cpu", progress_bar=True)
    summary = evaluate(folder, data_root=DATA, progress_bar=True)
    size = config.model.model_dump(include={"layers", "hidden"})
    return {"config": CONFIG, "device": "cpu"}, [
        {"model": "MAF", **size, **{column: getattr(summary, column) for column in COLUMNS}}
    ]
