"""Flows that are measured without a peer, away from where they start."""

from collections.abc import Callable

import torch
from torch import Tensor

from core import DensityModel
from discrete import MAF, NSF, Flow, GaussianizationFlow, Glow, RealNVP

D, WIDTH, LAYERS, STD = 64, (256, 256), 5, 0.02
KINDS: dict[str, Callable[[], Flow]] = {
    "RealNVP": lambda: RealNVP(D, layers=8, hidden=WIDTH, normalization="none"),
    "MAF": lambda: MAF(D, layers=LAYERS, hidden=WIDTH, normalization="none"),
    "NSF": lambda: NSF(D, layers=LAYERS, hidden=WIDTH),
    "Gaussianization": lambda: GaussianizationFlow(D, layers=LAYERS),
    "Glow": lambda: Glow((1, 28, 28), levels=2, depth=6, hidden=(64, 64), scale="sigmoid"),
}


@torch.no_grad()
def perturb(model: DensityModel, x: Tensor) -> None:
    """Every parameter by noise, after what takes its start from the data has seen them."""
    model.log_prob(x)
    for p in model.parameters():
        p += STD * torch.randn(p.shape)
