"""A copy of the objective in every process, whose gradients become their mean."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from experiment.distributed.ranks import Ranks


def replicated(objective: nn.Module, reached: frozenset[str], ranks: Ranks, device: torch.device) -> nn.Module:
    """The objective, which several processes train together: the backward pass averages the gradients over them.

    All start from the first one's parameters and buffers. Buffers that move are `MovingBuffers`' care.

    References:
        Li et al., "PyTorch distributed: experiences on accelerating data parallel training", 2020.

    Checked by tests/experiment/distributed/test_ranks.py.

    Args:
        objective: on the device, with parameters to train.
        reached: those that its gradient reaches; the others, as the constant of an energy, are not waited for.
        ranks: the processes.
        device: of this one.
    """
    if ranks.world == 1:
        return objective
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.13
    left_alone: dict[str, Any] = {name: False}
    ids = [device] if device.type == "cuda" else None
    missed = any(p.requires_grad and name not in reached for name, p in objective.named_parameters())
    return DistributedDataParallel(objective, device_ids=ids, find_unused_parameters=missed, **left_alone)


def reduction(objective: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """Where a loss and its gradient are computed: averaged over the processes now, or kept to be added to."""
    if now or not isinstance(objective, DistributedDataParallel):
        return nullcontext()
    return objective.no_sync()
