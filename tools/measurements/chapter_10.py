"""Weights of the KL around 1, and a deeper VAE that may collapse (chapter 10)."""

import torch
from torch import nn

from measurements.common import SEEDS, TEN, in_use, protocol
from vae_book.budget import refined
from vae_book.data import load_images
from vae_book.device import seeded
from vae_book.divergences import gaussian_kl
from vae_book.evaluation import active_units, average_elbo, posteriors
from vae_book.images import Images
from vae_book.models import VAE
from vae_book.objectives import Objective
from vae_book.training import fit

BETAS = (0.5, 0.7, 1.0, 1.4, 2.0)
EPOCHS = 12


def chapter_10() -> list[dict]:
    """The small VAE with weights of the KL around 1, and a deeper one that may collapse."""
    train, test = load_images("train", "bundled"), load_images("test", "bundled")
    cures = {
        "plain": Objective(),
        "warm-up": Objective(warm_up=EPOCHS // 2),
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
        options = {"epochs": EPOCHS, "lr": 3e-3, "seed": seed}
        fit(model, train, objective=Objective(beta=beta), **options)
        bounds.append(average_elbo(model, test, n_samples=10))
    return {
        **protocol("VAE 784-200-10", train, bounds[0], "3e-3"),
        "beta": beta,
        "epochs": EPOCHS,
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
    for seed in TEN:
        torch.manual_seed(seed)
        model = Deeper().to(train.images.device)
        options = {"epochs": EPOCHS, "lr": 1e-2, "batch_size": 256, "seed": seed}
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
        **protocol("VAE 784-200-20, decoder 20-200-200-784", train, bounds[0], "1e-2", 256, TEN),
        "trained_with": name,
        "epochs": EPOCHS,
        "held_out": [bound.negative_elbo for bound in bounds],
        **{key: [row[key] for row in rows] for key in rows[0]},
    }
