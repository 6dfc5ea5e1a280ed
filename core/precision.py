"""Full precision where densities and log-determinants are computed: what dtypes come in, and no autocast around them.

Trained flows of 16 dimensions lose up to 0.8 nats under autocast to bfloat16, and up to 0.2 where it reaches their
conditioners alone; an autoregressive inverse then misses its forward by 0.03, since it is not the same map any more.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from itertools import chain
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
T = TypeVar("T")

FULL = (torch.float32, torch.float64)
HALF = (torch.float16, torch.bfloat16)
DEVICES = ("cpu", "cuda")


def check_floating(x: Tensor, *, owner: str, name: str = "x") -> None:
    """Refuses whole numbers, complex ones and half precision.

    Checked by tests/test_fuzz.py.

    Raises:
        ValueError: `x` is neither float32 nor float64.
    """
    if x.dtype not in FULL:
        hint = "" if x.dtype in HALF or x.is_complex() else "; densities of whole numbers need Dequantization in front"
        raise ValueError(f"{owner} takes float32 or float64, but {name} is {_name(x.dtype)}{hint}.")


def check_inputs(module: nn.Module, *, owner: str, **given: Tensor | None) -> None:
    """Refuses events or a context, by their names, that are not in the dtype of a module's parameters and buffers.

    A buffer without dimensions promotes nothing: it has no say.

    Raises:
        ValueError: one that is neither float32 nor float64, or in another dtype than the module.
    """
    weights = (t for t in chain(module.parameters(), module.buffers()) if t.ndim and t.is_floating_point())
    dtype = next((weight.dtype for weight in weights), None)
    for name, value in given.items():
        if value is not None:
            check_floating(value, owner=owner, name=name)
            if dtype not in (None, value.dtype):
                raise ValueError(f"{owner} is in {_name(dtype)}, but {name} is {_name(value.dtype)}.")


def whole_numbers(x: Tensor, *, like: Tensor, owner: str) -> Tensor:
    """Whole numbers of any real dtype in that of a model.

    Raises:
        ValueError: `x` is complex.
    """
    if x.is_complex():
        raise ValueError(f"{owner} takes real numbers, but x is {_name(x.dtype)}.")
    return x.to(like.dtype)


def outside_autocast(call: Callable[P, T]) -> Callable[P, T]:
    """The call in full precision wherever it is made: autocast is off within, half-precision arguments are float32.

    Checked by tests/test_autocast.py.
    """

    @wraps(call)
    def full(*args: P.args, **keywords: P.kwargs) -> T:
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return full(*map(_widened, args), **{name: _widened(value) for name, value in keywords.items()})
        return call(*args, **keywords)

    return full


def guard(cls: type, names: Iterable[str], around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Puts `around` about the methods of these names that a class implements itself."""
    for name in names:
        method = vars(cls).get(name)
        if method is not None and not getattr(method, "__isabstractmethod__", False):
            setattr(cls, name, around(method))


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
