"""Ten models of both sides on the eight toys of known entropy, a minute of training each."""

from functools import partial

from benchmarks.suites import measure_suite

measure = partial(measure_suite, "toys")
