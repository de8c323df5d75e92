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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vae_book.bounds import elbo, elbo_terms
from vae_book.budget import refined
from vae_book.checkpoints import write_checkpoint
from vae_book.data import load_images
from vae_book.device import best_device, describe, seeded
from vae_book.divergences import gaussian_kl
from vae_book.evaluation import (
    Bound,
    active_units,
    aggregated_kl_bound,
    average_elbo,
    log_likelihood,
    posteriors,
)
from vae_book.files import replacing
from vae_book.gradient_estimators import VarianceSplit, split_variance
from vae_book.history import History
from vae_book.images import DataError, Images, binarize, quadrants
from vae_book.likelihoods import Bernoulli, Likelihood
from vae_book.models import CVAE, VAE, CompletionVAE, ConvVAE
from vae_book.monte_carlo import average
from vae_book.objectives import Objective
from vae_book.training import fit

RESULTS = Path(__file__).parents[1] / "book" / "results"
SEEDS = (0, 1, 2)
BETAS = (0.5, 0.7, 1.0, 1.4, 2.0)
EPOCHS_OF_CHAPTER_10 = 12
LR, BATCH = "2e-3", 32  # of all networks in chapter 9
DRAWS = (1, 2, 5, 25)  # of z for an image and step, in chapter 7
EPOCHS_BY_DRAWS = (1, 5, 15)  # after which the held-out bound is kept
EPOCHS_OF_NOISE = (0, 3, 10, 40)  # at which the gradient's noise is taken apart
IMAGES_OF_NOISE = 200
EPOCHS_OF_A_COMPLETION = 20  # in chapter 11
SAMPLES_A_SEED = 2000  # there, of a conditional VAE


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
                "trained_on": f"{train.source}, {len(train)} images",
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
        "quantity": "negative ELBO, K=10",
        "seeds": [seed],
        "epochs": 60,
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
    """The network of chapter 8 after its 60 epochs."""
    torch.manual_seed(seed)
    model = VAE(likelihood=likelihood).to(train.images.device)
    fit(model, train, epochs=60, seed=seed, **settings)
    return model


def mean_and_error(differences: Tensor) -> list[float]:
    """The average of what two bounds of the same images differ by, and its standard error."""
    return [each.item() for each in average(differences.double())]


def chapter_09() -> list[dict]:
    """Networks that train with the same settings; the two that are compared, over all seeds."""
    train, test = load_images("train", "bundled"), load_images("test", "bundled")
    dense, conv = partial(VAE, 10), partial(ConvVAE, 10)
    one = {"seeds": SEEDS[:1]}
    return [
        over_seeds("fully connected, d = 10", dense, train, test, 100),
        over_seeds("convolutional, d = 10", conv, train, test, 20, "conv_10"),
        over_seeds("convolutional, d = 2", partial(ConvVAE, 2), train, test, 20, "conv_2", **one),
        over_seeds("convolutional, d = 10, ReLU", ReluBottleneck, train, test, 20, **one),
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
        "bottleneck_in_use": in_use(first, test) if isinstance(first, ConvVAE) else None,
        "curves": [[round(each, 2) for each in history.held_out] for history in histories],
    }


def processor_seconds(kind: Callable[[], VAE], train: Images) -> float:
    """What an epoch costs, in seconds of one processor: other work on the machine counts less."""
    model, ends = kind().to(train.images.device), []
    options = {"lr": float(LR), "batch_size": BATCH}
    fit(model, train, epochs=6, on_epoch=lambda _: ends.append(time.process_time()), **options)
    return statistics.median(b - a for a, b in pairwise(ends))


@torch.no_grad()
def in_use(model: VAE, data: Images) -> int:
    """How many numbers that leave the encoder's trunk differ from image to image."""
    return int((model.encoder(data.images).var(0) > 0).sum())


