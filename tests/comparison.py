"""How the chapters' printed output is compared with what is stored in them.

Trained numbers differ between processors, which add in different orders: training lets roundings
grow. So text has to match exactly but numbers only nearly:

- by default decimal numbers to a relative tolerance of 1e-4, or one unit in the last printed digit;
- in a cell tagged ``trained`` numbers with decimals or a unit, as in "31 nats" and "96%", to a
  relative tolerance of 1e-2, or five units in the last digit; a number that has a standard error,
  as in "4.8 ± 0.5", to that error, and the error to a quarter of itself.

Other integers are text: they match exactly. CONTRIBUTING.md says how the tolerances were chosen.
Pictures that a cell displays as HTML are not compared, as little as all others are.
"""

import re

from nbval.plugin import IPyNbCell

PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]*")
DECIMAL = re.compile(r"[-+]?\d+\.(\d+)(?:[eE]([-+]?\d+))?")
MEASURED = re.compile(DECIMAL.pattern + r"|[-+]?\d+(?= ?%| nats| bits)")
ERROR = re.compile(r" ± (\d+(?:\.\d+)?)")


class Printed(str):
    """Printed text that equals another if its words do and its decimal numbers nearly do."""

    number = DECIMAL
    relative_tolerance = 1e-4
    last_digits = 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return False
        mine, theirs = _plain(self), _plain(other)
        if self._words(mine) != self._words(theirs):
            return False
        pairs = zip(self.number.finditer(mine), self.number.finditer(theirs), strict=True)
        # The factor allows for the rounding of the difference itself.
        return all(abs(float(a[0]) - float(b[0])) <= self._slack(a) * (1 + 1e-9) for a, b in pairs)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def _words(self, text: str) -> str:
        """The text with numbers cut to how many digits they show behind the point."""
        text = self.number.sub(lambda number: f" #.{len(number[1] or '')} ", text)
        return " ".join(text.split())

    def _slack(self, number: re.Match) -> float:
        """How far from this number the other may be."""
        last_digit = 10.0 ** (int(number[2] or 0) - len(number[1] or ""))
        return max(self.relative_tolerance * abs(float(number[0])), self.last_digits * last_digit)


class Trained(Printed):
    """The same for numbers that come out of training."""

    number = MEASURED
    relative_tolerance = 1e-2
    last_digits = 5

    def _slack(self, number: re.Match) -> float:
        error = ERROR.match(number.string, number.end())
        of_error = float(error[1]) if error else 0.0
        if number.string.endswith("± ", 0, number.start()):
            of_error = float(number[0]) / 4
        return max(super()._slack(number), of_error)


def _plain(text: str) -> str:
    """The text without pictures, and with the signs of plain numbers."""
    return PICTURE.sub("", text).replace("\u2212", "-")


def compare_nearly() -> None:
    """Have nbval compare like this."""
    sanitize = IPyNbCell.sanitize

    def sanitize_and_wrap(cell: IPyNbCell, value: object) -> object:
        value = sanitize(cell, value)
        if not isinstance(value, str):
            return value
        return (Trained if "trained" in cell.cell.metadata.get("tags", []) else Printed)(value)

    IPyNbCell.sanitize = sanitize_and_wrap
