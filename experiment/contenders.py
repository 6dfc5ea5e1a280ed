"""What is compared: runs, configs that are trained where they are not yet, and the baselines of the same data."""

import math
from collections.abc import Sequence
from pathlib import Path

from experiment.config import Config, load_config, parse_config
from experiment.engine import train
from experiment.errors import UserError
from experiment.run import Run, open_run

RUNS = Path("runs")
SIZES: dict[str, dict[int, dict[str, int]]] = {  # options by the dimensions from which they hold: a minute's fit
    "gaussian": {0: {}},
    "gaussian_mixture": {
        0: {},
        128: {"components": 8, "iterations": 30, "most_rows": 10_000},
        1024: {"components": 2, "iterations": 10, "most_rows": 4_000},
    },
    "kernel_density": {0: {}, 128: {"most_rows": 5_000}},
}


def run_folder(config: Path) -> Path:
    """Where the run of a config file goes unless told otherwise.

    Example:
        >>> run_folder(Path("configs/digits/real_nvp.toml")).as_posix()
        'runs/digits/real_nvp'
    """
    return RUNS / config.parent.name / config.stem


def open_or_train(
    contenders: Sequence[str | Path],
    *,
    data_root: str | Path | None = None,
    device: str = "cpu",
    threads: int = 0,
    progress_bar: bool = False,
) -> list[Run]:
    """The runs, those of config files trained to their end first.

    Args:
        contenders: run folders and config files.
        data_root: folder of the data files.
        device: where to train.
        threads: CPU threads.
        progress_bar: show progress on the terminal.

    Raises:
        UserError: neither a run nor a config file, two of one name, and as of `train`.
    """
    paths = [Path(item) for item in contenders]
    if not paths:
        raise UserError("compare needs at least one run folder or config file, but none was given.")
    folders = [run_folder(path) if path.suffix == ".toml" else path for path in paths]
    _check_names([folder.resolve().name for folder in folders])
    # All are read before the first is trained: a mistake in the last shows at once.
    configs = {path: load_config(path) for path in paths if path.suffix == ".toml"}
    opened = {path: open_run(path) for path in paths if path not in configs}
    root = Path("data") if data_root is None else Path(data_root)
    for path, folder in zip(paths, folders, strict=True):
        if path in configs:
            opened[path] = train(
                configs[path],
                folder,
                data_root=root,
                resume=True,
                device=device,
                threads=threads,
                progress_bar=progress_bar,
            )
    return [opened[path] for path in paths]


def baselines(
    run: Run,
    folder: Path,
    *,
    data_root: str | Path | None = None,
    device: str = "cpu",
    threads: int = 0,
    progress_bar: bool = False,
) -> list[Run]:
    """A Gaussian, a Gaussian mixture and a kernel density of the data and preprocessing of a run, fitted once.

    Args:
        run: whose data they are fitted to.
        folder: where their runs go, a folder each.
        data_root: folder of the data files, where it moved since training.
        device: where to fit.
        threads: CPU threads.
        progress_bar: show progress on the terminal.

    Returns:
        Their runs; none for data with labels, of which they could not be told.
    """
    if run.environment.get("classes", 0):
        return []
    root = Path(run.environment["data_root"]) if data_root is None else Path(data_root)
    D = math.prod(run.environment["event_shape"])
    options = {kind: sizes[max(size for size in sizes if size <= D)] for kind, sizes in SIZES.items()}
    configs = {kind: _baseline(run.config, kind, **given) for kind, given in options.items()}
    return [
        train(
            config,
            folder / kind,
            data_root=root,
            resume=True,
            device=device,
            threads=threads,
            progress_bar=progress_bar,
        )
        for kind, config in configs.items()
    ]


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
