"""Write the chapters so that they read well in any Jupyter: JupyterLab, VS Code, Colab, GitHub.

    python tools/plain.py

`make execute` does it too. Authors may write MyST: `{eq}`, `{cite}`, `{exercise}`. What is left in
the notebooks is plain Markdown with numbers and addresses, which book/_ext/plain_markdown.py turns
into MyST again for the site. Solutions and hidden code are folded, lines that a cell prints one
after the other are one output, and the first cell fetches the book's package where it is missing.
Run twice, it changes nothing more.
"""

# isort: off
import stopping

# isort: on
import re
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat
import yaml
from nbformat import NotebookNode
from pybtex.database import Person, parse_file

from contents import chapters, myst_cells
from vae_book.files import replacing

ROOT = Path(__file__).parents[1]
LABELLED = re.compile(r"\$\$((?:(?!\$\$).)+)\$\$[ \t]*\((eq-[\w-]+)\)", re.DOTALL)
TARGET = re.compile(r"^\((sec-[\w-]+)\)=\n", re.MULTILINE)
FENCED = re.compile(
    r"^(?P<fence>`{3,}|~{3,})\{(?P<kind>exercise|solution|solution-start|solution-end|admonition)\}"
    r"[ ]*(?P<title>.*)\n(?P<options>(?::.*\n)*)(?P<body>(?:.*\n)*?)(?P=fence)$",
    re.MULTILINE,
)
FIRST_CELL = """\
# Where the book's package is missing, as on Colab: get the book.
from importlib.util import find_spec

if find_spec("vae_book") is None:
    url = "{url}"
    get_ipython().system(f"git clone --quiet --depth 1 {{url}}")
    get_ipython().run_line_magic("pip", "install --quiet ./{name}")
    get_ipython().run_line_magic("cd", "{name}/book")"""
FIRST_ID = "get-the-book"


class Place(NamedTuple):
    """Where a label stands, and its number."""

    chapter: str
    """The file's name."""
    number: str


class Book(NamedTuple):
    """What the references of a chapter name: labels and sources."""

    places: dict[str, Place]
    sources: dict[str, tuple[str, str, str]]
    """For each key of the bibliography authors, year and address."""


def main() -> None:
    write_plain(ROOT)


def write_plain(top: Path) -> None:
    """Write the notebooks below ``top`` anew, those that are not as they should be."""
    paths = chapters(top)
    notebooks = {path: nbformat.read(path, as_version=4) for path in paths}
    book = Book(places(notebooks), sources(top / "book" / "references.bib"))
    first = first_cell(top)
    for path, notebook in notebooks.items():
        before = nbformat.writes(notebook)
        make_plain(notebook, path.name, book, first)
        after = nbformat.writes(notebook)
        if after != before:
            with replacing(path) as part:
                part.write_text(after + "\n", "utf-8")


def make_plain(notebook: NotebookNode, name: str, book: Book, first: str) -> None:
    """Make one notebook plain, in place.

    Args:
        notebook: the chapter.
        name: the name of its file.
        book: what its references name.
        first: the source of the first cell of code.
    """
    cells = [cell for cell in notebook.cells if cell.get("id") != FIRST_ID]
    cells = map(nbformat.from_dict, myst_cells(cells))  # numbers may have changed
    cells = [part for cell in cells for part in split(cell, name, book)]
    start = nbformat.v4.new_code_cell(first, id=FIRST_ID, metadata={"tags": ["remove-cell"]})
    place = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    notebook.cells = [*cells[:place], start, *cells[place:]]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if all(cell.execution_count for cell in code[1:]):
        for count, cell in enumerate(code, 1):
            cell.execution_count = count
    for cell in code:
        join_streams(cell)
        hidden = {"hide-input", "remove-cell"}.intersection(cell.metadata.get("tags", []))
        fold(cell, hidden=bool(hidden))
    solutions = [cell.id for cell in notebook.cells if cell.source == "#### Solution"]
    for cell in notebook.cells:
        if cell.id in solutions:
            cell.metadata = NotebookNode({"id": cell.id, "jp-MarkdownHeadingCollapsed": True})
    notebook.metadata["colab"] = {"collapsed_sections": solutions}


def split(cell: NotebookNode, name: str, book: Book) -> list[NotebookNode]:
    """A cell as plain cells: each exercise has one of its own, and each heading of a solution."""
    if cell.cell_type != "markdown":
        return [cell]
    parts = plain(cell.source, name, book)
    return [
        nbformat.from_dict({**cell, "source": part, "id": f"{cell.id}-{i}"[-64:] if i else cell.id})
        for i, part in enumerate(parts)
    ]


