import os

import torch


def set_threads(count: int = 0) -> int:
    """Sets torch's CPU threads.

    Args:
        count: threads, or 0 for `OMP_NUM_THREADS` where it is set, else the cores that this process may run on.

    Returns:
        The number set.
    """
    if count == 0:
        count = int(os.environ.get("OMP_NUM_THREADS", "0")) or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    return count
