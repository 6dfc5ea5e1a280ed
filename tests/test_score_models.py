"""What every model of scores and draws keeps, whatever its network and conditioning."""

import pytest
import torch
from cases import LADDER, SCORE_MODELS
from contracts import densities, modules
from helpers import normal, rng, seeded
from torch import Tensor, nn

from cflows import NCSN

NAMES = pytest.mark.parametrize("name", SCORE_MODELS)
IMAGES = [name for name, case in SCORE_MODELS.items() if len(case.make().event_shape) == 3]


class Setting:
    def __init__(self, name: str, rows: int = 4) -> None:
        self.case = SCORE_MODELS[name]
        self.model = self.case.make()
        self.x = normal(rows, self.model.event_shape, rng(2))
        self.context = self.case.context(rows, rng(3))

    def call(self, module: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        levels = (sigma.to(x) for sigma in self.case.levels(len(x)))
        return (module.score(x, *levels, *(() if context is None else (context,))),)


@NAMES
def test_score_is_like_x(name: str) -> None:
    s = Setting(name)
    (score,) = s.call(s.model, s.x, s.context)
    assert score.shape == s.x.shape
    assert score.dtype == torch.float64
    empty = s.call(s.model, s.x[:0], None if s.context is None else s.context[:0])
    assert empty[0].shape == (0, *s.model.event_shape)


@NAMES
def test_module(name: str) -> None:
    s = Setting(name)
    modules.copies_are_bit_equal(s.call, s.model, seeded(s.case.build, 5), s.x, s.context)
    modules.input_is_left_alone(s.call, s.model, s.x, s.context)
    modules.runs_on_meta(s.call, s.model, s.x, s.context)
    modules.float32_is_close(s.call, s.model, s.x, s.context, tolerance=1e-3)
    modules.rows_are_independent(s.call, s.model, s.x, s.context, tolerance=1e-10)


@NAMES
def test_gradients_reach_every_parameter(name: str) -> None:
    s = Setting(name)
    if isinstance(s.model, NCSN):
        modules.gradients_reach_every_parameter(s.call, s.model, s.x, s.context)
        return
    # The last bias of an energy is a constant: it has no share in the score.
    gradients = torch.autograd.grad(
        s.call(s.model, s.x, s.context)[0].square().sum(), list(s.model.parameters()), materialize_grads=True
    )
    zero = [n for (n, _), g in zip(s.model.named_parameters(), gradients, strict=True) if not g.count_nonzero()]
    assert zero == ["net.net.layers." + zero[0].rsplit(".", 2)[1] + ".bias"]


@NAMES
def test_sample_is_clean(name: str) -> None:
    s = Setting(name)
    densities.sample_is_clean(s.model, s.context, generator=lambda: rng(4))


@pytest.mark.parametrize("name", [name for name, case in SCORE_MODELS.items() if case.context_features])
def test_context_matters(name: str) -> None:
    s = Setting(name)
    first, second = (s.call(s.model, s.x, context)[0] for context in (s.context, s.context.flip(0)))
    assert (first != second).flatten(1).any(1).sum() >= len(s.x) - 1
    # Drawn one context a row: each is followed.
    draws = s.model.sample((3, 2), context=s.context[:2], generator=rng(5))
    assert draws.shape == (3, 2, *s.model.event_shape)


@pytest.mark.parametrize("name", [name for name, case in SCORE_MODELS.items() if case.sigmas])
def test_noise_level_matters(name: str) -> None:
    s = Setting(name)
    rest = () if s.context is None else (s.context,)
    scores = [s.model.score(s.x, torch.full((4,), sigma, dtype=torch.float64), *rest) for sigma in LADDER]
    assert not torch.allclose(scores[0], scores[1])
    assert not torch.allclose(scores[1], scores[2])
