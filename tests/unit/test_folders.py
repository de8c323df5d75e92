"""Pictures of a folder become the numbers that they show, and no test image was trained on."""

import io
import os
import shutil
import struct
import unicodedata
import warnings
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_book import folders
from vae_book.data import load_images
from vae_book.images import DataError

load = partial(load_images, device="cpu")
RAMP = np.linspace(0, 65535, 28 * 28).round().astype(np.uint16).reshape(28, 28)  # 16-bit levels
GRAY = (RAMP >> 8).astype(np.uint8)
COLOR = np.stack([GRAY, GRAY.T, 255 - GRAY], axis=-1)


def save(path, pixels, *arguments, **options):
    """A picture of an array or of Pillow's, with the folders around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(path, *arguments, **options)
    return path


def fill(folder, n=20, first=0):
    """Pictures of one gray level each, which tells them apart."""
    for level in range(first, first + n):
        save(folder / f"{level:03}.png", np.full((4, 4), level, np.uint8))


def only(folder, **options):
    """The pixels of a folder with one picture, (height, width) or (height, width, 3)."""
    (image,) = load("train", str(folder), **options).images.movedim(1, -1).squeeze(-1)
    return image.numpy()


def levels(found):
    """The gray levels of one-colored images, of 255."""
    return (found.images[:, 0, 0, 0] * 255).round().int().tolist()


def both(folder, **options):
    return [load(split, str(folder), **options) for split in ("train", "test")]


# Right to the pixel -------------------------------------------------------------------------------


def tiff(levels, order=">", pack=bytes, **more):
    """A gray TIFF, written by hand; further tags by their numbers, as _262=0."""
    data = pack(levels.tobytes())
    height, width = levels.shape
    bits = 8 * levels.itemsize
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data)} | {int(name[1:]): value for name, value in more.items()}
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags)]
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    start = {">": b"MM\0*", "<": b"II*\0"}[order] + struct.pack(f"{order}I", 8 + len(data))
    return start + data + directory


def png(kind, depth, rows, *chunks, width=None):
    """A PNG written by hand, for what Pillow reads but does not write."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width or rows.shape[1], rows.shape[0], depth, kind, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", content), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def pack_bits(content):
    """Packed as PackBits packs what has no runs."""
    parts = [content[start : start + 128] for start in range(0, len(content), 128)]
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


DEFLATE, PACK_BITS = {"_259": 8, "pack": zlib.compress}, {"_259": 32773, "pack": pack_bits}
FLOAT = {"_339": 3}


