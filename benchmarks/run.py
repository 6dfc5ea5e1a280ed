"""`python -m benchmarks.run [name ...]` measures all results or the named ones and writes the tables anew."""

import importlib.util
import sys

from benchmarks import (
    autoregressive_growth,
    autoregressive_speed,
    bsds300,
    closed_form,
    digits,
    distillation,
    glow_memory,
    glow_speed,
    inverse_modes,
    mnist_autoregressive,
    mnist_glow,
    tables,
    toys,
)
from benchmarks.record import record

RESULTS = {
    "closed_form": closed_form.measure,
    "toys": toys.measure,
    "digits": digits.measure,
    "distillation": distillation.measure,
    "glow_memory": glow_memory.measure,
    "glow_speed": glow_speed.measure,
    "mnist_glow": mnist_glow.measure,
    "mnist_autoregressive": mnist_autoregressive.measure,
    "bsds300": bsds300.measure,
    "autoregressive_speed": autoregressive_speed.measure,
    "autoregressive_growth": autoregressive_growth.measure,
    "inverse_modes": inverse_modes.measure,
}
PEERS = {  # what a result is measured beside, from the extra `bench`
    "glow_speed": ("normflows",),
    "autoregressive_speed": ("zuko", "nflows", "pyro"),
    "autoregressive_growth": ("zuko", "nflows"),
}


def main(names: list[str]) -> None:
    """Measures the named results in order."""
    unknown = [name for name in names if name not in RESULTS]
    if unknown:
        sys.exit(f"unknown result {unknown[0]!r}; known: {', '.join(RESULTS)}")
    for name in names or RESULTS:
        print(f"== {name}", flush=True)
        missing = [peer for peer in PEERS.get(name, ()) if importlib.util.find_spec(peer) is None]
        if missing:
            print(f"left out: it needs {', '.join(missing)}, pip install -c constraints.txt -e '.[bench]'")
            continue
        record(name, RESULTS[name])
    tables.main(["--write"])


if __name__ == "__main__":
    main(sys.argv[1:])
