"""What a chapter displays: a picture with its sentence, tables, claims that hold."""

from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from vae_book import diagrams, display, figures
from vae_book.device import seeded
from vae_book.toy_images import draw_shapes


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append(data))
    return shown


def some_images(n):
    return torch.rand(n, 1, 28, 28, generator=seeded(1))


def test_show_gives_the_picture_and_the_sentence_and_closes_the_figure(displayed):
    figure = figures.image_grid(some_images(10))
    display.show(figure, "Ten images of noise. ")
    picture = Image.open(BytesIO(displayed[0]["image/png"]))
    assert picture.size[0] == figures.WIDTH * display.DPI
    assert displayed[0]["text/plain"] == "Ten images of noise."
    assert not plt.fignum_exists(figure.number)


def test_a_drawing_gets_along_with_few_colors_and_a_photograph_does_not():
    drawing = figures.curves({"a": ([0, 1], [1, 0])}, "x", "y")
    assert Image.open(BytesIO(display.png(drawing))).mode == "P"
    photograph = figures.image_grid(torch.rand(1, 3, 200, 200, generator=seeded(1)), 1)
    assert Image.open(BytesIO(display.png(photograph))).mode == "RGB"


def test_pictures_in_color_keep_their_colors():
    """Each shape's own color is found, to the last level, where it stands."""
    shapes = draw_shapes(10).images
    picture = Image.open(BytesIO(display.png(figures.image_rows({"shapes": shapes}))))
    shown = np.asarray(picture.convert("RGB"))
    wanted = (255 * shapes).round().byte().flatten(2).transpose(1, 2).flatten(0, 1).numpy()
    missing = set(map(tuple, wanted)) - set(map(tuple, shown.reshape(-1, 3)))
    assert not missing


def test_few_colors_leave_a_picture_as_it_was():
    """Black, white and the grays of digits are exact; edges of letters may be a shade off."""
    content = figures.image_grid(torch.arange(256.0).view(1, 1, 16, 16) / 255)
    drawn = BytesIO()
    content.savefig(drawn, format="png", dpi=display.DPI)
    before = np.asarray(Image.open(drawn).convert("L"))
    after = np.asarray(Image.open(BytesIO(display.png(content))).convert("L"))
    assert np.array_equal(before, after)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1.5 nats, from -0.25 to -3", "−1.5 nats, from −0.25 to −3"),
        ("(-.5) and -inf", "(−.5) and −inf"),
        ("-0.00 ± 0.01, -0, -0.000.", "0.00 ± 0.01, 0, 0.000."),
        ("-0.001", "−0.001"),
        ("-log p, (-ELBO), a well-known x - y", "−log p, (−ELBO), a well-known x − y"),
        ("../-a/b-c, `--lr`", "../-a/b-c, `--lr`"),
        ("784-400-20, 1e-4, x-1, 2026-11-21, - a", "784-400-20, 1e-4, x-1, 2026-11-21, − a"),
        ("- an item", "- an item"),
        ("`x[-1]` and $-1$, -1", "`x[-1]` and $-1$, −1"),
    ],
)
def test_numbers_and_names_have_minus_signs_and_zeros_have_none(text, expected):
    assert display.minus(text) == expected
    assert display.minus(expected) == expected


def test_signs_in_tables_and_sentences_are_minus_signs(displayed):
    display.show_table(["x", "-y"], [["a", -1.0], ["b", "-0.00"], ["c", -1234]])
    display.claim("It is -1.", True)
    table, sentence = (data["text/markdown"] for data in displayed)
    assert table.splitlines() == [
        "| x | −y |",
        "| --- | --: |",
        "| a | −1.00 |",
        "| b | 0.00 |",
        "| c | −1,234 |",
    ]
    assert sentence == "It is −1."


def test_a_range_in_a_cell_does_not_break(displayed):
    """In a narrow column it would stand on three lines."""
    display.show_table(["x", "from"], [["a to 2", "-1.5 to -0.5"], ["b", "113.3 (3 to 4)"]])
    rows = displayed[0]["text/markdown"].splitlines()[2:]
    assert rows == ["| a to 2 | −1.5\u00a0to\u00a0−0.5 |", "| b | 113.3 (3\u00a0to\u00a04) |"]


def test_signs_in_figures_are_minus_signs():
    lines = dict.fromkeys(["x - 1", "y"], ([1, 2], [1, 2]))
    figure = figures.curves(lines, "-x", "well-known $10^{-1}$")
    display.png(figure)
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("−x", "well-known $10^{-1}$")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["x − 1", "y"]


@pytest.mark.parametrize("sentence", ["", "no full stop", "two\nlines."])
def test_show_wants_a_sentence(displayed, sentence):
    with pytest.raises(ValueError, match="sentence: expected one line"):
        display.show(diagrams.vae_diagram(), sentence)
    assert not displayed
    plt.close("all")


def test_the_same_figure_is_the_same_picture(displayed):
    for _ in range(2):
        display.show(figures.image_grid(some_images(3)), "Noise.")
    assert displayed[0]["image/png"] == displayed[1]["image/png"]


def test_columns_of_numbers_stand_on_the_right_and_columns_of_words_on_the_left(displayed):
    numbers = ["-1.50", "2,000", "3.1 ± 0.2", "12%", "1e-05", "2 of 3", "0.2 (0.3)"]
    words = ["2 or 3", "784-400-20", "none", "1.5 nats", "-0.", "1", "2"]
    rows = [list(row) for row in zip("abcdefg", numbers, words, strict=True)]
    display.show_table(["name", "number", "words"], rows)
    assert displayed[0]["text/markdown"].splitlines()[1] == "| --- | --: | --- |"


def test_show_table_rounds_and_refuses_rows_that_do_not_fit(displayed):
    display.show_table(["name", "value"], [["a", 1.005001], ["b", torch.tensor(2.5)], ["c", 4500]])
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
        display.show_table(["name", "value"], [["a"]])


def test_each_column_may_have_digits_of_its_own(displayed):
    row = [1.25, 2.0625, torch.tensor(3.0)]
    display.show_table(["a", "b", "c"], [row], decimals=(0, 3, 1))
    assert displayed[0]["text/plain"].splitlines()[-1] == "| 1 | 2.062 | 3.0 |"
    with pytest.raises(ValueError, match="decimals: expected 1 or 3 numbers, got 2"):
        display.show_table(["a", "b", "c"], [row], decimals=(0, 3))


def test_a_claim_is_shown_where_it_holds_and_left_out_visibly_elsewhere(displayed):
    for holds in (2 > 1, torch.tensor(2.0) > 1, torch.tensor(0.0) > 1):
        display.claim("Two is more than **one**.", holds)
    texts = [each["text/plain"] for each in displayed]
    assert texts == ["Two is more than **one**."] * 2 + [display.LEFT_OUT]
    assert [each["text/markdown"] for each in displayed] == texts


def test_a_claim_is_one_sentence_and_has_one_answer(displayed):
    with pytest.raises(ValueError, match="sentence: expected one line"):
        display.claim("no full stop", True)
    with pytest.raises(RuntimeError, match="ambiguous"):
        display.claim("It holds twice.", torch.tensor([True, False]))
    assert not displayed


def test_words_of_a_caption_are_stated_where_they_hold():
    assert display.stated("It falls.", 1 < 2) == "It falls."
    assert display.stated("It falls.", 2 < 1) == ""
