"""A small Glow on MNIST, 20 minutes on two CPU cores: test bits/dim, round trip in float32, samples, interpolations."""

from typing import Any

from benchmarks.record import DATA, DOCS, RUNS
from experiment import evaluate, load_config, train
from experiment.draws.sampling import draw_interpolations, draw_samples
from experiment.files import write_atomic

CONFIG = "configs/mnist/glow_small.toml"
THREADS = 2
COLUMNS = (
    "kind",
    "rows",
    "log_prob_nats",
    "sampling_error_nats",
    "bits_per_dim",
    "bits_per_dim_error",
    "round_trip_max",
    "parameters",
    "train_step",
    "train_seconds",
    "seconds",
)


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Trains, evaluates and keeps the two figures."""
    config = load_config(CONFIG)
    folder = RUNS / "mnist_glow"
    train(config, folder, data_root=DATA, resume=True, threads=THREADS, device="cpu", progress_bar=True)
    summary = evaluate(folder, data_root=DATA, threads=THREADS, progress_bar=True)
    for name, temperature in (("samples", 1.0), ("samples-cool", 0.7)):
        _, picture = draw_samples(folder, count=64, temperature=temperature, threads=THREADS)
        write_atomic(DOCS / "figures" / f"mnist-glow-{name}.png", picture.read_bytes())
    _, picture = draw_interpolations(folder, count=8, steps=10, data_root=DATA, threads=THREADS)
    write_atomic(DOCS / "figures" / "mnist-glow-interpolations.png", picture.read_bytes())
    settings = {"config": CONFIG, "threads": THREADS, "device": "cpu", "draws": summary.draws}
    size = config.model.model_dump(include={"levels", "depth", "hidden"})
    return settings, [{**size, **{column: getattr(summary, column) for column in COLUMNS}}]
