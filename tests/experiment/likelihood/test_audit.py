"""A second opinion on log-likelihoods: it agrees with what is right and finds what is wrong, to the nat."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import normal, perturb, rng
from torch import Tensor
from wrong import Tampered, TamperedDivergence

from cflows import FFJORD, FlowMatching, ODESolver, ScoreSDE
from core import DensityModel, ExactDivergence, Hutchinson, StandardNormal
from discrete import (
    MADE,
    NSF,
    AffineCoupling,
    AutoregressiveMLP,
    Compose,
    Dequantization,
    Flow,
    Glow,
    Logit,
    VariationalDequantization,
)
from experiment.likelihood import audit as module
from experiment.likelihood.audit import audit

SMALL: dict[str, Any] = {"hidden": (8,)}


def integers(rows: int, *event: int) -> Tensor:
    return torch.randint(4, (rows, *event), generator=rng(1)).double()


def flows() -> dict[str, tuple[DensityModel, Tensor, Tensor | None]]:
    image, x, context = (1, 4, 4), normal(4, (3,), rng(0)), normal(4, (3,), rng(2))
    glow = Glow(image, levels=2, depth=1, **SMALL)
    learned = VariationalDequantization(2, bins=4, layers=2, **SMALL)
    conditional = AffineCoupling(2, context_features=3, **SMALL)
    made = MADE(3, conditional="mixture", components=2, **SMALL)
    return {
        "couplings": (Flow(Compose(AffineCoupling(3), AffineCoupling(3)), StandardNormal(3)), x, None),
        "autoregressive splines": (NSF(3, structure="autoregressive", layers=2, **SMALL), x, None),
        "an image flow of integers": (
            Flow(Compose(Dequantization(image, bins=4), Logit(image)), glow), integers(4, *image), None,
        ),
        "learned dequantization": (Flow(Compose(learned, Logit(2)), StandardNormal(2)), integers(4, 2), None),
        "a context": (Flow(conditional, StandardNormal(2)), normal(4, (2,), rng(0)), context),
        "a base that is no flow": (Flow(AffineCoupling(3), made), x, None),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(flows()))
def test_flows_agree(name: str) -> None:
    model, x, context = flows()[name]
    found = audit(perturb(model, rng(3)), x, context, seed=5)
    assert (found.rows, found.max_std_errors, found.note) == (4, None, "")
    assert found.max_nats < 1e-9


def test_a_wrong_log_determinant_is_found_in_its_row() -> None:
    def off(x: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        return y, log_det + 0.25 * (x[:, 0] > 90)

    model = Flow(Tampered(AffineCoupling(2), forward=off), StandardNormal(2)).double()
    x = normal(4, (2,), rng(0))
    assert audit(model, x).max_nats < 1e-9
    x[2, 0] = 100.0
    assert audit(model, x).max_nats == pytest.approx(0.25, abs=1e-6)


def test_float32_shows_its_rounding() -> None:
    model = perturb(
        Flow(Compose(AffineCoupling(8, **SMALL), AffineCoupling(8, **SMALL)), StandardNormal(8)), rng(4)
    ).float()
    assert 1e-8 < audit(model, normal(4, (8,), rng(0)).float()).max_nats < 1e-4


SCORE = partial(ScoreSDE, t_min=1e-2)


def solved(divergence: Any, size: int = 10, kind: Any = SCORE) -> DensityModel:
    inner = kind(size, divergence=divergence, solver=ODESolver(method="rk4", steps=20), **SMALL)
    return perturb(Flow(AffineCoupling(size), inner), rng(5), std=0.1)


@pytest.mark.parametrize("kind", [SCORE, FlowMatching])
def test_an_estimated_trace_is_held_against_the_exact_one(kind: Any) -> None:
    """In nats and in units of the standard error that the same probes give."""
    model, x = solved(Hutchinson(probes=16), kind=kind), normal(4, (10,), rng(0))
    found = audit(model, x, seed=7)
    model.base.divergence = ExactDivergence()
    exact = model.log_prob(x)
    model.base.divergence = Hutchinson(probes=16)
    estimate = model.estimate_log_prob(x, generator=rng(7))
    difference = (estimate.log_prob - exact).abs()
    assert found.max_nats == pytest.approx(difference.max().item(), abs=1e-3)
    assert found.max_std_errors == pytest.approx((difference / estimate.std_error).max().item(), rel=0.05)
    assert 0.1 < found.max_std_errors < 5
    model.base.divergence = TamperedDivergence(Hutchinson(probes=16), estimates=lambda v: v + 2.0)
    assert audit(model, x, seed=7).max_std_errors > 10


@pytest.mark.parametrize(("kind", "method"), [(SCORE, "dopri5"), (FFJORD, "rk4")])
def test_an_exact_trace_is_held_against_the_jacobian_of_the_solve(kind: Any, method: str) -> None:
    model, x = solved(ExactDivergence(), size=2, kind=kind), normal(4, (2,), rng(0))
    model.base.solver = ODESolver(method=method, rtol=1e-6, atol=1e-6, steps=40)
    found = audit(model, x)
    assert (found.rows, found.max_std_errors, found.note) == (4, None, "")
    assert found.max_nats < 1e-3
    model.base.divergence = TamperedDivergence(ExactDivergence(), estimates=lambda v: v + 0.1)
    assert audit(model, x).max_nats > 0.01


def test_one_probe_has_no_standard_error() -> None:
    found = audit(solved(Hutchinson(probes=1)), normal(2, (10,), rng(0)))
    assert found.max_std_errors is None
    assert found.max_nats > 0


def test_a_context_reaches_the_ode() -> None:
    context = normal(3, (2,), rng(1))
    for divergence, size in ((ExactDivergence(), 2), (Hutchinson(probes=8), 9)):
        inner = perturb(FFJORD(size, context_features=2, divergence=divergence, **SMALL), rng(6), std=0.3)
        inner.solver = ODESolver(method="dopri5", rtol=1e-6, atol=1e-6)
        found = audit(inner, normal(3, (size,), rng(0)), context)
        assert found.rows == 3
        assert found.max_nats < (1e-3 if size == 2 else 6 * found.max_nats / found.max_std_errors)


def test_what_has_no_other_way_is_left_alone() -> None:
    assert audit(StandardNormal(2), torch.zeros(2, 2)) is None
    assert audit(AutoregressiveMLP(2, bins=4, **SMALL), integers(2, 2).float()) is None


def test_what_takes_too_long_is_given_up_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = solved(Hutchinson(probes=3), size=39)
    x = normal(4, (39,), rng(0))

    def every(seconds: float) -> Callable[[], float]:
        ticks = iter(range(1000))
        return lambda: seconds * next(ticks)

    # One second a look at the clock: 10 for an exact trace of 39 dimensions instead of 3 probes.
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=every(1.0)))
    found = audit(model, x, seconds=19.0)
    assert found.rows == 0
    assert found.max_nats is None
    assert found.note == (
        "no row was audited: an exact trace of 39 dimensions would take about 10 s a row, more than 10 s."
    )
    few = audit(model, x, seconds=50.0)
    assert (few.rows, few.note) == (2, "the audit took 2 of 4 rows, as many as its time allows.")
    assert few.max_std_errors < 6
    coupled = Flow(AffineCoupling(39), StandardNormal(39)).double()
    assert audit(coupled, x, seconds=6.0).rows == 3
    assert "a Jacobian of 39 dimensions would take about 1 s a row" in audit(coupled, x, seconds=1.0).note


def test_a_whole_solve_is_not_differentiated_in_many_dimensions() -> None:
    found = audit(ScoreSDE(20, divergence=ExactDivergence(), **SMALL), torch.zeros(1, 20))
    assert found.rows == 0
    assert "16 dimensions or fewer, not 20" in found.note
