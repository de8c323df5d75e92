"""Measure the full-size results that chapters print, and write them with their protocol.

    python tools/measure.py

trains on full MNIST (VAE_BOOK_DATA says where it is) and writes book/results/*.json. It takes a few
minutes; `make measure` runs it. A chapter reads these files and never trains for that long itself.
"""

import json
import statistics
import time
from pathlib import Path

import torch

from vae_book.data import DataError, Images, load_mnist
from vae_book.device import best_device, describe
from vae_book.evaluation import test_bound
from vae_book.models import VAE
from vae_book.training import History, fit

RESULTS = Path(__file__).parents[1] / "book" / "results"
SEEDS = (0, 1, 2)


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
    protocol = bounds[0].protocol
    return {
        "model": "VAE 784-400-20, ReLU, Adam 1e-3, batch 128",
        "trained_on": f"{train.source}, {len(train)} images",
        "epochs": epochs,
        "quantity": protocol.quantity,
        "pixels": protocol.pixels,
        "tested_on": f"{protocol.source} {protocol.split}, {protocol.n_images} images",
        "seeds": list(SEEDS),
        "test": statistics.mean(bound.value for bound in bounds),
        "test_standard_error": statistics.mean(bound.standard_error for bound in bounds),
        "test_spread_over_seeds": statistics.stdev(bound.value for bound in bounds),
        "train": statistics.mean(run["train"] for run in runs),
        "minutes": statistics.mean(run["minutes"] for run in runs),
        "device": describe(train.images.device),
    }


def main() -> None:
    print(f"measuring on {describe(best_device())}")
    RESULTS.mkdir(exist_ok=True)
    try:
        rows = chapter_08()
    except DataError as error:
        raise SystemExit(str(error)) from error
    (RESULTS / "chapter_08.json").write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['trained_on']:>22}, {row['epochs']:3} epochs: test {row['test']:.2f} "
            f"(over seeds ± {row['test_spread_over_seeds']:.2f}), train {row['train']:.2f} nats"
        )


if __name__ == "__main__":
    main()
