"""Where the processes of one start meet, in a store that remembers those of an earlier one."""

import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from experiment.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

PAUSE = 0.01  # seconds between looks at who has come


def fresh_store(rank: int, world: int, *, patience: timedelta) -> "Store":
    """The store that torchrun tells of, under a name that this start alone has.

    torchrun keeps its store over restarts, and in it the addresses of processes that have died. Each process asks under
    a name of its own for that of the start, which the first one tells until all have it.

    Checked by tests/experiment/distributed/test_ranks.py.

    Args:
        rank: of this process.
        world: how many there are.
        patience: how long the others are waited for.

    Raises:
        UserError: some do not come.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", rank, world, timeout=patience))
    store.set_timeout(patience)
    return PrefixStore(_told(store, world, patience) if rank == 0 else _asked(store, rank), store)


def _told(store: "Store", world: int, patience: timedelta) -> str:
    name, missing = uuid.uuid4().hex, set(range(1, world))
    until = time.monotonic() + patience.total_seconds()
    while missing:
        if time.monotonic() > until:
            raise UserError(f"of {world} processes {len(missing)} did not come within {patience}.")
        for rank in [rank for rank in missing if store.check([f"asks/{rank}"])]:
            store.set(f"start/{store.get(f'asks/{rank}').decode()}", name)
        missing = {rank for rank in missing if not store.check([f"{name}/has/{rank}"])}
        time.sleep(PAUSE)
    return name


def _asked(store: "Store", rank: int) -> str:
    mine = uuid.uuid4().hex
    store.set(f"asks/{rank}", mine)
    name = store.get(f"start/{mine}").decode()
    store.set(f"{name}/has/{rank}", "")
    return name
