"""Flows as approximate distributions: fitted to a density that can be evaluated, not to data."""

from discrete.inference.distillation import DensityDistillation, distill, kl_divergence
from discrete.inference.elbo import ReverseKL, negative_elbo
from discrete.inference.energies import ENERGIES, Energy
from discrete.inference.vae import VAE, NegativeELBO

__all__ = [
    "ENERGIES",
    "VAE",
    "DensityDistillation",
    "Energy",
    "NegativeELBO",
    "ReverseKL",
    "distill",
    "kl_divergence",
    "negative_elbo",
]
