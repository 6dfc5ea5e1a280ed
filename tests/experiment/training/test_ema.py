"""The running mean of the weights, against its recursion written out."""

import pytest
import torch

from core import DiagonalNormal
from experiment.building.builder import Built
from experiment.building.objective import MaximumLikelihood
from experiment.training.ema import EMA


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.999])
def test_ema_follows_its_recursion(decay):
    model = DiagonalNormal(1)
    built = Built(model, MaximumLikelihood(model))
    ema = EMA(built, decay=decay)
    mean = None
    for n, value in enumerate([1.0, 5.0, -2.0, 3.0]):
        with torch.no_grad():
            model.loc.fill_(value)
        ema.update(built)
        d = min(decay, (1 + n) / (10 + n))
        mean = value if mean is None else d * mean + (1 - d) * value
        assert ema.built.model.loc.item() == pytest.approx(mean)
    assert ema.built.objective.model is ema.built.model
    assert not any(p.requires_grad for p in ema.built.model.parameters())
    assert model.loc.item() == 3.0
