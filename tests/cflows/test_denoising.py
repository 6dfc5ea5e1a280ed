from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import OBJECTIVES, SDES
from contracts import objectives
from helpers import normal, rng, seeded
from torch import nn

from cflows import SDE, VPSDE, DenoisingScoreMatching, ScoreSDE
from cflows.objectives.weightings import Weighting
from cflows.sde import Score

# (c, t) -> α² c/(α² c + σ²) under VP.
GOLD = {(1.0, 0.1): 0.89628216, (1.0, 0.5): 0.07906381, (0.25, 0.1): 0.68358294, (0.25, 0.5): 0.02101191}


def objective(score: Score, sde: SDE, weighting: Weighting) -> nn.Module:
    return DenoisingScoreMatching(score, sde, weighting=weighting)


@pytest.mark.parametrize(("c", "t"), GOLD)
def test_gold_minimum(c: float, t: float) -> None:
    signal, _, total = objectives.total_variance(VPSDE(), t, c)
    assert (signal / total).item() == pytest.approx(GOLD[c, t], abs=1e-8)
    objectives.minimum_is(objective, VPSDE(), t=t, c=c, expected=GOLD[c, t])


@pytest.mark.parametrize("t", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("name", SDES)
def test_minimum_and_minimiser(name: str, t: float) -> None:
    sde, c = SDES[name][0], 0.5
    signal, _, total = objectives.total_variance(sde, t, c)
    objectives.minimum_is(objective, sde, t=t, c=c, expected=(signal / total).item())
    objectives.minimiser_is_the_score(objective, sde, t=t, c=c)
    objectives.loss_of_any_linear_score_is(objective, sde, t=t, c=c)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_is_a_scalar_decided_by_its_generator(name: str) -> None:
    model = seeded(lambda: ScoreSDE(2, hidden=(8,), context_features=1)).double()
    loss, data, context = OBJECTIVES[name](model, VPSDE()), normal(6, (2,), rng(1)), normal(6, (1,), rng(2))
    first = loss(data, context, generator=rng(3))
    assert first.shape == ()
    assert first.dtype == torch.float64
    assert torch.equal(first, loss(data, context, generator=rng(3)))
    assert not torch.equal(first, loss(data, context, generator=rng(4)))
    first.backward()
    head = model.net.net.head
    assert head.weight.grad.isfinite().all()
    assert head.weight.grad.count_nonzero() > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_holds_the_model_it_trains(name: str) -> None:
    """DDP synchronises through the parameters of the module whose forward is called."""
    model = seeded(lambda: ScoreSDE(2, hidden=(8,)))
    loss = OBJECTIVES[name](model, VPSDE())
    assert {id(p) for p in loss.parameters()} == {id(p) for p in model.parameters()}


def test_loss_of_an_image_is_per_dimension() -> None:
    """Repeating a pixel changes nothing on average: the loss is a mean over dimensions, not a sum."""
    loss = DenoisingScoreMatching(lambda x, t: torch.zeros_like(x), VPSDE())
    found = loss(torch.zeros(4000, 1, 4, 4), generator=rng(5)).item()
    assert found == pytest.approx(1.0, abs=5 * (2 / 64_000) ** 0.5)


def test_training_towards_gaussian_data_finds_its_score() -> None:
    """A learnable factor on the score of N(0, 1) ends at the score of N(0, ½) data, at one t."""
    t, c, sde = 0.3, 0.5, VPSDE()
    k = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    loss = DenoisingScoreMatching(lambda x, t: -k * x, sde, weighting=objectives.At(t))
    data, optimizer = c**0.5 * normal(20_000, (2,), rng(7)), torch.optim.SGD([k], lr=0.3)
    for step in range(30):
        optimizer.zero_grad()
        loss(data, generator=rng(step)).backward()
        optimizer.step()
    _, _, total = objectives.total_variance(sde, t, c)
    assert k.item() == pytest.approx(1 / total.item(), rel=0.03)


@pytest.mark.parametrize("t_min", [0.0, 1.0, -0.1])
def test_smallest_time_must_be_inside(t_min: float) -> None:
    build: Callable[..., nn.Module] = partial(DenoisingScoreMatching, lambda x, t: -x, VPSDE())
    with pytest.raises(ValueError, match="t_min within"):
        build(t_min=t_min)


def test_an_empty_batch_is_refused() -> None:
    loss = DenoisingScoreMatching(lambda x, t: -x, VPSDE())
    with pytest.raises(ValueError, match="at least one row"):
        loss(torch.zeros(0, 2))
