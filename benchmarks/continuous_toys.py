"""Flow matching and FFJORD on the eight toys of known entropy, one config for all, ten minutes a toy at most."""

from functools import partial

from benchmarks.toys import on_all_toys

measure = partial(on_all_toys, ("flow_matching", "ffjord"), figures="continuous")
