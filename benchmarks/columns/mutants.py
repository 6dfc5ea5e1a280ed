"""Table of the mistakes that the tests notice."""

from benchmarks.columns.cells import Columns

TABLES: dict[str, Columns] = {
    "mutants": [
        ("package", lambda r: r["package"]),
        ("mutants", lambda r: str(r["mutants"])),
        ("killed", lambda r: str(r["killed"])),
        ("of these at import", lambda r: str(r["at_import"])),
        ("of these by hanging", lambda r: str(r["stuck"])),
        ("share", lambda r: f"{100 * r['share']:.1f} %"),
    ],
}
