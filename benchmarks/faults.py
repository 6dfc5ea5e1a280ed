"""Faults that happen to a training, each many times at a random moment or place, and what was lost of it."""

import json
import multiprocessing
import random
import resource
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import experiment.likelihood.partial
from experiment.comparison.suite import run_suite
from experiment.config import Config, parse_config
from experiment.errors import UserError
from experiment.run import open_run
from experiment.training import engine
from experiment.training.checkpoint import load_checkpoint

KILLS, SUITES, FLIPS, CUTS, FULL, SECOND = 50, 10, 1000, 200, 20, 20
CHECKPOINT_SECONDS = 0.05
MODELS: dict[str, dict[str, Any]] = {
    "flow": {"kind": "real_nvp", "layers": 2, "hidden": [16], "dropout": 0.3},
    "score": {"kind": "score_sde", "hidden": [16, 16], "dropout": 0.3, "weighting": "learned"},
}

DATA = {"kind": "toy", "name": "moons", "train_rows": 500, "validation_rows": 100, "test_rows": 100}
KINDS = [model["kind"] for model in MODELS.values()]

Row = dict[str, Any]
Damage = Callable[[bytes, random.Random], bytes]


def measure() -> tuple[Row, list[Row]]:
    """A row a fault; a training that does not end with the bits of one that nothing happened to is an error."""
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        whole = {name: trained(name, at / f"{name}-whole", CHECKPOINT_SECONDS) for name in MODELS}
        rows = [killed(name, at / f"{name}-killed", whole[name], times=KILLS) for name in MODELS]
        rows += [
            killed_suite(at / "suite", times=SUITES),
            damaged("flipped bit", flip, at / "flipped", whole["flow"], times=FLIPS),
            damaged("file cut short", cut, at / "cut", whole["flow"], times=CUTS),
            full_disk(at / "full", whole["flow"], times=FULL),
            second_process(at / "second", times=SECOND),
        ]
    return {
        "checkpoint_seconds": CHECKPOINT_SECONDS,
        "models": MODELS,
        "train": config("flow").train.model_dump(),
    }, rows


def config(model: str, steps: int = 3000) -> Config:
    """A small training with every kind of state: noise, dropout, an average, moments and a schedule."""
    table = {
        "data": DATA,
        "preprocessing": {"kind": "none", "standardize": True},
        "model": MODELS[model],
        "train": {
            "steps": steps,
            "batch_size": 64,
            "validate_every": 100,
            "log_every": 1,
            "ema_decay": 0.99,
            "gradient_clip": 1.0,
            "optimizer": "adamw",
            "warmup_steps": 50,
        },
    }
    return parse_config(table, source="faults")


def trained(model: str, folder: Path, seconds: float, steps: int = 3000) -> Path:
    """Trains into a folder, or goes on there, with a checkpoint as often as asked for."""
    engine.CHECKPOINT_SECONDS = seconds
    return engine.train(config(model, steps), folder, threads=1, device="cpu", resume=True).path


def killed(model: str, folder: Path, whole: Path, *, times: int, steps: int = 3000, longest: float = 0.5) -> Row:
    """SIGKILL at random moments, in turn of the start and after new steps, then an undisturbed end."""
    moments, lost, training = random.Random(0), 0, 0
    for i in range(times):
        start = partial(_process, trained, model, folder, CHECKPOINT_SECONDS, steps)
        work = partial(_last_step, folder)
        training += _kill(start, work, seconds=moments.uniform(0, longest), after_work=bool(i % 2))
        lost = max(lost, _lost_steps(folder))
    trained(model, folder, CHECKPOINT_SECONDS, steps)
    _check_same(whole, folder)
    return {
        "fault": f"kill -9 ({model})",
        "how": f"SIGKILL at a random moment, {training} times after new steps and else in the start",
        "times": times,
        "lost": f"at most {lost} steps, those since the last checkpoint; final bits the same",
        "steps_lost": lost,
        "in_training": training,
    }


