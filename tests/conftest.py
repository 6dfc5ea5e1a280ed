"""Puts the contracts and the cases on the path, keeps arithmetic on one thread and the global generator in place.

Of hypothesis the same examples in every run; `pytest --hypothesis-profile=long` draws many new ones.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import settings

TESTS = Path(__file__).parent

# The repository goes first: tests/core must never stand in for the package core.
sys.path[:0] = [str(TESTS.parent), str(TESTS)]
torch.set_num_threads(1)
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25, database=None)
settings.register_profile("long", deadline=None, max_examples=400, database=None, print_blob=True)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _global_generator() -> Iterator[None]:
    """Networks that a test builds on the fly start alike in every order and selection of tests."""
    from helpers import seed_everywhere  # on the path since this file set it

    with torch.random.fork_rng():
        seed_everywhere(0)
        yield


class FirstCalls(type(jaxtyping.config)):
    """Annotations are checked in the first calls of each test; all of a solver's, alike, would cost a third of it."""

    checked = 200
    calls = 0

    @property
    def jaxtyping_disable(self) -> bool:
        self.calls += 1
        return self.calls > self.checked


jaxtyping.config.__class__ = FirstCalls


@pytest.fixture(autouse=True)
def _annotations() -> None:
    jaxtyping.config.calls = 0


@pytest.fixture
def unannotated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it: no annotation is checked."""
    monkeypatch.setattr(FirstCalls, "checked", 0)