def written(content):
    def write(path):
        path.parent.mkdir()
        path.write_bytes(content)

    return write


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("a.png", partial(save, pixels=GRAY), GRAY / 255),
        ("a.PNG", partial(save, pixels=GRAY), GRAY / 255),
        ("a.bmp", partial(save, pixels=GRAY), GRAY / 255),
        ("a.gif", partial(save, pixels=GRAY), GRAY / 255),
        ("a.webp", partial(save, pixels=GRAY, lossless=True), GRAY / 255),
        ("a.tif", partial(save, pixels=GRAY), GRAY / 255),
        ("a.tga", partial(save, pixels=GRAY), GRAY / 255),
        ("a.jp2", partial(save, pixels=GRAY, irreversible=False), GRAY / 255),
        ("a.png", partial(save, pixels=COLOR), COLOR / 255),
        ("a.webp", partial(save, pixels=COLOR, lossless=True), COLOR / 255),
        ("gray in RGB.png", partial(save, pixels=np.stack([GRAY] * 3, -1)), GRAY / 255),
        ("1 bit.png", partial(save, pixels=GRAY > 99), GRAY > 99),
        ("1 bit.pbm", partial(save, pixels=GRAY > 99), GRAY > 99),
        ("1 bit.tif", partial(save, pixels=GRAY > 99), GRAY > 99),
        ("4 bits.pgm", written(b"P5 28 28 15\n" + (GRAY >> 4).tobytes()), (GRAY >> 4) / 15),
        ("16 bits.png", partial(save, pixels=RAMP), RAMP / 65535),
        ("16 bits.tif", partial(save, pixels=RAMP), RAMP / 65535),
        ("16 bits.TIFF", written(tiff(RAMP.astype(">u2"))), RAMP / 65535),
        (
            "16 bits.pgm",
            written(b"P5 28 28 65535\n" + RAMP.astype(">u2").tobytes()),
            RAMP / 65535,
        ),
        (
            "12 bits.pgm",
            written(b"P5 28 28 4095\n" + (RAMP >> 4).astype(">u2").tobytes()),
            ((RAMP >> 4) / 4095 * 65535).round() / 65535,
        ),
        (
            "one level transparent.png",
            written(png(0, 16, RAMP.astype(">u2"), (b"tRNS", int(RAMP[3, 3]).to_bytes(2)))),
            np.where(RAMP[3, 3] == RAMP, 1, RAMP / 65535),
        ),
        (
            "one of four levels transparent.png",
            written(
                png(0, 2, np.array([[0b00011011]], np.uint8), (b"tRNS", bytes([0, 2])), width=4)
            ),
            np.array([[0, 85, 255, 255]]) / 255,
        ),
        (
            "one of sixteen levels transparent.png",
            written(png(0, 4, np.array([[0x3C]], np.uint8), (b"tRNS", bytes([0, 12])), width=2)),
            np.array([[51, 255]]) / 255,
        ),
        (
            "one color of 16 bits transparent.png",
            written(
                png(
                    2,
                    16,
                    np.array([[32768, 256, 1, 65535, 257, 0]], ">u2"),
                    (b"tRNS", struct.pack(">3H", 32768, 256, 1)),
                    width=2,
                )
            ),
            np.array([[[255, 255, 255], [255, 1, 0]]]) / 255,
        ),
        (
            "floating-point.tif",
            partial(save, pixels=(RAMP / 65535).astype(np.float32)),
            RAMP / 65535,
        ),
        ("big-endian.tif", written(tiff((RAMP / 65535).astype(">f4"), **FLOAT)), RAMP / 65535),
        (
            "packed.tif",
            written(tiff((RAMP / 65535).astype("<f4"), "<", **FLOAT, **DEFLATE)),
            RAMP / 65535,
        ),
        ("16 bits.jp2", partial(save, pixels=RAMP, irreversible=False), RAMP / 65535),
        ("color.j2k", partial(save, pixels=COLOR, irreversible=False), COLOR / 255),
        ("palette.png", partial(save, pixels=Image.fromarray(COLOR // 64 * 64).quantize(256)), 0),
    ],
)
def test_a_picture_has_the_levels_that_were_written(name, write, expected, tmp_path):
    write(tmp_path / "c" / name)
    if isinstance(expected, int):
        expected = COLOR // 64 * 64 / 255
    found = only(tmp_path)
    assert np.array_equal(found, np.float32(expected))


@pytest.mark.parametrize(
    ("name", "options", "off"),
    [
        ("a.jpg", {"quality": 100}, 2),
        ("a.jfif", {"format": "JPEG", "quality": 100}, 2),
        ("a.JPE", {"format": "JPEG", "quality": 100}, 2),
        ("a.avif", {"quality": 100, "subsampling": "4:4:4"}, 4),
    ],
)
def test_lossy_formats_give_nearly_the_levels_that_were_written(name, options, off, tmp_path):
    save(tmp_path / "c" / name, GRAY, **options)
    assert abs(only(tmp_path, channels=1) - GRAY / 255).max() <= off / 255


def test_sixteen_bits_of_color_lose_their_lower_half(tmp_path):
    deep = np.stack([RAMP, RAMP.T, 65535 - RAMP], -1)
    written(png(2, 16, deep.astype(">u2")))(tmp_path / "c" / "a.png")
    assert np.array_equal(only(tmp_path), np.float32((deep >> 8) / 255))


def infrared(*extra):
    """A TIFF whose pixels have a fourth channel, and what it says of that channel."""
    tags = {f"_{tag}": value for tag, value in zip([338], extra, strict=False)}
    pixels = np.dstack([COLOR, GRAY]).reshape(28, 112)
    return tiff(pixels, "<", _256=28, _262=2, _277=4, **tags)


@pytest.mark.parametrize("extra", [(), (0,)])
def test_a_channel_that_is_neither_color_nor_transparency_is_refused(extra, tmp_path):
    written(infrared(*extra))(tmp_path / "c" / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif .*not all of its channels are said to be colors"):
        load("train", str(tmp_path))


def test_a_fourth_channel_of_transparency_is_read(tmp_path):
    written(infrared(2))(tmp_path / "c" / "a.tif")
    alpha = GRAY[..., None] / 255
    assert abs(only(tmp_path) - (alpha * (COLOR / 255) + 1 - alpha)).max() < 1 / 255


def test_formats_in_which_no_pictures_come_are_left_out_by_ending_and_refused_by_content(tmp_path):
    fill(tmp_path / "c", 2)
    save(tmp_path / "c" / "a.xbm", GRAY > 99)
    told, found = warning_of(lambda: load("train", str(tmp_path)))
    assert "left out, since no pictures are read there: 1 .xbm (" in told
    assert len(found) == 1
    (tmp_path / "c" / "a.xbm").rename(tmp_path / "c" / "a.png")
    with pytest.raises(DataError, match=r"a\.png .*format is not known.* by a PNG"):
        load("train", str(tmp_path))


@pytest.mark.parametrize(("mode", "ending"), [("CMYK", "jpg"), ("CMYK", "tif")])
def test_cmyk_becomes_the_light_that_its_inks_leave(mode, ending, tmp_path):
    inks = np.array([10, 60, 200, 40])
    save(tmp_path / "c" / f"a.{ending}", Image.new(mode, (8, 8), tuple(inks.tolist())))
    expected = (1 - inks[:3] / 255) * (1 - inks[3] / 255)
    assert abs(only(tmp_path) - expected).max() < 2 / 255


ALPHA = np.linspace(0, 255, 28).round().astype(np.uint8)[:, None].repeat(28, 1)


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
@pytest.mark.parametrize("pixels", [GRAY, COLOR])
def test_what_is_transparent_shows_white_paper(pixels, ending, tmp_path):
    save(tmp_path / "c" / f"a.{ending}", np.dstack([pixels, ALPHA]), lossless=True, exact=True)
    alpha = ALPHA / 255 if pixels.ndim == 2 else ALPHA[..., None] / 255
    assert abs(only(tmp_path) - (alpha * (pixels / 255) + 1 - alpha)).max() < 1 / 255


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_transparent_color_of_a_palette_is_white(ending, tmp_path):
    picture = Image.fromarray((GRAY > 99).astype(np.uint8) + (GRAY > 199))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    save(tmp_path / "c" / f"a.{ending}", picture, transparency=1)
    expected = np.where(GRAY > 199, 2, np.where(GRAY > 99, 1, 0))
    assert np.array_equal(
        only(tmp_path), np.eye(3)[expected] + (expected == 1)[..., None] * [1, 0, 1]
    )


def test_levels_that_are_stored_times_their_opacity_are_not_multiplied_again(tmp_path):
    alpha = ALPHA / 255
    stored = np.dstack([(GRAY * alpha).round().astype(np.uint8), ALPHA])
    content = tiff(stored.reshape(28, 56), _256=28, _277=2, _338=1)
    written(content)(tmp_path / "c" / "a.tif")
    assert abs(only(tmp_path) - (stored[..., 0] / 255 + 1 - alpha)).max() < 2 / 255


def tga(pixels):
    """A TGA of 32 bits, from its top row on, whose header does not say what the last 8 are."""
    return struct.pack("<2xB9x2H2B", 2, *pixels.shape[1::-1], 32, 0x20) + pixels.tobytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tga", tga(np.dstack([COLOR, GRAY * 0]))),
        ("a.png", png(6, 8, np.dstack([COLOR, GRAY * 0]).reshape(28, 112), width=28)),
        ("a.png", png(0, 8, GRAY * 0 + 7, (b"tRNS", bytes([0, 7])))),
        ("a.png", png(0, 16, np.full((28, 28), 777, ">u2"), (b"tRNS", bytes([3, 9])))),
    ],
)
def test_a_picture_that_is_transparent_everywhere_is_refused(name, content, tmp_path):
    written(content)(tmp_path / "c" / name)
    with pytest.raises(DataError, match=rf"{name} .*transparent everywhere .*alpha channel"):
        load("train", str(tmp_path))


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).T),
        (8, np.rot90),
    ],
)
def test_pictures_stand_upright_as_their_camera_says(kind, orientation, upright, tmp_path):
    stored = np.kron(np.array([[255, 0, 0], [128, 0, 64]], np.uint8), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "c" / f"a.{kind}", stored, exif=exif, quality=100, lossless=True)
    expected = upright(stored) / 255
    found = only(tmp_path, channels=1)
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= 2 / 255


