"""Discrete normalizing flows: exact log-likelihood, layer by layer."""

from discrete.bijection import Bijection, Compose, Inverse
from discrete.bijections.coupling import AdditiveCoupling, AffineCoupling
from discrete.bijections.linear import Diagonal, Permutation
from discrete.bijections.normalization import ActNorm
from discrete.bijections.preprocessing import Dequantization, Logit
from discrete.flow import Flow
from discrete.models.nice import NICE
from discrete.models.real_nvp import RealNVP

__all__ = [
    "NICE",
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "Bijection",
    "Compose",
    "Dequantization",
    "Diagonal",
    "Flow",
    "Inverse",
    "Logit",
    "Permutation",
    "RealNVP",
]
