"""Write the index of equations: which code computes each, and which tests check it, how closely.

    python tools/equations.py

`make index` calls it; `make execute` and `make book` write the index too. All is read from the
sources: labelled formulas from the chapters, labels from docstrings, routes and tolerances from the
marks of tests (tests/agreement.py). Nothing is imported, so code that does not run can be indexed.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import nbformat

from contents import chapters, prose, title

ROOT = Path(__file__).parents[1]
INDEX = "_equations.md"
MARK = "pytest.mark.equation"
# Displays come in pairs of $$; one that has a label has it in parentheses behind.
DISPLAY = re.compile(r"\$\$(.+?)\$\$(?:[ \t]*\(([^)\s]+)\))?", re.DOTALL)
NAMED = re.compile(r"``(eq-[^`]+)``")


class Equation(NamedTuple):
    """A labelled formula of a chapter."""

    label: str
    tex: str
    chapter: str
    """The chapter's title."""


class Claim(NamedTuple):
    """A test's word that it checks an equation."""

    test: str
    """As pytest writes it: tests/unit/test_models.py::test_name."""
    route: str
    tolerance: str


def equations(top: Path) -> list[Equation]:
    """The labelled formulas below ``top``, in the order of the table of contents."""
    found = []
    for path in chapters(top):
        chapter = title(nbformat.read(path, as_version=4))
        formulas = DISPLAY.findall(prose(path))
        found += [Equation(label, tex.strip(), chapter) for tex, label in formulas if label]
    return found


def named(root: Path) -> dict[str, list[str]]:
    """For each label in a docstring of the package: the functions or classes, module.name."""
    found = defaultdict(list)
    for path in sorted((root / "vae_book").glob("*.py")):
        for name, node in definitions(ast.parse(path.read_text())):
            for label in dict.fromkeys(NAMED.findall(ast.get_docstring(node) or "")):
                found[label].append(f"{path.stem}.{name}")
    return dict(found)


def claimed(root: Path) -> dict[str, list[Claim]]:
    """For each label in a mark of a test: who claims it."""
    found = defaultdict(list)
    for test, _, marks in marked(root):
        for mark in marks:
            words = {keyword.arg: ast.literal_eval(keyword.value) for keyword in mark.keywords}
            route = words.pop("route")
            for label in map(ast.literal_eval, mark.args):
                found[label].append(Claim(test, route, tolerance(**words)))
    return dict(found)


def marked(root: Path) -> Iterator[tuple[str, ast.FunctionDef, list[ast.Call]]]:
    """Each test that claims an equation: its name, its definition and its marks."""
    for path in sorted((root / "tests").rglob("test_*.py")):
        for name, node in definitions(ast.parse(path.read_text())):
            calls = [each for each in node.decorator_list if isinstance(each, ast.Call)]
            if marks := [call for call in calls if ast.unparse(call.func) == MARK]:
                yield f"{path.relative_to(root).as_posix()}::{name}", node, marks


def tolerance(rel: float = 0, abs: float = 0, standard_errors: float = 0) -> str:
    """What a mark tolerates, in words; the tolerances add up (see tests/agreement.py)."""
    words = [
        f"relative {_short(rel)}" if rel else "",
        f"absolute {_short(abs)}" if abs else "",
        f"{_short(standard_errors)} standard errors" if standard_errors else "",
    ]
    return " plus ".join(filter(None, words)) or "exact"


def index(top: Path, root: Path) -> str:
    """The index of the chapters below ``top``, with the package and the tests below ``root``."""
    functions, claims = named(root), claimed(root)
    lines = []
    for chapter, group in groupby(equations(top), key=lambda equation: equation.chapter):
        lines += [f"## {chapter}", ""]
        for label, tex, _ in group:
            code = ", ".join(f"`{name}`" for name in functions.get(label, []))
            lines += [":::{container} identity", f"Equation {{eq}}`{label}`: {code}", ""]
            lines += ["$$", tex, "$$", ""]
            lines += [_item(claim) for claim in claims.get(label, [])]
            lines += [":::", ""]
    return "\n".join(lines)


def write_index(top: Path, root: Path = ROOT) -> None:
    """Write the index of the chapters below ``top`` beside them."""
    (top / "book" / INDEX).write_text(index(top, root))


def _item(claim: Claim) -> str:
    file, name = claim.test.split("::")
    sentence = name.split(".")[-1].removeprefix("test_").replace("_", " ")
    closely = claim.tolerance.replace("e-", "e&NoBreak;-&NoBreak;")  # not 1e- and 9 on two lines
    return f"- {claim.route}, {closely}\\\n  *{sentence}* (`{Path(file).stem}`)"


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Functions and classes with their qualified names, in the order of the source."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name, node
            yield from definitions(node, f"{prefix}{node.name}.")
        elif not isinstance(node, ast.expr):  # none is in there, and they are most nodes
            yield from definitions(node, prefix)


def _short(number: float) -> str:
    return re.sub(r"e-0", "e-", f"{number:g}")


if __name__ == "__main__":
    write_index(ROOT)
