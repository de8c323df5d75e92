"""Sums that take long and survive a kill (used by `vae_book.evaluation.log_likelihood`)."""

import hashlib
import io
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vae_book.checks import whole_number
from vae_book.files import check_writable, numbers_in, replacing
from vae_book.images import Images

SECONDS = 10  # between two times that a tally is kept


class Tally:
    """For each image log(w_1 + ... + w_K) and log(w_1^2 + ... + w_K^2), from some draws at a time.

    Args:
        n: how many images.
        file: where to keep it; None keeps it in memory alone. A tally that is there is gone on
            with.
        of: what is added up; a file that says otherwise belongs to another tally.

    Raises:
        ValueError: the file is damaged, or holds another tally.
        WriteError: it cannot be written.

    Attributes:
        sums: the two, in double precision on the CPU, shape (2, n).
        steps: how many steps they hold.
    """

    def __init__(self, n: int, file: Path | str | None = None, of: str = "") -> None:
        self.sums = torch.full((2, n), -torch.inf, dtype=torch.float64)
        self.steps, self.of = 0, of
        self.file = None if file is None else Path(file)
        self.kept_at = time.monotonic()
        if self.file is not None:
            check_writable(self.file, 32 * n)
            if self.file.exists():
                self._read(self.file)

    def add(self, rows: slice, log_sums: Float[Tensor, "2 n"]) -> None:
        """Add the two logarithms for some more draws of some of the images."""
        self.sums[:, rows] = torch.logaddexp(self.sums[:, rows], log_sums)

    def step(self, *, last: bool = False) -> None:
        """A step is over: keep it, if the last time is some seconds ago or it was the last."""
        self.steps += 1
        if self.file is None or not (last or time.monotonic() - self.kept_at > SECONDS):
            return
        content = io.BytesIO()
        torch.save({"of": self.of, "steps": self.steps, "sums": self.sums}, content)
        with replacing(self.file) as part:
            part.write_bytes(content.getvalue())
        self.kept_at = time.monotonic()

    def _read(self, file: Path) -> None:
        content = file.read_bytes()
        try:
            stored = numbers_in(content)
            of, steps, sums = str(stored["of"]), stored["steps"], stored["sums"]
            steps = whole_number("steps", steps, least=0)
            if sums.dtype != torch.float64 or not bool((sums < torch.inf).all()):  # NaN is not
                raise ValueError("sums: expected logarithms in double precision")
        except Exception as error:  # a damaged file raises a dozen kinds of error
            reason = error if isinstance(error, ValueError) else type(error).__name__
            raise ValueError(
                f"file: {file} is damaged or holds no measurement ({reason}); delete it to measure "
                "anew"
            ) from error
        if of != self.of or sums.shape != self.sums.shape:
            raise ValueError(
                f"file: {file} holds another measurement (of {of}, not of {self.of}); delete it, "
                "or name another file"
            )
        self.steps, self.sums = steps, sums


def digest(tensors: Iterable[Tensor | None]) -> str:
    """A SHA-256 of numbers with their shapes and types, shortened."""
    found = hashlib.sha256()
    for each in tensors:
        if each is not None:
            found.update(f"{tuple(each.shape)} {each.dtype}".encode())
            found.update(each.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def fingerprint(data: Images) -> str:
    """How many images there are, and a SHA-256 of them and what is told about them, shortened."""
    return f"{len(data)} images of SHA-256 {digest((data.images, data.labels, data.told))}"
