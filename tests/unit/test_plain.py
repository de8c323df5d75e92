"""Chapters in plain Markdown: what MyST becomes, and that it becomes MyST again."""

import copy
import re
from pathlib import Path

import nbformat
import pytest
from markdown_it import MarkdownIt
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import plain
from contents import chapters, title
from plain_markdown import myst, myst_cells, without_solutions

ROOT = Path(__file__).parents[2]
HERE, THERE = "01_bayes.ipynb", "02_kl_divergence.ipynb"
BOOK = plain.Book(
    {
        "eq-here": plain.Place(HERE, "1.3"),
        "eq-there": plain.Place(THERE, "2.1"),
        "ex-here": plain.Place(HERE, "1.1"),
        "sec-there": plain.Place(THERE, "2.1"),
    },
    {
        "one1999": ("One", "1999", "https://doi.org/10.1/a"),
        "two2001": ("Two and Three", "2001", "https://arxiv.org/abs/0101.00001"),
    },
)
ONE, TWO = 'https://doi.org/10.1/a "one1999"', 'https://arxiv.org/abs/0101.00001 "two2001"'
NUMBERED = '<a id="eq-here"></a>\n$$\na\n\\tag{1.3}\n$$'
INLINE = {
    "as in {eq}`eq-here`": "as in [(1.3)](#eq-here)",
    "as in {eq}`eq-there`": "as in [(2.1)](02_kl_divergence.ipynb#eq-there)",
    "{numref}`Exercise {number} <ex-here>` says": "[Exercise 1.1](#ex-here) says",
    "see {ref}`chapter 2 <sec-there>`.": "see [chapter 2](02_kl_divergence.ipynb#sec-there).",
    "so {cite}`one1999`.": f"so ([One, 1999]({ONE})).",
    "so {cite}`one1999,two2001`.": f"so ([One, 1999]({ONE}); [Two and Three, 2001]({TWO})).",
    "{cite:t}`two2001` say": f"[Two and Three (2001)]({TWO}) say",
    "(see {cite:t}`one1999`)": f"(see [One (1999)]({ONE}))",
    "(sec-there)=\n## Title": '<a id="sec-there"></a>\n## Title',
    "So\n\n$$\na\n$$ (eq-here)\n\nis": f"So\n\n{NUMBERED}\n\nis",
    "$$\nb\n$$\n\nand\n\n$$\na\n$$ (eq-here)": f"$$\nb\n$$\n\nand\n\n{NUMBERED}",
    "[chapter 2](02_kl_divergence.ipynb) and [a page](https://example.org)": None,
}


@pytest.mark.parametrize(("text", "expected"), INLINE.items())
def test_inline_myst_becomes_plain_and_myst_again(text, expected):
    (found,) = plain.plain(text, HERE, BOOK)
    assert found == (expected or text)
    assert myst(found) == text


@pytest.mark.parametrize("text", ["{eq}`eq-none`", "{cite}`none`", "{doc}`eq-here`"])
def test_what_is_not_there_is_named(text):
    with pytest.raises(ValueError, match=r"^01_bayes.ipynb: .*(eq-none|none|doc)"):
        plain.plain(text, HERE, BOOK)


def test_a_box_is_a_quotation():
    (found,) = plain.plain("A\n\n```{admonition} Mind\n:class: caution\nthe $x$\n```", HERE, BOOK)
    assert found == "A\n\n> **Mind**\n>\n> the $x$"
    assert "{admonition} Mind\n:class: caution\n\nthe $x$\n" in myst(found)


EXERCISE = "## Exercises\n\n```{exercise} Sums\n:label: ex-here\nProve {eq}`eq-here`.\n```"


