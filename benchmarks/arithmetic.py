"""Likelihoods whose matrix products and convolutions are those of TF32 or bfloat16, as a GPU's tensor cores take them.

The factors are rounded to the digits that the format has and multiplied and summed in float32, as tensor cores do: the
errors are those of the format on any device, the times are not.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.flow_peers import ratio, seconds
from benchmarks.flows import KINDS, perturb
from benchmarks.peers import prepare
from cflows import ODESolver, ScoreSDE
from core import DensityModel, ExactDivergence

CONVOLUTIONS = ("convolution",)
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "linear", *CONVOLUTIONS)
# Bits of the mantissa, without the one that is not stored, and whose factors have them.
ARITHMETIC = {
    "float32": (23, PRODUCTS),
    "convolutions in TF32": (10, CONVOLUTIONS),
    "TF32": (10, PRODUCTS),
    "bfloat16": (7, PRODUCTS),
}
ROWS, IMAGES, STEPS = 256, 64, 16

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a model: errors of log-likelihoods in each arithmetic, from those of the same weights in float64."""
    load = prepare(1)
    kinds: dict[str, Callable[[], DensityModel]] = {
        **KINDS,
        "VP-SDE": lambda: ScoreSDE(64, divergence=ExactDivergence(), solver=ODESolver(method="rk4", steps=STEPS)),
    }
    rows = [_of_model(name, build()) for name, build in kinds.items()]
    settings = {"rows": ROWS, "images": IMAGES, "ode_steps": STEPS, "load_average_at_start": load}
    return {**settings, "bfloat16_network_slower": _slower(torch.bfloat16)}, rows


def rounded(x: Tensor, bits: int) -> Tensor:
    """float32 to the nearest of so many bits of mantissa, to the even one of two."""
    drop = 23 - bits
    if not drop:
        return x
    i = x.view(torch.int32)
    i = i + ((1 << (drop - 1)) - 1) + ((i >> drop) & 1)
    return (i & ~((1 << drop) - 1)).view(torch.float32)


class Rounded(TorchDispatchMode):
    """Products of float32 with factors of so many bits of mantissa.

    Checked by tests/test_arithmetic.py.
    """

    def __init__(self, bits: int, operations: tuple[str, ...] = PRODUCTS) -> None:
        super().__init__()
        self.bits, self.operations = bits, operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.operations:
            first = 1 if name in ("addmm", "baddbmm", "addmv") else 0  # what is added to the product is no factor
            factors = [
                rounded(a.contiguous(), self.bits) if isinstance(a, Tensor) and a.dtype == torch.float32 else a
                for a in args[first : first + 2]
            ]
            args = (*args[:first], *factors, *args[first + 2 :])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _of_model(name: str, model: DensityModel) -> Row:
    x = torch.randn(IMAGES if len(model.event_shape) == 3 else ROWS, *model.event_shape)
    perturb(model, x)
    exact = deepcopy(model).double().log_prob(x.double())
    errors = {}
    for arithmetic, (bits, operations) in ARITHMETIC.items():
        with Rounded(bits, operations):
            error = model.log_prob(x).double() - exact
        errors[arithmetic] = {"mean": error.mean().item(), "largest": error.abs().max().item()}
    return {"model": name, "dimensions": model.event_shape.numel(), "errors_nats": errors}


def _slower(dtype: torch.dtype) -> float:
    """How many times as long a network of 32, 256, 256 and 64 units takes here under autocast to a dtype."""
    network, x = KINDS["RealNVP"]().bijection.bijections[0].conditioner, torch.randn(ROWS, 32)

    @torch.no_grad()
    def run(*, enabled: bool) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=enabled):
            return network(x)

    taken = seconds({"half": lambda: run(enabled=True), "full": lambda: run(enabled=False)}, budget=1.0)
    return ratio(taken["half"], taken["full"])[0]
