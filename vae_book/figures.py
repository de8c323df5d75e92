"""Everything that draws (used in every chapter).

Functions return a matplotlib Figure; `show` displays it with the sentence that states what it
shows. Figures are narrow with large type, so that they can be read on a phone, and use colors that
color-blind readers can tell apart (Okabe and Ito, 2008).
"""

from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from itertools import cycle, pairwise
from types import MappingProxyType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vae_book.training import History

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
PURPLE, BLACK = "#CC79A7", "#000000"
# Lines differ in color and in dashes, so that either is enough.
CYCLE = list(
    zip(
        (BLUE, ORANGE, GREEN, PURPLE, BLACK),
        ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1))),
        "os^Dv",
        strict=True,
    )
)
# Of each class on light and on dark paper, as far apart as ten colors can be for readers with and
# without color blindness. Its label stands among the points of a class all the same.
CLASS_COLORS = (
    ("#5f90f2", "#599eee"),
    ("#6457c9", "#5ebdb2"),
    ("#21a45a", "#68e289"),
    ("#952950", "#d0527d"),
    ("#1c728a", "#268b9b"),
    ("#c970ba", "#f0b6ec"),
    ("#816119", "#c49162"),
    ("#e96711", "#e0bf10"),
    ("#0e4a0f", "#708710"),
    ("#4e198b", "#9267d1"),
)
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

    sentence = one_sentence(sentence)
    display({"image/png": png(figure), "text/plain": sentence}, raw=True)


def one_sentence(text: str) -> str:
    """The text without space around it.

    Raises:
        ValueError: it is empty, longer than one line or does not end in a full stop.
    """
    text = text.strip()
    if not text.endswith(".") or "\n" in text:
        raise ValueError(f"sentence: expected one line that ends in a full stop, got {text!r}")
    return text


def png(figure: Figure) -> bytes:
    """The figure as a PNG file; the figure itself is closed."""
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return picture.getvalue()


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


Points = tuple[Sequence[Any] | Tensor, Sequence[Any] | Tensor]


def curves(
    lines: Mapping[str, Points],
    x_label: str,
    y_label: str,
    *,
    points: Mapping[str, Points] = MappingProxyType({}),
    levels: Mapping[str, float] = MappingProxyType({}),
    marks: Mapping[str, float] = MappingProxyType({}),
    guides: Mapping[str, Points] = MappingProxyType({}),
    shaded: Collection[str] = (),
    log: str = "",
    x_ticks: Sequence[float | int] = (),
    x_limits: tuple[float, float] | None = None,
    y_limits: tuple[float | None, float | None] | None = None,
    size: float = 3.4,
    axis: Axes | None = None,
) -> Figure:
    """Curves over one axis, with a legend.

    Args:
        lines: for each name, x and y of a line.
        x_label, y_label: what the axes show, with units.
        points: for each name, x and y of markers; a line of that name lends them its color.
        levels: heights of thin horizontal lines, by name.
        marks: places of thin vertical lines, by name.
        guides: for each name, x and y of a thin line to compare the others with.
        shaded: names of lines whose area down to zero is filled.
        log: the axes with a logarithmic scale, "x", "y" or "xy".
        x_ticks: where the x axis has ticks, written as plain numbers; none fits the data.
        x_limits, y_limits: the range of an axis; None fits the data.
        size: the height in inches.
        axis: where to draw; None makes a figure.
    """
    with plt.rc_context(STYLE):
        if axis is None:
            _, axis = plt.subplots(figsize=(WIDTH, size))
        names = list(dict.fromkeys([*lines, *points]))
        style = dict(zip(names, cycle(CYCLE), strict=False))
        for name, (x, y) in lines.items():
            color, dashes, _ = style[name]
            axis.plot(x, y, color=color, ls=dashes, label=name)
            if name in shaded:
                axis.fill_between(x, y, color=color, alpha=0.2, lw=0)
        for name, (x, y) in points.items():
            color, _, marker = style[name]
            label = None if name in lines else name
            axis.plot(x, y, marker, color=color, ms=6, label=label)
        for name, height in levels.items():
            axis.axhline(height, color=GRAY, lw=1.5, ls=":", label=name)
        for name, place in marks.items():
            axis.axvline(place, color=GRAY, lw=1.5, ls=":", label=name)
        for name, (x, y) in guides.items():
            axis.plot(x, y, color=GRAY, lw=1.5, ls=":", label=name)
        axis.set(xlabel=x_label, ylabel=y_label)
        if all(isinstance(value, int) for x, _ in lines.values() for value in x):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if "x" in log:
            axis.set_xscale("log")
        if "y" in log:
            axis.set_yscale("log")
        if x_ticks:
            axis.set_xticks(x_ticks, [f"{tick:g}" for tick in x_ticks])
            axis.minorticks_off()
        if x_limits:
            axis.set_xlim(x_limits)
        if y_limits:
            axis.set_ylim(bottom=y_limits[0], top=y_limits[1])
        if len(names) + len(levels) + len(marks) + len(guides) > 1:
            axis.legend(frameon=False, fontsize=10)
    figure = axis.figure
    assert isinstance(figure, Figure)  # and not a part of one
    return figure


