"""Plain networks that both sides use: they know nothing of densities."""

from core.nets.mlp import MLP
from core.nets.resnet import ModulatedMLP
from core.nets.time_embedding import FourierEmbedding

__all__ = ["MLP", "FourierEmbedding", "ModulatedMLP"]
