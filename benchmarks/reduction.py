"""A training step of one process beside the reduction of its gradient by gloo, and when the two take equally long."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.peers import prepare
from benchmarks.record import DATA
from experiment.building.builder import load_data
from experiment.config import load_config
from experiment.distributed.ranks import Ranks, joined
from experiment.training.trainer import Trainer

CONFIGS = ("digits/glow", "digits/vp_sde", "mnist/glow_small", "mnist/made", "mnist/maf")
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 30_000_000)
SECONDS, LEAST = 3.0, 5

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a config; the settings hold the seconds of reductions by size, and the line through them."""
    load = prepare(1)
    steps = {name: _step(name) for name in CONFIGS}
    reductions = _reductions([*SIZES, *(count for count, _ in steps.values())])
    latency, a_parameter = line({size: reductions[size] for size in SIZES})
    rows = [
        _row(name, count, seconds, reductions[count], latency, a_parameter) for name, (count, seconds) in steps.items()
    ]
    return {
        "threads": 1,
        "load_average_at_start": load,
        "reduction_ms": {str(size): 1e3 * reductions[size] for size in SIZES},
        "latency_ms": 1e3 * latency,
        "ns_a_parameter": 1e9 * a_parameter,
    }, rows


def line(seconds: dict[int, float]) -> tuple[float, float]:
    """a and b of a + b n: what the smallest reduction takes, and what each parameter of the largest adds.

    Example:
        >>> line({10: 1.0, 100: 2.0, 1010: 11.0})
        (1.0, 0.01)
    """
    small, large = min(seconds), max(seconds)
    return seconds[small], (seconds[large] - seconds[small]) / (large - small)


def reduction(processes: int, parameters: int, latency: float, a_parameter: float) -> float:
    """(W - 1) a + 2 (W - 1)/W b n seconds of a ring: 2 (W - 1) messages of n/W values, a that of two."""
    return (processes - 1) * latency + 2 * (processes - 1) / processes * a_parameter * parameters


def even(step: float, parameters: int, latency: float, a_parameter: float) -> int:
    """The most processes whose reduction takes no longer than a step, 1 where even that of two does."""
    low, high = 1, 2
    while reduction(high, parameters, latency, a_parameter) <= step:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        fits = reduction(middle, parameters, latency, a_parameter) <= step
        low, high = (middle, high) if fits else (low, middle)
    return low


def _row(name: str, count: int, step: float, of_two: float, latency: float, a_parameter: float) -> Row:
    return {
        "config": name,
        "parameters": count,
        "step_ms": 1e3 * step,
        "reduction_ms": 1e3 * of_two,
        "share": of_two / step,
        "even_processes": even(step, count, latency, a_parameter),
        "even_parameters": max(0, round((step - latency) / a_parameter)),  # of two processes
    }


def _step(name: str) -> tuple[int, float]:
    """Parameters of a config and the seconds of a step of one process."""
    config = load_config(f"configs/{name}.toml")
    trainer = Trainer(config, load_data(config.data, DATA), device=torch.device("cpu"))
    return sum(p.numel() for p in trainer.parameters), _seconds(trainer.step)


def _seconds(run: Callable[[], object]) -> float:
    run()
    taken, until = list[float](), time.perf_counter() + SECONDS
    while len(taken) < LEAST or time.perf_counter() < until:
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return median(taken)


def _reductions(sizes: list[int]) -> dict[int, float]:
    """Median seconds of the mean of so many float32 over two processes of this machine."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = context.SimpleQueue()
    begun = [context.Process(target=_reduce, args=(rank, port, sizes, found)) for rank in range(2)]
    for process in begun:
        process.start()
    for process in begun:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a process that reduces ended with status {process.exitcode}.")
    return found.get()


def _reduce(rank: int, port: int, sizes: list[int], found: Any) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    torch.set_num_threads(1)
    with joined(device="cpu") as ranks:
        seconds = {size: _reduced(ranks, torch.zeros(size)) for size in sizes}
    if rank == 0:
        found.put(seconds)


def _reduced(ranks: Ranks, gradient: torch.Tensor) -> float:
    """Both begin together and make equally many."""
    taken: list[float] = []
    torch.distributed.all_reduce(gradient)
    until = time.perf_counter() + SECONDS
    while ranks.decided(by_first=len(taken) < LEAST or time.perf_counter() < until):
        begun = time.perf_counter()
        torch.distributed.all_reduce(gradient)
        taken.append(time.perf_counter() - begun)
    return median(taken)
