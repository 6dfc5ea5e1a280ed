"""How many threads a model gets where nobody says."""

import pytest
import torch
from torch import nn

from experiment import threads, train
from experiment.config import parse_config
from experiment.draws import drawing, sampling
from experiment.errors import UserError


@pytest.fixture(autouse=True)
def nothing_lasts(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "available_cores", lambda: 2)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def large():
    return nn.Linear(1000, 1001)


@pytest.mark.parametrize(("model", "count"), [(nn.Linear(2, 2), 1), (nn.Conv2d(1, 1, 1), 2), (large(), 2)])
def test_small_models_get_one_thread_unless_they_convolve(model, count):
    assert threads.set_threads(0, model) == count == torch.get_num_threads()


def test_what_is_asked_for_is_given(monkeypatch):
    assert threads.set_threads(2, nn.Linear(2, 2)) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.set_threads(0, large()) == 1
    with pytest.raises(UserError, match="--threads must be 0 or more, but is -1"):
        threads.set_threads(-1, large())


def test_one_thread_for_a_while():
    def fails_inside():
        with threads.one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError

    torch.set_num_threads(2)
    with pytest.raises(KeyError):
        fails_inside()
    assert torch.get_num_threads() == 2


def test_draws_in_many_steps_take_one_thread_unless_told_otherwise(tmp_path, monkeypatch):
    data, steps = {"kind": "toy", "name": "moons", "train_rows": 100}, {"steps": 1, "batch_size": 10}
    asked = []
    monkeypatch.setattr(drawing, "set_threads", lambda count, model: asked.append(count))
    for model in ({"kind": "maf", "layers": 1, "hidden": [4]}, {"kind": "real_nvp", "layers": 2, "hidden": [4]}):
        run = train(
            parse_config({"data": data, "model": model, "train": steps}, source="test"), tmp_path / model["kind"]
        )
        sampling.draw_samples(run.path, count=1)
        sampling.draw_samples(run.path, count=1, threads=2)
    assert asked == [1, 2, 0, 2]
