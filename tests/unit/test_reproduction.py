"""The ledger: a row from scratch, killed and gone on with, and the page that shows it."""

import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import ledger as page_of
import pytest
import torch

from tests import forks
from vae_book import ledger, reproduction
from vae_book.__main__ import main
from vae_book.data import load_images
from vae_book.images import DataError
from vae_book.ledger import Measure, Published, Row, Section
from vae_book.models import VAE
from vae_book.protocol import Protocol
from vae_book.training import Settings

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "book" / "results" / "ledger"
BOUND = Measure("-ELBO")
LIKELIHOOD = Measure("-log p", K=3, binarization="static")
TINY = Row(
    model="VAE 784-4-2",
    make=partial(VAE, 2, 4),
    epochs=2,
    published_epochs=8,
    measures={BOUND: Published(100.0, "someone2020", "table 1"), LIKELIHOOD: None},
    settings={"batch_size": 512, "later_lr": ((1, 1e-4),), "eps": 1e-4},
    binarization="static",
    source="bundled",
    seeds=(3, 4),
    start=ledger.start_from_the_mean,
    reason="We stop after {epochs} of {published_epochs} epochs, {percent}.",
)
TEST_MEASURES = {BOUND, LIKELIHOOD}


@pytest.fixture
def rows(monkeypatch):
    """The tiny row in place of all others; its keywords replace its fields."""
    monkeypatch.setenv("VAE_BOOK_DEVICE", "cpu")

    def use(**changes):
        monkeypatch.setattr(ledger, "ROWS", {"tiny": replace(TINY, **changes)})

    use()
    return use


@pytest.fixture
def run(tmp_path, rows):
    def go(where="one", **options):
        folders = {"results": tmp_path / where, "runs": tmp_path / f"{where}-runs"}
        return reproduction.reproduce("tiny", **folders, **{"quiet": True, **options})

    return go