def chapter_10() -> list[dict]:
    """The small VAE with weights of the KL around 1, and a deeper one that may collapse."""
    train, test = load_images("train", "bundled"), load_images("test", "bundled")
    cures = {
        "plain": Objective(),
        "warm-up": Objective(warm_up=EPOCHS_OF_CHAPTER_10 // 2),
        "free nats": Objective(free_nats=0.25),
    }
    return [
        *(weighted(train, test, beta) for beta in BETAS),
        *(deeper(train, test, name, objective) for name, objective in cures.items()),
    ]


def weighted(train: Images, test: Images, beta: float) -> dict:
    """Rate and distortion of the small VAE, trained with one weight of the KL, seed by seed."""
    bounds = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = VAE(10, 200).to(train.images.device)
        options = {"epochs": EPOCHS_OF_CHAPTER_10, "lr": 3e-3, "seed": seed}
        fit(model, train, objective=Objective(beta=beta), **options)
        bounds.append(average_elbo(model, test, n_samples=10))
    return {
        **protocol("VAE 784-200-10", train, bounds[0], "3e-3"),
        "beta": beta,
        "epochs": EPOCHS_OF_CHAPTER_10,
        "rate": [bound.kl for bound in bounds],
        "distortion": [bound.reconstruction for bound in bounds],
        "held_out": [bound.negative_elbo for bound in bounds],
    }


class Deeper(VAE):
    """A decoder with a second hidden layer."""

    def __init__(self) -> None:
        super().__init__(latent=20, hidden=200)
        self.decoder.insert(2, nn.Linear(200, 200))
        self.decoder.insert(3, nn.ReLU())


def deeper(train: Images, test: Images, name: str, objective: Objective) -> dict:
    """Whether the code collapses when steps are large from the start, and the encoder with it."""
    bounds, rows = [], []
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = Deeper().to(train.images.device)
        options = {"epochs": EPOCHS_OF_CHAPTER_10, "lr": 1e-2, "batch_size": 256, "seed": seed}
        fit(model, train, objective=objective, **options)
        bounds.append(average_elbo(model, test, n_samples=10))
        some = test[:: len(test) // 100]  # of all classes, which may be sorted
        best = refined(model, some.images, steps=100, generator=seeded(seed))
        rows.append(
            {
                "rate": gaussian_kl(*posteriors(model, some)).mean().item(),
                "rate_of_the_best_q": gaussian_kl(*best).mean().item(),
                "hidden_units_on": in_use(model, test),
                "active_units": active_units(model, test),
            }
        )
    return {
        **protocol("VAE 784-200-20, decoder 20-200-200-784", train, bounds[0], "1e-2", 256),
        "trained_with": name,
        "epochs": EPOCHS_OF_CHAPTER_10,
        "held_out": [bound.negative_elbo for bound in bounds],
        **{key: [row[key] for row in rows] for key in rows[0]},
    }


def chapter_11() -> list[dict]:
    """Who draws the digit that is asked for; completing binary MNIST from 1, 2 and 3 quarters."""
    return [*obedience(), *completions()]


def completions() -> list[dict]:
    """Completing binary MNIST from 1, 2 and 3 quarters, with z and without."""
    train, test = load_images("train", "full"), load_images("test", "full")
    return [completion(quadrants(train, seen), quadrants(test, seen)) for seen in (1, 2, 3)]


CHOICES = {
    "N(0, I), shared weights": {"learned_prior": False, "own_weights": False},
    "learned priors": {"own_weights": False},
    "own weights": {"learned_prior": False},
    "both, the defaults": {},
}


def obedience() -> list[dict]:
    """What each choice of the conditional VAE buys, by a judge that has seen all of MNIST.

    Each seed of a choice trains on the same images in the same order as that of the others, so
    bounds are compared seed by seed.
    """
    small, full = (
        [load_images(split, source) for split in ("train", "test")]
        for source in ("bundled", "full")
    )
    judge = convolutional_judge(full[0])
    right = judged(judge, full[1].images, full[1].labels)
    first, *_, last = CHOICES
    return [
        *(obeyed(judge, right, name, *small, epochs=40) for name in CHOICES),
        *(obeyed(judge, right, name, *full, epochs=10) for name in (first, last)),
    ]


def convolutional_judge(train: Images, epochs: int = 3) -> nn.Module:
    """A classifier that no chapter trains: two convolutions, a hidden layer of 64."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10)),
    ).to(train.images.device)
    optimizer, generator = torch.optim.Adam(net.parameters(), lr=1e-3), seeded(1)
    for _ in range(epochs):
        for batch in torch.randperm(len(train), generator=generator).split(128):
            loss = cross_entropy(net(train.images[batch]), train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.requires_grad_(False)


def judged(judge: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images in which the judge sees their label."""
    return (judge(images).argmax(-1) == labels).double().mean().item()


def obeyed(
    judge: nn.Module, right: float, name: str, train: Images, test: Images, epochs: int
) -> dict:
    """How often samples show the digit that was asked for, and the bound, over all seeds."""
    runs = [one_seed(judge, name, train, test, epochs, seed) for seed in SEEDS]
    return {
        **protocol("CVAE 784-400-20", train, runs[0]["bound"]),
        "choice": name,
        "epochs": epochs,
        "samples": SAMPLES_A_SEED,
        "judge": "two convolutions, trained on full MNIST",
        "judge_accuracy": right,
        "obeyed_each": [run["obeyed"] for run in runs],
        "held_out_each": [run["bound"].negative_elbo for run in runs],
        "standard_error": statistics.mean(run["bound"].standard_error for run in runs),
        "kl": statistics.mean(run["bound"].kl for run in runs),
        "prior_gap": statistics.mean(run["gap"] for run in runs),
    }


@torch.no_grad()
def one_seed(
    judge: nn.Module, name: str, train: Images, test: Images, epochs: int, seed: int
) -> dict:
    """One training: the share of samples that obey, the bound, and the gap to the prior."""
    torch.manual_seed(seed)
    model = CVAE(**CHOICES[name]).to(train.images.device)
    fit(model, train, epochs=epochs, seed=seed)
    asked = torch.arange(SAMPLES_A_SEED, device=train.images.device) % 10
    samples = model.sample(SAMPLES_A_SEED, seeded(seed), y=asked)
    gaps = [prior_gap(model, train[train.labels == y]) for y in range(10)]
    return {
        "obeyed": judged(judge, samples, asked),
        "bound": average_elbo(model, test, n_samples=10, seed=seed),
        "gap": statistics.mean(gaps),
    }


def prior_gap(model: CVAE, data: Images) -> float:
    """At least KL(q(z | y) || p(z | y)) of one label's aggregated posterior, in nats.

    Equation ``eq-aggregated-moments``; divergences stay when z is measured in units of the prior.
    """
    q_z, p_z = model.encode(data.images, data.labels), model.prior(data.labels)
    mu, log_var = (q_z.mu - p_z.mu) / p_z.sigma, q_z.log_var - p_z.log_var
    return aggregated_kl_bound(mu, log_var).item()


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
        "quantity": tested.quantity,
        "pixels": tested.pixels,
        "seeds": list(SEEDS),
        "device": tested.device,
    }


CHAPTERS = (chapter_07, chapter_08, chapter_08_seeds, chapter_09, chapter_10, chapter_11)


def main() -> None:
    chapters = {each.__name__: each for each in CHAPTERS}
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
