"""Completed digits, and whether a conditional VAE draws what it is asked for (chapter 11)."""

import statistics
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from measurements.common import SEEDS, averaged, protocol
from vae_book.data import load_images
from vae_book.device import seeded
from vae_book.evaluation import aggregated_kl_bound, average_elbo, log_likelihood
from vae_book.images import Images, binarize, quadrants
from vae_book.models import CVAE, CompletionVAE
from vae_book.protocol import Measurement, Protocol
from vae_book.training import fit

EPOCHS_OF_A_COMPLETION = 20
SAMPLES_A_SEED = 2000  # of a conditional VAE
CHOICES = {
    "N(0, I), shared weights": {"learned_prior": False, "own_weights": False},
    "learned priors": {"own_weights": False},
    "own weights": {"learned_prior": False},
    "both, the defaults": {},
}


def chapter_11() -> list[dict]:
    """Who draws the digit that is asked for; completing binary MNIST from 1, 2 and 3 quarters."""
    return [*obedience(), *completions()]


def completions() -> list[dict]:
    """Completing binary MNIST from 1, 2 and 3 quarters, with z and without."""
    train, test = load_images("train", "full"), load_images("test", "full")
    return [completion(quadrants(train, seen), quadrants(test, seen)) for seen in (1, 2, 3)]


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
    bounds, shares = [run["bound"] for run in runs], [run["obeyed"] for run in runs]
    how = replace(
        bounds[0].protocol,
        quantity="negative ELBO given y, noise of its own in each run",
        seeds=tuple(SEEDS),
        epochs=epochs,
        standard_error="images, in brackets the spread over training seeds",
    )
    return {
        **protocol("CVAE 784-400-20", train, bounds[0]),
        "choice": name,
        "epochs": epochs,
        "samples": SAMPLES_A_SEED,
        "judge": "two convolutions, trained on full MNIST",
        "judge_accuracy": right,
        "obeyed_each": shares,
        "obeyed": percent(shares, how),
        "held_out_each": [bound.negative_elbo for bound in bounds],
        "held_out": averaged(
            [Measurement(each.negative_elbo, each.standard_error, how) for each in bounds], how
        ),
        "kl": statistics.mean(bound.kl for bound in bounds),
        "prior_gap": statistics.mean(run["gap"] for run in runs),
    }


def percent(shares: list[float], how: Protocol) -> dict:
    """The share of samples that obey, of 100; each seed draws `SAMPLES_A_SEED`."""
    of_samples = replace(
        how,
        quantity="samples of 100 in which the judge sees the digit asked for",
        source="the CVAE's own",
        split="samples",
        n_images=SAMPLES_A_SEED,
        K=None,
    )
    errors = [100 * (p * (1 - p) / SAMPLES_A_SEED) ** 0.5 for p in shares]
    of_seeds = zip(shares, errors, strict=True)
    found = [Measurement(100 * share, error, of_samples) for share, error in of_seeds]
    return averaged(found, of_samples)


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
    how = replace(
        exact.protocol,
        quantity="-log p(missing | seen), by the estimate of the row",
        K=None,
        binarization="test images drawn once, seed 0; training images afresh in each step",
        seeds=(0,),
        standard_error=None,
        epochs=EPOCHS_OF_A_COMPLETION,
    )
    return {
        **protocol("CompletionVAE, 400 units, d = 20", train, bound),
        "quantity": how.quantity,
        "protocol": how.as_dict(),
        "seeds": [0],
        "seen": seen,
        "epochs": EPOCHS_OF_A_COMPLETION,
        "deterministic": -exact.value,
        "bound": bound.negative_elbo,
        "importance_sampling": -sampled.value,
        "monte_carlo": -monte_carlo.value,
        "standard_error": exact.standard_error,
    }
