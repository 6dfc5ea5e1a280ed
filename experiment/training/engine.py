"""The training loop: the same for both sides; weights are exact to the bit when it goes on from a checkpoint."""

import math
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiment.building.builder import load_data, parameter_count
from experiment.config import Config
from experiment.device import resolve_device
from experiment.distributed.parts import saved_parts
from experiment.distributed.ranks import ALONE, Ranks
from experiment.errors import NumericalError, UserError
from experiment.run import Run, create_run, first_difference, load_best, open_run
from experiment.threads import set_threads
from experiment.training.checkpoint import load_newest, save_checkpoint
from experiment.training.lock import sole_writer
from experiment.training.metrics import MetricsLog
from experiment.training.trainer import Trainer

# A crash loses at most the steps of this time.
CHECKPOINT_SECONDS = 20.0


def train(
    config: Config,
    run_dir: str | Path,
    *,
    data_root: str | Path = "data",
    resume: bool = False,
    device: str = "auto",
    threads: int = 0,
    tensorboard: bool = False,
    progress_bar: bool = False,
    ranks: Ranks = ALONE,
    shard: bool = False,
) -> Run:
    """Trains one experiment into a run folder.

    Args:
        config: the experiment.
        run_dir: its folder; made where it does not exist.
        data_root: folder of the data files.
        resume: go on from the folder's last checkpoint; starts afresh where there is none.
        device: `cpu`, `cuda` or `auto`.
        threads: CPU threads, 0 to choose by the size of the model.
        tensorboard: also write TensorBoard events.
        progress_bar: show progress on the terminal.
        ranks: the processes that train together, of which the first alone needs the folder; this one alone where
            omitted.
        shard: leave each process a share of every parameter instead of a copy, for models that do not fit one device.

    Returns:
        The finished run.

    Raises:
        UserError: data, folder or checkpoint that do not fit.
        NumericalError: a loss or gradient that is not finite.
    """
    place = ranks.place(resolve_device(device))
    run_dir, data_root = Path(run_dir), Path(data_root)
    ranks.agreed(lambda: _run_there(run_dir, config, resume=resume))
    with ranks.one_first():
        dataset = load_data(config.data, data_root)
    with ExitStack() as held:
        ranks.agreed(lambda: held.enter_context(sole_writer(run_dir)))
        saved = ranks.agreed(lambda: _saved_state(run_dir, config, resume=resume))
        trainer = Trainer(config, dataset, device=place, ranks=ranks, parts=saved_parts(saved), shard=shard)
        set_threads(threads, trainer.built.model)
        if saved is None:
            run = ranks.agreed(lambda: create_run(run_dir, config, dataset, data_root=data_root, device=place))
        else:
            run = ranks.agreed(lambda: open_run(run_dir))
            run.check_rows(dataset)
            try:
                trainer.load_state(saved)
            except (RuntimeError, KeyError, TypeError, ValueError) as error:
                raise UserError(f"checkpoint {run.last} does not fit this version of the model: {error}.") from error
        path = run.metrics if ranks.first else None
        with MetricsLog(path, after=trainer.progress.step, tensorboard=tensorboard) as log:
            _mend_best(trainer, run, log)
            _loop(trainer, run, log, progress_bar=progress_bar and ranks.first)
    return run


def _loop(trainer: Trainer, run: Run, log: MetricsLog, *, progress_bar: bool) -> None:
    config, progress = trainer.config.train, trainer.progress
    bar = tqdm(total=config.steps, initial=progress.step, desc=run.name, unit="step", disable=not progress_bar)
    watch = trainer.watch
    started = saved = time.monotonic()
    offset = progress.seconds
    if not trainer.parameters and not progress.finished:  # fitted as it was built
        _validate(trainer, run, log)
        progress.finished = True
        _save(trainer, run)
    while not progress.finished:
        watch.add(progress.step + 1, *trainer.step())
        bar.update()
        progress.seconds = offset + time.monotonic() - started
        ends = progress.step >= config.steps
        if progress.step % config.log_every == 0 or ends:
            watch.check(trainer.trace)
            _log(trainer, log)
        if progress.step % config.validate_every == 0 or ends:
            watch.check(trainer.trace)
            bar.set_postfix_str(_validate(trainer, run, log))
            progress.finished = ends or 0 < config.patience <= progress.stale
        if progress.finished or trainer.ranks.decided(by_first=time.monotonic() - saved > CHECKPOINT_SECONDS):
            watch.check(trainer.trace)
            _save(trainer, run)
            saved = time.monotonic()
    bar.close()