def test_a_folder_is_gray_if_all_its_pictures_are(tmp_path):
    save(tmp_path / "c" / "a.png", GRAY)
    save(tmp_path / "c" / "b.png", RAMP.T)
    assert load("train", str(tmp_path)).shape == (1, 28, 28)
    save(tmp_path / "c" / "d.png", COLOR)
    found = {}
    for split in both(tmp_path):
        assert split.shape == (3, 28, 28)
        found |= {tuple(image[:, 0, 1].tolist()): image for image in split.images}
    expected = [np.stack([GRAY] * 3, 2) / 255, np.stack([RAMP.T] * 3, 2) / 65535, COLOR / 255]
    for image in expected:
        image = np.float32(image.transpose(2, 0, 1))
        assert np.array_equal(found[tuple(image[:, 0, 1].tolist())], image)


def test_channels_are_converted_on_request(tmp_path):
    save(tmp_path / "c" / "a.png", COLOR)
    luma = COLOR @ [0.299, 0.587, 0.114] / 255  # ITU-R 601
    assert abs(only(tmp_path, channels=1) - luma).max() < 1 / 255
    save(tmp_path / "c" / "a.png", RAMP)
    assert np.array_equal(
        only(tmp_path, channels=3), np.float32([RAMP / 65535] * 3).transpose(1, 2, 0)
    )


def test_pictures_keep_their_size_unless_another_is_asked_for(tmp_path):
    save(tmp_path / "c" / "a.png", COLOR[:20])
    assert only(tmp_path).shape == (20, 28, 3)
    save(tmp_path / "c" / "b.png", COLOR)
    with pytest.raises(ValueError, match=r"^size: .*a\.png has 20 x 28 pixels, .*b\.png 28 x 28"):
        load("train", str(tmp_path))
    assert load("train", str(tmp_path), size=(10, 12)).shape == (3, 10, 12)


@pytest.mark.parametrize("deep", [False, True])
def test_resized_pictures_keep_their_aspect_on_a_black_ground(deep, tmp_path):
    picture = np.zeros((70, 140), np.uint16 if deep else np.uint8)
    picture[:, 70:] = 65535 if deep else 255
    save(tmp_path / "c" / "a.png", picture)
    image = only(tmp_path, size=28)
    assert image.shape == (28, 28)
    assert not image[:7].any()  # 140 x 70 becomes 28 x 14
    assert not image[21:].any()
    assert (image[7:21, :12] == 0).all()
    assert (image[7:21, 16:] == 1).all()
    assert image.min() == 0
    assert image.max() == 1
    image = only(tmp_path, size=(14, 56))
    assert (image[:, 28 + 2 : 42] == 1).all()
    assert not image[:, 42:].any()


def test_a_picture_that_would_vanish_is_refused(tmp_path):
    save(tmp_path / "c" / "a.png", np.full((1, 57), 255, np.uint8))
    with pytest.raises(DataError, match=r"a\.png .*: 1 x 57 pixels leave nothing within 28 x 28"):
        load("train", str(tmp_path), size=28)
    save(tmp_path / "c" / "a.png", np.full((1, 55), 255, np.uint8))
    assert only(tmp_path, size=28).sum(0).tolist() == [1] * 28


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (np.full((4, 4), 1.01), "1.01 to 1.01"),
        (np.full((4, 4), -0.1), "-0.1 to -0.1"),
        (np.array([[0.5, np.nan]]), "NaN;"),
        (RAMP / 255, "0 to 257"),
    ],
)
def test_floating_point_levels_outside_of_0_and_1_are_refused(pixels, found, tmp_path):
    save(tmp_path / "c" / "a.tif", pixels.astype(np.float32))
    with pytest.raises(DataError, match=rf"a\.tif .* expected levels between 0 and 1, got {found}"):
        load("train", str(tmp_path))


def planes(levels):
    """A raw TIFF of 16 bits whose colors are in planes, one behind the other."""
    data, (n, height, width) = levels.astype("<u2").tobytes(), levels.shape
    places = [8 + 2 * height * width * plane for plane in range(n)]
    after = 8 + len(data)
    arrays = struct.pack(f"<{n}H2x{n}I{n}I", *[16] * n, *places, *[2 * height * width] * n)
    tags = {256: width, 257: height, 259: 1, 262: 2, 277: n, 278: height, 284: 2}
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()}
    entries[258] = struct.pack("<HHII", 258, 3, n, after)
    entries[273] = struct.pack("<HHII", 273, 4, n, after + 2 * n + 2)
    entries[279] = struct.pack("<HHII", 279, 4, n, after + 6 * n + 2)
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries))
    start = b"II*\0" + struct.pack("<I", after + len(arrays))
    return start + data + arrays + directory + bytes(4)


def masks(bits, palette):
    """A BMP of 8 x 8 pixels, 0 and 1 by turns, with a palette of two colors."""
    row = np.packbits(np.tile([0, 1], 4)) if bits == 1 else np.tile([0, 1], 4).astype(np.uint8)
    pixels = 8 * (row.tobytes() + bytes(-len(row) % 4))
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, bits, 0, len(pixels), 0, 0, 2, 2)
    return struct.pack("<2sIHHI", b"BM", 62 + len(pixels), 0, 0, 62) + header + palette + pixels


