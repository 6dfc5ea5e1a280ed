"""Several models side by side: a table, a page, figures."""

import sys
from pathlib import Path

from experiment import compare
from experiment.cli import parser, run
from experiment.suite import is_suite, run_suite


def main() -> None:
    """Parses, compares, prints the table."""
    p = parser(
        "Compare models on the same test rows with the same noise, beside a Gaussian, a mixture and a kernel density; "
        "trains and evaluates what is missing.",
        example="compare.py runs/demo/real_nvp configs/digits/vp_sde.toml --out runs/demo",
    )
    p.add_argument(
        "contenders", type=Path, nargs="+", metavar="RUN|CONFIG|SUITE", help="run folders, configs, or a suite"
    )
    p.add_argument("--out", type=Path, default=Path("runs/comparison"), help="where tables, figures and the page go")
    p.add_argument("--draws", type=int, help="dequantization draws a row; default each config's")
    p.add_argument("--samples", type=int, metavar="N", help="draws of each model, 0 for none; default 2000, 100 images")
    p.add_argument("--no-baselines", dest="with_baselines", action="store_false", help="no classical densities")
    p.add_argument("--data-root", type=Path, help="folder of the data files; default where the runs were trained")
    p.add_argument("--quiet", dest="progress_bar", action="store_false", help="no progress bar")
    p.add_argument("--jobs", type=int, default=1, help="trainings of a suite at a time; default 1")
    options = vars(p.parse_args())
    contenders, out, jobs = (options.pop(name) for name in ("contenders", "out", "jobs"))
    if len(contenders) == 1 and is_suite(contenders[0]):
        print(run_suite(contenders[0], out, jobs=jobs, **options))
        return
    found = compare(contenders, out, **options)
    print(found.text())
    print(f"\nwrote {found.folder}: comparison.html, .md, .tex, .csv and .json, and the figures as PNG")


if __name__ == "__main__":
    sys.exit(run(main))
