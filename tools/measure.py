"""Measure the full-size results that chapters print, and write them with their protocol.

    python tools/measure.py [chapter_07 chapter_08 ...]

writes book/results/*, all of them or those that are named. Chapters 8 and 11 train on full MNIST
(VAE_BOOK_DATA says where it is). It takes half an hour; `make measure` runs it. A chapter reads
these files and never trains for that long itself. Leave the machine to it: it measures seconds.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vae_book.checkpoints import write_checkpoint
from vae_book.data import load_images
from vae_book.device import best_device, describe, seeded
from vae_book.evaluation import Bound, active_units, average_elbo, log_likelihood
from vae_book.files import replacing
from vae_book.history import History
from vae_book.images import DataError, Images, binarize, quadrants
from vae_book.models import VAE, CompletionVAE, ConvVAE
from vae_book.training import fit

RESULTS = Path(__file__).parents[1] / "book" / "results"
SEEDS = (0, 1, 2)
SECONDS = 12  # of training for each number of draws in chapter 7
EPOCHS_OF_A_COMPLETION = 20  # in chapter 11


def chapter_07() -> list[dict]:
    """The small VAE with 1, 5 and 25 draws of z in each step, for the same number of seconds."""
    train, test = load_images("train", "bundled"), load_images("test", "bundled")
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
        bounds.append(average_elbo(model, test, seed=seed))
    return {
        **protocol("VAE 784-100-10", train, bounds[0]),
        "draws": draws,
        "epochs": statistics.median(history.epochs for history in histories),
        "seconds": statistics.mean(sum(history.seconds) for history in histories),
        "held_out": statistics.mean(bound.negative_elbo for bound in bounds),
        "spread_over_seeds": statistics.stdev(bound.negative_elbo for bound in bounds),
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
    test = load_images("test", "full")
    return [
        *mlp_bounds(load_images("train", "full"), test, (10, 15)),
        *mlp_bounds(load_images("train", "bundled"), test, (60, 100)),
    ]


def chapter_09() -> list[dict]:
    """Networks that train for about as many seconds each; two convolutional ones are kept."""
    train, test = load_images("train", "bundled"), load_images("test", "bundled")
    settings = {"epochs": 20, "lr": "2e-3", "batch_size": 32}
    return [
        over_time("VAE 784-400-20", VAE, train, test, epochs=200),
        over_time("ConvVAE, d = 10", partial(ConvVAE, 10), train, test, "conv_10", **settings),
        over_time("ConvVAE, d = 2", partial(ConvVAE, 2), train, test, "conv_2", **settings),
        over_time("ConvVAE, d = 10, ReLU", ReluBottleneck, train, test, **settings),
    ]


class ReluBottleneck(ConvVAE):
    """The published network: its sixteen numbers pass a ReLU."""

    def __init__(self) -> None:
        super().__init__(10)
        self.encoder.append(nn.ReLU())


def over_time(
    name: str,
    kind: Callable[[], VAE],
    train: Images,
    test: Images,
    kept: str | None = None,
    *,
    epochs: int,
    lr: str = "1e-3",
    batch_size: int = 128,
) -> dict:
    """The held-out bound against the seconds of training; ``kept`` names a checkpoint.

    An epoch counts with the median of all epochs' seconds, so that a pause of the machine does not.
    """
    torch.manual_seed(0)
    model = kind().to(train.images.device)
    options = {"epochs": epochs, "lr": float(lr), "batch_size": batch_size}
    history = fit(model, train, held_out=test, **options)
    seconds = statistics.median(history.seconds)
    bound = average_elbo(model, test, n_samples=10)
    if kept:
        unused = torch.optim.Adam(model.parameters())  # without the moments, a third of the size
        write_checkpoint(RESULTS / f"{kept}.pt", model, unused, asdict(history), {})
    every = -(-epochs // 60)
    return {
        "network": name,
        **protocol(name, train, bound, lr, batch_size),
        "seeds": [0],
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "epochs": epochs,
        "seconds_of_an_epoch": seconds,
        "held_out": bound.negative_elbo,
        "standard_error": bound.standard_error,
        "bottleneck_in_use": in_use(model, test),
        "active_units": active_units(model, test),
        "curve": {
            "seconds": [round(seconds * (n + 1), 2) for n in range(0, epochs, every)],
            "held_out": [round(value, 2) for value in history.held_out][::every],
        },
    }


@torch.no_grad()
def in_use(model: VAE, data: Images) -> int:
    """How many numbers that leave the encoder's trunk differ from image to image."""
    return int((model.encoder(data.images).var(0) > 0).sum())


