"""`python tests/graphs.py` prints a line for each log-likelihood that `torch.compile` does not get as one graph.

A program of its own: the annotations that tests enforce are calls that a graph cannot hold.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from cases import DENSITIES
from helpers import normal, perturb, rng, seeded
from torch import Tensor

from cflows import FFJORD, FlowMatching, ScoreSDE
from cflows.models.continuous_flow import ContinuousFlow

BY_ROWS = "linear-flow"  # goes another way for few than for many rows beside the features
Call = tuple[Callable[..., Any], tuple[Any, ...]]


def densities() -> Iterator[tuple[str, Call]]:
    """Of cases that differ in numbers alone the first; none whose solver takes times from tensors."""
    seen = set[tuple[Any, ...]]()
    for name, case in DENSITIES.items():
        model = case.make()
        parts = [type(part) for part in model.modules()]
        kind = frozenset(parts), len(model.event_shape), case.context_features > 0
        if not any(issubclass(part, ScoreSDE | ContinuousFlow) for part in parts) and kind not in seen:
            seen.add(kind)
            for rows in (4, 40) if name.startswith(BY_ROWS) else (4,):
                yield name, (model.log_prob, (case.data(rows, model.event_shape, rng(2)), case.context(rows, rng(3))))


def velocities() -> Iterator[tuple[str, Call]]:
    """What those call at every evaluation; autograd, which takes the divergence, stays outside of a graph."""
    x, t = normal(5, (3,), rng(0)), torch.tensor(0.4, dtype=torch.float64)
    for kind in (FFJORD, FlowMatching, ScoreSDE):
        model = perturb(seeded(lambda kind=kind: kind(3, hidden=(16,))), rng(2))
        yield kind.__name__, (model, (x, t))


def fault(call: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    """Why it is not one graph with the same numbers; empty where it is."""
    torch._dynamo.reset()
    try:
        found = torch.compile(call, backend="eager", fullgraph=True)(*arguments)
        torch.testing.assert_close(found, call(*arguments))
    except (torch._dynamo.exc.TorchDynamoException, AssertionError) as error:
        return f"{type(error).__name__} {error}".strip().splitlines()[0]
    return ""


def broken(x: Tensor) -> Tensor:
    """Reads a value."""
    return x * x.sum().item() if x.sum() > 0 else x


if __name__ == "__main__":
    for name, (call, arguments) in [*densities(), *velocities(), ("broken on purpose", (broken, (torch.ones(2),)))]:
        if found := fault(call, arguments):
            print(f"{name}: {found}")
