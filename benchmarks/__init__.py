"""Longer trainings and measurements; each leaves a JSON file from which the tables of the docs are made."""

import experiment  # noqa: F401 (it says how OpenMP waits, which must be known before torch is imported)
