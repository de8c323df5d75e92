"""Convolutional and fully connected networks at equal settings (chapter 9)."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from measurements.common import FIVE, RESULTS, SEEDS, in_use, protocol
from vae_book.checkpoints import write_checkpoint
from vae_book.data import load_images
from vae_book.evaluation import average_elbo
from vae_book.images import Images
from vae_book.models import VAE, ConvVAE
from vae_book.training import fit

LR, BATCH = "2e-3", 32  # of all networks


def chapter_09() -> list[dict]:
    """Networks that train with the same settings; the two that are compared, over all seeds."""
    train, test = load_images("train", "bundled"), load_images("test", "bundled")
    dense, conv = partial(VAE, 10), partial(ConvVAE, 10)
    return [
        over_seeds("fully connected, d = 10", dense, train, test, 100),
        over_seeds("convolutional, d = 10", conv, train, test, 20, "conv_10"),
        over_seeds("convolutional, d = 2", partial(ConvVAE, 2), train, test, 20, "conv_2"),
        over_seeds("convolutional, d = 10, ReLU", ReluBottleneck, train, test, 20, seeds=FIVE),
    ]


class ReluBottleneck(ConvVAE):
    """The published network: its sixteen numbers pass a ReLU."""

    def __init__(self) -> None:
        super().__init__(10)
        self.encoder.append(nn.ReLU())


def over_seeds(
    name: str,
    kind: Callable[[], VAE],
    train: Images,
    test: Images,
    epochs: int,
    kept: str | None = None,
    seeds: Sequence[int] = SEEDS,
) -> dict:
    """The bound after each epoch, a list a seed; ``kept`` names a checkpoint of the first one."""
    settings = {"epochs": epochs, "lr": float(LR), "batch_size": BATCH, "held_out": test}
    models, histories = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(kind().to(train.images.device))
        histories.append(fit(models[-1], train, seed=seed, **settings))
    first = models[0]
    if kept:
        unused = torch.optim.Adam(first.parameters())  # without the moments, a third of the size
        write_checkpoint(RESULTS / f"{kept}.pt", first, unused, asdict(histories[0]), {})
    return {
        "network": name,
        **protocol(name, train, average_elbo(first, test), LR, BATCH),
        "seeds": list(seeds),
        "epochs": epochs,
        "seconds_of_an_epoch": processor_seconds(kind, train),
        "bottleneck_in_use": [in_use(m, test) for m in models if isinstance(m, ConvVAE)],
        "curves": [[round(each, 2) for each in history.held_out] for history in histories],
    }


def processor_seconds(kind: Callable[[], VAE], train: Images) -> float:
    """What an epoch costs, in seconds of one processor: other work on the machine counts less."""
    model, ends = kind().to(train.images.device), []
    options = {"lr": float(LR), "batch_size": BATCH}
    fit(model, train, epochs=6, on_epoch=lambda _: ends.append(time.process_time()), **options)
    return statistics.median(b - a for a, b in pairwise(ends))
