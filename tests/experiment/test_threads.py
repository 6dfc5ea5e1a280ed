"""How many threads a model gets where nobody says."""

import pytest
import torch
from torch import nn

from experiment import threads
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
