"""Run the chapters and build the site.

    python tools/book.py execute   run the chapters in place; refresh outputs, captions, alt texts
    python tools/book.py build     run them on this machine in a copy, and build the site from it
    python tools/book.py build --without-solutions     the same for a class, with bare exercises

`make execute`, `make book` and `make book EDITION=exercises` call it. `build` leaves the committed
notebooks as they are: the copy is in _build/book, the site in _build/html. A chapter whose inputs
are as before is not run again.
"""

# isort: off
import stopping
from processes import Kernels, seconds, workers  # sets one thread, before torch is imported

# isort: on
import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from pathlib import Path

import nbformat
import yaml
from filelock import FileLock, Timeout
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from contents import chapters, prose, title
from equations import write_index
from plain import write_plain
from vae_book.data import data_directory, load_images
from vae_book.device import best_device, describe
from vae_book.files import replacing
from vae_book.images import DataError

ROOT = Path(__file__).parents[1]
COPY = ROOT / "_build" / "book"
KEPT = ROOT / "_build" / "chapters"
SITE = ROOT / "_build" / "html" / "index.html"
CHAPTER_TABLE = "_chapters.md"
WORDS_A_MINUTE = 150  # technical prose with formulas
LOCK = ROOT / "_build" / ".lock"
EXERCISES = re.compile(r"^## Exercises$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def main() -> int:
    stopping.imported()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["execute", "build"])
    parser.add_argument("--without-solutions", action="store_true", help="build bare exercises")
    arguments = parser.parse_args()
    if os.environ.get("VAE_BOOK_DATA"):  # kernels start in another folder
        os.environ["VAE_BOOK_DATA"] = str(data_directory().resolve())
    source = os.environ.get("VAE_BOOK_DATASET")
    if source and Path(source).is_dir():
        os.environ["VAE_BOOK_DATASET"] = str(Path(source).resolve())
    try:
        if arguments.command == "execute":
            return execute_in_place()
        if source:  # what is wrong with it is told before the chapters run, and in one line
            load_images("train", device="cpu", size=28, channels=1)
        LOCK.parent.mkdir(exist_ok=True)
        with FileLock(LOCK, timeout=0):
            return build(solutions=not arguments.without_solutions)
    except Timeout:
        print(
            "another make book is at work in this folder; wait for it, or end it", file=sys.stderr
        )
    except CellExecutionError as error:
        print(f"a chapter failed\n{error}", file=sys.stderr)
    except (ValueError, DataError) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("\nstopped; chapters that have run are kept", file=sys.stderr)
        return 130
    return 1


def execute_in_place() -> int:
    """Refresh the committed notebooks, which show the bundled digits whatever a user prefers."""
    os.environ.pop("VAE_BOOK_DATASET", None)
    run_chapters(ROOT)
    write_plain(ROOT)
    return 0


def build(solutions: bool = True) -> int:
    """Run the chapters in a copy of the book and build the site from that."""
    best_device()  # or it would be refused only once the copy of an earlier build is gone
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy2(ROOT / name, COPY)
    shutil.copytree(ROOT / "book", COPY / "book", ignore=shutil.ignore_patterns(".*"))
    if not solutions:
        hide_solutions(COPY / "_config.yml")
    run_chapters(COPY, keep=KEPT)
    write_plain(COPY)
    print("building the site", flush=True)
    shutil.rmtree(SITE.parent, ignore_errors=True)  # no page of an earlier build stays
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [jupyter_book, "build", COPY, "--path-output", ROOT]
    # A warning is an error, a dead link too; --all, because a page is read once and warns once.
    strict = ["--all", "-W", "-n", "--keep-going", "--quiet"]
    status = subprocess.run([*command, *strict], check=False).returncode
    if status == 0:
        print(f"\nThe book is ready. Open it in a browser:\n  {SITE.as_uri()}")
    return status


def hide_solutions(config: Path) -> None:
    """Have a configuration build the book without its solutions."""
    settings = yaml.safe_load(config.read_text("utf-8"))
    settings["sphinx"]["config"]["hide_solutions"] = True
    config.write_text(yaml.safe_dump(settings), "utf-8")


