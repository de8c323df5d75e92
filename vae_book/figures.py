"""Everything that draws (used in every chapter).

Functions return a matplotlib Figure; `show` displays it with the sentence that states what it
shows. Figures are narrow with large type, so that they can be read on a phone, and use colors that
color-blind readers can tell apart (Okabe and Ito, 2008).
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vae_book.training import History

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
WIDTH = 5.0  # inches; at 72 pixels an inch this is a phone's width
DPI = 160
STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 2,
    "figure.constrained_layout.use": True,
}


def show(figure: Figure, sentence: str) -> None:
    """Display a figure in a notebook with one sentence that states what it shows.

    The sentence, with its rounded numbers, is the figure's text output. It becomes the caption and
    the alternative text of the page, and the regression tests compare it, since they cannot
    compare pictures.

    Raises:
        ValueError: the sentence is empty, longer than one line or does not end in a full stop.
    """
    from IPython.display import display  # a notebook has it; the package does not need it

    sentence = sentence.strip()
    if not sentence.endswith(".") or "\n" in sentence:
        raise ValueError(f"sentence: expected one line that ends in a full stop, got {sentence!r}")
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    display({"image/png": picture.getvalue(), "text/plain": sentence}, raw=True)


def show_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Display a table in a notebook; numbers that are not whole get two decimals.

    Raises:
        ValueError: a row has not as many cells as the header.
    """
    from IPython.display import display

    lines = [[_cell(value) for value in row] for row in rows]
    for line in lines:
        if len(line) != len(header):
            raise ValueError(f"rows: expected {len(header)} cells in each, got {len(line)}")
    rule = ["---", *["--:"] * (len(header) - 1)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *lines])
    display({"text/markdown": text, "text/plain": text}, raw=True)


def _cell(value: object) -> str:
    if isinstance(value, float | Tensor):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def image_rows(rows: Mapping[str, Float[Tensor, "n 1 height width"]]) -> Figure:
    """Rows of images, each with its name above, aligned column by column."""
    columns = max(len(images) for images in rows.values())
    height = len(rows) * (WIDTH / columns + 0.3)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(rows), 1, figsize=(WIDTH, height), squeeze=False)
        for axis, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
            _draw_images(axis, images, columns)
            axis.set_title(name, loc="left", fontsize=11)
    return figure


def image_grid(images: Float[Tensor, "n 1 height width"], columns: int = 10) -> Figure:
    """Images in a grid, in reading order."""
    rows = -(-len(images) // columns)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, WIDTH * rows / columns))
        _draw_images(axis, images, columns)
    return figure


def _draw_images(axis: Axes, images: Tensor, columns: int) -> None:
    """One mosaic, dark for 1 like ink on paper, with a thin line around each image."""
    n, _, height, width = images.shape
    line = 1
    down, across = height + line, width + line
    mosaic = np.zeros((-(-n // columns) * down + line, columns * across + line))
    for index, image in enumerate(images.detach().cpu().numpy()[:, 0]):
        top, left = index // columns * down, index % columns * across
        mosaic[top : top + down + line, left : left + across + line] = 0.25
        mosaic[top + line : top + down, left + line : left + across] = image
    axis.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axis.axis("off")


def loss_terms(history: History) -> Figure:
    """The negative ELBO with its reconstruction term, and the KL term, by epoch."""
    epochs = np.arange(1, history.epochs + 1)
    with plt.rc_context(STYLE):
        figure, (upper, lower) = plt.subplots(
            2, 1, figsize=(WIDTH, 5.2), sharex=True, height_ratios=[3, 2]
        )
        upper.plot(epochs, history.loss, color=BLUE, label="negative ELBO, training")
        if history.held_out:
            upper.plot(
                epochs, history.held_out, color=ORANGE, ls="--", label="negative ELBO, held out"
            )
        upper.plot(
            epochs, history.reconstruction, color=GREEN, ls=":", label="reconstruction, training"
        )
        # The first epochs are far above the rest; the axis shows where the run ends up.
        upper.set_ylim(0.9 * min(history.reconstruction), 1.15 * history.loss[len(epochs) // 8])
        upper.set_ylabel("nats per image")
        upper.legend(frameon=False)
        lower.plot(epochs, history.kl, color=BLUE)
        lower.set_ylim(bottom=0)
        lower.set_ylabel("KL, nats per image")
        lower.set_xlabel("epoch")
    return figure


def posterior(
    image: Float[Tensor, "1 height width"], mu: Float[Tensor, " d"], log_var: Float[Tensor, " d"]
) -> Figure:
    """The mean and standard deviation of q(z | x) for one image, over those of the prior."""
    units = np.arange(1, len(mu) + 1)
    center = mu.detach().cpu().numpy()
    deviation = (0.5 * log_var).exp().detach().cpu().numpy()
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(WIDTH, 3.4), width_ratios=[1, 3.2], sharey=False
        )
        _draw_images(left, image.unsqueeze(0), 1)
        left.set_title("image x", fontsize=11)
        right.axhspan(-1, 1, color=GRAY, alpha=0.2, lw=0, label="prior: 0 ± 1")
        right.errorbar(
            units, center, yerr=deviation, fmt="o", ms=4, color=BLUE, label="guess: μ ± σ"
        )
        right.set_xlabel("latent number")
        right.set_ylabel("value of z")
        right.set_xticks([1, *range(5, len(mu) + 1, 5)])
        right.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=1)
    return figure


def vae_diagram() -> Figure:
    """The path of one image through a VAE, and where the two terms of the loss arise."""
    boxes = {
        "image\n$x$": (0, 1, GRAY),
        "encoder\n$q(z\\,|\\,x)$": (1, 1, BLUE),
        "$\\mu$ and\n$\\log\\sigma^2$": (2, 1, BLUE),
        "$z=\\mu+\\sigma\\,\\epsilon$": (2, 0, BLUE),
        "decoder\n$p(x\\,|\\,z)$": (1, 0, ORANGE),
        "pixel\nprobabilities": (0, 0, ORANGE),
    }
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 3.6))
        for text, (column, row, color) in boxes.items():
            axis.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=12,
                bbox={"boxstyle": "round,pad=0.55", "fc": "white", "ec": color, "lw": 2},
            )
        for (x0, y0, _), (x1, y1, _) in pairwise(boxes.values()):
            _arrow(axis, (x0, y0), (x1, y1), margin=0.42 if y0 == y1 else 0.24)
        axis.annotate(
            "",
            (0, 0.76),
            (0, 0.24),
            arrowprops={"arrowstyle": "<->", "lw": 2, "ls": "--", "color": GREEN},
        )
        axis.text(0.07, 0.5, "compare:\nreconstruction", color=GREEN, va="center")
        axis.text(1.95, 0.5, "add noise\n$\\epsilon\\sim N(0, I)$", va="center", ha="right")
        axis.text(2, 1.34, "price: KL to $N(0, I)$", color=GREEN, ha="center", va="bottom")
        axis.set(xlim=(-0.5, 2.5), ylim=(-0.35, 1.5))
        axis.axis("off")
    return figure


def _arrow(axis: Axes, start: tuple[int, int], end: tuple[int, int], margin: float) -> None:
    """An arrow between two boxes, ``margin`` away from their centers."""
    tail, head = np.array(start), np.array(end)
    step = margin * (head - tail)
    axis.annotate(
        "", head - step, tail + step, arrowprops={"arrowstyle": "-|>", "lw": 2, "color": GRAY}
    )
