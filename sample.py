"""Draws samples from a trained run."""

import sys
from collections.abc import Callable

from experiment.cli import given_options, run, sampling_parser
from experiment.drawing import Written
from experiment.inpainting import draw_inpaintings
from experiment.sampling import draw_interpolations, draw_samples


def main() -> None:
    """Parses, draws, says where the samples lie."""
    asked = sampling_parser().parse_args()
    draw: Callable[..., Written] = draw_samples
    if asked.part is not None:
        draw = draw_inpaintings
    elif asked.steps is not None:
        draw = draw_interpolations
    written = draw(**given_options(asked, draw))
    print("wrote " + " and ".join(str(path) for path in written))


if __name__ == "__main__":
    sys.exit(run(main))
