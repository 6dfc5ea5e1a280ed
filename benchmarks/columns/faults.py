"""Table of faults: what was done to trainings, how often, and what was lost."""

from benchmarks.columns.cells import Columns

TABLES: dict[str, Columns] = {
    "faults": [
        ("fault", lambda r: r["fault"]),
        ("how", lambda r: r["how"]),
        ("times", lambda r: str(r["times"])),
        ("lost", lambda r: r["lost"]),
    ],
}
