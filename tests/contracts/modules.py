"""What every module keeps, bijection or density: it is saved and copied whole, runs on any device and leaves its input.

`call` runs the module and returns its tensors: `call(module, x, context)`.
"""

import copy
import io
import pickle
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Call = Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, ...]]


def copies_are_bit_equal(
    call: Call, module: nn.Module, fresh: nn.Module, x: Tensor, context: Tensor | None = None
) -> None:
    """State dict (tensors only), deepcopy and pickle, taken after use, give the same bits; so does a second call."""
    call(module, x[:2], None if context is None else context[:2])  # whatever a first use leaves behind
    expected = call(module, x, context)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    fresh.double().eval().load_state_dict(torch.load(buffer, weights_only=True))
    try:
        copied, pickled = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    except (RuntimeError, TypeError, AttributeError, pickle.PicklingError) as error:
        raise AssertionError(f"cannot be copied after use: {error}") from error
    others = {"a second call": module, "save and load": fresh, "deepcopy": copied, "pickle": pickled}
    for name, other in others.items():
        for a, b in zip(call(other, x, context), expected, strict=True):
            assert torch.equal(a, b), f"{name} changed the result by {(a - b).abs().max().item():g}"


def input_is_left_alone(call: Call, module: nn.Module, x: Tensor, context: Tensor | None = None) -> None:
    """Neither the values nor `requires_grad` of what is handed in change."""
    before, before_context = x.clone(), None if context is None else context.clone()
    call(module, x, context)
    assert torch.equal(x, before), "the input was changed in place"
    assert not x.requires_grad, "requires_grad was switched on in the caller's tensor"
    assert context is None or torch.equal(context, before_context), "the context was changed in place"


def gradients_change_nothing(
    call: Call,
    module: nn.Module,
    x: Tensor,
    context: Tensor | None = None,
    *,
    without: Sequence[type] = (torch.no_grad, torch.inference_mode),
) -> None:
    """Without gradients, where a module may take a shorter way, the same comes out, to rounding."""
    expected = call(module, x, context)
    for mode in without:
        with mode():
            results = call(module, x, context)
        for result, other in zip(results, expected, strict=True):
            assert not result.requires_grad, f"a graph under {mode.__name__}"
            torch.testing.assert_close(result, other.detach(), rtol=1e-9, atol=1e-9)


def runs_on_meta(call: Call, module: nn.Module, x: Tensor, context: Tensor | None = None) -> None:
    """On the device `meta` shapes and dtypes come out as on the CPU: no tensor of the module stays behind."""
    expected = call(module, x, context)
    moved = copy.deepcopy(module).to("meta")
    try:
        results = call(moved, x.to("meta"), None if context is None else context.to("meta"))
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(f"does not run on another device: {error}") from error
    for result, other in zip(results, expected, strict=True):
        assert result.device.type == "meta", f"a result is on {result.device}"
        assert result.shape == other.shape, f"shape {tuple(result.shape)} for {tuple(other.shape)}"
        assert result.dtype == other.dtype, f"{result.dtype} for {other.dtype}"


def float32_is_close(
    call: Call, module: nn.Module, x: Tensor, context: Tensor | None = None, *, tolerance: float
) -> None:
    """The module in float32 against itself, same parameters, in float64; `tolerance` is relative above 1."""
    single = copy.deepcopy(module).float()
    double = copy.deepcopy(single).double()
    x32, c32 = x.float(), None if context is None else context.float()
    results = call(single, x32, c32)
    expected = call(double, x32.double(), None if c32 is None else c32.double())
    for result, other in zip(results, expected, strict=True):
        assert result.dtype == torch.float32, f"float32 in, {result.dtype} out"
        assert other.dtype == torch.float64, f"float64 in, {other.dtype} out"
        torch.testing.assert_close(result.double(), other, rtol=tolerance, atol=tolerance)


def rows_are_independent(
    call: Call, module: nn.Module, x: Tensor, context: Tensor | None = None, *, tolerance: float = 1e-12
) -> None:
    """Row 0 is the same alone and among other rows, and no gradient of it reaches another row."""
    alone = call(module, x[:1], None if context is None else context[:1])
    x = x.clone().requires_grad_()
    together = call(module, x, context)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=tolerance, atol=tolerance)
    first = sum(part[0].sum() for part in together) + 0.0 * x[0].sum()
    (gradient,) = torch.autograd.grad(first, x)
    assert torch.count_nonzero(gradient[1:]) == 0, "row 0 depends on another row"


def gradients_reach_every_parameter(call: Call, module: nn.Module, x: Tensor, context: Tensor | None = None) -> None:
    """Each parameter has a finite gradient that is not zero everywhere."""
    results = call(module, x, context)
    # A plain sum would lose what cancels over a row; fixed unequal weights do not.
    loss = sum((part * torch.linspace(0.5, 1.5, part.numel()).reshape(part.shape)).sum() for part in results)
    named = dict(module.named_parameters())
    assert loss.requires_grad or not named, "no gradient reaches any parameter"
    for name, parameter in named.items():
        assert parameter.requires_grad, f"{name} is frozen"
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True) if named else ()
    for name, gradient in zip(named, gradients, strict=True):
        assert gradient is not None, f"no gradient reaches {name}"
        assert gradient.isfinite().all(), f"the gradient of {name} is not finite"
        assert gradient.count_nonzero() > 0, f"the gradient of {name} is zero"
