"""The pages of the table of contents, for the other tools."""

import sys
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

sys.path.append(str(Path(__file__).parents[1] / "book" / "_ext"))

from plain_markdown import myst_cells

__all__ = ["chapters", "myst_cells", "pages", "prose", "title"]


def chapters(top: Path) -> list[Path]:
    """The notebooks of the table of contents, in its order."""
    paths = [top / f"{page}.ipynb" for page in pages(top)]
    return [path for path in paths if path.exists()]


def pages(top: Path) -> list[str]:
    """All pages of the table of contents, in its order, as _toc.yml names them."""
    toc = yaml.safe_load((top / "_toc.yml").read_text())
    entries = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [toc["root"], *entries] if "root" in toc else entries


def title(notebook: NotebookNode) -> str:
    """The chapter's title, from its first heading."""
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ")


def prose(path: Path) -> str:
    """The text of a chapter in MyST, without its code."""
    cells = myst_cells(nbformat.read(path, as_version=4).cells)
    return "\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
