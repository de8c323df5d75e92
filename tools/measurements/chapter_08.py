"""The VAE of chapter 8 on all data sets, and what its encoder gains by seeing what is scored."""

import statistics
import time

import torch
from torch import Tensor

from measurements.common import SEEDS, protocol
from vae_book.bounds import elbo, elbo_terms
from vae_book.data import load_images
from vae_book.device import seeded
from vae_book.evaluation import average_elbo, log_likelihood, posteriors
from vae_book.history import History
from vae_book.images import Images, binarize
from vae_book.likelihoods import Bernoulli, Likelihood
from vae_book.models import VAE
from vae_book.monte_carlo import average
from vae_book.training import fit

EPOCHS = 40  # of the chapter, on the bundled digits


def chapter_08() -> list[dict]:
    """The 784-400-20 VAE by data set and epochs; the bound is measured on MNIST's 10,000 digits."""
    test = load_images("test", "full")
    return [
        *mlp_bounds(load_images("train", "full"), test, (10, 15)),
        *mlp_bounds(load_images("train", "bundled"), test, (60, 100)),
    ]


def chapter_08_seeds() -> list[dict]:
    """The run of chapter 8 over all seeds, and the same network trained on binarized images."""
    train, test = load_images("train", "bundled"), load_images("test", "bundled")
    return [one_seed(train, test, seed) for seed in SEEDS]


@torch.no_grad()
def one_seed(train: Images, test: Images, seed: int) -> dict:
    """Bounds and log p of the same binarized held-out images, and what the KL is made of."""
    binary = test.with_images(binarize(test.images, seeded(5)))
    of_gray = trained(Bernoulli(relaxed=True), train, seed)
    of_binary = trained(Bernoulli(), train, seed, resample=True)
    eps = torch.randn(10, len(test), of_gray.latent, generator=seeded(seed))
    eps = eps.to(test.images.device)
    sees_gray = elbo_terms(binary.images, of_gray(test.images, eps)).value
    sees_binary = elbo(of_gray, binary.images, eps).value
    trained_on_binary = elbo(of_binary, binary.images, eps).value
    bound = average_elbo(of_gray, test, n_samples=10, seed=seed)
    mu, _ = posteriors(of_gray, test)
    return {
        **protocol("VAE 784-400-20", train, bound),
        "quantity": "negative ELBO, K=10; minus_log_p: estimate of -log p(x), K=200",
        "pixels": "gray: grayscale; sees_..., trained_on_binary, minus_log_p: binarized, seed 5",
        "seeds": [seed],
        "epochs": EPOCHS,
        "gray": bound.negative_elbo,
        "sees_gray": -sees_gray.mean().item(),
        "sees_binary": -sees_binary.mean().item(),
        "trained_on_binary": -trained_on_binary.mean().item(),
        "gain_of_seeing": mean_and_error(sees_binary - sees_gray),
        "gain_of_training": mean_and_error(trained_on_binary - sees_binary),
        "minus_log_p": -log_likelihood(of_gray, binary, n_samples=200, seed=seed).value,
        "kl": bound.kl,
        "kl_of_means": 0.5 * mu.square().sum(1).mean().item(),
    }


def trained(likelihood: Likelihood, train: Images, seed: int, **settings: bool) -> VAE:
    """The network of chapter 8 after its epochs."""
    torch.manual_seed(seed)
    model = VAE(likelihood=likelihood).to(train.images.device)
    fit(model, train, epochs=EPOCHS, seed=seed, **settings)
    return model


def mean_and_error(differences: Tensor) -> list[float]:
    """The average of what two bounds of the same images differ by, and its standard error."""
    return [each.item() for each in average(differences.double())]


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
