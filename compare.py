"""Several models side by side: a table, a page, figures."""

import sys
from pathlib import Path

from experiment.cli import parser, run


def main() -> None:
    """Parses, compares, prints the table."""
    p = parser(
        "Compare models on the same test rows with the same noise, beside a Gaussian, a mixture and a kernel density; "
        "trains and evaluates what is missing. A table of your own needs no config: models are chosen for it.",
        example="compare.py measurements.csv\n  compare.py runs/a configs/digits/vp_sde.toml --out runs/comparison",
    )
    p.add_argument(
        "contenders", type=Path, nargs="+", metavar="TABLE|RUN|CONFIG|SUITE", help="a table, runs, configs, or a suite"
    )
    p.add_argument("--out", type=Path, help="folder of the page; default runs/comparison, of a table runs/<its name>")
    p.add_argument("--minutes", type=float, default=3.0, help="about how long a table may take; default 3")
    p.add_argument("--draws", type=int, help="dequantization draws a row; default each config's")
    p.add_argument("--samples", type=int, metavar="N", help="draws of each model, 0 for none; default 2000, 100 images")
    p.add_argument("--no-baselines", dest="with_baselines", action="store_false", help="no classical densities")
    p.add_argument("--data-root", type=Path, help="folder of the data files; default where the runs were trained")
    p.add_argument("--quiet", dest="progress_bar", action="store_false", help="no progress bar")
    p.add_argument("--jobs", type=int, default=1, help="trainings of a suite at a time; default 1")
    options = vars(p.parse_args())
    from experiment import compare  # torch takes seconds, which --help need not
    from experiment.comparison.starter import plan
    from experiment.comparison.suite import is_suite, run_suite
    from experiment.data.table import is_table

    contenders, out, jobs, minutes = (options.pop(name) for name in ("contenders", "out", "jobs", "minutes"))
    if len(contenders) == 1 and is_suite(contenders[0]):
        print(run_suite(contenders[0], out or Path("runs/comparison"), jobs=jobs, **options))
    elif is_table(contenders[0]):
        chosen = plan(contenders[0], out, minutes=minutes)
        print(chosen.text(), flush=True)
        print(chosen.report(chosen.compare(*contenders[1:], **options)))
    else:
        found = compare(contenders, out or Path("runs/comparison"), **options)
        print(found.text())
        print(f"\nwrote {found.folder}: comparison.html, .md, .tex, .csv and .json, and the figures as PNG")


if __name__ == "__main__":
    sys.exit(run(main))
