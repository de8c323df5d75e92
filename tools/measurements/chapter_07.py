"""Draws of z for each step, and where the noise of a gradient comes from (chapter 7)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from measurements.common import SEEDS, protocol
from vae_book.bounds import elbo
from vae_book.data import load_images
from vae_book.device import describe, seeded
from vae_book.evaluation import average_elbo
from vae_book.gradient_estimators import VarianceSplit, split_variance
from vae_book.history import History
from vae_book.images import Images
from vae_book.models import VAE
from vae_book.training import fit

DRAWS = (1, 2, 5, 25)  # of z for an image and step
EPOCHS_BY_DRAWS = (1, 5, 15)  # after which the held-out bound is kept
EPOCHS_OF_NOISE = (0, 3, 10, 40)  # at which the gradient's noise is taken apart
IMAGES_OF_NOISE = 200


def chapter_07() -> list[dict]:
    """The small VAE: draws of z in each step, and the noise of its gradient on the way."""
    train, test = load_images("train", "bundled"), load_images("test", "bundled")
    return [*(by_draws(train, test, draws) for draws in DRAWS), *noise_on_the_way(train)]


def small_vae(train: Images, seed: int) -> VAE:
    """The network of chapter 7, before training."""
    torch.manual_seed(seed)
    return VAE(latent=10, hidden=100).to(train.images.device)


def by_draws(train: Images, test: Images, draws: int) -> dict:
    """The held-out bound after some epochs with a number of draws in each step, over all seeds."""
    held_out, bounds = [], []
    for seed in SEEDS:
        model = small_vae(train, seed)
        epochs = max(EPOCHS_BY_DRAWS)
        history = fit(model, train, epochs=epochs, seed=seed, n_samples=draws, held_out=test)
        held_out.append([history.held_out[epoch - 1] for epoch in EPOCHS_BY_DRAWS])
        bounds.append(average_elbo(model, test, seed=seed))
    return {
        **protocol("VAE 784-100-10", train, bounds[0]),
        "quantity": "negative ELBO in nats, by one draw for each image",
        "draws": draws,
        "epochs": list(EPOCHS_BY_DRAWS),
        "held_out": held_out,
    }


def noise_on_the_way(train: Images) -> Iterator[dict]:
    """How much of the gradient's variance comes from the draws of z, over all seeds."""
    found: dict[int, list[dict]] = {epoch: [] for epoch in EPOCHS_OF_NOISE}
    for seed in SEEDS:
        model = small_vae(train, seed)
        rows = torch.randperm(len(train), generator=seeded(seed))[:IMAGES_OF_NOISE]
        images = train.images[rows.to(train.images.device)]

        def look(history: History, model=model, seed=seed, images=images) -> None:
            if history.epochs in found:
                found[history.epochs].append(gradient_noise(model, images, seed))

        look(History())
        fit(model, train, epochs=max(EPOCHS_OF_NOISE), seed=seed, on_epoch=look)
    for epoch, runs in found.items():
        for part in ("encoder", "decoder"):
            images, z = zip(*(run[part] for run in runs), strict=True)
            yield {
                "model": "VAE 784-100-10, ReLU, Adam 1e-3, batch 128",
                "trained_on": f"{train.source}, {len(train):,} images",
                "quantity": "variance of one image's gradient by one draw, summed over weights",
                "measured_on": f"{IMAGES_OF_NOISE} training images, 2 draws each",
                "seeds": list(SEEDS),
                "device": describe(train.images.device),
                "part": part,
                "epoch": epoch,
                "images": images,
                "z": z,
            }


def gradient_noise(model: VAE, images: Tensor, seed: int) -> dict[str, tuple[float, float]]:
    """For encoder and decoder: the variance from images and from z, summed over the weights."""
    weights = dict(model.named_parameters())
    generator, gradients = seeded(seed, 1), []
    for x in images.split(1):
        for _ in range(2):
            loss = -elbo(model, x, generator=generator).value.sum()
            of_weights = torch.autograd.grad(loss, list(weights.values()))
            gradients.append(dict(zip(weights, of_weights, strict=True)))
    split: dict[str, list[VarianceSplit]] = {"encoder": [], "decoder": []}
    for name in weights:
        draws = torch.stack([each.pop(name) for each in gradients])
        part = "decoder" if name.startswith("decoder") else "encoder"
        split[part].append(split_variance(draws.unflatten(0, (-1, 2))))
    return {
        part: (sum(s.images.sum().item() for s in each), sum(s.z.sum().item() for s in each))
        for part, each in split.items()
    }
