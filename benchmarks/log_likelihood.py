"""Speed of `vae_book.evaluation.log_likelihood` beside that of the machine's matrix products.

log p(x) of 10,000 images by K = 1,000 draws of z asks the decoder of chapter 8 for ten million
images. The floor is the time of its matrix products alone, in single precision, at the rate that
this machine reaches on them; the benchmark prints how much of that rate is left of the whole
measurement. The two take turns, so that a busy machine slows both, and the best of each counts.

Run with `make benchmark`. No result is written.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from vae_book.data import load_images
from vae_book.device import best_device, describe, seeded, standard_normal
from vae_book.evaluation import CHUNK, log_likelihood
from vae_book.images import binarize
from vae_book.models import VAE

IMAGES, DRAWS = 10_000, 1_000


def multiply_adds(model: VAE) -> int:
    """Of one image from z, in the decoder's matrix products."""
    return sum(weight.numel() for weight in model.decoder.parameters() if weight.ndim == 2)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def products(model: VAE, rows: int, times: int) -> Callable[[], Tensor]:
    """The decoder's matrix products and nothing else."""
    weights = [weight for weight in model.decoder.parameters() if weight.ndim == 2]
    inputs = [
        standard_normal((rows, weight.shape[1]), seeded(0), weight.device) for weight in weights
    ]

    def run() -> Tensor:
        for _ in range(times):
            for weight, each in zip(weights, inputs, strict=True):
                last = linear(each, weight)
        return last

    return run


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20, help="images in each turn (default 20)")
    parser.add_argument("--turns", type=int, default=10, help="turns of each (default 10)")
    arguments = parser.parse_args()
    device = best_device()
    chunk = CHUNK if device.type == "cpu" else 100_000
    torch.manual_seed(0)
    model = VAE().to(device)
    data = load_images("test", "bundled", device)[: arguments.images]
    data = data.with_images(binarize(data.images, seeded(0)))
    times = max(1, len(data) * DRAWS // chunk)
    floor, ours = products(model, chunk, times), []
    bare = []
    for _ in range(arguments.turns):
        bare.append(seconds(floor, device) / (times * chunk))
        measured = seconds(
            lambda: log_likelihood(model, data, n_samples=DRAWS, chunk=chunk), device
        )
        ours.append(measured / (len(data) * DRAWS))
    operations = 2 * multiply_adds(model)
    rate, used = operations / min(bare), operations / min(ours)
    print(f"log p(x) of {IMAGES:,} images, K = {DRAWS:,}, VAE 784-400-20, {describe(device)}:")
    print(f"  matrix products alone: {rate / 1e9:8.1f} GFLOP/s")
    print(f"  log_likelihood:        {used / 1e9:8.1f} GFLOP/s")
    print(f"  ratio to the floor: {used / rate:.2f}")
    print(f"  for all images: {min(ours) * IMAGES * DRAWS / 60:.1f} minutes")


if __name__ == "__main__":
    main()
