"""What a number was measured on and how (chapter 8); numbers of different protocol do not compare.

A `Protocol` stands beside every number that is kept, and as a card under a table of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """What a number was measured on and how.

    Attributes:
        quantity: what was measured, such as ``ELBO``.
        source, split, n_images: the data.
        pixels: ``grayscale``, ``color`` or ``binary``.
        seed: of the noise.
        device: where it ran.
        K: draws of z for each image.
        binarization: how binary pixels came from gray levels in the test and in training, and with
            which seed.
        seeds: of the training runs that were averaged.
        standard_error: what it is taken over, such as ``images``.
        epochs: of training.
        minutes: of training, all runs together.
    """

    quantity: str
    source: str
    split: str
    n_images: int
    pixels: str
    seed: int
    device: str
    K: int | None = None
    binarization: str | None = None
    seeds: tuple[int, ...] | None = None
    standard_error: str | None = None
    epochs: int | None = None
    minutes: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """What is known, as plain numbers, strings and lists, for JSON."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return found | ({"seeds": list(self.seeds)} if self.seeds else {})

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Protocol":
        """The protocol that `as_dict` wrote."""
        return cls(**stored | ({"seeds": tuple(stored["seeds"])} if "seeds" in stored else {}))

    @property
    def comparable(self) -> tuple:
        """What two numbers have to share to stand in one column: what was measured, on what, how.

        Models, epochs, seeds, machines and minutes may differ: a table is there to compare them.
        """
        data = (self.source, self.split, self.n_images, self.pixels, self.binarization)
        return (self.quantity, self.K, *data)

    def card(self, *, machine: bool = False) -> str:
        """One line for the reader.

        Args:
            machine: say where it ran and how long training took as well, which differ from machine
                to machine.
        """
        return _card([self.measured], self.conditions(machine=machine))

    @property
    def measured(self) -> str:
        """The first part of the card: the quantity and its draws."""
        draws = "" if self.K is None else f", {_count(self.K, 'draw')} of z for each image"
        return f"{self.quantity}{draws}"

    def conditions(self, *, machine: bool = False) -> str:
        """The rest of the card: on which data, with which seeds, over what the error is taken."""
        parts = [f"{self.source} {self.split}, {self.n_images:,} images, {self.pixels} pixels"]
        parts += [f"binarization: {self.binarization}"] * bool(self.binarization)
        if self.epochs is not None:
            parts.append(f"{_count(self.epochs, 'epoch')} of training")
        seeds = ", ".join(map(str, self.seeds or ()))
        training = f" of training {seeds}" if seeds else ""
        parts.append(f"seed {self.seed}" if not seeds else f"seeds{training}, of noise {self.seed}")
        parts += [f"standard error over {self.standard_error}"] * bool(self.standard_error)
        if machine:
            minutes = "" if self.minutes is None else f", {self.minutes:.1f} minutes of training"
            parts.append(f"{self.device}{minutes}")
        return "; ".join(parts)


def cards(protocols: Sequence[Protocol]) -> list[str]:
    """The cards of a table: one for all quantities that were measured under the same conditions."""
    found: dict[str, dict[str, None]] = {}
    for each in protocols:
        found.setdefault(each.conditions(), {})[each.measured] = None
    return [_card(quantities, conditions) for conditions, quantities in found.items()]


def _card(quantities: Iterable[str], conditions: str) -> str:
    return f"*Protocol: {'; '.join([*quantities, conditions])}.*"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


@dataclass(frozen=True)
class Measurement:
    """A number in nats, averaged over images.

    Attributes:
        value: the average.
        standard_error: of ``value`` as an estimate for images like these.
        protocol: how it was measured.
        spread_over_seeds: the standard deviation over training runs, where there are several.
    """

    value: float
    standard_error: float
    protocol: Protocol
    spread_over_seeds: float | None = field(default=None, kw_only=True)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        plain = {name: each for name, each in vars(self).items() if isinstance(each, float)}
        return {**plain, "protocol": self.protocol.as_dict()}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Measurement":
        """The measurement that `as_dict` wrote."""
        return cls(**stored | {"protocol": Protocol.from_dict(stored["protocol"])})


def column_protocols(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[Protocol]:
    """The protocols of a table's measurements, one for each column that has any.

    What the rows of a column do not share, such as the epochs, is left out of its protocol.

    Args:
        header: the names of the columns.
        rows: the cells; those that are a `Measurement` are compared.

    Raises:
        ValueError: two measurements in one column differ in what was measured, on what or how.
    """
    found = []
    for name, cells in zip(header, zip(*rows, strict=True), strict=False):
        protocols = [each.protocol for each in cells if isinstance(each, Measurement)]
        for other in protocols[1:]:
            if differing := differences(protocols[0], other):
                raise ValueError(
                    f"rows: expected one protocol in the column {name!r}, got {differing}; numbers "
                    "that do not compare need a column each"
                )
        found += [shared(protocols)] if protocols else []
    return found


def differences(one: Protocol, other: Protocol) -> str:
    """In what two protocols do not compare, in words; empty if they do."""
    names = ("quantity", "K", "source", "split", "n_images", "pixels", "binarization")
    pairs = zip(names, one.comparable, other.comparable, strict=True)
    return "; ".join(f"{name} {a!r} and {b!r}" for name, a, b in pairs if a != b)


def shared(protocols: Sequence[Protocol]) -> Protocol:
    """What protocols that compare have in common; the rest of what may be unknown is left out."""
    first = protocols[0]
    optional = ("seeds", "standard_error", "epochs", "minutes")
    lost: dict[str, Any] = {
        name: None
        for name in optional
        if any(getattr(each, name) != getattr(first, name) for each in protocols)
    }
    return replace(first, **lost)
