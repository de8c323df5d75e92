"""``python -m vae_book``: what it writes, prints and refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Normal

from tests import forks
from vae_book import commands, training
from vae_book.__main__ import NO_MEMORY, main
from vae_book.checkpoints import read_checkpoint, write_checkpoint
from vae_book.data import load_images
from vae_book.device import seeded
from vae_book.evaluation import average_elbo
from vae_book.files import alone
from vae_book.history import History
from vae_book.images import DataError, binarize
from vae_book.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian
from vae_book.models import CVAE, VAE

SIGMA = (0.1**2 + 0.02**2) ** 0.5  # where --likelihood gaussian starts, on its floor
SMALL = ["--hidden", "8", "--latent", "2", "--batch-size", "16"]  # steps of 16, 16, 16, 16 and 8


@pytest.fixture(autouse=True, scope="module")
def cpu():
    """One thread: two that wait for each other make small steps slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAE_BOOK_DEVICE", "cpu")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 40 random images each, of which 72 are for training and 8 held out."""
    return two_classes(tmp_path_factory.mktemp("images"), 0, (40, 28, 28))


def two_classes(root, seed, shape):
    """Random pictures of that shape, (n, height, width) or with colors last, for each class."""
    rng = np.random.default_rng(seed)
    for label in ("one", "two"):
        (root / label).mkdir()
        for i, pixels in enumerate(rng.integers(0, 256, shape, dtype=np.uint8)):
            Image.fromarray(pixels).save(root / label / f"{i:02}.png")
    return root


@pytest.fixture
def train(folder, tmp_path):
    """Train a small model into tmp_path / out; returns that folder."""

    def run(*options, epochs=2, out="run"):
        main(["train", "--source", str(folder), "--epochs", str(epochs), *SMALL,
              "--out", str(tmp_path / out), *options])  # fmt: skip
        return tmp_path / out

    return run


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The checkpoint of a short run."""
    out = tmp_path_factory.mktemp("trained")
    main(["train", "--source", str(folder), "--epochs", "1", *SMALL, "--out", str(out)])
    return out / "checkpoint.pt"


def refused(capsys, arguments, code=2):
    """Run a command that has to fail; returns its only line of error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if "epoch/s" not in line and line.strip()]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("vae_book: ")
    return lines[0]


def pictures(path, columns):
    """The images in a grid that save_grid wrote, with its frame of two pixels."""
    grid = np.asarray(Image.open(path).convert("L"))
    rows = (grid.shape[0] - 2) // 30
    assert grid.shape == (rows * 30 + 2, columns * 30 + 2)
    cells = grid[2:, 2:].reshape(rows, 30, columns, 30).swapaxes(1, 2)[:, :, :28, :28]
    return cells.reshape(rows * columns, 28, 28)


def as_bytes(images):
    return (images * 255).round().byte().numpy()[:, 0]


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_run(a, b):
    """The same pictures, weights, optimizer and history; only the seconds may differ."""
    first, second = everything(a), everything(b)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name] and name.endswith("png")] == []
    one, two = (read_checkpoint(run / "checkpoint.pt") for run in (a, b))
    torch.testing.assert_close(one.weights, two.weights, rtol=0, atol=0)
    torch.testing.assert_close(one.optimizer, two.optimizer, rtol=0, atol=0)
    for run in (one, two):
        del run.history["seconds"]
    assert one.history == two.history
    histories = [History.load(run / "history.json") for run in (a, b)]
    assert histories[0].held_out == histories[1].held_out == one.history["held_out"]


# train --------------------------------------------------------------------------------------------


def test_train_writes_pictures_history_and_checkpoint(train, capsys):
    out = train(epochs=2)
    assert set(everything(out)) == {
        "checkpoint.pt",
        "history.json",
        *(f"{kind}_000{epoch}.png" for kind in ("reconstruction", "sample") for epoch in (1, 2)),
    }
    history = History.load(out / "history.json")
    assert history.epochs == len(history.held_out) == 2
    assert history.loss[1] < history.loss[0]
    printed, progress = capsys.readouterr()
    numbers = (
        f"reconstruction {history.reconstruction[1]:.2f}, KL {history.kl[1]:.2f}, "
        f"held-out bound {history.held_out[1]:.2f} nats"
    )
    assert printed == f"{out}: 2 epochs, {numbers} for an image\n"
    assert "2/2" in progress
    assert numbers in progress


def test_reconstructions_stand_below_the_held_out_images(train, folder):
    out = train(epochs=1)
    model = read_checkpoint(out / "checkpoint.pt").model("cpu")
    held_out = load_images("test", str(folder), "cpu", size=28, channels=1).images
    assert len(held_out) == 8
    cells = pictures(out / "reconstruction_0001.png", columns=8)
    assert len(cells) == 16
    assert np.array_equal(cells[:8], as_bytes(held_out))
    with torch.no_grad():
        reconstructed = torch.sigmoid(model.decode(model.encode(held_out).mu).params)
    assert np.abs(cells[8:].astype(int) - as_bytes(reconstructed)).max() <= 1  # rounding


def test_samples_of_all_epochs_come_from_the_same_z(train):
    out = train("--lr", "1e-12", "--seed", "3", epochs=2)  # so slow that the model stays
    first, second = (out / f"sample_000{epoch}.png" for epoch in (1, 2))
    assert first.read_bytes() == second.read_bytes()
    model = read_checkpoint(out / "checkpoint.pt").model("cpu")
    with torch.no_grad():
        expected = torch.sigmoid(model.decode(torch.randn(64, 2, generator=seeded(3))).params)
    cells = pictures(second, columns=8)
    assert len(cells) == 64
    assert np.abs(cells.astype(int) - as_bytes(expected)).max() <= 1


