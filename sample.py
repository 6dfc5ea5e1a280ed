"""Draws samples from a trained run."""

import sys
from pathlib import Path

from experiment.cli import parser, run
from experiment.sampling import draw_samples


def main() -> None:
    """Parses, draws, says where the samples lie."""
    p = parser(
        "Draw samples from a trained run: an .npy file, and a picture beside it.",
        example="sample.py runs/digits/real_nvp --count 64",
    )
    p.add_argument("run", type=Path, metavar="RUN", help="run folder made by train.py")
    p.add_argument("--count", type=int, default=64, help="number of samples; default 64")
    p.add_argument("--seed", type=int, default=0, help="seed of the draws; default 0")
    p.add_argument("--out", type=Path, help="file of the samples; default RUN/samples.npy")
    a = p.parse_args()
    written = draw_samples(a.run, count=a.count, seed=a.seed, out=a.out, device=a.device, threads=a.threads)
    print("wrote " + " and ".join(str(path) for path in written))


if __name__ == "__main__":
    sys.exit(run(main))
