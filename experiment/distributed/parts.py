"""The parts of an optimiser step: micro-batches dealt to processes, each with noise and buffers of its own."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from experiment.distributed.ranks import Ranks
from experiment.errors import UserError

PART_SEED = 7_000_003


class Parts:
    """Which parts of a step this process computes, and the noise of each.

    What a part draws follows from its index and the step, not from the process that computes it. The first part's
    generator is that of a training in one part.

    Checked by tests/experiment/distributed/test_ranks.py.

    Args:
        count: parts of a step; 1 for one a process.
        seed: of the training.
        device: of the generators.
        ranks: the processes.

    Raises:
        UserError: parts that cannot be dealt evenly.
    """

    def __init__(self, count: int, *, seed: int, device: torch.device, ranks: Ranks) -> None:
        if count % ranks.world:
            raise UserError(
                f"a step of this training has {count} part(s), which {ranks.world} processes cannot share evenly; "
                "start as many as divide train.parts."
            )
        self.count, self._seed, self._ranks = count, seed, ranks
        self.mine = ranks.share(range(count))
        self._generators = {i: torch.Generator(device).manual_seed(self._seed_of(PART_SEED * i)) for i in self.mine}

    def noise(self, part: int, *, step: int) -> torch.Generator:
        """The generator of a part.

        Dropout draws from the global one, which a training in several parts seeds for each.
        """
        if self.count > 1:
            torch.manual_seed(self._seed_of(PART_SEED * (1 + step * self.count + part) + 1))
        return self._generators[part]

    def state(self) -> Tensor:
        """Where the generators of all parts stand, `(parts, bytes)`."""
        return torch.stack(self._ranks.merged([generator.get_state() for generator in self._generators.values()]))

    def load_state(self, state: Tensor) -> None:
        """Puts each generator where it stood."""
        for part, generator in self._generators.items():
            generator.set_state(state[part].cpu().clone())  # of a view torch reads what lies before it

    def _seed_of(self, offset: int) -> int:
        return (self._seed + offset) % 2**63


class MovingBuffers:
    """What training moves beside the parameters, as running statistics.

    Each part of a step starts from where they were before the step, which ends with their mean over the parts; those of
    whole numbers, which count, move alike in all parts.

    Checked by tests/experiment/distributed/test_ranks.py.

    Args:
        buffers: those that move.
        ranks: the processes.
    """

    def __init__(self, buffers: Sequence[Tensor], *, ranks: Ranks) -> None:
        self._buffers, self._ranks = buffers, ranks
        self._averaged = [buffer for buffer in buffers if buffer.is_floating_point()]

    def each(self, parts: Sequence[int]) -> Iterator[int]:
        """The parts of this process in turn, with the buffers set before each and averaged after all."""
        before = [buffer.clone() for buffer in self._buffers]
        means = [torch.zeros_like(buffer) for buffer in self._averaged]
        for part in parts:
            for buffer, value in zip(self._buffers, before, strict=True):
                buffer.copy_(value)
            yield part
            for mean, buffer in zip(means, self._averaged, strict=True):
                mean += buffer / len(parts)
        if means:
            for buffer, mean in zip(self._averaged, self._ranks.mean(means), strict=True):
                buffer.copy_(mean)


def saved_parts(state: dict[str, Any] | None) -> int | None:
    """The parts of a step of the training of which this is the checkpoint; None where there is none, or a damaged one.

    One generator without a dimension for parts is of a version that knew a single part.
    """
    return None if state is None or "generator" not in state else len(torch.atleast_2d(state["generator"]))
