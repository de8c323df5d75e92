"""Everything that draws (used in every chapter).

Functions return a matplotlib Figure; `show` displays it with the sentence that states what it
shows. Figures are narrow with large type, so that they can be read on a phone, and use colors that
color-blind readers can tell apart (Okabe and Ito, https://jfly.uni-koeln.de/color/).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from types import MappingProxyType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor

from vae_book.checks import (
    as_floats,
    cholesky,
    numeric,
    real_number,
    real_tensor,
    whole_number,
)
from vae_book.deprecated import moved
from vae_book.mosaic import mosaic

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
STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 2,
    "figure.constrained_layout.use": True,
}


def image_rows(rows: Mapping[str, Float[Tensor, "n channels height width"]]) -> Figure:
    """Rows of images, each with its name above, aligned column by column.

    Raises:
        ValueError: there is no row, or one has no images.
    """
    if not rows:
        raise ValueError("rows: expected one or more, got none")
    rows = {name: _images(images) for name, images in rows.items()}
    columns = max(len(images) for images in rows.values())
    height = len(rows) * (WIDTH / columns + 0.3)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(rows), 1, figsize=(WIDTH, height), squeeze=False)
        for axis, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
            draw_images(axis, images, columns)
            axis.set_title(name, loc="left", fontsize=11)
    return figure


def image_grid(images: Float[Tensor, "n channels height width"], columns: int = 10) -> Figure:
    """Images in a grid, in reading order.

    Raises:
        ValueError: there are no images, or columns is not a positive whole number.
    """
    images, columns = _images(images), whole_number("columns", columns)
    rows = -(-len(images) // columns)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, WIDTH * rows / columns))
        draw_images(axis, images, columns)
    return figure


def _images(given: object) -> Tensor:
    (images,) = as_floats(images=given)
    if images.ndim != 4 or 0 in images.shape or images.shape[1] not in (1, 3):
        raise ValueError(
            "images: expected one or more, shape (n, 1 or 3, height, width), got "
            f"{tuple(images.shape)}"
        )
    return images


def draw_images(axis: Axes, images: Tensor, columns: int) -> None:
    """One mosaic with a thin line around each image: gray is dark for 1, like ink on paper."""
    colored = images.shape[1] > 1
    empty, rule = (1.0, 0.75) if colored else (0.0, 0.25)
    shown = mosaic(images, columns, line=1, rule=rule, empty=empty)
    shown = shown.clip(0, 1) if colored else shown[..., 0]
    axis.imshow(shown, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
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

    Raises:
        ValueError: x and y are no numbers, or not as many of each, or a height, place, range or
            size is no number.
    """
    if _finite("size", size) <= 0:
        raise ValueError(f"size: expected a positive number, got {size}")
    lines, points, guides = (
        {each: _points(name, *given[each]) for each in given}
        for name, given in {"lines": lines, "points": points, "guides": guides}.items()
    )
    levels, marks = (
        {each: _finite(name, given[each]) for each in given}
        for name, given in {"levels": levels, "marks": marks}.items()
    )
    for name, limits in {"x_limits": x_limits, "y_limits": y_limits}.items():
        _check_limits(name, limits)
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
            axis.set_xticks(x_ticks, [f"{tick:,g}".replace("-", "\u2212") for tick in x_ticks])
            axis.xaxis.set_minor_locator(NullLocator())  # those of y stay
        if x_limits:
            axis.set_xlim(x_limits)
        if y_limits:
            axis.set_ylim(bottom=y_limits[0], top=y_limits[1])
        low, high = axis.get_ylim()
        if "y" in log and high < 10 * low:  # no two powers of ten: plain numbers
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
        if len(names) + len(levels) + len(marks) + len(guides) > 1:
            axis.legend(frameon=False, fontsize=10)
    figure = axis.figure
    assert isinstance(figure, Figure)  # and not a part of one
    return figure


