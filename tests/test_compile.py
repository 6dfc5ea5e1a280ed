"""`torch.compile` of every log-likelihood, and of what an ODE likelihood calls: one graph and the same numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import DENSITIES

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_one_graph() -> None:
    """But for the density of an IAF, in steps that follow from its masks, which are tensors."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}  # tests/core must not stand in for the package core
    call = [sys.executable, TESTS / "graphs.py"]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    broken = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert "broken on purpose" in broken
    assert {name for name in broken if name != "broken on purpose"} == {n for n in DENSITIES if n.startswith("iaf")}, (
        broken
    )
