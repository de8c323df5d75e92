"""What holds for unit tests and chapters alike."""

import os
import runpy
import tempfile
from pathlib import Path

import jaxtyping
import matplotlib
import pytest

from tests.agreement import agree  # noqa: F401 (a fixture of all tests)
from tests.comparison import compare_nearly

# No network, neither here nor in any kernel or process that a test starts.
OFFLINE = str(Path(__file__).parent / "tests" / "offline")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [OFFLINE, os.environ.get("PYTHONPATH")]))
runpy.run_path(f"{OFFLINE}/sitecustomize.py")  # not imported: a system may have one of its own

# The stored outputs are those of the bundled digits, whatever the user works with.
os.environ.pop("VAE_BOOK_DATASET", None)
# Nothing is left behind in the tree.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
_scratch = tempfile.TemporaryDirectory(prefix="hypothesis-")
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = _scratch.name
matplotlib.use("agg")
compare_nearly()
# Every type and shape that the package announces is checked when a test calls it.
jaxtyping.install_import_hook("vae_book", "beartype.beartype")


@pytest.fixture
def shapes_unchecked():
    """Call the package as its users do: bad shapes meet its own messages, not jaxtyping's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
