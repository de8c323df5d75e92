"""The loops of the benchmark take turns, train what they say, and are tabulated rightly."""

import sys
from pathlib import Path

import pytest
import torch

from vae_book import training
from vae_book.device import seeded

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import contestants
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


def test_the_table_has_medians_ranges_and_ratios_to_fit():
    found = {
        "fit": {"seconds": [2.0, 2.0, 2.2], "peak_mib": 500},
        "classic": {"seconds": [5.0, 4.0, 9.0], "peak_mib": 1500},
    }
    head, fit, classic, drift = throughput.table(found, 10_000)
    assert head.split()[0] == "seconds"
    assert fit.split() == ["fit", "2.000", "2.000", "to", "2.200", "5,000", "1.00", "500"]
    assert classic.split() == ["classic", "5.000", "4.000", "to", "9.000", "2,000", "2.50", "1,500"]
    assert drift == "fit, later epochs over earlier ones: 1.100"
