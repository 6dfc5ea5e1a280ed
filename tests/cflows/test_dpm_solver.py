from functools import partial
from types import SimpleNamespace

import pytest
import torch
from cases import COVARIANCES, MEANS, SDES, WEIGHTS
from contracts import deterministic, samplers

from cflows import SDE, VPSDE
from cflows.samplers import dpm_solver
from cflows.samplers.dpm_solver import DPMSolver
from cflows.samplers.posterior_mean import posterior_mean
from core import GaussianMixture

PLANE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)
NAMES = ["vp", "sub-vp", "ve-narrow"]
GRIDS = [("vp", "log_snr"), ("vp", "quadratic"), ("vp", "time"), ("sub-vp", "karras"), ("ve-narrow", "time")]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("name", "spacing"), GRIDS)
def test_order_on_a_mixture(name: str, order: int, spacing: str) -> None:
    build = partial(DPMSolver, order=order, spacing=spacing, t_min=0.02)
    deterministic.order_is(lambda n: build(steps=n), SDES[name][0], order, t_min=0.02, mixture=PLANE)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", [*NAMES, "cosine-vp", "affine-edm"])
def test_order_on_gaussian_data(name: str, order: int) -> None:
    build = partial(DPMSolver, order=order, spacing="karras", t_min=1e-3)
    deterministic.order_is(lambda n: build(steps=n), SDES[name][0], order, t_min=1e-3)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("name", "spacing"), [*((name, "log_snr") for name in NAMES), ("vp", "time")])
def test_weak_order_of_the_sde(name: str, order: int, spacing: str) -> None:
    build = partial(DPMSolver, order=order, spacing=spacing, t_min=0.02, variant="sde")
    samplers.weak_order_is(lambda n: build(steps=n), SDES[name][0], order, t_min=0.02, steps=(100, 200))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", ["vp", "ve-narrow"])
def test_strong_order_of_the_sde(name: str, order: int) -> None:
    build = partial(DPMSolver, order=order, t_min=0.02, variant="sde")
    deterministic.strong_order_is(lambda n: build(steps=n), SDES[name][0], 1, t_min=0.02, mixture=PLANE)


def test_orders_are_claimed() -> None:
    assert [DPMSolver(order=order).orders for order in (1, 2, 3)] == [(1, 1), (2, 2), (3, 3)]
    assert [DPMSolver(order=order, variant="sde").orders for order in (1, 2)] == [(1, 1), (1, 2)]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", SDES)
def test_one_point_is_reached_in_any_steps(name: str, order: int) -> None:
    """Data at one point: x̂_0 is constant, and x_s = α_s m + (σ_s/σ_t)(x_t - α_t m) from the first step on."""
    sde, x_T = SDES[name][0], deterministic.latents(SDES[name][0])
    x = DPMSolver(steps=5, order=order)(samplers.gaussian_score(sde, 0.7, 0.0), sde, x_T)
    torch.testing.assert_close(x, deterministic.gaussian_flow(sde, x_T, 1.0, 1e-3, variance=0.0))


@pytest.mark.parametrize("spacing", ["log_snr", "time"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["vp", "ve-narrow"])
def test_predictions_weigh_what_their_polynomial_does(name: str, order: int, spacing: str) -> None:
    solver = DPMSolver(steps=5, order=order, spacing=spacing, t_min=0.1)
    deterministic.predictions_weigh(solver, SDES[name][0], order, steps=5, spacing=spacing, t_min=0.1)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["vp", "ve-narrow"])
def test_order_on_a_rough_grid(name: str, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpm_solver, "time_grid", deterministic.rough_grid)
    build = partial(DPMSolver, order=order, t_min=0.02)
    deterministic.order_is(lambda n: build(steps=n), SDES[name][0], order, t_min=0.02, mixture=PLANE)


@pytest.mark.parametrize(("denoise", "count"), [(False, 7), (True, 8)])
@pytest.mark.parametrize("variant", ["ode", "sde"])
@pytest.mark.parametrize("order", [1, 2])
def test_evaluations(order: int, variant: str, denoise: bool, count: int) -> None:
    solver = DPMSolver(steps=7, order=order, variant=variant, denoise=denoise)
    deterministic.evaluations_are(solver, VPSDE(), count, t_min=1e-3)
    if variant == "ode":
        deterministic.evaluations_are(DPMSolver(steps=7, order=3, denoise=denoise), VPSDE(), count, t_min=1e-3)


@pytest.mark.parametrize("keywords", [{"order": 1}, {"order": 3, "denoise": True}, {"variant": "sde"}])
def test_clean(keywords: dict) -> None:
    solver = DPMSolver(steps=7, **keywords)
    samplers.is_clean(solver, VPSDE(), steps=7, random=solver.variant == "sde")


@pytest.mark.parametrize("name", NAMES)
def test_denoised_is_the_mean_of_the_data(name: str) -> None:
    """For N(m, c) data E[x_0 | x] = m + α c (x - α m)/V, at t_min."""
    sde = SDES[name][0]
    x_T, t, score = deterministic.latents(sde), torch.tensor(0.1).double(), samplers.gaussian_score(sde, 0.7, 0.4)
    x, mean = (DPMSolver(t_min=0.1, denoise=denoise)(score, sde, x_T) for denoise in (False, True))
    scale, std = sde.marginal(t)
    expected = 0.7 + scale * 0.4 * (x - scale * 0.7) / (scale.square() * 0.4 + std.square())
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(posterior_mean(score, sde, x, t.expand(len(x))), expected)


@pytest.mark.parametrize("name", SDES)
def test_float32_keeps_up(name: str) -> None:
    """The start, at a noise level of 150 and more for VP, costs single precision no more than a few of its digits."""
    sde: SDE = SDES[name][0]
    x_T, score = deterministic.latents(sde, 100), samplers.gaussian_score(sde, 0.7, 0.4)
    for order in (2, 3):
        solver = DPMSolver(order=order)
        torch.testing.assert_close(
            solver(score, sde, x_T.float()), solver(score, sde, x_T).float(), rtol=1e-3, atol=1e-4
        )


def test_an_unknown_variant_is_refused() -> None:
    # As without the checks of types that run in tests.
    with pytest.raises(ValueError, match="ode or sde, not 'both'"):
        DPMSolver.__post_init__(SimpleNamespace(steps=1, t_min=0.1, spacing="time", variant="both"))


@pytest.mark.parametrize("variant", ["ode", "sde"])
def test_runs_on_meta(variant: str) -> None:
    x = DPMSolver(steps=4, variant=variant, denoise=True)(lambda x, t: -x, VPSDE(), torch.zeros(3, 2, device="meta"))
    assert (x.shape, x.device.type) == ((3, 2), "meta")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"steps": 0}, "1 step or more"),
        ({"t_min": 0.0, "spacing": "time"}, "t_min above 0"),
        ({"order": 4}, "order 1 to 3, not 4"),
        ({"order": 3, "variant": "sde"}, "order 1 to 2, not 3"),
    ],
)
def test_settings_that_make_no_sense(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPMSolver(**keywords)


@pytest.mark.parametrize("order", [1, 2])
def test_row_is_its_own(order: int) -> None:
    samplers.row_is_its_own(DPMSolver(steps=7, order=order, variant="sde"), VPSDE())
