"""No test of the experiment layer depends on how fast the machine is."""

import itertools
import math
from types import SimpleNamespace

import pytest

from experiment.training import engine


@pytest.fixture(autouse=True)
def _any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Legends see two seconds pass between looks at the clock, and no checkpoint is written for the time alone.

    After one second a legend warns, unless its place was named.
    """
    seconds = itertools.count(0, 2)
    monkeypatch.setattr("matplotlib.legend.time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", math.inf)
