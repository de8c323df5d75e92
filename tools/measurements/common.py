"""What the measurements share: seeds, averages over them, and the protocol of a number."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from vae_book.evaluation import Bound
from vae_book.images import Images
from vae_book.models import VAE
from vae_book.protocol import Measurement, Protocol

RESULTS = Path(__file__).parents[2] / "book" / "results"
SEEDS = (0, 1, 2)
FIVE = (0, 1, 2, 3, 4)  # where differences are near the spread of three
TEN = (*range(10),)  # where something happens in some runs and not in others


@torch.no_grad()
def in_use(model: VAE, data: Images) -> int:
    """How many numbers that leave the encoder's trunk differ from image to image."""
    return int((model.encoder(data.images).var(0) > 0).sum())


def averaged(found: list[Measurement], protocol: Protocol) -> dict:
    """The mean over seeds, its standard error over images, and the spread of seeds."""
    values = [each.value for each in found]
    error = statistics.mean(each.standard_error for each in found)
    spread = statistics.stdev(values)
    mean = statistics.mean(values)
    return Measurement(mean, error, protocol, spread_over_seeds=spread).as_dict()


def protocol(
    network: str,
    train: Images,
    bound: Bound,
    lr: str = "1e-3",
    batch_size: int = 128,
    seeds: Sequence[int] = SEEDS,
) -> dict:
    """What a number was measured on and how."""
    tested = bound.protocol
    return {
        "model": f"{network}, ReLU, Adam {lr}, batch {batch_size}",
        "trained_on": f"{train.source}, {len(train):,} images",
        "tested_on": f"{tested.source} {tested.split}, {tested.n_images:,} images",
        "quantity": tested.quantity,
        "pixels": tested.pixels,
        "seeds": list(seeds),
        "device": tested.device,
    }
