"""What holds for unit tests and chapters alike."""

# isort: off
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tools"))
import processes  # sets one thread for each process, before torch is imported

# isort: on
import importlib.util
import os
import runpy
import tempfile
from contextlib import ExitStack

import jaxtyping
import matplotlib
import pytest
from hypothesis import HealthCheck, settings

from tests.agreement import agree  # noqa: F401 (a fixture of all tests)
from tests.comparison import compare_nearly
from tests.typed import check_once

# No network, neither here nor in any kernel or process that a test starts; and little looking for
# garbage.
OFFLINE = str(Path(__file__).parent / "tests" / "offline")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [OFFLINE, os.environ.get("PYTHONPATH")]))
runpy.run_path(f"{OFFLINE}/sitecustomize.py")  # not imported: a system may have one of its own

# The stored outputs are those of the bundled digits, whatever the user works with.
os.environ.pop("VAE_BOOK_DATASET", None)
# Nor do tests compare colored text, or text for a narrow window.
for _name in ("FORCE_COLOR", "PY_COLORS", "COLUMNS"):
    os.environ.pop(_name, None)
# Nothing is left behind in the tree; make has compiled modules stand in the virtual environment.
if sys.pycache_prefix is None:
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
_scratch = tempfile.TemporaryDirectory(prefix="hypothesis-")
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = _scratch.name
# The same examples in each run, and none is too slow on a machine that is busy.
settings.register_profile(
    "book",
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("book")
matplotlib.use("agg")
compare_nearly()
check_once()
# Every type and shape that the package announces is checked when a test calls it. But for the
# checks, which take anything, and are half of all calls.
_modules = {f"vae_book.{path.stem}" for path in Path(__file__).parent.glob("vae_book/*.py")}
jaxtyping.install_import_hook([*(_modules - {"vae_book.checks"})], "beartype.beartype")


# The files of unit tests that take longest, and about how many seconds.
LONG = {f"test_{name}": 30 for name in ("doctor", "parallel", "training")}
LONG |= {f"test_{name}": 15 for name in ("book_tool", "budget", "clinic", "command_line", "fuzz")}


@pytest.fixture(scope="module")
def book():
    """tools/book.py, whose name is that of a folder, too."""
    path = Path(__file__).parent / "tools" / "book.py"
    spec = importlib.util.spec_from_file_location("book_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """As many processes as cores; on a GPU the chapters take turns."""
    from vae_book.device import best_device

    try:
        return processes.workers(best_device().type)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Chapters first, the longest before the others: no process then ends long after the rest."""
    paths = {item.path for item in items}
    seconds = {path: processes.seconds(path) for path in paths if path.suffix == ".ipynb"}
    seconds |= {path: LONG.get(path.stem, 0) for path in paths if path.suffix == ".py"}
    place = {"book": 0, "site": 1}
    items.sort(key=lambda item: (place.get(item.path.parent.name, 2), -seconds.get(item.path, 0)))


def pytest_terminal_summary(terminalreporter):
    """What was not tested is said at the end, not only among the reasons of what was skipped."""
    skipped = terminalreporter.stats.get("skipped", [])
    if any("no browser" in str(each.longrepr) for each in skipped):
        terminalreporter.write_line(
            "No browser was found: the pages were not opened. Install chromium and run again.",
            yellow=True,
        )


def pytest_addoption(parser):
    """A switch that breaks the package, for readers who want to see the tests notice."""
    parser.addoption(
        "--fault",
        metavar="NAME",
        help="break the package by this fault of vae_book.clinic, before any test imports it; "
        "chapters run in kernels of their own, which stay whole",
    )


def pytest_configure(config):
    """Break the package if asked to, after the import hook and before any test imports it."""
    name = config.getoption("--fault")
    if name is None:
        return
    from vae_book.clinic import fault

    switch = ExitStack()
    try:
        switch.enter_context(fault(name))
    except ValueError as error:
        raise pytest.UsageError(f"--fault: {error}") from error
    config.add_cleanup(switch.close)


@pytest.fixture
def one_thread():
    """Two threads that wait for each other make small steps slow on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def shapes_unchecked():
    """Call the package as its users do: bad shapes meet its own messages, not jaxtyping's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
