"""Discrete normalizing flows: exact log-likelihood, layer by layer."""

from core.latents import interpolate
from discrete.bijection import Bijection, Compose, Inverse
from discrete.bijections.autoregressive import MaskedAutoregressive
from discrete.bijections.autoregressive_inverse import invert_autoregressive
from discrete.bijections.convolution import Invertible1x1Conv
from discrete.bijections.coupling import AdditiveCoupling, AffineCoupling, SplineCoupling
from discrete.bijections.dequantization import Dequantization, VariationalDequantization
from discrete.bijections.empirical import EmpiricalGaussianization
from discrete.bijections.gaussianization import MixtureGaussianization
from discrete.bijections.linear import Diagonal, LULinear, QRLinear, Rotation, Triangular
from discrete.bijections.mintnet import MaskedConvolution
from discrete.bijections.multiscale import MultiScale, Split, Squeeze
from discrete.bijections.normalization import ActNorm, BatchNorm, set_batch_statistics
from discrete.bijections.patch_autoregressive import PatchAutoregressive
from discrete.bijections.permutation import Permutation
from discrete.bijections.planar import Planar
from discrete.bijections.preprocessing import Logit
from discrete.bijections.radial import Radial
from discrete.bijections.residual import InvertibleResidual
from discrete.bijections.sylvester import Sylvester
from discrete.flow import Flow
from discrete.models.autoregressive_mlp import AutoregressiveMLP
from discrete.models.autoregressive_transformer import AutoregressiveTransformer
from discrete.models.gaussianization_flow import GaussianizationFlow, initialize_gaussianization
from discrete.models.glow import Glow
from discrete.models.iaf import IAF
from discrete.models.linear_flow import LinearFlow
from discrete.models.made import MADE
from discrete.models.maf import MAF
from discrete.models.mintnet import MintNet
from discrete.models.nice import NICE
from discrete.models.nsf import NSF
from discrete.models.pixel_cnn import PixelCNN
from discrete.models.planar_flow import PlanarFlow
from discrete.models.radial_flow import RadialFlow
from discrete.models.real_nvp import RealNVP
from discrete.models.residual_flow import ResidualFlow
from discrete.models.sylvester_flow import SylvesterFlow
from discrete.models.transformer_flow import TransformerFlow
from discrete.models.wave_net import WaveNet
from discrete.rbig import rbig
from discrete.reversible import Reversible

__all__ = [
    "IAF",
    "MADE",
    "MAF",
    "NICE",
    "NSF",
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "AutoregressiveMLP",
    "AutoregressiveTransformer",
    "BatchNorm",
    "Bijection",
    "Compose",
    "Dequantization",
    "Diagonal",
    "EmpiricalGaussianization",
    "Flow",
    "GaussianizationFlow",
    "Glow",
    "Inverse",
    "Invertible1x1Conv",
    "InvertibleResidual",
    "LULinear",
    "LinearFlow",
    "Logit",
    "MaskedAutoregressive",
    "MaskedConvolution",
    "MintNet",
    "MixtureGaussianization",
    "MultiScale",
    "PatchAutoregressive",
    "Permutation",
    "PixelCNN",
    "Planar",
    "PlanarFlow",
    "QRLinear",
    "Radial",
    "RadialFlow",
    "RealNVP",
    "ResidualFlow",
    "Reversible",
    "Rotation",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "Sylvester",
    "SylvesterFlow",
    "TransformerFlow",
    "Triangular",
    "VariationalDequantization",
    "WaveNet",
    "initialize_gaussianization",
    "interpolate",
    "invert_autoregressive",
    "rbig",
    "set_batch_statistics",
]
