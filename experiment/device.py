from collections.abc import Iterator
from contextlib import contextmanager

import torch

from experiment.errors import UserError


def resolve_device(name: str) -> torch.device:
    """`auto` is a GPU where torch sees one, else the CPU; products of float32 are those of float32 from here on.

    Raises:
        UserError: an unknown device, or a GPU that is not there.
    """
    _set_tf32(convolutions=False, products="highest")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device must be cpu, cuda or auto, but is {name!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device must be cpu, cuda or auto, but is {name!r}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name} was asked for, but torch sees no GPU; use cpu or auto.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name} was asked for, but torch sees {torch.cuda.device_count()} GPU(s), from cuda:0.")
    return device


@contextmanager
def products_in_tf32(*, allowed: bool) -> Iterator[None]:
    """Where allowed, a GPU may round the factors of products and convolutions to TF32 within the block."""
    if not allowed:
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    _set_tf32(convolutions=True, products="high")
    try:
        yield
    finally:
        _set_tf32(convolutions=before[0], products=before[1])


def _set_tf32(*, convolutions: bool, products: str) -> None:
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)
