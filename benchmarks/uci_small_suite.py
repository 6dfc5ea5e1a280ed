"""Models of both sides on three tables of the UCI repository."""

from functools import partial

from benchmarks.suites import measure_suite

measure = partial(measure_suite, "uci_small")
