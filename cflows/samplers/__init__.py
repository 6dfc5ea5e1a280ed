"""Samplers, one algorithm a file, and what tells whether their chains have converged.

Those of an SDE's reverse are called as sampler(score, sde, x_T, generator=, callback=), chains that start anywhere as
langevin(score, x, step_size=, steps=, generator=, callback=).
"""
