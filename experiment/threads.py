import os

import torch
from torch import nn

from experiment.errors import UserError

# Below this size a second thread costs more than it brings: 10.8 against 16 ms a step for the digits' score model.
SMALL = 1_000_000


def set_threads(count: int, model: nn.Module) -> int:
    """Sets torch's CPU threads for a model.

    Args:
        count: threads, or 0 to choose: `OMP_NUM_THREADS` where it is set, else one for a model of less than a million
            values and the cores that this process may run on for a larger one.
        model: what will run.

    Returns:
        The number set.

    Raises:
        UserError: a negative count.
    """
    if count < 0:
        raise UserError(f"--threads must be 0 or more, but is {count}.")
    if count == 0:
        asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
        small = sum(p.numel() for p in model.parameters()) < SMALL
        count = int(asked) if asked.isdigit() and asked != "0" else 1 if small else available_cores()
    torch.set_num_threads(count)
    return count


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
