"""Continuous models as published, one paper a file."""
