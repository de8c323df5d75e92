"""Measure a row of the ledger: train from scratch, measure, write it down.

``python -m vae_book.reproduce NAME`` does it, or ``python -m vae_book reproduce NAME``. A run that
is stopped, or killed, goes on where it was when the same command is given again, to the same
numbers.
"""

import json
import math
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import vae_book
from vae_book import ledger
from vae_book.checkpoints import read_checkpoint
from vae_book.data import load_images
from vae_book.device import best_device, describe
from vae_book.evaluation import CHUNK, average_elbo, log_likelihood
from vae_book.files import check_writable, replacing
from vae_book.history import History
from vae_book.images import Images
from vae_book.ledger import Measure, Row
from vae_book.models import VAE
from vae_book.protocol import Measurement, Protocol
from vae_book.training import fit

RESULTS = Path("book/results/ledger")  # in a clone of the book
RUNS = Path("runs/ledger")
NUMBERS = ("value", "standard_error")  # of each measure, in a file of results
ON_A_GPU = 100_000  # decoder outputs at a time


def reproduce(
    name: str,
    *,
    results: Path = RESULTS,
    runs: Path = RUNS,
    full: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train and measure one row of the ledger, and write what was found to ``results``/NAME.json.

    Args:
        name: of the row, one of `vae_book.ledger.ROWS`.
        results: the folder to write to.
        runs: the folder of checkpoints, from which a run that was stopped goes on; those of the row
            are deleted when it is over.
        full: train for as long as those who published, where the row is shortened.
        quiet: show no progress bars.

    Raises:
        ValueError: there is no such row, or it cannot be run.
        DataError: its images are not there.
        WriteError: a folder cannot be written to.
    """
    row = _row(name)
    row = replace(row, epochs=row.published_epochs) if full else row
    device = best_device()
    train, test = (load_images(split, row.source, device) for split in ("train", "test"))
    check_writable(results / f"{name}.json", 10_000)
    where = runs / f"{name}{'-full' * full}"
    found: list[dict[Measure, Measurement]] = []
    seconds = 0.0
    for seed in row.seeds:
        model, history = _trained(name, row, train, seed, where, quiet)
        seconds += sum(history.seconds)
        measured = {}
        for at, measure in enumerate(row.measures):
            file = where / f"seed_{seed}_measure_{at}.pt"
            measured[measure] = _measured(row, model, test, measure, file, quiet)
        found.append(measured)
    result = {
        "name": name,
        "version": vae_book.__version__,
        "device": describe(device),
        "minutes": seconds / 60,
        "epochs": row.epochs,
        "published_epochs": row.published_epochs,
        "seeds": list(row.seeds),
        "measured": {
            each.key: _summary(row, each, [one[each] for one in found], seconds / 60)
            for each in row.measures
        },
    }
    with replacing(results / f"{name}.json") as part:
        part.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    shutil.rmtree(where, ignore_errors=True)  # the next run starts from scratch
    return result


def _row(name: str) -> Row:
    if name not in ledger.ROWS:
        raise ValueError(f"name: expected one of {', '.join(ledger.ROWS)}, got {name!r}")
    row = ledger.ROWS[name]
    if row.missing:
        raise ValueError(f"name: {name} cannot be run. {row.missing}")
    return row


def _trained(
    name: str, row: Row, train: Images, seed: int, where: Path, quiet: bool
) -> tuple[VAE, History]:
    """The trained model; what was trained before is taken from its checkpoint."""
    data = row.images(train, row.binarization)
    torch.manual_seed(seed)
    model = row.make().to(data.images.device)
    if row.start:
        row.start(model, data)
    checkpoint = where / f"seed_{seed}.pt"
    done = len(read_checkpoint(checkpoint).history["kl"]) if checkpoint.exists() else 0
    with tqdm(total=row.epochs, initial=done, unit="epoch", disable=quiet) as progress:
        progress.set_description_str(f"{name}, seed {seed}")

        def show(history: History) -> None:
            progress.set_postfix_str(f"{history.negative_elbo[-1]:.2f} nats", refresh=False)
            progress.update()

        history = fit(
            model,
            data,
            epochs=row.epochs,
            seed=seed,
            checkpoint=checkpoint,
            resume=True,
            on_epoch=show,
            **row.settings,
        )
    return model, history


def _measured(
    row: Row, model: VAE, test: Images, measure: Measure, file: Path, quiet: bool
) -> Measurement:
    data = row.images(test, measure.binarization)
    if measure.quantity == "-ELBO":
        return average_elbo(model, data, n_samples=measure.K)
    return log_likelihood(
        model,
        data,
        n_samples=measure.K,
        from_prior=measure.from_prior,
        chunk=CHUNK if data.images.device.type == "cpu" else ON_A_GPU,
        file=file,
        progress=not quiet,
    )


def _summary(
    row: Row, measure: Measure, found: list[Measurement], minutes: float
) -> dict[str, Any]:
    """The negative of what was measured, averaged over the training runs."""
    values = [-each.value for each in found]
    if not all(math.isfinite(each) for each in values):
        raise ValueError(
            f"name: expected finite results, got {values} for {measure.key}: training has gone "
            "wrong, as by steps that are too large"
        )
    protocol = replace(
        row.planned(measure),
        n_images=found[0].protocol.n_images,
        source=found[0].protocol.source,
        device=found[0].protocol.device,
        minutes=minutes,
    )
    return {
        "value": statistics.mean(values),
        "standard_error": statistics.mean(each.standard_error for each in found),
        "spread_over_seeds": statistics.stdev(values) if len(values) > 1 else None,
        "each": values,
        "protocol": protocol.as_dict(),
    }


def read_result(path: Path) -> dict[str, Any] | None:
    """What `reproduce` wrote, or None if there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_bytes())
        numbers = [each[key] for each in stored["measured"].values() for key in NUMBERS]
        if not numbers or not all(map(math.isfinite, numbers)):
            raise ValueError("expected finite numbers of one measure or more")
        for each in stored["measured"].values():
            Protocol.from_dict(each["protocol"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"path: {path} is damaged or holds no results of the ledger ({error!r}); delete it and "
            f"run python -m vae_book reproduce {path.stem}"
        ) from error
    return stored


def listing(results: Path = RESULTS) -> str:
    """The rows, how long they train, and which have been measured."""
    lines = []
    for name, row in ledger.ROWS.items():
        epochs = f"{row.epochs} of {row.published_epochs}"
        try:
            state = "measured" if read_result(results / f"{name}.json") else "not run"
        except ValueError:
            state = "damaged, run it again"
        lines.append(f"{name:<22} {row.model:<30} epochs: {epochs:<14} {row.missing or state}")
    return "\n".join(lines)
