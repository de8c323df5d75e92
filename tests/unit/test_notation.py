"""Every symbol of a displayed equation stands in the notation, for the book or for its chapter."""

import re
from pathlib import Path

import pytest

from contents import chapters, prose

ROOT = Path(__file__).parents[2]
GREEK = frozenset(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "pi",
        "rho",
        "sigma",
        "tau",
        "phi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Pi",
        "Sigma",
        "Phi",
        "Psi",
        "Omega",
        "ell",
    ]
)
WORDS = re.compile(r"\\(?:text|operatorname|mathrm|begin|end|tag)\*?\{[^{}]*\}")
ALPHABETS = re.compile(r"\\(mathbb|mathcal|mathbf)\{(\w)\}")


def symbols(tex):
    """The letters of a formula: Latin, Greek, and those of other alphabets as one of them."""
    tex = ALPHABETS.sub(r" \\\1\2 ", WORDS.sub(" ", tex))
    found = re.findall(r"\\([A-Za-z]+)|([A-Za-z])", tex)
    named = {name for name, _ in found if name in GREEK or name.startswith("math")}
    return named | {letter for _, letter in found if letter}


def rows(section):
    """The cells of the tables of a section of the notation."""
    text = (ROOT / "book" / "notation.md").read_text("utf-8").split(f"## {section}\n")[1]
    lines = re.findall(r"^\| (.+) \|$", text.split("\n## ")[0], re.MULTILINE)[1:]
    return [re.split(r" \| ", line) for line in lines]


def listed(cell):
    """The symbols that a cell of the notation lists."""
    return set().union(*map(symbols, re.findall(r"\$(.+?)\$", cell)))


EVERYWHERE = set().union(*(listed(symbol) for symbol, *_ in rows("In the whole book")))
CHAPTERS = {path.stem[:2].lstrip("0"): path for path in chapters(ROOT)}


def of_chapter(number):
    """The symbols that are listed for one chapter."""
    return [
        listed(cell) for where, cell, *_ in rows("Letters of single chapters") if where == number
    ]


@pytest.mark.parametrize("number", CHAPTERS)
def test_each_symbol_of_an_equation_is_listed(number):
    equations = re.findall(r"\$\$(.+?)\$\$", prose(CHAPTERS[number]), re.DOTALL)
    used = set().union(*map(symbols, equations))
    assert used - EVERYWHERE.union(*of_chapter(number)) == set()


@pytest.mark.parametrize("number", CHAPTERS)
def test_what_is_listed_for_a_chapter_is_used_there(number):
    used = symbols(" ".join(re.findall(r"\$+(.+?)\$+", prose(CHAPTERS[number]), re.DOTALL)))
    for each in of_chapter(number):
        assert each <= used, f"chapter {number} has no {each - used}"


def test_chapters_of_the_notation_are_those_of_the_book():
    assert {where for where, *_ in rows("Letters of single chapters")} <= CHAPTERS.keys()


def test_letters_of_a_formula_are_told_from_words_and_commands():
    tex = r"\mathcal{L}_K = \operatorname{Var}[w] \text{ nats} \big( \hat x \mid \theta \big)"
    assert symbols(tex) == {"mathcalL", "K", "w", "x", "theta"}
