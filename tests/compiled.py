"""What training with `train.compile` does, a line each, in a process without the checks of types that tests have."""

import copy

import torch

from discrete.bijections.coupling import AffineCoupling
from experiment.config import parse_config
from experiment.data import Dataset
from experiment.errors import UserError
from experiment.training.trainer import Trainer

FLOW = {"kind": "real_nvp", "layers": 2, "hidden": [8]}
ROWS = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def trainer(rows: torch.Tensor, *, compiled: bool, bins: int | None = None) -> Trainer:
    """Of a small flow."""
    train = {"steps": 4, "batch_size": 32, "compile": compiled}
    config = parse_config({"data": {"kind": "toy", "name": "moons"}, "model": FLOW, "train": train}, source="test")
    return Trainer(config, Dataset("rows", rows, rows, rows, bins=bins), device=torch.device("cpu"))


def main() -> None:
    """Prints name: value."""
    plain, compiled = (trainer(ROWS, compiled=c) for c in (False, True))
    start = copy.deepcopy(plain.parameters)
    for _ in range(3):
        losses = [t.step()[0].item() for t in (plain, compiled)]
    pairs = list(zip(plain.parameters, compiled.parameters, start, strict=True))
    print("graphs:", torch._dynamo.utils.counters["stats"]["unique_graphs"])
    print("loss:", abs(losses[0] - losses[1]))
    print("parameters:", max((a - b).abs().max().item() for a, b, _ in pairs))
    print("moved:", max((a - s).abs().max().item() for a, _, s in pairs))
    print("validation:", abs(plain.validate() - compiled.validate()))
    stopped, resumed = (trainer(ROWS, compiled=True) for _ in range(2))
    for _ in range(2):
        stopped.step()
    resumed.load_state(copy.deepcopy(stopped.state()))
    resumed.step()
    both = zip(compiled.parameters, resumed.parameters, strict=True)
    print("resumed:", max((a - b).abs().max().item() for a, b in both))
    last = [m for m in compiled.built.model.modules() if isinstance(m, AffineCoupling)][-1]
    with torch.no_grad():
        next(last.conditioner.parameters()).fill_(torch.nan)
    print("trace:", compiled.trace(1))
    noisy = trainer(ROWS.abs().round(), compiled=True, bins=8)
    noisy.step()
    try:
        noisy.step()
    except UserError as error:
        print("noisy:", error)


if __name__ == "__main__":
    main()
