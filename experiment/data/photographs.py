import math

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from experiment.data.dataset import Dataset, Layout, lay_out
from experiment.errors import UserError

TILES = (6, 10)  # of each photograph, down and across


def photographs(
    *,
    side: int = 8,
    colour: bool = False,
    layout: Layout = "flat",
    train_rows: int = 50_000,
    validation_rows: int = 5_000,
    test_rows: int = 10_000,
    seed: int = 0,
) -> Dataset:
    """Patches of the two photographs that come with scikit-learn, of 256 levels: natural images without a download.

    Each photograph is cut into 60 tiles of 71x64 pixels. A tenth of all 120, at random, is for the test, a tenth for
    validation; a patch lies within one tile, so that no pixel serves two splits. No place is drawn twice.

    A stand-in that tests and first trainings need, not a benchmark: there are only two scenes, and patches overlap, so
    that error bars over rows are too small.

    Args:
        side: height and width of a patch, up to 64 pixels.
        colour: three colours instead of grey, the luma 0.299 R + 0.587 G + 0.114 B rounded to a level.
        layout: "flat" for vectors, "image" for (1 or 3, side, side).
        train_rows: number of training patches.
        validation_rows: number of validation patches.
        test_rows: number of test patches.
        seed: fixes the tiles of each split and the patches.

    Returns:
        The dataset, with `bins` 256.

    Raises:
        UserError: patches larger than a tile, or more of them than there are places.

    Example:
        >>> photographs(train_rows=10, validation_rows=10, test_rows=10, layout="image").event_shape
        torch.Size([1, 8, 8])
    """
    from sklearn.datasets import load_sample_images  # as long to import as torch

    generator = torch.Generator().manual_seed(seed)
    tiles = torch.cat([_tiles(picture, colour=colour) for picture in load_sample_images().images])
    if not 1 <= side <= min(tiles.shape[2:]):
        raise UserError(f"photographs: side={side}, but a tile has {tiles.shape[2]}x{tiles.shape[3]} pixels.")
    tenth = len(tiles) // 10
    parts = tiles[torch.randperm(len(tiles), generator=generator)].split([len(tiles) - 2 * tenth, tenth, tenth])
    rows = (train_rows, validation_rows, test_rows)
    train, validation, test = (
        lay_out(_draw(part, side, count, generator), layout) for part, count in zip(parts, rows, strict=True)
    )
    shape = (3, side, side) if colour else (side, side)
    return Dataset("photographs", train, validation, test, bins=256, image_shape=shape)


def _tiles(picture: NDArray[np.uint8], *, colour: bool) -> Tensor:
    """Tiles of a photograph, (tiles, 1 or 3, height, width) uint8; what is left over at the end is not used."""
    down, across = TILES
    height, width = picture.shape[0] // down, picture.shape[1] // across
    image = Image.fromarray(picture[: down * height, : across * width])
    pixels = torch.from_numpy(np.atleast_3d(np.array(image if colour else image.convert("L"))))
    return rearrange(pixels, "(d h) (a w) c -> (d a) c h w", d=down, a=across)


def _draw(tiles: Tensor, side: int, rows: int, generator: torch.Generator) -> Tensor:
    """Patches at different places, in random order, (rows, 1 or 3, side, side) float32."""
    windows = tiles.unfold(2, side, 1).unfold(3, side, 1)
    shape = (windows.shape[0], windows.shape[2], windows.shape[3])
    places = math.prod(shape)
    if rows > places:
        raise UserError(f"photographs: {rows} rows of a split, but its tiles have {places} places of side {side}.")
    tile, top, left = torch.unravel_index(torch.randperm(places, generator=generator)[:rows], shape)
    return windows[tile, :, top, left].float()
