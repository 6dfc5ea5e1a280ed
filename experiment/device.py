from collections.abc import Iterator
from contextlib import contextmanager

import torch

from experiment.errors import UserError


def resolve_device(name: str) -> torch.device:
    """`auto` is a GPU where torch sees one, else the CPU; products of float32 are those of float32 from here on.

    Raises:
        UserError: an unknown device, or a GPU that is not there.
    """
    _allow_tf32(allowed=False)
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
    """Whether a GPU may round the factors of products and convolutions to TF32 within the block, and not behind it."""
    _allow_tf32(allowed=allowed)
    try:
        yield
    finally:
        _allow_tf32(allowed=False)


def _allow_tf32(*, allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision("high" if allowed else "highest")