def killed_suite(folder: Path, *, times: int, steps: int = 500, longest: float = 0.5) -> Row:
    """SIGKILL at random moments of trainings, evaluations and comparison of a suite, then an undisturbed end."""
    folder.mkdir()
    path, moments, working = _written_suite(folder, steps), random.Random(3), 0
    _suite(path, folder / "whole")
    for i in range(times):
        start, work = partial(_process, _suite, path, folder / "killed"), partial(_work, folder / "killed")
        working += _kill(start, work, seconds=moments.uniform(0, longest), after_work=bool(i % 2))
    _suite(path, folder / "killed")
    whole, found = (_figures(folder / name) for name in ("whole", "killed"))
    for model, a, b in zip(MODELS, whole, found, strict=True):
        other = next((key for key in a if a[key] != b[key]), None)
        if other is not None:
            raise RuntimeError(f"a suite that was killed ended with {other}={b[other]} of {model}, not {a[other]}")
    return {
        "fault": "kill -9 (suite: trainings, evaluations, comparison)",
        "how": f"SIGKILL at a random moment, {working} times after new steps or evaluations and else in the start",
        "times": times,
        "lost": "the steps and batches since they were last kept; final figures the same",
        "steps_lost": None,
        "in_work": working,
    }


def _kill(start: Callable[[], BaseProcess], work: Callable[[], int], *, seconds: float, after_work: bool) -> bool:
    """SIGKILL so many seconds after the start of a process, or after its first new work; whether there was any."""
    before, process = work(), start()
    while after_work and process.is_alive() and work() <= before:
        process.join(0.01)
    process.join(seconds)
    process.kill()
    process.join()
    return work() > before


def _work(out: Path) -> int:
    """Steps and evaluations that are there."""
    runs = [path.parent for path in out.glob("*/*/metrics.jsonl")]
    return sum(_last_step(run) + (run / "evaluation.json").exists() for run in runs)


def _written_suite(folder: Path, steps: int) -> Path:
    text = [f"[data.moons]\n{_toml(DATA)}"]
    for model in MODELS:
        table = config(model, steps).model_dump(mode="json", exclude_unset=True)
        sections = (f"[{name}]\n{_toml(table[name])}" for name in ("data", "preprocessing", "model", "train"))
        (folder / f"{model}.toml").write_text("\n".join(sections))
        text.append(f'[models.{model}]\nconfig = "{folder / model}.toml"\n')
    (folder / "suite.toml").write_text("\n".join(text))
    return folder / "suite.toml"


def _toml(table: Row) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


def _suite(path: Path, out: Path) -> None:
    engine.CHECKPOINT_SECONDS = experiment.likelihood.partial.SECONDS = CHECKPOINT_SECONDS
    run_suite(path, out, threads=1, samples=50)


def _figures(out: Path) -> list[Row]:
    """Everything but times, which a checkpoint's hash has in it as well."""
    found = json.loads((out / "suite.json").read_text())
    rows = [row for of in found.values() for several in of.values() for row in several if row["model"] in KINDS]
    varies = ("seconds", "sha256")
    return [{key: value for key, value in row.items() if not any(v in key for v in varies)} for row in rows]


def damaged(
    fault: str, damage: Callable[[bytes, random.Random], bytes], folder: Path, whole: Path, *, times: int
) -> Row:
    """Damage at random places of the newest checkpoint: each is noticed, and the one before goes on to the same end."""
    places, good = random.Random(1), (whole / "last.ckpt").read_bytes()
    folder.mkdir()
    for _ in range(times):
        (folder / "last.ckpt").write_bytes(damage(good, places))
        try:
            load_checkpoint(folder / "last.ckpt")
        except UserError:
            continue
        raise RuntimeError(f"a {fault} went unnoticed")
    run = trained("flow", folder / "run", CHECKPOINT_SECONDS, len(_steps(whole)))
    (run / "last.ckpt").write_bytes(damage((run / "last.ckpt").read_bytes(), places))
    before = load_checkpoint(run / "previous.ckpt")["progress"]["step"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained("flow", run, CHECKPOINT_SECONDS, len(_steps(whole)))
    _check_same(whole, run)
    return {
        "fault": f"{fault} of the newest checkpoint",
        "how": "at a random place; refused with a sentence, the one before takes over",
        "times": times,
        "lost": f"{len(_steps(whole)) - before} steps, those between the two; final bits the same",
        "steps_lost": len(_steps(whole)) - before,
    }


def flip(content: bytes, places: random.Random) -> bytes:
    """Another bit."""
    at = places.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << places.randrange(8)]) + content[at + 1 :]


