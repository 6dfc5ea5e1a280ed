"""The table of a comparison, as text, Markdown, LaTeX and CSV."""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from experiment.likelihood.summary import known

if TYPE_CHECKING:
    from experiment.comparison.compare import Comparison, Entry
    from experiment.comparison.published import Published

Cells = tuple[list[str], list[list[str]]]
BRIEF = {"model", "kind", "rank", "tied", "parameters", "train s", "SW₂"}
LATEX = {"±": r"$\pm$", "₂": "$_2$", "²": "$^2$", "−": "$-$", "|": r"$\mid$"}


def cells(comparison: "Comparison") -> Cells:
    """Header and rows: likelihood with rank and ties, its error budget, cost, quality of the draws."""
    summaries = [entry.summary for entry in comparison.entries]
    integers, drawn = summaries[0].bits_per_dim is not None, comparison.floor is not None
    header = ["model", "kind", "rank", "tied", "log p(x | y) (nats)" if summaries[0].conditional else "log p (nats)"]
    header += ["bits/dim", "log-mean-exp"] if integers else []
    header += ["entropy gap"] if summaries[0].entropy_nats is not None else []
    header += ["± rows", "± draws", "± trace", "± solver", "truncation", "NFE", "parameters", "train s", "log p ms"]
    header += ["draw ms", "SW₂", "MMD²"] if drawn else []
    return header, [_row(entry, integers=integers, drawn=drawn) for entry in comparison.entries]


def _row(entry: "Entry", *, integers: bool, drawn: bool) -> list[str]:
    s, q = entry.summary, entry.quality
    row = [s.run, s.kind, str(entry.rank), entry.tied, f"{s.log_prob_nats:.3f} ± {s.error_nats:.3f}"]
    if integers:
        tighter = s.bits_per_dim_log_mean_exp
        row += [f"{s.bits_per_dim:.4f} ± {s.bits_per_dim_error:.4f}", "-" if tighter is None else f"{tighter:.4f}"]
    row += [] if s.entropy_nats is None else [f"{-s.log_prob_nats - s.entropy_nats:+.3f}"]
    row += [f"{s.sampling_error_nats:.4f}", known(s.dequantization_error_nats), known(s.trace_error_nats)]
    row += [f"{s.solver_error_nats:.4f}", f"{s.truncation_nats:+.4f}", f"{s.nfe:.0f}", f"{s.parameters:,}"]
    row += [f"{s.train_seconds:.0f}", f"{1e3 * s.seconds / (s.rows * s.draws):.3g}"]
    if drawn:
        row += ["-"] * 3 if q is None else [f"{q.sample_ms:.3g}", f"{q.sliced_wasserstein:.4f}", f"{q.mmd:+.5f}"]
    return row


def brief(table: Cells) -> Cells:
    """The columns of `cells` that tell which model to take."""
    header, rows = table
    places = [i for i, title in enumerate(header) if title in BRIEF or title.startswith("log p")]
    return [header[i] for i in places], [[row[i] for i in places] for row in rows]


def published_cells(numbers: "Sequence[Published]") -> Cells:
    """Numbers of papers."""
    header = ["published", numbers[0].unit]
    rows = [[p.model, f"{p.value:g}" + ("" if math.isnan(p.error) else f" ± {p.error:g}")] for p in numbers]
    return header, rows


def text(table: Cells) -> str:
    """For a terminal, columns aligned."""
    header, rows = table
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def markdown(table: Cells) -> str:
    """GitHub-flavoured Markdown."""
    header, rows = table
    lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def latex(table: Cells) -> str:
    """A tabular for a paper, with the rules of booktabs."""
    header, rows = table
    lines = [r" & ".join(map(_escaped, line)) + r" \\" for line in [header, *rows]]
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}", *body, r"\end{tabular}"]) + "\n"


def _escaped(cell: str) -> str:
    safe = re.sub(r"([&%$#_{}])", r"\\\1", cell)
    return "".join(LATEX.get(letter, letter) for letter in safe)


def comma_separated(comparison: "Comparison") -> str:
    """Every field of every model, in full precision."""
    rows = [
        {**asdict(e.summary), "rank": e.rank, "tied": e.tied, **({} if e.quality is None else asdict(e.quality))}
        for e in comparison.entries
    ]
    fields = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=fields, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