def test_the_seed_governs_the_whole_run(train):
    torch.manual_seed(1)
    first = train("--seed", "7", out="first")
    torch.manual_seed(2)
    again = train("--seed", "7", out="again")
    other = train("--seed", "8", out="other")
    assert_same_run(first, again)
    # Frozen, the weights are those of the start.
    frozen = [train("--lr", "1e-12", "--seed", seed, epochs=1, out=seed) for seed in ("7", "8")]
    for a, b in ((first, other), frozen):
        one, two = (
            read_checkpoint(run / "checkpoint.pt").weights["to_mu.weight"] for run in (a, b)
        )
        assert (one - two).abs().max() > 1e-3
    for name in ("sample_0001.png", "reconstruction_0001.png"):
        assert (first / name).read_bytes() != (other / name).read_bytes()


def test_a_seed_may_have_any_size(train):
    seeds = [str(10**30 + i) for i in range(2)]
    first, second = (train("--seed", seed, epochs=1, out=seed) for seed in seeds)
    losses = [History.load(out / "history.json").loss for out in (first, second)]
    assert losses[0] != losses[1]


def test_options_reach_the_run(train):
    run = read_checkpoint(train("--lr", "0.01", "--seed", "4") / "checkpoint.pt")
    assert (run.settings["lr"], run.settings["seed"]) == (0.01, 4)
    assert (run.settings["batch_size"], run.settings["resample"]) == (16, False)
    assert run.settings["images"].startswith("72 images")
    assert run.settings["held_out"].startswith("8 images")
    assert (run.architecture["latent"], run.architecture["hidden"]) == (2, 8)
    assert run.model("cpu").likelihood == Bernoulli(relaxed=True)


def test_binary_trains_on_fresh_draws_by_the_strict_likelihood(train):
    out = train("--binary", epochs=1)
    run = read_checkpoint(out / "checkpoint.pt")
    assert run.model("cpu").likelihood == Bernoulli()
    assert run.settings["resample"] is True
    originals = pictures(out / "reconstruction_0001.png", columns=8)[:8]
    assert set(np.unique(originals)) == {0, 255}


@pytest.fixture(scope="module")
def colored(tmp_path_factory):
    """Two classes of 20 random pictures in color, 6 pixels high and 10 wide."""
    return two_classes(tmp_path_factory.mktemp("colored"), 1, (20, 6, 10, 3))


@pytest.mark.parametrize(
    ("options", "shape", "arguments"),
    [
        ([], (3, 6, 10), {}),
        (["--gray"], (1, 6, 10), {"channels": 1}),
        (["--size", "8"], (3, 8, 8), {"size": 8}),
        (["--size", "8x12", "--gray"], (1, 8, 12), {"size": (8, 12), "channels": 1}),
    ],
)
def test_pictures_keep_size_and_color_unless_asked(
    colored, tmp_path, capsys, options, shape, arguments
):
    out = tmp_path / "run"
    main(["train", "--source", str(colored), "--epochs", "1", *SMALL, "--out", str(out), *options])
    run = read_checkpoint(out / "checkpoint.pt")
    model = run.model("cpu")
    assert model.image_shape == shape
    test = load_images("test", str(colored), "cpu", **arguments)
    with Image.open(out / "reconstruction_0001.png") as grid:
        grid.load()
    assert grid.mode == ("RGB" if shape[0] == 3 else "L")
    first = np.asarray(grid)[2 : 2 + shape[1], 2 : 2 + shape[2]]
    assert np.array_equal(first.reshape(*shape[1:], -1), np.moveaxis(as_levels(test)[0], 0, -1))
    capsys.readouterr()
    main(["evaluate", "--checkpoint", str(out / "checkpoint.pt"), "--json"])
    assert json.loads(capsys.readouterr().out) == average_elbo(model, test).as_dict()
    main(["sample", "--checkpoint", str(out / "checkpoint.pt"), "--out", str(out / "s.png")])
    with Image.open(out / "s.png") as sheet:
        assert sheet.size == (8 * (shape[2] + 2) + 2, 8 * (shape[1] + 2) + 2)


def as_levels(data):
    return (data.images * 255).round().byte().numpy()


def test_pictures_of_several_sizes_ask_for_one(colored, tmp_path, capsys):
    shutil.copytree(colored, tmp_path / "mixed")
    Image.new("RGB", (9, 9)).save(tmp_path / "mixed" / "two" / "larger.png")
    line = refused(capsys, ["train", "--source", tmp_path / "mixed", "--out", tmp_path / "run"])
    assert "(--size 28)" in line
    assert "larger.png 9 x 9" in line


def test_resume_with_another_size_is_refused(colored, tmp_path, capsys):
    start = ["train", "--source", colored, "--out", tmp_path / "run", *SMALL]
    main([str(each) for each in [*start, "--size", "8", "--epochs", "1"]])
    before = everything(tmp_path / "run")
    line = refused(capsys, [*start, "--resume", "--epochs", "2"])
    assert "image_shape" in line
    assert everything(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("name", "likelihood", "score"),
    [
        ("gaussian", Gaussian, lambda mean, x: Normal(mean, SIGMA).log_prob(x)),
        ("continuous-bernoulli", ContinuousBernoulli, None),
        ("bernoulli", Bernoulli, None),
    ],
)
def test_likelihoods_go_by_name(train, name, likelihood, score):
    out = train("--likelihood", name, "--lr", "1e-12", epochs=1)  # so slow that sigma stays
    run = read_checkpoint(out / "checkpoint.pt")
    model = run.model("cpu")
    assert type(model.likelihood) is likelihood
    assert model.likelihood != Bernoulli(relaxed=True)
    assert run.settings["resample"] == (name == "bernoulli")
    if score:
        x = torch.rand(2, 1, 28, 28, generator=seeded(0))
        made = model.decode(torch.zeros(2, 2))
        by_hand = score(made.params, x).sum((1, 2, 3))
        torch.testing.assert_close(made.log_prob(x), by_hand, rtol=1e-5, atol=0)


