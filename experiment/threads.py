import contextlib
import ctypes
import os
from collections.abc import Iterator

import torch
from torch import nn

from experiment.errors import UserError

# Below this size a second thread costs more than it brings: 10.8 against 16 ms a step for the digits' score model. With
# convolutions it pays: 88 against 128 ms for a small Glow on MNIST.
SMALL = 1_000_000


def set_threads(count: int, model: nn.Module) -> int:
    """Sets torch's CPU threads for a model, and keeps the memory that it frees.

    Args:
        count: threads, or 0 to choose: `OMP_NUM_THREADS` where it is set, else one for a model of less than a million
            values without convolutions and the cores that this process may run on for any other.
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
        convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
        small = sum(p.numel() for p in model.parameters()) < SMALL and not convolves
        count = int(asked) if asked.isdigit() and asked != "0" else 1 if small else available_cores()
    torch.set_num_threads(count)
    keep_freed_memory()
    return count


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for as long as the block lasts: for draws in many steps, each too small to share."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def keep_freed_memory() -> None:
    """Tells glibc to reuse what is freed: given back at every step, it costs a convolutional flow 8% in page faults."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**25)


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
