"""Flow matching and FFJORD on the eight toys of known entropy, one config for all, ten minutes a toy at most."""

from typing import Any

from benchmarks.record import DOCS, RUNS
from benchmarks.toys import EXTENT, density, histogram
from experiment import evaluate, load_config, load_run, train
from experiment.data import TOY_ENTROPY_NATS
from experiment.files import write_atomic
from experiment.plots import density_figure, png

MODELS = ("flow_matching", "ffjord")
TARGET_NATS = 0.10

Row = dict[str, Any]


def measure() -> tuple[Row, list[Row]]:
    """Test -log p beside the entropy, which nothing can beat by more than the noise."""
    rows = [row(model, toy) for model in MODELS for toy in TOY_ENTROPY_NATS]
    for toy in TOY_ENTROPY_NATS:
        write_figure(toy)
    return {"configs": [f"configs/moons/{model}.toml" for model in MODELS], "target_nats": TARGET_NATS}, rows


def row(model: str, toy: str) -> Row:
    """Trains, or goes on, and evaluates."""
    config = load_config(f"configs/moons/{model}.toml", [f"data.name={toy}"])
    run = train(config, RUNS / f"{toy}-{model}", resume=True, progress_bar=True)
    s = evaluate(run.path, progress_bar=True)
    gap = -s.log_prob_nats - TOY_ENTROPY_NATS[toy]
    return {
        "toy": toy,
        "model": model,
        "entropy_nats": TOY_ENTROPY_NATS[toy],
        "nll_nats": -s.log_prob_nats,
        "error_nats": s.error_nats,
        "solver_error_nats": s.solver_error_nats,
        "gap_nats": gap,
        "met": gap <= TARGET_NATS,
        "steps": s.train_step,
        "train_seconds": s.train_seconds,
        "evaluation_seconds": s.seconds,
    }


def write_figure(toy: str) -> None:
    """The densities of both models beside that of the data."""
    models = {model: load_run(RUNS / f"{toy}-{model}") for model in MODELS}
    panels = {f"{toy}: data": histogram(toy)} | {k: density(m, extent=EXTENT) for k, m in models.items()}
    figure = density_figure(panels, extent=EXTENT, title=f"{toy}, entropy {TOY_ENTROPY_NATS[toy]:.3f} nats")
    write_atomic(DOCS / "figures" / f"continuous-{toy}.png", png(figure))
