"""Models of both sides on the digits."""

from functools import partial

from benchmarks.suites import measure_suite

measure = partial(measure_suite, "digits")
