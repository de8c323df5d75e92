"""Write the ledger, book/ledger.md, from the rows and what was measured of them.

    python tools/ledger.py

`make index` and `make execute` call it. Every number of ours on the page is read from
book/results/ledger; a row without a file there is "not run".
"""

from dataclasses import replace
from pathlib import Path

from vae_book.display import minus, table
from vae_book.ledger import SECTIONS, Measure, Published, Row, Section
from vae_book.protocol import Measurement, Protocol, column_protocols, shared
from vae_book.reproduction import read_result

ROOT = Path(__file__).parents[1]
NOT_RUN = "not run"
TEXT = """# The ledger

Is a number good? Only a number of the same protocol can tell. This page holds the book's models
against published numbers, one protocol to a table. Each row was trained from scratch by

```sh
python -m vae_book.reproduce NAME
```

with fixed seeds on MNIST's 60,000 images, and measured on its 10,000 test images. `--list` names
the rows; a run that is stopped goes on where it was; `--full` trains as long as those who
published did. All numbers are nats for one image, and **lower is better**: a negative ELBO, or
$-\\log p$ by importance sampling (chapter 4). The standard error is that of an average over test
images like these; where there are several seeds, their spread stands below the table. A row that
nobody has run on this book's machines says so.
"""


def page(results: Path, sections: tuple[Section, ...] = SECTIONS) -> str:
    """The page of the book, from the files in a folder."""
    return "\n".join([TEXT, *(part for each in sections for part in section(each, results))])


def section(of: Section, results: Path) -> list[str]:
    """Heading, published protocol, a table for each protocol of ours, reasons for gaps."""
    lines: dict[tuple, list[tuple[Protocol, list]]] = {}
    for name, row in of.rows.items():
        for measure, published in row.measures.items():
            protocol, cells = line(name, row, measure, published, results)
            key = (protocol.quantity, protocol.K, protocol.binarization)
            lines.setdefault(key, []).append((protocol, cells))
    parts = [f"## {of.title}\n", f"{of.text}\n"]
    for found in lines.values():
        protocols, rows = zip(*found, strict=True)
        header = ["row", "model", "published", "ours", "difference", "epochs"]
        column_protocols(header, rows)  # refuses to mix them
        cells = [[*row[:3], in_words(row[3]), *row[4:]] for row in rows]
        measured = [one for one, row in found if isinstance(row[3], Measurement)]
        parts.append(f"{table(header, cells)}\n")
        parts.append(minus(card(measured or list(protocols), bool(measured))))
    parts += reasons(of, results)
    return parts


def line(
    name: str, row: Row, measure: Measure, published: Published | None, results: Path
) -> tuple[Protocol, list]:
    """The protocol and the cells of one number."""
    stored = read(results / f"{name}.json")
    theirs = "none known" if published is None else f"{published.value} {cited(published)}"
    epochs = f"{row.epochs} of {row.published_epochs:,}" if row.epochs else "-"
    if stored is None:
        return row.planned(measure), [f"`{name}`", row.model, theirs, NOT_RUN, "-", epochs]
    ours = stored["measured"][measure.key]
    protocol = Protocol.from_dict(ours["protocol"])
    number = Measurement(ours["value"], ours["standard_error"], protocol)
    if published is None:
        gap = "-"
    elif not published.comparable:
        gap = "other protocol"
    else:
        gap = f"{ours['value'] - published.value:+.2f}"
    epochs = f"{stored['epochs']} of {row.published_epochs:,}"
    return protocol, [f"`{name}`", row.model, theirs, number, gap, epochs]


def read(path: Path) -> dict | None:
    """What was measured of a row, or None where it was not."""
    try:
        return read_result(path)
    except ValueError as error:
        raise SystemExit(f"{error}, or put it back with git checkout") from error


def cited(published: Published) -> str:
    return f"{{cite}}`{published.key}`, {published.where}"


def in_words(number: object) -> str:
    if not isinstance(number, Measurement):
        return str(number)
    return f"{number.value:.2f} ± {number.standard_error:.2f}"


def card(protocols: list[Protocol], measured: bool) -> str:
    """The card of a table, without minutes: they were those of a clock, beside other work."""
    common = shared(protocols)
    if not measured:
        return f"{common.card().replace('Protocol:', 'Protocol of the run to come:')}\n"
    return f"{replace(common, minutes=None).card(machine=True)}\n"


def reasons(of: Section, results: Path) -> list[str]:
    """Why numbers differ, row by row, the same reason once."""
    found: dict[str, list[str]] = {}
    for name, row in of.rows.items():
        stored = read(results / f"{name}.json")
        text = f"Not run. {row.missing}" if row.missing else ""
        if stored is not None:
            percent = f"{stored['epochs'] / row.published_epochs:.1%}"
            text = row.reason.format(**{**stored, "percent": percent})
            spreads = [each["spread_over_seeds"] for each in stored["measured"].values()]
            if None not in spreads:
                text += f" Spread over {len(stored['seeds'])} seeds: {max(spreads):.2f} nats."
        if text.strip():
            found.setdefault(text.strip(), []).append(f"`{name}`")
    return [f"{', '.join(names)}: {text}\n" for text, names in found.items()]


def write_page(top: Path = ROOT) -> None:
    """Write the page anew from what was measured."""
    folder = top / "book"
    (folder / "ledger.md").write_text(page(folder / "results" / "ledger"))


if __name__ == "__main__":
    write_page()
