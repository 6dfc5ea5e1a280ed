"""The run folder: what was asked, where it ran, what came of it."""

import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core import DensityModel, GenerativeModel
from experiment.building.builder import Built, build, load_data
from experiment.config import Config, parse_config
from experiment.data import Dataset
from experiment.errors import UserError
from experiment.files import read_json, write_json
from experiment.sections.baselines import MixtureModel
from experiment.training.checkpoint import load_checkpoint

REQUIRED = ("config_sha256_16", "data_root", "data_sha256_16", "event_shape", "bins", "image_shape")
RUNS = Path("runs")
PACKAGES = ("torch", "torchdiffeq", "numpy", "scipy", "scikit-learn", "pydantic")


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        path: the folder.
        config: the resolved experiment, `config.json`.
        environment: what it ran with, `environment.json`.
    """

    path: Path
    config: Config
    environment: dict[str, Any]

    @property
    def name(self) -> str:
        """What tables call the run: its folder."""
        return self.path.resolve().name

    @property
    def last(self) -> Path:
        """Checkpoint to go on from."""
        return self.path / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The one before, for the day on which the last is bad."""
        return self.path / "previous.ckpt"

    @property
    def best(self) -> Path:
        """Weights with the best validation metric."""
        return self.path / "best.ckpt"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    def load_data(self, data_root: Path | None = None) -> Dataset:
        """The run's dataset, from where it was trained unless told otherwise.

        Raises:
            UserError: the files are gone, or rows have another shape than the model was trained on.
        """
        dataset = load_data(self.config.data, data_root or Path(self.environment["data_root"]))
        expected = tuple(self.environment["event_shape"])
        if tuple(dataset.event_shape) != expected:
            raise UserError(
                f"run {self.path} was trained on rows of shape {expected}, but {dataset.name} now has "
                f"{tuple(dataset.event_shape)}."
            )
        self.check_rows(dataset)
        return dataset

    def check_rows(self, dataset: Dataset) -> None:
        """Refuses rows that changed since training: another split would test the model on what it was trained on.

        Raises:
            UserError: any row of any split is another.
        """
        if dataset.digest != self.environment["data_sha256_16"]:
            raise UserError(
                f"run {self.path} was trained on other rows of {dataset.name} than those there now; train it again."
            )

    def build(self) -> Built:
        """The untrained model of the run's shape."""
        environment = self.environment
        classes = environment.get("classes", 0)  # of runs before there were labels
        shape, bins = tuple(environment["event_shape"]), environment["bins"]
        return build(self.config, shape, bins=bins, classes=classes, parts=parts_of(self.config))


def run_folder(config: Path) -> Path:
    """Where the run of a config file goes unless told otherwise.

    Example:
        >>> run_folder(Path("configs/digits/real_nvp.toml")).as_posix()
        'runs/digits/real_nvp'
    """
    return RUNS / config.parent.name / config.stem


