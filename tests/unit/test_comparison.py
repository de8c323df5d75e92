"""What nbval, with the tolerances of conftest.py, lets pass and what it does not."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tests.comparison import Printed, Trained

NBVAL = ["--nbval", "--nbval-current-env", "-p", "no:cacheprovider"]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("stored", "fresh", "tight", "trained"),
    [
        ("bound 113.30", "bound 113.30", True, True),
        ("bound 113.30", "bound 113.31", True, True),
        ("bound 113.30", "bound 113.35", False, True),
        ("bound 113.30", "bound 115.30", False, False),
        ("bound 113.30", "bund 113.30", False, False),
        ("bound 113.30", "bound -113.30", False, False),
        ("from -3 to -1.50", "from −3 to −1.50", True, True),
        ("10 of 20", "11 of 20", False, False),
        ("0.00 nats", "0.01 nats", True, True),
        ("0.00 nats", "0.06 nats", False, False),
        ("31 nats", "30 nats", False, True),
        ("of 96%", "of 95%", False, True),
        ("−994 nats", "−950 nats", False, False),
        ("31 images", "30 images", False, False),
        ("4.80 ± 0.50 nats", "4.40 ± 0.60 nats", False, True),
        ("4.80 ± 0.50 nats", "4.20 ± 0.50 nats", False, False),
        ("4.80 ± 0.50 nats", "4.80 ± 0.70 nats", False, False),
        ("994 ± 20 nats", "980 ± 20 nats", False, False),
        ("a 1.50  b", "a  1.50 b", True, True),
        ("1.5, 2.5", "1.5", False, False),
        ("1.5", "1.50", False, False),
        ("1.2e-3", "1.2e-2", False, False),
        ("1.20e-3", "1.21e-3", True, True),
        ("agrees: True", "agrees: False", False, False),
    ],
)
def test_words_match_exactly_and_decimals_nearly(stored, fresh, tight, trained):
    assert (Printed(stored) == fresh) is tight
    assert (Trained(stored) == fresh) is trained
    assert (Printed(stored) != fresh) is not tight


def test_the_bound_of_a_broken_model_does_not_pass_for_that_of_the_healthy_one():
    chapter = nbformat.read(ROOT / "book" / "12_the_clinic.ipynb", as_version=4)
    texts = [
        o["data"]["text/plain"] for c in chapter.cells for o in c.get("outputs", []) if "data" in o
    ]
    (table,) = [text for text in texts if text.startswith("| fault | it reports |")]
    healthy, *broken = [row.split(" | ")[2] for row in table.splitlines()[2:]]
    assert len(broken) == 4
    assert not [bound for bound in broken if Trained(healthy) == bound]


CELLS = {
    # name: (source, stored output, tags, passes)
    "same": ("print('loss 1.5000')", "loss 1.5000\n", [], True),
    "drifted": ("print('loss 1.5040')", "loss 1.5000\n", [], False),
    "drifted in training": ("print('loss 1.5040')", "loss 1.5000\n", ["trained"], True),
    "wrong in training": ("print('loss 1.5300')", "loss 1.5000\n", ["trained"], False),
    "other words": ("print('gain 1.5000')", "loss 1.5000\n", ["trained"], False),
    "nothing stored": ("print('loss 1.5000')", None, [], False),
    "nothing printed": ("pass", "loss 1.5000\n", [], False),
    "stderr": ("import sys; print('x', file=sys.stderr)", None, [], False),
    "warning": ("import warnings; warnings.warn('x')", None, [], False),
    "error": ("1 / 0", None, [], False),
    "network": (
        "import socket; s = socket.socket(); s.settimeout(2); s.connect(('192.0.2.1', 80))",
        None,
        [],
        False,
    ),
    "network is off": (
        "import socket\ntry:\n    socket.create_connection(('192.0.2.1', 80), timeout=2)\n"
        "except OSError as e:\n    print(str(e)[:31])",
        "the tests run without a network\n",
        [],
        True,
    ),
}


def test_a_chapter_fails_for_what_a_reader_would_stumble_over(tmp_path):
    notebook = new_notebook()
    for number, (source, stored, tags, _) in enumerate(CELLS.values(), 1):
        outputs = [new_output("stream", name="stdout", text=stored)] if stored else []
        notebook.cells.append(
            new_code_cell(source, outputs=outputs, execution_count=number, metadata={"tags": tags})
        )
    nbformat.write(notebook, tmp_path / "chapter.ipynb")
    shutil.copy(ROOT / "conftest.py", tmp_path)
    for folder in ("tests", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", *NBVAL, "chapter.ipynb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    verdicts = {
        name: f"PASSED chapter.ipynb::Cell {number}" in run.stdout
        and f"FAILED chapter.ipynb::Cell {number} " not in run.stdout
        for number, name in enumerate(CELLS)
    }
    assert verdicts == {name: passes for name, (_, _, _, passes) in CELLS.items()}


def test_this_process_has_no_network_either():
    with pytest.raises(OSError, match="without a network"):
        socket.create_connection(("192.0.2.1", 80), timeout=2)
