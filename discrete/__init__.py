"""Discrete normalizing flows: exact log-likelihood, layer by layer."""

from discrete.bijection import Bijection, Compose, Inverse
from discrete.bijections.autoregressive import MaskedAutoregressive
from discrete.bijections.autoregressive_inverse import invert_autoregressive
from discrete.bijections.convolution import Invertible1x1Conv
from discrete.bijections.coupling import AdditiveCoupling, AffineCoupling, SplineCoupling
from discrete.bijections.dequantization import Dequantization, VariationalDequantization
from discrete.bijections.linear import Diagonal, LULinear, QRLinear, Rotation, Triangular
from discrete.bijections.multiscale import MultiScale, Split, Squeeze
from discrete.bijections.normalization import ActNorm, BatchNorm, set_batch_statistics
from discrete.bijections.patch_autoregressive import PatchAutoregressive
from discrete.bijections.permutation import Permutation
from discrete.bijections.preprocessing import Logit
from discrete.flow import Flow
from discrete.latents import interpolate
from discrete.models.autoregressive_mlp import AutoregressiveMLP
from discrete.models.autoregressive_transformer import AutoregressiveTransformer
from discrete.models.glow import Glow
from discrete.models.iaf import IAF
from discrete.models.linear_flow import LinearFlow
from discrete.models.made import MADE
from discrete.models.maf import MAF
from discrete.models.nice import NICE
from discrete.models.nsf import NSF
from discrete.models.pixel_cnn import PixelCNN
from discrete.models.real_nvp import RealNVP
from discrete.models.transformer_flow import TransformerFlow
from discrete.models.wave_net import WaveNet
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
    "Flow",
    "Glow",
    "Inverse",
    "Invertible1x1Conv",
    "LULinear",
    "LinearFlow",
    "Logit",
    "MaskedAutoregressive",
    "MultiScale",
    "PatchAutoregressive",
    "Permutation",
    "PixelCNN",
    "QRLinear",
    "RealNVP",
    "Reversible",
    "Rotation",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "TransformerFlow",
    "Triangular",
    "VariationalDequantization",
    "WaveNet",
    "interpolate",
    "invert_autoregressive",
    "set_batch_statistics",
]
