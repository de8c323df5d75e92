"""Figures that serve one chapter each; what several use is in `vae_book.figures`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vae_book.figures import BLACK, BLUE, CYCLE, GRAY, GREEN, ORANGE, STYLE, WIDTH, draw_images
from vae_book.history import History


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


def feasible_region(
    models: Mapping[str, Mapping[str, tuple[float, float]]], entropy: float
) -> Figure:
    """Models in the plane of rate and distortion, above the line where both add up to the entropy.

    After Alemi et al. (2018) (book chapter 10).

    Args:
        models: for each family, by name, rate and distortion of its models, by name.
        entropy: of the data, in nats.
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 3.8))
        for (family, points), (color, _, marker) in zip(models.items(), CYCLE, strict=False):
            axis.plot(*zip(*points.values(), strict=True), marker, color=color, label=family)
            for name, point in points.items():
                axis.annotate(name, point, (8, 5), textcoords="offset points", color=color)
        axis.margins(0.2, 0.15)
        right, top = axis.get_xlim()[1], max(axis.get_ylim()[1], 1.08 * entropy)
        axis.plot([0, entropy], [entropy, 0], color=GRAY, label="rate + distortion = entropy")
        axis.fill_between([0, entropy], [entropy, 0], color=GRAY, alpha=0.2, lw=0)
        axis.text(0.25 * entropy, 0.25 * entropy, "no model", color=GRAY, ha="center")
        axis.set(xlim=(-0.04 * right, right), ylim=(0, top))
        axis.set(xlabel="rate: KL, nats per image", ylabel="distortion, nats per image")
        axis.legend(frameon=False, fontsize=10)
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


def accounts(lines: Mapping[str, Mapping[str, tuple[float, float]]], x_label: str) -> Figure:
    """The lines of an account, each as one bar for every model, with its standard error.

    Args:
        lines: by the name of a line, and in it by that of a model, the value and its error.
        x_label: what the values are, with units.
    """
    names = list(dict.fromkeys(name for line in lines.values() for name in line))
    height = 0.8 / len(names)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 0.3 * len(lines) * len(names) + 1.2))
        for i, (name, (color, _, _)) in enumerate(zip(names, CYCLE, strict=False)):
            places = [j + (i - (len(names) - 1) / 2) * height for j in range(len(lines))]
            values, errors = zip(*(line[name] for line in lines.values()), strict=True)
            hatch = ("", "//", "..", "xx", "||")[i]
            axis.barh(
                places, values, height, label=name, color=color, hatch=hatch, ec="white", lw=0
            )
            axis.errorbar(values, places, xerr=errors, fmt="none", ecolor=BLACK, capsize=3, lw=1.5)
        axis.set_yticks(range(len(lines)), list(lines))
        axis.set_xlabel(x_label)
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        figure.legend(loc="outside upper center", ncols=len(names), frameon=False, fontsize=10)
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
            draw_images(left, image.unsqueeze(0), 1)
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