def test_each_run_has_a_spread_of_its_own(train):
    """One that is learned would go on from the last run."""
    spreads = []
    for out in ("first", "second"):
        run = read_checkpoint(
            train("--likelihood", "gaussian", epochs=1, out=out) / "checkpoint.pt"
        )
        spreads.append(run.weights["likelihood.shared"].item())
    assert spreads[0] == spreads[1] != 0


def test_a_run_is_never_overwritten_by_accident(train, capsys, folder):
    out = train(epochs=1)
    before = everything(out)
    line = refused(capsys, ["train", "--source", folder, "--out", out, *SMALL])
    assert "checkpoint.pt holds a run already" in line
    assert "--resume" in line
    assert "--out" in line
    assert everything(out) == before


def test_two_runs_never_write_to_one_folder_at_once(train, capsys, folder, tmp_path):
    out = tmp_path / "run"
    command = ["train", "--source", folder, "--out", out, *SMALL]
    with alone(out):
        for more in ([], ["--resume"]):
            line = refused(capsys, [*command, *more])
            assert f"error: --out: another run is writing to {out} now; wait" in line
        assert everything(out) == {}
    assert train(epochs=1) == out


def test_a_run_that_ended_while_pictures_were_read_is_not_overwritten(
    train, capsys, folder, monkeypatch
):
    out = train(epochs=1)
    kept = everything(out)
    shutil.move(out, out.with_name("kept"))

    def ended(*arguments, **options):
        if not out.exists():
            shutil.copytree(out.with_name("kept"), out)
        return load_images(*arguments, **options)

    monkeypatch.setattr(commands, "load_images", ended)
    line = refused(capsys, ["train", "--source", folder, "--out", out, *SMALL])
    assert "checkpoint.pt holds a run already" in line
    assert everything(out) == kept


def test_resume_ends_as_an_uninterrupted_run(train):
    whole = train(epochs=3, out="whole")
    train(epochs=2, out="parts")
    assert_same_run(whole, train("--resume", epochs=3, out="parts"))


@pytest.mark.parametrize("wrong", [KeyboardInterrupt(), MemoryError("too little")])
def test_resume_after_an_interruption_within_an_epoch(train, tmp_path, capsys, monkeypatch, wrong):
    whole = train(epochs=3, out="whole")
    calls = iter(range(10**6))
    forward = VAE.forward

    def interrupted(self, x, eps, y=None):
        if next(calls) == 1 + (5 + 1) + 2:  # the rehearsal, an epoch and its measure, two steps
            raise wrong
        return forward(self, x, eps, y)

    monkeypatch.setattr(VAE, "forward", interrupted)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train(epochs=3, out="parts")
    last = capsys.readouterr().err.splitlines()[-1]
    if isinstance(wrong, KeyboardInterrupt):
        assert stop.value.code == 130
        assert last.startswith("vae_book: stopped; the same command with --resume")
    else:
        assert stop.value.code == 2
        assert last.startswith("vae_book: error: batch_size: 16 images")
    monkeypatch.undo()
    assert len(read_checkpoint(tmp_path / "parts" / "checkpoint.pt").history["kl"]) == 1
    assert_same_run(whole, train("--resume", epochs=3, out="parts"))


def test_resume_rewrites_what_an_interruption_cost_an_epoch(train, tmp_path, monkeypatch):
    """The pictures of an epoch are on disk before the checkpoint says that it is over."""
    whole = train(epochs=2, out="whole")
    save = commands.save_grid

    def stops(images, path, **options):
        if path.name.endswith("sample_0002.png"):
            raise ZeroDivisionError
        save(images, path, **options)

    monkeypatch.setattr(commands, "save_grid", stops)
    with pytest.raises(ZeroDivisionError):
        train(epochs=2, out="parts")
    monkeypatch.undo()
    assert_same_run(whole, train("--resume", epochs=2, out="parts"))


def test_resume_without_a_checkpoint_starts(train):
    assert_same_run(train(out="plain"), train("--resume", out="asked"))


def test_resume_of_a_finished_run_changes_nothing_and_says_so(train, capsys):
    out = train(epochs=2)
    before = everything(out)
    capsys.readouterr()
    train("--resume", epochs=2)
    assert everything(out) == before
    assert "2 epochs" in (said := capsys.readouterr().out)
    assert "raise --epochs" in said


def test_resume_with_other_settings_is_refused(train, capsys, folder):
    out = train(epochs=1)
    before = everything(out)
    line = refused(
        capsys,
        ["train", "--source", folder, "--out", out, *SMALL, "--resume", "--lr", "0.01", "--binary"],
    )
    assert "lr was 0.001 and is now 0.01" in line
    assert "resample was False and is now True" in line
    assert everything(out) == before


# sample -------------------------------------------------------------------------------------------


def test_sample_draws_from_the_prior(trained, tmp_path):
    paths = [tmp_path / "new" / name for name in ("a.png", "b.png", "c.png")]
    for path, seed in zip(paths, "110", strict=True):
        main(["sample", "--checkpoint", str(trained), "--n", "10", "--seed", seed,
              "--out", str(path)])  # fmt: skip
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    cells = pictures(paths[0], columns=4)
    model = read_checkpoint(trained).model("cpu")
    with torch.no_grad():
        expected = torch.sigmoid(model.decode(torch.randn(10, 2, generator=seeded(1))).params)
    assert np.abs(cells[:10].astype(int) - as_bytes(expected)).max() <= 1
    assert not cells[10:].any()  # the two empty places of 3 x 4


