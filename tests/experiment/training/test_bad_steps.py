"""A step that is not finite is left out, counted, and traced to its row and layer."""

import json
import math

import pytest
import torch
from torch import nn

from core.nets import MLP
from experiment import train
from experiment.building.builder import load_data
from experiment.config import parse_config
from experiment.errors import NumericalError
from experiment.training.checkpoint import load_checkpoint
from experiment.training.trainer import Trainer
from experiment.training.watch import NOT_FOUND, Watch, origin


def asked(kind: str = "real_nvp", **settings: object):
    table = {
        "data": {"kind": "toy", "name": "moons", "train_rows": 200, "validation_rows": 50, "test_rows": 50},
        "model": {"kind": kind, "hidden": [16, 16]},
        "train": {"steps": 12, "batch_size": 32, "validate_every": 12, "log_every": 4, "ema_decay": 0.9, **settings},
    }
    return parse_config(table, source="test")


@pytest.fixture
def broken(monkeypatch):
    """Makes the first network give NaN in row 3, or only its gradient, in some steps."""
    step = Trainer.step

    def break_in(steps, *, gradient=False):
        def breaking(self):
            def spoil(value):
                return torch.where(torch.arange(len(value))[:, None] == 3, math.nan, value)

            def hook(module, _, output):
                if not self.stepping or self.progress.step + 1 in steps:  # found again when traced
                    if not gradient:
                        return spoil(output)
                    output.register_hook(spoil)
                return output

            network = next(m for m in self.built.objective.modules() if isinstance(m, nn.Linear))
            if not network._forward_hooks:
                network.register_forward_hook(hook)
            self.stepping = True
            found = step(self)
            self.stepping = False
            return found

        monkeypatch.setattr(Trainer, "step", breaking)

    return break_in


def lines(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("kind", ["real_nvp", "score_sde"])
def test_bad_steps_are_left_out_and_counted(tmp_path, broken, kind, gradient):
    broken({3, 6, 7}, gradient=gradient)
    run = train(asked(kind), tmp_path / "run", threads=1)
    last = load_checkpoint(run.last)
    assert last["progress"]["skipped"] == 3
    assert all(value.isfinite().all() for part in ("model", "ema") for value in last[part].values())
    assert [line["skipped_steps"] for line in lines(run) if "skipped_steps" in line] == [1, 2]
    logged = [v for line in lines(run) for k, v in line.items() if k.startswith("train_") or k == "gradient_norm"]
    assert len(logged) == 6
    assert all(map(math.isfinite, logged))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_step_left_out_moves_no_parameter_and_no_moment(broken, optimizer):
    broken({2})
    config = asked(optimizer=optimizer)
    from experiment.building.builder import load_data

    trainer = Trainer(config, load_data(config.data, "data"), device=torch.device("cpu"))
    trainer.step()
    parameters = [p.clone() for p in trainer.parameters]
    moments = [v.clone() for state in trainer.optimizer.state.values() for v in state.values()]
    loss, _ = trainer.step()
    assert loss.isnan()
    assert all(map(torch.equal, parameters, trainer.parameters))
    assert all(map(torch.equal, moments, [v for s in trainer.optimizer.state.values() for v in s.values()]))
    trainer.step()
    assert not any(map(torch.equal, parameters, trainer.parameters))


@pytest.mark.parametrize(("most", "bad", "ends"), [(0, {5}, True), (2, {5, 6}, False), (2, {5, 6, 7}, True)])
def test_more_bad_steps_in_a_row_than_allowed_end_it(tmp_path, broken, most, bad, ends):
    broken(bad)
    if not ends:
        train(asked(bad_steps=most), tmp_path / "run", threads=1)
        return
    with pytest.raises(NumericalError, match=rf"not finite at step 5 \(row 3 of its batch, .*train\.bad_steps={most} "):
        train(asked(bad_steps=most), tmp_path / "run", threads=1)


def test_the_batch_of_the_bad_step_is_traced():
    """And not that of a step before or after it: one row among all brings NaN."""
    config = asked()
    trainer = Trainer(config, load_data(config.data, "data"), device=torch.device("cpu"))
    bad, found = trainer.train_rows[17], {}
    trainer.built.objective.register_forward_pre_hook(lambda _, given: found.update(rows=(given[0] == bad).all(1)))
    network = next(m for m in trainer.built.objective.modules() if isinstance(m, nn.Linear))
    network.register_forward_hook(lambda _, __, y: torch.where(found["rows"][:, None], math.nan, y))
    step = next(step for step in range(1, 7) if trainer.step()[0].isnan())
    row = int((trainer._batch(step - 1)[0] == bad).all(1).nonzero())
    trainer.step()
    assert trainer.trace(step).startswith(f"row {row} of its batch, first out of ")
    assert trainer.trace(step + 1) == NOT_FOUND


def test_the_innermost_layer_and_its_row_are_named():
    class Root(nn.Module):
        def forward(self, x):
            return x.sqrt()

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 2), Root(), MLP(2, 2, hidden=(4,)))

        def forward(self, batch, context, *, generator=None):
            return self.net(batch).mean()

    loss = Loss()
    with torch.no_grad():
        loss.net[0].weight.copy_(torch.eye(2))
        loss.net[0].bias.zero_()
    x = torch.ones(5, 2)
    assert origin(loss, x, None) == "not found again with other noise"
    x[4, 0] = -1
    assert origin(loss, x, None) == "row 4 of its batch, first out of net.1, a Root"
    x[4, 0] = 0  # the root is finite, its derivative is not
    assert origin(loss, x, None) == "first in the gradient of net.0.weight"
    assert all(p.grad is None for p in loss.parameters())


def test_the_watch_goes_on_where_it_was():
    watches = [Watch(torch.device("cpu"), most=1) for _ in range(2)]
    losses = [1.0, math.nan, 3.0, math.inf]
    for i, loss in enumerate(losses):
        watches[0].add(i + 1, torch.tensor(loss), torch.tensor(2.0))
    watches[1].load_state(watches[0].state())
    for watch in watches:
        watch.check(lambda step: "")
        watch.add(5, torch.tensor(1.0), torch.tensor(math.nan))
        with pytest.raises(NumericalError, match=r"step 4 \(traced 4\)"):
            watch.check(lambda step: f"traced {step}")
        assert watch.read() == (2.0, 2.0, 3)
        assert math.isnan(watch.read()[0])


def test_the_row_of_a_validation_that_is_not_finite_is_named(tmp_path, monkeypatch):
    def spoiled(self):
        with torch.no_grad():
            network = next(m for m in self.ema.built.objective.modules() if isinstance(m, nn.Linear))
            network.bias[0] = math.inf
        return math.nan

    monkeypatch.setattr(Trainer, "validate", spoiled)
    with pytest.raises(NumericalError, match=r"validation_nll_nats is nan at step 12 \(row 0 of its batch, first out"):
        train(asked(), tmp_path / "run", threads=1)
