"""Samplers of score models, one algorithm a file, all called as sampler(score, sde, x_T, generator=, callback=)."""