BLACK_WHITE = bytes(4) + bytes([255, 255, 255, 0])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tif", planes(np.stack(3 * [RAMP])), "each byte of its planes for a level"),
        ("a.bmp", masks(8, BLACK_WHITE), "its pixels of 8 bits for pixels of 1 bit"),
        (
            "a.tga",
            struct.pack("<2xB9x2H2B2H", 2, 2, 1, 16, 0x20, 0x1234, 0x9234),
            "a bit of its 16 for transparency",
        ),
    ],
)
def test_pictures_whose_bits_pillow_takes_for_others_are_refused(name, content, said, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} cannot be read as an image: .*{said}"):
        load("train", str(tmp_path))


def test_a_mask_of_one_bit_is_read(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.bmp").write_bytes(masks(1, BLACK_WHITE))
    assert only(tmp_path).tolist() == 8 * [4 * [0, 1]]


@pytest.mark.parametrize("packed", [DEFLATE, PACK_BITS])
def test_packed_floats_whose_bytes_pillow_swaps_are_refused(packed, tmp_path):
    mask = (GRAY > 99).astype(">f4")
    written(tiff(mask, **FLOAT, **packed))(tmp_path / "c" / "mask.tif")
    with pytest.raises(DataError, match=r"mask\.tif .*save it uncompressed or in little-endian"):
        load("train", str(tmp_path))


@pytest.mark.parametrize(
    ("ending", "pixels", "depths"),
    [
        ("jp2", GRAY, [0]),  # one less than the bits, and 128 more if the levels have signs
        ("j2k", GRAY, [3]),
        ("j2k", RAMP, [9]),
        ("jp2", RAMP, [11]),
        ("j2k", RAMP, [14]),
        ("j2k", GRAY, [128 + 7]),
        ("jp2", RAMP, [128 + 15]),
        ("j2k", COLOR, [15, 15, 15]),
        ("jp2", COLOR, [7, 7, 11]),
    ],
)
def test_jpeg_2000_of_levels_that_pillow_does_not_scale_is_refused(
    ending, pixels, depths, tmp_path
):
    path = save(tmp_path / "c" / f"a.{ending}", pixels, irreversible=False)
    content = bytearray(path.read_bytes())
    # By ISO/IEC 15444-1, A.5.1: SIZ, its length, 34 bytes, then the components, three bytes each.
    first = content.index(b"\xff\x51") + 2 + 2 + 34 + 2
    assert int.from_bytes(content[first - 2 : first]) == len(depths)
    content[first : first + 3 * len(depths) : 3] = bytes(depths)
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.{ending} .*unsigned.* 8 bits.* by a PNG"):
        load("train", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("white is zero.tif", tiff(RAMP, "<", _262=0)),
        ("white is zero.tif", tiff((RAMP / 65535).astype(">f4"), _262=0, _339=3)),
        ("12 bits.tif", tiff(np.arange(12, dtype=np.uint8)[None], "<", _256=8, _258=12)),
        ("signed.tif", tiff(GRAY, _339=2)),
        ("32 bits.tif", tiff(RAMP.astype("<u4"), "<")),
        ("signed.tif", tiff(RAMP.astype(">i2"), _339=2)),
        (
            "scaled.pfm",
            b"Pf 28 28 -2.0\n" + (RAMP / 65535).astype("<f4").tobytes(),
        ),
    ],
)
def test_levels_that_are_meant_otherwise_than_pillow_gives_them_are_refused(
    name, content, tmp_path
):
    written(content)(tmp_path / "c" / name)
    with pytest.raises(DataError, match=rf"{name} .*which .* is black .* by a PNG of 8 or 16 bits"):
        load("train", str(tmp_path))


def test_pictures_of_8_bits_whose_white_is_zero_are_read(tmp_path):
    written(tiff(GRAY, _262=0))(tmp_path / "c" / "a.tif")
    assert np.allclose(only(tmp_path), 1 - GRAY / 255)


@pytest.mark.parametrize("value", [b"72\0\0", struct.pack("<f", np.nan)])
def test_a_picture_stands_upright_though_its_camera_wrote_nonsense(value, tmp_path):
    kind = 2 if value.startswith(b"72") else 11  # text or a float, as resolution
    tags = [(0x112, 3, struct.pack("<HH", 6, 0)), (0x11A, kind, value)]
    entries = [
        struct.pack("<HHI", tag, kind, len(v) if kind == 2 else 1) + v for tag, kind, v in tags
    ]
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(entries) + bytes(4)
    save(tmp_path / "c" / "a.png", GRAY, exif=exif)
    assert np.array_equal(only(tmp_path) * 255, np.rot90(GRAY, -1))


def test_what_pillow_warns_of_is_read_without_a_word(tmp_path, monkeypatch):
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 5)  # five entries, of which none follows
    save(tmp_path / "c" / "a.png", GRAY, exif=exif)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GRAY.size - 1)  # above it Pillow fears a bomb
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = only(tmp_path)
    assert not told
    assert np.array_equal(found, np.float32(GRAY / 255))


# Which pictures -----------------------------------------------------------------------------------


