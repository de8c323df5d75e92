"""The budget in nats, both sides of log p(x), and weighted objectives (chapter 13)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from measurements.common import FIVE, SEEDS, averaged
from vae_book.annealing import both_sides
from vae_book.budget import correlation_gain, nats_budget
from vae_book.data import load_images
from vae_book.device import seeded
from vae_book.evaluation import average_elbo, log_likelihood, protocol
from vae_book.images import Images, binarize
from vae_book.likelihoods import Bernoulli
from vae_book.models import CVAE, VAE, ConvVAE
from vae_book.monte_carlo import Estimate, average
from vae_book.objectives import Objective
from vae_book.protocol import Measurement, Protocol
from vae_book.training import fit

EPOCHS = 6
LONG = 30  # where training has to come near its end
FRESH = "afresh in each step to train"


def chapter_13() -> list[dict]:
    """Budgets of three models, both sides of log p(x), and weighted objectives."""
    train = load_images("train", "bundled")
    test = binary(load_images("test", "bundled"))
    return [*budgets(train, test), *objectives(train, test)]


def binary(data: Images) -> Images:
    """The images, made black and white once."""
    return data.with_images(binarize(data.images, seeded(0)))


def over_seeds(
    runs: list[dict[str, Measurement]],
    binarization: str = f"once with seed 0 to measure, {FRESH}",
    epochs: int = EPOCHS,
) -> dict[str, dict]:
    """Of each line the mean over seeds, its standard error over images, and the spread of seeds."""
    rows = {}
    for name in runs[0]:
        found = [run[name] for run in runs]
        how = replace(
            found[0].protocol,
            binarization=binarization,
            seeds=tuple(range(len(runs))),
            standard_error="images, in brackets the spread over training seeds",
            epochs=epochs,
        )
        rows[name] = averaged(found, how)
    return rows


def line(estimate: Estimate, protocol: Protocol) -> Measurement:
    """An estimate with its protocol."""
    return Measurement(float(estimate.value), float(estimate.standard_error), protocol)


def trained(
    kind: Callable[..., VAE], train: Images, seed: int, epochs: int = EPOCHS, **options: Any
) -> VAE:
    """A model of black and white pixels, trained on fresh ones in each step."""
    torch.manual_seed(seed)
    model = kind(likelihood=Bernoulli()).to(train.images.device)
    fit(model, train, seed=seed, resample=True, epochs=epochs, batch_size=32, **options)
    return model


def described(train: Images, model: str) -> dict:
    """What `trained` made, and of what."""
    return {
        "model": f"{model}, Adam 1e-3, batch 32, fresh binary pixels in each step",
        "trained_on": f"{train.source}, {len(train):,} images",
    }


def budgets(train: Images, test: Images) -> list[dict]:
    """The budget in nats of three models with ten latent units and equally many steps.

    Of the VAE the bounds from both sides as well, on images that it made.
    """
    kinds = {"VAE": partial(VAE, 10), "CVAE": partial(CVAE, 10), "ConvVAE": partial(ConvVAE, 10)}
    test, rows = test[:: len(test) // 20], []
    for name, kind in kinds.items():
        models = [trained(kind, train, seed) for seed in SEEDS]
        lines = over_seeds([budget(model, test) for model in models])
        rows.append({"part": "budget", "name": name, **described(train, name), **lines})
        if name == "VAE":
            rows += [both(models, n_temperatures) for n_temperatures in (25, 100)]
    return rows


def budget(model: VAE, data: Images) -> dict[str, Measurement]:
    """The lines of a budget, and what a richer q adds."""
    options = {"n_samples": 500, "steps": 150}
    found = nats_budget(model, data, **options)
    lines = {
        "log_evidence": found.log_evidence,
        "elbo": found.elbo,
        "approximation_gap": found.approximation_gap,
        "correlation_gain": correlation_gain(model, data, **options),
        "amortization_gap": found.amortization_gap,
        "kl": found.split.kl,
    }
    return {name: line(each, found.protocol) for name, each in lines.items()}


def both(models: list[VAE], n_temperatures: int) -> dict:
    """Lower and upper bounds on log p(x) of images that the models made."""
    runs, n = [], 10
    for seed, model in zip(SEEDS, models, strict=True):
        found = both_sides(model, n, n_temperatures=n_temperatures, n_chains=4, seed=seed)
        lines = {"lower": found.lower, "upper": found.upper, "gap": found.upper - found.lower}
        made = Images(found.x, torch.zeros(n).to(found.x).long(), "the VAE's own", "samples")
        how = protocol(made, "bounds by annealing, 4 chains, noise of its own in each run")
        runs.append({name: line(average(each.double()), how) for name, each in lines.items()})
    return {"part": "both sides", "n_temperatures": n_temperatures, **over_seeds(runs, FRESH)}


def objectives(train: Images, test: Images) -> list[dict]:
    """The same small VAE trained by the ELBO and by weighted bounds of eight draws."""
    rows = []
    for bound, draws in (("elbo", 1), ("elbo", 8), ("iwae", 8), ("iwae-dreg", 8)):
        runs = []
        for seed in FIVE:
            options = {"n_samples": draws, "objective": Objective(bound=bound)}
            model = trained(partial(VAE, 10, 100), train, seed, LONG, **options)
            elbo = average_elbo(model, test, n_samples=10)
            weighted = log_likelihood(model, test, n_samples=200)
            runs.append({"elbo": elbo, "weighted": weighted})
        made = described(train, "VAE 784-100-10")
        rows.append({"part": "objectives", "objective": bound, "draws": draws, **made})
        rows[-1] |= over_seeds(runs, epochs=LONG)
        for name in runs[0]:
            rows[-1][f"{name}_each"] = [run[name].value for run in runs]
    return rows