def loss_terms(history: History) -> Figure:
    """The negative ELBO with its reconstruction term, and the KL term, by epoch."""
    epochs = np.arange(1, history.epochs + 1)
    with plt.rc_context(STYLE):
        figure, (upper, lower) = plt.subplots(
            2, 1, figsize=(WIDTH, 5.2), sharex=True, height_ratios=[3, 2]
        )
        upper.plot(epochs, history.negative_elbo, color=BLUE, label="negative ELBO, training")
        if history.held_out:
            upper.plot(
                epochs, history.held_out, color=ORANGE, ls="--", label="negative ELBO, held out"
            )
        label = "reconstruction term, training"
        upper.plot(epochs, history.reconstruction, color=GREEN, ls=":", label=label)
        # The first epochs are far above the rest; the axis shows where the run ends up.
        upper.set_ylim(
            0.9 * min(history.reconstruction), 1.15 * history.negative_elbo[len(epochs) // 8]
        )
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
        draw_images(left, image.unsqueeze(0), 1)
        left.set_title("image x", fontsize=11)
        right.axhspan(-1, 1, color=GRAY, alpha=0.2, lw=0, label="prior: 0 ± 1")
        right.errorbar(
            units, center, yerr=deviation, fmt="o", ms=4, color=BLUE, label="q(z | x): μ ± σ"
        )
        right.set_xlabel("latent dimension")
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
        axis.text(0.07, 0.5, "compare:\nreconstruction term", color=GREEN, va="center")
        axis.text(1.95, 0.5, "add noise\n$\\epsilon\\sim N(0, I)$", va="center", ha="right")
        kl_term = "KL term: $\\mathrm{KL}(q\\,\\|\\,p)$"
        axis.text(2, 1.34, kl_term, color=GREEN, ha="center", va="bottom")
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


def graphical_model() -> Figure:
    """A latent variable z, drawn first, and an observation x, drawn given z and shaded."""
    nodes = {
        "z": (0, "white", "latent variable,\ndrawn from $p(z)$"),
        "x": (1, "#D9D9D9", "observation,\ndrawn from $p(x\\,|\\,z)$"),
    }
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 1.7))
        for name, (place, shade, text) in nodes.items():
            circle = {"boxstyle": "circle,pad=0.5", "fc": shade, "ec": BLACK, "lw": 2}
            axis.text(place, 0, f"${name}$", ha="center", va="center", fontsize=14, bbox=circle)
            axis.text(place, -0.42, text, ha="center", va="top")
        _arrow(axis, (0, 0), (1, 0), margin=0.16)
        axis.set(xlim=(-0.5, 1.5), ylim=(-1, 0.4))
        axis.axis("off")
    return figure


def encoder_and_decoder() -> Figure:
    """The two conditional distributions of a VAE: one plate for all images, parameters outside."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 3.1))
        center: Any = {"ha": "center", "va": "center"}
        circle = {"boxstyle": "circle,pad=0.5", "ec": BLACK, "lw": 2}
        for name, left, shade in (("z", 0, "white"), ("x", 2, "#D9D9D9")):
            bbox = circle | {"fc": shade}
            axis.text(left, 0, f"${name}^{{(i)}}$", fontsize=13, bbox=bbox, **center)
        axis.text(0, 1.3, "$\\phi$", fontsize=16, **center)
        axis.text(2, -1.3, "$\\theta$", fontsize=16, **center)
        arrows = [  # from, to, color, dashes, how far it bends
            ((2, 0), (0, 0), BLUE, "--", 0.35),
            ((0, 0), (2, 0), ORANGE, "-", 0.35),
            ((0, 1.3), (0, 0), BLUE, "--", 0),
            ((2, -1.3), (2, 0), ORANGE, "-", 0),
        ]
        for tail, head, color, dashes, bend in arrows:
            style = {"arrowstyle": "-|>,head_width=0.3,head_length=0.6", "lw": 2, "color": color}
            style |= {"ls": dashes, "connectionstyle": f"arc3,rad={bend}"}
            style |= {"shrinkA": 22 if bend else 12, "shrinkB": 22}
            axis.annotate("", head, tail, arrowprops=style)
        axis.text(1, 0.27, "encoder $q_\\phi(z\\,|\\,x)$", color=BLUE, fontsize=13, **center)
        axis.text(1, -0.27, "decoder $p_\\theta(x\\,|\\,z)$", color=ORANGE, fontsize=13, **center)
        axis.add_patch(plt.Rectangle((-0.55, -0.85), 3.1, 1.7, fill=False, ec=GRAY, lw=1.5))
        axis.text(-0.48, -0.78, "$i = 1, \\dots, n$", color=GRAY, ha="left", va="bottom")
        axis.set(xlim=(-0.65, 2.65), ylim=(-1.45, 1.45))
        axis.axis("off")
    return figure
