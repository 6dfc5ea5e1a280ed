"""An option that has no such value is refused in one sentence, which shows the value."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_what_is_refused_is_shown() -> None:
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    call = [sys.executable, TESTS / "refusals.py"]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 30
    for row in rows:
        assert row["shown"] in row["said"], row
        assert row["said"].endswith("."), row
