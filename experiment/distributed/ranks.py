"""The processes that compute one result together: who each of them is, what it takes of the work, how they agree."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor

from experiment.device import resolve_device
from experiment.distributed.meeting import fresh_store
from experiment.errors import UserError

T = TypeVar("T")
# The others wait for as long as the first validates; torchrun notices a lost process by itself, and at once.
PATIENCE = timedelta(hours=2)
ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One process among `world` that work together; alone where none is said.

    Every method is called by all of them, in the same order. Alone none communicates.

    Checked by tests/experiment/distributed/test_ranks.py.

    Attributes:
        rank: which of them this one is.
        world: how many there are.
        local: which of those on its machine this one is.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and prints."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Prints a line, in the first process."""
        if self.first:
            print(text)

    def place(self, device: torch.device) -> torch.device:
        """The GPU of this process, or the CPU.

        Raises:
            UserError: there are fewer GPUs than processes, or one of them was asked for.
        """
        if self.world == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise UserError(f"device {device} is one GPU, but each of {self.world} processes needs its own; use cuda.")
        if self.local >= torch.cuda.device_count():
            raise UserError(
                f"process {self.local} of this machine needs a GPU of its own, but torch sees "
                f"{torch.cuda.device_count()}; lower --nproc-per-node, or use --device cpu."
            )
        return torch.device("cuda", self.local)

    def share(self, jobs: Sequence[T]) -> Sequence[T]:
        """What this process takes of jobs, dealt in turn.

        Example:
            >>> Ranks(rank=1, world=3).share(range(8))
            range(1, 8, 3)
        """
        return jobs[self.rank :: self.world]

    def merged(self, mine: Sequence[T]) -> list[T]:
        """The results of all jobs in their order, in every process, from those of each one's share."""
        if self.world == 1:
            return list(mine)
        shares: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(shares, list(mine))
        return [found for found in chain(*zip_longest(*shares, fillvalue=ABSENT)) if found is not ABSENT]

    def agreed(self, make: Callable[[], T]) -> T:
        """What the first process makes, in every process; where it fails, the others leave without a word."""
        if self.world == 1:
            return make()
        told: list[Any] = [False, None]
        try:
            if self.first:
                told = [True, make()]
        finally:
            torch.distributed.broadcast_object_list(told)
        if not told[0]:
            raise SystemExit(1)
        return told[1]

    def decided(self, *, by_first: bool) -> bool:
        """What the first process says, as its clock may differ from the others'."""
        if self.world == 1:
            return by_first
        told = torch.tensor(by_first, dtype=torch.uint8)
        torch.distributed.broadcast(told, 0)
        return bool(told)

    def mean(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The mean over the processes of each tensor, by one reduction."""
        if self.world == 1:
            return list(values)
        flat = torch.cat([value.detach().flatten() for value in values]) / self.world
        torch.distributed.all_reduce(flat)
        parts = flat.split([value.numel() for value in values])
        return [part.view_as(value).to(value.dtype) for part, value in zip(parts, values, strict=True)]

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """The first process of each machine goes through the block before its others, which find its files there."""
        if self.world > 1 and self.local:
            torch.distributed.barrier()
        yield
        if self.world > 1 and not self.local:
            torch.distributed.barrier()


ALONE = Ranks()


def announced() -> Ranks:
    """Which process torchrun says this one is; alone where it started none."""
    rank, world, local = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    return Ranks(rank=rank, world=world, local=local)


@contextmanager
def joined(*, device: str) -> Iterator[Ranks]:
    """The processes that torchrun started, joined for as long as the block lasts; this one alone where it started none.

    They speak over gloo, and between GPUs over NCCL.

    Args:
        device: `cpu`, `cuda` or `auto`, as of `experiment.train`.

    Raises:
        UserError: as of `Ranks.place`, or another process ended in the middle.
    """
    ranks = announced()
    if ranks.world == 1:
        yield ALONE
        return
    place = ranks.place(resolve_device(device))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    try:
        store = fresh_store(ranks.rank, ranks.world, patience=PATIENCE)
        torch.distributed.init_process_group(
            backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=PATIENCE
        )
        torch.distributed.barrier()  # none leaves, with an error, while others are still on their way
        yield ranks
        torch.distributed.barrier()
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise UserError(
            f"process {ranks.rank} of {ranks.world} cannot go on: another one ended, whose message says why."
        ) from error
    torch.distributed.destroy_process_group()


def _is_lost_peer(error: RuntimeError) -> bool:
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
