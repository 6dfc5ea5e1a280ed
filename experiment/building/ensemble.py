"""A mixture of trained runs, its weights fitted to held-out rows."""

from collections.abc import Sequence

import torch

from core import DensityModel, MixtureOfDensities, fit_weights
from core.density import Context
from experiment.batches import batches


@torch.no_grad()
def mixed(parts: Sequence[DensityModel], held_out: tuple[torch.Tensor, Context] | None = None) -> MixtureOfDensities:
    """Σ_k w_k p_k with the weights that make held-out rows likeliest; without rows they wait for a state dict.

    Integers get one draw of noise a row, the same for all parts.

    Checked by tests/experiment/building/test_ensemble.py.

    Args:
        parts: trained densities over raw data, each behind its own preprocessing.
        held_out: rows `(rows, *event)` that none of them was fitted to, and their contexts.

    Raises:
        ValueError: parts over different event shapes, or a row in which none has a density.
    """
    if held_out is None:
        return MixtureOfDensities(parts)
    mixture = MixtureOfDensities(parts).to(held_out[0].device).eval()
    joint = [mixture.log_joint(b.x, b.context, generator=b.generator) for b in batches(*held_out)]
    weights = fit_weights(torch.cat(joint) - mixture.log_weights)
    return MixtureOfDensities(parts, weights.to(held_out[0].device))