def chapter_11() -> list[dict]:
    """Completing binary MNIST from 1, 2 and 3 quarters, with z and without."""
    train, test = load_images("train", "full"), load_images("test", "full")
    return [completion(quadrants(train, seen), quadrants(test, seen)) for seen in (1, 2, 3)]


class Deterministic(CompletionVAE):
    """Its decoder is told the seen part and nothing else."""

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """As if every z were zero."""
        return super().decode(torch.zeros_like(z), y)


def completion(train: Images, test: Images) -> dict:
    """-log p(missing | seen), by the estimates that tables of it hold."""
    test = test.with_images(binarize(test.images, seeded(0)))
    seen, missing = test.told.shape[1], test.images.shape[1]
    models = []
    for kind in (Deterministic, CompletionVAE):
        torch.manual_seed(0)
        shapes = {"image_shape": (missing, 14, 14), "seen_shape": (seen, 14, 14)}
        models.append(kind(20, 400, **shapes).to(train.images.device))
        fit(models[-1], train, epochs=EPOCHS_OF_A_COMPLETION, resample=True)
    network, vae = models
    exact = log_likelihood(network, test, n_samples=1, from_prior=True)
    bound = average_elbo(vae, test)
    sampled = log_likelihood(vae, test, n_samples=100)
    monte_carlo = log_likelihood(vae, test, n_samples=100, from_prior=True)
    return {
        **protocol("CompletionVAE, 400 units, d = 20", train, bound),
        "quantity": "-log p(missing | seen) of binary pixels, K = 100",
        "training_pixels": "binary, drawn afresh in each step",
        "seeds": [0],
        "seen": seen,
        "epochs": EPOCHS_OF_A_COMPLETION,
        "deterministic": -exact.value,
        "bound": bound.negative_elbo,
        "importance_sampling": -sampled.value,
        "monte_carlo": -monte_carlo.value,
        "standard_error": exact.standard_error,
    }


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
                bound = average_elbo(model, test, seed=seed)
                runs[history.epochs].append(
                    {"bound": bound, "train": history.negative_elbo[-1], "minutes": minutes}
                )

        fit(model, train, epochs=max(epochs), seed=seed, on_epoch=record)
    return [summary(train, n, runs[n]) for n in epochs]


def summary(train: Images, epochs: int, runs: list[dict]) -> dict:
    """The mean over seeds with its spread, and everything needed to repeat it."""
    bounds = [run["bound"] for run in runs]
    return {
        **protocol("VAE 784-400-20", train, bounds[0]),
        "epochs": epochs,
        "test": statistics.mean(bound.negative_elbo for bound in bounds),
        "test_standard_error": statistics.mean(bound.standard_error for bound in bounds),
        "test_spread_over_seeds": statistics.stdev(bound.negative_elbo for bound in bounds),
        "train": statistics.mean(run["train"] for run in runs),
        "minutes": statistics.mean(run["minutes"] for run in runs),
    }


def protocol(
    network: str, train: Images, bound: Bound, lr: str = "1e-3", batch_size: int = 128
) -> dict:
    """What a number was measured on and how."""
    tested = bound.protocol
    return {
        "model": f"{network}, ReLU, Adam {lr}, batch {batch_size}",
        "trained_on": f"{train.source}, {len(train)} images",
        "tested_on": f"{tested.source} {tested.split}, {tested.n_images} images",
        "quantity": f"{tested.quantity}, K={tested.K}",
        "pixels": tested.pixels,
        "seeds": list(SEEDS),
        "device": tested.device,
    }


def main() -> None:
    chapters = {each.__name__: each for each in (chapter_07, chapter_08, chapter_09, chapter_11)}
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
        with replacing(RESULTS / f"{name}.json") as part:
            part.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")
        for row in rows:
            print(name, *(f"{key}={value}" for key, value in row.items() if value), sep="\n  ")


if __name__ == "__main__":
    main()
