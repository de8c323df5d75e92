"""Figures draw the numbers they are given, and show states what they show."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from vae_book import diagrams, figures
from vae_book.device import seeded
from vae_book.history import History


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append(data))
    return shown


def some_images(n):
    return torch.rand(n, 1, 28, 28, generator=seeded(1))


def contains(mosaic, image):
    """Where an image stands in a mosaic, as (row, column), or None."""
    windows = np.lib.stride_tricks.sliding_window_view(mosaic, image.shape)
    places = np.argwhere((windows == image).all((2, 3)))
    return tuple(places[0]) if len(places) else None


def test_a_grid_holds_every_image_in_reading_order():
    images = some_images(7)
    figure = figures.image_grid(images, columns=3)
    mosaic = np.asarray(figure.axes[0].images[0].get_array())
    places = [contains(mosaic, image) for image in images[:, 0].double().numpy()]
    assert None not in places
    assert places == sorted(places)
    assert len({row for row, _ in places}) == 3
    plt.close(figure)


def test_rows_of_images_keep_their_names_and_line_up():
    first, second = some_images(4), 1 - some_images(4)
    figure = figures.image_rows({"originals": first, "copies": second})
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["originals", "copies"]
    for axis, images in zip(figure.axes, (first, second), strict=True):
        mosaic = np.asarray(axis.images[0].get_array())
        columns = [contains(mosaic, image)[1] for image in images[:, 0].double().numpy()]
        assert columns == sorted(columns)
    assert len({axis.images[0].get_array().shape for axis in figure.axes}) == 1
    # Dark is ink: a map from 0, white, to 1, black.
    assert figure.axes[0].images[0].get_cmap()(0.0)[:3] == (1.0, 1.0, 1.0)
    plt.close(figure)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: diagrams.vae_diagram(),
        lambda: diagrams.loss_terms(History([9.0, 8.0], [1.0, 2.0])),
        lambda: diagrams.posterior(some_images(1)[0], torch.zeros(20), torch.zeros(20)),
    ],
)
def test_type_is_large_enough_for_a_phone(draw):
    """At 360 pixels for the figure's width, no text is smaller than 8 pixels."""
    figure = draw()
    figure.canvas.draw()
    texts = [text for text in figure.findobj(plt.Text) if text.get_text() and text.get_visible()]
    smallest = min(text.get_fontsize() for text in texts)
    assert smallest / 72 * 360 / figure.get_figwidth() >= 8
    plt.close(figure)


def drawn(axis):
    """x and y of each line with a name, by that name."""
    named = [line for line in axis.lines if not line.get_label().startswith("_")]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in named}


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_curves_draws_the_numbers_it_is_given():
    u = torch.linspace(1, 2, 5)
    figure = figures.curves(
        {"log": (u, u.log()), "line": ([1, 2], [3, 4])},
        "u (mm)",
        "value (nats)",
        points={"log": ([1.5], [0.5]), "alone": ([1.25], [2.5])},
        levels={"level": 0.7},
        marks={"mark": 1.2},
        guides={"guide": ([1, 2], [0, 1])},
        shaded=["log"],
        x_limits=(0.5, 3.0),
        y_limits=(None, 5.0),
    )
    (axis,) = figure.axes
    lines = drawn(axis)
    assert lines["log"] == (u.tolist(), u.log().tolist())
    assert lines["line"] == ([1, 2], [3, 4])
    assert lines["alone"] == ([1.25], [2.5])
    assert lines["level"][1] == [0.7, 0.7]
    assert lines["mark"][0] == [1.2, 1.2]
    assert lines["guide"] == ([1, 2], [0, 1])
    # Markers of a line's own name have its color, and no second entry in the legend.
    line, marker = axis.lines[0], axis.lines[2]
    assert (list(marker.get_xdata()), list(marker.get_ydata())) == ([1.5], [0.5])
    assert marker.get_color() == line.get_color() != axis.lines[1].get_color()
    assert legend(axis) == ["log", "line", "alone", "level", "mark", "guide"]
    (area,) = axis.collections
    corners = area.get_paths()[0].get_extents()
    assert (corners.x0, corners.x1) == (1, 2)
    assert (corners.y0, corners.y1) == pytest.approx((0, u.log()[-1].item()))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("u (mm)", "value (nats)")
    assert axis.get_xlim() == (0.5, 3)
    assert axis.get_ylim()[1] == 5
    plt.close(figure)


@pytest.mark.parametrize("log", ["", "x", "y", "xy"])
def test_curves_has_the_scales_it_is_told(log):
    figure = figures.curves({"one": ([1, 40], [1.0, 0.1])}, "K", "gap", log=log)
    (axis,) = figure.axes
    assert axis.get_xscale() == ("log" if "x" in log else "linear")
    assert axis.get_yscale() == ("log" if "y" in log else "linear")
    assert axis.get_legend() is None  # one line needs none
    plt.close(figure)


