"""Gaussianization, MintNet and residual flows on the eight toys, one config for all, ten minutes a toy at most."""

from functools import partial

from benchmarks.toys import on_all_toys

measure = partial(on_all_toys, ("gaussianization", "mintnet", "residual"), figures="discrete")
