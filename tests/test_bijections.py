from collections.abc import Callable

import cases
import pytest
import torch
from cases import BIJECTIONS, BijectionCase
from contracts import bijections, modules
from helpers import normal, rng, seeded, unit
from torch import Tensor, nn

from discrete.bijections.transformers import AffineTransformer

NAMES = pytest.mark.parametrize("name", BIJECTIONS)
CONTEXTUAL = [name for name, case in BIJECTIONS.items() if case.context_features]
COUPLINGS = [name for name, case in BIJECTIONS.items() if case.passes is not None]
AUTOREGRESSIVE = [name for name, case in BIJECTIONS.items() if case.order is not None]
PARAMETRIC = [name for name, case in BIJECTIONS.items() if list(case.make().parameters())]


class Setting:
    """A case made and perturbed, with data, latents and context for it."""

    def __init__(self, name: str, rows: int = 4) -> None:
        self.case: BijectionCase = BIJECTIONS[name]
        self.bijection = self.case.make()
        self.generator = rng(2)
        self.x = self.case.data(rows, self.bijection.event_shape, self.generator)
        self.z = self.case.latents(rows, self.bijection.latent_shape, self.generator)
        self.context = self.case.context(rows, self.generator)


def forward(module: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    return module(x, context)


def inverse(module: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    return module.inverse(x, context)


@NAMES
def test_log_det_forward(name: str) -> None:
    s = Setting(name)
    bijections.forward_log_det_is_that_of_the_jacobian(s.bijection, s.x, s.context)


@NAMES
def test_log_det_inverse(name: str) -> None:
    s = Setting(name)
    bijections.inverse_log_det_is_that_of_the_jacobian(s.bijection, s.z, s.context)


@NAMES
def test_log_det_gradient(name: str) -> None:
    s = Setting(name)
    bijections.log_det_is_differentiable(s.bijection, s.x, s.context)


@NAMES
def test_shapes(name: str) -> None:
    s = Setting(name, rows=65)
    bijections.shapes_fit(
        s.bijection,
        lambda rows: s.case.data(rows, s.bijection.event_shape, s.generator),
        lambda rows: s.case.latents(rows, s.bijection.latent_shape, s.generator),
        s.context,
    )


@NAMES
def test_round_trip(name: str) -> None:
    s = Setting(name)
    bijections.round_trips(s.bijection, s.x, s.z, s.context)


@NAMES
def test_round_trip_in_the_tails(name: str) -> None:
    """Ten standard deviations out; on [0, 1] within 1e-9 of the ends."""
    s = Setting(name)
    far = {normal: lambda v: 10 * v.sign(), unit: lambda v: v.round().clamp(1e-9, 1 - 1e-9)}
    x, z = far[s.case.data](s.x), far[s.case.latents](s.z)
    bijections.round_trips(s.bijection, x, z, s.context, tolerance=1e-6)


@pytest.mark.parametrize("name", COUPLINGS)
def test_coupling_structure(name: str) -> None:
    s = Setting(name)
    bijections.coupling_has_its_structure(s.bijection, s.x, s.context, passes=s.case.passes)


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_autoregressive_structure(name: str) -> None:
    s = Setting(name)
    bijections.autoregressive_has_its_structure(s.bijection, s.x, s.context, order=s.case.order)


@pytest.mark.parametrize("name", CONTEXTUAL)
def test_context(name: str) -> None:
    s = Setting(name)
    bijections.context_matters(s.bijection, s.x, s.context)


@pytest.mark.parametrize("direction", [forward, inverse])
@pytest.mark.parametrize("name", PARAMETRIC)
def test_gradients(name: str, direction: modules.Call) -> None:
    s = Setting(name, rows=65)
    start = s.x if direction is forward else s.z
    modules.gradients_reach_every_parameter(direction, s.bijection, start, s.context)


@pytest.mark.parametrize(
    "contract",
    [
        modules.rows_are_independent,
        modules.input_is_left_alone,
        modules.gradients_change_nothing,
        modules.runs_on_meta,
    ],
)
@NAMES
def test_module_contract(name: str, contract: Callable[..., None]) -> None:
    s = Setting(name)
    contract(forward, s.bijection, s.x, s.context)
    contract(inverse, s.bijection, s.z, s.context)


@NAMES
def test_copies(name: str) -> None:
    s = Setting(name)
    fresh = seeded(s.case.build, seed=7)
    modules.copies_are_bit_equal(forward, s.bijection, fresh, s.x, s.context)
    modules.copies_are_bit_equal(inverse, s.bijection, fresh, s.z, s.context)


@NAMES
def test_float32_forward(name: str) -> None:
    s = Setting(name, rows=65)
    modules.float32_is_close(forward, s.bijection, s.x, s.context, tolerance=1e-4)


@NAMES
def test_float32_inverse(name: str) -> None:
    s = Setting(name, rows=65)
    modules.float32_is_close(inverse, s.bijection, s.z, s.context, tolerance=1e-4)


def test_float32_logit_reaches_both_ends() -> None:
    """Near 1 as near 0: the digits of 1 - x are there to be used."""
    x = torch.tensor([0.0, 2.0**-24, 2.0**-20, 1e-3, 0.5, 1 - 1e-3, 1 - 2.0**-20, 1 - 2.0**-24, 1.0])[:, None]
    logit = BIJECTIONS["logit-3-narrow"].make()
    modules.float32_is_close(forward, logit, x.expand(-1, 3), tolerance=1e-4)


@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_log_scales_are_bounded_softly_and_symmetrically(bound: float) -> None:
    """Within ±B for any network output, rising everywhere, odd, and of slope 1 at 0: no clamp."""
    a = torch.linspace(-5 * bound, 5 * bound, 201, dtype=torch.float64).requires_grad_()
    theta = torch.stack([a, torch.zeros_like(a)], -1)[None]
    _, s = AffineTransformer(log_scale_bound=bound).forward(torch.ones(1, 201, dtype=torch.float64), theta)
    (slope,) = torch.autograd.grad(s.sum(), a)
    assert (s.abs() < bound).all()
    assert (slope > 0).all()
    torch.testing.assert_close(s[0], -s[0].flip(0))
    assert slope[100].item() == pytest.approx(1.0)
    assert s[0, -1].item() == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("mask", [torch.tensor([True, True]), torch.tensor([False, False]), torch.tensor([True])])
def test_coupling_refuses_a_mask_that_does_not_split(mask: Tensor) -> None:
    with pytest.raises(ValueError, match=r"split an event of shape \(2,\)"):
        cases.AdditiveCoupling(2, mask=mask)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"bijection 0 \(Diagonal\).*\(3,\).*Permutation.*\(2,\)"):
        cases.Compose(cases.Diagonal(3), cases.Permutation(2))
    with pytest.raises(ValueError, match="one size such as 64"):
        cases.LULinear((1, 2, 2))
    with pytest.raises(ValueError, match=r"0\.\.2 once"):
        cases.Permutation(3, order=torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("build", [cases.Diagonal, cases.Scaling])
def test_scale_must_be_positive(build: type) -> None:
    with pytest.raises(ValueError, match="positive scale"):
        build(2, scale=torch.tensor([1.0, 0.0]))
