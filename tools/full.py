"""Run chapters on all of MNIST, and write down what they print there.

    VAE_BOOK_DATA=... python tools/full.py [08 09 ...]

`make full` calls it. Readers who set VAE_BOOK_DATASET=full find in book/full_mnist.md what to
expect: the output of every cell whose numbers come from training. Chapters that are not named keep
what was measured before, in book/results/full_mnist.json.
"""

import json
import os
import sys
import time
from pathlib import Path

import nbformat

from book import execute
from contents import chapters, title
from vae_book.data import DataError, load_mnist
from vae_book.device import best_device, describe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "book" / "results" / "full_mnist.json"
PAGE = ROOT / "book" / "full_mnist.md"
TEXT = """# On all of MNIST

The chapters show the 5,000 digits that come with a package. With `VAE_BOOK_DATASET=full` they train
on MNIST's 60,000 images and are tested on its 10,000. This is what their trained cells print then,
in the order of each chapter (`make full` wrote this page). The text of the chapters speaks of the
small set.
"""


def main() -> None:
    os.environ["VAE_BOOK_DATASET"] = "full"
    try:
        load_mnist("test")
    except DataError as error:
        raise SystemExit(str(error)) from error
    for path in trained_chapters():
        if sys.argv[1:] and path.name[:2] not in sys.argv[1:]:
            continue
        notebook, start = nbformat.read(path, as_version=4), time.perf_counter()
        execute(notebook, path.parent)
        seconds = round(time.perf_counter() - start)
        print(f"{path.stem}: {seconds} s", flush=True)
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        found[path.stem] = {
            "title": title(notebook),
            "device": describe(best_device()),
            "seconds": seconds,
            "printed": printed(notebook),
        }
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    PAGE.write_text(page(json.loads(RESULTS.read_text())))


def trained_chapters() -> list[Path]:
    """The chapters that print trained numbers."""
    return [path for path in chapters(ROOT) if printed(nbformat.read(path, as_version=4))]


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What the trained cells put out, a text for each output."""
    texts = []
    for cell in notebook.cells:
        if "trained" in cell.metadata.get("tags", []):
            streams = [o.text for o in cell.outputs if o.output_type == "stream"]
            texts += ["".join(streams)] if streams else []
            texts += [o.data["text/plain"] for o in cell.outputs if "data" in o]
    return texts


def page(found: dict[str, dict]) -> str:
    """The page of the book, from what was measured."""
    parts = [TEXT]
    for stem, run in sorted(found.items()):
        parts.append(f"## [{run['title']}]({stem}.ipynb)\n")
        parts.append(f"{run['seconds']} seconds on a {run['device']}.\n")
        for text in run["printed"]:
            plain = text.startswith("|") or text.endswith(".")
            parts.append(f"{text}\n" if plain else f"```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
