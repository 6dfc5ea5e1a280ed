"""How many of a sample of small mistakes in core, discrete and cflows the tests notice.

`make coverage` leaves, in runs/coverage, which lines each test runs and its seconds. Of each mutant, a change of
benchmarks/mutations.py, the tests that run the changed lines are run: those of the file named after the module first,
then those of its package, the quickest first, as many as take `BUDGET` seconds. It is killed when one fails, or when
time is up and one takes `SLOW` times its usual seconds. Mutants done are kept in runs/mutants.jsonl: a next run goes on
there, and several may at once.
"""

import json
import math
import random
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.mutant_runs import BESIDE, Outcome, Overlay
from benchmarks.mutations import Mutant, mutants

ROOT = Path(__file__).parents[1]
COVERAGE = ROOT / "runs" / "coverage"
JOURNAL = ROOT / "runs" / "mutants.jsonl"
SEED, SAMPLE, LIMIT, BUDGET, SLOW = (
    0,
    300,
    30,
    10.0,
    10.0,
)  # seconds of the processor, which a busy machine leaves alone

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a package and one for all, with every survivor."""
    every = [m for package in BESIDE for m in _of_package(package)]
    sample = random.Random(SEED).sample(every, SAMPLE)
    for package in BESIDE:
        worker = get_context("fork").Process(target=_work, args=(package, sample))
        worker.start()
        worker.join()
    found = _journal()
    rows = [found[str(mutant)] for mutant in sample]
    _confirm({row["test"] for row in rows if row["verdict"] != "survived"})
    settings = {"population": len(every), "sample": SAMPLE, "seed": SEED}
    return {**settings, "limit_seconds": LIMIT, "tests_seconds": BUDGET}, [_summary(p, rows) for p in (*BESIDE, "all")]


def _work(package: str, sample: list[Mutant]) -> None:
    """Runs those of a package that are not in the journal, in an order of its own, so that several share the work."""
    mine = [mutant for mutant in sample if mutant.path.startswith(f"{package}/")]
    with tempfile.TemporaryDirectory() as folder:
        overlay, coverage = Overlay(ROOT, Path(folder), package), Coverage()
        for mutant in random.sample(mine, len(mine)):
            if str(mutant) not in (done := _journal()):
                print(f"{len(done) + 1}/{len(sample)}", _note(mutant, coverage.tests(mutant), overlay), flush=True)


class Coverage:
    """Which tests run which lines, and how long each takes."""

    def __init__(self, folder: Path = COVERAGE) -> None:
        from coverage import CoverageData

        self.data = CoverageData(str(folder / "data"))
        self.data.read()
        self.seconds = dict(_seconds(folder / "tests.xml"))

    def tests(self, mutant: Mutant) -> dict[str, float]:
        """Seconds of the tests that run its lines; of lines that run at import too, those of the file."""
        lines = self.data.contexts_by_lineno(mutant.path)
        near = {c for line in mutant.lines for c in lines.get(line, ())}
        contexts = {c for found in lines.values() for c in found} if "" in near else near
        tests = {context.rpartition("|")[0]: context in near for context in sorted(contexts)}
        named, package = f"test_{Path(mutant.path).stem}.py", f"tests/{Path(mutant.path).parts[0]}/"
        known = [test for test in tests if test in self.seconds]
        known.sort(key=lambda t: (named not in t, not tests[t], package not in t, self.seconds[t]))
        chosen, left = {}, BUDGET
        for test in known:
            if self.seconds[test] <= left:
                left -= self.seconds[test]
                chosen[test] = self.seconds[test]
        return chosen


def _of_package(package: str) -> Iterator[Mutant]:
    for path in sorted((ROOT / package).rglob("*.py")):
        yield from mutants(str(path.relative_to(ROOT)), path.read_bytes())


def _seconds(report: Path) -> Iterator[tuple[str, float]]:
    """Of every test; for ever where it was skipped or failed."""
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        yield name, math.inf if len(case) else float(case.get("time", 0))


def _journal() -> dict[str, Row]:
    lines = JOURNAL.read_text().splitlines() if JOURNAL.exists() else []
    return {row["mutant"]: row for row in map(json.loads, lines)}


def _note(mutant: Mutant, tests: dict[str, float], overlay: Overlay) -> Row:
    source = (ROOT / mutant.path).read_bytes()
    run = partial(overlay.run, list(tests), limit=LIMIT, path=mutant.path, source=mutant.applied(source))
    outcome = run() if tests else Outcome("passed", 0.0, "", 0.0)
    row = {"mutant": str(mutant), "verdict": _verdict(outcome, tests), "tests": len(tests)}
    row |= {
        "test": outcome.test or next(iter(tests), ""),
        "seconds": round(outcome.seconds, 1),
        "in_test": round(outcome.test_seconds, 1),
    }
    with JOURNAL.open("a") as file:
        print(json.dumps(row, ensure_ascii=False), file=file)
    return row


def _verdict(outcome: Outcome, tests: dict[str, float]) -> str:
    """Killed, killed at the import of what the tests need, stuck in a test that ended before, or survived."""
    if outcome.end == "time is up":
        usual = tests.get(outcome.test, LIMIT)
        return "stuck" if outcome.test_seconds > SLOW * max(usual, 0.5) else "survived"
    return {"passed": "survived", "failed": "killed", "broken": "broken"}[outcome.end]


def _confirm(tests: set[str]) -> None:
    """Every test that killed passes without a change.

    Raises:
        RuntimeError: one that fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        outcome = Overlay(ROOT, Path(folder)).run(sorted(tests), limit=3600)
    if outcome.end != "passed":
        raise RuntimeError(f"{outcome.test} fails without a change, so that it kills nothing.")


def _summary(package: str, rows: list[Row]) -> Row:
    rows = [row for row in rows if package in ("all", row["mutant"].partition("/")[0])]
    count = Counter(row["verdict"] for row in rows)
    killed = len(rows) - count["survived"]
    return {
        "package": package,
        "mutants": len(rows),
        "killed": killed,
        "at_import": count["broken"],
        "stuck": count["stuck"],
        "share": killed / len(rows),
        "survivors": [row["mutant"] for row in rows if row["verdict"] == "survived"],
    }
