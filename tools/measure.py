"""Measure the full-size results that chapters print, and write them with their protocol.

    python tools/measure.py [chapter_07 chapter_08]

writes book/results/*.json, all of them or those that are named. Chapter 8 trains on full MNIST
(VAE_BOOK_DATA says where it is). It takes a few minutes; `make measure` runs it. A chapter reads
these files and never trains for that long itself. Leave the machine to it: it measures seconds.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from vae_book.data import DataError, Images, load_mnist
from vae_book.device import best_device, describe
from vae_book.evaluation import Bound, test_bound
from vae_book.models import VAE
from vae_book.training import History, fit

RESULTS = Path(__file__).parents[1] / "book" / "results"
SEEDS = (0, 1, 2)
SECONDS = 12  # of training for each number of draws in chapter 7


def chapter_07() -> list[dict]:
    """The small VAE with 1, 5 and 25 draws of z in each step, for the same number of seconds."""
    train, test = load_mnist("train", "bundled"), load_mnist("test", "bundled")
    return [in_seconds(train, test, draws) for draws in (1, 5, 25)]


def in_seconds(train: Images, test: Images, draws: int) -> dict:
    """How far training gets in the time, over all seeds."""
    bounds, histories = [], []
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = VAE(latent=10, hidden=100).to(train.images.device)
        try:
            fit(model, train, epochs=1000, seed=seed, n_samples=draws, on_epoch=stop_in_time)
        except TimeIsUpError as end:
            histories.append(end.history)
        bounds.append(test_bound(model, test, seed=seed))
    return {
        **protocol("VAE 784-100-10", train, bounds[0]),
        "draws": draws,
        "epochs": statistics.median(history.epochs for history in histories),
        "seconds": statistics.mean(sum(history.seconds) for history in histories),
        "held_out": statistics.mean(bound.value for bound in bounds),
        "spread_over_seeds": statistics.stdev(bound.value for bound in bounds),
    }


class TimeIsUpError(Exception):
    """Ends a training; holds what it measured."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.history = history


def stop_in_time(history: History) -> None:
    if sum(history.seconds) >= SECONDS:
        raise TimeIsUpError(history)


def chapter_08() -> list[dict]:
    """The 784-400-20 VAE by data set and epochs; the bound is measured on MNIST's 10,000 digits."""
    test = load_mnist("test", "full")
    return [
        *mlp_bounds(load_mnist("train", "full"), test, (10, 15)),
        *mlp_bounds(load_mnist("train", "bundled"), test, (60, 100)),
    ]


def mlp_bounds(train: Images, test: Images, epochs: tuple[int, ...]) -> list[dict]:
    """One row for each number of epochs, over all seeds; each seed is trained once."""
    runs: dict[int, list[dict]] = {n: [] for n in epochs}
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = VAE().to(train.images.device)
        start = time.perf_counter()

        def record(history: History, model=model, seed=seed, start=start) -> None:
            if history.epochs in runs:
                minutes = (time.perf_counter() - start) / 60
                bound = test_bound(model, test, seed=seed)
                runs[history.epochs].append(
                    {"bound": bound, "train": history.loss[-1], "minutes": minutes}
                )

        fit(model, train, epochs=max(epochs), seed=seed, on_epoch=record)
    return [summary(train, n, runs[n]) for n in epochs]


def summary(train: Images, epochs: int, runs: list[dict]) -> dict:
    """The mean over seeds with its spread, and everything needed to repeat it."""
    bounds = [run["bound"] for run in runs]
    return {
        **protocol("VAE 784-400-20", train, bounds[0]),
        "epochs": epochs,
        "test": statistics.mean(bound.value for bound in bounds),
        "test_standard_error": statistics.mean(bound.standard_error for bound in bounds),
        "test_spread_over_seeds": statistics.stdev(bound.value for bound in bounds),
        "train": statistics.mean(run["train"] for run in runs),
        "minutes": statistics.mean(run["minutes"] for run in runs),
    }


def protocol(network: str, train: Images, bound: Bound) -> dict:
    """What a number was measured on and how."""
    tested = bound.protocol
    return {
        "model": f"{network}, ReLU, Adam 1e-3, batch 128",
        "trained_on": f"{train.source}, {len(train)} images",
        "tested_on": f"{tested.source} {tested.split}, {tested.n_images} images",
        "quantity": tested.quantity,
        "pixels": tested.pixels,
        "seeds": list(SEEDS),
        "device": tested.device,
    }


def main() -> None:
    chapters = {"chapter_07": chapter_07, "chapter_08": chapter_08}
    asked = sys.argv[1:] or list(chapters)
    if unknown := set(asked) - set(chapters):
        raise SystemExit(f"expected some of {', '.join(chapters)}, got {', '.join(unknown)}")
    print(f"measuring on {describe(best_device())}")
    RESULTS.mkdir(exist_ok=True)
    for name in asked:
        try:
            rows = chapters[name]()
        except DataError as error:
            raise SystemExit(str(error)) from error
        (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
        for row in rows:
            print(name, *(f"{key}={value}" for key, value in row.items() if value), sep="\n  ")


if __name__ == "__main__":
    main()
