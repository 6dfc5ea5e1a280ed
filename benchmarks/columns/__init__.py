"""The columns of every table, by the name of its JSON file."""

from benchmarks.columns import discrete, faults, likelihood, mutants, sampling, speed, suites

RUN_SUITES = ("toys_suite", "digits_suite", "uci_small_suite", "bsds300_suite")
TABLES = (
    discrete.TABLES
    | likelihood.TABLES
    | sampling.TABLES
    | speed.TABLES
    | mutants.TABLES
    | faults.TABLES
    | {name: suites.TABLES[name] for name in RUN_SUITES}
)

ON_GPU = speed.ON_GPU

__all__ = ["ON_GPU", "TABLES"]