def cut(content: bytes, places: random.Random) -> bytes:
    """The beginning alone."""
    return content[: places.randrange(len(content))]


def full_disk(folder: Path, whole: Path, *, times: int, steps: int = 3000) -> Row:
    """No file may grow beyond a random size, as where the disk is full: a sentence, and what was whole is not lost."""
    sizes, refused, largest = random.Random(2), 0, (whole / "last.ckpt").stat().st_size
    for _ in range(times):
        ours, theirs = multiprocessing.Pipe()
        process = _process(_with_small_files, sizes.randrange(largest), folder, theirs, steps)
        process.join()
        refused += ours.poll() and "cannot be written: File too large" in ours.recv()
        _lost_steps(folder)
    trained("flow", folder, CHECKPOINT_SECONDS, steps)
    _check_same(whole, folder)
    return {
        "fault": "full disk",
        "how": "files limited to a random size below that of a checkpoint",
        "times": times,
        "lost": f"nothing; {refused} ended with the sentence that names the file; final bits the same",
        "steps_lost": 0,
        "refused": refused,
    }


def second_process(folder: Path, *, times: int) -> Row:
    """Others that train into a folder in which one trains."""
    process, refused = _process(trained, "flow", folder, CHECKPOINT_SECONDS, 100_000), 0
    while not (folder / "last.ckpt").exists():
        process.join(0.05)
    for _ in range(times):
        try:
            trained("flow", folder, CHECKPOINT_SECONDS, 100_000)
        except UserError as error:
            refused += "in use by another process" in str(error)
    process.kill()
    process.join()
    return {
        "fault": "a second process on the same run folder",
        "how": "started while the first trains",
        "times": times,
        "lost": f"nothing; {refused} refused with a sentence",
        "steps_lost": 0,
        "refused": refused,
    }


def _with_small_files(size: int, folder: Path, answer: Any, steps: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        trained("flow", folder, CHECKPOINT_SECONDS, steps)
    except UserError as error:
        answer.send(str(error))


def _process(target: Callable[..., Any], *args: Any) -> BaseProcess:
    """Of a server that has torch already, so that its start takes a tenth of a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.faults"])
    process = context.Process(target=target, args=args)
    process.start()
    return process


def _steps(folder: Path) -> list[int]:
    """Steps that were logged; a last line may be cut short."""
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and '"lr"' in line]


def _last_step(folder: Path) -> int:
    return max(_steps(folder), default=0)


def _lost_steps(folder: Path) -> int:
    """Steps beyond the last checkpoint, which must be whole wherever there is one."""
    if not (folder / "last.ckpt").exists():
        return _last_step(folder)
    return _last_step(folder) - load_checkpoint(folder / "last.ckpt")["progress"]["step"]


def _check_same(whole: Path, folder: Path) -> None:
    a, b = (load_checkpoint(open_run(path).last) for path in (whole, folder))
    for part in ("model", "ema", "objective"):
        if not all(torch.equal(a[part][name], b[part][name]) for name in a[part]):
            raise RuntimeError(f"{folder.name} ended with other values in {part} than a training left alone")
    if not torch.equal(a["generator"], b["generator"]) or _steps(whole) != _steps(folder):
        raise RuntimeError(f"{folder.name} ended with another generator or other lines of metrics")
