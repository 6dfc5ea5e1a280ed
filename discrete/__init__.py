"""Discrete normalizing flows: exact log-likelihood, layer by layer."""

from discrete.bijection import Bijection, Compose, Inverse
from discrete.bijections.convolution import Invertible1x1Conv
from discrete.bijections.coupling import AdditiveCoupling, AffineCoupling, SplineCoupling
from discrete.bijections.dequantization import Dequantization, VariationalDequantization
from discrete.bijections.linear import Diagonal, LULinear, QRLinear, Rotation, Triangular
from discrete.bijections.multiscale import MultiScale, Split, Squeeze
from discrete.bijections.normalization import ActNorm, BatchNorm, set_batch_statistics
from discrete.bijections.permutation import Permutation
from discrete.bijections.preprocessing import Logit
from discrete.flow import Flow
from discrete.latents import interpolate
from discrete.models.glow import Glow
from discrete.models.linear_flow import LinearFlow
from discrete.models.nice import NICE
from discrete.models.nsf import NSF
from discrete.models.real_nvp import RealNVP
from discrete.reversible import Reversible

__all__ = [
    "NICE",
    "NSF",
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "BatchNorm",
    "Bijection",
    "Compose",
    "Dequantization",
    "Diagonal",
    "Flow",
    "Glow",
    "Inverse",
    "Invertible1x1Conv",
    "LULinear",
    "LinearFlow",
    "Logit",
    "MultiScale",
    "Permutation",
    "QRLinear",
    "RealNVP",
    "Reversible",
    "Rotation",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "Triangular",
    "VariationalDequantization",
    "interpolate",
    "set_batch_statistics",
]
