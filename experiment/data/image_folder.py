from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from experiment.data.dataset import Dataset, Layout, lay_out, split_rows
from experiment.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg"}
MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"}  # eight bits or fewer for each colour


def image_folder(
    folder: Path,
    *,
    size: tuple[int, int] | None = None,
    colour: bool = True,
    layout: Layout = "image",
    validation: int | float = 0.1,
    test: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """All PNG and JPEG images of a folder and the folders in it, of 256 levels.

    Args:
        folder: where they lie.
        size: (height, width) to which they are cut, around the middle, and resized; where it is not given, all must be
            of one size.
        colour: three colours; else grey, the luma 0.299 R + 0.587 G + 0.114 B rounded to a level.
        layout: "image" for events (1 or 3, height, width), "flat" for vectors.
        validation: validation images, a float as a fraction of all, an int as a number.
        test: test images, as `validation`.
        seed: seed of the random split of the images in the order of their names.

    Returns:
        The dataset, named after the folder, with `bins` 256.

    Raises:
        UserError: no folder, no images there or too few to split, one that cannot be read, has more than eight bits for
            each colour, or another size than the first.
    """
    images = read_images(folder, size=size, colour=colour)
    generator = torch.Generator().manual_seed(seed)
    splits = split_rows(lay_out(images, layout), validation=validation, test=test, generator=generator)
    return Dataset(folder.name, *splits, bins=256, image_shape=tuple(images.shape[1:]))


def read_images(folder: Path, *, size: tuple[int, int] | None = None, colour: bool = True) -> Tensor:
    """Levels of all images in the order of their names, (rows, height, width) or (rows, 3, height, width), float32.

    Args:
        folder: as of `image_folder`, and so are the others.
        size: (height, width), to which they are cut and resized.
        colour: three colours, or grey.

    Raises:
        UserError: as `image_folder`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the path of one with .png or .jpg images.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise UserError(f"{folder}: the folder holds no .png or .jpg images.")
    pixels = [_read(path, size, colour=colour) for path in paths]
    for path, image in zip(paths, pixels, strict=True):
        if image.shape != pixels[0].shape:
            raise UserError(
                f"{path} has {image.shape[0]}x{image.shape[1]} pixels and {paths[0].name} "
                f"{pixels[0].shape[0]}x{pixels[0].shape[1]}; give size = [height, width] to resize them all."
            )
    levels = torch.from_numpy(np.stack(pixels)).float()
    return levels.permute(0, 3, 1, 2) if colour else levels


def _read(path: Path, size: tuple[int, int] | None, *, colour: bool) -> NDArray[np.uint8]:
    """Levels of an image file, (height, width) or (height, width, 3)."""
    try:
        with Image.open(path) as image:
            if image.mode not in MODES:
                raise UserError(
                    f"{path} holds pixels of mode {image.mode}; images here have 256 levels of each colour."
                )
            levels = image.convert("RGB" if colour else "L")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}).") from error
    return np.array(ImageOps.fit(levels, (size[1], size[0])) if size else levels)
