"""The package's modules: arrows run one way, and few of them look around."""

import ast
from pathlib import Path

import pytest

import mutants

ROOT = Path(__file__).parents[2]
MODULES = {path.stem: path for path in (ROOT / "vae_book").glob("*.py")}
LAYERS = [
    {
        "adam",
        "checks",
        "deprecated",
        "files",
        "mosaic",
        "parallel",
        "prior_density",
        "protocol",
        "report",
    },
    {"capture", "device", "display"},
    {"figures", "history", "images", "likelihoods", "monte_carlo", "reparameterization"},
    {"divergences", "folders", "gradient_estimators", "tally", "toy_images"},
    {"distributions"},
    {"bayes", "data", "linear_gaussian", "patient"},
    {"loss_terms", "models", "traces"},
    {"bounds", "exam", "linear_vae"},
    {"checkpoints", "coding", "doctor", "evaluation", "objectives"},
    {"annealing", "budget", "training"},
    {"clinic", "diagrams", "explorer", "ledger"},
    {"reproduction"},
    {"commands"},
    {"__main__"},
    {"reproduce"},
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
    stale = [name for (_, name), change in mutants.MUTANTS.items() if not mutants.place(*change)]
    for function, old, new in mutants.MUTANTS.values():
        assert old != new, function
    for chapter, name in mutants.MUTANTS:
        assert len(mutants.judges(chapter, "bounds.py")) == (2 if chapter else 1), name
    if stale:
        pytest.skip(f"the texts that these mutants replace are gone: {', '.join(stale)}")


def test_a_mutant_is_found_by_its_function_wherever_that_is():
    function, old, new = mutants.MUTANTS["05", "KL halved"]
    file, text = mutants.place(function, old, new)
    assert new in text
    assert text.replace(new, old) == (ROOT / "vae_book" / file).read_text()
    assert mutants.place(function, "what does not stand there", new) is None
    assert mutants.place("no_such_function", old, new) is None
