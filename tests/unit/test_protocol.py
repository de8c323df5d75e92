"""A protocol beside every number, and no column with two of them."""

import json
from dataclasses import replace

import pytest
import torch

from vae_book import display
from vae_book.evaluation import average_elbo, log_likelihood
from vae_book.images import Images
from vae_book.models import VAE
from vae_book.protocol import Measurement, Protocol, cards, column_protocols, shared

ONE = Protocol(
    quantity="log p(x), draws from q",
    source="full",
    split="test",
    n_images=10_000,
    pixels="binary",
    seed=7,
    device="CPU (1 thread)",
    K=1000,
    binarization="drawn once, seed 3",
    seeds=(0, 1, 2),
    standard_error="images",
    epochs=150,
    minutes=12.34,
)

MIDDLE = "draws of z for each image; ELBO, 1 draw of z for each image"


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    return shown


def measured(value=-90.0, **changes):
    return Measurement(value, 0.25, replace(ONE, **changes))


def test_the_card_says_everything_but_the_machine():
    card = ONE.card()
    for part in (
        "log p(x), draws from q",
        "1,000 draws of z",
        "full test, 10,000 images, binary pixels",
        "drawn once, seed 3",
        "150 epochs",
        "of training 0, 1, 2",
        "of noise 7",
        "standard error over images",
    ):
        assert part in card
    assert "CPU" not in card
    assert "minutes" not in card
    assert "CPU (1 thread), 12.3 minutes of training" in ONE.card(machine=True)
    assert "\n" not in card


def test_a_protocol_comes_back_from_json():
    assert Protocol.from_dict(json.loads(json.dumps(ONE.as_dict()))) == ONE
    short = Protocol("ELBO", "bundled", "test", 500, "grayscale", 0, "GPU")
    assert Protocol.from_dict(json.loads(json.dumps(short.as_dict()))) == short
    assert "epochs" not in short.as_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"quantity": "ELBO"},
        {"K": 100},
        {"source": "bundled"},
        {"split": "train"},
        {"n_images": 9},
        {"pixels": "grayscale"},
        {"binarization": "drawn afresh"},
        {"binarization": None},
    ],
)
def test_a_table_that_mixes_protocols_in_a_column_is_refused(displayed, change):
    (name,) = change
    rows = [["one", measured()], ["other", measured(**change)]]
    with pytest.raises(ValueError, match=rf"^rows: .* in the column 'nats', got {name} "):
        display.show_table(["model", "nats"], rows)
    with pytest.raises(ValueError, match=rf"^protocol: .* got {name} "):
        display.show_table(["model", "nats"], rows[1:], protocol=ONE)
    assert not displayed
    display.show_table(["model", "nats", "others"], [["one", measured(), measured(**change)]])
    _, *lines = displayed[0]["text/plain"].split("\n\n")
    assert lines == cards([ONE, replace(ONE, **change)])


def test_what_was_measured_under_the_same_conditions_shares_a_card():
    bound, fewer = replace(ONE, quantity="ELBO", K=1), replace(ONE, n_images=9)
    both, other = cards([ONE, bound, fewer, ONE])
    assert both == ONE.card().replace("draws of z for each image;", f"{MIDDLE};")
    assert other == fewer.card()
    assert cards([]) == []


def test_a_spread_over_seeds_stands_in_brackets_and_a_table_has_its_own_digits(displayed):
    protocol = replace(ONE, standard_error="images, in brackets the spread over seeds")
    number = Measurement(-90.0, 0.25, protocol, spread_over_seeds=0.125)
    assert Measurement.from_dict(json.loads(json.dumps(number.as_dict()))) == number
    assert Measurement.from_dict(measured().as_dict()) == measured()
    display.show_table(["model", "nats"], [["one", number]], decimals=3)
    table, card = displayed[0]["text/plain"].split("\n\n")
    assert table.splitlines()[1:] == ["| --- | --: |", "| one | \u221290.000 ± 0.250 (0.125) |"]
    assert card == protocol.card()


def test_a_table_compares_models_trained_otherwise_and_says_what_they_share(displayed):
    rows = [
        ["short", measured(-90.0, epochs=10)],
        ["long", measured(-88.0, device="GPU", minutes=3.0)],
    ]
    display.show_table(["model", "nats"], rows)
    text = displayed[0]["text/plain"]
    assert text.splitlines()[:4] == [
        "| model | nats |",
        "| --- | --: |",
        "| short | \u221290.00 ± 0.25 |",
        "| long | \u221288.00 ± 0.25 |",
    ]
    assert text.splitlines()[5] == replace(ONE, epochs=None).card()
    assert "epoch" not in text
    assert shared([ONE, ONE]) == ONE


def test_plain_numbers_get_the_card_that_they_are_given(displayed):
    display.show_table(["model", "nats"], [["one", 1.0]], protocol=ONE)
    assert displayed[0]["text/markdown"].endswith(f"\n\n{ONE.card()}")
    display.show_table(["model", "nats"], [["one", 1.0]])
    assert "Protocol" not in displayed[1]["text/markdown"]


def test_what_is_measured_brings_its_protocol():
    torch.manual_seed(0)
    model = VAE(2, 3, (1, 2, 2))
    images = Images(torch.rand(3, 1, 2, 2).round(), torch.zeros(3).long(), "noise", "test")
    bound, log_p = average_elbo(model, images), log_likelihood(model, images, n_samples=5)
    found = column_protocols(["", "ELBO", "log p"], [["a", bound, log_p], ["b", bound, log_p]])
    assert [each.K for each in found] == [1, 5]
    with pytest.raises(ValueError, match=r"column 'nats', got quantity 'ELBO' and 'log p\(x\)"):
        column_protocols(["", "nats"], [["a", bound], ["b", log_p]])