def run_chapters(top: Path, keep: Path | None = None) -> None:
    """Run each chapter below ``top``; write the table of chapters and the index of equations.

    Args:
        top: the folder that holds _toc.yml and book/.
        keep: where to keep chapters that have run, named for their inputs; one that is there
            already is not run again. None runs everything.
    """
    device, kernels = best_device(), Kernels()
    name, paths = describe(device), chapters(top)
    count = min(workers(device.type), len(paths))
    beside = f", {count} at a time" if count > 1 else ""
    print(f"running {len(paths)} chapter{'s' * (len(paths) > 1)} on {name}{beside}", flush=True)

    def run(path: Path) -> str:
        """Run one chapter, or take it from what is kept; says how it went."""
        notebook = nbformat.read(path, as_version=4)
        kept = keep / f"{path.stem}-{inputs_key(notebook, name)}.ipynb" if keep else None
        if kept and kept.exists():
            notebook, took = nbformat.read(kept, as_version=4), "up to date"
        else:
            start = time.perf_counter()
            execute(notebook, path.parent, kernels)
            elapsed = round(time.perf_counter() - start)
            notebook.metadata["vae_book"] = {"device": name, "seconds": elapsed}
            took = f"{elapsed} s"
            if kept:
                keep_chapter(notebook, kept, outdated=f"{path.stem}-*.ipynb")
        nbformat.write(notebook, path)
        write_cover(notebook, path.parent / "images" / "cover.png")
        return f"{title(notebook)}: {took}"

    longest_first = sorted(paths, key=seconds, reverse=True)
    done = kernels.side_by_side(run, longest_first, count)
    for number, line in enumerate(done, 1):
        print(f"[{number}/{len(paths)}] {line}", flush=True)
    write_chapter_table(top)
    write_index(top)


def keep_chapter(notebook: NotebookNode, path: Path, outdated: str) -> None:
    """Keep a chapter that has run, whole or not at all, in place of those of that pattern."""
    for old in path.parent.glob(outdated):
        old.unlink()
    with replacing(path) as part:
        nbformat.write(notebook, part)


def execute(notebook: NotebookNode, folder: Path, kernels: Kernels) -> None:
    """Run a notebook from a fresh kernel; the sentence of each figure becomes its alt text."""
    kernels.execute(notebook, folder)
    notebook.metadata = NotebookNode(
        kernelspec={"name": "python3", "display_name": "Python 3", "language": "python"},
        language_info={"name": "python", "pygments_lexer": "ipython3"},
    )
    for cell in notebook.cells:
        cell.metadata.pop("mystnb", None)
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
        for output in cell.get("outputs", []):
            data, shown = output.get("data", {}), output.get("metadata", {})
            for kind in set(shown) - {"image/png"}:  # which has the size of a figure
                del shown[kind]
            if "image/png" in data:
                # A cell has one figure, so the cell's metadata can describe it.
                sentence = data["text/plain"]
                cell.metadata["mystnb"] = {"image": {"alt": sentence}}
                cell.metadata["mystnb"]["figure"] = {"caption": sentence}


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs of a cell, prints that follow each other as one: they come apart in time."""
    found: list[NotebookNode] = []
    for output in outputs:
        if found and output.output_type == "stream" and output.name == found[-1].get("name"):
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def write_cover(notebook: NotebookNode, path: Path) -> None:
    """Keep the picture of the cell tagged ``cover``, for the introduction and the README."""
    for cell in notebook.cells:
        if "cover" in cell.metadata.get("tags", []):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b64decode(cell.outputs[0]["data"]["image/png"]))


def inputs_key(notebook: NotebookNode, device: str) -> str:
    """A digest of all that decides what a chapter prints."""
    digest = hashlib.sha256()
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        digest.update(f"{cell.cell_type}\0{tags}\0{cell.source}\0".encode())
    for files in ("vae_book/*.py", "vae_book/*.js", "requirements.lock", "book/results/**/*.*"):
        for path in sorted(ROOT.glob(files)):
            digest.update(path.read_bytes())
    digest.update(
        f"{device}\0{os.environ.get('VAE_BOOK_DATASET', '')}\0{data_directory()}".encode()
    )
    return digest.hexdigest()


def write_chapter_table(top: Path) -> None:
    """The table of the introduction: what a chapter answers, and how long it takes."""
    rows = ["| chapter | reading | running here |", "|---|---|---|"]
    for path in chapters(top):
        notebook = nbformat.read(path, as_version=4)
        text = EXERCISES.sub("", prose(path))
        minutes = round(len(text.split()) / WORDS_A_MINUTE / 5) * 5
        ran = notebook.metadata["vae_book"]
        rows.append(
            f"| [{title(notebook)}]({path.name}) | {minutes}&nbsp;minutes "
            f"| {ran['seconds']}&nbsp;seconds on a {ran['device']} |"
        )
    (top / "book" / CHAPTER_TABLE).write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    sys.exit(main())
