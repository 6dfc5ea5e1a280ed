"""Tables of suites: a row a model, a column a data set."""

import math
from collections.abc import Callable, Sequence

from benchmarks.columns.cells import Columns, Row

TOYS = ("8gaussians", "checkerboard", "moons", "pinwheel", "2spirals", "swissroll", "circles", "rings")
UCI_SMALL = ("protein", "kin40k", "power_plant_ccpp")


def gap(found: Row) -> tuple[float, float]:
    """Distance of test -log p from the entropy of the source, nats."""
    return -found["log_prob_nats"] - found["entropy_nats"], found["error_nats"]


def bits(found: Row) -> tuple[float, float]:
    """Bits per dimension."""
    return found["bits_per_dim"], found["bits_per_dim_error"]


def nats(found: Row) -> tuple[float, float]:
    """Test log p in nats."""
    return found["log_prob_nats"], found["error_nats"]


def columns(data: Sequence[str], value: Callable[[Row], tuple[float, float]]) -> Columns:
    """Model, kind, size and cost beside one column a data set; bold is what no other model beats significantly."""
    return [
        ("model", lambda r: r["model"]),
        ("kind", lambda r: r["kind"]),
        ("parameters", lambda r: f"{r['parameters']:,}"),
        ("training (s)", lambda r: f"{r['train_seconds']:.0f}"),
        *[(name, lambda r, name=name: _cell(r["found"][name], value)) for name in data],  # type: ignore[misc]
        *([("mean rank", lambda r: f"{r['mean_rank']:.1f}")] if len(data) > 1 else []),
    ]


def _cell(found: Row, value: Callable[[Row], tuple[float, float]]) -> str:
    mean, error = value(found)
    digits = max(0, min(3, 1 - math.floor(math.log10(error))))
    text = f"{mean:.{digits}f} ± {error:.{digits}f}"
    return f"**{text}**" if found["rank"] == 1 else text


def in_print(row: Row) -> str:
    """The number of the paper that a model comes from."""
    return "" if row["published"] is None else "{value:g} ({model})".format(**row["published"])


TABLES: dict[str, Columns] = {
    "toys_suite": columns(TOYS, gap),
    "digits_suite": columns(("digits",), bits),
    "uci_small_suite": columns(UCI_SMALL, nats),
    "bsds300_suite": [*columns(("bsds300_patches",), nats), ("in print", in_print)],
}
