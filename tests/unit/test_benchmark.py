"""The loops of the benchmark take turns, train what they say, and are tabulated rightly."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_book import training
from vae_book.device import seeded

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import contestants
import growth
import throughput

LOOPS = [
    (network, name)
    for network, loops in contestants.CONTESTANTS.items()
    for name in loops
    if name != "pythae"  # lives in an environment of its own
]


@pytest.mark.parametrize(("network", "name"), LOOPS)
def test_a_loop_is_ready_once_and_ends_each_epoch_with_a_turn(network, name):
    turns = []
    images = torch.rand(130, 1, 28, 28, generator=seeded(0))  # a batch, and one of two images
    data = contestants.Data(images, torch.arange(130) % 10, 2, lambda: turns.append(1))
    contestants.CONTESTANTS[network][name](data)
    assert len(turns) == 1 + 2


@pytest.mark.parametrize("network", contestants.CONTESTANTS)
def test_the_bare_loop_takes_the_steps_of_fit(network, monkeypatch):
    """Without noise, and with one batch of all images, the two end at the same weights."""
    made, package = [], contestants._package

    def kept(name):
        made.append(package(name))
        return made[-1]

    monkeypatch.setattr(contestants, "_package", kept)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(training, "standard_normal", lambda shape, *_: torch.zeros(shape))
    images = torch.rand(128, 1, 28, 28, generator=seeded(0))
    data = contestants.Data(images, torch.arange(128) % 10, 5, lambda: None)
    for name in ("bare", "fit"):
        contestants.CONTESTANTS[network][name](data)
    start, bare, fit = map(weights, (package(network), *made))
    assert (fit - start).abs().max() > 4e-3  # Adam's five steps of 0.001
    # Where a gradient is nearly zero, a rounding decides which way Adam goes.
    assert (bare - fit).norm() < 0.02 * (fit - start).norm()


def weights(model):
    """All of them, in a row."""
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def test_the_table_has_medians_ranges_and_ratios_turn_by_turn():
    found = {
        "fit": {"seconds": [2.0, 2.0, 4.0], "peak_mib": 500},
        "classic": {"seconds": [5.0, 4.0, 9.0], "peak_mib": 1500},
    }
    head, fit, classic, turns, drift = throughput.table(found, 10_000)
    assert head.split()[0] == "seconds"
    assert " ".join(fit.split()) == "fit 2.000 2.000 to 4.000 5,000 1.00 1.00 500"
    assert " ".join(classic.split()) == "classic 5.000 4.000 to 9.000 2,000 2.25 2.25 1,500"
    assert turns == "undisturbed turns: 3 of 3"
    assert drift == "fit, later epochs over earlier ones: 2.000"


def test_a_turn_is_undisturbed_where_the_floor_is_near_its_fastest():
    found = {
        "fit": {"seconds": [2.0, 2.0, 4.0, 3.0], "peak_mib": 500},
        "floor": {"seconds": [1.0, 1.09, 1.6, 1.11], "peak_mib": 500},
    }
    assert throughput.undisturbed(found) == [0, 1]
    *_, floor, turns, _ = throughput.table(found, 10_000)
    assert floor.split()[-3:-1] == ["0.45", "0.52"]  # of 0.5, 0.545, 0.4, 0.37; of the first two
    assert turns == "undisturbed turns: 2 of 4"


def test_the_memory_of_a_process_is_its_own():
    """A child that allocates 300 MiB more than another has that much more at its peak."""
    peaks = [int(peak_of_a_child(size)) for size in (1, 300)]
    assert 250 < peaks[1] - peaks[0] < 350


def peak_of_a_child(mebibytes):
    """It has the function alone, without the seconds that importing torch takes."""
    code = (
        "import numpy, resource, sys\n"
        "from pathlib import Path\n"
        f"{inspect.getsource(contestants.peak_memory)}"
        f"big = numpy.ones({mebibytes} * 2**17)\n"
        "print(round(peak_memory()))\n"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", growth.VARIED)
def test_a_point_of_the_growth_is_one_number_away_from_the_base(name, monkeypatch, tmp_path):
    asked = []

    def spied(model, data, **settings):
        sizes = {"latent": model.latent, "hidden": model.hidden, "images": len(data)}
        asked.append({**settings, **sizes})
        return training.fit(model, data, **settings)

    monkeypatch.setattr(growth, "fit", spied)
    np.save(tmp_path / "images.npy", np.ones((40, 1, 28, 28), np.float32))
    base = {"images": 30, "batch_size": 10, "latent": 2, "hidden": 3, "n_samples": 1}
    found = growth.point(tmp_path / "images.npy", **base | {name: 4})
    assert asked == [base | {name: 4, "epochs": 1 + growth.EPOCHS}]
    assert min(found.values()) > 0
