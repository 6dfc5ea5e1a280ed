"""Several processes that work together, as torchrun starts them, without its seconds; and what they do in tests."""

import math
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from contextlib import contextmanager

import torch

from experiment import cli, evaluate, load_config, train
from experiment.config import parse_config
from experiment.data import Dataset
from experiment.distributed import first_look, sharding
from experiment.distributed.ranks import ALONE, joined
from experiment.draws.sampling import draw_samples
from experiment.errors import NumericalError
from experiment.training.checkpoint import load_checkpoint
from experiment.training.trainer import Trainer

SAMPLER = {"kind": "euler_maruyama", "steps": 5}
SCORE = {"kind": "score_sde", "hidden": [8, 8], "dropout": 0.3}
PROBED = {"solver": {"method": "euler", "steps": 4}, "divergence": {"kind": "hutchinson"}, "sampler": SAMPLER}
FLOW = {"kind": "real_nvp", "layers": 2, "hidden": [8], "dropout": 0.3}
STEPS, ROWS = 5, 70
OTHERS = ("progress", "config_sha256_16", "torch_rng")  # of a state: time, train.parts, and what parts seed anew
MODELS = {
    "actnorm": {"kind": "real_nvp", "layers": 4, "hidden": [16], "dropout": 0.3},
    "batchnorm": {"kind": "real_nvp", "layers": 4, "hidden": [16], "normalization": "batch"},
    "spectral norm": {"kind": "residual", "layers": 2, "hidden": [16]},
    "masks in turn": {"kind": "made", "hidden": [16], "masks": 3, "order": "random"},
    "denoising": {"kind": "score_sde", "hidden": [16, 16], "dropout": 0.3},
    "learned times": {"kind": "score_sde", "hidden": [16, 16], "weighting": "learned"},
    "flow matching": {"kind": "flow_matching", "hidden": [16, 16]},
    "neural ODE": {"kind": "ffjord", "hidden": [8, 8]},
    "missed constant": {"kind": "energy", "hidden": [8, 8]},
    "scalars": {"kind": "planar", "layers": 2},
}


