"""Ctrl-C ends what runs with one line and exit code 130, and nothing goes on behind it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parents[2]


def interrupted(command, ready, first_on_path=""):
    """Ctrl-C at a terminal, once ``ready()``: exit code and what was said on stderr."""
    path = [str(first_on_path), str(ROOT), str(ROOT / "tools")]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(600):
        if ready():
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    return process.returncode, said.strip()


def test_chapters_stop_with_one_line_and_their_kernels_end(tmp_path):
    started = tmp_path / "started"  # a file for each kernel, named by its process
    started.mkdir()
    cell = f"import os, time; open(f'{started}/{{os.getpid()}}', 'w').close(); time.sleep(100)"
    nbformat.write(new_notebook(cells=[new_code_cell(cell)]), tmp_path / "long.ipynb")
    script = tmp_path / "run.py"
    script.write_text(
        "import stopping, sys, nbformat\n"
        "from pathlib import Path\n"
        "from processes import Kernels\n"
        "stopping.imported()\n"
        "kernels, path = Kernels(), Path(sys.argv[1])\n"
        "run = lambda p: kernels.execute(nbformat.read(p, as_version=4), p.parent)\n"
        "try:\n"
        "    list(kernels.side_by_side(run, [path, path], 2))\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped', file=sys.stderr)\n"
        "    sys.exit(130)\n"
    )
    ready = lambda: len(list(started.iterdir())) == 2  # noqa: E731
    code, said = interrupted([str(script), str(tmp_path / "long.ipynb")], ready)
    assert (code, said) == (130, "stopped")
    for kernel in started.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(kernel.name), 0)


def test_a_kernel_that_is_just_starting_ends_too(tmp_path):
    """Its process is not there yet when the others are ended."""
    starting = tmp_path / "starting"
    script = tmp_path / "run.py"
    script.write_text(
        "import stopping, sys, time\n"
        "from pathlib import Path\n"
        "from processes import Kernels\n"
        "stopping.imported()\n"
        "class Process:\n"
        "    ended = False\n"
        "    def poll(self): return self.ended or None\n"
        "    def kill(self): self.ended = True\n"
        "class Client: km = None\n"
        "def run(path):\n"
        "    kernels.clients.append(client := Client())\n"
        "    Path(sys.argv[1]).touch()\n"
        "    time.sleep(1)\n"
        "    client.km = type('', (), {})()\n"
        "    client.km.provisioner = type('', (), {})()\n"
        "    client.km.provisioner.process = process = Process()\n"
        "    while not process.ended: time.sleep(0.05)\n"
        "kernels = Kernels()\n"
        "try:\n"
        "    list(kernels.side_by_side(run, [Path()], 1))\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped', file=sys.stderr)\n"
        "    sys.exit(130)\n"
    )
    assert interrupted([str(script), str(starting)], starting.exists) == (130, "stopped")


@pytest.mark.parametrize(
    ("command", "end"),
    [
        (["tools/book.py", "build"], "stopped"),
        (
            ["-m", "vae_book", "train"],
            "stopped; the same command with --resume goes on after the last whole epoch",
        ),
    ],
)
def test_a_program_that_still_imports_stops_with_one_line(command, end, tmp_path):
    reached = tmp_path / "reached"
    (tmp_path / "torch.py").write_text(
        f"open({str(reached)!r}, 'w').close()\nimport time\ntime.sleep(30)\n"
    )
    code, said = interrupted(command, reached.exists, tmp_path)
    assert code == 130
    assert said.splitlines()[-1].endswith(end)
    assert "Traceback" not in said
