"""A card under every table of measured numbers, and no column with two protocols in a chapter.

The chapters named here show `Measurement` cells, or hand `show_table` the protocol of plain ones.
Tables of what follows from a formula need no card.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from vae_book.display import show_table
from vae_book.protocol import Measurement, Protocol

ROOT = Path(__file__).parents[2]
CARDED = {"13_how_good_is_it": None, "06_likelihoods": "trained"}  # the tag of measuring cells
CARD = re.compile(r"^\*Protocol: .+; .+, [\d,]+ images, \S+ pixels.*\*$")


def code(name):
    cells = json.loads((ROOT / "book" / f"{name}.ipynb").read_text("utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells if "outputs" in cell]


def measuring(name):
    """The cells whose tables hold measured numbers: all, or those with a tag."""
    tag = CARDED[name]
    return [cell for cell in code(name) if tag in (None, *cell["metadata"].get("tags", []))]


def tables(cell):
    shown = ["".join(each.get("data", {}).get("text/markdown", "")) for each in cell["outputs"]]
    return [text.split("\n\n") for text in shown if text.startswith("| ")]


@pytest.mark.parametrize("name", CARDED)
def test_every_table_has_its_card(name):
    found = [(cell["source"], table) for cell in measuring(name) for table in tables(cell)]
    assert len(found) >= 7
    for source, (_, *lines) in found:
        assert lines, source
        assert all(map(CARD.match, lines)), source


@pytest.mark.parametrize("name", CARDED)
def test_a_standard_error_in_a_table_is_that_of_a_measurement(name):
    """Else nobody would compare its protocol with that of the others in its column."""
    sources = [cell["source"].split("claim(")[0] for cell in code(name)]
    by_hand = re.compile(r"±|\bpm\(|with_error\(")
    assert not [each for each in sources if "show_table(" in each and by_hand.search(each)]


def rows_of_results():
    return json.loads((ROOT / "book" / "results" / "chapter_13.json").read_text())


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *args, **options: shown.append(args))
    return shown


@pytest.fixture
def chapter(displayed):
    """Run the cells of chapter 13 that show tables of stored results, of these results."""

    def run(results):
        sources = [cell["source"] for cell in code("13_how_good_is_it")]
        start = next(each for each in sources if each.startswith("import json"))
        own = [each for each in sources if "stored(row" in each]
        assert len(own) == 3
        space = {}
        exec(compile(start, "imports", "exec"), space)
        space["results"] = results
        for source in own:
            exec(compile(source, "cell", "exec"), space)
        return len(displayed)

    return run


def test_the_tables_of_stored_results_are_shown(chapter):
    assert chapter(rows_of_results()) >= 3


@pytest.mark.parametrize("change", [{"n_images": 7}, {"pixels": "grayscale"}, {"K": 3}])
@pytest.mark.parametrize(
    ("part", "line"), [("both sides", "gap"), ("budget", "elbo"), ("objectives", "elbo")]
)
def test_a_table_of_the_chapter_that_would_mix_protocols_is_refused(chapter, part, line, change):
    results = rows_of_results()
    row = next(each for each in results if each["part"] == part)
    row[line]["protocol"] |= change
    (name,) = change
    with pytest.raises(ValueError, match=rf"^rows: expected one protocol in the column .* {name} "):
        chapter(results)


@pytest.mark.parametrize("change", ["quantity", "pixels", "binarization", None])
def test_bounds_on_different_things_need_columns_of_their_own(displayed, change):
    """The table of chapter 6 that asks which numbers compare, with one of two densities changed."""
    (cell,) = (each for each in code("06_likelihoods") if "density of gray" in each["source"])
    how = Protocol("negative ELBO", "bundled", "test", 500, "grayscale", 0, "CPU", K=1)
    other = replace(how, **{change: "another"} if change else {})
    cells = [Measurement(1.0, 0.5, each) for each in (how, other, how, how, other)]
    space = {"cells": cells, "show_table": show_table}
    if change is None:
        exec(cell["source"], space)
        assert len(displayed) == 1
        return
    with pytest.raises(ValueError, match=rf"column 'density of gray', got {change} "):
        exec(cell["source"], space)
    assert not displayed
