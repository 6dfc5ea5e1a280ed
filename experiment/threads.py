import os

import torch
from torch import nn

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
    """
    if count == 0:
        small = sum(p.numel() for p in model.parameters()) < SMALL
        count = int(os.environ.get("OMP_NUM_THREADS", "0")) or (1 if small else len(os.sched_getaffinity(0)))
    torch.set_num_threads(count)
    return count