# evaluate -----------------------------------------------------------------------------------------


def evaluated(capsys, checkpoint, *options):
    capsys.readouterr()
    main(["evaluate", "--checkpoint", str(checkpoint), *options])
    return capsys.readouterr().out


@pytest.mark.parametrize("split", ["train", "test"])
def test_evaluate_prints_the_bound_its_terms_and_the_protocol(trained, folder, capsys, split):
    options = ["--split", split, "--samples", "3", "--seed", "2"]
    model = read_checkpoint(trained).model("cpu")
    data = load_images(split, str(folder), "cpu", size=28, channels=1)
    bound = average_elbo(model, data, n_samples=3, seed=2)

    printed = json.loads(evaluated(capsys, trained, *options, "--json"))
    assert printed == bound.as_dict()
    assert printed["protocol"]["pixels"] == "grayscale"
    assert printed["protocol"]["n_images"] == {"train": 72, "test": 8}[split]

    text = evaluated(capsys, trained, *options)
    for number in (bound.negative_elbo, bound.standard_error, bound.reconstruction, bound.kl):
        assert f" {number:.3f}" in text
    for line in ("ELBO", "3", str(folder), split, "grayscale", "2"):
        assert any(row.endswith(f" {line}") for row in text.splitlines())


@pytest.fixture
def growing(tmp_path):
    """A folder of thirty pictures, and a function that adds one to it."""
    folder, levels = tmp_path / "growing", iter(range(200))
    (folder / "only").mkdir(parents=True)

    def add(name):
        Image.new("L", (28, 28), color=next(levels)).save(folder / "only" / f"{name}.png")

    for i in range(30):
        add(f"m{i:02}")
    return folder, add


@pytest.mark.parametrize("options", [[], ["--binary"]])
@pytest.mark.parametrize("named", [True, False])
def test_images_trained_on_are_not_measured_as_test_images(
    growing, tmp_path, capsys, options, named
):
    folder, add = growing
    out = tmp_path / "run"
    main(["train", "--source", str(folder), "--epochs", "1", *SMALL, "--out", str(out), *options])
    before = [load_images(split, folder, "cpu").images for split in ("train", "test")]
    checkpoint = out / "checkpoint.pt"
    # Also by another path and another seed for binary pixels.
    again = ["--source", str(folder / "only" / ".."), "--seed", "3"] if named else []
    measured = [evaluated(capsys, checkpoint, *again, "--split", s) for s in ("train", "test")]
    add("a")
    now = load_images("test", folder, "cpu").images
    moved = [one for one in now for other in before[0] if torch.equal(one, other)]
    assert moved, "the split has not moved"
    for split in ("train", "test"):
        line = refused(capsys, ["evaluate", "--checkpoint", checkpoint, "--split", split, *again])
        assert re.search(
            r"error: source: the pictures of .*growing.* are split otherwise .*; put .* back", line
        ), line
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert "ELBO" in evaluated(capsys, checkpoint, "--source", str(copy))  # another source
    (folder / "only" / "a.png").unlink()
    assert measured == [
        evaluated(capsys, checkpoint, *again, "--split", s) for s in ("train", "test")
    ]


def test_more_test_images_may_be_measured_while_those_for_training_stay(growing, tmp_path, capsys):
    folder, _ = growing
    laid_out = tmp_path / "laid_out"
    for split, names in {"train": range(20), "test": range(20, 29)}.items():
        (laid_out / split / "only").mkdir(parents=True)
        for i in names:
            shutil.copy(folder / "only" / f"m{i:02}.png", laid_out / split / "only")
    out = tmp_path / "run"
    main(["train", "--source", str(laid_out), "--epochs", "1", *SMALL, "--out", str(out)])
    shutil.copy(folder / "only" / "m29.png", laid_out / "test" / "only")
    printed = json.loads(evaluated(capsys, out / "checkpoint.pt", "--json"))
    assert printed["protocol"]["n_images"] == 10


def test_evaluate_takes_a_checkpoint_of_fit_that_held_nothing_out(growing, tmp_path, capsys):
    folder, add = growing
    data, path = load_images("train", folder, "cpu"), tmp_path / "run.pt"
    training.fit(VAE(2, 8), data[:20], epochs=1, checkpoint=path)
    assert json.loads(evaluated(capsys, path, "--json"))["protocol"]["n_images"] == 3
    assert json.loads(evaluated(capsys, path, "--source", "bundled", "--json"))
    add("a")
    assert evaluated(capsys, path)


def test_evaluate_takes_another_source(trained, folder, tmp_path, capsys):
    other = tmp_path / "other"
    (other / "only").mkdir(parents=True)
    for i in range(20):
        Image.new("L", (28, 28), color=i).save(other / "only" / f"{i}.png")
    printed = json.loads(evaluated(capsys, trained, "--source", str(other), "--json"))
    assert (printed["protocol"]["source"], printed["protocol"]["n_images"]) == (str(other), 2)


def test_evaluate_draws_binary_images_for_a_model_of_binary_images(train, folder, capsys):
    checkpoint = train("--binary", epochs=1) / "checkpoint.pt"
    printed = json.loads(evaluated(capsys, checkpoint, "--seed", "5", "--json"))
    assert printed["protocol"]["pixels"] == "binary, drawn from the gray levels with seed 5"
    # An average over many draws of the pixels; the one that was printed is among them.
    model = read_checkpoint(checkpoint).model("cpu")
    data = load_images("test", str(folder), "cpu", size=28, channels=1)
    values = []
    for seed in range(100, 130):
        drawn = data.with_images(binarize(data.images, seeded(seed)))
        values.append(average_elbo(model, drawn, seed=seed).value)
    assert abs(printed["value"] - np.mean(values)) < 5 * np.std(values)
    other = json.loads(evaluated(capsys, checkpoint, "--seed", "6", "--json"))
    assert other["value"] != printed["value"]
    # What training reported is reproduced with the seed of the run.
    same = json.loads(evaluated(capsys, checkpoint, "--json"))
    assert -same["value"] == read_checkpoint(checkpoint).history["held_out"][-1]


