"""A card under every table of measured numbers, and no column with two protocols in a chapter.

The chapters named here show `Measurement` cells, or hand `show_table` the protocol of plain ones.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CARDED = ("13_how_good_is_it",)  # chapters all of whose tables hold measured numbers
CARD = re.compile(r"^\*Protocol: .+; .+, [\d,]+ images, \S+ pixels.*\*$")


def code(name):
    cells = json.loads((ROOT / "book" / f"{name}.ipynb").read_text("utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells if "outputs" in cell]


def tables(cell):
    shown = ["".join(each.get("data", {}).get("text/markdown", "")) for each in cell["outputs"]]
    return [text.split("\n\n") for text in shown if text.startswith("| ")]


@pytest.mark.parametrize("name", CARDED)
def test_every_table_has_its_card(name):
    found = [(cell["source"], table) for cell in code(name) for table in tables(cell)]
    assert found
    for source, (_, *lines) in found:
        assert lines, source
        assert all(map(CARD.match, lines)), source


@pytest.mark.parametrize("name", CARDED)
def test_a_standard_error_in_a_table_is_that_of_a_measurement(name):
    """Else nobody would compare its protocol with that of the others in its column."""
    by_hand = [cell["source"] for cell in code(name) if "show_table" in cell["source"]]
    assert not [source for source in by_hand if "±" in source or "pm(" in source.split("claim(")[0]]


def rows_of_results():
    return json.loads((ROOT / "book" / "results" / "chapter_13.json").read_text())


@pytest.fixture
def chapter(monkeypatch):
    """Run the cells of chapter 13 that show tables of stored results, of these results."""
    monkeypatch.setattr("IPython.display.display", lambda *args, **options: shown.append(args))
    shown = []

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
        return len(shown)

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
