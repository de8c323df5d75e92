"""Figures draw the numbers they are given, and show states what they show."""

from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from vae_book import figures
from vae_book.device import seeded
from vae_book.training import History


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    return shown


def some_images(n):
    return torch.rand(n, 1, 28, 28, generator=seeded(1))


def test_show_gives_the_picture_and_the_sentence_and_closes_the_figure(displayed):
    figure = figures.image_grid(some_images(10))
    figures.show(figure, "Ten images of noise. ")
    picture = Image.open(BytesIO(displayed[0]["image/png"]))
    assert picture.size[0] == figures.WIDTH * figures.DPI
    assert displayed[0]["text/plain"] == "Ten images of noise."
    assert not plt.fignum_exists(figure.number)


@pytest.mark.parametrize("sentence", ["", "no full stop", "two\nlines."])
def test_show_wants_a_sentence(displayed, sentence):
    with pytest.raises(ValueError, match="sentence: expected one line"):
        figures.show(figures.vae_diagram(), sentence)
    assert not displayed
    plt.close("all")


def test_the_same_figure_is_the_same_picture(displayed):
    for _ in range(2):
        figures.show(figures.image_grid(some_images(3)), "Noise.")
    assert displayed[0]["image/png"] == displayed[1]["image/png"]


def test_show_table_rounds_and_refuses_rows_that_do_not_fit(displayed):
    figures.show_table(["name", "value"], [["a", 1.005001], ["b", torch.tensor(2.5)], ["c", 4500]])
    lines = displayed[0]["text/plain"].splitlines()
    assert lines == [
        "| name | value |",
        "| --- | --: |",
        "| a | 1.01 |",
        "| b | 2.50 |",
        "| c | 4,500 |",
    ]
    assert displayed[0]["text/markdown"] == displayed[0]["text/plain"]
    with pytest.raises(ValueError, match="rows: expected 2 cells"):
        figures.show_table(["name", "value"], [["a"]])


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


def test_loss_terms_draws_the_history():
    history = History(
        reconstruction=[200.0, 120.0, 90.0], kl=[5.0, 15.0, 25.0], held_out=[210.0, 140.0, 118.0]
    )
    figure = figures.loss_terms(history)
    upper, lower = figure.axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in upper.lines}
    assert drawn["negative ELBO, training"] == [205.0, 135.0, 115.0]
    assert drawn["negative ELBO, held out"] == history.held_out
    assert drawn["reconstruction, training"] == history.reconstruction
    assert list(lower.lines[0].get_ydata()) == history.kl
    assert list(lower.lines[0].get_xdata()) == [1, 2, 3]
    assert "nats" in upper.get_ylabel()
    assert "nats" in lower.get_ylabel()
    plt.close(figure)


def test_posterior_draws_means_with_standard_deviations():
    mu, variance = torch.tensor([0.5, -2.0, 0.0]), torch.tensor([0.04, 0.25, 1.0])
    figure = figures.posterior(some_images(1)[0], mu, variance.log())
    points, _, (bars,) = figure.axes[1].containers[0]
    assert points.get_ydata() == pytest.approx(mu.numpy())
    halves = [(segment[1, 1] - segment[0, 1]) / 2 for segment in bars.get_segments()]
    assert halves == pytest.approx([0.2, 0.5, 1.0], rel=1e-5)
    plt.close(figure)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.vae_diagram(),
        lambda: figures.loss_terms(History([9.0, 8.0], [1.0, 2.0])),
        lambda: figures.posterior(some_images(1)[0], torch.zeros(20), torch.zeros(20)),
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


def test_curves_puts_ticks_where_it_is_told_and_nowhere_else():
    figure = figures.curves({"one": ([1, 40], [1, 2])}, "K", "gap", log="x", x_ticks=[1, 2.5, 40])
    figure.canvas.draw()
    (axis,) = figure.axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "2.5", "40"]
    assert list(axis.get_xticks()) == [1, 2.5, 40]
    assert not len(axis.get_xticks(minor=True))
    plt.close(figure)


def test_whole_numbers_get_whole_ticks():
    figure = figures.curves({"one": ([1, 2, 3], [1.0, 2.0, 3.0])}, "n", "value")
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())
    plt.close(figure)