def test_the_noise_of_binary_pixels_is_not_that_of_z(train, capsys, monkeypatch):
    """A generator started from the same seed would tie the two together."""
    checkpoint, streams = train("--binary", epochs=1) / "checkpoint.pt", []

    def spy(images, generator):
        streams.append(generator.initial_seed())
        return binarize(images, generator)

    monkeypatch.setattr(commands, "binarize", spy)
    evaluated(capsys, checkpoint, "--seed", "5")
    assert streams
    assert seeded(5).initial_seed() not in streams


def changed(trained, path, **parts):
    """A copy of a checkpoint with other parts."""
    torch.save({**torch.load(trained, weights_only=True), **parts}, path)
    return path


@pytest.mark.parametrize("options", [["evaluate"], ["evaluate", "--json"], ["sample"]])
def test_results_that_are_not_finite_are_an_error(trained, tmp_path, capsys, options):
    """Weights so large that numbers overflow, as after steps that were too large."""
    weights = {name: 1e38 * w for name, w in read_checkpoint(trained).weights.items()}
    checkpoint, out = changed(trained, tmp_path / "run.pt", weights=weights), tmp_path / "a.png"
    more = ["--out", out] if options == ["sample"] else []
    line = refused(capsys, [*options, "--checkpoint", checkpoint, *more])
    assert re.search(r"error: checkpoint: .*run\.pt gives .* not numbers.*smaller --lr", line), line
    assert not out.exists()


def test_labels_that_a_conditional_model_does_not_know_are_an_error(tmp_path, capsys):
    model, run = CVAE(latent=2, hidden=8, classes=3), tmp_path / "run.pt"
    write_checkpoint(run, model, torch.optim.Adam(model.parameters()), {}, {})
    line = refused(capsys, ["evaluate", "--checkpoint", run, "--source", "bundled"])
    assert re.search(r"error: y: expected labels from 0 to 2, got [3-9]$", line), line


def test_a_model_that_does_not_say_what_it_was_trained_on_asks_for_a_source(
    trained, folder, tmp_path, capsys
):
    checkpoint = changed(trained, tmp_path / "run.pt", settings={})
    line = refused(capsys, ["evaluate", "--checkpoint", checkpoint])
    assert re.search(r"error: source: .*run\.pt does not say .*add --source", line), line
    with_source = evaluated(capsys, checkpoint, "--source", str(folder))
    assert with_source == evaluated(capsys, trained)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--source", "nowhere"], "error: source: .*got 'nowhere'"),
        (["train", "--source", "FOLDER", "--lr", "-1"], "error: lr: .*got -1.0"),
        (["train", "--source", "FOLDER", "--seed", "-1"], "error: seed: .*-1"),
        (["train", "--source", "FOLDER", "--out", "FILE/run"], "error: .*[Nn]ot a directory"),
        (["sample", "--checkpoint", "none.pt"], "error: there is no checkpoint at none.pt"),
        (["sample", "--checkpoint", "FILE"], "error: path: .*file is damaged or not a checkpoint"),
        (["sample", "--checkpoint", "TRAINED", "--out", "a.foo"], "error: --out: .*got a.foo;"),
        (["sample", "--checkpoint", "TRAINED", "--out", "a"], "error: --out: .*got a; such as"),
        (["sample", "--checkpoint", "TRAINED", "--n", f"{10**20}"], r"error: n: .*2\*\*63"),
        (
            ["sample", "--checkpoint", "TRAINED", "--out", "TAKEN"],
            "error: --out: .*a folder: .*taken;",
        ),
        (["sample", "--checkpoint", "TRAINED", "--n", f"{10**12}"], "error: --n: .*memory.*lower"),
        (
            ["evaluate", "--checkpoint", "TRAINED", "--samples", f"{10**11}"],
            "error: --samples: .*memory",
        ),
        (
            ["evaluate", "--checkpoint", "TRAINED", "--samples", f"{10**20}"],
            "error: n_samples: .*2.*63",
        ),
        (
            ["train", "--source", "FOLDER", "--hidden", f"{10**11 - 1}"],
            "error: --size, --hidden or --latent: .*memory",
        ),
        (
            ["train", "--source", "FOLDER", "--hidden", f"{10**18}"],
            "error: --size, --hidden or --latent: .*memory",
        ),
        (["train", "--source", "FOLDER", "--latent", f"{10**20 - 1}"], r"error: latent: .*2\*\*63"),
        (
            ["train", "--source", "FOLDER", "--batch-size", f"{10**20}"],
            r"error: batch_size: .*2\*\*63",
        ),
        (
            ["train", "--source", "FOLDER", "--out", "FILE"],
            "error: --out: expected a folder, got f",
        ),
        (["evaluate", "--checkpoint", "none.pt"], "error: there is no checkpoint at none.pt"),
        (["evaluate", "--checkpoint", "TRAINED", "--source", "nowhere"], "error: source: "),
    ],
)
def test_an_error_of_use_is_one_line(
    tmp_path, monkeypatch, capsys, folder, trained, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder and no checkpoint")
    (tmp_path / "taken").mkdir()
    known = {"FOLDER": folder, "TRAINED": trained, "FILE": "file", "FILE/run": "file/run"}
    known["TAKEN"] = tmp_path / "taken"
    line = refused(capsys, [known.get(argument, argument) for argument in arguments])
    assert re.search(message, line), line
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file", tmp_path / "taken"]


@pytest.mark.parametrize(
    "options", [["--lr", "nan"], ["--lr", "inf"], ["--lr", "1e-400"], ["--seed", "-1"]]
)
def test_numbers_are_refused_before_data_are_loaded(capsys, monkeypatch, tmp_path, options):
    monkeypatch.setattr(commands, "load_images", lambda *_, **__: pytest.fail("data are loaded"))
    line = refused(capsys, ["train", *options, "--out", tmp_path / "run"])
    assert line.startswith(f"vae_book: error: {options[0][2:]}: expected a ")


@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize(
    "name", ["checkpoint.pt", "history.json", "sample_0001.png", "reconstruction_0001.png"]
)
def test_a_folder_in_the_place_of_a_file_is_found_before_data_are_loaded(
    capsys, monkeypatch, tmp_path, name, resume
):
    monkeypatch.setattr(commands, "load_images", lambda *_, **__: pytest.fail("data are loaded"))
    (tmp_path / name).mkdir()
    line = refused(capsys, ["train", "--out", tmp_path, *resume])
    assert line.startswith(
        f"vae_book: error: --out: expected a file, got a folder: {tmp_path / name};"
    )
    assert "--resume" not in line
    assert os.listdir(tmp_path) == [name]


def test_the_pictures_that_a_resumed_run_writes_first_are_looked_for(train, capsys, folder):
    out = train(epochs=1)
    (out / "sample_0002.png").mkdir()
    line = refused(capsys, ["train", "--source", folder, "--out", out, *SMALL, "--resume"])
    assert line.startswith("vae_book: error: --out: expected a file, got a folder: ")


def test_a_warning_is_one_line(folder, tmp_path):
    """In a program of its own, as pytest has its own ways with warnings."""
    shutil.copytree(folder, tmp_path / "pictures")
    (tmp_path / "pictures" / "one" / "notes.txt").write_text("no picture")
    options = [
        "--source",
        tmp_path / "pictures",
        *SMALL,
        "--epochs",
        "1",
        "--out",
        tmp_path / "run",
    ]
    done = forks.run("-m", "vae_book", "train", *options)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "notes.txt" in line]
    assert line.startswith("vae_book: warning: ")
    assert "UserWarning" not in done.stderr


