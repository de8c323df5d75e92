"""What holds for every test: no network, shapes checked at run time, numbers compared with care."""

import os
import sys
from pathlib import Path

import jaxtyping
import matplotlib
import pytest

OFFLINE = Path(__file__).parent / "offline"
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(OFFLINE), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
sys.path.insert(0, str(OFFLINE))
import sitecustomize  # noqa: E402, F401

matplotlib.use("agg")
# Every annotated shape of the package is checked when a test calls it.
jaxtyping.install_import_hook("vae_book", "beartype.beartype")


@pytest.fixture
def shapes_unchecked():
    """Call the package as its users do: bad shapes meet its own messages, not jaxtyping's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
