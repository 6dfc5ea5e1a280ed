"""`python -m benchmarks.run [name ...]` measures all results or the named ones and writes the tables anew."""

import importlib.util
import sys

from benchmarks import closed_form, digits, glow_memory, glow_speed, mnist_glow, tables, toys
from benchmarks.record import record

RESULTS = {
    "closed_form": closed_form.measure,
    "toys": toys.measure,
    "digits": digits.measure,
    "glow_memory": glow_memory.measure,
    "glow_speed": glow_speed.measure,
    "mnist_glow": mnist_glow.measure,
}
PEERS = {"glow_speed": "normflows"}  # what a result is measured beside, from the extra `bench`


def main(names: list[str]) -> None:
    """Measures the named results in order."""
    unknown = [name for name in names if name not in RESULTS]
    if unknown:
        sys.exit(f"unknown result {unknown[0]!r}; known: {', '.join(RESULTS)}")
    for name in names or RESULTS:
        print(f"== {name}", flush=True)
        if name in PEERS and importlib.util.find_spec(PEERS[name]) is None:
            print(f"left out: it needs {PEERS[name]}, pip install -c constraints.txt -e '.[bench]'")
            continue
        record(name, RESULTS[name])
    tables.main(["--write"])


if __name__ == "__main__":
    main(sys.argv[1:])