def test_classes_and_pictures_are_in_the_order_of_their_names(tmp_path):
    for place, name in enumerate(["Zebra", "ant 10", "ant 9", "änt", "蚁"]):
        fill(tmp_path / name, 10, 10 * place)
    train, test = both(tmp_path)
    assert train.classes == test.classes == ("Zebra", "ant 10", "ant 9", "änt", "蚁")
    for found in (train, test):
        assert found.labels.tolist() == [level // 10 for level in levels(found)]
        assert levels(found) == sorted(levels(found))
    assert (train.split, test.split, train.source) == ("train", "test", str(tmp_path))


def test_a_tenth_of_each_class_is_held_out_always_the_same(tmp_path):
    fill(tmp_path / "cat", 100)
    fill(tmp_path / "dog", 50, 100)
    train, test = both(tmp_path)
    assert train.labels.bincount().tolist() == [90, 45]
    assert test.labels.bincount().tolist() == [10, 5]
    assert sorted(levels(train) + levels(test)) == list(range(150))
    again = load("test", str(tmp_path), size=6, channels=3)
    assert levels(again) == levels(test)
    # Ten of a hundred uniform draws: their mean is 49.5 with a standard error of 8.7.
    assert abs(np.mean(levels(test)[:10]) - 49.5) < 3 * 8.7


@pytest.mark.parametrize(
    ("classes", "each", "train", "test"),
    [(1, 2, 1, 1), (2, 1, 1, 1), (1, 5, 4, 1), (2, 3, 5, 1), (20, 1, 18, 2), (10, 4, 36, 4)],
)
def test_few_pictures_are_shared_out_too(classes, each, train, test, tmp_path):
    for label in range(classes):
        fill(tmp_path / f"{label:02}", each, label * each)
    assert list(map(len, both(tmp_path))) == [train, test]


def test_one_picture_is_for_training(tmp_path):
    fill(tmp_path / "c", 1)
    assert len(load("train", str(tmp_path))) == 1
    with pytest.raises(
        ValueError, match=r"^split: .* is left for 'test'.* holds 1 different picture$"
    ):
        load("test", str(tmp_path))


def test_pictures_without_class_folders_are_one_class(tmp_path):
    fill(tmp_path / "faces of 2024")
    train, test = both(tmp_path / "faces of 2024")
    assert train.labels.tolist() == [0] * 18
    assert len(test) == 2
    assert train.classes == ("faces of 2024",)


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "val")])
def test_splits_within_classes_are_refused(tmp_path, names):
    for label in ("cat", "dog"):
        for number, name in enumerate(names):
            fill(tmp_path / label / name, 5, 50 * (label == "dog") + 10 * number)
    said = rf"^source: .*got (cat|dog)/{names[0]} and (cat|dog)/{names[1]} inside"
    with pytest.raises(ValueError, match=said):
        load("train", str(tmp_path))


def test_folders_within_a_class_belong_to_it(tmp_path):
    fill(tmp_path / "cat" / "2023" / "may", 10)
    fill(tmp_path / "cat" / "2024", 10, 10)
    fill(tmp_path / "dog", 20, 20)
    told, train = warning_of(lambda: load("train", str(tmp_path)))
    assert told.endswith("folders inside a class belong to it: cat/2023, cat/2024")
    assert train.classes == ("cat", "dog")
    assert train.labels.bincount().tolist() == [18, 18]


def test_a_folder_around_all_others_is_looked_through(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / "download" / "pets" / name, 20, 20 * (name == "dog"))
    assert load("train", str(tmp_path)).classes == ("cat", "dog")
    fill(tmp_path, 1, 100)  # a preview beside it does not make it a class
    told, train = warning_of(lambda: load("train", str(tmp_path)))
    assert told.endswith("they lie beside the class folders: 1 .png (100.png)")
    assert train.classes == ("cat", "dog")