def test_torchrun_with_processes_is_refused_once(folder, tmp_path):
    command = ["torch.distributed.run", "--standalone", "--local-addr=localhost"]
    command += ["--nproc-per-node=3", "-m", "vae_book", "train", "--processes", "2"]
    options = ["--source", str(folder), "--out", str(tmp_path / "run")]
    done = forks.run("-m", *command, *options)
    assert done.returncode != 0
    assert done.stderr.count("vae_book: error: processes: expected 1 under torchrun") == 1


def test_a_grid_of_no_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^images: expected at least one, got none"):
        commands.save_grid(torch.zeros(0, 1, 2, 2), tmp_path / "none.png")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_models_of_every_type_are_drawn_from_and_measured(trained, tmp_path, capsys, dtype):
    weights = {name: w.to(dtype) for name, w in read_checkpoint(trained).weights.items()}
    checkpoint, out = changed(trained, tmp_path / "run.pt", weights=weights), tmp_path / "a.png"
    main(["sample", "--checkpoint", str(checkpoint), "--out", str(out)])
    assert pictures(out, columns=8).any()
    ours, theirs = (json.loads(evaluated(capsys, c, "--json")) for c in (checkpoint, trained))
    assert ours["value"] == pytest.approx(theirs["value"], rel=1e-2)


def test_too_few_images_to_measure_on_are_one_line_that_says_what_to_do(tmp_path, capsys, trained):
    pictures, out = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    for level in range(6):
        Image.new("L", (28, 28), level).save(pictures / f"{level}.png")
    for command in (["train", *SMALL, "--out", out], ["evaluate", "--checkpoint", trained]):
        line = refused(capsys, [*command, "--source", pictures])
        assert re.search(r"error: source: expected 2 test images or more .*, got 1; add", line), (
            line
        )
    assert not out.exists()


@pytest.mark.parametrize("place", ["", "run", "runs/run"])
def test_a_run_is_not_written_among_the_pictures_that_it_is_trained_on(place, folder, capsys):
    before = sorted(folder.rglob("*"))
    line = refused(capsys, ["train", *SMALL, "--source", folder, "--out", folder / place])
    assert "error: --out: expected a folder outside of " in line
    assert sorted(folder.rglob("*")) == before


def test_a_folder_that_was_moved_is_named_and_its_new_place_asked_for(folder, tmp_path, capsys):
    pictures, out, moved = (tmp_path / name for name in ("pictures", "run", "moved"))
    shutil.copytree(folder, pictures)
    main(["train", *SMALL, "--source", str(pictures), "--out", str(out), "--epochs", "1"])
    pictures.rename(moved)
    command = ["evaluate", "--checkpoint", str(out / "checkpoint.pt")]
    line = refused(capsys, command)
    assert re.search(rf"error: source: .* names {re.escape(str(pictures))}, .*add --source", line)
    main([*command, "--source", str(moved)])
    assert "negative ELBO" in capsys.readouterr().out
    Image.fromarray(np.full((28, 28), 7, np.uint8)).save(moved / "one" / "07b.png")
    with pytest.warns(UserWarning, match=rf"{re.escape(str(pictures))}, .* is gone; .*{moved}"):
        main([*command, "--source", str(moved)])