def panels(*content: Mapping[str, Any]) -> Figure:
    """Figures of `curves`, one below the other, each given by its arguments.

    The legend stands in the first: a name means the same in all.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(content), figsize=(WIDTH, 3 * len(content)), squeeze=False)
    for axis, arguments in zip(axes[:, 0], content, strict=True):
        curves(**arguments, axis=axis)
        legend = axis.get_legend()
        if legend and axis is not axes[0, 0]:
            legend.remove()
    return figure


def grid(
    content: Mapping[str, Mapping[str, Points]],
    x_label: str,
    y_label: str,
    *,
    levels: Mapping[str, float] = MappingProxyType({}),
    y_limits: tuple[float | None, float | None] | None = None,
) -> Figure:
    """Small figures of `curves`, two in a row, on the same axes and with one legend.

    Args:
        content: the lines of each, by its title; a name means the same in all.
        x_label, y_label, levels, y_limits: as for `curves`, for all of them.
    """
    rows = -(-len(content) // 2)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, 2, figsize=(WIDTH, 1.7 * rows + 0.6), sharex=True, sharey=True, squeeze=False
        )
    for axis, (title, lines) in zip(axes.flat, content.items(), strict=False):
        curves(lines, "", "", levels=levels, y_limits=y_limits, axis=axis)
        axis.set_title(title, loc="left", fontsize=11)
        if axis.get_legend():
            axis.get_legend().remove()
    for axis in axes.flat[len(content) :]:
        axis.set_axis_off()
    figure.supxlabel(x_label, fontsize=11)
    figure.supylabel(y_label, fontsize=11)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False, fontsize=10)
    return figure


def trade_off(
    curve: Mapping[str, tuple[float, float]],
    others: Mapping[str, tuple[float, float]],
    tangent: str,
    x_label: str,
    y_label: str,
) -> Figure:
    """Models as points of two prices, and the line on which the sum of both is that of one of them.

    Args:
        curve: both prices of models that differ in one setting, in its order, by name.
        others: the same of models apart.
        tangent: the model of the curve through which the line of equal sums runs.
        x_label, y_label: what the prices are, with units.
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 3.8))
        axis.plot(*zip(*curve.values(), strict=True), "o-", color=BLUE)
        for point in others.values():
            axis.plot(*point, "s", color=ORANGE)
        for name, point in {**curve, **others}.items():
            lift = 3 if name in curve else 10  # others may lie close above the curve
            axis.annotate(name, point, (8, lift), textcoords="offset points")
        axis.margins(0.18, 0.12)
        limits = axis.get_xlim(), axis.get_ylim()
        label = f"sum {sum(curve[tangent]):.0f}"
        axis.axline(curve[tangent], slope=-1, color=GRAY, lw=1.5, ls=":", label=label)
        axis.set(xlim=limits[0], ylim=limits[1], xlabel=x_label, ylabel=y_label)
        axis.legend(frameon=False)
    return figure


