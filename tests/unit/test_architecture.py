"""The package's modules: arrows run one way, and few of them look around."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {path.stem: path for path in (ROOT / "vae_book").glob("*.py")}
LAYERS = [
    {"checks", "deprecated", "device", "display", "parallel"},
    {"figures", "images", "likelihoods", "monte_carlo", "reparameterization"},
    {"divergences", "folders", "gradient_estimators"},
    {"distributions"},
    {"bayes", "data", "linear_gaussian"},
    {"models"},
    {"bounds"},
    {"checkpoints", "evaluation", "objectives"},
    {"training"},
    {"clinic", "commands", "diagrams", "explorer"},
    {"__main__"},
]


def imports(path):
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "vae_book":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("vae_book."):
            found.add(node.module.split(".")[1])
    return found


def test_every_module_has_its_layer():
    assert set().union(*LAYERS) | {"__init__"} == set(MODULES)


@pytest.mark.parametrize("level", range(len(LAYERS)))
def test_arrows_run_one_way(level):
    below = set().union(*LAYERS[:level])
    for module in LAYERS[level]:
        assert imports(MODULES[module]) <= below, module


def test_only_data_and_device_read_the_environment():
    readers = {name for name, path in MODULES.items() if "environ" in path.read_text()}
    assert readers == {"data", "device"}


def test_the_list_of_mutants_fits_the_package():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
    mutants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutants)
    for name, (file, old, new) in mutants.MUTANTS.items():
        assert (ROOT / "vae_book" / file).read_text().count(old) == 1, name
        assert old != new
