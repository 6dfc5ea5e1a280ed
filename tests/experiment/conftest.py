"""Figures are drawn as on a machine that stalls: a legend whose place matplotlib chose by itself would warn."""

import itertools
from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def _stalling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds pass between a legend's looks at the clock; it warns after one, unless its place was named."""
    seconds = itertools.count(0, 2)
    monkeypatch.setattr("matplotlib.legend.time", SimpleNamespace(perf_counter=lambda: next(seconds)))