def warning_of(call, times=1):
    """The only warning of a call, however often it comes, and what the call gave."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = call()
    (text,) = {str(warning.message) for warning in told}
    assert len(told) == times
    return text, found


@pytest.mark.parametrize("around", [".", "download"])
@pytest.mark.parametrize("train", ["train", "Training"])
def test_a_folder_that_is_split_already_stays_so(train, around, tmp_path):
    for place, name in enumerate(["cat", "dog"]):
        fill(tmp_path / around / train / name, 20, 100 * place)
        fill(tmp_path / around / "test" / name, 10, 100 * place + 50)
    found, test = both(tmp_path)
    assert found.classes == test.classes == ("cat", "dog")
    assert levels(found) == [*range(20), *range(100, 120)]
    assert levels(test) == [*range(50, 60), *range(150, 160)]
    assert test.labels.tolist() == [0] * 10 + [1] * 10


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_validation_pictures_stand_in_for_a_missing_test(name, tmp_path):
    fill(tmp_path / "train" / "cat", 5)
    fill(tmp_path / name / "cat", 3, 50)
    told, test = warning_of(lambda: load("test", str(tmp_path)))
    assert f"{name} was taken for the missing test" in told
    assert levels(test) == [50, 51, 52]
    fill(tmp_path / "test" / "cat", 2, 70)
    told, test = warning_of(lambda: load("test", str(tmp_path)))
    reason = "pictures are taken from the class folders of train and test alone"
    assert f"left out, since {reason}: 3 .png ({name}" in told
    assert levels(test) == [70, 71]


def test_a_split_folder_needs_no_classes(tmp_path):
    fill(tmp_path / "train", 5)
    fill(tmp_path / "test", 3, 50)
    assert [levels(found) for found in both(tmp_path)] == [[0, 1, 2, 3, 4], [50, 51, 52]]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "eval"),
        ("Train", "DEV"),
        ("training", "holdout"),
        ("train_set", "test_set"),
        ("TrainSet", "TestSet"),
        ("traindata", "testdata"),
        ("train_images", "testImages"),
        ("training-data", "validation data"),
        ("train2017", "val2017"),
        ("trainval", "test"),
        ("x_train", "x_test"),
    ],
)
@pytest.mark.parametrize("around", [".", "download"])
def test_classes_that_look_like_splits_are_refused(train, test, around, tmp_path):
    for place, name in enumerate([train, test]):
        fill(tmp_path / around / name / "cat", 5, 10 * place)
        fill(tmp_path / around / name / "dog", 5, 100 + 10 * place)
    for split in ("train", "test"):
        with pytest.raises(
            ValueError, match=rf"^source: .* {train} and {test}; name splits train and test"
        ):
            load(split, str(tmp_path))


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images", "masks"), ("Images", "Labels"), ("JPEGImages", "SegmentationClass"), ("img", "gt")],
)
@pytest.mark.parametrize("around", [["."], ["train", "test"]])
def test_images_beside_their_masks_are_no_two_classes(images, masks, around, tmp_path):
    for place, split in enumerate(around):
        fill(tmp_path / split / images, 5, 10 * place)
        fill(tmp_path / split / masks, 5, 100 + 10 * place)
    with pytest.raises(
        ValueError, match=rf"^source: .* {images} beside {masks}, .* pass the folder {images} alone"
    ):
        load("train", str(tmp_path))
    if around == ["."]:
        assert load("train", str(tmp_path / images)).classes == (images,)


def test_images_beside_their_masks_inside_of_classes_are_refused(tmp_path):
    for place, name in enumerate(["one", "two"]):
        fill(tmp_path / name / "images", 5, 10 * place)
        fill(tmp_path / name / "masks", 5, 100 + 10 * place)
    with pytest.raises(ValueError, match=r"^source: .* images beside masks"):
        load("train", str(tmp_path))


@pytest.mark.parametrize("mark", ["_mask", "-Segmentation", "_gt_1", "_mask1"])
def test_a_picture_beside_its_mask_is_refused(mark, tmp_path):
    fill(tmp_path / "cat", 10)
    save(tmp_path / "cat" / f"003{mark}.png", np.full((4, 4), 200, np.uint8))
    with pytest.raises(ValueError, match=rf"^source: .* 003{mark}\.png beside 003 in .*cat, "):
        load("train", str(tmp_path))
    (tmp_path / "cat" / "003.png").unlink()
    assert len(load("train", str(tmp_path))) == 9


def test_two_folders_for_training_are_told(tmp_path):
    for place, name in enumerate(["train", "training", "test"]):
        fill(tmp_path / name / "cat", 5, 20 * place)
    told, _ = warning_of(lambda: load("train", str(tmp_path)))
    assert "class folders of train and test alone: 5 .png (training/cat/020.png" in told


def test_labels_may_be_a_class_of_its_own(tmp_path):
    fill(tmp_path / "labels", 10)
    fill(tmp_path / "boxes", 10, 20)
    assert load("train", str(tmp_path)).classes == ("boxes", "labels")


@pytest.mark.parametrize(
    "names", [("bird", "test"), ("train", "tram"), ("restrain", "contest"), ("train_test", "other")]
)
def test_a_class_may_have_the_name_of_one_split(names, tmp_path):
    for place, name in enumerate(names):
        fill(tmp_path / name, 10, 10 * place)
    assert load("train", str(tmp_path)).classes == tuple(sorted(names))


def test_a_train_is_a_class_among_vehicles(tmp_path):
    for place, name in enumerate(["bus", "train"]):
        fill(tmp_path / name, 10, 10 * place)
    assert load("train", str(tmp_path)).classes == ("bus", "train")


def test_a_test_folder_without_the_classes_of_training_is_named(tmp_path):
    fill(tmp_path / "train" / "cat", 5)
    fill(tmp_path / "test", 4, 50)
    with pytest.raises(
        ValueError, match=r"^source: .* in both train and test of .* in train alone; .* move them"
    ):
        load("train", str(tmp_path))
    (tmp_path / "test").rename(tmp_path / "beside")
    fill(tmp_path / "val" / "cat", 3, 70)
    told, found = warning_of(lambda: load("train", str(tmp_path)))
    assert "val was taken for the missing test" in told
    assert len(found) == 5


def test_splits_that_were_unpacked_into_folders_of_their_names_are_found(tmp_path):
    for place, split in enumerate(("train", "test")):
        for number, name in enumerate(("ant", "bee")):
            fill(tmp_path / split / split / name, 3, 50 * place + 10 * number)
    found = both(tmp_path)
    assert [data.classes for data in found] == 2 * [("ant", "bee")]
    assert [levels(data) for data in found] == [[0, 1, 2, 10, 11, 12], [50, 51, 52, 60, 61, 62]]


def test_levels_that_use_few_of_their_bits_are_told(tmp_path):
    save(tmp_path / "c" / "a.png", RAMP >> 4)  # 12 bits in 16
    save(tmp_path / "c" / "b.png", RAMP.T >> 4)
    told, _ = warning_of(lambda: load("train", str(tmp_path)))
    assert "the highest level is 0.062, where white is 1" in told
    save(tmp_path / "c" / "b.png", RAMP.T)
    with warnings.catch_warnings(action="error"):
        load("train", str(tmp_path))


def test_a_palette_of_8_bits_in_a_tiff_is_refused(tmp_path):
    picture = Image.fromarray(COLOR).quantize(16)
    save(tmp_path / "c" / "a.tif", picture)
    content = (tmp_path / "c" / "a.tif").read_bytes()
    only(tmp_path)
    with Image.open(tmp_path / "c" / "a.tif") as file:
        colors = file.tag_v2[320]
    stored = struct.pack(f"<{len(colors)}H", *colors)
    assert content.count(stored) == 1
    dim = struct.pack(f"<{len(colors)}H", *[each >> 8 for each in colors])
    (tmp_path / "c" / "a.tif").write_bytes(content.replace(stored, dim))
    with pytest.raises(DataError, match=r"a\.tif .*palette for black"):
        load("train", str(tmp_path))


def test_names_need_not_be_unicode(tmp_path):
    try:
        fill(tmp_path / os.fsdecode(b"caf\xe9"), 10)
    except OSError:
        pytest.skip("this file system takes Unicode alone")
    assert [len(found) for found in both(tmp_path)] == [9, 1]


def test_classes_that_training_lacks_are_told(tmp_path):
    fill(tmp_path / "train" / "cat", 5)
    fill(tmp_path / "test" / "Cat", 3, 50)
    told, test = warning_of(lambda: load("test", str(tmp_path)))
    assert "classes without training pictures: Cat" in told
    assert test.classes == ("Cat", "cat")


def test_one_name_in_two_spellings_of_unicode_is_one_class(tmp_path):
    for form, split, first in (("NFC", "train", 0), ("NFD", "test", 50)):
        fill(tmp_path / split / unicodedata.normalize(form, "café"), 3, first)
    assert load("test", str(tmp_path)).classes == ("café",)


# What is left out ---------------------------------------------------------------------------------


def test_hidden_files_and_what_systems_leave_behind_are_passed_over(tmp_path):
    fill(tmp_path / "cat")
    fill(tmp_path / "dog", 20, 20)
    for place in (tmp_path, tmp_path / "cat"):
        for name in (".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"):
            shutil.copytree(tmp_path / "dog", place / name)
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png", ".hidden.png"):
            (place / name).write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / ".empty").mkdir()
    train, test = both(tmp_path)  # without a warning, which would be an error
    assert train.classes == ("cat", "dog")
    assert train.labels.bincount().tolist() == [18, 18]
    assert not set(levels(train)) & set(levels(test))


def test_one_warning_counts_what_was_left_out_and_names_some(tmp_path):
    fill(tmp_path / "cat")
    fill(tmp_path / "dog", 20, 20)
    for number in range(4):
        (tmp_path / "cat" / f"{number}.heic").touch()
    (tmp_path / "dog" / "notes.TXT").touch()
    (tmp_path / "dog" / "README").touch()
    (tmp_path / "fish").mkdir()
    fill(tmp_path, 3, 100)
    told, found = warning_of(lambda: load("train", str(tmp_path)))
    assert told.startswith(f"{tmp_path}: ")
    assert "4 .heic, 1 without ending, 1 .txt, 1 empty folder (" in told
    assert Path("cat", "0.heic").as_posix() in told.replace("\\", "/")
    assert "beside the class folders: 3 .png (100.png, 101.png, 102.png)" in told
    assert found.classes == ("cat", "dog")


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tif", "avif"])
def test_of_several_frames_the_first_is_taken_and_told(kind, tmp_path):
    frames = [Image.new("L", (16, 16), level) for level in (250, 100, 0)]
    save(tmp_path / "c" / f"a.{kind}", frames[0], save_all=True, append_images=frames[1:])
    told, found = warning_of(lambda: load("train", str(tmp_path)))
    assert f"of several frames the first was taken: 1 .{kind} (" in told
    assert abs(levels(found)[0] - 250) <= 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_folder_or_a_pipe_with_the_name_of_a_picture_is_none(tmp_path):
    fill(tmp_path / "c", 3)
    (tmp_path / "c" / "folder.png").mkdir()
    os.mkfifo(tmp_path / "c" / "pipe.png")  # reading it would wait for ever
    told, found = warning_of(lambda: load("train", str(tmp_path)))
    assert "left out, since no pictures are read there: 1 empty folder, 1 .png (" in told
    assert len(found) == 2


@pytest.mark.parametrize("layout", ["", "c"])
def test_no_pictures_are_an_error(layout, tmp_path):
    (tmp_path / layout).mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=r"^source: no pictures in "):
        load("train", str(tmp_path))
    (tmp_path / layout / "a.svg").touch()
    with pytest.raises(ValueError, match=r"^source: no pictures in .*: 1 \.svg"):
        load("train", str(tmp_path))


# Copies -------------------------------------------------------------------------------------------


def distinct(found):
    return {image.numpy().tobytes() for image in found.images}


def test_equal_pictures_are_in_one_split_whatever_their_name_format_or_class(tmp_path):
    for level in range(60):
        pixels = np.full((4, 4), level, np.uint8)
        save(tmp_path / "cat" / f"{level}.png", pixels)
        save(tmp_path / "dog" / f"copy of {level}.bmp", np.stack([pixels] * 3, -1))
        save(tmp_path / "dog" / "more" / f"{level}.gif", pixels)
    told, train = warning_of(lambda: load("train", str(tmp_path)))
    assert "equal to others, and kept in one split: 60 .bmp, 60 .gif" in told
    _, test = warning_of(lambda: load("test", str(tmp_path)))
    assert len(train) + len(test) == 180
    assert not distinct(train) & distinct(test)
    assert Counter(levels(test)).most_common()[-1][1] == 3
    assert len(distinct(test)) == 6


def test_pictures_that_become_equal_are_copies_too(tmp_path):
    for blue in range(0, 256, 2):  # gray levels 0 to 29
        save(tmp_path / "c" / f"{blue}.png", np.full((4, 4, 3), (0, 0, blue), np.uint8))
    _, (train, test) = warning_of(lambda: both(tmp_path, channels=1), times=2)
    assert not distinct(train) & distinct(test)
    assert len(train) + len(test) == 128
    assert len(distinct(test)) == 3


@pytest.mark.parametrize("size", [None, 14, 31])
def test_a_picture_of_8_bits_in_a_file_of_more_is_a_copy(size, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    save(tmp_path / "train" / "8.png", pixels)
    save(tmp_path / "test" / "16.png", pixels.astype(np.uint16) * 257)
    save(tmp_path / "test" / "32.tif", (pixels / 255).astype(np.float32))
    save(tmp_path / "test" / "other.png", 255 - pixels)
    told, test = warning_of(lambda: load("test", str(tmp_path), size=size))
    assert "left out of test, since train has them: 1 .png, 1 .tif" in told
    assert len(test) == 1


def test_test_pictures_that_train_has_are_left_out_and_told(tmp_path):
    fill(tmp_path / "train" / "cat", 20)
    fill(tmp_path / "train" / "dog", 20, 100)
    fill(tmp_path / "test" / "dog", 10, 15)  # 15 to 19 are cats in train
    told, test = warning_of(lambda: load("test", str(tmp_path)))
    assert levels(test) == [20, 21, 22, 23, 24]
    assert "left out of test, since train has them: 5 .png (" in told
    _, train = warning_of(lambda: load("train", str(tmp_path)))
    assert len(train) == 40
    shutil.rmtree(tmp_path / "test")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    with pytest.raises(
        ValueError, match=r"^split: no picture of .* is left for 'test'.*train has them: 40 .png"
    ):
        load("test", str(tmp_path))


def test_links_are_followed_but_not_in_circles(tmp_path):
    fill(tmp_path / "elsewhere", 10)
    fill(tmp_path / "root" / "dog", 10, 10)
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "dog" / "loop.dog").symlink_to(tmp_path / "root" / "dog" / "loop.dog")
    (tmp_path / "root" / "dog" / "again.png").symlink_to(tmp_path / "root" / "dog" / "010.png")
    told, train = warning_of(lambda: load("train", str(tmp_path / "root")))
    assert "1 .dog (" in told
    assert "equal to others, and kept in one split: 1 .png (" in told
    _, test = warning_of(lambda: load("test", str(tmp_path / "root")))
    assert train.classes == ("cat", "dog")
    assert len(train) + len(test) == 21
    assert not distinct(train) & distinct(test)


# What cannot be read ------------------------------------------------------------------------------


def whole(kind):
    def write(path):
        rng = np.random.default_rng(0)
        save(path, rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), format=kind)
        return path.read_bytes()

    return write


@pytest.mark.parametrize(
    "kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "avif", "tga"]
)
def test_a_picture_that_is_cut_short_is_named(kind, tmp_path):
    path = tmp_path / "c" / f"a.{kind}"
    content = whole(kind)(path)
    for length in (0, 10, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"a\.{kind} cannot be read as an image: "):
            load("train", str(tmp_path))


def jpeg(pixels=GRAY):
    """The bytes of a JPEG, and where its only scan begins."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=100)
    return stream.getvalue(), stream.getvalue().index(b"\xff\xda")


