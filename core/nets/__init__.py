"""Plain networks that both sides use: they know nothing of densities."""

from core.nets.causal_conv import CausalConvNet
from core.nets.concat_squash import ConcatSquashMLP
from core.nets.conv import ConvNet, ResidualConvNet
from core.nets.masked import MaskedMLP
from core.nets.masked_conv import MaskedConvNet
from core.nets.mlp import MLP
from core.nets.refinenet import RefineNet
from core.nets.resnet import ModulatedMLP, ResidualMLP
from core.nets.time_embedding import FourierEmbedding
from core.nets.transformer import CausalTransformer
from core.nets.unet import UNet

__all__ = [
    "MLP",
    "CausalConvNet",
    "CausalTransformer",
    "ConcatSquashMLP",
    "ConvNet",
    "FourierEmbedding",
    "MaskedConvNet",
    "MaskedMLP",
    "ModulatedMLP",
    "RefineNet",
    "ResidualConvNet",
    "ResidualMLP",
    "UNet",
]