def test_a_folder_is_known_by_the_same_name_from_everywhere(monkeypatch, folder):
    monkeypatch.chdir(folder.parent)
    assert load_images("train", folder.name, "cpu").source == os.path.realpath(folder)


def test_a_full_disk_is_one_line_that_names_file_and_disk_and_how_to_go_on(train, folder, tmp_path):
    out = train(epochs=1)
    before = everything(out)
    program = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "runpy.run_module('vae_book', run_name='__main__', alter_sys=True)\n"
    )
    options = ["train", "--source", folder, *SMALL, "--out", out, "--epochs", "3", "--resume"]
    # Or modules would be compiled into files that the limit cuts off.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = forks.run("-c", program, *options, env=environment)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert f"{out / 'checkpoint.pt'} could not be written: File too large" in line
    assert "the disk at /" in line
    assert "--resume" in line
    assert "Traceback" not in done.stderr
    assert everything(out) == before
    assert_same_run(train(epochs=2, out="whole"), train("--resume", epochs=2))


@pytest.mark.parametrize(
    "shape", [(5, 1, 3, 4), (16, 3, 2, 2), (2, 1, 2, 2), (8, 1, 3, 2), (1, 3, 2, 3)]
)
def test_a_grid_is_that_of_torchvision(tmp_path, shape):
    from torchvision.utils import save_image  # here: it takes as long to import as torch

    images = 1.2 * torch.rand(shape, generator=seeded(0)) - 0.1
    commands.save_grid(images, tmp_path / "ours.png")
    save_image(images, tmp_path / "theirs.png")
    ours, theirs = (Image.open(tmp_path / name) for name in ("ours.png", "theirs.png"))
    assert ours.mode == {1: "L", 3: "RGB"}[shape[1]]
    assert (np.array(ours.convert("RGB")) == np.array(theirs)).all()


def test_a_full_gpu_is_one_line_that_says_what_to_lower(train, capsys, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(training.Adam, "step", full)
    with pytest.raises(SystemExit, match="2"):
        train()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("vae_book: error: batch_size: 16 images")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_full_memory_is_one_line_wherever_it_is_met(train, capsys, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(commands, "load_images", full)
    with pytest.raises(SystemExit, match="2"):
        train()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("vae_book: error: the memory of this machine does not suffice; take")


def test_a_tilde_that_the_shell_leaves_is_the_home(train, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    train("--out=~/kept", epochs=1)
    assert (tmp_path / "kept" / "checkpoint.pt").exists()


def test_missing_data_are_an_error_of_use(monkeypatch, capsys, tmp_path):
    def missing(*arguments, **options):
        raise DataError("MNIST is not here. To go on, put it there")

    monkeypatch.setattr(commands, "load_images", missing)
    line = refused(capsys, ["train", "--source", "full", "--out", tmp_path / "run"])
    assert line == "vae_book: error: MNIST is not here. To go on, put it there"
    assert not (tmp_path / "run").exists()


def test_an_unusable_device_is_an_error_of_use(monkeypatch, capsys, trained):
    monkeypatch.setenv("VAE_BOOK_DEVICE", "abacus")
    assert "VAE_BOOK_DEVICE='abacus'" in refused(capsys, ["sample", "--checkpoint", trained])


def test_a_mistake_in_the_program_keeps_its_traceback(monkeypatch, trained):
    def mistaken(*arguments):
        raise TypeError("a bug")

    monkeypatch.setattr(commands, "read_checkpoint", mistaken)
    with pytest.raises(TypeError, match="a bug"):
        main(["sample", "--checkpoint", str(trained)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["train", "--epochs", "0"], "--epochs: expected a positive whole number, got '0'"),
        (["train", "--size", "28x"], "--size: expected N or HEIGHTxWIDTH in pixels, got '28x'"),
        (["train", "--size", "2x3x4"], "--size: expected N or HEIGHTxWIDTH in pixels"),
        (["train", "--size", "0"], "--size: expected N or HEIGHTxWIDTH in pixels, got '0'"),
        (["train", "--likelihood", "poisson"], "invalid choice: 'poisson'"),
        (["train", "--binary", "--likelihood", "gaussian"], "not allowed with argument"),
        (["train", "--latent", "2.5"], "--latent: expected a positive whole number, got '2.5'"),
        (["sample", "--n", "-3"], "--n: expected a positive whole number, got '-3'"),
        (["train", "--out", ""], "--out: expected a name, got an empty one"),
        (["train", "--source", ""], "--source: expected a name, got an empty one"),
        (["evaluate", "--checkpoint", ""], "--checkpoint: expected a name, got an empty one"),
        (["evaluate", "--split", "validation"], "invalid choice: 'validation'"),
        (["train", "--learning-rate", "1"], "unrecognized arguments: --learning-rate"),
    ],
)
def test_bad_arguments_are_explained(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# doctor -------------------------------------------------------------------------------------------

MODULE = """
import torch
from torch import nn

encoder, decoder = nn.Linear(784, 4), nn.Linear(2, 784)

class Model:
    def encode(self, x):
        return encoder(x.flatten(1)).chunk(2, 1)

    def decode(self, z):
        return decoder(z)

    def loss(self, x):
        mu, log_var = self.encode(x)
        logits = self.decode(mu + (0.5 * log_var).exp() * torch.randn_like(mu))
        cross_entropy = nn.functional.binary_cross_entropy_with_logits(
            logits, x.flatten(1), reduction="sum")
        return cross_entropy + SIGN * 0.5 * (mu**2 + log_var.exp() - 1 - log_var).sum()

def make_vae():
    model = Model()
    return {"encode": model.encode, "decode": model.decode, "loss": model.loss}

def makes_nothing():
    return None

def raises():
    return 1 / 0

def takes_one(epochs):
    return make_vae()

def makes_something_else():
    return {"encode": Model().encode, "model": Model()}
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the reader's in the folder where the command runs."""
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda sign: (tmp_path / "my_own.py").write_text(MODULE.replace("SIGN", sign))
    sys.modules.pop("my_own", None)


def test_doctor_prints_the_report_of_a_healthy_model(own_module, capsys):
    own_module("1")
    main(["doctor", "my_own:make_vae"])
    printed = capsys.readouterr().out
    assert "ok           scale and sign of both terms: log-likelihood summed, KL summed" in printed
    assert printed.endswith("found: no fault\n")


def test_doctor_ends_with_code_1_where_it_finds_a_fault(own_module, capsys):
    own_module("-1")
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "my_own:make_vae"])
    assert stop.value.code == 1
    assert capsys.readouterr().out.endswith("found: kl-sign\n")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("my_own", "make_vae: expected my_module:make_vae, got 'my_own'"),
        ("no_such:make_vae", "no_such:make_vae: No module named 'no_such'; is it in this folder"),
        ("my_own:make", "my_own:make: AttributeError (module 'my_own' has no attribute 'make')"),
        ("my_own.py:make_vae", "make_vae: expected my_module:make_vae, got 'my_own.py:"),
        ("./my_own:make_vae", "make_vae: expected my_module:make_vae, got './my_own:"),
        ("broken_own:make_vae", "broken_own:make_vae: ZeroDivisionError (division by zero)"),
        ("my_own:raises", "my_own:raises: it raised ZeroDivisionError (division by zero)"),
        ("sys:exit", "sys:exit: it raised SystemExit"),
        ("ends_own:make_vae", "ends_own:make_vae: SystemExit (0)"),
        ("my_own:takes_one", "my_own:takes_one: it raised TypeError (takes_one() missing 1"),
        ("my_own:makes_nothing", "my_own:makes_nothing: expected a function that returns a dict"),
        ("my_own:makes_something_else", "my_own:makes_something_else: expected the arguments of"),
    ],
)
def test_doctor_says_what_it_wanted(own_module, tmp_path, capsys, where, message):
    own_module("1")
    (tmp_path / "broken_own.py").write_text("1 / 0")
    (tmp_path / "ends_own.py").write_text("raise SystemExit(0)")
    assert refused(capsys, ["doctor", where]).startswith(f"vae_book: error: {message}")


