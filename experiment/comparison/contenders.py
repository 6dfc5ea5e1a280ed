"""What is compared: runs, configs that are trained where they are not yet, and the baselines of the same data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiment.config import Config, load_config, parse_config
from experiment.errors import UserError
from experiment.run import Run, open_run, run_folder
from experiment.training.engine import train

SIZES: dict[str, dict[int, dict[str, int]]] = {  # options by the dimensions from which they hold: a minute's fit
    "gaussian": {0: {}},
    "gaussian_mixture": {
        0: {},
        128: {"components": 8, "iterations": 30, "most_rows": 10_000},
        1024: {"components": 2, "iterations": 10, "most_rows": 4_000},
    },
    "kernel_density": {0: {}, 128: {"most_rows": 5_000}},
}


@dataclass(frozen=True)
class Options:
    """Where and how whatever is missing of a comparison is trained and evaluated.

    Attributes:
        data_root: folder of the data files; where the run was trained, or `data`, where omitted.
        device: where to compute.
        threads: CPU threads, 0 to choose by the size of each model.
        progress_bar: show progress on the terminal.
    """

    data_root: str | Path | None = None
    device: str = "cpu"
    threads: int = 0
    progress_bar: bool = False

    def train(self, config: Config, folder: Path, *, data_root: str | Path) -> Run:
        """A run, trained to its end where it is not; `data_root` holds where these options name none."""
        return train(config, folder, resume=True, **{**vars(self), "data_root": self.data_root or data_root})


def open_or_train(contenders: Sequence[str | Path], options: Options) -> list[Run]:
    """The runs, those of config files trained to their end first.

    Args:
        contenders: run folders and config files.
        options: of trainings.

    Raises:
        UserError: neither a run nor a config file, two of one name, and as of `train`.
    """
    paths = [Path(item) for item in contenders]
    if not paths:
        raise UserError("compare needs at least one run folder or config file, but none was given.")
    folders = [run_folder(path) if path.suffix == ".toml" else path for path in paths]
    _check_names([folder.resolve().name for folder in folders])
    # All are read before the first is trained: a mistake in the last shows at once.
    read = [load_config(path) if path.suffix == ".toml" else open_run(path) for path in paths]
    return [
        options.train(found, folder, data_root="data") if isinstance(found, Config) else found
        for found, folder in zip(read, folders, strict=True)
    ]


def baselines(run: Run, folder: Path, options: Options) -> list[Run]:
    """A Gaussian, a Gaussian mixture and a kernel density of the data and preprocessing of a run, fitted once.

    Args:
        run: whose data they are fitted to.
        folder: where their runs go, a folder each.
        options: of fits.

    Returns:
        Their runs; none for data with labels, of which they could not be told.
    """
    if run.environment.get("classes", 0):
        return []
    D = math.prod(run.environment["event_shape"])
    sized = {kind: sizes[max(size for size in sizes if size <= D)] for kind, sizes in SIZES.items()}
    configs = {kind: _baseline(run.config, kind, **given) for kind, given in sized.items()}
    root = run.environment["data_root"]
    return [options.train(config, folder / kind, data_root=root) for kind, config in configs.items()]


def _baseline(config: Config, kind: str, **options: int) -> Config:
    """The same data, as vectors, and preprocessing under another model."""
    table = config.model_dump(mode="json", exclude={"train"})
    if "layout" in table["data"]:
        table["data"]["layout"] = "flat"
    table["preprocessing"]["variational"] = None
    table["model"] = {"kind": kind, **options}
    return parse_config(table, source=f"the {kind} baseline")


def _check_names(names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two runs are called {twice!r}; a table needs folders with different names.")
