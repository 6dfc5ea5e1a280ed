"""A network from the user's own module, and how it wants to be called."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cflows.predicted_score import TimeShape
from core.density import Context
from experiment.errors import UserError

Network = Callable[..., Any]


def made_by(spec: str) -> tuple[Network, dict[str, Any]]:
    """The network that `module:factory` makes, and the settings that come with it.

    Modules of the working directory come first.

    Args:
        spec: `module:factory`; factory() returns the network, or the network and a dict of settings.

    Raises:
        UserError: no such module or factory, or one that takes arguments or returns something else.
    """
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise UserError(f"--score takes module:factory, such as my_score:build, but was given {spec!r}.")
    factory = getattr(_imported(module, spec), name, None)
    if not callable(factory):
        found = "has none" if factory is None else f"holds a {type(factory).__name__}"
        raise UserError(f"--score {spec}: module {module} must hold a function {name}, but {found}.")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise UserError(f"--score {spec}: {name} must be callable without arguments: {error}.") from error
    made = factory()
    net, settings = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not callable(net) or not isinstance(settings, Mapping):
        raise UserError(
            f"--score {spec}: {name}() must return a network, or a network and a dict of settings, but it returned a "
            f"{type(made).__name__}."
        )
    return net, dict(settings)


def time_shape(net: Network, like: Tensor, context: Context, *, spec: str) -> TimeShape:
    """Whether a network takes times `(rows,)`, or one 0-dimensional time: `rows` where it takes both alike.

    Args:
        net: called as net(x, t), or net(x, t, context).
        like: rows as it will see them, `(rows, *event)`, their number none of the sizes of an event.
        context: of these rows, or None.
        spec: named in errors.

    Raises:
        UserError: a network that cannot be called, does not return a tensor like x, or gives other values for the same
            time in the other shape.
    """
    t = like.new_tensor(0.5)
    by_row, fault = _called(net, like, t.expand(len(like)), context)
    by_scalar, _ = _called(net, like, t, context)
    if by_row is None and by_scalar is None:
        raise UserError(f"--score {spec}: the network must take {_asked(like, context)}, but {fault}.")
    if by_row is not None and by_scalar is not None and not torch.allclose(by_row, by_scalar, rtol=1e-3, atol=1e-5):
        raise UserError(
            f"--score {spec}: the network gives other values for t of shape ({len(like)},) than for the same "
            "0-dimensional t; it must take one of them, or both alike."
        )
    return "scalar" if by_row is None else "rows"


def _called(net: Network, x: Tensor, t: Tensor, context: Context) -> tuple[Tensor | None, str]:
    """What the network returns, or None and what is wrong with it."""
    try:
        with torch.no_grad():
            value = net(x, t) if context is None else net(x, t, context)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        return None, f"it raises {type(error).__name__}: {' '.join(str(error).split())}"
    if not isinstance(value, Tensor) or value.shape != x.shape:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        return None, f"it returns {found}"
    return value, ""


def _asked(x: Tensor, context: Context) -> str:
    told = "" if context is None else f", a context {tuple(context.shape)}"
    return f"x {tuple(x.shape)}, t ({len(x)},){told} and return a tensor like x"


def _imported(module: str, spec: str) -> Any:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever the user's code does when it is loaded
        raise UserError(
            f"--score {spec}: {module} cannot be imported from {folder}: {type(error).__name__}: {error}."
        ) from error
    finally:
        sys.path.remove(folder)