def _save(trainer: Trainer, run: Run) -> None:
    # The hash of the run as written: defaults that a later version adds do not orphan it.
    state = {**trainer.state(), "config_sha256_16": run.environment["config_sha256_16"]}
    trainer.ranks.agreed(lambda: save_checkpoint(run.last, state, keep=run.previous))


def _log(trainer: Trainer, log: MetricsLog) -> None:
    """Means since the last line; of steps that were left out, their number."""
    loss, norm, skipped = trainer.watch.read()
    trainer.progress.skipped += skipped
    values = {"gradient_norm": norm, "lr": trainer.optimizer.param_groups[0]["lr"]}
    if skipped:
        values["skipped_steps"] = skipped
    log.write(trainer.progress.step, {f"train_{trainer.built.objective.metric}": loss, **values})


def _validate(trainer: Trainer, run: Run, log: MetricsLog) -> str:
    """Measures, keeps the weights where they are the best so far, and counts patience; what was found, for a bar."""
    progress = trainer.progress
    metric = f"validation_{trainer.built.objective.metric}"
    value = trainer.validate()
    if not math.isfinite(value):
        raise NumericalError(
            f"{metric} is {value} at step {progress.step} ({trainer.trace_validation()}); lower the learning rate or "
            "clip gradients."
        )
    log.write(progress.step, {metric: value, "seconds": round(progress.seconds, 3)})
    progress.stale += 1
    if value < progress.best:
        progress.best, progress.best_step, progress.stale = value, progress.step, 0
        best = {
            "config_sha256_16": run.environment["config_sha256_16"],
            "model": trainer.weights(trainer.ema.built),
            "step": progress.step,
            "metric": metric,
            "value": value,
            "seconds": progress.seconds,
            "parameters": parameter_count(trainer.built.model),
        }
        trainer.ranks.agreed(lambda: save_checkpoint(run.best, best))
    return f"{metric}={value:.4f}"


def _mend_best(trainer: Trainer, run: Run, log: MetricsLog) -> None:
    """Best weights whose file was damaged give way to the averaged ones of now."""
    if not math.isfinite(trainer.progress.best):
        return
    damage = trainer.ranks.agreed(lambda: _damage(run))
    if damage:
        step = trainer.progress.step
        if trainer.ranks.first:
            warnings.warn(
                f"{damage} The averaged weights of step {step} take the place of the best ones.", stacklevel=3
            )
        trainer.progress.best = math.inf
        _validate(trainer, run, log)


def _damage(run: Run) -> str:
    """What is wrong with the best weights; nothing where they open."""
    try:
        load_best(run)
    except UserError as refusal:
        return str(refusal)
    return ""


def _run_there(run_dir: Path, config: Config, *, resume: bool) -> Run | None:
    """The run to go on with, or None where the folder is free, without any checkpoint.

    Raises:
        UserError: the folder holds another experiment, or this one and resuming was not asked for.
    """
    if not any(run_dir.glob("*.ckpt")):
        return None
    run = open_run(run_dir)
    if run.config.digest != config.digest:
        difference = first_difference(run.config.model_dump(mode="json"), config.model_dump(mode="json"))
        raise UserError(f"run folder {run_dir} belongs to another config ({difference}); choose another --run-dir.")
    if not resume:
        raise UserError(f"run folder {run_dir} already holds this run; add --resume, or choose another --run-dir.")
    return run


def _saved_state(run_dir: Path, config: Config, *, resume: bool) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, or None for a fresh start; a bad one is set aside.

    Raises:
        UserError: as of `_run_there`, or no checkpoint is whole.
    """
    run = _run_there(run_dir, config, resume=resume)  # once more: by now another process may have trained here
    found = [] if run is None else [path for path in (run.last, run.previous) if path.exists()]
    if run is None or not found:
        return None
    path, state = load_newest(found)
    if state.get("config_sha256_16") != run.environment["config_sha256_16"]:
        raise UserError(f"checkpoint {path} belongs to another config than {run_dir / 'config.json'}.")
    if path != found[0]:
        found[0].replace(run_dir / "damaged")
    return state
