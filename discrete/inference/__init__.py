"""Flows as approximate distributions: fitted to a density that can be evaluated, not to data."""

from discrete.inference.distillation import DensityDistillation, distill, kl_divergence

__all__ = ["DensityDistillation", "distill", "kl_divergence"]
