"""Held-out likelihood, every part of its error, and the checks that it passes."""
