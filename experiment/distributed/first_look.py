"""What a first batch tells of an objective: what moves, what its gradient reaches, what can be shared out."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

# Values of a layer below which its own gathering, some messages a step, costs more than the memory is worth.
SMALLEST_UNIT = 10_000


class Look(NamedTuple):
    """Names of parts of an objective.

    Attributes:
        moving: buffers that a loss in training mode changes.
        reached: parameters that its gradient reaches.
        units: the outermost members of lists of layers, large enough to be worth it, that are called once; what an ODE
            solver calls again and again is none, and nothing is where the loss itself differentiates.
    """

    moving: tuple[str, ...] = ()
    reached: frozenset[str] = frozenset()
    units: tuple[str, ...] = ()


def first_look(objective: nn.Module, loss: Callable[[], Tensor]) -> Look:
    """Computes a loss and its gradient once, which sets what depends on data, such as `ActNorm`.

    Checked by tests/experiment/distributed/test_ranks.py and tests/experiment/distributed/test_sharding.py.

    Args:
        objective: in training mode.
        loss: calls it.
    """
    versions = {name: buffer._version for name, buffer in objective.named_buffers()}
    passes: Counter[tuple[nn.Module, bool]] = Counter()
    hooks = [module.register_forward_hook(partial(_count, passes)) for module in objective.modules()]
    try:
        value = loss()
        derived = any(backward for _, backward in passes)
        value.backward()
    finally:
        for hook in hooks:
            hook.remove()
    moving = tuple(name for name, buffer in objective.named_buffers() if buffer._version != versions[name])
    reached = frozenset(name for name, parameter in objective.named_parameters() if parameter.grad is not None)
    objective.zero_grad(set_to_none=True)
    once = {module for (module, backward), count in passes.items() if count == 1 and not backward}
    return Look(moving, reached, () if derived else _units(objective, once))


def _count(passes: Counter[tuple[nn.Module, bool]], module: nn.Module, _: Any, output: Any) -> None:
    """Counts a forward pass, and the backward passes to come."""
    passes[module, False] += 1
    for part in output if isinstance(output, tuple) else (output,):
        if isinstance(part, Tensor) and part.requires_grad:
            part.register_hook(lambda _: passes.update([(module, True)]))


def _units(objective: nn.Module, once: set[nn.Module]) -> tuple[str, ...]:
    found: list[str] = []
    for name, module in objective.named_modules():
        inside = any(name.startswith(f"{unit}.") for unit in found)
        listed = name and isinstance(objective.get_submodule(name.rpartition(".")[0]), nn.ModuleList | nn.Sequential)
        size = sum(parameter.numel() for parameter in module.parameters())
        if listed and not inside and module in once and size >= SMALLEST_UNIT:
            found.append(name)
    return tuple(found)
