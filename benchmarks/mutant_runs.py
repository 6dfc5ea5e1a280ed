"""Tests of one changed file at a time, each in a fork of a process that has torch loaded and no package of ours."""

import importlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import jaxtyping
import pytest
import torch

# Of each package those that never import it, which import-linter sees to.
BESIDE = {"core": (), "discrete": ("core", "cflows"), "cflows": ("core", "discrete")}
CHECKER = "beartype.beartype"
THIRD = ("hypothesis.extra.numpy", "scipy.stats", "torchdiffeq")
LEFT_OUT = {".git", ".venv", ".mypy_cache", ".hypothesis", "runs", "site", "data", "build", "docs", "notebooks"}
MEMORY = 8 << 30  # bytes of address space: a change may ask for any number of them
ASLEEP = 60  # times the limit of the processor, by the clock, after which a run is taken to wait for ever
# Plain asserts: what is imported already cannot be rewritten. The profile draws the same each time and keeps nothing.
ARGUMENTS = ("-q", "-x", "--assert=plain", "-m", "not slow", "-p", "no:cacheprovider", "--hypothesis-profile=ci")


class Outcome(NamedTuple):
    """How a run ended: passed, failed, broken before any test, time is up; and the last test to start.

    Seconds are those of the processor.
    """

    end: str
    seconds: float
    test: str
    test_seconds: float


class Chosen:
    """Pytest plugin that leaves of what was collected some tests, in their order, and notes when each starts."""

    def __init__(self, tests: Sequence[str], log: TextIO) -> None:
        self.order, self.log = {test: i for i, test in enumerate(tests)}, log

    def pytest_collection_modifyitems(self, items: list) -> None:
        """Orders them."""
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Notes one."""
        print(time.process_time(), nodeid, file=self.log, flush=True)


class Overlay:
    """A copy of the repository in which one file of a package at a time is changed.

    Imported here are torch and the packages beside that one, with the checks of types that the tests have.
    """

    def __init__(self, root: Path, folder: Path, package: str = "core") -> None:
        if found := [name for name in BESIDE if name in sys.modules]:
            raise RuntimeError(f"{found[0]} is imported, so that no fork would see a change of it.")
        self.tree, self.log = folder / "tree", folder / "started"
        shutil.copytree(root, self.tree, ignore=lambda at, names: LEFT_OUT & set(names) if at == str(root) else ())
        sys.path.insert(0, str(self.tree))
        jaxtyping.install_import_hook([*BESIDE[package]], CHECKER)
        for name in (*THIRD, *BESIDE[package]):
            importlib.import_module(name)
        torch.set_num_threads(1)
        checked = ",".join(name for name in BESIDE if name not in sys.modules)
        self.arguments = (*ARGUMENTS, f"--jaxtyping-packages={checked},{CHECKER}")

    def run(self, tests: Sequence[str], *, limit: int, path: str = "", source: bytes = b"") -> Outcome:
        """Runs the tests with that source in the place of that file, for so many seconds of the processor."""
        if not path:
            return self._forked(tests, limit, keep_bytecode=True)
        place = self.tree / path
        before, times = place.read_bytes(), (place.stat().st_atime, place.stat().st_mtime)
        place.write_bytes(source)
        os.utime(place, (0, 0))  # its bytecode, kept from runs without a change, is out of date for certain
        try:
            return self._forked(tests, limit, keep_bytecode=False)
        finally:
            place.write_bytes(before)
            os.utime(place, times)

    def _forked(self, tests: Sequence[str], limit: int, *, keep_bytecode: bool) -> Outcome:
        begun, pid = time.monotonic(), os.fork()
        if not pid:
            sys.dont_write_bytecode = not keep_bytecode
            self._child(tests, limit)
        done = 0
        while not done:
            time.sleep(0.02)
            done, status, used = os.wait4(pid, os.WNOHANG)
            if time.monotonic() > begun + ASLEEP * limit:
                os.kill(pid, signal.SIGKILL)
        seconds = used.ru_utime + used.ru_stime
        started, _, test = (self.log.read_text().splitlines() or [f"{seconds} "])[-1].partition(" ")
        passed = status in (0, pytest.ExitCode.NO_TESTS_COLLECTED << 8)
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
        end = "time is up" if late else "passed" if passed else "failed" if test else "broken"
        return Outcome(end, seconds, test, seconds - float(started))

    def _child(self, tests: Sequence[str], limit: int) -> None:
        code = 1
        try:
            self.log.write_text("")
            os.chdir(self.tree)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
            for stream in (1, 2):
                os.dup2(os.open(self.log.with_suffix(f".{stream}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            with self.log.open("w") as log:
                files = dict.fromkeys(test.partition("::")[0] for test in tests)
                code = int(pytest.main([*self.arguments, *files], plugins=[Chosen(tests, log)]))
        finally:
            os._exit(code)
