"""Solvers of dx/dt = v(x, t) that carry integrals along, and the likelihood of what they transport."""
