"""Style and types, beside the other tests on another core."""

import os
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_make_lint_finds_nothing():
    """By the programs of the Python that runs this, whatever the state of make's own."""
    programs = os.path.relpath(sysconfig.get_path("scripts"), ROOT)
    command = ["make", "--old-file=.venv/.ready", f"BIN={programs}", "lint"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
