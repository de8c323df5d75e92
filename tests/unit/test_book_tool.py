"""The tool that runs chapters: outputs and alt texts, and what it does not do twice."""

import base64
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import full

ROOT = Path(__file__).parents[2]
FIGURE = """from vae_book import display, figures
import torch
display.show(figures.image_grid(torch.zeros(3, 1, 28, 28)), f"Three of {1 + 1} images.")"""


def write_book(top, source, tags=()):
    """A book of one chapter below ``top``; returns the chapter's path."""
    (top / "book").mkdir(exist_ok=True)
    (top / "_toc.yml").write_text(
        "root: book/intro\nparts: [{chapters: [{file: book/toy}, {file: book/notation}]}]\n"
    )
    cells = [new_markdown_cell("# A toy\n\nwith words"), new_code_cell(source)]
    cells[1].metadata["tags"] = list(tags)
    nbformat.write(new_notebook(cells=cells), top / "book" / "toy.ipynb")
    return top / "book" / "toy.ipynb"


def test_a_chapter_gets_outputs_alt_text_times_and_cover(book, tmp_path, capsys):
    path = write_book(tmp_path, FIGURE, ["cover"])
    book.run_chapters(tmp_path)
    cell = nbformat.read(path, 4).cells[1]
    assert cell.execution_count == 1
    # A committed notebook says nothing about this run's inputs.
    assert set(nbformat.read(path, 4).metadata["vae_book"]) == {"device", "seconds"}
    data = cell.outputs[0]["data"]
    assert data["text/plain"] == "Three of 2 images."
    assert cell.metadata["mystnb"]["image"]["alt"] == data["text/plain"]
    assert cell.metadata["mystnb"]["figure"]["caption"] == data["text/plain"]
    cover = tmp_path / "book" / "images" / "cover.png"
    assert cover.read_bytes() == base64.b64decode(data["image/png"])
    table = (tmp_path / "book" / "_chapters.md").read_text()
    assert "[A toy](toy.ipynb)" in table
    assert (tmp_path / "book" / "_equations.md").read_text() == ""  # the toy has none
    printed = capsys.readouterr().out
    assert book.describe(book.best_device()) in printed
    assert "[1/1] A toy: " in printed


def test_a_chapter_runs_again_only_when_something_changed(book, tmp_path, capsys):
    counter, keep = tmp_path / "runs", tmp_path / "kept"
    source = f"open({str(counter)!r}, 'a').write('x'); print('ran', flush=True)\n"
    source += "import time; time.sleep(0.5); print('on'); display(1); print('end')"
    path = write_book(tmp_path, source)
    book.run_chapters(tmp_path, keep)
    write_book(tmp_path, source)
    book.run_chapters(tmp_path, keep)
    assert counter.read_text() == "x"
    assert "up to date" in capsys.readouterr().out
    first, _, last = nbformat.read(path, 4).cells[1].outputs  # the earlier outputs are shown
    assert (first["text"], last["text"]) == ("ran\non\n", "end\n")  # prints in turn are one
    write_book(tmp_path, source + "  # changed")
    book.run_chapters(tmp_path, keep)
    assert counter.read_text() == "xx"
    assert len(list(keep.iterdir())) == 1, "what is outdated goes"


def test_a_chapter_that_failed_runs_again_once_it_is_mended(book, tmp_path):
    keep = tmp_path / "kept"
    write_book(tmp_path, "1 / 0")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        book.run_chapters(tmp_path, keep)
    path = write_book(tmp_path, "print('mended')")
    book.run_chapters(tmp_path, keep)
    assert nbformat.read(path, 4).cells[1].outputs[0]["text"] == "mended\n"


def test_what_decides_about_a_second_run(book, monkeypatch):
    notebook = new_notebook(cells=[new_code_cell("1")])
    key = book.inputs_key(notebook, "CPU")
    assert key == book.inputs_key(new_notebook(cells=[new_code_cell("1")]), "CPU")
    assert key != book.inputs_key(new_notebook(cells=[new_code_cell("2")]), "CPU")
    assert key != book.inputs_key(notebook, "GPU")
    tagged = new_notebook(cells=[new_code_cell("1", metadata={"tags": ["hide-input"]})])
    assert key != book.inputs_key(tagged, "CPU")
    monkeypatch.setenv("VAE_BOOK_DATASET", "full")
    assert key != book.inputs_key(notebook, "CPU")


def test_the_page_of_full_mnist_is_that_of_the_measurement_and_of_the_chapters():
    page = ROOT / "book" / full.PAGE
    assert page.read_text() == full.page(full.measured()), "run `make index`"
    stale = page.read_text().count(full.STALE)
    if stale:
        pytest.skip(f"{stale} trained cells have changed since `make full` measured them")


def test_a_cell_that_is_new_or_has_changed_is_marked_on_the_page(tmp_path):
    path = write_book(tmp_path, "print('loss 1.5')")
    notebook = nbformat.read(path, 4)
    cell = notebook.cells[-1]
    cell.metadata["tags"] = ["trained"]
    cell.outputs = [new_output("stream", text="loss 1.5\n")]
    nbformat.write(notebook, path)
    stem, name = path.stem, full.key(cell.source)
    found = {stem: {"device": "CPU", "seconds": 3, "cells": {name: ["loss 0.5\n"]}}}
    assert "loss 0.5" in full.page(found, tmp_path)
    assert full.STALE not in full.page(found, tmp_path)
    cell.source += "  # changed"
    nbformat.write(notebook, path)
    assert "loss 0.5" not in full.page(found, tmp_path)
    assert full.STALE in full.page(found, tmp_path)
    assert full.STALE in full.page({}, tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no-such-set", r"source: expected 'bundled', 'full' \(MNIST\), .* got 'no-such-set'\n"),
        ("empty", r"source: no pictures in .*empty"),
        ("full", r"(?s).*To go on, "),
    ],
)
def test_what_is_wrong_with_the_data_is_told_before_chapters_run(
    book, monkeypatch, capsys, tmp_path, source, message
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["book.py", "build"])
    monkeypatch.setenv("VAE_BOOK_DATASET", source)
    monkeypatch.setenv("VAE_BOOK_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(book, "build", lambda **_: pytest.fail("the chapters run"))
    assert book.main() == 1
    said = capsys.readouterr().err
    assert re.match(message, said)
    assert "Traceback" not in said
