"""Pages made of files outside docs/, and links that work both on GitHub and in the site.

A link from the root of the repository, /docs/results/x.json or /configs/moons/maf.toml, becomes one from the page; a
file outside docs/ that a page links to comes into the site under repository/.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(/([^)\s#]+)")
MADE = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made, and the files of the repository that pages link to."""
    for source, page in MADE.items():
        # Relative links of a file at the root begin at the root.
        text = re.sub(r"\]\((?!https?:|[/#])", "](/", (ROOT / source).read_text())
        files.append(File.generated(config, page, content=text))
    for file in files.documentation_pages():
        for target in LINK.findall(file.content_string):
            path = f"repository/{target}"
            if _outside(target) and (ROOT / target).is_file() and path not in files.src_uris:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links from the root become links from the page."""
    here = posixpath.dirname(page.file.src_uri)
    return LINK.sub(lambda m: "](" + posixpath.relpath(place(m[1]), here), markdown)


def place(target: str) -> str:
    """Where a file of the repository lies in the site."""
    if target in MADE:
        return MADE[target]
    return f"repository/{target}" if _outside(target) else target.removeprefix("docs/").replace(".ipynb", ".md")


def _outside(target: str) -> bool:
    return target not in MADE and not target.startswith(("docs/", "notebooks/"))
