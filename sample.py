"""Draws samples from a trained run."""

import sys
from pathlib import Path

from experiment.cli import parser, run
from experiment.sampling import draw_interpolations, draw_samples


def main() -> None:
    """Parses, draws, says where the samples lie."""
    p = parser(
        "Draw samples, or ways between test rows through the latent space: an .npy file, and a picture beside it.",
        example="sample.py runs/digits/real_nvp --count 64",
    )
    p.add_argument("run", type=Path, metavar="RUN", help="run folder made by train.py")
    p.add_argument("--count", type=int, default=64, help="number of samples or of ways; default 64")
    p.add_argument("--seed", type=int, default=0, help="seed of the draws; default 0")
    p.add_argument("--temperature", type=float, default=1.0, help="factor on a flow's latent draws; default 1")
    p.add_argument("--interpolate", type=int, metavar="STEPS", help="ways of so many steps between pairs of test rows")
    p.add_argument("--data-root", type=Path, help="folder of the data files; default where the run was trained")
    p.add_argument("--out", type=Path, help="file of the samples; default RUN/samples.npy or RUN/interpolations.npy")
    a = p.parse_args()
    options = {"count": a.count, "seed": a.seed, "out": a.out, "device": a.device, "threads": a.threads}
    if a.interpolate is None:
        written = draw_samples(a.run, temperature=a.temperature, **options)
    else:
        written = draw_interpolations(a.run, steps=a.interpolate, data_root=a.data_root, **options)
    print("wrote " + " and ".join(str(path) for path in written))


if __name__ == "__main__":
    sys.exit(run(main))
