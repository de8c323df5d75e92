"""What a training run measured, epoch by epoch, in memory and as JSON (chapter 8)."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vae_book.files import replacing


@dataclass
class History:
    """What `vae_book.training.fit` measured, one entry for each epoch, in nats for one image.

    Attributes:
        reconstruction: -E_q[log p(x | z)] on the training images, averaged while they were used.
        kl: KL(q(z | x) || p(z)), likewise.
        loss: what was minimized, likewise; with another objective than the negative ELBO it
            differs from that.
        held_out: the negative ELBO of the held-out images after the epoch; empty without them.
        seconds: how long the epoch's training took.
        device: where it ran.
    """

    reconstruction: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    device: str = ""

    @property
    def negative_elbo(self) -> list[float]:
        """That of the training images, by epoch: reconstruction + KL, whatever was minimized."""
        return [a + b for a, b in zip(self.reconstruction, self.kl, strict=True)]

    @property
    def epochs(self) -> int:
        """How many epochs have been trained."""
        return len(self.kl)

    def rows(self) -> list[tuple[float, ...]]:
        """A row an epoch: its number, reconstruction, KL, negative ELBO and, if any, held_out."""
        columns = [self.reconstruction, self.kl, self.negative_elbo]
        columns += [self.held_out] if self.held_out else []
        return list(zip(range(1, self.epochs + 1), *columns, strict=True))

    def save(self, path: Path | str) -> None:
        """Write the history as JSON.

        Raises:
            ValueError: `load` would not read it.
            WriteError: the disk is full, or see `vae_book.files.replacing`.
        """
        stored = asdict(self.checked(**vars(self)))
        with replacing(path) as part:
            part.write_text(json.dumps(stored, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> "History":
        """Read a history that `save` wrote.

        Raises:
            ValueError: the file is not such a history.
        """
        content = Path(path).read_bytes()
        try:
            return cls.checked(**json.loads(content))
        except Exception as error:  # JSON of any other shape fails in ways of its own
            raise ValueError(
                f"path: {path} is not a history that fit saved ({error}); delete it, the "
                "checkpoint beside it holds the same numbers, or train again"
            ) from error

    @classmethod
    def checked(cls, **stored: Any) -> "History":
        """A history from its fields, as they were stored.

        Raises:
            ValueError: a field is missing, has not one finite number for each epoch, or is unknown.
        """
        history, names = cls(**stored), {each.name for each in fields(cls)} - {"device"}
        if missing := names - stored.keys():
            raise ValueError(f"history: {', '.join(sorted(missing))} missing")
        for name in sorted(names, key="kl".__ne__):  # the epochs are counted by the KLs
            numbers = getattr(history, name)
            if type(numbers) is not list:
                raise ValueError(f"history: expected a list as {name}, got {numbers!r:.60}")
            lengths = {history.epochs, 0} if name == "held_out" else {history.epochs}
            if len(numbers) not in lengths:
                raise ValueError(f"history: expected {history.epochs} numbers as {name}")
            if not all(type(each) in (int, float) and math.isfinite(each) for each in numbers):
                raise ValueError(f"history: expected finite numbers as {name}, got {numbers}")
        return history
