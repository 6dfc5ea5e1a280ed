"""Bijections, one family a file."""
