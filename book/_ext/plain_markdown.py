"""Chapters are stored in plain Markdown, which any Jupyter shows; here it becomes MyST.

An extension of Sphinx. What JupyterLab, VS Code, Colab and GitHub would show raw stands in a
notebook in another form (tools/plain.py writes it, with numbers and addresses):

    ### Exercise 1.1: A title       below <a id="ex-..."></a>: an exercise, to the end of its cell
    #### Solution                   a cell of its own: a solution, to the next heading
    > **A title**                   a box
    \\tag{1.1}                       below <a id="eq-..."></a>: the number of a formula
    [(1.1)](#eq-...)                a reference, and likewise Exercise 1.1 and sections
    ([Author, 1999](url "key"))     a citation, and without outer parentheses Author (1999)

With `hide_solutions: true` in _config.yml the site has no solutions, nor have its notebooks.
"""

import json
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

SOLUTION = "#### Solution"
ENDS_SOLUTION = re.compile(r'(?:<a id="[\w-]+"></a>\n)?#{1,4} ')
EXERCISE = re.compile(r'^<a id="(ex-[\w-]+)"></a>\n### Exercise [\d.]+: (.+)\n((?s:.+))', re.M)
BOX = re.compile(r"^> \*\*(.+)\*\*\n((?:^>.*\n?)+)", re.M)
# Longer than those in an exercise, and not of backticks: a title with a citation has some, too.
FENCE = "~" * 6
_LINK = r"\[[^\]]+%s\]\(\S+ \"([\w-]+)\"\)"
_CITED = _LINK % r", \d{4}"
CITED = re.compile(rf"\({_CITED}(?:; {_CITED})*\)")
KEY = re.compile(_LINK % "")
ROLES = [
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (
            r'<a id="(eq-[\w-]+)"></a>\n(\$\$(?:(?!\$\$).)+)\n\\tag\{[\d.]+\}(\n\$\$)',
            r"\2\3 (\1)",
        ),
        (r'<a id="(sec-[\w-]+)"></a>\n', r"(\1)=\n"),
        (r"\[\([\d.]+\)\]\([\w.]*#(eq-[\w-]+)\)", r"{eq}`\1`"),
        (r"\[Exercise [\d.]+\]\([\w.]*#(ex-[\w-]+)\)", r"{numref}`Exercise {number} <\1>`"),
        (r"\[([^\]]+)\]\([\w.]*#(sec-[\w-]+)\)", r"{ref}`\1 <\2>`"),
        (_LINK % r" \(\d{4}\)", r"{cite:t}`\1`"),
    )
]


def setup(app: Sphinx) -> dict[str, bool]:
    """Notebooks are changed as they are read."""
    app.connect("source-read", read)
    app.connect("build-finished", hide_in_downloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """Change the text of a notebook, before it is parsed."""
    if not str(app.env.doc2path(page)).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    cells = notebook["cells"]
    if app.config.hide_solutions:
        cells = without_solutions(cells)
    notebook["cells"] = myst_cells(cells)
    source[0] = json.dumps(notebook)


def hide_in_downloads(app: Sphinx, error: Exception | None) -> None:
    """The notebooks to download have no solutions either, where there are none on the pages."""
    if error or app.builder.format != "html" or not app.config.hide_solutions:
        return
    for path in Path(app.outdir, "_sources").rglob("*.ipynb"):
        notebook = json.loads(path.read_text("utf-8"))
        notebook["cells"] = without_solutions(notebook["cells"])
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def myst_cells(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A notebook's cells with their Markdown in MyST, solutions between a start and an end."""
    found, label, inside = [], None, False
    for cell in cells:
        text = source_of(cell)
        if cell["cell_type"] == "markdown":
            if inside and ENDS_SOLUTION.match(text):
                found.append(_end_of(label))
                inside = False
            label = ([label, *(match[1] for match in EXERCISE.finditer(text))])[-1]
            inside = inside or text.strip() == SOLUTION
            cell = cell | {"source": myst(text, label)}
        found.append(cell)
    return [*found, _end_of(label)] if inside else found


def without_solutions(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells that belong to no solution."""
    found, inside = [], False
    for cell in cells:
        if cell["cell_type"] == "markdown":
            text = source_of(cell)
            inside = text.strip() == SOLUTION or (inside and not ENDS_SOLUTION.match(text))
        if not inside:
            found.append(cell)
    return found


def myst(text: str, label: str | None = None) -> str:
    """The MyST of a Markdown cell; what is in MyST already stays as it is.

    Args:
        text: the cell's source.
        label: the exercise that a solution answers.
    """
    if text.strip() == SOLUTION:
        return f"{FENCE}{{solution-start}} {label}\n:class: dropdown\n{FENCE}"
    text = CITED.sub(lambda match: f"{{cite}}`{','.join(KEY.findall(match[0]))}`", text)
    for pattern, replacement in ROLES:
        text = pattern.sub(replacement, text)
    text = BOX.sub(_box, text)
    return EXERCISE.sub(_exercise, text)


def source_of(cell: dict[str, Any]) -> str:
    """A cell's source, which a file holds line by line."""
    return "".join(cell["source"])


def _box(match: re.Match) -> str:
    body = re.sub(r"^> ?", "", match[2], flags=re.MULTILINE).strip()
    return f"{FENCE}{{admonition}} {match[1]}\n:class: caution\n\n{body}\n{FENCE}\n"


def _exercise(match: re.Match) -> str:
    label, title, body = match.groups()
    return f"{FENCE}{{exercise}} {title}\n:label: {label}\n\n{body.strip()}\n{FENCE}"


def _end_of(label: str | None) -> dict[str, Any]:
    """The cell that ends the solution of an exercise."""
    source = f"{FENCE}{{solution-end}}\n{FENCE}"
    return {"cell_type": "markdown", "id": f"{label}-end", "metadata": {}, "source": source}
