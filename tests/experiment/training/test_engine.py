"""The training loop: exact resume, selection, schedules, refusals."""

import json
import math

import pytest
import torch

from discrete import BatchNorm
from experiment import load_run, train
from experiment.config import Train, parse_config
from experiment.data import Dataset, digits
from experiment.errors import NumericalError, UserError
from experiment.run import open_run
from experiment.training import engine
from experiment.training.checkpoint import load_checkpoint
from experiment.training.trainer import Trainer, learning_rate

FLOW = {"kind": "real_nvp", "layers": 2, "hidden": [16], "dropout": 0.3}
SCORE = {"kind": "score_sde", "hidden": [16, 16], "dropout": 0.3}
LEARNED = {**SCORE, "weighting": "learned"}  # its objective learns beside the model


MOONS = {"kind": "toy", "name": "moons", "train_rows": 200, "validation_rows": 50, "test_rows": 50}
DIGITS = {"kind": "digits", "labels": True}


def config(model=FLOW, *, data=MOONS, **settings):
    table = {
        "data": data,
        "preprocessing": {"kind": "none", "standardize": data is MOONS},
        "model": model,
        "train": {
            "steps": 10,
            "batch_size": 32,
            "validate_every": 5,
            "log_every": 5,
            "ema_decay": 0.9,
            "gradient_clip": 1.0,
            "optimizer": "adamw",
            **settings,
        },
    }
    return parse_config(table, source="test")


@pytest.mark.parametrize(
    ("model", "data"),
    [(FLOW, MOONS), (SCORE, MOONS), (LEARNED, MOONS), (FLOW, DIGITS), ({**SCORE, "label_dropout": 0.5}, DIGITS)],
    ids=["flow", "score", "learned times", "flow with labels", "score with labels"],
)
def test_ten_steps_are_five_plus_save_and_load_plus_five_bit_for_bit(tmp_path, model, data, monkeypatch):
    asked = config(model, data=data)
    whole = train(asked, tmp_path / "whole", threads=1)

    class Stop(Exception):  # noqa: N818
        pass

    step = Trainer.step

    def stopping(self):
        if self.progress.step == 5:
            raise Stop
        return step(self)

    monkeypatch.setattr(Trainer, "step", stopping)
    # A period shorter than any step: a checkpoint after each one.
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Stop):
        train(asked, tmp_path / "parts", threads=1)
    assert load_checkpoint(tmp_path / "parts/last.ckpt")["progress"]["step"] == 5
    monkeypatch.setattr(Trainer, "step", step)
    torch.manual_seed(999)
    torch.rand(3)  # the global generator stands elsewhere in a new process
    parts = train(asked, tmp_path / "parts", threads=1, resume=True)

    for name in ("last.ckpt", "best.ckpt"):
        a, b = load_checkpoint(whole.path / name), load_checkpoint(parts.path / name)
        for part in ("model", "ema", "objective"):
            for key in a.get(part, {}):
                assert torch.equal(a[part][key], b[part][key]), (name, part, key)
    assert torch.equal(load_checkpoint(whole.last)["generator"], load_checkpoint(parts.last)["generator"])

    def values(run):
        return [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in run.metrics.read_text().splitlines()
        ]

    assert values(whole) == values(parts)


def test_a_checkpoint_holds_what_the_objective_learns_and_nothing_twice(tmp_path):
    """Validation has times of its own that stand still: those of the averaged copy."""
    data = Dataset("d", torch.randn(64, 2), torch.randn(8, 2), torch.randn(8, 2))
    trainer, fresh, old = (Trainer(config(LEARNED), data, device=torch.device("cpu")) for _ in range(3))
    trainer.step()
    state = trainer.state()
    assert state["objective"].keys() == {"objective.weighting.second_moments"}
    (learned,) = state["objective"].values()
    assert not torch.equal(learned, torch.ones_like(learned))
    fresh.load_state(state)
    weighting = fresh.built.objective.objective.weighting
    assert torch.equal(weighting.second_moments, learned)
    assert weighting.second_moments is not learned
    assert torch.equal(trainer.ema.built.objective.objective.weighting.second_moments, torch.ones_like(learned))
    old.load_state({key: value for key, value in state.items() if key != "objective"})  # of a version without it
    assert all(torch.equal(a, b) for a, b in zip(old.parameters, trainer.parameters, strict=True))
    for model in (FLOW, SCORE):
        assert Trainer(config(model), data, device=torch.device("cpu")).state()["objective"] == {}


def test_a_finished_run_resumed_does_nothing(tmp_path):
    run = train(config(), tmp_path / "run", threads=1)
    before = run.last.read_bytes(), run.metrics.read_text()
    train(config(), tmp_path / "run", threads=1, resume=True)
    assert (run.last.read_bytes(), run.metrics.read_text()) == before


def test_the_run_folder_says_what_was_asked_and_where_it_ran(tmp_path):
    run = train(config(), tmp_path / "run", threads=1)
    assert open_run(run.path).config == config()
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["config_sha256_16"] == config().digest
    assert environment["versions"]["torch"] == torch.__version__
    assert {"seed", "git_commit", "device", "threads", "python", "data_sha256_16"} <= set(environment)


def test_load_run_gives_the_averaged_best_weights(tmp_path):
    run = train(config(), tmp_path / "run", threads=1)
    model, best = load_run(run.path), load_checkpoint(run.best)
    assert not model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, best["model"][key])
    assert math.isfinite(model.log_prob(torch.zeros(2)).item())
    assert best["value"] == min(
        json.loads(x).get("validation_nll_nats", math.inf) for x in run.metrics.read_text().splitlines()
    )


