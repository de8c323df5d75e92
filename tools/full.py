"""Run chapters on all of MNIST, and write down what they print there.

    VAE_BOOK_DATA=... python tools/full.py [08 09 ...]
    python tools/full.py --page    write the page alone

`make full` calls it. Readers who set VAE_BOOK_DATASET=full find in book/full_mnist.md what to
expect: the output of every cell whose numbers come from training, kept in
book/results/full_mnist.json under the cell's source. A cell that has changed since is marked on the
page; `make index` does that. Chapters that are not named keep what was measured before.
"""

# isort: off
import stopping
from processes import Kernels, workers  # sets one thread, before torch is imported

# isort: on
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat

from book import execute
from contents import chapters, title
from vae_book.data import load_images
from vae_book.device import best_device, describe
from vae_book.files import replacing
from vae_book.images import DataError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "book" / "results" / "full_mnist.json"
PAGE = "full_mnist.md"
HEADING = re.compile(r"^#{1,3} (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)  # a comment in code is no heading
STALE = "*Not measured since this cell was changed: `make full` does it.*"
TEXT = """# On all of MNIST

The chapters show the 5,000 digits that come with a package. With `VAE_BOOK_DATASET=full` they train
on MNIST's 60,000 images and are tested on its 10,000. This is what their trained cells print then,
in the order of each chapter, under the heading of the section where it stands (`make full` wrote
this page). The text of the chapters speaks of the small set.
"""


def main() -> None:
    if sys.argv[1:] == ["--page"]:
        write_page()
        return
    os.environ["VAE_BOOK_DATASET"] = "full"
    try:
        load_images("test")
    except DataError as error:
        raise SystemExit(str(error)) from error
    kernels, device = Kernels(), best_device()

    def run(path: Path) -> str:
        """Run one chapter and keep what it prints; says how long it took."""
        notebook, start = nbformat.read(path, as_version=4), time.perf_counter()
        execute(notebook, path.parent, kernels)
        elapsed = round(time.perf_counter() - start)
        found[path.stem] = {
            "device": describe(device),
            "seconds": elapsed,
            "cells": {name: texts for _, name, texts in trained(notebook)},
        }
        return f"{path.stem}: {elapsed} s"

    found, words = measured(), sys.argv[1:]
    chosen = [path for path in trained_chapters() if not words or path.name[:2] in words]
    for line in kernels.side_by_side(run, chosen, workers(device.type)):
        print(line, flush=True)
        with replacing(RESULTS) as part:
            text = json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True)
            part.write_text(f"{text}\n")
    write_page()


def trained_chapters() -> list[Path]:
    """The chapters that print trained numbers."""
    return [path for path in chapters(ROOT) if trained(nbformat.read(path, as_version=4))]


def trained(notebook: nbformat.NotebookNode) -> list[tuple[str, str, list[str]]]:
    """Of each trained cell that puts something out: its section, its key and what it puts out."""
    found, section = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            section = ([section, *HEADING.findall(FENCED.sub("", cell.source))])[-1]
        elif "trained" in cell.metadata.get("tags", []) and cell.outputs:
            found.append((section, key(cell.source), printed(cell)))
    return found


def key(source: str) -> str:
    """What a cell's outputs are kept under: another one for another cell."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def printed(cell: nbformat.NotebookNode) -> list[str]:
    """What a cell puts out, a text for each output."""
    streams = [output.text for output in cell.outputs if output.output_type == "stream"]
    texts = ["".join(streams)] if streams else []
    return texts + [output.data["text/plain"] for output in cell.outputs if "data" in output]


def page(found: dict[str, dict], top: Path = ROOT) -> str:
    """The page of the book: what was measured, and what has changed since, said so."""
    parts = [TEXT]
    for path in chapters(top):
        notebook, run = nbformat.read(path, as_version=4), found.get(path.stem, {"cells": {}})
        cells, last = trained(notebook), None
        if not cells:
            continue
        parts.append(f"## [{title(notebook)}]({path.name})\n")
        if "seconds" in run:
            parts.append(f"{run['seconds']} seconds on a {run['device']}.\n")
        for section, name, _ in cells:
            if section != last:
                parts.append(f"**{section}**\n")
            last = section
            texts = [as_markdown(text) for text in run["cells"].get(name, [STALE])]
            parts += texts if texts != parts[-1:] else []  # that nothing is known is said once
    return "\n".join(parts)


def as_markdown(text: str) -> str:
    """Tables and sentences as they are, all else in a box."""
    plain = text.startswith(("|", "*")) or text.rstrip().endswith(".")
    return f"{text}\n" if plain else f"```text\n{text.rstrip()}\n```\n"


def write_page(top: Path = ROOT) -> None:
    """Write the page anew from what was measured, for chapters that may have changed since."""
    (top / "book" / PAGE).write_text(page(measured(), top))


def measured() -> dict[str, dict]:
    """What was measured so far, by chapter."""
    try:
        return json.loads(RESULTS.read_bytes()) if RESULTS.exists() else {}
    except ValueError as error:
        raise SystemExit(
            f"{RESULTS} cannot be read ({error}); put it back with git checkout, or delete it and "
            "measure again with make full"
        ) from error


if __name__ == "__main__":
    try:
        stopping.imported()
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; chapters that have run are kept") from None
