"""`python -m benchmarks.run [name ...]` measures all results or the named ones and writes the tables anew."""

import sys

from benchmarks import closed_form, digits, tables, toys
from benchmarks.record import record

RESULTS = {"closed_form": closed_form.measure, "toys": toys.measure, "digits": digits.measure}


def main(names: list[str]) -> None:
    """Measures the named results in order."""
    unknown = [name for name in names if name not in RESULTS]
    if unknown:
        sys.exit(f"unknown result {unknown[0]!r}; known: {', '.join(RESULTS)}")
    for name in names or RESULTS:
        print(f"== {name}", flush=True)
        record(name, RESULTS[name])
    tables.main(["--write"])


if __name__ == "__main__":
    main(sys.argv[1:])
