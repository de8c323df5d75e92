"""How the chapters' printed output is compared with what is stored in them.

Trained numbers differ in their last digits between processors, so text has to match exactly but
decimal numbers only nearly:

- by default to a relative tolerance of 1e-4, or one unit in the last printed digit;
- in a cell tagged ``trained`` to a relative tolerance of 5e-3, or two units in the last digit.

Integers are text: they match exactly. CONTRIBUTING.md says how the tolerances were chosen. Pictures
that a cell displays as HTML are not compared, as little as all others are.
"""

import re

from nbval.plugin import IPyNbCell

PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]*")
DECIMAL = re.compile(r"[-+\u2212]?\d+\.(\d+)(?:[eE]([-+]?\d+))?")


class Printed(str):
    """Printed text that equals another if its words do and its decimal numbers nearly do."""

    relative_tolerance = 1e-4
    last_digits = 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str) or _words(self) != _words(other):
            return False
        pairs = zip(DECIMAL.finditer(self), DECIMAL.finditer(other), strict=True)
        return all(self._near(mine, theirs) for mine, theirs in pairs)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def _near(self, mine: re.Match, theirs: re.Match) -> bool:
        a, b = (float(number[0].replace("\u2212", "-")) for number in (mine, theirs))
        last_digit = 10.0 ** (int(mine[2] or 0) - len(mine[1]))
        # The factor allows for the rounding of the difference itself.
        slack = max(self.relative_tolerance * abs(a), self.last_digits * last_digit) * (1 + 1e-9)
        return abs(a - b) <= slack


class Trained(Printed):
    """The same for numbers that come out of training."""

    relative_tolerance = 5e-3
    last_digits = 2


def _words(text: str) -> str:
    """The text with decimal numbers cut to how many digits they show; pictures and spaces gone."""
    text = PICTURE.sub("", text).replace("\u2212", "-")
    return " ".join(DECIMAL.sub(lambda number: f" #.{len(number[1])} ", text).split())


def compare_nearly() -> None:
    """Have nbval compare like this."""
    sanitize = IPyNbCell.sanitize

    def sanitize_and_wrap(cell: IPyNbCell, value: object) -> object:
        value = sanitize(cell, value)
        if not isinstance(value, str):
            return value
        return (Trained if "trained" in cell.cell.metadata.get("tags", []) else Printed)(value)

    IPyNbCell.sanitize = sanitize_and_wrap
