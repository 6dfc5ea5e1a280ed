"""Seconds until a library is imported and until a script has shown its help, beside the import of torch."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT, ROUNDS = Path(__file__).parents[1], 15
CASES = {
    "import torch": ["-c", "import torch"],
    "import core": ["-c", "import core"],
    "import discrete": ["-c", "import discrete"],
    "import cflows": ["-c", "import cflows"],
    "train.py --help": ["train.py", "--help"],
    "evaluate.py --help": ["evaluate.py", "--help"],
    "compare.py --help": ["compare.py", "--help"],
    "sample.py --help": ["sample.py", "--help"],
}
OVER_TORCH, SECONDS = 1.1, 1.0  # of an import, and of a help page

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a case; all in turn, each in a new interpreter."""
    taken: dict[str, list[float]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is imported is compiled once, in the first round
        for i in range(ROUNDS + 1):
            for case, arguments in CASES.items():
                start = time.perf_counter()
                call = [sys.executable, *arguments]
                subprocess.run(call, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
                if i:
                    taken[case].append(time.perf_counter() - start)
    return {"rounds": ROUNDS}, [_row(case, taken) for case in CASES]


def _row(case: str, taken: dict[str, list[float]]) -> Row:
    seconds, torch = taken[case], taken["import torch"]
    lower, _, upper = quantiles([a / b for a, b in zip(seconds, torch, strict=True)], n=4, method="inclusive")
    over = median(seconds) / median(torch)
    return {
        "case": case,
        "seconds": median(seconds),
        "over_torch": over,
        "over_torch_quartiles": [lower, upper],
        "target": f"≤ {SECONDS:.0f} s" if case.endswith("--help") else f"≤ {OVER_TORCH}× torch",
        "met": median(seconds) <= SECONDS if case.endswith("--help") else over <= OVER_TORCH,
    }
