"""Flows as published, one paper a file."""
