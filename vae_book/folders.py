"""A folder of pictures as arrays, right to the pixel (explained in the chapter on your own data).

Pillow does the reading. Of a picture one gets what a viewer shows: its EXIF orientation is applied,
what is transparent shows white paper, palettes become their colors, CMYK becomes RGB (without color
profiles), of an animation or a document the first frame is taken. Levels of 8 bits are divided by
255, gray ones of 16 bits by 65535; Pillow reads color of 16 bits with 8, and gray too where each
pixel has its own transparency. Floating-point levels are taken as they are, and refused outside
[0, 1]. Read are the formats of `FORMATS`; what Pillow is known to read wrongly of them is refused.
"""

import hashlib
import math
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from vae_book.images import DataError

DIM = 1 / 8  # as levels of 12 bits in 16
SPLIT_SEED = 0
HELD_OUT_SHARE = 0.1
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")  # the first that is there
UNCLEAR = (  # words in the names of other layouts, which are taken neither for splits nor classes
    {*TRAIN, "trainval"},
    {*TEST, "eval", "evaluation", "dev", "development", "holdout"},
)
IMAGES = {"image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures"}
MASKS = {  # which come with images, a picture for each
    *("mask", "masks", "seg", "segmentation", "segmentations", "segmentationclass"),
    *("annotation", "annotations", "label", "labels", "gt", "groundtruth"),
}
CLUTTER = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}  # made by systems
# Those in which pictures come. Others that Pillow opens hold icons, measurements or no pixels.
FORMATS = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP"}

Size = tuple[int, int]