def _points(name: str, *x_and_y: Any) -> Points:
    """x and y as matplotlib takes them: it knows neither gradients nor bfloat16."""
    drawn: list[Any] = []
    for given in x_and_y:
        if isinstance(given, Tensor):
            given = real_tensor(name, given).detach().cpu().double()
        try:
            numbers = np.asarray(given, dtype=float)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{name}: expected numbers, got {given!r:.60}") from None
        if numbers.ndim > 2:
            raise ValueError(f"{name}: expected a row of numbers, got shape {numbers.shape}")
        drawn.append(given if numbers.ndim else [given])  # a point alone
    if len(drawn) != 2 or len(drawn[0]) != len(drawn[1]):
        raise ValueError(f"{name}: expected x and y of one length, got {list(map(len, drawn))}")
    return drawn[0], drawn[1]


def _finite(name: str, value: object) -> float:
    number = real_number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number


def _check_limits(name: str, limits: Any) -> None:
    if limits is None:
        return
    if not isinstance(limits, Sequence) or len(limits) != 2:
        raise ValueError(f"{name}: expected a lowest and a highest number, got {limits!r:.60}")
    for each in limits:
        if each is not None:
            _finite(name, each)


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
    axes.flat[max(0, len(content) - 2)].tick_params(labelbottom=True)  # there may be none below
    figure.supxlabel(x_label, fontsize=11)
    figure.supylabel(y_label, fontsize=11)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False, fontsize=10)
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

    Raises:
        ValueError: a mean is not two numbers, or a covariance not a positive definite matrix.
    """
    factored = {}
    for name, (mu, cov) in gaussians.items():
        mu, cov = as_floats(mu=mu, cov=cov)
        if mu.shape != (2,) or not bool(mu.isfinite().all()):
            raise ValueError(f"mu: expected two finite numbers, got shape {tuple(mu.shape)}")
        factored[name] = mu, cholesky("cov", cov, 2)
    turn = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(turn), np.sin(turn)])
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 3.8))
        for (name, (mu, factor)), (color, dashes, marker) in zip(
            factored.items(), cycle(CYCLE), strict=False
        ):
            spread, center = (each.detach().cpu().numpy() for each in (factor, mu[:, None]))
            for size in (1, 2):
                label = name if size == 1 else None
                axis.plot(*(center + size * spread @ circle), color=color, ls=dashes, label=label)
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


def classes(
    points: Float[Tensor, "n 2"], labels: Int[Tensor, " n"], x_label: str, y_label: str
) -> Figure:
    """Points of a plane in the color of their class, and each class's label amid its points.

    Raises:
        ValueError: there are no points, they are not in a plane, or they have not one label each.
    """
    (points,), labels = as_floats(points=points), real_tensor("labels", labels).cpu()
    points = points.detach().cpu()
    if points.shape[1:] != (2,) or len(points) < 1 or not bool(points.isfinite().all()):
        raise ValueError(
            f"points: expected finite numbers of shape (n, 2), got {tuple(points.shape)}"
        )
    if labels.shape != points.shape[:1]:
        raise ValueError(
            f"labels: expected one for each of {len(points)} points, got {tuple(labels.shape)}"
        )
    names = labels.unique().tolist()
    groups = [points[labels == name] for name in names]
    gap = 0.32 * points.std().item() if len(points) > 1 else 0.0
    places = apart(torch.stack([own.median(0).values for own in groups]), gap)
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


@numeric
def apart(places: Float[Tensor, "n 2"], gap: float) -> Float[Tensor, "n 2"]:
    """Places for labels at these points, or next to them where two are nearer than the gap."""
    for _ in range(100):  # labels that overlap push each other away
        away = places.unsqueeze(1) - places
        distance = away.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        places = places + 0.5 * (away * (gap / distance - 1).clamp(min=0)).sum(1)
    return places


__getattr__ = moved(
    __name__,
    {
        "show": "display.show",
        "show_table": "display.show_table",
        "one_sentence": "display.one_sentence",
        "png": "display.png",
        "trade_off": "diagrams.trade_off",
        "clouds": "diagrams.clouds",
        "gaps": "diagrams.gaps",
        "areas": "diagrams.areas",
        "beliefs": "diagrams.beliefs",
        "loss_terms": "diagrams.loss_terms",
        "posterior": "diagrams.posterior",
        "vae_diagram": "diagrams.vae_diagram",
    },
)
