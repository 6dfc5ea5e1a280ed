"""The columns of every table, by the name of its JSON file."""

from benchmarks.columns import discrete, likelihood, sampling

TABLES = discrete.TABLES | likelihood.TABLES | sampling.TABLES

__all__ = ["TABLES"]
