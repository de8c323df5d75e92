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
