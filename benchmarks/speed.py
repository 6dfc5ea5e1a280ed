"""What the records of speed say of every case beside its peers, with what earlier records said of it."""

import json
from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from benchmarks.autoregressive_speed import TARGETS
from benchmarks.record import DOCS
from cflows.ode.solver import PER_SAMPLE
from experiment.files import write_atomic
from experiment.plots import COLOURS, MUTED, png

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a case: nothing is timed here."""
    before = {row["case"]: row["history"] for row in _rows("speed")}
    rows = [dict(row) for row in _cases()]
    for row in rows:
        history = dict(map(tuple, before.get(row["case"], []))) | {row["date"]: row["faster"]}
        row["history"] = sorted(history.items())
    write_atomic(DOCS / "figures" / "speed.png", png(_figure(rows)))
    return {}, rows


def _cases() -> Iterator[Row]:
    for row in _rows("coupling_speed"):
        yield _case(f"{row['coupling']} coupling, {row['task']}", row)
    for row in _rows("planar_speed"):
        yield _case(f"planar layers, {row['direction']}, {row['task']}", row)
    for row in _rows("autoregressive_speed"):
        wanted = TARGETS[row["flow"], row["task"]]
        yield _case(f"{row['flow']}, {row['task']}", row | {"target": wanted})  # today's, not those of the record
    for row in _rows("autoregressive_growth"):
        target = {512: 40.0}.get(row["features"])
        rows = "" if row["rows"] == 64 else f" of {row['rows']} rows"
        yield _case(f"MAF of {row['features']}, sample{rows}", row, target=target)
    for row in _rows("gaussianization_speed"):
        case = f"Gaussianization of {row['components']}, {row['task']}"
        yield _case(case, row, key="faster_than_zuko", target=row["target"], peer="zuko")
    for row in _rows("linear_speed"):
        yield _case(f"{row['layer']} of {row['size']}, {row['task']}", row)
    for row in _rows("glow_speed"):
        shape, target = "×".join(map(str, row["event_shape"])), 1.2 if row["task"] == "training step" else 1.0
        case = f"Glow {shape}, {row['threads']} threads, {row['task']}"
        yield _case(case, row, key="ratio", target=target, peer="normflows")
    for row in _rows("continuous_speed"):
        yield _case(f"flow matching, {row['task']}" if row["task"] != "draws" else "reverse SDE, draws", row)
    problems: dict[str, list[Row]] = {}
    for row in _rows("ode_likelihood"):
        if row["speed_up"] is not None and row["method"] != "yardstick":
            problems.setdefault(row["problem"], []).append(row)
    for problem, found in problems.items():
        target = 3.5 if "3072" in problem else 2.5 if "modes" in problem else None
        best = max(found, key=lambda row: row["speed_up"])
        for row in [best, *(row for row in found if row["method"] == PER_SAMPLE and row is not best)]:
            case = f"ODE likelihood, {problem}, {row['method']}"
            yield _case(case, row, key="speed_up", target=target, peer="the field's routine")


def _case(
    case: str, row: Row, *, key: str = "faster_than_peer", target: float | None = None, peer: str | None = None
) -> Row:
    """How many times as fast as the fastest peer, and its time over that of bare networks."""
    wanted = row["target"] if isinstance(row.get("target"), dict) else {"peer": target}
    over_bare = row.get("over_bare")
    met = row[key] >= (wanted.get("peer") or 0) and (over_bare or 0) <= wanted.get("bare", float("inf"))
    return {
        "case": case,
        "date": row["date"],
        "peer": peer or row.get("fastest_peer", "the fastest peer"),
        "faster": row[key],
        "faster_target": wanted.get("peer"),
        "over_bare": over_bare,
        "over_bare_target": wanted.get("bare"),
        "met": met,
    }


def _rows(name: str) -> list[Row]:
    """Of a record, each with its date; none where there is no record."""
    path = DOCS / "results" / f"{name}.json"
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    return [{"date": content["date"], **row} for row in content["rows"]]


def _figure(rows: list[Row]) -> Figure:
    """A line a case, a dot a date, the latest filled, and a tick where it ought to be."""
    figure = Figure(figsize=(7.2, 0.17 * len(rows) + 1.0), layout="constrained")
    axis = figure.subplots()
    for i, row in enumerate(reversed(rows)):
        colour = COLOURS[0] if row["met"] else COLOURS[1]
        earlier = [ratio for _, ratio in row["history"][:-1]]
        axis.plot(earlier, [i] * len(earlier), "o", color="none", markeredgecolor=MUTED, markersize=3)
        axis.plot(row["faster"], i, "o", color=colour, markersize=4)
        if row["faster_target"]:
            axis.plot(row["faster_target"], i, "|", color="black", markersize=7)
    axis.axvline(1, color=MUTED, linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [row["case"] for row in reversed(rows)], fontsize=6)
    axis.set_ylim(-1, len(rows))
    axis.set_xlabel("times as fast as the fastest peer (| the target; orange: missed)")
    axis.spines[["top", "right"]].set_visible(False)
    return figure
