"""Batches as the trainer takes them beside those of torch's DataLoader, and their share of a training step."""

from collections.abc import Iterator
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from benchmarks.flow_peers import Run, ratio, seconds
from benchmarks.peers import prepare
from benchmarks.record import DATA
from experiment import load_config
from experiment.building.builder import load_data
from experiment.training.trainer import Trainer

CONFIGS = ("configs/digits/real_nvp.toml", "configs/mnist/real_nvp.toml", "configs/bsds300_patches/real_nvp.toml")
BATCHES, STEPS, BUDGET = 50, 5, 10.0

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a data set."""
    prepare(1)
    rows = [_row(config) for config in CONFIGS]
    return {"batches": BATCHES, "threads": 1, "workers": 0}, rows


def _row(path: str) -> Row:
    config = load_config(path)
    dataset = load_data(config.data, DATA)
    trainer = Trainer(config, dataset, device=torch.device("cpu"))
    size = config.train.batch_size
    data = TensorDataset(dataset.train)
    whole = BatchSampler(RandomSampler(data), size, drop_last=True)
    loaders = {
        "DataLoader": DataLoader(data, batch_size=size, shuffle=True, drop_last=True),
        "whole batches": DataLoader(data, sampler=whole, batch_size=None),
    }

    def ours() -> Tensor:
        sums = []
        for _ in range(BATCHES):
            sums.append(trainer._batch(trainer.progress.step)[0].sum())
            trainer.progress.step += 1
        return torch.stack(sums)

    def theirs(loader: DataLoader[tuple[Tensor, ...]]) -> Run:
        batches = _for_ever(loader)
        return lambda: torch.stack([x.sum() for x in islice(batches, BATCHES)])

    def steps() -> Tensor:
        return torch.stack([trainer.step()[0] for _ in range(STEPS)])

    peers = {name: theirs(loader) for name, loader in loaders.items()}
    taken = seconds({"ours": ours, **peers, "steps": steps}, budget=BUDGET)
    fastest = min(peers, key=lambda name: median(taken[name]))
    faster, quartiles = ratio(taken[fastest], taken["ours"])
    counts = dict.fromkeys(("ours", *peers), BATCHES) | {"steps": STEPS}
    return {
        "data": config.data.kind,
        "rows": len(dataset.train),
        "batch": size,
        "ms": {name: 1e3 * median(times) / counts[name] for name, times in taken.items()},
        "faster_than_peer": faster,
        "faster_than_peer_quartiles": quartiles,
    }


def _for_ever(loader: DataLoader[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    while True:
        yield from (x for (x,) in loader)