def with_thumbnail(content):
    """The same JPEG with a whole one in its head, where cameras keep a small copy."""
    small, _ = jpeg(GRAY[:8, :8])
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(small) + 2) + small + content[2:]


def test_a_jpeg_whose_end_never_came_is_named(tmp_path):
    content, scan = jpeg()
    half = (scan + len(content)) // 2
    partly = content[:half] + bytes(len(content) - half)  # as an interrupted download leaves it
    for damaged in (partly, with_thumbnail(partly), content[:-2] + bytes(100)):
        written(damaged)(tmp_path / "c" / "a.jpg")
        with pytest.raises(DataError, match=r"a\.jpg cannot be read .*end-of-image marker"):
            load("train", str(tmp_path))
        shutil.rmtree(tmp_path / "c")


def test_what_stands_around_a_whole_jpeg_does_not_matter(tmp_path):
    content, scan = jpeg()
    filled = content[:scan] + b"\xff\xff" + content[scan:]  # any marker may be filled up so
    for whole in (content + b"\0", content + b"\xff\xda1", with_thumbnail(content), filled):
        written(whole)(tmp_path / "c" / "a.jpg")
        assert abs(only(tmp_path) - GRAY / 255).max() <= 2 / 255
        shutil.rmtree(tmp_path / "c")