def create_run(path: Path, config: Config, dataset: Dataset, *, data_root: Path, device: torch.device) -> Run:
    """Makes the folder and writes what was asked and where it runs, before the first step."""
    environment = {
        "config_sha256_16": config.digest,
        "seed": config.seed,
        "git_commit": _git_commit(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "data_root": str(data_root.resolve()),
        "data": dataset.name,
        "data_sha256_16": dataset.digest,
        "event_shape": list(dataset.event_shape),
        "bins": dataset.bins,
        "classes": dataset.classes,
        "image_shape": dataset.image_shape,
        "columns": dataset.columns,
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run folder {path} cannot be made: {error.strerror or error}.") from error
    write_json(path / "environment.json", environment)
    write_json(path / "config.json", config.model_dump(mode="json"))
    return Run(path, config, environment)


def open_run(path: str | Path) -> Run:
    """A run folder that exists.

    Raises:
        UserError: no folder, no run in it, or files that are damaged.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not a run folder: it holds no config.json; make one with train.py.")
    config = parse_config(read_json(path / "config.json"), source=str(path / "config.json"))
    environment = read_json(path / "environment.json")
    missing = [key for key in REQUIRED if key not in environment]
    if missing:
        raise UserError(f"{path / 'environment.json'} is damaged: it lacks {missing[0]!r}.")
    return Run(path, config, environment)


def load_run(path: str | Path, *, device: torch.device | str = "cpu") -> GenerativeModel:
    """The trained model of a run, its best weights, in evaluation mode.

    Args:
        path: the run folder.
        device: where the model goes.

    Returns:
        What it models over raw data, preprocessing included: a density, or scores and draws alone.

    Raises:
        UserError: no run there, or a checkpoint that is missing, damaged or of another model.
    """
    return load_model(open_run(path), device=device)


def load_model(run: Run, *, device: torch.device | str = "cpu") -> GenerativeModel:
    """As `load_run`, of a run that is open.

    Raises:
        UserError: as `load_run`.
    """
    state = load_best(run, device=device)
    model = run.build().model
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint {run.best} holds another model than {run.path / 'config.json'} names.") from error
    return model.to(device).eval()


def parts_of(
    config: Config, dataset: Dataset | None = None, *, device: torch.device | str = "cpu"
) -> list[DensityModel]:
    """The densities of the runs of which a config is a mixture; none for any other.

    Args:
        config: the experiment.
        dataset: its data, on which the runs must have been trained; without it they are built and not loaded.
        device: where they go.

    Raises:
        UserError: a run that is not there, has no likelihood, or was trained on other rows.
    """
    if not isinstance(config.model, MixtureModel):
        return []
    runs = [open_run(path) for path in config.model.runs]
    for run in runs:
        if dataset is not None:
            _check_part(run, dataset)
    models = [run.build().model if dataset is None else load_model(run, device=device) for run in runs]
    for run, model in zip(runs, models, strict=True):
        if not isinstance(model, DensityModel):
            raise UserError(f"model.runs: {run.path} has no likelihood, so it can be no part of a mixture.")
    return [model for model in models if isinstance(model, DensityModel)]


def _check_part(run: Run, dataset: Dataset) -> None:
    """Rows may differ in order or shape for other models, but not for one sum over all of them."""
    found, wanted = tuple(run.environment["event_shape"]), tuple(dataset.event_shape)
    if found != wanted:
        raise UserError(
            f"model.runs: {run.path} was trained on rows of shape {found}, but the mixture's have {wanted}."
        )
    if run.environment["data_sha256_16"] != dataset.digest:
        raise UserError(
            f"model.runs: {run.path} was trained on other rows of {run.environment.get('data', 'its data')} than those "
            f"of the mixture's {dataset.name}; the parts need the same data, split and labels."
        )


def load_best(run: Run, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The best weights of a run and where they come from.

    Raises:
        UserError: a checkpoint that is missing, damaged, of another kind or of another config.
    """
    state = load_checkpoint(run.best, device=device)
    missing = [key for key in ("config_sha256_16", "model", "step", "seconds", "parameters") if key not in state]
    if missing:
        raise UserError(f"checkpoint {run.best} is not one of best weights: it lacks {missing[0]!r}.")
    # The hash of the run as written: defaults that a later version adds do not orphan it.
    if state["config_sha256_16"] != run.environment["config_sha256_16"]:
        raise UserError(f"checkpoint {run.best} belongs to another config than {run.path / 'config.json'}.")
    return state


def first_difference(found: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> str:
    """The first setting in which two configs differ, as `key=found, not asked`."""
    for key in [*found, *(k for k in asked if k not in found)]:
        a, b = found.get(key), asked.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and a != b:
            return first_difference(a, b, f"{prefix}{key}.")
        if a != b:
            return f"{prefix}{key}={a!r}, not {b!r}"
    return "no setting"


def _git_commit() -> str | None:
    try:
        folder = Path(__file__).parent
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
