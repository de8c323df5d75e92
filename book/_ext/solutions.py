"""Solutions from plain headings: what stands below "#### Solution" solves the exercise above it.

An extension of Sphinx. Such a notebook reads well where nobody knows of directives, and its viewer
can fold a solution by its heading. For the site the heading becomes a pair of sphinx-exercise's
gates around the cells up to the next heading. With `hide_solutions` those cells are left out, of
the pages and of the notebooks that the site offers.
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

SOLUTION = "#### Solution"
HEADING = re.compile(r"#{1,6} ")
EXERCISE = re.compile(r"\{exercise\}[^\n]*(?:\n:[^\n]*)*?\n:label: (\S+)")
START, END = ":::{{solution-start}} {}\n:class: dropdown\n:::", ":::{solution-end}\n:::"

Cells = list[dict[str, Any]]


def setup(app: Sphinx) -> dict[str, bool]:
    """Change what is read, and what readers can download."""
    app.connect("source-read", read)
    app.connect("build-finished", offer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """Put gates around the solutions of a notebook, or leave them out."""
    if app.env.doc2path(page).endswith(".ipynb"):
        source[0] = changed(source[0], without if app.config.hide_solutions else gated)


def offer(app: Sphinx, error: Exception | None) -> None:
    """Leave hidden solutions out of the notebooks that the site offers."""
    if app.config.hide_solutions and not error:
        for path in Path(app.outdir, "_sources").rglob("*.ipynb"):
            path.write_text(changed(path.read_text("utf-8"), without), "utf-8")


def changed(text: str, change: Callable[[Cells], Cells]) -> str:
    """The notebook with other cells."""
    notebook = json.loads(text)
    notebook["cells"] = change(notebook["cells"])
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def solving(cells: Cells) -> Iterator[tuple[dict[str, Any], str]]:
    """Each cell with the label of the exercise that it solves, "" for most."""
    exercise = solved = ""
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            if HEADING.match(text):
                solved = exercise if text.strip() == SOLUTION else ""
            exercise = (EXERCISE.findall(text) or [exercise])[-1]
        yield cell, solved


def without(cells: Cells) -> Cells:
    """The cells that solve nothing."""
    return [cell for cell, solved in solving(cells) if not solved]


def gated(cells: Cells) -> Cells:
    """The cells, with a gate in place of each heading of a solution and one behind its last cell."""
    result: Cells = []
    for solved, group in groupby(solving(cells), itemgetter(1)):
        part = [cell for cell, _ in group]
        if solved:
            part = [markdown(START.format(solved)), *part[1:], markdown(END)]
        result += part
    return result


def markdown(text: str) -> dict[str, Any]:
    """A cell of prose."""
    return {"cell_type": "markdown", "metadata": {}, "source": text}
