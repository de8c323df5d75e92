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
from vae_book.ledger import ROWS
from vae_book.protocol import Measurement, Protocol

ROOT = Path(__file__).parents[2]
# All tables of these chapters hold measured numbers, or those of the cells with a tag.
CARDED = {"06_likelihoods": "trained", "11_conditional_vae": None, "13_how_good_is_it": None}
# What stands in the cells that show tables of stored results.
STORED = {
    "11_conditional_vae": ("one_row(run)", "from_dict(run"),
    "13_how_good_is_it": ("stored(row",),
}
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
    printed = re.compile(r"^print\(.*$|^claim\(.*", re.MULTILINE)
    sources = [printed.sub("", cell["source"]) for cell in code(name)]
    by_hand = re.compile(r"±|\bpm\(|with_error\(")
    assert not [each for each in sources if "show_table(" in each and by_hand.search(each)]


def results_of(name):
    return json.loads((ROOT / "book" / "results" / f"chapter_{name[:2]}.json").read_text())


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *args, **options: shown.append(args))
    return shown


@pytest.fixture
def chapter(displayed, monkeypatch):
    """Run the cells of a chapter that show tables of stored results, of these results."""
    monkeypatch.chdir(ROOT / "book")

    def run(name, results):
        sources = [cell["source"] for cell in code(name)]
        start = next(each for each in sources if each.startswith("import json"))
        own = [each for each in sources if any(mark in each for mark in STORED[name])]
        assert len(own) == 3
        space = {}
        exec(compile(start, "imports", "exec"), space)
        monkeypatch.setattr(space["json"], "loads", lambda text: results)
        space["results"] = results
        for source in own:
            exec(compile(source, "cell", "exec"), space)
        return len(displayed)

    return run


@pytest.mark.parametrize("name", STORED)
def test_the_tables_of_stored_results_are_shown(chapter, name):
    assert chapter(name, results_of(name)) >= 3


@pytest.mark.parametrize("change", [{"n_images": 7}, {"pixels": "colored"}, {"K": 3}])
@pytest.mark.parametrize(
    ("name", "line", "column"),
    [
        ("13_how_good_is_it", "gap", "the column 'between them'"),
        ("13_how_good_is_it", "elbo", "the column 'VAE'"),
        ("13_how_good_is_it", "weighted", "the column 'log p"),
        ("11_conditional_vae", "held_out", "the column 'negative bound'"),
        ("11_conditional_vae", "obeyed", "the column 'obeyed, %'"),
    ],
)
def test_a_table_of_a_chapter_that_would_mix_protocols_is_refused(
    chapter, name, line, column, change
):
    results = results_of(name)
    row = next(each for each in results if line in each)
    row[line]["protocol"] |= change
    (changed,) = change
    with pytest.raises(ValueError, match=rf"^rows: expected one protocol in {column}.* {changed} "):
        chapter(name, results)


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


@pytest.mark.parametrize("change", [{"n_images": 7}, {"pixels": "colored"}, {"epochs": 3}])
def test_completions_of_two_protocols_share_no_table(chapter, change):
    results = results_of("11_conditional_vae")
    results[-1]["protocol"] |= change
    with pytest.raises(ValueError, match="too many values to unpack"):
        chapter("11_conditional_vae", results)


@pytest.mark.parametrize("kind", ["-network", ""])
def test_the_published_completions_of_chapter_11_are_those_of_the_ledger(kind):
    published = [ROWS[f"completion-{seen}{kind}"].measures.values() for seen in (1, 2, 3)]
    one, two, three = (each.value for (each,) in published)
    cells = json.loads((ROOT / "book" / "11_conditional_vae.ipynb").read_text("utf-8"))["cells"]
    (prose,) = ("".join(cell["source"]) for cell in cells if "pyrocvae" in "".join(cell["source"]))
    assert f"{one}, {two} and {three}" in prose