def test_gaps_hang_from_the_ceiling():
    figure = figures.gaps({"near": -1.25, "far": -3.0}, -1.0, "q")
    (axis,) = figure.axes
    assert drawn(axis)["log p(x)"][1] == [-1, -1]
    assert drawn(axis)["bound"] == ([0, 1], [-1.25, -3])
    ends = [segment[:, 1].tolist() for segment in axis.collections[0].get_segments()]
    assert ends == [[-1.25, -1], [-3, -1]]
    assert [text.get_text() for text in axis.texts] == ["gap 0.25", "gap 2.00"]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["near", "far"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("q", "nats")
    assert legend(axis) == ["log p(x)", "bound"]
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


def test_areas_are_the_joint_probabilities():
    prior = {"rain": 0.25, "dry": 0.75}
    likelihood = {"rain": {"wet": 0.9, "not": 0.1}, "dry": {"wet": 0.2, "not": 0.8}}
    figure = figures.areas(prior, likelihood)
    (axis,) = figure.axes
    boxes = [box.get_bbox() for box in axis.patches]
    joint = [prior[z] * p for z, effects in likelihood.items() for p in effects.values()]
    assert [box.width * box.height for box in boxes] == pytest.approx(joint)
    assert [box.x0 for box in boxes] == pytest.approx([0, 0, 0.25, 0.25])
    assert [box.y0 for box in boxes] == pytest.approx([0, 0.9, 0, 0.2])
    for text, box, area in zip(axis.texts, boxes, joint, strict=True):
        assert text.get_text().endswith(f"= {area:.2f}")
        assert box.contains(*text.get_position())
    labels = [tick.get_text() for tick in axis.get_xticklabels()]
    assert labels == ["rain, 0.25", "dry, 0.75"]
    assert axis.get_xlim() == axis.get_ylim() == (0, 1)
    plt.close(figure)


def test_beliefs_stand_beside_the_rows_that_are_seen():
    images, beliefs = some_images(2), torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]])
    figure = figures.beliefs(images, [7, 28], beliefs)
    pairs = np.array(figure.axes).reshape(2, 2)
    for (left, right), image, rows, belief in zip(pairs, images, [7, 28], beliefs, strict=True):
        assert contains(np.asarray(left.images[0].get_array()), image[0].double().numpy())
        (cover,) = left.patches
        assert cover.get_y() - 0.5 == rows  # below the line around the image
        assert cover.get_height() == 28 - rows + 0.5
        assert left.get_title() == f"{rows} rows seen"
        assert [bar.get_height() for bar in right.patches] == belief.tolist()
        assert right.get_ylabel() == "p(z | x)"
        assert right.get_ylim() == (0, 1)
    assert right.get_xlabel() == "class z"
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


def test_a_trade_off_names_its_points_and_draws_the_line_of_equal_sums():
    curve = {"low": (1.0, 9.0), "middle": (3.0, 5.0), "high": (7.0, 4.0)}
    figure = figures.trade_off(curve, {"other": (4.0, 7.0)}, "middle", "x", "y")
    (axis,) = figure.axes
    line, other, equal = axis.lines
    np.testing.assert_array_equal(line.get_xydata(), list(curve.values()))
    np.testing.assert_array_equal(other.get_xydata(), [(4, 7)])
    assert {text.get_text(): tuple(text.xy) for text in axis.texts} == {
        **curve,
        "other": (4.0, 7.0),
    }
    assert (equal.get_slope(), equal.get_xy1(), equal.get_label()) == (-1, (3, 5), "sum 8")
    inside = axis.viewLim
    assert all(inside.contains(*point) for point in curve.values())
    plt.close(figure)


def test_clouds_lie_over_the_circles_of_the_prior():
    clouds = {name: torch.randn(20, 2, generator=seeded(k)) for k, name in enumerate("ab")}
    figure = figures.clouds(clouds, 4.0, "z1", "z2")
    for axis, (name, cloud) in zip(figure.axes, clouds.items(), strict=True):
        np.testing.assert_allclose(axis.lines[0].get_xydata(), cloud)
        assert [circle.radius for circle in axis.patches] == [1, 2, 3]
        assert axis.get_xlim() == axis.get_ylim() == (-4, 4)
        assert (axis.get_title(), axis.get_xlabel()) == (name, "z1")
    assert figure.axes[0].get_ylabel() == "z2"
    plt.close(figure)
