"""Several runs side by side: tables and figures."""

import sys
from pathlib import Path

from experiment import compare
from experiment.cli import parser, run


def main() -> None:
    """Parses, compares, prints the table."""
    p = parser(
        "Compare trained runs on the same test rows with the same noise; evaluates what is not evaluated yet.",
        example="compare.py runs/demo/real_nvp runs/demo/vp_sde --out runs/demo",
    )
    p.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder made by train.py")
    p.add_argument("--out", type=Path, default=Path("runs/comparison"), help="where tables and figures go")
    p.add_argument("--draws", type=int, help="dequantization draws a row; default each config's")
    p.add_argument("--data-root", type=Path, help="folder of the data files; default where the runs were trained")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    a = p.parse_args()
    options = {"draws": a.draws, "data_root": a.data_root, "device": a.device, "threads": a.threads}
    found = compare(a.runs, a.out, progress_bar=not a.quiet, **options)
    print(found.text())
    print(f"\nwrote {a.out}: comparison.md, .csv and .json, samples.png, likelihoods.png")


if __name__ == "__main__":
    sys.exit(run(main))