def chapter():
    """A notebook with an exercise whose solution has words and code."""
    return new_notebook(
        cells=[
            new_markdown_cell("# Chapter 1: A toy"),
            new_code_cell(
                "import math",
                execution_count=1,
                outputs=[
                    new_output("stream", name="stdout", text="a\n"),
                    new_output("stream", name="stdout", text="b\n"),
                    new_output("display_data", {"text/plain": "c"}),
                    new_output("stream", name="stdout", text="d\n"),
                ],
            ),
            new_markdown_cell(EXERCISE, id="exercise"),
            new_markdown_cell("```{solution-start} ex-here\n:class: dropdown\n```", id="start"),
            new_markdown_cell("By hand.", id="hand"),
            new_code_cell("1 + 1", execution_count=2, metadata={"tags": ["hide-input"]}),
            new_markdown_cell("```{solution-end}\n```"),
            new_markdown_cell("## Further reading"),
        ]
    )


def made_plain():
    notebook = chapter()
    plain.make_plain(notebook, HERE, BOOK, "pass")
    return notebook


def test_exercises_and_solutions_are_sections_that_fold():
    cells = made_plain().cells
    assert [cell.source for cell in cells] == [
        "# Chapter 1: A toy",
        "pass",
        "import math",
        "## Exercises",
        '<a id="ex-here"></a>\n### Exercise 1.1: Sums\nProve [(1.3)](#eq-here).',
        "#### Solution",
        "By hand.",
        "1 + 1",
        "## Further reading",
    ]
    folded = [cell.source for cell in cells if cell.metadata.get("jp-MarkdownHeadingCollapsed")]
    assert folded == ["#### Solution"]
    hidden = [cell.source for cell in cells if "jupyter" in cell.metadata]
    assert hidden == ["pass", "1 + 1"]
    assert [c.execution_count for c in cells if c.cell_type == "code"] == [1, 2, 3]
    assert len({cell.id for cell in cells}) == len(cells)


def test_lines_printed_one_after_the_other_are_one_output():
    outputs = made_plain().cells[2].outputs
    assert [each.get("text") for each in outputs] == ["a\nb\n", None, "d\n"]


def test_what_is_plain_stays_as_it_is():
    once = made_plain()
    twice = copy.deepcopy(once)
    plain.make_plain(twice, HERE, BOOK, "pass")
    assert twice == once


def test_a_number_that_has_changed_is_written_anew():
    notebook = made_plain()
    moved = BOOK._replace(places=BOOK.places | {"eq-here": plain.Place(HERE, "1.4")})
    plain.make_plain(notebook, HERE, moved, "pass")
    assert "[(1.4)](#eq-here)" in notebook.cells[4].source


def test_the_site_gets_directives_back():
    text = "\n\n".join(cell["source"] for cell in myst_cells(made_plain().cells))
    assert re.findall(r"\{(?:exercise|solution)[^\n]*", text) == [
        "{exercise} Sums",
        "{solution-start} ex-here",
        "{solution-end}",
    ]
    assert ":label: ex-here\n\nProve {eq}`eq-here`." in text
    assert text.index("1 + 1") < text.index("{solution-end}") < text.index("## Further")


def test_without_solutions_the_rest_is_left():
    left = [cell["source"] for cell in without_solutions(made_plain().cells)]
    assert left[-2:] == [made_plain().cells[4].source, "## Further reading"]
    assert "{solution" not in "".join(cell["source"] for cell in myst_cells(made_plain().cells[:5]))


def test_the_readme_calls_the_chapters_by_their_titles():
    readme = (ROOT / "README.md").read_text("utf-8")
    found = dict(re.findall(r"\[(\d+\. [^\]]+)\]\(book/(\d\d_\w+\.ipynb)\)", readme))
    titles = {title(nbformat.read(path, as_version=4)): path.name for path in chapters(ROOT)}
    assert found == {
        words.removeprefix("Chapter ").replace(":", "."): name for words, name in titles.items()
    }


def test_a_box_whose_title_cites_a_source_is_a_box():
    """A fence of backticks may have none after it, and a citation has two."""
    text = '> **Steps ([Author, 1999](https://doi.org/1 "key"))**\n>\n> one\n'
    found = MarkdownIt().parse(myst(text))
    assert [(token.type, token.info) for token in found] == [
        ("fence", "{admonition} Steps {cite}`key`")
    ]
