"""Mutants change what they say and nothing else, and a run tells a test that fails from one that never ends."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import mutants
from benchmarks.mutant_runs import Outcome, Overlay
from benchmarks.mutations import Mutant
from benchmarks.mutations import mutants as mutants_of

ROOT = Path(__file__).parents[1]
SOURCE = '''"""π + 1."""
SCALE = 2.0


@dataclass(frozen=True)
class Half(Base):
    share: float = 0.5

    def forward(self, x: Float[Tensor, "2 3"], steps: int = 3) -> Tensor:
        """1 / 2."""
        if steps < 1:
            raise ValueError(f"{steps + 1} steps")
        é = torch.exp(-x)
        return (é @ x.mT).sum(
            -1, keepdim=True
        )
'''
CHANGES = {
    ("2.0", "4.0"),
    ("2.0", "1.0"),
    ("steps < 1", "steps <= 1"),
    ("steps < 1", "steps >= 1"),
    ("1", "2"),
    ("1", "0"),
    ("torch.exp(-x)", "torch.log(-x)"),
    ("torch.exp(-x)", "-x"),
    ("-x", "x"),
    ("(é @ x.mT).sum(-1, keepdim=True)", "(é @ x.mT).sum(-1)"),
    ("(é @ x.mT).sum(-1, keepdim=True)", "(é @ x.mT).mean(-1, keepdim=True)"),
    ("é @ x.mT", "é"),
    ("é @ x.mT", "x.mT"),
    ("é @ x.mT", "é @ x.mT.mT"),
    ("x.mT", "x"),
    ("-1", "1"),
    ("True", "False"),
}
# A repository of one function, and changes of it: right, wrong, without an end, and one that cannot be imported.
RUNS = """
import sys
from pathlib import Path
from benchmarks.mutant_runs import Overlay
overlay = Overlay(Path(sys.argv[1]), Path(sys.argv[2]))
tests = ["tests/test_half.py::test_half"]
half = b"def half(x):\\n    return x / 2\\n"
for source in (half, half.replace(b"2", b"3"), half.replace(b"return", b"while 1: "), half.replace(b"x)", b"x"), half):
    limit = 5 if b"while" in source else 30
    print(overlay.run(tests, limit=limit, path="core/half.py", source=source).end)
for tests in (tests, ["tests/test_half.py::test_third"], ["tests/test_half.py::test_wrong"]):
    print(overlay.run(tests, limit=30).end)
"""


def test_changes_are_those_of_the_mathematics() -> None:
    found = [(m.before, m.after) for m in mutants_of("core/half.py", SOURCE.encode())]
    assert set(found) == CHANGES
    assert found.count(("1", "2")) == 2  # the bound and the dimension


def test_a_change_stands_where_it_says_and_nothing_else_moves() -> None:
    source = SOURCE.encode()
    for mutant in mutants_of("core/half.py", source):
        changed = mutant.applied(source)
        assert ast.unparse(ast.parse(source[mutant.start : mutant.end].strip(), mode="eval")) == mutant.before
        assert changed != source
        assert len(changed) - len(source) == len(f"({mutant.after})".encode()) - (mutant.end - mutant.start)
        assert ast.unparse(ast.parse(changed)) != ast.unparse(ast.parse(source))
    (last,) = (m for m in mutants_of("core/half.py", source) if m.before == "True")
    assert (last.place, last.lines) == ("15:25", range(14, 16))


def test_a_fork_sees_the_change_alone(tmp_path: Path) -> None:
    tree = tmp_path / "repository"
    (tree / "core").mkdir(parents=True)
    (tree / "tests").mkdir()
    (tree / "core" / "__init__.py").touch()
    (tree / "core" / "half.py").write_text("def half(x):\n    return x / 2\n")
    (tree / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['slow']\npythonpath = ['.']\n")
    text = "from core.half import half\ndef test_half(): assert half(3) == 1.5\ndef test_wrong(): assert False\n"
    (tree / "tests" / "test_half.py").write_text(text)
    command = [sys.executable, "-c", RUNS, str(tree), str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    ends = ["passed", "failed", "time is up", "broken", "passed", "passed", "passed", "failed"]
    assert ran.stdout.splitlines() == ends, ran.stderr


def test_a_process_with_the_packages_cannot_fork(tmp_path: Path) -> None:
    import core  # noqa: F401

    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match="imported"):
        Overlay(tmp_path / "empty", tmp_path)


def test_verdicts() -> None:
    verdicts = {
        Outcome("passed", 2.0, "a", 1.0): "survived",
        Outcome("failed", 2.0, "a", 1.0): "killed",
        Outcome("broken", 2.0, "", 0.0): "broken",
        Outcome("time is up", 30.0, "a", 11.0): "stuck",
        Outcome("time is up", 30.0, "a", 9.0): "survived",  # it was slow, as it may be on a busy machine
        Outcome("time is up", 30.0, "another", 20.0): "survived",
    }
    assert {outcome: mutants._verdict(outcome, {"a": 1.0}) for outcome in verdicts} == verdicts


def _at(*lines: int) -> Mutant:
    return Mutant("core/half.py", "1:1", range(*lines), 0, 1, "a", "b")


def test_tests_that_run_the_line_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's own first, then those of its package, the quickest first, within the budget."""
    coverage = pytest.importorskip("coverage")
    monkeypatch.chdir(tmp_path)
    data = coverage.CoverageData("data")
    seconds = {
        "tests/core/test_half.py::test_slow": 2.0,
        "tests/core/test_half.py::test_long": mutants.BUDGET,
        "tests/test_bijections.py::test_quick[a-b]": 0.1,
        "core/half.py::core.half": 0.2,
        "tests/discrete/test_other.py::test_far": 0.0,
    }
    for test in seconds:
        data.set_context(f"{test}|run")
        data.add_lines({"core/half.py": [5, 6]})
    data.set_context("")
    data.add_lines({"core/half.py": [1, 2, 8]})
    data.set_context("tests/core/test_half.py::test_elsewhere|run")
    data.add_lines({"core/half.py": [9]})
    data.write()
    cases = ""
    for test, time in (seconds | {"tests/core/test_half.py::test_elsewhere": 0.3}).items():
        file, _, name = test.partition(".py::")
        cases += f'<testcase classname="{file.replace("/", ".")}" name="{name}" time="{time}"/>'
    (tmp_path / "tests.xml").write_text(f"<testsuites>{cases}</testsuites>")
    found = mutants.Coverage(tmp_path)
    own, _, quick, example, far = seconds
    order = [own, far, quick, example]
    assert list(found.tests(_at(4, 6))) == order
    assert list(found.tests(_at(1, 2))) == ["tests/core/test_half.py::test_elsewhere", *order]
    assert list(found.tests(_at(8, 10))) == ["tests/core/test_half.py::test_elsewhere", *order]
    assert not found.tests(_at(7, 8))


def test_every_survivor_is_explained() -> None:
    page = (ROOT / "docs" / "mutants.md").read_text()
    content = json.loads((ROOT / "docs" / "results" / "mutants.json").read_text())
    (total,) = (row for row in content["rows"] if row["package"] == "all")
    assert total["mutants"] == content["settings"]["sample"]
    assert len(total["survivors"]) == total["mutants"] - total["killed"]
    assert total["share"] >= 0.9
    for survivor in total["survivors"]:
        assert survivor.replace("|", "\\|") in page
