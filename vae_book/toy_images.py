"""Small color pictures of which everything is known, for the chapter on your own data (14).

Each shows a disk or a square on gray paper. Its place (two numbers), size, hue and the level of the
paper are drawn at random, and so is the noise of the camera: five numbers and the shape decide an
image, all else is noise of a known size.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vae_book.checks import whole_number
from vae_book.device import seeded, standard_normal
from vae_book.images import Images

SHAPES = ("disk", "square")
NOISE = 0.03  # the standard deviation of the camera's noise; white is 1


def draw_shapes(n: int, seed: int = 0, side: int = 16) -> Images:
    """Pictures of disks and squares in turn, with levels as in files of 8 bits.

    Args:
        n: how many.
        seed: of places, sizes, colors and noise.
        side: height and width in pixels.

    Returns:
        Images of shape (n, 3, side, side), on the CPU.

    Raises:
        ValueError: n or side is not a positive whole number.
    """
    n, side = whole_number("n", n), whole_number("side", side)
    generator = seeded(seed)
    across, down, size, hue, paper = torch.rand(5, n, 1, 1, generator=generator, device="cpu")
    labels = torch.arange(n, device="cpu") % len(SHAPES)
    grid = (torch.arange(side, device="cpu") + 0.5) / side
    x = (grid - (0.3 + 0.4 * across)).abs()
    y = (grid[:, None] - (0.3 + 0.4 * down)).abs()
    distance = torch.where(labels[:, None, None] == 0, torch.hypot(x, y), torch.maximum(x, y))
    # The share of a pixel that the shape covers: soft at its edge, so that places are not rounded.
    inside = (side * (0.12 + 0.13 * size - distance) + 0.5).clamp(0, 1)[:, None]
    ground = 0.15 + 0.3 * paper[:, None]
    levels = inside * _color(hue) + (1 - inside) * ground
    levels = levels + NOISE * standard_normal(levels.shape, generator)
    levels = levels.clamp(0, 1).mul(255).round().div(255)
    return Images(levels, labels, "drawn shapes", "train", SHAPES)


def write_pictures(data: Images, folder: Path | str) -> None:
    """Write images as PNG files, in a folder for each class: ``folder/CLASS/NUMBER.png``.

    Args:
        data: gray or color images with class names and levels in [0, 1], which are rounded to 8
            bits.
        folder: where the folders of the classes are made.

    Raises:
        ValueError: the classes have no names, or a level lies outside [0, 1].
        OSError: a file cannot be written.
    """
    if not data.classes:
        raise ValueError("data: expected images whose classes have names, got none")
    if len(data) and not (data.images.min() >= 0 and data.images.max() <= 1):
        raise ValueError("data: expected levels in [0, 1], got others")
    for name in data.classes:
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
    pixels = data.images.detach().cpu().mul(255).round().to(torch.uint8).movedim(1, -1).numpy()
    for number, (picture, label) in enumerate(zip(pixels, data.labels.tolist(), strict=True)):
        gray_or_color = np.ascontiguousarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
        Image.fromarray(gray_or_color).save(Path(folder) / data.classes[label] / f"{number:05}.png")


def _color(hue: Float[Tensor, "n 1 1"]) -> Float[Tensor, "n 3 1 1"]:
    """The colors of the rainbow and back, none of them black or white."""
    turn = (6 * hue[:, None] + hue.new_tensor([0.0, 4.0, 2.0]).reshape(1, 3, 1, 1)) % 6
    return 0.15 + 0.7 * ((turn - 3).abs() - 1).clamp(0, 1)
