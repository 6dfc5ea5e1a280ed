"""What is left of x far out on the tails of an elementwise Gaussianization, beside zuko's."""

import importlib
import importlib.metadata
from typing import Any

import scipy.special
import torch

from discrete import MixtureGaussianization

DISTANCES = (2.0, 4.0, 5.0, 6.0, 12.0, 40.0)  # in standard deviations of zuko's law, in scales of ours


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One row a distance."""
    return {"dtype": "float32", "zuko": importlib.metadata.version("zuko")}, [_row(x) for x in DISTANCES]


@torch.no_grad()
def _row(distance: float) -> dict[str, Any]:
    """Largest error of z = Φ⁻¹(F(x)) at ±x, and of x found again from it; F a logistic and a normal of scale 1.

    Ours is held against scipy's quantile of the logistic's log-CDF; z = x is what zuko's should give.
    """
    x = torch.tensor([[distance], [-distance]])
    layer = MixtureGaussianization(1, components=1)
    layer.log_scales.zero_()
    other = importlib.import_module("zuko").transforms.GaussianizationTransform(torch.zeros(1, 1), torch.zeros(1, 1))
    z, of_zuko = layer(x)[0], other(x)
    expected = scipy.special.ndtri_exp(scipy.special.log_expit(-distance)) * torch.tensor([[-1.0], [1.0]])
    return {
        "distance": distance,
        "ours_z_error": (z - expected).abs().max().item(),
        "ours_round_trip_error": (layer.inverse(z)[0] - x).abs().max().item(),
        "zuko_z_error": (of_zuko - x).abs().max().item(),
        "zuko_round_trip_error": (other.inv(of_zuko) - x).abs().max().item(),
    }
