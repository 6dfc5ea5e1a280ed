"""What a score model's likelihood leaves out at both ends: the prior in the place of p_1, and the noise of t_min."""

from typing import NamedTuple

import torch
from torch import Tensor

from cflows import ConditionalScore, noise_share, prior_mismatch
from core import DensityModel
from core.density import Context
from experiment.batches import batches
from experiment.data import Dataset
from experiment.likelihood.unwrapped import ScoreUnderSDE, encoded, innermost

NOISY = 0.05  # share of the dimensions from which on the density at t_min says more of t_min than of the data


class BothEnds(NamedTuple):
    """Means over the test rows as the score sees them.

    Attributes:
        prior_mismatch_nats: see `cflows.prior_mismatch`.
        noise_share: see `cflows.noise_share`.
        note: what a large share means; empty where it is small.
    """

    prior_mismatch_nats: float
    noise_share: float
    note: str


@torch.no_grad()
def both_ends(model: DensityModel, x: Tensor, context: Context = None) -> BothEnds | None:
    """Both ends of a score model under an SDE; None for any other.

    Checked by tests/experiment/likelihood/test_both_ends.py.

    Args:
        model: a density over raw data.
        x: the rows, `(rows, *event)`.
        context: of the rows, `(rows, features)`.
    """
    inner = innermost(model)
    if not isinstance(inner, ScoreUnderSDE):
        return None
    mismatch, share = 0.0, 0.0
    for batch in batches(x, context, device=model.anchor.device):
        z = encoded(model, batch.x, batch.context, generator=batch.generator).to(inner.anchor)
        score = inner.score if batch.context is None else ConditionalScore(inner.score, batch.context)
        mismatch += prior_mismatch(inner.sde, z).double().sum().item()
        shares = noise_share(
            score, inner.sde, z, divergence=inner.divergence, t_min=inner.t_min, generator=batch.generator
        )
        share += shares.double().sum().item()
    mismatch, share = mismatch / len(x), share / len(x)
    return BothEnds(mismatch, share, _note(share, inner.t_min, x[0].numel()) if share > NOISY else "")


def constant_columns(dataset: Dataset) -> int:
    """Columns of continuous data that hold one value in all training and test rows; 0 for integers."""
    if dataset.bins is not None:
        return 0
    low, high = column_range(dataset)
    return int((low == high).sum())


def column_range(dataset: Dataset) -> Tensor:
    """Smallest and largest value of each column of the training and test rows, `(2, columns)`."""
    low, high = zip(*(part.flatten(1).aminmax(dim=0) for part in (dataset.train, dataset.test)), strict=True)
    return torch.stack([torch.minimum(*low), torch.maximum(*high)])


def _note(share: float, t_min: float, size: int) -> str:
    return (
        f"the noise of t_min={t_min:g} sets the density in about {share * size:.1f} of {size} dimensions "
        f"({share:.0%}), where the data are nearly constant: it says there what t_min was, and truncation to first "
        "order is not to be trusted; raise the dequantization noise, drop these columns, or compare at the same t_min "
        "alone."
    )