def read_folder(
    folder: Path, split: str, size: Size | None = None, channels: int | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The pictures of one split, their labels, and the names of their classes.

    Three layouts are known. ``CLASS/picture.png`` is split 90 to 10, always alike and evenly over
    the classes. So are pictures without class folders, which make one class, named as the folder.
    ``train/CLASS/picture.png`` beside ``test/CLASS/picture.png`` is split already; ``val``,
    ``valid`` or ``validation`` stands in for a missing ``test``. Folders inside a class belong to
    it, which is told; a single folder that wraps all others is looked through, and so are splits
    inside of themselves, as ``train/train``. Classes are sorted by name as Python sorts text, and
    so are the pictures of a class by path. Hidden files and what systems leave behind are passed
    over; one warning says what else was left out.

    No picture is in both splits, whatever its name or class: pictures that are equal once they are
    read stay together, and test pictures of a folder that is split already are left out if they
    equal training pictures.

    Args:
        folder: the folder.
        split: ``train`` or ``test``.
        size: height and width to resize to by `padded`; None keeps those of the pictures.
        channels: 1 makes the pictures gray (luma of ITU-R 601), 3 makes them RGB; None takes 1 if
            all pictures of the folder are gray, else 3.

    Returns:
        Pixels, shape (n, height, width) or (n, height, width, 3), as uint8 or, if a picture has
        finer levels, as float32 in [0, 1]; labels, shape (n,); class names, by label.

    Raises:
        ValueError: there is no picture, or none for this split; classes have the names of splits,
            as ``train_set`` beside ``test_set``, or there are masks beside images; one split alone
            has folders of classes; the pictures have several sizes and ``size`` is None; or they
            would not fit into memory.
        DataError: pictures cannot be read, and which; or the folder has changed since the other
            split was read, which then no longer fits this one.
    """
    found = _find(folder)
    _check_unchanged(folder, split, found.paths)
    with warnings.catch_warnings(action="ignore"):  # Pillow warns of pictures that it reads well
        pixels, animated = _read_all(found.paths, size, channels)
    classes = tuple(sorted(set(found.names)))
    labels = np.array([classes.index(name) for name in found.names])
    first: dict[bytes, int] = {}
    digests = (hashlib.sha256(picture.tobytes()).digest() for picture in pixels)
    same = np.array([first.setdefault(digest, row) for row, digest in enumerate(digests)])

    notes = found.notes
    if pixels.dtype == np.float32 and (high := pixels.max()) < DIM:
        notes.append(f"the highest level is {high:.2g}, where white is 1")
    if animated:
        notes.append(f"of several frames the first was taken: {_listed(animated, folder)}")
    if found.in_test is None:
        chosen = held_out(labels, same) == (split == "test")
        told, copies = "equal to others, and kept in one split", same != np.arange(len(same))
    else:
        told, copies = "left out of test, since train has them", np.isin(same, same[~found.in_test])
        copies &= found.in_test
        chosen = found.in_test & ~copies if split == "test" else ~found.in_test
    if copies.any():
        notes.append(
            f"{told}: {_listed([found.paths[row] for row in np.flatnonzero(copies)], folder)}"
        )
    if not chosen.any():
        reason = (
            f"split: no picture of {folder} is left for {split!r}, which takes pictures that "
            f"differ from those of the other split; the folder holds {len(first)} different "
            f"picture{'s' if len(first) > 1 else ''}"
        )
        raise ValueError("; ".join([reason, *notes]))
    if notes:
        warnings.warn("; ".join([f"{folder}: {notes[0]}", *notes[1:]]), stacklevel=3)
    return pixels[chosen], labels[chosen], classes


_states: dict[Path, dict[str, str]] = {}  # of each folder, when a split was last read


def _check_unchanged(folder: Path, split: str, paths: Sequence[Path]) -> None:
    """Raise DataError if the other split was read when the folder held other files.

    A picture more or less moves others from one split to the other. Who reads a split again knows.
    """
    now = hashlib.sha256()
    for path in paths:
        facts = path.stat() if path.exists() else None
        now.update(os.fsencode(f"{path} {facts and (facts.st_size, facts.st_mtime_ns)}\0"))
    read = _states.setdefault(folder.resolve(), {})
    stale = [other for other, state in read.items() if state != now.hexdigest()]
    if stale and split not in read:
        raise DataError(
            f"{folder} has changed since its pictures for {stale[0]} were read, so that pictures "
            f"may be in both splits now; read those for {stale[0]} again, and then these"
        )
    read[split] = now.hexdigest()


def held_out(labels: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The fixed split: whether each image is for testing.

    A tenth of the different images is, at least one of several, of each class as near to a tenth
    as rounding allows; and all their copies are.

    Args:
        labels: the class of each image.
        same: the place of the first image that is equal to each.
    """
    rng = np.random.RandomState(SPLIT_SEED)
    different = same == np.arange(len(same))
    n = int(different.sum())
    total = round(HELD_OUT_SHARE * n) or min(n - 1, 1)
    chosen: list[int] = []
    passed = 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        members = members[different[members]]
        passed += len(members)
        # What is due up to this class: rounded class by class, small classes would give nothing.
        chosen += members[: round(total * passed / n) - len(chosen)].tolist()
    return np.isin(same, chosen)


def padded(picture: Image.Image, size: Size) -> Image.Image:
    """A picture resized to fit into a height and width with its aspect kept, on a black ground.

    Raises:
        ValueError: it is so long and thin that nothing would be left of it.
    """
    scale = min(size[0] / picture.height, size[1] / picture.width)
    if round(scale * min(picture.size)) == 0:
        raise ValueError(
            f"{picture.height} x {picture.width} pixels leave nothing within {size[0]} x {size[1]}"
        )
    return ImageOps.pad(picture, (size[1], size[0]), color=0)


# Finding pictures ---------------------------------------------------------------------------------


class Found(NamedTuple):
    """Pictures, the class of each, which are for testing if that is laid out, what to tell."""

    paths: list[Path]
    names: list[str]
    in_test: np.ndarray | None
    notes: list[str]


Parts = dict[Path, tuple[str, ...]]  # of each picture, the names of the folders down to it


def _find(folder: Path) -> Found:
    """The pictures of a folder, by the layouts that `read_folder` knows."""
    pictures, notes = _pictures(folder)
    found = _unwrapped({path: path.relative_to(folder).parts for path in pictures})
    tops = {parts[0].lower(): parts[0] for parts in found.values() if len(parts) > 1}
    train, test = _splits(tops)
    is_split = bool(train and test)
    in_test = {path: parts[0] == test for path, parts in found.items()}
    if is_split:
        if str(test).lower() not in TEST[:2]:
            notes.append(f"{test} was taken for the missing test")
        in_split = {path: each for path, each in found.items() if each[0] in (train, test)}
        found = _inside(in_split)
    if any(len(parts) > 1 for parts in found.values()):
        found = {path: parts for path, parts in found.items() if len(parts) > 1}
    if beside := [path for path in pictures if path not in found]:
        reason = "they lie beside the class folders"
        if is_split and any(path not in in_split for path in beside):
            reason = f"pictures are taken from the class folders of {train} and {test} alone"
        notes.append(f"left out, since {reason}: {_listed(beside, folder)}")
    if deeper := sorted({"/".join(parts[:2]) for parts in found.values() if len(parts) > 2}):
        few = f"{', '.join(deeper[:3])}{', ...' if len(deeper) > 3 else ''}"
        notes.append(f"folders inside a class belong to it: {few}")
    # macOS writes an accent in two characters, others in one: the same name all the same.
    names = [each[0] if len(each) > 1 else folder.resolve().name for each in found.values()]
    names = [unicodedata.normalize("NFC", name) for name in names]
    _check_pairs(folder, set(names))
    _check_pairs(folder, {parts[1] for parts in found.values() if len(parts) > 2})
    _check_marked(found)
    sides = np.array([in_test[path] for path in found])
    if not is_split:
        _check_classes(folder, set(names))
        _check_no_splits_inside(folder, found)
    elif len(set(sides)) < 2:
        raise ValueError(
            f"source: expected pictures in folders of classes in both {train} and {test} of "
            f"{folder}, got them in {test if sides.all() else train} alone; sort the others into "
            "classes, too, or move them away"
        )
    elif new := sorted(set(names) - {names[i] for i in np.flatnonzero(~sides)}):
        notes.append(f"classes without training pictures: {', '.join(new)}")
    return Found(list(found), names, sides if is_split else None, notes)


def _pictures(folder: Path) -> tuple[list[Path], list[str]]:
    """The files below a folder that are pictures by their endings, and a note on all others."""
    try:
        everything = list(_tree(folder))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be looked into: {error.strerror}") from error
    kinds = {*_formats(), "MPO"}  # a JPEG to Pillow, with an ending of its own
    endings = {end for end, kind in Image.registered_extensions().items() if kind in kinds}
    is_picture = {path: path.suffix.lower() in endings and _is_file(path) for path in everything}
    notes = []
    if others := [path for path in everything if not is_picture[path]]:
        notes.append(f"left out, since no pictures are read there: {_listed(others, folder)}")
    pictures = [path for path in everything if is_picture[path]]
    if not pictures:
        raise ValueError("; ".join([f"source: no pictures in {folder}", *notes]))
    return pictures, notes


def _unwrapped(found: Parts) -> Parts:
    """Without the folders that lie around all others."""
    while inner := {path: parts for path, parts in found.items() if len(parts) > 1}:
        outermost = {parts[0] for parts in inner.values()}
        if len(outermost) > 1 or any(len(parts) == 2 for parts in inner.values()):
            break
        found = {path: parts[1:] for path, parts in inner.items()}
    return found


def _inside(found: Parts) -> Parts:
    """What is inside of splits, and of further ones in there, as in train/train/CLASS."""
    found = {path: parts[1:] for path, parts in found.items()}
    if all(len(parts) > 2 and parts[0].lower() in (*TRAIN, *TEST) for parts in found.values()):
        found = {path: parts[1:] for path, parts in found.items()}
    return found


def _splits(folders: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Those for training and for testing, of folders by their names in small letters."""
    train, test = (
        next((folders[name] for name in names if name in folders), None) for names in (TRAIN, TEST)
    )
    return train, test


def _check_classes(folder: Path, classes: set[str]) -> None:
    """Raise ValueError for classes that are splits by their names, or training would see both."""
    train, test = (
        [
            name
            for name in sorted(classes)
            for word in re.findall("[A-Z]+[a-z]*|[a-z]+", name)  # of train_set, TrainSet, trainset
            if re.sub("(set|data|images?|imgs?)$", "", word.lower()) in words
        ]
        for words in UNCLEAR
    )
    if train and test and len({*train, *test}) > 1:
        raise ValueError(
            f"source: expected folders train and test, or one for each class, in {folder}, got "
            f"{train[0]} and {test[0]}; name splits train and test, and classes by other words"
        )


def _check_pairs(folder: Path, classes: set[str]) -> None:
    """Raise ValueError for images beside their masks, which are no two classes."""
    images, masks = (
        [name for name in sorted(classes) if re.sub(r"[\W_]", "", name.lower()) in words]
        for words in (IMAGES, MASKS)
    )
    if images and masks:
        raise ValueError(
            f"source: expected a folder for each class in {folder}, got {images[0]} beside "
            f"{masks[0]}, which look like pictures and what is marked in them; pass the folder "
            f"{images[0]} alone, or rename the two if they are classes"
        )


def _check_marked(found: Parts) -> None:
    """Raise ValueError for pictures beside their masks in one folder, told by their names."""
    stems = {(path.parent, path.stem) for path in found}
    for path in found:
        marked = re.fullmatch(rf"(.+)[_-](?:{'|'.join(MASKS)})(?:[_-]?\d+)?", path.stem, re.I)
        if marked and (path.parent, marked[1]) in stems:
            raise ValueError(
                f"source: expected pictures alone, got {path.name} beside {marked[1]} in "
                f"{path.parent}, which looks like what is marked in it; move such files out of the "
                "folder, or rename them if they are pictures of their own"
            )


def _check_no_splits_inside(folder: Path, found: Parts) -> None:
    """Raise ValueError for splits inside of classes, which would be mixed."""
    inside = {parts[1].lower(): "/".join(parts[:2]) for parts in found.values() if len(parts) > 2}
    train, test = _splits(inside)
    if train and test:
        raise ValueError(
            f"source: expected splits above the classes, as in train/CLASS, in {folder}, got "
            f"{train} and {test} inside of classes; move them, or rename those that are no splits"
        )


def _tree(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below a folder that are not hidden, and the folders in which there are none.

    Links are followed, unless they lead back to a folder in which they lie.
    """
    above = (*above, folder.resolve())
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or path.name.lower() in CLUTTER:
            continue
        if not path.is_dir():
            yield path
        elif path.resolve() not in above:
            yield from list(_tree(path, above)) or [path]


def _is_file(path: Path) -> bool:
    """Whether reading may go well: not a folder, nor a pipe, which would never end."""
    return path.is_file() or not path.exists()  # a broken link is to be told


def _listed(paths: Sequence[Path], folder: Path) -> str:
    """How many there are of each ending, and the first few."""
    kinds = Counter(
        "empty folder" if path.is_dir() else path.suffix.lower() or "without ending"
        for path in paths
    )
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    few = ", ".join(str(path.relative_to(folder)) for path in paths[:3])
    return f"{counts} ({few}{', ...' if len(paths) > 3 else ''})"


# Reading them -------------------------------------------------------------------------------------


def _read_all(
    paths: Sequence[Path], size: Size | None, channels: int | None
) -> tuple[np.ndarray, list[Path]]:
    """All pictures in one array, and which of them have further frames."""
    start, first = _first_readable(paths, channels)
    shape = size or first.shape[:2]
    check_memory(len(paths), shape, 3 if channels == 3 or first.ndim == 3 else 1)
    failed: dict[Path, DataError] = {}

    def read(path: Path) -> tuple[np.ndarray, bool]:
        try:
            pixels, has_more = _read(path, size, channels)
        except DataError as error:  # told together with others
            failed[path] = error
            return first, False
        if pixels.shape[:2] != shape:
            sizes = [" x ".join(map(str, each)) for each in (shape, pixels.shape[:2])]
            raise ValueError(
                "size: expected size=28, size=(height, width) or the like (--size 28), since the "
                f"pictures have several sizes: {start} has {sizes[0]} pixels, {path} {sizes[1]}"
            )
        return pixels, has_more

    with ThreadPoolExecutor() as pool:
        pictures, more = zip(*pool.map(read, paths), strict=True)
    if failed:
        raise _together(failed)
    levels = np.float32 if any(pixels.dtype == np.float32 for pixels in pictures) else np.uint8
    color = channels == 3 or any(pixels.ndim == 3 for pixels in pictures)
    result = np.empty((len(paths), *shape, *([3] if color else [])), levels)
    for row, pixels in enumerate(pictures):
        pixels = pixels if pixels.dtype == levels else pixels.astype(np.float32) / 255
        result[row] = pixels[..., None] if color and pixels.ndim == 2 else pixels
    return result, [path for path, has_more in zip(paths, more, strict=True) if has_more]


def _first_readable(paths: Sequence[Path], channels: int | None) -> tuple[Path, np.ndarray]:
    """The first picture that can be read, and its pixels."""
    failed: dict[Path, DataError] = {}
    for path in paths:
        try:
            return path, _read(path, None, channels)[0]
        except DataError as error:
            failed[path] = error
    raise _together(failed)


def _together(failed: Mapping[Path, DataError]) -> DataError:
    """One error for all pictures that cannot be read, with the reason and advice of the first."""
    first, *others = sorted(failed)
    if not others:
        return failed[first]
    few = ", ".join(map(str, others[:3]))
    return DataError(
        f"{failed[first]}; {len(others)} more cannot be read: {few}{', ...' if others[3:] else ''}"
    )


def check_memory(n: int, size: Sequence[int], channels: int) -> None:
    """Look whether images would fit into memory, before they are made.

    Raises:
        ValueError: they would not.
    """
    needed, there = n * math.prod(size) * channels * (1 + 4), _memory()  # as uint8, then as float32
    if needed > there:
        raise ValueError(
            f"size: {n} images of {size[0]} x {size[1]} pixels take {needed / 1e9:.0f} GB, and "
            f"this machine has {there / 1e9:.0f}; pass a smaller size"
        )


def _memory() -> float:
    """The bytes of this machine's memory; infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _read(path: Path, size: Size | None, channels: int | None) -> tuple[np.ndarray, bool]:
    """A picture, and whether it has further frames.

    Shape (height, width) if it is gray, else (height, width, 3); uint8, or float32 in [0, 1].
    """
    try:
        # A stream, because Pillow 13 maps files by name into memory, and there an uncompressed TIFF
        # that lies on its side in the wrong shape.
        with path.open("rb") as stream, Image.open(stream, formats=_formats()) as file:
            # The further frames of a phone's MPO are no frames to a viewer.
            has_more = getattr(file, "is_animated", False) and file.format != "MPO"
            _check_levels(file)
            if file.format == "BMP":
                _check_bits(file.mode, path.read_bytes())
            if file.format in ("JPEG", "MPO"):
                _check_end(path.read_bytes())
            if file.format == "JPEG2000":
                _check_depths(path.read_bytes())
            _correct_transparency(file)
            file.load()
            file.getexif()  # is kept, and exif_transpose need not write what cameras wrote badly
            file.info.pop("exif", None)
            picture = ImageOps.exif_transpose(file)
        picture = _fine(picture) if picture.mode[0] in "IF" else _coarse(picture)
        if channels == 1 and picture.mode == "RGB":
            picture = picture.convert("L")
    except MemoryError:  # is no fault of the picture
        raise
    except PermissionError as error:
        raise _unreadable(path, "permission denied", "allow it") from error
    except Image.DecompressionBombError as error:
        raise _unreadable(path, str(error), "make it smaller") from error
    except Exception as error:  # a reader raises whatever it likes on a damaged file
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "its format is not known, or not this kind of it" if unknown else str(error)
        advice = "replace it, for instance by a PNG of 8 or 16 bits"
        raise _unreadable(path, reason, advice) from error
    try:
        pixels = np.asarray(padded(picture, size) if size else picture)
    except ValueError as error:
        raise _unreadable(path, str(error), "pass a larger size") from error
    # Resizing may overshoot, which Pillow cuts for integers alone.
    return (pixels.clip(0, 1) if picture.mode == "F" else pixels), has_more


def _unreadable(path: Path, reason: str, advice: str) -> DataError:
    return DataError(
        f"{path} cannot be read as an image: {reason.rstrip('.')}; {advice}, or take it out of the "
        "folder"
    )


def _formats() -> list[str]:
    """Those that this build of Pillow decodes."""
    Image.init()
    return sorted(FORMATS & Image.OPEN.keys())


_16_BIT = ("PNG", "PPM")  # whose 16-bit levels some versions of Pillow give as 32-bit ones
_NO_WHITE = "Pillow does not say which of its levels is black and which is white"


def _check_levels(file: ImageFile.ImageFile) -> None:
    """Raise ValueError for levels of which Pillow does not tell how they are meant."""
    # A PFM may say what its levels are to be multiplied by.
    if (file.mode == "I" and file.format not in _16_BIT) or file.info.get("scale", 1) != 1:
        raise ValueError(_NO_WHITE)
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        _check_tags(file.mode, file.tag_v2)
    if file.format == "TGA" and ";15" in str(file.tile[0].args):
        raise ValueError("Pillow takes a bit of its 16 for transparency (save it with 24 bits)")


def _check_tags(mode: str, tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    """The same for the kinds of TIFF."""
    kind = tags.get(ExifTags.Base.PhotometricInterpretation, 1)
    bits = tags.get(ExifTags.Base.BitsPerSample, (1,))
    has_signs = 2 in tags.get(ExifTags.Base.SampleFormat, ())
    if has_signs or bits == (12,) or (kind == 0 and mode[0] in "IF"):
        raise ValueError(_NO_WHITE)
    is_packed = tags.get(ExifTags.Base.Compression, 1) != 1
    if mode == "F" and is_packed and tags.prefix == b"MM":
        raise ValueError(
            "Pillow swaps the bytes of its big-endian floating-point levels, which are compressed "
            "(save it uncompressed or in little-endian order)"
        )
    if tags.get(ExifTags.Base.PlanarConfiguration, 1) == 2 and not is_packed and max(bits) > 8:
        raise ValueError(
            "Pillow takes each byte of its planes for a level (save it compressed, or with the "
            "channels of a pixel side by side)"
        )
    if kind == 3 and max(tags.get(ExifTags.Base.ColorMap, (256,))) < 256:
        raise ValueError("Pillow takes the colors of its palette for black, as they have 8 bits")
    colors = {2: 3, 5: 4, 6: 3, 8: 3}.get(kind, 1)  # channels of RGB, CMYK, YCbCr and CIELAB
    others = tags.get(ExifTags.Base.SamplesPerPixel, 1) - colors
    if others > 0 and tags.get(ExifTags.Base.ExtraSamples) not in ((1,), (2,)):
        raise ValueError("not all of its channels are said to be colors or transparency")


def _check_bits(mode: str, content: bytes) -> None:
    """Raise ValueError for a BMP that Pillow takes for one of 1 bit: its palette has 2 colors."""
    place = 24 if content[14:18] == b"\x0c\0\0\0" else 28  # behind one of two headers
    if mode == "1" and (bits := int.from_bytes(content[place : place + 2], "little")) != 1:
        raise ValueError(f"Pillow takes its pixels of {bits} bits for pixels of 1 bit")


_SEGMENT = re.compile(rb"\xff[\x02-\xcf\xda-\xfe]")  # markers of JPEG that a length follows


def _check_end(content: bytes) -> None:
    """Raise ValueError for a JPEG without an end: Pillow makes gray of what is missing."""
    place = 0
    while (marker := _SEGMENT.search(content, place)) and marker[0] != b"\xff\xda":  # a scan
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
    if not marker or content.find(b"\xff\xd9", marker.end()) < 0:
        raise ValueError("its end-of-image marker is missing, as after an interrupted download")


def _check_depths(content: bytes) -> None:
    """Raise ValueError for a JPEG 2000 of levels that Pillow does not scale."""
    codestream = content[content.find(b"\xff\x4f\xff\x51") :]  # ISO/IEC 15444-1, A.5.1
    components = int.from_bytes(codestream[40:42])
    depths = codestream[42 : 42 + 3 * components : 3]  # less one; signed levels have another bit
    if set(depths) != {8 - 1} and list(depths) != [16 - 1]:
        raise ValueError("of JPEG 2000 Pillow scales unsigned levels of 8 bits, or gray ones of 16")


_STEPS = {"L;2": 85, "L;4": 17}  # between the levels of 2 and 4 bits once they are 8


def _correct_transparency(file: ImageFile.ImageFile) -> None:
    """Give the transparent level of a PNG as many bits as Pillow gives its pixels."""
    if file.format == "PNG" and "transparency" in file.info:
        level, depth = file.info["transparency"], file.tile[0].args
        if depth in _STEPS:
            file.info["transparency"] = level * _STEPS[depth]
        elif depth == "RGB;16B":
            file.info["transparency"] = tuple(each >> 8 for each in level)


def _fine(picture: Image.Image) -> Image.Image:
    """A gray picture of more than 8 bits, in mode F with levels in [0, 1]; in L if 8 suffice."""
    levels = np.asarray(picture)
    if picture.mode != "F":
        clear = levels == picture.info.get("transparency")
        _check_visible(not np.all(clear))
        levels = np.where(clear, 65535, levels).astype(np.float32) / 65535
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= 1):
        found = "NaN" if np.isnan(low) else f"{low:.4g} to {high:.4g}"
        raise ValueError(f"expected levels between 0 and 1, got {found}")
    # Or the same picture in 8 bits would be another one after resizing, which rounds.
    of_255 = np.rint(levels * 255)
    is_coarse = np.array_equal(of_255 / 255, levels)
    return Image.fromarray(of_255.astype(np.uint8) if is_coarse else levels)


def _coarse(picture: Image.Image) -> Image.Image:
    """A picture of 8 bits or fewer in mode L if it is gray in all its pixels, else RGB."""
    if picture.mode == "La":  # Pillow knows no way from here to RGBA
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        _check_visible(picture.getchannel("A").getextrema() != (0, 0))
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    if picture.mode == "RGB":
        pixels = np.asarray(picture)
        if (pixels == pixels[..., :1]).all():
            return picture.getchannel(0)
    return picture


def _check_visible(is_visible: bool) -> None:
    """Raise ValueError for a picture of which only the white paper shows."""
    if not is_visible:
        raise ValueError("it is transparent everywhere (remove its alpha channel)")
