"""Hostile inputs to every model and bijection: a right result, or an error of one sentence that names the culprit.

A case is one row, or one call, whose result is checked; `pytest -s` prints how many there were. hypothesis fixes the
rows of every run; `--hypothesis-profile=long` draws new ones, twelve times as many.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from cases import BIJECTIONS, DENSITIES, MASSES, SPINS, SURJECTIONS, VAES
from helpers import rng, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cflows import VPSDE, ScoreSDE, ode_log_prob, probability_flow_log_prob, score_flow_bound
from cflows.models.continuous_flow import ContinuousFlow
from core import DensityModel, StandardNormal
from discrete import Bijection, Flow, RealNVP

FEW = settings(max_examples=max(2, settings.default.max_examples // 8))
VALUES = [0.0, -0.0, 5e-324, -1e-310, 1e-42, 1e-8, 0.25, 0.5, 1.0, -1.0, 3.0, -30.0, 1e3, -1e3, 1e6, -1e6]
SEEDS = st.integers(0, 2**32 - 1)
CONSTANT = st.sampled_from(VALUES)  # a whole row of one value
MIXED = st.lists(CONSTANT, min_size=2, max_size=6)  # repeated along the row
ROWS = st.lists(st.one_of(CONSTANT.map(lambda v: [v]), MIXED), min_size=1, max_size=12)
PLACES = st.integers(0, 10**6)

# Copies: other tests move what cases share, such as a base, to another precision.
MAPS = {name: deepcopy(case.make()) for name, case in BIJECTIONS.items()}
WHOLE = {**MASSES, **VAES, **SPINS}
CASES = {**DENSITIES, **WHOLE}
MODELS = {name: deepcopy(case.make()) for name, case in CASES.items()}
SOLVED = [n for n, m in MODELS.items() if any(isinstance(part, ScoreSDE | ContinuousFlow) for part in m.modules())]
RANDOM = {"flow-logit-score-sde-2", *VAES}  # the noise of a row is that of its place in the batch
# Its gate has no lower bound: a point far out comes from infinity.
OVERFLOWS = {"iaf-3-gated-context"}
# The rests of a mixture are differences of terms of the size of z²: at 1e6 they are rounded to 2e-4.
QUADRATIC = {name for name in BIJECTIONS if "mixture" in name}
VANISHES = {"affine-3-sigmoid"}  # nor has its scale: far out it is 0, and nothing comes back from there
REAL_ALONE = [n for n in DENSITIES if not n.startswith("made")]  # whole numbers are an error
DIRECTIONS = pytest.mark.parametrize("direction", ["forward", "inverse"])
EVERY_MAP = pytest.mark.parametrize("name", MAPS)
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)

COUNTS: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def _counted() -> Iterator[None]:
    yield
    print(f"\ncases: {sum(COUNTS.values())}", dict(COUNTS))


def rows_of(rows: list[list[float]], shape: torch.Size) -> Tensor:
    """Each row's values over and over along the event, and the first row once more."""
    size = shape.numel()
    filled = [torch.tensor(row, dtype=torch.float64).repeat(size)[:size] for row in [*rows, rows[0]]]
    return torch.stack(filled).reshape(-1, *shape)


