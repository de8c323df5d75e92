"""What the doctor says of a VAE: findings, and a report of them for terminal and notebook."""

from dataclasses import dataclass
from html import escape
from textwrap import fill
from typing import Literal

Verdict = Literal["ok", "fault", "not checked"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: what was checked.
        verdict: ``ok``, ``fault`` or ``not checked``.
        found: what was seen, or why nothing could be.
        fault: the name of the fault, in `vae_book.clinic` where it is one of those; else empty.
        nats: how far off, in nats for one image; None where that has no number.
        advice: what to do.
    """

    check: str
    verdict: Verdict
    found: str
    fault: str = ""
    nats: float | None = None
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """All findings about one VAE. Text in a terminal, a table in a notebook.

    Attributes:
        findings: in the order of the checks.
    """

    findings: tuple[Finding, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """The names of the faults that were found."""
        return tuple(each.fault for each in self.findings if each.verdict == "fault")

    @property
    def healthy(self) -> bool:
        """Whether no fault was found, by the checks that could be made."""
        return not self.faults

    def __getitem__(self, check: str) -> Finding:
        """The finding of the check of this name.

        Raises:
            KeyError: there is no such check.
        """
        return {each.check: each for each in self.findings}[check]

    @property
    def summary(self) -> str:
        """One line: how many checks were made, and what they found."""
        made = sum(each.verdict != "not checked" for each in self.findings)
        result = ", ".join(self.faults) if self.faults else "no fault"
        return f"{made} of {len(self.findings)} checks made; found: {result}"

    def __str__(self) -> str:
        lines = []
        for each in self.findings:
            name = f" [{each.fault}]" if each.fault else ""
            text = f"{each.verdict:<12} {each.check}{name}: {each.found}{_off(each)}"
            lines.append(fill(text, 100, subsequent_indent=" " * 13))
            if each.advice:
                lines.append(fill(each.advice, 100, initial_indent=" " * 13 + "-> ",
                                  subsequent_indent=" " * 16))  # fmt: skip
        return "\n".join([*lines, self.summary])

    def __repr__(self) -> str:
        return f"Report({self.summary})"

    def _repr_html_(self) -> str:
        """The table that Jupyter shows."""
        rows = (
            f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
            for tag, cells in [("th", HEADER), *(("td", _cells(each)) for each in self.findings)]
        )
        return f"<table>{''.join(rows)}</table><p>{escape(self.summary)}</p>"

    def _repr_markdown_(self) -> str:
        """The same table in Markdown."""
        rows = [HEADER, ["---"] * len(HEADER), *(_cells(each) for each in self.findings)]
        lines = (
            f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows
        )
        return "\n".join([*lines, "", self.summary])


HEADER = ["check", "verdict", "what was found", "nats off", "what to do"]


def _cells(each: Finding) -> list[str]:
    verdict = f"{each.verdict}: {each.fault}" if each.fault else each.verdict
    nats = "" if each.nats is None else f"{each.nats:.2f}"
    return [each.check, verdict, each.found, nats, each.advice]


def _off(each: Finding) -> str:
    return "" if each.nats is None else f" ({each.nats:.2f} nats an image)"
