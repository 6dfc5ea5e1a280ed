import copy
import io
from collections.abc import Callable, Iterable
from functools import partial

import pytest
import torch
from contracts import normalizations
from helpers import normal, perturb, rng, seeded
from torch import Tensor, nn
from torch.nn import functional as F

from core import StandardNormal
from discrete import (
    AffineCoupling,
    BatchNorm,
    Bijection,
    Compose,
    Dequantization,
    Flow,
    Inverse,
    RealNVP,
    set_batch_statistics,
)

EVENTS = pytest.mark.parametrize("event_shape", [(1,), (5,), (3, 4, 2)])


def batch(event_shape: tuple[int, ...], *, rows: int = 64, seed: int = 0) -> Tensor:
    return 3.0 * normal(rows, event_shape, rng(seed)) - 7.0


def batch_norm(event_shape: int | tuple[int, ...] = 3, **keywords: float) -> BatchNorm:
    """New, with γ and β away from 0."""
    return perturb(BatchNorm(event_shape, **keywords), rng(3))


@EVENTS
def test_training_takes_the_biased_statistics_of_the_batch(event_shape: tuple[int, ...]) -> None:
    normalizations.training_takes_the_batch(batch_norm(event_shape, eps=0.1), batch(event_shape, rows=5))


@EVENTS
def test_training_log_det_is_that_of_one_row(event_shape: tuple[int, ...]) -> None:
    normalizations.training_log_det_is_that_of_one_row(batch_norm(event_shape, eps=0.1), batch(event_shape, rows=5))


@EVENTS
def test_evaluation_follows_training(event_shape: tuple[int, ...]) -> None:
    batches = [batch(event_shape, rows=5, seed=i) * (i + 1) for i in range(4)]
    normalizations.evaluation_follows_training(batch_norm(event_shape, momentum=0.3, eps=0.1), batches)


@EVENTS
def test_training_and_its_gradient_agree_with_torch(event_shape: tuple[int, ...]) -> None:
    """The gradient flows through m and v: shifting or stretching a whole batch changes nothing."""
    norm, x = batch_norm(event_shape).train(), batch(event_shape, rows=5).requires_grad_()
    z, _ = norm(x)
    weight, bias = norm.gamma.exp().flatten(), norm.beta.flatten()
    expected = F.batch_norm(x, None, None, weight, bias, training=True, eps=norm.eps)
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)
    inputs, w = (x, norm.gamma, norm.beta), normal(5, event_shape, rng(7))
    gradients, others = (torch.autograd.grad((w * value).sum(), inputs) for value in (z, expected))
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert gradients[0].abs().max() > 0


def test_training_gradients_of_the_log_det() -> None:
    norm = batch_norm().train()
    x = batch((3,), rows=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: norm(v)[1], x)
    assert torch.autograd.grad(norm(x)[1].sum(), x)[0].abs().min() > 0


def test_evaluation_and_the_inverse_leave_the_buffers_alone() -> None:
    norm = batch_norm().train()
    norm(batch((3,)))
    before = {name: value.clone() for name, value in norm.named_buffers()}
    norm.inverse(batch((3,), seed=1))
    norm.eval()(batch((3,), seed=2))
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())