LAYOUTS = st.sampled_from(["transposed", "strided", "flipped", "offset"])


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in memory in another way."""
    if layout == "transposed":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "strided":
        return torch.stack([x, -x], -1).flatten(-2)[..., ::2]
    if layout == "flipped":
        return x.flip(0).contiguous().flip(0)
    return torch.cat([x.flatten()[:1], x.flatten()])[1:].reshape(x.shape)


class Direction:
    """One direction of a bijection with a context for any rows."""

    def __init__(self, name: str, direction: str) -> None:
        self.case, self.bijection = BIJECTIONS[name], MAPS[name]
        forward = direction == "forward"
        self.shape = self.bijection.event_shape if forward else self.bijection.latent_shape
        self.draw = self.case.data if forward else self.case.latents
        self.there = self.bijection if forward else self.bijection.inverse
        self.back = self.bijection.inverse if forward else self.bijection

    def context(self, rows: int) -> Tensor | None:
        one = self.case.context(1, rng(3))
        return None if one is None else one.expand(rows, -1)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.there(x, self.context(len(x)))


def log_prob(name: str, x: Tensor, model: DensityModel | None = None) -> Tensor:
    context = None if name in SPINS else CASES[name].context(1, rng(3))
    model = model or MODELS[name]
    with torch.no_grad():
        return model.log_prob(x, None if context is None else context[0].to(model.anchor.dtype), generator=rng(5))


@EVERY_MAP
@DIRECTIONS
@FEW
@given(rows=ROWS, layout=LAYOUTS)
def test_bijections_take_hostile_rows(name: str, direction: str, rows: list[list[float]], layout: str) -> None:
    """Finite, -inf where there is no density; as for the row alone; duplicates alike; in any layout; and back."""
    mapping = Direction(name, direction)
    x = rows_of(rows, mapping.shape)
    x = x.clamp(-10, 10) if name in VANISHES else x.clamp(-1e3, 1e3) if name in QUADRATIC else x
    y, log_det = mapping(x)
    assert y.isfinite().all()
    assert (log_det < math.inf).all(), "NaN or +inf"
    close(y[-1], y[0])
    close(log_det[-1], log_det[0])
    alone = mapping(x[:1])
    close(alone[0][0], y[0])
    close(alone[1][0], log_det[0])
    again = mapping(laid_out(x, layout))
    close(again[0], y)
    close(again[1], log_det)
    COUNTS["rows of bijections"] += 3 * len(x)
    returns(mapping, x, y, log_det)


def returns(mapping: "Direction", x: Tensor, y: Tensor, log_det: Tensor) -> None:
    """To 1e-6 of the largest value of the row, or, on a plateau of the map, to another point of the same image."""
    with torch.no_grad():
        back, opposite = mapping.back(y, mapping.context(len(x)))
    inside = log_det.isfinite() & opposite.isfinite()
    image, _ = mapping(back)
    off = [(a - b).flatten(1).abs().amax(1) / (1 + b.flatten(1).abs().amax(1)) for a, b in ((back, x), (image, y))]
    assert ((off[0] <= 1e-6) | (off[1] <= 1e-9))[inside].all(), off
    COUNTS["round trips"] += len(x)


@EVERY_MODEL
@FEW
@given(rows=ROWS, layout=LAYOUTS)
def test_densities_at_hostile_rows(name: str, rows: list[list[float]], layout: str) -> None:
    """A number or -inf, the same alone, twice, in any layout and in any batch shape."""
    x = rows_of(rows, MODELS[name].event_shape)
    found = log_prob(name, x)
    if name in OVERFLOWS:
        assert found[x.flatten(1).abs().amax(1) <= 10].isfinite().all()
        return
    assert (found < math.inf).all(), "NaN or +inf"
    if name not in RANDOM:
        close(found[-1], found[0])
        close(log_prob(name, x[0]), found[0])
        close(log_prob(name, laid_out(x, layout)[:, None].expand(-1, 2, *x.shape[1:])), found[:, None].expand(-1, 2))
    COUNTS["rows of models"] += (1 if name in RANDOM else 3) * len(x)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in OVERFLOWS])
def test_estimates_at_hostile_rows(name: str) -> None:
    """No part is NaN, and the first is log_prob."""
    model, x = MODELS[name], rows_of([[v] for v in VALUES], MODELS[name].event_shape)
    context = None if name in SPINS else CASES[name].context(1, rng(3))
    estimate = model.estimate_log_prob(x, None if context is None else context[0], generator=rng(5))
    close(estimate.log_prob, log_prob(name, x))
    for part in (estimate.std_error, estimate.solver_error):
        assert part is None or not part[estimate.log_prob.isfinite()].isnan().any()
    COUNTS["estimates"] += len(x)


@pytest.mark.parametrize("single", [True, False])
@EVERY_MODEL
def test_float32_and_float64_have_no_nan(name: str, single: bool) -> None:
    if name in OVERFLOWS:
        pytest.skip("its gate has no lower bound")
    dtype = torch.float32 if single else torch.float64
    model = deepcopy(MODELS[name]).to(dtype)
    found = log_prob(name, rows_of([[v] for v in VALUES], model.event_shape).to(dtype), model)
    assert found.dtype == dtype
    assert (found < math.inf).all()
    COUNTS["rows in either precision"] += len(found)


@EVERY_MAP
@DIRECTIONS
@FEW
@given(row=st.integers(0, 4), place=PLACES, value=st.sampled_from([math.nan, math.inf, -math.inf]), seed=SEEDS)
def test_what_is_not_finite_stays_in_its_row_of_a_bijection(
    name: str, direction: str, row: int, place: int, value: float, seed: int
) -> None:
    mapping = Direction(name, direction)
    x = mapping.draw(5, mapping.shape, rng(seed))
    y, log_det = mapping(x)
    spoiled = x.clone()
    spoiled[row].view(-1)[place % x[row].numel()] = value
    COUNTS["rows beside one that is not finite"] += len(x)
    result = outcome(lambda: mapping(spoiled))
    if isinstance(result, str):  # of an iteration with a bound on its steps
        assert "residual" in name
        assert f"row {row}" in result
        return
    found, found_log_det = result
    others = [i for i in range(5) if i != row]
    close(found[others], y[others])
    close(found_log_det[others], log_det[others])
    parts = torch.cat([found[row].flatten(), found_log_det[row, None]])
    assert parts.isnan().any() if math.isnan(value) else not parts.isfinite().all()


@EVERY_MODEL
@FEW
@given(row=st.integers(0, 4), place=PLACES, value=st.sampled_from([math.nan, math.inf, -math.inf]), seed=SEEDS)
def test_what_is_not_finite_stays_in_its_row_of_a_model(
    name: str, row: int, place: int, value: float, seed: int
) -> None:
    x = CASES[name].data(5, MODELS[name].event_shape, rng(seed))
    spoiled = x.clone()
    spoiled[row].view(-1)[place % x[row].numel()] = value
    expected, found = log_prob(name, x), log_prob(name, spoiled)
    others = [i for i in range(5) if i != row]
    close(found[others], expected[others])
    assert found[row].isnan() if math.isnan(value) else not found[row].isfinite()
    COUNTS["rows beside one that is not finite"] += len(x)


REFUSED = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float16, torch.bfloat16]


def test_rows_of_another_dtype_are_named() -> None:
    """By every bijection in both directions."""
    for name, case in BIJECTIONS.items():
        for direction in ("forward", "inverse"):
            mapping = Direction(name, direction)
            x = case.data(3, mapping.shape, rng(0))
            for dtype in REFUSED:
                refuses(lambda x=x, d=dtype, m=mapping: m(x.to(d)), str(dtype), type(mapping.bijection).__name__)
                COUNTS["dtypes"] += 1


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_another_dtype_are_named_or_right(name: str) -> None:
    """Whole numbers are right where they are what the model is of, complex numbers nowhere."""
    model, event = MODELS[name], MODELS[name].event_shape
    whole = (CASES[name].data(3, event, rng(0)).abs() * (1 if name in WHOLE else 4)).floor()
    for dtype in REFUSED:
        COUNTS["dtypes"] += 1
        real = not dtype.is_complex and not dtype.is_floating_point
        if name in REAL_ALONE or dtype.is_complex:
            refuses(lambda d=dtype: log_prob(name, whole.to(d), model), str(dtype), "")
        elif real:
            close(log_prob(name, whole.to(dtype), model), log_prob(name, whole.to(dtype).double(), model))


@pytest.mark.parametrize("name", [name for name in DENSITIES if list(MODELS[name].parameters())])
def test_rows_of_another_precision_than_the_parameters_are_named_or_right(name: str) -> None:
    """Where sums and products alone promote, the result is that of float32 parameters in float64."""
    model = deepcopy(MODELS[name]).float()
    x = CASES[name].data(3, model.event_shape, rng(0))
    COUNTS["dtypes"] += 1
    found = outcome(lambda: log_prob(name, x, model))
    if isinstance(found, str):
        assert re.search(r"float32.*float64|float64.*float32", found)
        return
    torch.testing.assert_close(found.double(), log_prob(name, x, model.double()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, case in BIJECTIONS.items() if case.context_features])
def test_a_context_of_another_precision_is_named_or_right(name: str) -> None:
    case, bijection = BIJECTIONS[name], MAPS[name]
    x, context = case.data(3, bijection.event_shape, rng(0)), case.context(3, rng(1)).float()
    COUNTS["dtypes"] += 1
    found = outcome(lambda: bijection(x, context))
    if isinstance(found, str):
        assert "context is float32." in found
        return
    for a, b in zip(found, bijection(x, context.double()), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("solve", [ode_log_prob, probability_flow_log_prob, score_flow_bound])
def test_fields_take_no_other_dtype(solve: Callable[..., object]) -> None:
    end = StandardNormal(2) if solve is ode_log_prob else VPSDE()
    for dtype in REFUSED:
        refuses(lambda d=dtype: solve(lambda x, t: -x, end, torch.ones(3, 2).to(d)), str(dtype), solve.__name__)
        COUNTS["dtypes"] += 1


@pytest.mark.parametrize("name", SURJECTIONS)
def test_surjections_take_whole_numbers_of_any_dtype(name: str) -> None:
    layer = seeded(SURJECTIONS[name])
    flow = Flow(layer, StandardNormal(layer.latent_shape))
    k = torch.randint(2, (4, *layer.event_shape), generator=rng(0))
    expected, bound = layer(k, generator=rng(1)), flow.log_prob(k, generator=rng(1))
    for dtype in (torch.uint8, torch.int32, torch.bool, torch.float16, torch.float32, torch.float64):
        found = layer(k.to(dtype), generator=rng(1))
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert torch.equal(flow.log_prob(k.to(dtype), generator=rng(1)), bound)
        COUNTS["dtypes"] += 1
    for call in (layer, flow.log_prob):
        refuses(lambda c=call: c(k.to(torch.complex64)), "complex64", "")


LARGE = [n for n, m in MODELS.items() if n in DENSITIES and n not in SOLVED and m.event_shape.numel() <= 3]


@pytest.mark.parametrize("name", [n for n in LARGE if n not in OVERFLOWS and "residual" not in n])
def test_a_large_batch_is_its_rows(name: str) -> None:
    """20 000 rows, hostile ones among them, and the last of them as alone."""
    shape = MODELS[name].event_shape
    x = torch.cat([CASES[name].data(20_000 - len(VALUES), shape, rng(0)), rows_of([[v] for v in VALUES], shape)[:-1]])
    found = log_prob(name, x)
    assert (found < math.inf).all()
    some = [*range(0, 20_000, 1999), *range(20_000 - len(VALUES), 20_000)]
    close(found[some], log_prob(name, x[some]))
    COUNTS["rows of large batches"] += len(x)


@EVERY_MODEL
def test_no_rows(name: str) -> None:
    """In any of the dimensions of a batch, for densities and for draws."""
    model, context = MODELS[name], None if name in SPINS else CASES[name].context(1, rng(3))
    for batch in ((0,), (2, 0), (0, 3, 1)):
        x = torch.zeros(*batch, *model.event_shape, dtype=torch.float64)
        assert log_prob(name, x).shape == batch
        one = None if context is None else context[0]
        drawn = model.sample(batch, context=one, generator=rng(1))
        assert drawn.shape == x.shape
        COUNTS["empty batches"] += 2


def close(found: Tensor, expected: Tensor) -> None:
    """Up to rounding, which differs between kernels: relative to the largest value far out."""
    size = expected.detach().abs().nan_to_num(posinf=0.0).amax().item() if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * max(1.0, size))


def outcome(call: Callable[[], Any]) -> Any:
    """What it returns, or what its error says."""
    try:
        return call()
    except (ValueError, RuntimeError) as error:
        return str(error)


def refuses(call: Callable[[], object], culprit: str, owner: str) -> None:
    with pytest.raises(ValueError, match=culprit.removeprefix("torch.")) as caught:
        call()
    text = str(caught.value)
    assert owner in text or "Inverse" in owner or "Compose" in owner, text
    assert text.endswith(".")
    assert text.count(". ") == 0, "more than one sentence"


class Careless(Bijection):
    """Wrong: centres on the mean of the batch, which hands a NaN on to every row."""

    def forward(self, x: Tensor, context: Tensor | None = None, *, generator: object = None) -> tuple[Tensor, Tensor]:
        return x - x.mean(0), x.new_zeros(len(x))

    def inverse(self, z: Tensor, context: Tensor | None = None, *, generator: object = None) -> tuple[Tensor, Tensor]:
        return z, z.new_zeros(len(z))


def test_teeth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caught are a layer in which rows mix, and a density that makes a number of NaN and takes integers."""
    name = "diagonal-7"
    monkeypatch.setitem(MAPS, name, Careless(7))
    for check in (test_bijections_take_hostile_rows, test_what_is_not_finite_stays_in_its_row_of_a_bijection):
        with pytest.raises(AssertionError):
            check(name, "forward")
    forgiving = RealNVP(2, layers=2, hidden=(4,)).double()
    monkeypatch.setattr(forgiving, "log_prob", lambda x, *_, **__: x.double().nan_to_num().sum(-1))
    monkeypatch.setitem(MODELS, "real-nvp-2", forgiving)
    for wrong in (test_what_is_not_finite_stays_in_its_row_of_a_model, test_rows_of_another_dtype_are_named_or_right):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            wrong("real-nvp-2")
