"""Every identity is a test: what chapters label, docstrings name and tests claim is the same."""

import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import equations
from contents import chapters, prose
from equations import Claim, Equation, claimed, index, marked, named

ROOT = Path(__file__).parents[2]
LABELS = [equation.label for equation in equations.equations(ROOT)]
NAMED, CLAIMED = named(ROOT), claimed(ROOT)
REFERENCE = re.compile(r"\{eq\}`(?:[^`<]*<)?([^`>]+)")


# The book ----------------------------------------------------------------------------------------


def test_labels_are_unique():
    twice = [label for label, count in Counter(LABELS).items() if count > 1]
    assert not twice, f"{twice}: rename all but one of the equations with this label"


def test_labels_begin_with_eq():
    odd = [label for label in LABELS if not re.fullmatch("eq-[a-z0-9-]+", label)]
    assert not odd, f"{odd}: rename to eq-some-words, or no docstring can name it"


@pytest.mark.parametrize("label", LABELS)
def test_an_equation_is_computed_by_a_function(label):
    assert NAMED.get(label), (
        f"{label}: name it, as ``{label}``, in the docstring of the function in vae_book that "
        "computes it; if none should, take the label off"
    )


@pytest.mark.parametrize("label", LABELS)
def test_an_equation_is_checked_by_a_test(label):
    assert CLAIMED.get(label), (
        f'{label}: mark a test with @pytest.mark.equation("{label}", route="...", rel=...), '
        "as tests/agreement.py describes"
    )


def test_docstrings_and_marks_name_equations_that_exist():
    unknown = [
        f"{label}, in {who}"
        for label, names in NAMED.items()
        for who in names
        if label not in LABELS
    ] + [
        f"{label}, in {claim.test}"
        for label, claims in CLAIMED.items()
        for claim in claims
        if label not in LABELS
    ]
    assert not unknown, "no chapter has these labels; mend the spelling: " + "; ".join(unknown)


def test_references_lead_to_equations():
    lost = [
        f"{label}, in {path.name}"
        for path in chapters(ROOT)
        for label in REFERENCE.findall(prose(path))
        if label not in LABELS
    ]
    assert not lost, "no chapter has these labels; mend the reference: " + "; ".join(lost)


def test_the_tolerance_that_is_printed_is_applied():
    for test, definition, marks in marked(ROOT):
        assert len(marks) == 1, f"{test}: one mark only; the fixture agree reads no other"
        assert "agree" in [argument.arg for argument in definition.args.args], (
            f"{test}: ask for the fixture agree, and compare with it"
        )


def test_the_committed_index_is_up_to_date():
    committed = (ROOT / "book" / equations.INDEX).read_text()
    assert committed == index(ROOT, ROOT), "run `make index`"


# The tool, on a small tree -----------------------------------------------------------------------

CHAPTER = r"""# Chapter 1: Toys

$$ no + label $$

Then

$$
a
= b
$$ (eq-both)

and $$c$$ (eq-lonely), also $$ d $$

$$
e
$$ (eq-tested)
"""
PACKAGE = '''
"""Module docstrings compute nothing: ``eq-lonely``."""
class Box:
    """Equation ``eq-both``, and again ``eq-both``."""
    if True:
        def open(self):
            """Equations ``eq-both`` and
            ``eq-dangling``; eq-lonely without its quotes does not count."""
'''
TESTS = """
import pytest

@pytest.mark.slow
@pytest.mark.equation("eq-both", "eq-tested", route="by hand", rel=1e-9)
def test_a_is_b(agree): ...

@pytest.mark.equation("eq-both", route="draws", abs=0.25, standard_errors=4)
@pytest.mark.parametrize("n", [1])
def test_again(n, agree): ...

@pytest.mark.equation
def test_without_labels(): ...

def test_unmarked(): ...
"""


@pytest.fixture
def tree(tmp_path):
    files = {
        "_toc.yml": "{root: book/intro, parts: [{chapters: "
        "[{file: book/z}, {file: book/a}, {file: book/notation}]}]}",
        "vae_book/toys.py": PACKAGE,
        "tests/unit/test_toys.py": TESTS,
        "tests/unit/helper.py": TESTS,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "book").mkdir()
    code = new_code_cell("'$$ f $$ (eq-code)'")
    for name, text in {"z": CHAPTER, "a": "# Chapter 2: More\n\n$$ g $$ (eq-g)"}.items():
        notebook = new_notebook(cells=[new_markdown_cell(text), code])
        nbformat.write(notebook, tmp_path / "book" / f"{name}.ipynb")
    return tmp_path


def test_equations_are_the_labelled_displays_in_the_order_of_the_book(tree):
    assert equations.equations(tree) == [
        Equation("eq-both", "a\n= b", "Chapter 1: Toys"),
        Equation("eq-lonely", "c", "Chapter 1: Toys"),
        Equation("eq-tested", "e", "Chapter 1: Toys"),
        Equation("eq-g", "g", "Chapter 2: More"),
    ]


def test_functions_and_classes_are_those_whose_docstrings_name_the_label(tree):
    assert named(tree) == {
        "eq-both": ["toys.Box", "toys.Box.open"],
        "eq-dangling": ["toys.Box.open"],
    }


def test_claims_are_the_marks_of_the_tests(tree):
    first = Claim("tests/unit/test_toys.py::test_a_is_b", "by hand", "relative 1e-9")
    again = "absolute 0.25 plus 4 standard errors"
    second = Claim("tests/unit/test_toys.py::test_again", "draws", again)
    assert claimed(tree) == {"eq-both": [first, second], "eq-tested": [first]}


def test_the_index_shows_what_there_is_and_leaves_the_rest_empty(tree):
    equations.write_index(tree, tree)
    text = (tree / "book" / "_equations.md").read_text()
    chapter, *others = text.split("## ")[1:]
    assert chapter.startswith("Chapter 1: Toys\n")
    assert len(others) == 1
    both, lonely, tested = chapter.split(":::{container}")[1:]
    assert "$$\na\n= b\n$$\n" in both
    assert "{eq}`eq-both`: `toys.Box`, `toys.Box.open`\n" in both
    assert "- by hand, relative 1e-9\\\n  *a is b* (`test_toys`)" in both.replace("&NoBreak;", "")
    assert "- draws, absolute 0.25 plus 4 standard errors\\\n  *again* (`test_toys`)" in both
    assert "{eq}`eq-lonely`" in lonely
    assert "toys" not in lonely
    assert "*a is b*" in tested
    assert "toys.Box" not in tested
    assert "eq-dangling" not in text  # what no chapter has, Sphinx could not find


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ({}, "exact"),
        ({"rel": 1e-9}, "relative 1e-9"),
        ({"abs": 5e-12}, "absolute 5e-12"),
        ({"standard_errors": 4}, "4 standard errors"),
        ({"rel": 1e-10, "abs": 0.5}, "relative 1e-10 plus absolute 0.5"),
    ],
)
def test_tolerances_in_words(mark, words):
    assert equations.tolerance(**mark) == words
