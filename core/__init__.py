"""Bottom layer: densities, bases, divergences and units. Imports torch, einops and jaxtyping only."""

from core.bases import DiagonalNormal, GaussianMixture, StandardLogistic, StandardNormal, StandardUniform
from core.density import DensityModel, GenerativeModel, LikelihoodEstimate
from core.divergence import ExactDivergence, Hutchinson, HutchPlusPlus
from core.kernel_density import KernelDensity
from core.mixture import AtContext, MixtureOfDensities, fit_weights
from core.rng import RowGenerators
from core.units import bits_per_dim

__all__ = [
    "AtContext",
    "DensityModel",
    "DiagonalNormal",
    "ExactDivergence",
    "GaussianMixture",
    "GenerativeModel",
    "HutchPlusPlus",
    "Hutchinson",
    "KernelDensity",
    "LikelihoodEstimate",
    "MixtureOfDensities",
    "RowGenerators",
    "StandardLogistic",
    "StandardNormal",
    "StandardUniform",
    "bits_per_dim",
    "fit_weights",
]
