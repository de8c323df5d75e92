"""Damage of kinds that no other file tries: all that is read is whole, or is refused by name."""

import json
import os
import random
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tests import forks
from tests.numbers import refused
from vae_book import files, folders, ledger, reproduction
from vae_book.coding import CHECKSUM, HEADER, compress, decompress, file_facts
from vae_book.data import data_directory, load_images
from vae_book.device import seeded
from vae_book.evaluation import log_likelihood
from vae_book.files import PART, WriteError, check_writable, clear_up, part_name, replacing
from vae_book.images import DataError, Images
from vae_book.likelihoods import Bernoulli
from vae_book.models import VAE

IMAGE = (1, 2, 2)
MOST = 2**32 - 1


def some(n=6):
    images = torch.rand(n, *IMAGE, generator=seeded(0)).round()
    return Images(images, torch.zeros(n).long(), "made", "test")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VAE(2, 3, IMAGE, Bernoulli())


# Sums of a log-likelihood -------------------------------------------------------------------------


def test_a_single_flipped_bit_of_a_tally_is_refused_unless_nothing_reads_it(model, tmp_path):
    file, draw, refusals = tmp_path / "log_p.pt", random.Random(0), []
    whole = log_likelihood(model, some(), n_samples=3, file=file)
    content = file.read_bytes()
    for place in (draw.randrange(8 * len(content)) for _ in range(200)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            again = log_likelihood(model, some(), n_samples=3, file=file)
        except ValueError as error:
            refusals.append(str(error))
        else:
            assert torch.equal(again.per_image, whole.per_image)
            assert again == whole
    assert all(each.startswith(f"file: {file} is damaged or holds") for each in refusals)
    assert len(refusals) > 20  # the rest is padding


@pytest.mark.parametrize(
    "change",
    [
        {"sums": torch.full((2, 6), torch.nan, dtype=torch.float64)},
        {"sums": torch.full((2, 6), torch.inf, dtype=torch.float64)},
        {"sums": torch.zeros(2, 6)},
        {"sums": None},
        {"sums": [[0.0] * 6] * 2},
        {"steps": -1},
        {"steps": 0.5},
        {"steps": None},
    ],
)
def test_a_tally_with_wrong_content_is_refused(model, tmp_path, change):
    file = tmp_path / "log_p.pt"
    log_likelihood(model, some(), n_samples=3, file=file)
    torch.save({**torch.load(file), **change}, file)
    with refused(f"file: {file} is damaged or holds no measurement"):
        log_likelihood(model, some(), n_samples=3, file=file)


# Files of results ---------------------------------------------------------------------------------


@pytest.fixture
def result(monkeypatch, tmp_path):
    """A file as `reproduce` writes it, and what it holds."""
    row = next(iter(ledger.ROWS))
    protocol = {"quantity": "ELBO", "source": "full", "split": "test", "n_images": 10,
                "pixels": "binary", "seed": 0, "device": "CPU"}  # fmt: skip
    one = {"value": 100.0, "standard_error": 0.5, "protocol": protocol}
    stored = {"name": row, "measured": {"-ELBO": one}}
    path = tmp_path / f"{row}.json"
    path.write_text(json.dumps(stored))
    return path, stored


def test_a_whole_file_of_results_is_read(result):
    path, stored = result
    assert reproduction.read_result(path) == stored
    assert reproduction.read_result(path.with_name("other.json")) is None
    assert "measured" in reproduction.listing(path.parent).splitlines()[0]


DAMAGED = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "a list": lambda text: f"[{text}]",
    "a number": lambda text: "3",
    "no measure": lambda text: '{"measured": {}}',
    "not finite": lambda text: text.replace("100.0", "NaN"),
    "infinite": lambda text: text.replace("0.5", "Infinity"),
    "text": lambda text: text.replace("100.0", '"100"'),
    "null": lambda text: text.replace("100.0", "null"),
    "without a field": lambda text: text.replace('"value"', '"valve"'),
    "protocol of another version": lambda text: text.replace('"split"', '"part"'),
    "not text": lambda text: bytes(range(256)),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_of_results_is_named_and_not_listed_as_measured(result, damage):
    path, _ = result
    content = DAMAGED[damage](path.read_text())
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(f"path: {path} is damaged or holds no results"):
        reproduction.read_result(path)
    assert "damaged, run it again" in reproduction.listing(path.parent).splitlines()[0]


# Folders of pictures ------------------------------------------------------------------------------


def picture(path, level, size=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size), level, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for level in range(30):
        picture(tmp_path / "pictures" / f"{level:02}.png", 3 * level)
    return tmp_path / "pictures"


CHANGES = {
    "one more": lambda folder: picture(folder / "more.png", 255),
    "one less": lambda folder: (folder / "03.png").unlink(),
    "another one": lambda folder: picture(folder / "03.png", 255, size=4),
    "another name": lambda folder: (folder / "03.png").rename(folder / "33.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_splits_of_a_folder_that_has_changed_between_them_are_refused(folder, change):
    load_images("train", str(folder), "cpu")
    os.utime(folder / "03.png", ns=(0, 0))  # clocks of files are coarse
    CHANGES[change](folder)
    with pytest.raises(DataError, match=r"pictures has changed since its pictures for train were"):
        load_images("test", str(folder), "cpu")
    train, test = (load_images(split, str(folder), "cpu") for split in ("train", "test"))
    levels = [set(each.images[:, 0, 0, 0].tolist()) for each in (train, test)]
    assert not levels[0] & levels[1]
    assert len(levels[0] | levels[1]) == len(list(folder.iterdir()))


def test_a_picture_that_goes_while_others_are_read_is_named(folder, monkeypatch):
    find = folders._find

    def find_then_lose(where):
        found = find(where)
        found.paths[-1].unlink()
        return found

    monkeypatch.setattr(folders, "_find", find_then_lose)
    with pytest.raises(DataError, match=r"29\.png cannot be read as an image: .*No such file"):
        load_images("train", str(folder), "cpu")


# Where data are kept ------------------------------------------------------------------------------


def test_a_home_that_is_not_known_is_no_folder_named_tilde(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for chosen in ("~nobody-has-this-name/data", ""):
        monkeypatch.setenv("VAE_BOOK_DATA", chosen)
        if not chosen:
            monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # nor has this user one
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        with refused("VAE_BOOK_DATA: expected a folder, got '~"):
            data_directory()
        with refused("VAE_BOOK_DATA: "):
            load_images("train", "bundled", "cpu")
    assert not list(tmp_path.iterdir())


def test_a_cache_that_may_not_be_looked_into_costs_time_not_the_run(monkeypatch, tmp_path):
    monkeypatch.setenv("VAE_BOOK_DATA", str(tmp_path))
    exists = type(tmp_path).exists

    def forbidden(path):
        if path.name == "bundled.npz":
            raise PermissionError(13, "Permission denied")
        return exists(path)

    monkeypatch.setattr(type(tmp_path), "exists", forbidden)
    with pytest.warns(UserWarning, match=r"bundled\.npz is damaged; making it again"):
        assert len(load_images("train", "bundled", "cpu")) == 4500


# Several writers ----------------------------------------------------------------------------------


def test_what_another_process_is_writing_is_not_cleared_away(tmp_path):
    started, over = tmp_path / "started", tmp_path / "over"
    program = (
        "import os, sys, time\n"
        "from vae_book.files import replacing\n"
        "with replacing(sys.argv[1]) as part:\n"
        "    part.write_text('whole')\n"
        "    open(sys.argv[2], 'w').close()\n"
        "    while not os.path.exists(sys.argv[3]):\n"
        "        time.sleep(0.02)\n"
    )
    with (tmp_path / "said").open("w+") as said:
        arguments = (tmp_path / "one", started, over)
        writer = forks.start("-c", program, *arguments, stdout=said, stderr=said)
        while not started.exists() and writer.poll() is None:
            time.sleep(0.02)
        check_writable(tmp_path / "other", 10)
        over.touch()
        assert writer.wait(timeout=60) == 0, said.read()
    assert (tmp_path / "one").read_text() == "whole"


def test_what_dead_writers_left_is_cleared_away(monkeypatch, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, name = f"{dead.pid}-{files._host()}", "0123-file"
    (tmp_path / f"{PART}{here}-{name}").write_text("half")
    (tmp_path / f"{PART}{here}-{name}-folder").mkdir()
    (tmp_path / f"{PART}of-an-earlier-version").write_text("half")
    os.utime(tmp_path / f"{PART}of-an-earlier-version", (0, 0))
    elsewhere = tmp_path / f"{PART}1-00000000-{name}"
    elsewhere.write_text("half")
    mine = tmp_path / f"{part_name()}file"
    mine.write_text("half")
    clear_up(tmp_path)
    assert set(tmp_path.iterdir()) == {elsewhere, mine}
    os.utime(elsewhere, (0, 0))
    clear_up(tmp_path)
    assert set(tmp_path.iterdir()) == {mine}


def test_a_folder_that_is_gone_does_not_hide_what_failed(monkeypatch, tmp_path):
    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda number: gone())
    monkeypatch.setattr(os, "getcwd", gone)
    said = r"^file could not be written: No such file"
    with pytest.raises(WriteError, match=said), replacing("file") as part:
        part.write_text("whole")


# Printing -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_result_that_cannot_be_printed_is_an_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run(  # no fork: an interpreter prints once more as it ends
            [sys.executable, "-m", "vae_book", "reproduce", "--list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == "vae_book: error: [Errno 28] No space left on device\n"


# Compressed images --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (1, 0),
        (1, 1),
        (1, 257),
        (2, 0),
        (2, 200),
        (4, 0),
        (4, 2**32 - 1),
        (5, 0),
        (5, 2**32 - 1),
        (6, 0),
        (6, 5),
    ],
)
def test_a_header_that_lies_is_refused(model, place, value):
    data = compress(model, some().images)
    facts = list(HEADER.unpack_from(data))
    facts[place] = value
    content = HEADER.pack(*facts) + data[HEADER.size : -CHECKSUM.size]
    forged = content + CHECKSUM.pack(zlib.crc32(content))
    with pytest.raises(ValueError, match=r"^(data|model|state): expected"):
        decompress(model, forged)


def test_a_cut_file_with_a_right_checksum_is_refused(model):
    data = compress(model, some().images)
    for size in (0, 4, HEADER.size - 1, HEADER.size, HEADER.size + 1):
        content = data[:size]
        with pytest.raises(ValueError, match=r"^(data|model|state): expected"):
            decompress(model, content + CHECKSUM.pack(zlib.crc32(content)))


@pytest.mark.usefixtures("shapes_unchecked")
def test_text_is_no_file():
    with refused("data: expected bytes, got str"):
        file_facts("VAE1")


# What a model is told -----------------------------------------------------------------------------


def test_what_is_told_is_finite():
    data = some()
    with refused("told: expected finite numbers"):
        Images(data.images, data.labels, "made", "test", told=torch.full((6, 1), torch.nan))