def plain(text: str, name: str, book: Book) -> list[str]:
    """The plain Markdown of a cell in MyST, a text for each cell that it becomes.

    Raises:
        ValueError: it refers to what is not there.
    """
    text = LABELLED.sub(lambda m: _formula(m, book), text)
    text = TARGET.sub(r'<a id="\1"></a>' + "\n", text)
    text = re.sub(r"\{([\w:]+)\}`([^`]+)`", lambda m: _role(m[1], m[2], name, book), text)
    parts, end = [], 0
    for match in FENCED.finditer(text):
        if match["kind"] == "admonition":
            continue
        parts += [text[end : match.start()], *_block(match, book)]
        end = match.end()
    parts.append(text[end:])
    return [FENCED.sub(_box, part.strip()) for part in parts if part.strip()]


def places(notebooks: dict[Path, NotebookNode]) -> dict[str, Place]:
    """Chapter and number of each labelled formula and exercise, and the chapter of a section."""
    found = {}
    for path, notebook in notebooks.items():
        cells = [c["source"] for c in myst_cells(notebook.cells) if c["cell_type"] == "markdown"]
        text, chapter = "\n\n".join(cells), int(path.name[:2])
        for pattern in (r"\$\$[ \t]*\((eq-[\w-]+)\)", r"^:label: (ex-[\w-]+)$", r"^\((sec-.+)\)=$"):
            for count, label in enumerate(re.findall(pattern, text, re.MULTILINE), 1):
                found[label] = Place(path.name, f"{chapter}.{count}")
    return found


def sources(path: Path) -> dict[str, tuple[str, str, str]]:
    """Authors, year and address of each entry of a bibliography."""
    starts = {"doi": "https://doi.org/", "eprint": "https://arxiv.org/abs/", "url": ""}
    found = {}
    for key, entry in parse_file(str(path), "bibtex").entries.items():
        fields = entry.fields
        address = next(start + fields[name] for name, start in starts.items() if name in fields)
        found[key] = (_authors(entry.persons["author"]), fields["year"], address)
    return found


def first_cell(top: Path) -> str:
    """The source of the first cell: the repository of _config.yml is fetched if it is missing."""
    url = yaml.safe_load((top / "_config.yml").read_text("utf-8"))["repository"]["url"]
    return FIRST_CELL.format(url=url, name=url.rsplit("/", 1)[1])


def join_streams(cell: NotebookNode) -> None:
    """Make one output of what a cell prints before it displays anything else."""
    joined: list[NotebookNode] = []
    for output in cell.outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    cell.outputs = joined


def fold(cell: NotebookNode, hidden: bool) -> None:
    """Fold a cell's code in JupyterLab and VS Code, and in Colab, or unfold it."""
    for key in ("jupyter", "cellView"):
        cell.metadata.pop(key, None)
    if hidden:
        cell.metadata |= {"cellView": "form", "jupyter": {"source_hidden": True}}


def _formula(match: re.Match, book: Book) -> str:
    body, label = match[1].rstrip("\n"), match[2]
    return f'<a id="{label}"></a>\n$${body}\n\\tag{{{book.places[label].number}}}\n$$'


def _role(role: str, text: str, name: str, book: Book) -> str:
    """The plain form of a role; a link goes to this file if its target stands here."""
    if role in ("cite", "cite:t"):
        keys = [key.strip() for key in text.split(",")]
        if missing := [key for key in keys if key not in book.sources]:
            raise ValueError(f"{name}: the bibliography has no {missing[0]}")
        links = []
        for key in keys:
            authors, year, address = book.sources[key]
            words = f"{authors}, {year}" if role == "cite" else f"{authors} ({year})"
            links.append(f'[{words}]({address} "{key}")')
        return f"({'; '.join(links)})" if role == "cite" else ", ".join(links)
    words, _, label = text.rpartition("<")
    label = label.strip().removesuffix(">")
    if role not in ("eq", "numref", "ref") or label not in book.places:
        raise ValueError(f"{name}: nothing plain can be made of {{{role}}}`{text}`")
    place = book.places[label]
    words = f"({place.number})" if role == "eq" else words.strip()
    target = f"{'' if place.chapter == name else place.chapter}#{label}"
    return f"[{words.replace('{number}', place.number)}]({target})"


def _block(match: re.Match, book: Book) -> list[str]:
    """The plain cells of an exercise or of a part of a solution."""
    body = match["body"].strip()
    if match["kind"] == "exercise":
        label = re.search(r":label: (\S+)", match["options"])[1]
        heading = f"### Exercise {book.places[label].number}: {match['title']}"
        return [f'<a id="{label}"></a>\n{heading}\n{body}']
    return [] if match["kind"] == "solution-end" else ["#### Solution", body]


def _box(match: re.Match) -> str:
    lines = [f"**{match['title']}**", "", *match["body"].strip().splitlines()]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _authors(persons: list[Person]) -> str:
    """As the site has them: one, two, or the first of more."""
    names = [re.sub(r"[{}]", "", " ".join([*p.prelast_names, *p.last_names])) for p in persons]
    return " and ".join(names) if len(names) < 3 else f"{names[0]} et al."


if __name__ == "__main__":
    try:
        stopping.imported()
        main()
    except ValueError as error:
        sys.exit(str(error))
