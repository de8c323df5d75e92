"""What a chapter shows beside its prose: figures, tables and claims (used in every chapter).

A sentence about a measurement is printed only where it holds: `claim` and `stated` take the
comparison along with the words. The regression tests compare sentences, since they cannot compare
pictures.
"""

import re
from collections.abc import Sequence
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, ImageChops
from torch import Tensor

from vae_book.protocol import Measurement, Protocol, cards, column_protocols, differences

DPI = 240  # at WIDTH of figures.py two pixels or more for each of a screen
NEAR = 16  # of 255 levels: two colors that are told apart only side by side
SHOWN = 560  # the width of a figure on a screen, in pixels of style sheets
_ONE = r"[-+\u2212]?[\d.,]*\d(e[-+]?\d+)?%?"
NUMBER = re.compile(rf"({_ONE}( ± {_ONE})?(( of | )\(?{_ONE}\)?)?|[-+\u2212]?inf|nan|-|)")
RANGE = re.compile(r"(?<=\d) to (?=[-+\u2212]?\d)")  # stays on one line of a narrow cell
# A hyphen before a number or a name or between spaces, and the sign of a number that is zero as
# printed; not in code and TeX.
MINUS = re.compile(r"(?<![\w./)\]}-])-(?=\.?\d|[A-Za-z])|(?<= )-(?= )")
ZERO = re.compile(r"\u2212(?=\.?0)(?=0*\.?0*(?!\.?\d))")
VERBATIM = re.compile(r"(`[^`]*`|\$[^$]*\$)")
LEFT_OUT = "*A sentence that does not hold for these data is left out here.*"


def stated(sentence: str, holds: object) -> str:
    """The sentence if it holds, else nothing: for captions, whose other words always hold."""
    return sentence if bool(holds) else ""


def claim(sentence: str, holds: object) -> None:
    """Display a sentence about a measurement if it holds, else a line that says it is left out.

    On other data, seeds and devices the numbers differ, and with them what may be said of them.

    Args:
        sentence: one sentence, which may use Markdown and formulas.
        holds: whether it does, computed from the numbers it speaks of.

    Raises:
        ValueError: the sentence is empty, longer than one line or does not end in a full stop.
    """
    from IPython.display import display  # a notebook has it; the package does not need it

    text = stated(one_sentence(sentence), holds) or LEFT_OUT
    display({"text/markdown": text, "text/plain": text}, raw=True)


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
    size = {"image/png": {"width": SHOWN}}
    display({"image/png": png(figure), "text/plain": sentence}, metadata=size, raw=True)


def one_sentence(text: str) -> str:
    """The text without space around it, with minus signs before its numbers.

    Raises:
        ValueError: it is empty, longer than one line or does not end in a full stop.
    """
    text = minus(text.strip())
    if not text.endswith(".") or "\n" in text:
        raise ValueError(f"sentence: expected one line that ends in a full stop, got {text!r}")
    return text


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, its text with minus signs; the figure itself is closed.

    Lines, text and gray images get along with 256 colors, in a file a third of the size. Pictures
    in color may not: their colors stay.
    """
    for text in figure.findobj(Text):
        text.set_text(minus(text.get_text()))
    figure.set_dpi(DPI)
    drawn = FigureCanvasAgg(figure)  # once: to save a figure would draw it twice
    drawn.draw()
    plt.close(figure)
    image = Image.fromarray(np.asarray(drawn.buffer_rgba())).convert("RGB")
    few = image.quantize(256, dither=Image.Dither.NONE)
    off = ImageChops.difference(image, few.convert("RGB"))
    strange = (np.asarray(off) > NEAR).any(-1).mean()  # at the edges of lines and letters
    picture = BytesIO()
    (few if strange < 1e-3 else image).save(picture, "png", optimize=True)
    return picture.getvalue()


def minus(text: str) -> str:
    """The text with minus signs before numbers and names and between spaces, none before a zero.

    What stands between backticks or dollars stays as it is.
    """
    parts = VERBATIM.split(text)
    parts[::2] = [ZERO.sub("", MINUS.sub("\u2212", part)) for part in parts[::2]]
    return "".join(parts)


def show_table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    protocol: Protocol | None = None,
    decimals: int | Sequence[int] = 2,
) -> None:
    """Display a table in a notebook.

    The first column names the rows. Of the others those of numbers stand on the right, so that
    digits are below digits, and those of words on the left. A cell may be a `Measurement`, which
    gets its standard error, and in brackets its spread over seeds; under the table stands the
    protocol of each column of them, on a card that says nothing of the machine.

    Args:
        header: the names of the columns.
        rows: the cells.
        protocol: of all numbers in the table, where they are plain ones.
        decimals: of numbers that are not whole, for all columns or for each.

    Raises:
        ValueError: a row has not as many cells as the header, or ``decimals`` not as many numbers,
            or the measurements in a column do not compare with each other or with ``protocol``.
    """
    from IPython.display import display

    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"rows: expected {len(header)} cells in each, got {len(row)}")
    if not isinstance(decimals, int) and len(decimals) != len(header):
        raise ValueError(f"decimals: expected 1 or {len(header)} numbers, got {len(decimals)}")
    protocols = column_protocols(header, rows)
    for each in protocols:
        if protocol and (differing := differences(protocol, each)):
            raise ValueError(f"protocol: expected that of the measurements, got {differing}")
    lines = cards([protocol] if protocol else protocols)
    text = "\n\n".join([table(header, rows, decimals), *map(minus, lines)])
    display({"text/markdown": text, "text/plain": text}, raw=True)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    decimals: int | Sequence[int] = 2,
) -> str:
    """The table of `show_table` in Markdown."""
    digits = [decimals] * len(header) if isinstance(decimals, int) else decimals
    lines = [list(map(_cell, row, digits)) for row in rows]
    columns = list(zip(*lines, strict=True)) or [()] * len(header)
    rule = ["---", *["--:" if all(map(NUMBER.fullmatch, each)) else "---" for each in columns[1:]]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [map(minus, header), rule, *lines])


def _cell(value: object, decimals: int) -> str:
    if isinstance(value, float | Tensor):
        return minus(f"{value:.{decimals}f}")
    if isinstance(value, Measurement):
        spread = value.spread_over_seeds
        parts = [f"{each:.{decimals}f}" for each in (value.value, value.standard_error)]
        return minus(" ± ".join(parts) + (f" ({spread:.{decimals}f})" if spread else ""))
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return minus(RANGE.sub("\u00a0to\u00a0", text))
