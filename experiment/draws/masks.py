"""Parts of an event that are drawn anew."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiment.errors import UserError

PARTS = ("left", "right", "top", "bottom", "box")


def hidden_part(part: str, event_shape: tuple[int, ...], image_shape: tuple[int, ...] | None) -> Tensor:
    """Where an event is drawn anew, `(*event)` of bool.

    Args:
        part: one half of an image, `left`, `right`, `top` or `bottom`, its middle, `box`, or a .npy file that is true,
            or 1, there, in the shape of the event or of the image, `(height, width)` for all colours.
        event_shape: shape of a row.
        image_shape: of a row as an image, None where it is none.

    Raises:
        UserError: no such part or file, a mask of another shape or of other values, or one that leaves nothing to do.

    Example:
        >>> hidden_part("left", (4,), (2, 2)).tolist()
        [True, False, True, False]
    """
    if part in PARTS:
        if image_shape is None:
            raise UserError(f"--inpaint {part} needs images, but rows here are no images; give a mask as a .npy file.")
        mask = _named(part, *image_shape[-2:])
    else:
        mask = _read(part)
    hidden = _as_event(mask, event_shape, image_shape)
    if hidden is None:
        wanted = " or ".join(str(shape) for shape in dict.fromkeys((event_shape, image_shape)) if shape is not None)
        raise UserError(f"--inpaint {part}: the mask has shape {tuple(mask.shape)}, but must have {wanted}.")
    if hidden.all() or not hidden.any():
        raise UserError(
            f"--inpaint {part}: the mask must be true somewhere and false somewhere, but is the same all over."
        )
    return hidden


def _named(part: str, height: int, width: int) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    middle = slice(height // 4, height - height // 4), slice(width // 4, width - width // 4)
    halves = {
        "left": (slice(None), slice(width // 2)),
        "right": (slice(None), slice(width // 2, None)),
        "top": (slice(height // 2), slice(None)),
        "bottom": (slice(height // 2, None), slice(None)),
        "box": middle,
    }
    mask[halves[part]] = True
    return mask


def _read(part: str) -> Tensor:
    path = Path(part)
    if path.suffix != ".npy":
        raise UserError(f"--inpaint takes {', '.join(PARTS)} or a mask as a .npy file, but was given {part!r}.")
    if not path.is_file():
        raise UserError(f"--inpaint {part}: there is no such file.")
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise UserError(
            f"--inpaint {part}: this is not an array of plain numbers; write it with numpy.save."
        ) from error
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise UserError(f"--inpaint {part}: a mask holds true and false, or 1 and 0, and nothing else.")
    return torch.from_numpy(array.astype(bool))


def _as_event(mask: Tensor, event_shape: tuple[int, ...], image_shape: tuple[int, ...] | None) -> Tensor | None:
    """The mask in the shape of an event, None where it fits neither event nor image."""
    shape = tuple(mask.shape)
    if image_shape is not None and shape == image_shape[-2:]:
        return mask.expand(image_shape).reshape(event_shape)
    return mask.reshape(event_shape) if shape in (event_shape, image_shape) else None
