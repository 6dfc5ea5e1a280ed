"""Reversible is Compose in values and gradients at any depth, and what it keeps does not grow with depth."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from cases import BIJECTIONS
from contracts import bijections, modules
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor, nn
from wrong import Tampered

from benchmarks.memory import peak_bytes
from discrete import (
    ActNorm,
    AffineCoupling,
    BatchNorm,
    Bijection,
    Compose,
    Dequantization,
    Diagonal,
    Inverse,
    Invertible1x1Conv,
    Permutation,
    Reversible,
)
from discrete import reversible as implementation

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
IMAGE = (4, 2, 2)
NETWORK = {"hidden": (16,), "activation": "silu"}


def vector_step() -> list[Bijection]:
    return [ActNorm(5), Permutation(5, order="random"), AffineCoupling(5, context_features=2, **NETWORK)]


def image_step() -> list[Bijection]:
    return [ActNorm(IMAGE), Invertible1x1Conv(IMAGE), AffineCoupling(IMAGE, mask="half", **NETWORK)]


def trained(module: Any) -> Any:
    """In training mode, past the first batch."""
    for layer in module.modules():
        if isinstance(layer, ActNorm):
            layer.initialised.fill_(True)
    return module.train()


def deep(depth: int = 4, step: Callable[[], list[Bijection]] = vector_step, whole: type = Reversible) -> Any:
    """As after training: the layers share out one map, each O(1/√depth) off the identity."""
    build = lambda: whole(*(layer for _ in range(depth) for layer in step()))  # noqa: E731
    return trained(perturb(seeded(build), rng(1), std=0.2 / math.sqrt(depth)))


def forward(module: Any, *arguments: Any) -> tuple[Tensor, ...]:
    return module(*arguments)


def inverse(module: Any, *arguments: Any) -> tuple[Tensor, ...]:
    return module.inverse(*arguments)


DIRECTIONS = pytest.mark.parametrize("direction", [forward, inverse])


def draw(module: Bijection, rows: int = 6) -> tuple[Tensor, Tensor | None]:
    """Inputs in the dtype of the module, and contexts where it takes vectors."""
    dtype = next(module.parameters()).dtype
    context = None if module.event_shape == IMAGE else normal(rows, (2,), rng(3)).to(dtype)
    return normal(rows, module.event_shape, rng(2)).to(dtype), context


def loss_of(parts: Iterable[Tensor]) -> Tensor:
    """A plain sum would lose what cancels over a row."""
    return sum((part * torch.linspace(0.5, 1.5, part.numel()).reshape(part.shape)).sum() for part in parts)


def gradients(direction: modules.Call, module: nn.Module, x: Tensor, context: Tensor | None) -> dict[str, Any]:
    """Of the input, the context and each parameter."""
    x, context = x.clone().requires_grad_(), None if context is None else context.clone().requires_grad_()
    wanted = {"x": x, "context": context, **dict(module.named_parameters())}
    wanted = {name: tensor for name, tensor in wanted.items() if tensor is not None and tensor.requires_grad}
    loss = loss_of(direction(module, x, context))
    return dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values()), allow_unused=True), strict=True))


def is_compose(module: Reversible, *, direction: modules.Call = forward, rows: int = 6) -> None:
    """Values bit for bit; the gradients of input, context and each parameter to a part of their norm."""
    x, context = draw(module, rows)
    composition = Compose(*module.bijections).train()
    for a, b in zip(direction(module, x, context), direction(composition, x, context), strict=True):
        assert torch.equal(a, b), "the values differ"
    found, expected = (gradients(direction, m, x, context) for m in (module, composition))
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None), f"the gradient of {name} is {found[name]}"
        if gradient is not None:
            error = (found[name] - gradient).norm()
            assert error <= TOLERANCE[x.dtype] * gradient.norm(), f"the gradient of {name} is off by {error:g}"


@DIRECTIONS
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("step", [vector_step, image_step])
@pytest.mark.parametrize("depth", [1, 8, 64])
def test_values_and_gradients_are_those_of_compose(
    depth: int, step: Callable[[], list[Bijection]], dtype: torch.dtype, direction: modules.Call
) -> None:
    is_compose(deep(depth, step).to(dtype), direction=direction)


def memory_does_not_grow(build: Callable[[int], Bijection], *, direction: modules.Call) -> None:
    """The peak of a training step, less the gradients that it leaves, at four times the depth."""

    def peak(depth: int) -> int:
        module = build(depth)
        x, context = draw(module, rows=256)
        train = lambda: loss_of(direction(module, x, context)).backward()  # noqa: E731
        train()
        module.zero_grad()
        left = sum(p.numel() * p.element_size() for p in module.parameters())
        return peak_bytes(train) - left

    shallow, four_times = peak(4), peak(16)
    assert four_times <= 1.02 * shallow, f"{four_times} bytes at depth 16, {shallow} at depth 4"


@DIRECTIONS
@pytest.mark.parametrize("step", [vector_step, image_step])
def test_memory(step: Callable[[], list[Bijection]], direction: modules.Call) -> None:
    Tooth(
        partial(memory_does_not_grow, direction=direction),
        lambda: partial(deep, step=step),
        lambda: partial(deep, step=step, whole=Compose),
    ).bites()


PULL_BACK = implementation._pull_back
forgetful = partial(Tampered, inverse=lambda z, x, log_det: (z, log_det))
TAMPERED: dict[str, Callable[..., Any]] = {
    "output for input": lambda layer, z, context, grads: PULL_BACK(forgetful(layer), z, context, grads),
    "no gradient of log_det": lambda layer, z, context, grads: PULL_BACK(layer, z, context, (grads[0], 0 * grads[1])),
    "no gradient of z": lambda layer, z, context, grads: PULL_BACK(layer, z, context, (0 * grads[0], grads[1])),
    "no gradient of the context": lambda layer, z, context, grads: PULL_BACK(layer, z, context.detach(), grads),
    "no gradient of the parameters": lambda *arguments: (*PULL_BACK(*arguments)[:2], {}),
    "inverse off by a thousandth": lambda layer, z, *rest: PULL_BACK(layer, 1.001 * z, *rest),
}


@DIRECTIONS
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", TAMPERED)
def test_a_wrong_backward_pass_is_noticed(
    name: str, dtype: torch.dtype, direction: modules.Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong() -> Reversible:
        monkeypatch.setattr(implementation, "_pull_back", TAMPERED[name])
        return deep().to(dtype)

    Tooth(partial(is_compose, direction=direction), lambda: deep().to(dtype), wrong).bites()


@pytest.mark.parametrize("name", [name for name in BIJECTIONS if "reversible" in name])
def test_contracts_hold_in_training_mode(name: str) -> None:
    """The cases of tests/test_bijections.py are in evaluation mode, where nothing is recomputed."""
    case = BIJECTIONS[name]
    module = trained(case.make())
    x, z = case.data(6, module.event_shape, rng(4)), case.latents(6, module.latent_shape, rng(5))
    context = case.context(6, rng(6))
    for direction, start in ((forward, x), (inverse, z)):
        modules.gradients_reach_every_parameter(direction, module, start, context)
        modules.rows_are_independent(direction, module, start, context)
        modules.input_is_left_alone(direction, module, start, context)
        modules.runs_on_meta(direction, module, start, context)
    bijections.forward_log_det_is_that_of_the_jacobian(module, x, context)
    bijections.inverse_log_det_is_that_of_the_jacobian(module, z, context)


def test_the_first_training_batch_initialises() -> None:
    """In the pass that records nothing, and with the same results."""
    both = [
        seeded(lambda whole=whole: whole(*vector_step(), *vector_step())).train() for whole in (Reversible, Compose)
    ]
    found, expected = (gradients(forward, module, *draw(module)) for module in both)
    torch.testing.assert_close(found, expected)
    found, expected = (module.state_dict() for module in both)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found["bijections.3.initialised"]


def test_state_and_rows_are_those_of_compose() -> None:
    module, composition = deep(), deep(whole=Compose)
    assert list(module.state_dict()) == list(composition.state_dict())
    composition.load_state_dict(module.state_dict())
    for rows in (0, 1, 3):
        is_compose(module, rows=rows)


def test_frozen_parameters_have_no_gradient() -> None:
    module = deep()
    for layer in module.bijections[3:6]:
        layer.requires_grad_(False)
    is_compose(module)
    x, context = draw(module)
    loss_of(module(x, context)).backward()
    for i, layer in enumerate(module.bijections):
        assert all((p.grad is None) == (3 <= i < 6) for p in layer.parameters())


@pytest.mark.parametrize("part", [0, 1])
def test_what_is_asked_for_alone(part: int) -> None:
    """z or log_det for the parameters alone, then for the context alone."""
    module = deep()
    x, context = draw(module)
    for wanted in (list(module.parameters()), [context.requires_grad_()]):
        found, expected = (
            torch.autograd.grad(m(x, context)[part].square().sum(), wanted, allow_unused=True, materialize_grads=True)
            for m in (module, Compose(*module.bijections))
        )
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_layers_may_share_parameters_and_nest() -> None:
    shared = deep(1)
    is_compose(Reversible(*shared.bijections, Inverse(deep(2)), *shared.bijections, deep(2)).train())


def test_a_graph_that_is_kept_serves_twice() -> None:
    module = deep()
    x, context = draw(module)
    loss = loss_of(module(x, context))
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in module.parameters()]
    loss.backward()
    for p, g in zip(module.parameters(), once, strict=True):
        assert torch.equal(p.grad, 2 * g)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_without_gradient_nothing_is_recorded() -> None:
    module = deep()
    x, context = draw(module)
    with torch.no_grad():
        assert not any(part.requires_grad for part in (*module(x, context), *module.inverse(x, context)))
    module.requires_grad_(False)
    assert not any(part.requires_grad for part in module(x, context))


def test_in_evaluation_mode_gradients_may_be_differentiated_again() -> None:
    module = deep().eval()
    x, context = (tensor.requires_grad_() for tensor in draw(module))
    (score,) = torch.autograd.grad(loss_of(module(x, context)), x, create_graph=True)
    score.square().sum().backward()
    assert x.grad.isfinite().all()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(loss_of(module.train()(x, context)), x, create_graph=True)


def test_parameters_must_not_change_before_the_backward_pass() -> None:
    module = deep()
    loss = loss_of(module(*draw(module)))
    with torch.no_grad():
        next(module.parameters()).mul_(1.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autocast_does_not_reach_the_gradient() -> None:
    """An inverse in half precision would be too coarse for it."""
    module = deep().float()
    x, context = draw(module)
    parameters = list(module.parameters())
    expected = torch.autograd.grad(loss_of(module(x, context)), parameters)
    with torch.autocast("cpu"):
        loss = loss_of(module(x, context))
    found = torch.autograd.grad(loss, parameters)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def network(module: nn.Module) -> Callable[[int, int], nn.Module]:
    return lambda features_in, features_out: nn.Sequential(nn.Linear(features_in, features_out), module)


REFUSED = {
    "Dropout": lambda: AffineCoupling(4, dropout=0.1),
    "Dropout2d": lambda: AffineCoupling((2, 4, 4), dropout=0.1, conditioner="resnet"),
    "AlphaDropout": lambda: Inverse(AffineCoupling(4, conditioner=network(nn.AlphaDropout(0.1)))),
    "RReLU": lambda: AffineCoupling(4, conditioner=network(nn.RReLU())),
    "BatchNorm1d": lambda: AffineCoupling(4, conditioner=network(nn.BatchNorm1d(4))),
    "BatchNorm": lambda: Compose(Diagonal(4), BatchNorm(4)),
    "log-determinant is bound": lambda: Dequantization(4, bins=2),
}


@pytest.mark.parametrize("culprit", REFUSED)
def test_layers_that_do_not_repeat_themselves_or_do_not_fit_are_refused(culprit: str) -> None:
    layer = REFUSED[culprit]()
    with pytest.raises(ValueError, match=f"bijection 1 is a {type(layer).__name__} .*{culprit}; use Compose"):
        Reversible(Diagonal(layer.event_shape), layer)
    Reversible(AffineCoupling((2, 4, 4), conditioner="resnet"))  # whose dropout has probability 0
    with pytest.raises(ValueError, match=r"bijection 0 \(Diagonal\).*\(2,\)"):
        Reversible(Diagonal(3), Diagonal(2))
