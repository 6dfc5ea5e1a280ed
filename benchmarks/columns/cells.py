"""What a table is made of: columns, each a title and what a row shows under it."""

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Columns = list[tuple[str, Callable[[Row], str]]]


def ratio(row: Row, name: str) -> str:
    """A median ratio with its quartiles."""
    return "{:.2f} ({:.2f} to {:.2f})".format(row[name], *row[f"{name}_quartiles"])


def met(row: Row) -> str:
    """Whether a row meets its target."""
    return "yes" if row["met"] else "no"
