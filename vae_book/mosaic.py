"""Images side by side in one array, for figures and files."""

import numpy as np
from jaxtyping import Float
from torch import Tensor


def mosaic(
    images: Float[Tensor, "n channels height width"],
    columns: int,
    *,
    line: int,
    rule: float = 0.0,
    empty: float = 0.0,
) -> Float[np.ndarray, "rows columns channels"]:
    """Images in reading order, with a line around each.

    Args:
        images: one or more.
        columns: how many stand in a row.
        line: its width, in pixels.
        rule: its level.
        empty: that of the places after the last image.
    """
    n, channels, height, width = images.shape
    down, across = height + line, width + line
    found = np.full((-(-n // columns) * down + line, columns * across + line, channels), empty)
    for index, image in enumerate(images.detach().cpu().movedim(1, -1).numpy()):
        top, left = index // columns * down, index % columns * across
        found[top : top + down + line, left : left + across + line] = rule
        found[top + line : top + down, left + line : left + across] = image
    return found
