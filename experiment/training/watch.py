"""Steps whose loss or gradient is not finite: left out, counted, and traced to a row and a layer."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from core.density import Context
from experiment.errors import NumericalError

NOT_FOUND = "not found again with other noise"


class Watch:
    """Loss and gradient norm of steps since they were read, and which were not finite, kept on the device until then.

    Checked by tests/experiment/training/test_bad_steps.py.

    Args:
        device: where the steps are.
        most: bad steps in a row that are let pass.
    """

    def __init__(self, device: torch.device, *, most: int) -> None:
        self.most = most
        self.sums = torch.zeros(3, device=device)  # loss, gradient norm, steps that were finite
        self.bad = torch.zeros(4, dtype=torch.float64, device=device)  # all, in a row now, at most, first of a row

    def add(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Counts a step; nothing is read from the device."""
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        values = torch.stack([loss, norm, torch.ones_like(loss)]).to(self.sums)
        self.sums += torch.where(finite, values, 0.0)
        count, now, most, first = self.bad.unbind()
        first = torch.where(finite | (now > 0) | (most > self.most), first, float(step))
        now = torch.where(finite, 0.0, now + 1)
        self.bad = torch.stack([count + ~finite, now, torch.maximum(most, now), first])

    def read(self) -> tuple[float, float, int]:
        """Means of the loss and of the gradient norm over the finite steps, NaN where there is none, and bad steps."""
        loss, norm, steps = self.sums.tolist()
        skipped = int(self.bad[0].item())
        self.sums.zero_()
        self.bad[0] = 0
        return (loss / steps, norm / steps, skipped) if steps else (math.nan, math.nan, skipped)

    def check(self, trace: Callable[[int], str]) -> None:
        """Ends a training that goes nowhere.

        Args:
            trace: says where the values of a step arise, given the step.

        Raises:
            NumericalError: more bad steps in a row than are let pass; it names the first.
        """
        _, _, most, first = self.bad.tolist()
        if most > self.most:
            raise NumericalError(
                f"loss or gradient is not finite at step {first:.0f} ({trace(int(first))}), nor in the steps after it, "
                f"of which train.bad_steps={self.most} are let pass; lower the learning rate or set "
                "train.gradient_clip. A checkpoint written before it is kept."
            )

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"sums": self.sums.clone(), "bad": self.bad.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes back to a saved state."""
        self.sums.copy_(state["sums"])
        self.bad.copy_(state["bad"])


def origin(objective: nn.Module, batch: Tensor, context: Context, **options: Any) -> str:
    """Where the first value that is not finite arises when a loss and its gradient are computed once more.

    Args:
        objective: gives the loss of a batch.
        batch: raw rows `(rows, *event)`.
        context: of the rows.
        options: handed to the objective.

    Returns:
        The row of the batch, where one can be told, and the innermost module, or the parameter of the first gradient.
    """
    found: list[str] = []
    hooks = [
        module.register_forward_hook(_reporter(name or "the objective", len(batch), found))
        for name, module in objective.named_modules()
    ]
    try:
        with torch.enable_grad():
            objective.zero_grad(set_to_none=True)
            loss = objective(batch, context, **options)
            if loss.requires_grad:
                loss.backward()
    except (RuntimeError, ValueError) as error:
        found.append(str(error).splitlines()[0])
    finally:
        for hook in hooks:
            hook.remove()
    bad = (name for name, p in objective.named_parameters() if p.grad is not None and not p.grad.isfinite().all())
    found += [f"first in the gradient of {name}" for name in bad]
    objective.zero_grad(set_to_none=True)
    return found[0] if found else NOT_FOUND


def _reporter(name: str, rows: int, found: list[str]) -> Callable[..., None]:
    def report(module: nn.Module, _: Any, output: Any) -> None:
        for value in _tensors(output):
            bad = ~value.detach().isfinite()
            if not found and value.is_floating_point() and bad.any():
                of_rows = value.ndim and len(value) == rows
                row = f"row {int(bad.reshape(rows, -1).any(1).nonzero()[0, 0])} of its batch, " if of_rows else ""
                found.append(f"{row}first out of {name}, a {type(module).__name__}")

    return report


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)