def test_a_picture_that_pillow_cannot_hold_is_not_said_to_be_of_no_known_kind(tmp_path):
    written(tiff((RAMP / 65535).astype(">f8"), **FLOAT))(tmp_path / "c" / "a.tif")
    with pytest.raises(DataError, match=r"format is not known, or not this kind of it; replace it"):
        load("train", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.jpg", b"<html>403 Forbidden</html>"),
        ("header.pgm", b"P5\n28 xx\n255\nabc"),
        (
            "huge.png",
            png(0, 1, np.zeros((1, 1), np.uint8)).replace(
                struct.pack(">II", 1, 1), struct.pack(">II", 20000, 20000)
            ),
        ),
        ("bomb.pgm", b"P5 100000 100000 255\n"),
        ("short.pgm", b"P2 2 2 255\n1 2 3"),
        ("empty.png", b""),
    ],
)
def test_what_is_no_picture_or_far_too_large_is_named(name, content, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} cannot be read as an image: "):
        load("train", str(tmp_path))


@pytest.mark.parametrize("before", ["", "z"])
def test_all_pictures_that_cannot_be_read_are_named_at_once(before, tmp_path):
    fill(tmp_path / "c", 10)
    names = [f"{before}{number}.png" for number in range(5)]
    for name in names:
        (tmp_path / "c" / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match=rf"{names[0]} cannot be read .*; 4 more ") as raised:
        load("train", str(tmp_path))
    others = str(raised.value).split(": ")[-1].split(", ")
    assert [Path(each).name for each in others] == [*names[1:4], "..."]


def test_a_folder_in_which_no_picture_can_be_read_names_them(tmp_path):
    (tmp_path / "c").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "c" / name).write_bytes(b"no picture")
    for size in (None, (4, 4)):
        with pytest.raises(DataError, match=r"a\.png cannot .*; 1 more cannot be read: .*b\.png$"):
            load("train", str(tmp_path), size=size)


def test_what_to_do_about_a_picture_fits_what_is_wrong(tmp_path, monkeypatch):
    path = save(tmp_path / "c" / "a.png", np.zeros((1, 57), np.uint8))
    with pytest.raises(DataError, match=r"pass a larger size, or take it out"):
        load("train", str(tmp_path), size=28)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"exceeds limit .* make it smaller, or take it out"):
        load("train", str(tmp_path))
    monkeypatch.undo()
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"replace it, for instance by a PNG .*, or take it out"):
        load("train", str(tmp_path))


def test_a_broken_link_is_named(tmp_path):
    fill(tmp_path / "c", 3)
    (tmp_path / "c" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read as an image: .*No such file"):
        load("train", str(tmp_path))


def test_more_than_the_memory_holds_is_refused_before_it_is_read(tmp_path, monkeypatch):
    save(tmp_path / "c" / "a.png", COLOR)
    save(tmp_path / "c" / "b.png", COLOR.transpose(1, 0, 2))
    needed = 2 * 28 * 28 * 3 * (1 + 4)  # bytes: as uint8, then as float32
    monkeypatch.setattr(folders, "_memory", lambda: float(needed))
    assert len(load("train", str(tmp_path))) == 1
    monkeypatch.setattr(folders, "_memory", lambda: float(needed - 1))
    with pytest.raises(ValueError, match=r"^size: 2 images of 28 x 28 .*a smaller size"):
        load("train", str(tmp_path))
    assert load("train", str(tmp_path), size=14).shape == (3, 14, 14)


def test_a_size_that_no_memory_holds_is_refused_before_a_picture_is_resized(tmp_path, monkeypatch):
    fill(tmp_path / "c", 6)

    def padded(*_):
        raise AssertionError("a picture was resized")

    monkeypatch.setattr(folders, "padded", padded)
    gigabytes = round(6 * 1e12 * (1 + 4) / 1e9)
    with pytest.raises(ValueError, match=rf"^size: 6 images of .* {gigabytes} GB"):
        load("train", str(tmp_path), size=10**6)
    with pytest.raises(ValueError, match=rf"^size: 6 images of .* {3 * gigabytes} GB"):
        load("train", str(tmp_path), size=10**6, channels=3)


def test_a_picture_is_not_to_blame_for_a_lack_of_memory(tmp_path, monkeypatch):
    def padded(*_):
        raise MemoryError

    fill(tmp_path / "c", 3)
    monkeypatch.setattr(folders, "padded", padded)
    with pytest.raises(MemoryError):
        load("train", str(tmp_path), size=8)