def test_training_lowers_the_validation_loss(tmp_path):
    run = train(config(steps=300, validate_every=10, learning_rate=3e-3), tmp_path / "run", threads=1)
    losses = [v for line in run.metrics.read_text().splitlines() if (v := json.loads(line).get("validation_nll_nats"))]
    assert losses[-1] < losses[0] - 0.05


def test_patience_stops_early(tmp_path):
    run = train(
        config(steps=1000, learning_rate=0.3, schedule="constant", validate_every=1, patience=3, ema_decay=0.0),
        tmp_path / "run",
        threads=1,
    )
    progress = load_checkpoint(run.last)["progress"]
    assert progress["step"] < 1000
    assert progress["stale"] == 3
    assert progress["best_step"] == progress["step"] - 3


def test_another_config_in_the_folder_is_refused_and_nothing_changes(tmp_path):
    run = train(config(), tmp_path / "run", threads=1)
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    with pytest.raises(UserError, match=r"belongs to another config \(train\.batch_size=32, not 16\)"):
        train(config(batch_size=16), run.path, threads=1, resume=True)
    with pytest.raises(UserError, match="already holds this run; add --resume"):
        train(config(), run.path, threads=1)
    assert {p.name: p.read_bytes() for p in run.path.iterdir()} == before


def test_weights_are_never_trained_over(tmp_path):
    run = train(config(), tmp_path / "run", threads=1)
    best = run.best.read_bytes()
    run.last.unlink()
    with pytest.raises(UserError, match="already holds this run"):
        train(config(), run.path, threads=1)
    (run.path / "config.json").unlink()
    with pytest.raises(UserError, match="not a run folder"):
        train(config(), run.path, threads=1)
    assert run.best.read_bytes() == best


def test_a_start_that_failed_does_not_block_the_folder(tmp_path):
    with pytest.raises(UserError, match="batches of 1 rows"):
        train(config(batch_size=1), tmp_path / "run", threads=1)
    run = train(config(), tmp_path / "run", threads=1)
    assert open_run(run.path).config == config()


def test_a_damaged_checkpoint_is_refused_and_nothing_changes(tmp_path):
    run = train(config(), tmp_path / "run", threads=1)
    run.last.write_bytes(run.last.read_bytes()[:-10])
    run.best.write_bytes(run.best.read_bytes()[:-10])
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    with pytest.raises(UserError, match="truncated or was changed"):
        train(config(), run.path, threads=1, resume=True)
    with pytest.raises(UserError, match="truncated or was changed"):
        load_run(run.path)
    assert {p.name: p.read_bytes() for p in run.path.iterdir()} == before


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    step = Trainer.step

    def broken(self):
        loss, norm = step(self)
        return (loss * math.nan, norm) if self.progress.step in (8, 9) else (loss, norm)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(NumericalError, match="not finite at step 8"):
        train(config(bad_steps=0), tmp_path / "run", threads=1)
    assert load_checkpoint(tmp_path / "run/best.ckpt")["step"] == 5


def test_metrics_written_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    run = train(config(), tmp_path / "run", threads=1)
    text = run.metrics.read_text()
    with run.metrics.open("a") as file:
        file.write('{"step": 11, "lr": 1}\n{"step": 12, "l')
    train(config(), tmp_path / "run", threads=1, resume=True)
    assert run.metrics.read_text() == text


def test_tensorboard_events_are_written(tmp_path):
    run = train(config(), tmp_path / "run", threads=1, tensorboard=True)
    assert list((run.path / "tensorboard").glob("events*"))


def test_every_row_is_seen_once_an_epoch():
    data = Dataset("d", torch.randn(64, 2), torch.randn(8, 2), torch.randn(8, 2))
    trainer = Trainer(config(), data, device=torch.device("cpu"))
    rows = []
    for step in range(2):
        trainer.progress.step = step
        rows.append(trainer._batch(step)[0])
    assert torch.equal(torch.cat(rows).sort(0).values, data.train.sort(0).values)


def test_a_batch_has_the_labels_of_its_rows():
    data = digits(labels=True)
    trainer = Trainer(config(data=DIGITS, batch_size=100), data, device=torch.device("cpu"))
    where = {row.numpy().tobytes(): label for row, label in zip(data.train, data.labels.train.tolist(), strict=True)}
    for step in (0, 1, 12):
        trainer.progress.step = step
        rows, context = trainer._batch(step)
        assert [where[row.numpy().tobytes()] for row in rows] == context.argmax(1).tolist()


@pytest.mark.parametrize(
    ("step", "schedule", "warmup", "expected"),
    [
        (0, "constant", 0, 1.0),
        (0, "cosine", 0, 1.0),
        (0, "cosine", 4, 0.2),
        (4, "cosine", 4, 1.0),
        (7, "cosine", 4, 0.5),
    ],
)
def test_learning_rate(step, schedule, warmup, expected):
    settings = Train(steps=10, learning_rate=1.0, schedule=schedule, warmup_steps=warmup)
    assert learning_rate(step, settings) == pytest.approx(expected)


def test_batch_normalization_is_evaluated_with_statistics_of_the_whole_training_set(tmp_path):
    """Of standardized rows the first layer's are 0 and 1, not an average over the last batches."""
    batch = config({**FLOW, "normalization": "batch"}, steps=7)
    run = train(batch, tmp_path / "run", threads=1)
    norm = next(m for m in load_run(run.path).modules() if isinstance(m, BatchNorm))
    torch.testing.assert_close(norm.running_mean, torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(norm.running_var, torch.full((2,), 199 / 200), rtol=1e-5, atol=0)