def without_the_clock(result):
    result = json.loads(json.dumps(result))
    del result["minutes"]
    for each in result["measured"].values():
        del each["protocol"]["minutes"]
    return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run in one go returns, and the folder of what it leaves."""
    folder = tmp_path_factory.mktemp("whole")
    folders = {"results": folder / "results", "runs": folder / "runs"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAE_BOOK_DEVICE", "cpu")
        patch.setattr(ledger, "ROWS", {"tiny": TINY})
        return reproduction.reproduce("tiny", **folders, quiet=True), folder


def test_a_row_end_to_end(whole, run):
    result, folder = whole
    assert json.loads((folder / "results" / "tiny.json").read_text()) == result
    assert not list((folder / "runs").rglob("*.pt"))  # the next run starts from scratch
    assert (result["epochs"], result["published_epochs"], result["seeds"]) == (2, 8, [3, 4])
    assert result["device"].startswith("CPU")
    assert result["version"]
    assert result["minutes"] > 0
    for measure in TEST_MEASURES:
        found = result["measured"][measure.key]
        one, other = found["each"]
        assert one != other  # two seeds
        assert found["value"] == pytest.approx((one + other) / 2)
        assert found["spread_over_seeds"] == pytest.approx(abs(one - other) / 2**0.5)
        assert 150 < found["value"] < 544  # nats; 544 is an even chance for every pixel
        assert 0 < found["standard_error"] < 10
        protocol = Protocol.from_dict(found["protocol"])
        assert (protocol.source, protocol.split, protocol.n_images) == ("bundled", "test", 500)
        assert protocol.K == measure.K
        assert protocol.epochs == 2
        assert protocol.seeds == (3, 4)
    protocol = Protocol.from_dict(result["measured"][LIKELIHOOD.key]["protocol"])
    assert protocol.binarization == "training and test images drawn once, seed 0"
    assert without_the_clock(run()) == without_the_clock(result)


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("at", ["training", "measuring"])
def test_a_row_that_was_stopped_goes_on_to_the_same_bits(monkeypatch, whole, run, tmp_path, at):
    name = {"training": "fit", "measuring": "log_likelihood"}[at]
    intact, calls = getattr(reproduction, name), []

    def killed(*args, **options):
        calls.append(1)
        if len(calls) == 2:  # in the second seed
            if at == "training":
                options["on_epoch"] = None
                intact(*args, **{**options, "epochs": 1})
            raise Killed
        return intact(*args, **options)

    monkeypatch.setattr(reproduction, name, killed)
    with pytest.raises(Killed):
        run()
    assert not (tmp_path / "one" / "tiny.json").exists()
    assert len(list((tmp_path / "one-runs").rglob("seed_?.pt"))) == 2
    epochs = []
    trained = reproduction.fit

    def watched(*args, **options):
        before = len(epochs)
        history = trained(*args, **{**options, "on_epoch": lambda h: epochs.append(h.epochs)})
        assert history.epochs - before <= 2
        return history

    monkeypatch.setattr(reproduction, "fit", watched)
    assert without_the_clock(run()) == without_the_clock(whole[0])
    assert epochs == {"training": [2], "measuring": []}[at]  # nothing is trained twice


# Its steps are slow, or it might be over before it is killed.
KILL_ME = """
import sys, time
from tests.unit.test_reproduction import TINY
from vae_book import ledger, tally, training
from vae_book.__main__ import main
tally.SECONDS = -1
ledger.ROWS = {"tiny": TINY}
step = training.Adam.step
training.Adam.step = lambda *arguments: time.sleep(0.05) or step(*arguments)
main(["reproduce", "tiny", "--results", sys.argv[1], "--runs", sys.argv[2]])
"""


def test_a_process_that_is_killed_leaves_what_the_next_goes_on_from(whole, run, tmp_path):
    runs = tmp_path / "one-runs"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")])}
    with (tmp_path / "said").open("w+") as said:
        process = forks.start("-c", KILL_ME, tmp_path / "one", runs,
                              env=environment, cwd=ROOT, stdout=said, stderr=said)  # fmt: skip
        checkpoint, end = runs / "tiny" / "seed_3.pt", time.monotonic() + 300
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL, said.read()
    assert checkpoint.exists()
    assert not (tmp_path / "one" / "tiny.json").exists()
    assert without_the_clock(run()) == without_the_clock(whole[0])


def test_full_trains_as_long_as_those_who_published(run, rows):
    rows(seeds=(3,), published_epochs=3, measures={BOUND: None})
    assert run(full=True)["epochs"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nix"], r"name: expected one of pytorch-example, .*, got 'nix'"),
        ([], r"NAME: expected a row of the ledger, got none; --list names them"),
        (["flow-iaf"], r"name: flow-iaf cannot be run\. The chapter on flows is not written yet\."),
    ],
)
def test_what_cannot_be_run_ends_in_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(["reproduce", *arguments])
    assert end.value.code == 2
    printed = capsys.readouterr().err.strip()
    assert re.fullmatch(rf"vae_book: error: {message}", printed)


def test_without_all_of_mnist_it_ends_in_one_line_that_says_what_to_do(
    capsys, monkeypatch, tmp_path
):
    def missing(split, source, device):
        raise DataError("MNIST is not there. To go on, put it there")

    monkeypatch.setattr(reproduction, "load_images", missing)
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "pytorch-example", "--results", str(tmp_path), "--runs", str(tmp_path)])
    assert end.value.code == 2
    assert (
        capsys.readouterr().err == "vae_book: error: MNIST is not there. To go on, put it there\n"
    )


def test_the_list_names_every_row_and_whether_it_was_run(capsys, tmp_path):
    whole = next(RESULTS.glob("*.json")).read_bytes()
    (tmp_path / "iwae-5.json").write_bytes(whole)
    (tmp_path / "iwae-vae-1.json").write_bytes(whole[:-100])
    main(["reproduce", "--list", "--results", str(tmp_path)])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == list(ledger.ROWS)
    assert lines["iwae-5"].endswith("measured")
    assert lines["iwae-vae-1"].endswith("damaged, run it again")
    assert lines["iwae-50"].endswith("not run")
    assert lines["flow-iaf"].endswith("not written yet.")


# The rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ledger.ROWS)
def test_each_row_makes_a_model_of_its_images(name):
    row = ledger.ROWS[name]
    train, test = load_images("train", "bundled", "cpu"), load_images("test", "bundled", "cpu")
    some = row.images(train, row.binarization)
    assert len(some) == len(train) - row.held_back
    assert bool(((some.images == 0) | (some.images == 1)).all()) == (row.binarization == "static")
    model = row.make()
    if row.start:
        row.start(model, some)
    for measure in row.measures:
        tested = row.images(test, measure.binarization)
        binary = bool(((tested.images == 0) | (tested.images == 1)).all())
        assert binary == (measure.binarization != "none")
        found = reproduction.log_likelihood(model, tested[:2], n_samples=2)
        assert found.per_image.isfinite().all()
        assert torch.equal(row.images(test, measure.binarization).images, tested.images)


def test_the_decoder_starts_from_the_mean_image():
    train = load_images("train", "bundled", "cpu")
    model = ledger.DeepVAE()
    ledger.start_from_the_mean(model, train)
    model.decoder[-2].weight.data.zero_()
    mean = model.decode(torch.zeros(1, 50)).mean[0]
    torch.testing.assert_close(mean, train.images.mean(0).clamp(0.001, 0.999))


def test_the_rounds_of_the_importance_weighted_autoencoder():
    chosen = Settings(**ledger.ROWS["iwae-5"].settings)
    rates = [chosen.lr_of(epoch) for epoch in range(3280)]
    expected = [1e-3 * 10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
    assert rates == pytest.approx(expected)
    assert (chosen.batch_size, chosen.n_samples, chosen.eps) == (20, 5, 1e-4)


# The page -----------------------------------------------------------------------------------------


@pytest.fixture
def section():
    return Section("A title", "A text.", {"tiny": TINY, "other": replace(TINY, model="another")})


def test_the_page_is_that_of_the_results():
    assert (ROOT / "book" / "ledger.md").read_text() == page_of.page(RESULTS), (
        "run python tools/ledger.py"
    )


def test_every_number_of_ours_on_the_page_is_in_the_results(section, tmp_path, whole):
    shutil.copytree(whole[1] / "results", tmp_path / "results")
    path = tmp_path / "results" / "tiny.json"
    stored = json.loads(path.read_text())
    number = stored["measured"][BOUND.key]
    number["value"], number["standard_error"], number["spread_over_seeds"] = 123.456, 0.789, 0.5
    path.write_text(json.dumps(stored))
    text = page_of.page(tmp_path / "results", (section,))
    theirs = "100.0 {cite}`someone2020`, table 1"
    cells = f"| {theirs} | 123.46 ± 0.79 | +23.46 | 2 of 8 |"
    assert f"| `tiny` | VAE 784-4-2 {cells}" in text
    assert f"| `other` | another | {theirs} | not run | - | 2 of 8 |" in text
    assert "`tiny`: We stop after 2 of 8 epochs, 25.0%. Spread over 2 seeds:" in text
    assert "none known" in text
    assert text.count("*Protocol: ") == 2  # one for each quantity


def test_a_table_of_the_page_that_would_mix_protocols_is_refused(section, tmp_path, whole):
    shutil.copytree(whole[1] / "results", tmp_path / "results")
    path = tmp_path / "results" / "tiny.json"
    stored = json.loads(path.read_text())
    stored["name"] = "other"
    stored["measured"][BOUND.key]["protocol"]["n_images"] = 100
    (path.parent / "other.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"column 'ours', got n_images 500 and 100"):
        page_of.page(tmp_path / "results", (section,))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_what_is_stored_is_what_the_row_says(path):
    stored, row = json.loads(path.read_text()), ledger.ROWS[path.stem]
    assert stored["name"] == path.stem
    assert set(stored["measured"]) == {each.key for each in row.measures}
    for measure in row.measures:
        protocol = Protocol.from_dict(stored["measured"][measure.key]["protocol"])
        assert protocol.comparable == row.planned(measure).comparable
        assert (protocol.seeds, protocol.epochs) == (row.seeds, stored["epochs"])
        assert protocol.device == stored["device"]


@pytest.mark.parametrize("name", ledger.ROWS)
def test_a_row_says_of_what_its_likelihood_is(name):
    """`Row.of` is told, where the model itself would have to be made to ask it."""
    row = ledger.ROWS[name]
    parts = {"missing | seen"} if row.seen else {"x | y"} if row.make().classes else {"x"}
    assert {row.of} == parts


def test_no_measured_number_is_typed_by_hand():
    """Reasons and texts of the rows speak of settings; what was measured comes from the files."""
    words = [each.text for each in ledger.SECTIONS] + [row.reason for row in ledger.ROWS.values()]
    decimals = {number for text in words for number in re.findall(r"\d+\.\d+", text)}
    assert decimals <= {"0.99"}  # beta_1 of Adam


def test_the_readme_prints_what_was_measured():
    """A number typed by hand that differs fails."""
    measured = json.loads((ROOT / "book" / "results" / "chapter_08.json").read_text())
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (full|bundled), ([\d,]+) images (.*)\|$", text, re.MULTILINE)
    expected = [
        (
            *row["trained_on"].removesuffix(" images").split(", "),
            f"| {row['epochs']} | {row['test']:.2f} | {row['test_spread_over_seeds']:.2f} "
            f"| {row['minutes']:.2f} ",
        )
        for row in measured
    ]
    assert rows == expected
    (published,) = ledger.ROWS["pytorch-example"].measures.values()
    assert f"reaches {published.value:g} after 10 epochs" in " ".join(text.split())
