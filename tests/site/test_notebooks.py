"""What nbval does not check of the committed notebooks, and the house rules for their cells."""

import ast
import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import plain
from contents import chapters

ROOT = Path(__file__).parents[2]
LONGEST_CELL = 20
# Paths and addresses of one machine: they tell the reader nothing, and differ on the next one.
OF_ONE_MACHINE = re.compile(r"\b0x[0-9a-f]{6,}|/(?:home|root|tmp|Users)/|\b[A-Z]:\\")


class Notebook:
    """A notebook's cells as tests want them."""

    def __init__(self, path):
        content = json.loads(path.read_text("utf-8"))
        self.cells, self.metadata = content["cells"], content["metadata"]
        for cell in self.cells:
            cell["source"] = "".join(cell["source"])
        self.code = [cell for cell in self.cells if cell["cell_type"] == "code"]
        self.outputs = [output for cell in self.code for output in cell["outputs"]]
        self.prose = "\n\n".join(c["source"] for c in self.cells if c["cell_type"] == "markdown")


@pytest.fixture(scope="module")
def notebook(notebook_path):
    return Notebook(notebook_path)


def _text(output) -> str:
    """All that an output says in words."""
    data = output.get("data", {})
    parts = [output.get("text", ""), *(v for k, v in data.items() if k.startswith("text/"))]
    return "\n".join("".join(part) for part in parts)


def _imports(cell) -> set[str]:
    """The packages that a cell imports."""
    names = []
    for node in ast.walk(ast.parse(cell["source"])):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module]
    return {name.split(".")[0] for name in names}


def _called(node) -> set[str]:
    """The functions that are called where a cell runs, not where it defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
        return set()
    names = set().union(*(_called(child) for child in ast.iter_child_nodes(node)))
    if isinstance(node, ast.Call):
        names.add(getattr(node.func, "id", getattr(node.func, "attr", "")))
    return names


def _should_show(cell) -> bool:
    """Whether running the cell displays something for certain."""
    tree = ast.parse(cell["source"])
    if any(name == "print" or name.startswith("show") for name in _called(tree)):
        return True
    last = tree.body[-1] if tree.body else None
    # A call may return None, which displays nothing.
    return isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call | ast.Constant)


def test_was_run_once_from_top_to_bottom(notebook):
    counts = [cell["execution_count"] for cell in notebook.code]
    assert counts == list(range(1, len(counts) + 1))


def test_has_the_outputs_that_its_cells_make(notebook):
    assert notebook.outputs
    silent = [c["source"] for c in notebook.code if _should_show(c) and not c["outputs"]]
    assert not silent


def test_stores_no_error_or_warning(notebook):
    wrong = [
        output
        for output in notebook.outputs
        if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    assert not wrong


def test_outputs_are_the_same_on_every_machine(notebook):
    found = [m[0] for output in notebook.outputs for m in OF_ONE_MACHINE.finditer(_text(output))]
    assert not found


def test_pictures_are_described_by_their_sentence(notebook):
    for cell in notebook.code:
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                options = cell["metadata"].get("mystnb", {})
                sentence = "".join(data["text/plain"])
                assert sentence == options.get("image", {}).get("alt"), cell["source"]
                assert options.get("figure", {}).get("caption"), cell["source"]
                # Jupyter Book puts the caption under each output of the cell.
                assert len(cell["outputs"]) == 1, cell["source"]


def test_cells_are_short(notebook):
    lengths = [len([x for x in c["source"].splitlines() if x.strip()]) for c in notebook.code]
    assert max(lengths) <= LONGEST_CELL


def test_imports_stand_in_the_first_cell(notebook):
    start, first, *others = notebook.code
    assert "remove-cell" in start["metadata"]["tags"]
    assert _imports(first)
    assert not [cell["source"] for cell in others if _imports(cell)]


def test_drawing_is_left_to_the_package(notebook):
    assert "matplotlib" not in _imports(notebook.code[1])


def test_every_exercise_has_a_folded_solution(notebook):
    cells = [cell for cell in notebook.cells if cell["cell_type"] == "markdown"]
    exercises = [cell for cell in cells if re.search(r"^### Exercise", cell["source"], re.M)]
    solutions = [cell for cell in cells if cell["source"].startswith("#### Solution")]
    assert exercises
    assert [cells[cells.index(cell) + 1] for cell in exercises] == solutions
    assert {cell["source"] for cell in solutions} == {"#### Solution"}
    assert all(cell["metadata"]["jp-MarkdownHeadingCollapsed"] for cell in solutions)
    assert notebook.metadata["colab"]["collapsed_sections"] == [c["id"] for c in solutions]
    assert [c["metadata"]["id"] for c in solutions] == [c["id"] for c in solutions]


def test_hidden_code_is_folded_in_jupyter_too(notebook):
    for cell in notebook.code:
        hidden = {"hide-input", "remove-cell"}.intersection(cell["metadata"].get("tags", []))
        assert cell["metadata"].get("jupyter", {}).get("source_hidden", False) == bool(hidden)
        assert (cell["metadata"].get("cellView") == "form") == bool(hidden)


def test_reads_well_without_myst(notebook):
    """No role, fence with a name, target or label is left, which other programs show raw."""
    raw = r"\{[\w:-]+\}`|^(?:`{3,}|:{3,})\{|^\([\w-]+\)=|\$\$[ \t]*\("
    cells = [c["source"] for c in notebook.cells if c["cell_type"] == "markdown"]
    assert not [text for text in cells if re.search(raw, text, re.M)]
    assert re.match(r"# Chapter \d+: ", cells[0])


def test_printed_lines_are_one_output(notebook):
    for cell in notebook.code:
        kinds = [(o["output_type"], o.get("name")) for o in cell["outputs"]]
        twice = [a for a, b in itertools.pairwise(kinds) if a == b and a[0] == "stream"]
        assert not twice, cell["source"]


@pytest.mark.parametrize("missing", [True, False])
def test_the_first_cell_gets_the_book_where_it_is_missing(notebook, monkeypatch, missing):
    """Colab opens a notebook alone: the first cell has to bring package and results."""
    done = []
    shell = SimpleNamespace(
        system=lambda command: done.append(command),
        run_line_magic=lambda name, rest: done.append(f"%{name} {rest}"),
    )
    if missing:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(compile(notebook.cells[1]["source"], "cell", "exec"), {"get_ipython": lambda: shell})
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    got = [
        f"git clone --quiet --depth 1 {url}",
        "%pip install --quiet ./vae-book",
        "%cd vae-book/book",
    ]
    assert done == (got if missing else [])


def test_the_notebooks_are_as_the_tool_leaves_them(tmp_path):
    """Numbers of equations and exercises, addresses of sources, folds: all up to date."""
    for name in ("_toc.yml", "_config.yml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "book").mkdir()
    for path in (ROOT / "book").glob("*.*"):
        shutil.copy(path, tmp_path / "book")
    plain.write_plain(tmp_path)
    stale = [
        p.name for p in chapters(ROOT) if p.read_text() != (tmp_path / "book" / p.name).read_text()
    ]
    assert stale == [], "python tools/plain.py writes them anew"


def test_nothing_is_left_to_do(notebook):
    assert not re.findall(
        r"\b(?:TODO|FIXME|XXX|TBD)\b", "\n".join(c["source"] for c in notebook.cells)
    )
