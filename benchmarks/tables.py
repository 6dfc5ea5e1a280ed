"""Tables of the docs from the JSON files: `--write` makes them, `--check` fails where docs and JSON disagree."""

import json
import re
import sys
from pathlib import Path

from benchmarks.columns import ON_GPU, TABLES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = tuple(
    ROOT / page
    for page in (
        "docs/results.md",
        "docs/speed.md",
        "docs/scale.md",
        "docs/score_matching.md",
        "docs/sampling.md",
        "docs/likelihood.md",
        "docs/boltzmann.md",
        "docs/planar.md",
        "docs/vae.md",
        "docs/gaussianization.md",
        "docs/mintnet.md",
        "docs/residual.md",
        "docs/mutants.md",
        "docs/faults.md",
        "README.md",
    )
)
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end table -->)", re.DOTALL)


def table(name: str, *, folder: Path = RESULTS) -> str:
    """One table with its provenance, as Markdown."""
    path = folder / f"{name}.json"
    content = json.loads(path.read_text())
    columns = (TABLES | ON_GPU)[name]
    lines = [[title for title, _ in columns], ["---"] * len(columns)]
    lines += [[cell(row) for _, cell in columns] for row in content["rows"]]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    source = f"Measured {content['date']} on {content['machine']}, torch {content['versions']['torch']}"
    place = f"docs/results/{path.relative_to(RESULTS)}"
    return f"{text}\n\n{source}; from [`{place}`](/{place}).\n"


def rendered(page: str) -> str:
    """The page with every marked table made anew; one that was never measured stays as it is."""

    def anew(m: re.Match[str]) -> str:
        return m[1] + table(m[2]) + m[3] if (RESULTS / f"{m[2]}.json").exists() else m[0]

    return BLOCK.sub(anew, page)


def main(arguments: list[str]) -> None:
    """Writes or checks every page."""
    for path in PAGES:
        old, new = path.read_text(), rendered(path.read_text())
        if arguments == ["--write"]:
            path.write_text(new)
        elif old != new:
            sys.exit(f"{path.relative_to(ROOT)} does not show its JSON; run python -m benchmarks.tables --write")


if __name__ == "__main__":
    main(sys.argv[1:] or ["--check"])