def test_the_inverse_takes_the_buffers_in_training_too() -> None:
    norm = batch_norm().train()
    norm(batch((3,)))
    z = normal(4, (3,), rng(5))
    found = norm.inverse(z)
    for a, b in zip(found, norm.eval().inverse(z), strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(norm(found[0])[0], z)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_training_batch_without_variance_is_refused(rows: int) -> None:
    norm = batch_norm().train()
    norm(batch((3,)))
    with pytest.raises(ValueError, match=f"2 rows or more in every training batch, but got {rows}"):
        norm(batch((3,), rows=rows))


@pytest.mark.parametrize("keywords", [{"momentum": 0.0}, {"momentum": 1.5}, {"eps": 0.0}])
def test_impossible_settings_are_refused(keywords: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"momentum within \(0, 1\] and eps > 0"):
        BatchNorm(2, **keywords)


def test_a_saved_batch_norm_goes_on_to_the_bit() -> None:
    norm, fresh, buffer = batch_norm().train(), BatchNorm(3).double().train(), io.BytesIO()
    norm(batch((3,)))
    torch.save(norm.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    copied, x = copy.deepcopy(norm), batch((3,), seed=2) + 5
    for other in (fresh, copied):
        assert all(torch.equal(a, b) for a, b in zip(other(x), copy.deepcopy(norm)(x), strict=True))
    norm(x)
    for other in (fresh, copied):
        assert all(torch.equal(a, b) for a, b in zip(other.buffers(), norm.buffers(), strict=True))


def test_batch_norm_of_a_constant_feature_stays_finite() -> None:
    norm, x = batch_norm().train(), batch((3,))
    x[:, 1] = 4.0
    x.requires_grad_()
    z, log_det = norm(x)
    (gradient,) = torch.autograd.grad(z.square().sum() + log_det.sum(), x)
    for value in (z, log_det, gradient, norm.running_var):
        assert value.isfinite().all()


def test_training_asks_the_device_nothing() -> None:
    norm = BatchNorm((3, 2, 2)).to("meta").train()
    z, log_det = norm(torch.empty(4, 3, 2, 2, device="meta"))
    assert (z.shape, log_det.shape) == ((4, 3, 2, 2), (4,))


def stack(*, context_features: int = 0) -> Compose:
    """Batch normalization before and after a coupling, away from the initial values."""

    def build() -> Compose:
        coupling = AffineCoupling(
            4, hidden=(8,), activation="silu", context_features=context_features, log_scale_bound=1.0
        )
        return Compose(BatchNorm(4), coupling, BatchNorm(4, eps=0.1))

    return perturb(seeded(build), rng(4))


def norms(module: nn.Module) -> list[BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, BatchNorm)]


@pytest.mark.parametrize(
    ("build", "event_shape"),
    [
        pytest.param(stack, (4,), id="stack"),
        pytest.param(partial(batch_norm, (3, 2, 4)), (3, 2, 4), id="image"),
        pytest.param(lambda: perturb(Compose(BatchNorm(2), Compose(BatchNorm(2))), rng(4)), (2,), id="nested"),
    ],
)
def test_set_statistics_are_those_of_all_rows(build: Callable[[], Bijection], event_shape: tuple[int, ...]) -> None:
    """Batches of 7, the last one shorter, give what one batch gives and what training mode does with all the rows."""
    normalizations.statistics_are_those_of_all_rows(set_batch_statistics, build, batch(event_shape, rows=45))


def test_set_statistics_survive_a_large_mean() -> None:
    """Squares of 1e8 leave no digit of a variance of 9."""
    x = batch((2,), rows=1000) + 1e8
    norm = BatchNorm(2).double()
    set_batch_statistics(norm, x.split(7))
    m, v = normalizations.moments(x)
    torch.testing.assert_close(norm.running_mean, m, rtol=1e-14, atol=0)
    torch.testing.assert_close(norm.running_var, v, rtol=1e-9, atol=0)


def test_set_statistics_of_a_float32_layer_come_from_float64_sums() -> None:
    x = batch((2,), rows=1000).float() + 4096
    norm = BatchNorm(2)
    set_batch_statistics(norm, x.split(7))
    m, v = normalizations.moments(x.double())
    torch.testing.assert_close(norm.running_mean, m.float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(norm.running_var, v.float(), rtol=1e-6, atol=0)


def test_training_goes_on_from_statistics_that_were_set() -> None:
    norm, x = batch_norm(), batch((3,))
    set_batch_statistics(norm, [x])
    norm.train()(x + 10)
    torch.testing.assert_close(norm.running_mean, x.mean(0) + 1.0)


def test_set_statistics_with_context() -> None:
    module, context, x = stack(context_features=2), normal(45, (2,), rng(6)), batch((4,), rows=45)
    set_batch_statistics(module, list(zip(x.split(7), context.split(7), strict=True)))
    expected, _ = stack(context_features=2).train()(x, context)
    torch.testing.assert_close(module(x, context)[0], expected, rtol=1e-10, atol=1e-10)


def test_set_statistics_of_a_density_behind_random_preprocessing() -> None:
    """A flow in a flow is one density; its noise is the same for every layer."""
    x = torch.randint(4, (50, 4), generator=rng(8)).double()
    flow = Flow(Dequantization(4, bins=4), Flow(stack(), StandardNormal(4))).double()
    set_batch_statistics(flow, [x], generator=rng(9))
    z, _ = flow.bijection(x, generator=rng(9))
    inner = flow.base.bijection
    torch.testing.assert_close(inner.eval()(z)[0], stack().train()(z)[0], rtol=1e-10, atol=1e-10)


class Backwards(Bijection):
    """Two layers that data meet in the other order than the module names them."""

    def __init__(self) -> None:
        super().__init__(2)
        self.second, self.first = BatchNorm(2), BatchNorm(2)

    def forward(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None):
        return self.second(self.first(x)[0])

    def inverse(self, z: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None):
        return self.first.inverse(self.second.inverse(z)[0])


def test_set_statistics_follow_the_data_not_the_names() -> None:
    module = perturb(Backwards(), rng(4))
    x = batch((2,))
    set_batch_statistics(module, x.split(9))
    torch.testing.assert_close(module.first.running_mean, x.mean(0))
    torch.testing.assert_close(module.second.running_mean, module.first.beta.detach())


@pytest.mark.parametrize(
    ("build", "batches", "sentence"),
    [
        (stack, batch((4,)), "gone through once a layer, such as x.split"),
        (stack, iter(batch((4,)).split(7)), "gone through once a layer, such as x.split"),
        (stack, [], "2 rows or more, but the batches hold 0"),
        (stack, batch((4,), rows=1).split(1), "2 rows or more, but the batches hold 1"),
        (stack, [batch((4,)), batch((4,)) * torch.nan], "reach the BatchNorm 'bijections.0' .* not finite"),
        (lambda: Compose(BatchNorm(4), Inverse(BatchNorm(4))).double(), [batch((4,))], "Compose .* inside Inverse"),
    ],
)
def test_what_cannot_be_set_is_refused_and_nothing_stays_behind(
    build: Callable[[], Bijection], batches: Iterable[Tensor], sentence: str
) -> None:
    module = build().train()
    module.bijections[0].eval()
    with pytest.raises(ValueError, match=sentence):
        set_batch_statistics(module, batches)
    assert module.training
    assert not module.bijections[0].training
    assert not any(layer._forward_pre_hooks for layer in norms(module))


def test_batches_without_rows_and_modes_are_left_alone() -> None:
    module, x = stack().train(), batch((4,))
    module.bijections[2].eval()
    set_batch_statistics(module, [x[:0], x, x[:0]])
    assert [layer.training for layer in norms(module)] == [True, False]
    assert not any(layer._forward_pre_hooks for layer in norms(module))
    other = stack()
    set_batch_statistics(other, [x])
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), other.buffers(), strict=True))


def test_a_module_without_batch_norm_is_left_alone() -> None:
    set_batch_statistics(RealNVP(2, layers=2, hidden=(8,)), [])
