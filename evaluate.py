"""Likelihood of trained runs on held-out data, with its error budget."""

import sys
from pathlib import Path

from experiment import evaluate
from experiment.cli import parser, run


def main() -> None:
    """Parses, evaluates each run, prints its likelihood."""
    p = parser(
        "Measure the likelihood of trained runs on their test split, with its error budget.",
        example="evaluate.py runs/digits/real_nvp --draws 20",
    )
    p.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder made by train.py")
    p.add_argument("--draws", type=int, help="dequantization draws a row; default the config's")
    p.add_argument("--data-root", type=Path, help="folder of the data files; default where the run was trained")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    a = p.parse_args()
    options = {"draws": a.draws, "data_root": a.data_root, "device": a.device, "threads": a.threads}
    for folder in a.runs:
        print(evaluate(folder, progress_bar=not a.quiet, **options).text())


if __name__ == "__main__":
    sys.exit(run(main))
