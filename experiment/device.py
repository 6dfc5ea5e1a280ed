import torch

from experiment.errors import UserError


def resolve_device(name: str) -> torch.device:
    """`auto` is a GPU where torch sees one, else the CPU.

    Raises:
        UserError: an unknown device, or a GPU that is not there.
    """
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
