"""What autoregressive models are asked for arrives where it acts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import rng
from torch import nn

from core import DiagonalNormal
from core.nets.masked import MaskedMLP
from discrete import (
    IAF,
    MADE,
    MAF,
    AutoregressiveMLP,
    AutoregressiveTransformer,
    Flow,
    LinearFlow,
    MaskedAutoregressive,
    PixelCNN,
    TransformerFlow,
    WaveNet,
)
from discrete.inference import distill
from discrete.likelihoods import Categorical, DiscretizedLogisticMixture


def network(model: nn.Module) -> MaskedMLP:
    (found,) = (m for m in model.modules() if isinstance(m, MaskedMLP))
    return found


@pytest.mark.parametrize(
    "build", [partial(MAF, layers=1), partial(IAF, layers=1), partial(TransformerFlow, layers=1, hidden=8)]
)
def test_flows_take_a_base(build: Callable[..., Flow]) -> None:
    base = DiagonalNormal(4, scale=2.0)
    assert build(4, base=base).base is base


MASKED: dict[str, Callable[..., nn.Module]] = {
    "layer": partial(MaskedAutoregressive, 4),
    "made": partial(MADE, 4),
    "mlp": partial(AutoregressiveMLP, 4, bins=3),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_networks_are_made_as_asked(name: str) -> None:
    model = MASKED[name](conditioner="resnet", direct=True, activation="silu", hidden=(6,), context_features=2)
    found = network(model)
    assert [node.is_output for node in found.nodes] == [False, False, False, True, True]
    assert isinstance(found.activation, nn.SiLU)
    assert found.widths[:2] == [6, 6]
    assert found.context_features == 2


@pytest.mark.parametrize("name", ["layer", "made"])
def test_dropout_and_random_degrees_arrive(name: str) -> None:
    options = {"hidden": (30,), "hidden_degrees": "random", "order": "random"}
    found = network(MASKED[name](dropout=0.25, generator=rng(5), **options))
    assert found.dropout.p == 0.25
    expected = MaskedMLP(4, found.parameters_per_feature, generator=rng(5), **options)
    assert torch.equal(found.get_extra_state(), expected.get_extra_state())


MASSES: dict[str, Callable[..., Any]] = {
    "mlp": partial(AutoregressiveMLP, 4, bins=5),
    "pixel-cnn": partial(PixelCNN, (1, 2, 2), bins=5, layers=2, hidden=(4, 4)),
    "wave-net": partial(WaveNet, 4, bins=5, layers=2, cycles=1, hidden=(4, 4, 4)),
    "transformer": partial(AutoregressiveTransformer, 4, bins=5, layers=1, hidden=8),
}


@pytest.mark.parametrize("name", MASSES)
def test_masses_are_of_the_law_asked_for(name: str) -> None:
    mixture = MASSES[name](likelihood="mixture", components=3).likelihood
    assert isinstance(mixture, DiscretizedLogisticMixture)
    assert (mixture.bins, mixture.parameters_per_value) == (5, 9)
    assert isinstance(MASSES[name](likelihood="categorical").likelihood, Categorical)


def test_distillation_draws_as_many_samples_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    right = Flow.rsample_and_log_prob

    def spy(flow: Flow, shape: Any = (), **keywords: Any) -> Any:
        shapes.append(tuple(shape))
        return right(flow, shape, **keywords)

    monkeypatch.setattr(Flow, "rsample_and_log_prob", spy)
    distill(LinearFlow(2), DiagonalNormal(2), steps=2, samples=7, generator=rng(6))
    assert shapes == [(7,), (7,)]
