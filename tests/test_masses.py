import pytest
import torch
from cases import MASSES, MassCase
from contracts import densities, masses, modules
from helpers import rng, seeded
from torch import Tensor, nn

NAMES = pytest.mark.parametrize("name", MASSES)
CONTEXT = [name for name, case in MASSES.items() if case.context_features]


class Setting:
    def __init__(self, name: str, rows: int = 4) -> None:
        self.case: MassCase = MASSES[name]
        self.model = self.case.make()
        self.x = self.case.data(rows, self.model.event_shape, rng(2))
        self.context = self.case.context(rows, rng(3))
        self.one = None if self.context is None else self.context[0]


def log_prob(module: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    return (module.log_prob(x, context),)


def draw(module: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    with torch.random.fork_rng():
        return (module.sample((len(x),), context=context),)


@NAMES
def test_masses_sum_to_one(name: str) -> None:
    s = Setting(name)
    masses.sums_to_one(s.model, s.one, bins=s.case.bins)


@NAMES
def test_order(name: str) -> None:
    s = Setting(name, rows=32)
    masses.sees_the_values_before_alone(s.model, s.x, s.context)


@pytest.mark.parametrize("name", CONTEXT)
def test_context(name: str) -> None:
    s = Setting(name)
    masses.context_matters(s.model, s.x, s.context)


@NAMES
def test_conditionals_add_up(name: str) -> None:
    s = Setting(name)
    each = s.model.conditional_log_prob(s.x, s.context)
    assert each.shape == s.x.shape
    torch.testing.assert_close(each.flatten(1).sum(1), s.model.log_prob(s.x, s.context), rtol=1e-12, atol=1e-12)


@NAMES
def test_values_outside(name: str) -> None:
    s = Setting(name)
    masses.values_outside_have_no_mass(s.model, s.x, s.context, bins=s.case.bins)


@NAMES
def test_draws_are_those_of_full_passes(name: str) -> None:
    s = Setting(name, rows=64)
    masses.draws_equal_full_passes(s.model, s.context, generator=rng(4))


@NAMES
def test_draws_follow_the_masses(name: str) -> None:
    s = Setting(name)
    masses.draws_follow_the_masses(s.model, s.one, bins=s.case.bins, generator=rng(5))


@NAMES
def test_sample(name: str) -> None:
    s = Setting(name)
    densities.sample_is_clean(s.model, s.context, generator=lambda: rng(6))


@NAMES
def test_batch_shapes_and_estimate(name: str) -> None:
    s = Setting(name)
    densities.takes_any_batch_shape(s.model, lambda rows: s.case.data(rows, s.model.event_shape, rng(2)), s.context)
    densities.estimate_agrees(s.model, s.x, s.context, exact=True, generator=rng)


@NAMES
def test_whole_numbers_of_any_dtype(name: str) -> None:
    s = Setting(name)
    expected = s.model.log_prob(s.x, s.context)
    assert torch.equal(s.model.log_prob(s.x.to(torch.uint8), s.context), expected)
    assert torch.equal(s.model.log_prob(s.x.long(), s.context), expected)


@NAMES
def test_module(name: str) -> None:
    s = Setting(name, rows=33)
    modules.gradients_reach_every_parameter(log_prob, s.model, s.x, s.context)
    modules.input_is_left_alone(log_prob, s.model, s.x, s.context)
    modules.copies_are_bit_equal(log_prob, s.model, seeded(s.case.build, seed=7), s.x, s.context)
    modules.rows_are_independent(log_prob, s.model, s.x, s.context)
    modules.float32_is_close(log_prob, s.model, s.x, s.context, tolerance=1e-4)


@NAMES
def test_meta(name: str) -> None:
    s = Setting(name)
    modules.runs_on_meta(log_prob, s.model, s.x, s.context)
    modules.runs_on_meta(draw, s.model, s.x, s.context)


@NAMES
def test_wrong_event_shape_is_named(name: str) -> None:
    s = Setting(name)
    with pytest.raises(ValueError, match=f"{type(s.model).__name__} takes events of shape"):
        s.model.log_prob(s.x[..., None], s.context)
