import copy

import torch
from torch import Tensor

from experiment.building.builder import Built


class EMA:
    """θ̄ ← θ̄ + (1 - d)(θ - θ̄) with d = min(decay, (1 + n)/(10 + n)): a running mean that forgets its start.

    The first update copies.

    Args:
        built: model and objective whose parameters are followed.
        decay: 0 for a plain copy.
    """

    def __init__(self, built: Built, *, decay: float) -> None:
        self.built = copy.deepcopy(built)
        self.built.model.requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, built: Built) -> None:
        """Follows the parameters after a step; buffers are copied."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        averaged: list[Tensor] = list(self.built.model.parameters())
        current: list[Tensor] = list(built.model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for mine, theirs in zip(self.built.model.buffers(), built.model.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1