def test_curves_writes_plain_numbers_between_two_powers_of_ten():
    figure = figures.curves({"one": ([1, 40], [0.55, 1.6])}, "K", "gap", log="y")
    figure.canvas.draw()
    (axis,) = figure.axes
    ticks = axis.yaxis.get_ticklabels(which="both")
    low, high = axis.get_ylim()
    shown = {t.get_text() for t in ticks if low <= t.get_position()[1] <= high}
    assert shown == {"0.6", "0.7", "0.8", "0.9", "1"}
    plt.close(figure)


def test_curves_puts_ticks_where_it_is_told_and_nowhere_else():
    figure = figures.curves(
        {"one": ([1, 4000], [1, 2])}, "K", "gap", log="x", x_ticks=[1, 2.5, 4000]
    )
    figure.canvas.draw()
    (axis,) = figure.axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "2.5", "4,000"]
    assert list(axis.get_xticks()) == [1, 2.5, 4000]
    assert not len(axis.get_xticks(minor=True))
    plt.close(figure)


def test_whole_numbers_get_whole_ticks():
    figure = figures.curves({"one": ([1, 2, 3], [1.0, 2.0, 3.0])}, "n", "value")
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())
    plt.close(figure)


def test_ellipses_are_lines_of_equal_density():
    mu, cov = torch.tensor([1.0, -2.0]).double(), torch.tensor([[2.0, 0.6], [0.6, 0.5]]).double()
    gaussian = torch.distributions.MultivariateNormal(mu, cov)
    figure = figures.ellipses({"p": (mu, cov), "q": (-mu, cov)}, "first", "second")
    (axis,) = figure.axes
    inner, outer, center = (torch.tensor(line.get_xydata()).double() for line in axis.lines[:3])
    assert torch.equal(center, mu[None])
    for line, below in ((inner, 0.5), (outer, 2.0)):
        depth = gaussian.log_prob(mu) - gaussian.log_prob(line)
        torch.testing.assert_close(depth, torch.full_like(depth, below))
    assert legend(axis) == ["p", "q"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("first", "second")
    assert axis.get_aspect() == 1
    plt.close(figure)


def test_contours_are_lines_of_equal_height_with_labels_inside_the_axes():
    x, y = torch.linspace(-3, 3, 61), torch.linspace(-2, 4, 81)
    surfaces = {"bowl": x.square() + y.square()[:, None], "slope": x + 2 * y[:, None]}
    figure = figures.contours(x, y, surfaces, [1, 4, 8], "x", "y")
    figure.canvas.draw()
    assert [axis.get_title() for axis in figure.axes] == ["bowl", "slope"]
    assert [axis.get_xlabel() for axis in figure.axes] == ["x", "x"]
    assert figure.axes[0].get_ylabel() == "y"
    heights = (lambda x, y: x**2 + y**2, lambda x, y: x + 2 * y)
    for axis, height in zip(figure.axes, heights, strict=True):
        (lines,) = [lines for lines in axis.collections if lines.get_visible()]
        assert list(lines.levels) == [1, 4, 8]
        for level, path in zip(lines.levels, lines.get_paths(), strict=True):
            assert height(*path.vertices.T) == pytest.approx(level, abs=0.01)
        assert {label.get_text() for label in axis.texts} == {"1", "4", "8"}
        frame = axis.get_window_extent()
        for label in axis.texts:
            box = label.get_window_extent()
            assert frame.contains(box.x0, box.y0)
            assert frame.contains(box.x1, box.y1)
            assert height(*label.get_position()) == pytest.approx(float(label.get_text()), abs=0.05)
    plt.close(figure)


def test_images_in_color_keep_their_colors_and_any_size():
    images = torch.rand(5, 3, 12, 20, generator=seeded(2))
    figure = figures.image_grid(images, columns=2)
    mosaic = np.asarray(figure.axes[0].images[0].get_array())
    assert mosaic.shape == (3 * 13 + 1, 2 * 21 + 1, 3)
    for channel in range(3):
        each = [contains(mosaic[..., channel], image) for image in images[:, channel].numpy()]
        assert each == [(1, 1), (1, 22), (14, 1), (14, 22), (27, 1)]
    plt.close(figure)


def test_a_grid_of_curves_has_its_numbers_its_titles_and_one_legend():
    content = {
        title: {"reported": ([1, 2], [k, k + 1]), "true": ([1, 2], [5, 5])}
        for k, title in enumerate("abc")
    }
    figure = figures.grid(content, "epoch", "nats", levels={"intact": 4.0}, y_limits=(0.0, 6.0))
    axes, (legend,) = figure.axes, figure.legends
    assert [axis.get_title(loc="left") for axis in axes[:3]] == ["a", "b", "c"]
    assert not axes[3].axison
    for k, axis in enumerate(axes[:3]):
        reported, true, intact = axis.lines
        np.testing.assert_array_equal(reported.get_ydata(), [k, k + 1])
        np.testing.assert_array_equal(true.get_ydata(), [5, 5])
        assert set(intact.get_ydata()) == {4.0}
        assert axis.get_legend() is None
        assert axis.get_ylim() == (0, 6)
    assert [text.get_text() for text in legend.get_texts()] == ["reported", "true", "intact"]
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("epoch", "nats")
    plt.close(figure)
