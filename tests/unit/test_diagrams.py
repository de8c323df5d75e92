"""Figures of single chapters draw the numbers they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from vae_book import diagrams
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


def test_loss_terms_draws_the_history():
    history = History(
        reconstruction=[200.0, 120.0, 90.0], kl=[5.0, 15.0, 25.0], held_out=[210.0, 140.0, 118.0]
    )
    figure = diagrams.loss_terms(history)
    upper, lower = figure.axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in upper.lines}
    assert drawn["negative ELBO, training"] == [205.0, 135.0, 115.0]
    assert drawn["negative ELBO, held out"] == history.held_out
    assert drawn["reconstruction term, training"] == history.reconstruction
    assert list(lower.lines[0].get_ydata()) == history.kl
    assert list(lower.lines[0].get_xdata()) == [1, 2, 3]
    assert "nats" in upper.get_ylabel()
    assert "nats" in lower.get_ylabel()
    plt.close(figure)


def test_posterior_draws_means_with_standard_deviations():
    mu, variance = torch.tensor([0.5, -2.0, 0.0]), torch.tensor([0.04, 0.25, 1.0])
    figure = diagrams.posterior(some_images(1)[0], mu, variance.log())
    points, _, (bars,) = figure.axes[1].containers[0]
    assert points.get_ydata() == pytest.approx(mu.numpy())
    halves = [(segment[1, 1] - segment[0, 1]) / 2 for segment in bars.get_segments()]
    assert halves == pytest.approx([0.2, 0.5, 1.0], rel=1e-5)
    plt.close(figure)


def drawn(axis):
    """x and y of each line with a name, by that name."""
    named = [line for line in axis.lines if not line.get_label().startswith("_")]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in named}


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_gaps_hang_from_the_ceiling():
    figure = diagrams.gaps({"near": -1.25, "far": -3.0}, -1.0, "q")
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


def test_accounts_are_bars_with_their_errors():
    lines = {
        "gap": {"one": (2.0, 0.1), "two": (3.0, 0.2)},
        "KL": {"one": (5.0, 0.3), "two": (4, 0)},
    }
    figure = diagrams.accounts(lines, "nats")
    (axis,) = figure.axes
    bars = [(round(bar.get_y() + bar.get_height() / 2, 6), bar.get_width()) for bar in axis.patches]
    assert bars == [(-0.2, 2.0), (0.8, 5.0), (0.2, 3.0), (1.2, 4.0)]
    spans = [part.get_segments() for part in axis.collections]
    ends = [[segment[:, 0].tolist() for segment in each] for each in spans]
    assert ends[0] == [pytest.approx([1.9, 2.1]), pytest.approx([4.7, 5.3])]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["gap", "KL"]
    assert axis.get_xlabel() == "nats"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    plt.close(figure)


def test_areas_are_the_joint_probabilities():
    prior = {"rain": 0.25, "dry": 0.75}
    likelihood = {"rain": {"wet": 0.9, "not": 0.1}, "dry": {"wet": 0.2, "not": 0.8}}
    figure = diagrams.areas(prior, likelihood)
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
    figure = diagrams.beliefs(images, [7, 28], beliefs)
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


def test_a_trade_off_names_its_points_and_draws_the_line_of_equal_sums():
    curve = {"low": (1.0, 9.0), "middle": (3.0, 5.0), "high": (7.0, 4.0)}
    figure = diagrams.trade_off(curve, {"other": (4.0, 7.0)}, "middle", "x", "y")
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


def test_the_feasible_region_lies_above_the_line_of_the_entropy():
    models = {"one": {"a": (0.0, 6.0), "b": (3.0, 3.0)}, "two": {"c": (2.0, 7.0)}}
    figure = diagrams.feasible_region(models, 5.0)
    (axis,) = figure.axes
    *families, border = axis.lines
    for line, (name, points) in zip(families, models.items(), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), list(points.values()))
        assert line.get_label() == name
        assert all(axis.viewLim.contains(*point) for point in points.values())
    assert (border.get_xydata().sum(1) == 5).all()
    (shade,) = axis.collections
    (area,) = shade.get_paths()
    assert area.contains_point((2.4, 2.5))
    assert not area.contains_point((2.6, 2.5))
    assert {text.get_text() for text in axis.texts} == {"a", "b", "c", "no model"}
    plt.close(figure)


def test_clouds_lie_over_the_circles_of_the_prior():
    clouds = {name: torch.randn(20, 2, generator=seeded(k)) for k, name in enumerate("ab")}
    figure = diagrams.clouds(clouds, 4.0, "z1", "z2")
    for axis, (name, cloud) in zip(figure.axes, clouds.items(), strict=True):
        np.testing.assert_allclose(axis.lines[0].get_xydata(), cloud)
        assert [circle.radius for circle in axis.patches] == [1, 2, 3]
        assert axis.get_xlim() == axis.get_ylim() == (-4, 4)
        assert (axis.get_title(), axis.get_xlabel()) == (name, "z1")
    assert figure.axes[0].get_ylabel() == "z2"
    plt.close(figure)


def test_a_graphical_model_shades_what_is_observed_and_points_to_it():
    figure = diagrams.graphical_model()
    (axis,) = figure.axes
    nodes = {text.get_text(): text for text in axis.texts if text.get_bbox_patch()}
    assert set(nodes) == {"$z$", "$x$"}
    shades = {name: node.get_bbox_patch().get_facecolor() for name, node in nodes.items()}
    assert shades["$z$"] == (1, 1, 1, 1)
    assert shades["$x$"] != shades["$z$"]
    (arrow,) = [text for text in axis.texts if getattr(text, "arrow_patch", None)]
    tail, head = arrow.xyann[0], arrow.xy[0]
    z, x = nodes["$z$"].get_position()[0], nodes["$x$"].get_position()[0]
    assert z < tail < head < x
    plt.close(figure)


def test_the_encoder_leads_from_x_to_z_and_the_decoder_back():
    figure = diagrams.encoder_and_decoder()
    (axis,) = figure.axes
    places = {text.get_text(): text.get_position() for text in axis.texts}
    arrows = [text for text in axis.texts if getattr(text, "arrow_patch", None)]
    ends = {(arrow.xyann, arrow.xy): arrow.arrow_patch.get_linestyle() for arrow in arrows}
    z, x = places["$z^{(i)}$"], places["$x^{(i)}$"]
    assert ends == {
        (x, z): "--",  # the encoder
        (z, x): "-",  # the decoder
        (places["$\\phi$"], z): "--",
        (places["$\\theta$"], x): "-",
    }
    (plate,) = axis.patches
    inside = plate.get_bbox()
    assert [inside.contains(*place) for place in (z, x)] == [True, True]
    assert not any(inside.contains(*places[name]) for name in ("$\\phi$", "$\\theta$"))
    shades = {text.get_text(): text.get_bbox_patch() for text in axis.texts}
    assert shades["$z^{(i)}$"].get_facecolor() == (1, 1, 1, 1)
    assert shades["$x^{(i)}$"].get_facecolor() != (1, 1, 1, 1)
    plt.close(figure)
