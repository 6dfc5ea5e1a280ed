"""Notebooks run, and as pages of the site with what they printed and drew.

A notebook that ran is kept in build/notebooks under a hash of everything that its outputs follow from, so that tests
and site run it once. `python docs/hooks/notebooks.py PATH` runs one; an error ends it, and so does a warning.
"""

import base64
import hashlib
import os
import re
import sys
from pathlib import Path

import nbformat
from filelock import FileLock
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS, KEPT = ROOT / "notebooks", ROOT / "build" / "notebooks"
PACKAGES = ("core", "discrete", "cflows", "experiment")
SECONDS_A_CELL = 600


def ran(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell that failed.
        RuntimeError: a cell that wrote to standard error, as warnings do.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = KEPT / f"{path.stem}-{_digest(path)}.ipynb"
    with FileLock(KEPT / f"{path.stem}.lock"):
        if not kept.exists():
            notebook = _run(path)
            for old in KEPT.glob(f"{path.stem}-*.ipynb"):
                old.unlink()
            nbformat.write(notebook, kept)
        return nbformat.read(kept, as_version=4)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page, its figures and the notebook itself for each notebook."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, figures = _page(path.stem, ran(path))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
        for name, content in figures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def _digest(path: Path) -> str:
    sources = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
    parts = [p.read_bytes() for p in (path, ROOT / "constraints.txt", *sources)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _run(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=SECONDS_A_CELL, resources={"metadata": {"path": str(path.parent)}})
    # One thread, as the tests have; IPython's own settings, not those of the user; a page has no progress bar to miss.
    own = {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(KEPT / "ipython"), "PYTHONWARNINGS": "ignore:IProgress not found"}
    client.execute(env={**os.environ, **own})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise RuntimeError(f"{path.name} wrote to standard error: {output.text}")
    return notebook


def _page(name: str, notebook: nbformat.NotebookNode) -> tuple[str, dict[str, bytes]]:
    """Markdown of the page, and the figures that it shows."""
    parts: list[str] = []
    figures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", cell.source).replace("](../docs/", "](../"))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                figure = f"{name}_{len(figures)}.png"
                figures[figure] = base64.b64decode(data["image/png"])
                parts.append(f"![figure]({figure})")
            elif "text/markdown" in data:
                parts.append(data["text/markdown"])
            else:
                parts.append(f"```text\n{(output.get('text') or data['text/plain']).rstrip()}\n```")
    source = f"*The notebook [{name}.ipynb]({name}.ipynb), run when this page was made.*"
    parts[0] = re.sub(r"\A(# .*)", rf"\1\n\n{source}", parts[0])
    return "\n\n".join(parts) + "\n", figures


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        ran(Path(argument).resolve())
