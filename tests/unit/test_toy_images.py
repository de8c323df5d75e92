"""The drawn pictures of chapter 14: what is in them is known, and files keep it."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.numbers import refused
from vae_book.data import load_images
from vae_book.images import Images
from vae_book.toy_images import NOISE, SHAPES, draw_shapes, write_pictures


def test_levels_are_those_of_files_of_eight_bits_and_a_seed_draws_the_same():
    data = draw_shapes(40, seed=3)
    levels = 255 * data.images
    assert data.shape == (3, 16, 16)
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert data.images.min() >= 0
    assert data.images.max() <= 1
    assert torch.equal(data.images, draw_shapes(40, seed=3).images)
    assert not torch.equal(data.images, draw_shapes(40, seed=4).images)
    assert data.labels.bincount().tolist() == [20, 20]


def test_the_noise_of_the_paper_is_the_one_that_is_told():
    corners = draw_shapes(4000, side=24).images[:, :, :2, :2].flatten(1)
    noise = (corners - corners.mean(1, keepdim=True)).square().sum(1) / (corners.shape[1] - 1)
    assert noise.mean().sqrt().item() == pytest.approx(NOISE, rel=0.02)


def test_they_are_drawn_on_the_cpu_whatever_the_default_device():
    expected = draw_shapes(5, seed=1)
    with torch.device("meta"):
        drawn = draw_shapes(5, seed=1)
    assert torch.equal(drawn.images, expected.images)
    assert torch.equal(drawn.labels, expected.labels)


def test_squares_fill_their_frame_and_disks_do_not():
    data = draw_shapes(400, seed=1, side=32)
    paper = data.images[:, :, :2, :2].mean((2, 3), keepdim=True)
    seen = (data.images - paper).abs().amax(1) > 6 * NOISE
    shares = []
    for mask in seen:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        shares.append((mask.sum() / area).item())
    disks, squares = (np.median(np.array(shares)[data.labels == label]) for label in (0, 1))
    assert disks == pytest.approx(np.pi / 4, abs=0.06)
    assert squares > 0.93


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_come_back_to_the_last_level_with_their_class(channels, tmp_path):
    drawn = draw_shapes(30)
    drawn = drawn.with_images(drawn.images[:, :channels])
    write_pictures(drawn, tmp_path / "pictures")
    back = {}
    for split in ("train", "test"):
        data = load_images(split, tmp_path / "pictures", "cpu")
        assert data.classes == SHAPES
        pairs = zip(data.images, data.labels.tolist(), strict=True)
        back |= {(255 * image).round().numpy().tobytes(): label for image, label in pairs}
    pairs = zip(drawn.images, drawn.labels.tolist(), strict=True)
    assert back == {(255 * image).round().numpy().tobytes(): label for image, label in pairs}
    path = tmp_path / "pictures" / "square" / "00001.png"
    with Image.open(path) as picture:
        assert picture.mode == {1: "L", 3: "RGB"}[channels]


def test_what_cannot_be_written_is_refused(tmp_path):
    drawn = draw_shapes(2)
    with refused("data: expected images whose classes have names"):
        write_pictures(Images(drawn.images, drawn.labels, "here", "train"), tmp_path)
    with refused("data: expected levels in [0, 1]"):
        write_pictures(drawn.with_images(2 * drawn.images), tmp_path)
    with refused("n: expected a whole number"):
        draw_shapes(0)
