"""Longer trainings and measurements; each leaves a JSON file from which the tables of the docs are made."""
