"""Draws samples from a trained run."""

import sys

from experiment.cli import given_options, run, sampling_parser


def main() -> None:
    """Parses, draws, says where the samples lie."""
    asked = sampling_parser().parse_args()
    from experiment.distributed.ranks import joined
    from experiment.draws.inpainting import draw_inpaintings  # torch takes seconds, which --help need not
    from experiment.draws.sampling import draw_interpolations, draw_samples

    draw = draw_inpaintings if asked.part is not None else draw_samples if asked.steps is None else draw_interpolations
    with joined(device=asked.device) as ranks:
        written = draw(**given_options(asked, draw, ranks))
        ranks.say("wrote " + " and ".join(str(path) for path in written))


if __name__ == "__main__":
    sys.exit(run(main))
