"""Draws from trained runs: how they reach the disk, what they are steered by, pictures that move."""