def test_functions_that_end_the_program_are_no_healthy_model(own_module, tmp_path, capsys):
    own_module("1")
    (tmp_path / "quits_own.py").write_text(
        "import my_own, sys\n"
        "def make_vae():\n"
        "    return my_own.make_vae() | {'encode': lambda *_: sys.exit(0)}\n"
    )
    line = refused(capsys, ["doctor", "quits_own:make_vae"])
    assert line == "vae_book: error: quits_own:make_vae: a function of it raised SystemExit (0)"


# Before the command begins ------------------------------------------------------------------------

# A program in which something happens where torch would be imported.
AT_THE_IMPORT = """
import os, runpy, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            try:
                {happens}
            except KeyboardInterrupt:  # as an import of numpy may swallow it
                pass

sys.meta_path.insert(0, Finder())
runpy.run_module("vae_book", run_name="__main__", alter_sys=True)
"""


def at_the_import(happens):
    program = AT_THE_IMPORT.format(happens=happens)
    command = [sys.executable, "-c", program, "train"]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_torch_is_imported_is_not_lost(number):
    done = at_the_import(f"os.kill(os.getpid(), {int(number)})")
    assert done.returncode == 128 + number
    assert done.stderr.startswith("vae_book: stopped; the same command with --resume goes on")
    assert done.stderr.count("\n") == 1


def test_too_little_memory_for_torch_is_one_line():
    said = "libtorch_cpu.so: failed to map segment from shared object"
    done = at_the_import(f"raise ImportError({said!r})")
    assert done.returncode == 2
    assert done.stderr == f"vae_book: error: {NO_MEMORY}\n"


def test_a_command_runs_where_nobody_listens(tmp_path):
    """Its output was closed: Python then has None in the place of stdout."""
    program = (
        "import runpy, sys\n"
        "sys.stdout = None\n"
        "runpy.run_module('vae_book', run_name='__main__', alter_sys=True)\n"
    )
    done = forks.run("-c", program, "reproduce", "--list")
    assert (done.returncode, done.stderr) == (0, "")


# --help -------------------------------------------------------------------------------------------


def test_help_runs_as_a_module_and_does_not_wait_for_torch():
    program = [sys.executable, "-X", "importtime", "-m", "vae_book", "--help"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m vae_book [-h] COMMAND")
    for word in ("train", "sample", "evaluate", "doctor", "VAE_BOOK_DEVICE"):
        assert word in done.stdout
    assert "argparse" in done.stderr
    assert "torch" not in done.stderr


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        (
            "train",
            {
                "--source": "VAE_BOOK_DATASET, else bundled",
                "--epochs": "10",
                "--batch-size": "128",
                "--lr": "0.001",
                "--seed": "0",
                "--latent": "20",
                "--hidden": "400",
                "--size": "as they are",
                "--likelihood": "cross-entropy",
                "--out": "runs/vae",
            },
        ),
        ("sample", {"--checkpoint": "runs/vae/checkpoint.pt", "--n": "64", "--seed": "0"}),
        ("evaluate", {"--source": "what the model was trained on", "--split": "test"}),
    ],
)
def test_help_shows_the_defaults(capsys, command, defaults):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split("options:")[1].split())
    _, *options = text.replace("cross- entropy", "cross-entropy").split(" --")
    shown = {f"--{text.split()[0]}": text for text in options}
    for option, default in defaults.items():
        assert f"(default: {default})" in shown[option]