def launch(target, *args, world=2, seconds=120, store=None):
    """Exit statuses of processes that each call `target(ranks, *args)`, and what they said; all have ended.

    They meet at a store, a server of the test as that of torchrun, or one that the first of them opens.
    """
    context = multiprocessing.get_context("forkserver")  # which imports torch once for all
    context.set_forkserver_preload(
        ["experiment.training.engine", "experiment.likelihood.evaluation", "experiment.draws.sampling", "torch._dynamo"]
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = [{"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(world)} for r in range(world)]
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    if store is not None:
        there |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with tempfile.NamedTemporaryFile("r") as said:
        begun = [context.Process(target=_process, args=(place | there, said.name, target, args)) for place in places]
        for process in begun:
            process.start()
        until = time.monotonic() + seconds
        for process in begun:
            process.join(max(0.0, until - time.monotonic()))
        late = [process for process in begun if process.is_alive()]
        for process in late:
            process.kill()
        text = said.read()
        print(text)  # shown where a test fails
        return "late" if late else [process.exitcode for process in begun], text


def _process(environment, said, target, args):
    os.environ.update(environment)
    sys.stderr = open(said, "a", buffering=1)  # noqa: SIM115
    torch.set_num_threads(1)

    def main():
        with joined(device="cpu") as ranks:
            target(ranks, *args)

    sys.exit(cli.run(main))


def dataset():
    """Rows of which each is another; 70 make 4 batches of 16 an epoch, so that an epoch ends within a step of 3."""
    noise = torch.Generator().manual_seed(5)
    rows = torch.randn(ROWS + 20, 3, generator=noise, dtype=torch.float64) @ torch.tensor(
        [[1.0, 0.5, 0.0], [0.0, 2.0, 0.3], [0.0, 0.0, 0.5]], dtype=torch.float64
    )
    return Dataset("rows", rows[:ROWS], rows[ROWS:-10], rows[-10:])


def trainer(model, *, parts, ranks=ALONE, **more):
    train = {"steps": STEPS, "batch_size": 16, "ema_decay": 0.9, "gradient_clip": 1.0, "parts": parts}
    table = {"data": {"kind": "toy", "name": "moons"}, "model": MODELS[model], "train": train}
    return Trainer(parse_config(table, source="test"), dataset(), device=torch.device("cpu"), ranks=ranks, **more)


def trained(model, *, parts, ranks=ALONE, **more):
    """The state after the last step, with what the steps and the validation found, in float64."""
    with double():
        made = trainer(model, parts=parts, ranks=ranks, **more)
        found = torch.stack([torch.stack([part.detach() for part in made.step()]) for _ in range(STEPS)])
        state = {name: value for name, value in made.state().items() if name not in OTHERS}
        names = dict(made.ema.built.model.named_parameters())
        averages = {name: value.clone() for name, value in state["ema"].items() if name in names}
        return {**state, "ema": averages, "found": found, "value": made.validate()}


@contextmanager
def double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def train_all(ranks, out, models, parts, shard=False):
    """Every model in turn; each process says what it holds."""
    first_look.SMALLEST_UNIT = 1  # of the process alone
    for model in models:
        torch.save(trained(model, parts=parts, ranks=ranks, shard=shard), out / f"{model}.{ranks.rank}.pt")


def toy(model, **settings):
    data = {"kind": "toy", "name": "moons", "train_rows": 200, "validation_rows": 50, "test_rows": 2500}
    train = {"steps": 10, "batch_size": 32, "validate_every": 5, "log_every": 5, "ema_decay": 0.9, **settings}
    return parse_config({"data": data, "model": model, "train": train}, source="test")


def train_run(ranks, config, folder, shard=False):
    train(config, folder, threads=1, resume=True, ranks=ranks, shard=shard)


def stop_at_five(ranks, config, folder, shard=False):
    """Trains until the checkpoint of the fifth step is written."""
    from experiment.training import engine

    engine.CHECKPOINT_SECONDS = 0.0
    step = Trainer.step

    def stopping(self):
        if self.progress.step == 5:
            raise SystemExit(0)
        return step(self)

    Trainer.step = stopping
    train_run(ranks, config, folder, shard)


def measure_run(ranks, folder):
    evaluate(folder, draws=2, threads=1, ranks=ranks)


def sample_run(ranks, folder, out, options):
    draw_samples(folder, out=out, threads=1, ranks=ranks, **options)


def fail(ranks, who):
    """One process makes a mistake while the others wait for it."""
    if ranks.rank == who:
        raise NumericalError(f"process {who} has found NaN.")
    ranks.mean([torch.zeros(3)])


def fail_first(ranks):
    def make():
        raise NumericalError("the first has found NaN.")

    ranks.agreed(make)


def train_file(ranks, config, folder):
    train(load_config(config), folder, threads=1, ranks=ranks)


def held(ranks, model, out):
    """How many numbers a process holds of parameters, averages and moments after a step, and how many there are."""
    with double():
        made = trainer(model, parts=1, ranks=ranks, shard=True)
        made.step()
    moments = [value for of in made.optimizer.state.values() for value in of.values() if value.ndim]
    tensors = [*made.parameters, *made.ema.built.model.parameters(), *moments]
    counts = [sum(value.to_local().numel() for value in tensors), sum(value.numel() for value in tensors)]
    torch.save(counts, out / f"held.{ranks.rank}.pt")


def difference(a, b):
    """Largest difference of any number in two states; infinite where anything else differs."""
    if isinstance(a, torch.Tensor) and a.is_floating_point():
        return (a - b).abs().max().item() if a.numel() else 0.0
    if isinstance(a, torch.Tensor):
        return 0.0 if torch.equal(a, b) else math.inf
    if isinstance(a, dict):
        return max((difference(a[key], b[key]) for key in a), default=0.0) if a.keys() == b.keys() else math.inf
    if isinstance(a, list | tuple):
        return max((difference(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    return abs(a - b) if isinstance(a, float) else 0.0 if a == b else math.inf


def weights(run):
    return [load_checkpoint(run / name)[part] for name, part in (("last.ckpt", "model"), ("best.ckpt", "model"))]


def first_alone(ranks, folder):
    """The second of a machine comes when the first one is through, however long that takes."""
    with ranks.one_first():
        if not ranks.local:
            time.sleep(0.3)
            (folder / "data").touch()
        (folder / f"{ranks.rank} {(folder / 'data').exists()}").touch()


def decide(ranks, folder):
    """The clocks of the others say the opposite."""
    found = [ranks.decided(by_first=ranks.first), ranks.decided(by_first=not ranks.first)]
    (folder / f"{ranks.rank} {found}").touch()


def share_channels_last(ranks, folder):
    net = torch.nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
    weight = net.weight.detach().clone()
    sharding.share_out(net, [], device=torch.device("cpu"))
    assert torch.equal(sharding.whole(net.state_dict())["weight"], weight)