def clouds(
    points: Mapping[str, Float[Tensor, "n 2"]], reach: float, x_label: str, y_label: str
) -> Figure:
    """Points of a plane, a panel a name, over circles around zero of radius 1, 2 and 3.

    Args:
        points: the points, by name.
        reach: how far the axes go in each direction; what lies beyond is not seen.
        x_label, y_label: what the coordinates are.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(points), figsize=(WIDTH, 2.3), sharex=True, sharey=True, squeeze=False
        )
        for axis, (name, cloud) in zip(axes[0], points.items(), strict=True):
            axis.plot(*cloud.detach().cpu().T, ".", color=BLUE, ms=2, mew=0, alpha=0.6)
            for radius in (1, 2, 3):
                axis.add_patch(plt.Circle((0, 0), radius, fill=False, ec=ORANGE, lw=1.2))
            axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel=x_label)
            axis.set_title(name, fontsize=11)
        axes[0, 0].set_ylabel(y_label)
    return figure


def gaps(bounds: Mapping[str, float], ceiling: float, x_label: str) -> Figure:
    """Lower bounds, and for each the gap up to what it bounds, in nats.

    Args:
        bounds: the value of each bound, by the name of its q.
        ceiling: what they bound, log p(x).
        x_label: what the names are.
    """
    places = range(len(bounds))
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
        axis.axhline(ceiling, color=BLACK, label="log p(x)")
        axis.vlines(places, list(bounds.values()), ceiling, color=ORANGE, lw=8, alpha=0.5)
        axis.plot(places, list(bounds.values()), "o", color=BLUE, ms=9, label="bound")
        for place, value in zip(places, bounds.values(), strict=True):
            text = f"gap {abs(ceiling - value):.2f}"
            axis.annotate(text, (place, value), (0, -20), textcoords="offset points", ha="center")
        axis.set_xticks(places, list(bounds))
        axis.set(xlim=(-0.6, len(bounds) - 0.4), xlabel=x_label, ylabel="nats")
        axis.margins(y=0.2)
        axis.grid(visible=False, axis="x")
        axis.legend(frameon=False, loc="lower right")
    return figure


def ellipses(
    gaussians: Mapping[str, tuple[Float[Tensor, "2"], Float[Tensor, "2 2"]]],
    x_label: str,
    y_label: str,
) -> Figure:
    """Where the log density of each 2-D Gaussian is 1/2 and 2 below its peak.

    Args:
        gaussians: mean and covariance of each, by name.
        x_label, y_label: what the two coordinates are.
    """
    turn = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(turn), np.sin(turn)])
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 3.8))
        for (name, (mu, cov)), (color, dashes, marker) in zip(
            gaussians.items(), cycle(CYCLE), strict=False
        ):
            factor, center = np.linalg.cholesky(cov.numpy()), mu.numpy()[:, None]
            for size in (1, 2):
                label = name if size == 1 else None
                axis.plot(*(center + size * factor @ circle), color=color, ls=dashes, label=label)
            axis.plot(*center, marker, color=color)
        axis.set(xlabel=x_label, ylabel=y_label, aspect="equal")
        axis.legend(frameon=False, fontsize=10, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def contours(
    x: Float[Tensor, " m"],
    y: Float[Tensor, " n"],
    surfaces: Mapping[str, Float[Tensor, "n m"]],
    heights: Sequence[float | int],
    x_label: str,
    y_label: str,
) -> Figure:
    """Surfaces over one plane, each in a panel of its own, by lines of equal height.

    Args:
        x, y: the coordinates of the grid.
        surfaces: the height at each point of it, by name.
        heights: at which lines are drawn.
        x_label, y_label: what the axes show.
    """
    inner_x, inner_y = (slice(len(values) // 16, -len(values) // 16) for values in (x, y))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(surfaces), figsize=(WIDTH, 3.2), sharex=True, sharey=True, squeeze=False
        )
        for axis, (name, surface) in zip(axes[0], surfaces.items(), strict=True):
            axis.contour(x, y, surface, levels=heights, colors=BLUE, linewidths=1.5)
            # Labels go on an invisible copy that stays away from the edges, which would clip them.
            copy = axis.contour(x[inner_x], y[inner_y], surface[inner_y, inner_x], levels=heights)
            copy.set_visible(False)
            for label in axis.clabel(copy, fmt="%g", fontsize=10, colors=BLUE, inline=False):
                label.set_bbox({"fc": "white", "ec": "none", "pad": 0.5})
            axis.set_title(name, fontsize=11)
            axis.set_xlabel(x_label)
        axes[0, 0].set_ylabel(y_label)
    return figure


def areas(prior: Mapping[str, float], likelihood: Mapping[str, Mapping[str, float]]) -> Figure:
    """A unit square cut into one column a cause, and each column into its effects.

    Args:
        prior: the probability of each cause, which is the width of its column.
        likelihood: for each cause, the probability of each effect, the heights in its column.
    """
    colors = (ORANGE, "#BFD9EA", "#E5E5E5")
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 3.6))
        left = 0.0
        for cause, width in prior.items():
            bottom = 0.0
            for (effect, height), color in zip(likelihood[cause].items(), colors, strict=False):
                box = (left, bottom)
                axis.add_patch(plt.Rectangle(box, width, height, fc=color, ec="white", lw=3))
                gap = "\n" if height > 0.2 else ": "
                text = f"{effect}{gap}{width:g} × {height:g} = {width * height:.2f}"
                middle = (left + width / 2, bottom + height / 2)
                axis.text(*middle, text, ha="center", va="center", fontsize=10)
                bottom += height
            left += width
        edges = np.cumsum([0, *prior.values()])
        centers = (edges[1:] + edges[:-1]) / 2
        axis.set_xticks(centers, [f"{name}, {p:g}" for name, p in prior.items()])
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="cause z, with its prior probability")
        axis.set_ylabel("probability of x given z")
        axis.grid(visible=False)
    return figure


def beliefs(
    images: Float[Tensor, "n 1 height width"],
    seen: Sequence[int],
    probabilities: Float[Tensor, "n k"],
) -> Figure:
    """Images of which only the first rows are seen, each beside the beliefs about its class."""
    k = probabilities.shape[1]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(images), 2, figsize=(WIDTH, 1.35 * len(images)), width_ratios=[1, 2.6]
        )
        for (left, right), image, rows, belief in zip(
            axes, images, seen, probabilities, strict=True
        ):
            _draw_images(left, image.unsqueeze(0), 1)
            height, width = image.shape[-2:]
            left.add_patch(
                plt.Rectangle((0, rows + 0.5), width + 1, height + 0.5 - rows, fc="#C9C9C9")
            )
            left.set_title(f"{rows} rows seen", fontsize=10)
            right.bar(range(k), belief.tolist(), color=BLUE)
            right.set(ylim=(0, 1), ylabel="p(z | x)", xticks=range(k))
            right.grid(visible=False, axis="x")
        axes[-1, 1].set_xlabel("class z")
    return figure


def classes(
    points: Float[Tensor, "n 2"], labels: Int[Tensor, " n"], x_label: str, y_label: str
) -> Figure:
    """Points of a plane in the color of their class, and each class's label amid its points."""
    points, labels = points.cpu(), labels.cpu()
    names = labels.unique().tolist()
    groups = [points[labels == name] for name in names]
    places = apart(torch.stack([own.median(0).values for own in groups]), points.std().item() / 4)
    halo = [withStroke(linewidth=3, foreground="white")]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 4.4))
        for name, own, place, (color, _) in zip(names, groups, places, cycle(CLASS_COLORS)):
            axis.plot(*own.T, ".", color=color, ms=5)
            x, y = place.tolist()
            axis.text(x, y, str(name), weight="bold", size=15, path_effects=halo, zorder=3)
        for text in axis.texts:
            text.set(ha="center", va="center")
        axis.set(xlabel=x_label, ylabel=y_label)
    return figure


def apart(places: Float[Tensor, "n 2"], gap: float) -> Float[Tensor, "n 2"]:
    """Places for labels at these points, or next to them where two are nearer than the gap."""
    for _ in range(100):  # labels that overlap push each other away
        away = places.unsqueeze(1) - places
        distance = away.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        places = places + 0.5 * (away * (gap / distance - 1).clamp(min=0)).sum(1)
    return places


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
