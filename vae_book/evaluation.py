"""Measuring a trained model on images it has not seen (used from chapter 8 on)."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vae_book.bayes import Posterior, enumerate_posterior
from vae_book.bounds import elbo, importance_weighted_bound, log_weights
from vae_book.checks import as_floats, enough_draws, same_shape, whole_number
from vae_book.deprecated import moved
from vae_book.device import describe, seeded, standard_normal
from vae_book.distributions import DiagonalGaussian
from vae_book.divergences import gaussian_kl_full, gaussian_unit_kl
from vae_book.images import Images
from vae_book.models import VAE

ACTIVE = 0.01  # the variance of a unit's posterior mean above which it counts as active
CHUNK = 500  # images at a time: decoder outputs of this many rows stay in the processor's cache


@dataclass(frozen=True)
class Protocol:
    """What a number was measured on and how; numbers of different protocol do not compare.

    Attributes:
        quantity: what was measured, such as ``ELBO, K=1``.
        source, split, n_images: the data.
        pixels: ``grayscale`` or ``binary``.
        seed: of the noise.
        device: where it ran.
    """

    quantity: str
    source: str
    split: str
    n_images: int
    pixels: str
    seed: int
    device: str


@dataclass(frozen=True)
class Measurement:
    """A number in nats, averaged over images.

    Attributes:
        value: the average.
        standard_error: of ``value`` as an estimate for images like these.
        protocol: how it was measured.
    """

    value: float
    standard_error: float
    protocol: Protocol

    def as_dict(self) -> dict:
        """Plain numbers and strings, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Bound(Measurement):
    """The ELBO: ``value`` is ``log_likelihood - kl``; higher is better.

    Attributes:
        log_likelihood: the average of E_q[log p(x | z)].
        kl: the average of KL(q(z | x) || p(z)).
    """

    log_likelihood: float
    kl: float

    @property
    def negative_elbo(self) -> float:
        """What training minimizes and papers print: lower is better."""
        return -self.value

    @property
    def reconstruction(self) -> float:
        """Its first term, -E_q[log p(x | z)]."""
        return -self.log_likelihood


@torch.no_grad()
def average_elbo(model: VAE, data: Images, *, n_samples: int = 1, seed: int = 0) -> Bound:
    """The ELBO of images, equation ``eq-elbo``; of a conditional model, given what it is told.

    Args:
        model: the VAE.
        data: the images, held out or not.
        n_samples: draws of z for each image.
        seed: of those draws.

    Raises:
        ValueError: there are fewer than two images, or they do not fit the model.
    """
    generator = seeded(seed)
    terms = [
        elbo(model, x, y=y, n_samples=n_samples, generator=generator)
        for x, y in chunks(model, data)
    ]
    log_likelihood = torch.cat([term.log_likelihood for term in terms]).cpu().double()
    kl = torch.cat([term.kl for term in terms]).cpu().double()
    quantity = f"ELBO{_given(model, data)}, K={n_samples}"
    return Bound(
        **_averaged(log_likelihood - kl, data, quantity, seed),
        log_likelihood=log_likelihood.mean().item(),
        kl=kl.mean().item(),
    )


@torch.no_grad()
def log_likelihood(
    model: VAE, data: Images, *, n_samples: int, seed: int = 0, from_prior: bool = False
) -> Measurement:
    """An estimate of log p(x), or of log p(x | y) if the model is told y, in nats.

    The importance-weighted bound of K = ``n_samples`` draws, equation ``eq-iw-bound`` (chapter 4);
    Burda et al. (2016), equation 8. On average it is too low, less so for larger K.

    Args:
        model: the VAE.
        data: the images, held out or not.
        n_samples: draws of z for each image.
        seed: of those draws.
        from_prior: draw z from the prior instead of from q: plain Monte Carlo, which needs no
            encoder and many more draws (chapter 1).

    Raises:
        ValueError: n_samples is not positive, there are fewer than two images, or they do not fit
            the model.
    """
    n_samples = whole_number("n_samples", n_samples)
    generator, found = seeded(seed), []
    for x, y in chunks(model, data, n_samples):
        if from_prior:
            model.check_images(x)
            z = model.prior(y).sample((n_samples, len(x)), generator)
            weights = model.decode(z, y).log_prob(x)
        else:
            eps = standard_normal((n_samples, len(x), model.latent), generator, x.device)
            weights = log_weights(model, x, eps, y=y)
        found.append(importance_weighted_bound(weights))
    origin = "the prior" if from_prior else "q"
    given = " | y" if _given(model, data) else ""
    quantity = f"log p(x{given}), {n_samples} draws from {origin}"
    return Measurement(**_averaged(torch.cat(found), data, quantity, seed))


def _given(model: VAE, data: Images) -> str:
    return " given y" if model.told(data) is not None else ""


def chunks(model: VAE, data: Images, n_samples: int = 1) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images, and what the model is told about them, a few hundred decoder outputs at a time."""
    size, told = max(1, CHUNK // n_samples), model.told(data)
    for start in range(0, max(1, len(data)), size):
        part = slice(start, start + size)
        yield data.images[part], None if told is None else told[part]


def _averaged(per_image: Tensor, data: Images, quantity: str, seed: int) -> dict[str, Any]:
    """The fields of a `Measurement`, from what was found for each image."""
    if len(data) < 2:
        raise ValueError(f"data: expected 2 images or more for a standard error, got {len(data)}")
    per_image = per_image.cpu().double()
    return {
        "value": per_image.mean().item(),
        "standard_error": (per_image.std() / len(data) ** 0.5).item(),
        "protocol": protocol(data, quantity, seed),
    }


def protocol(data: Images, quantity: str, seed: int) -> Protocol:
    """How a quantity was measured on these images."""
    binary = bool(((data.images == 0) | (data.images == 1)).all())
    return Protocol(
        quantity=quantity,
        source=data.source,
        split=data.split,
        n_images=len(data),
        pixels="binary" if binary else "grayscale",
        seed=seed,
        device=describe(data.images.device),
    )


class Units(NamedTuple):
    """What the units of z do on a set of images, one number for each unit, shape (d,).

    Attributes:
        kl: the average of KL(q(z_j | x) || p(z_j)), in nats.
        spread: the variance of the posterior means over the images.
        variance: the average variance of the posterior.
    """

    kl: Float[Tensor, " d"]
    spread: Float[Tensor, " d"]
    variance: Float[Tensor, " d"]

    @property
    def active(self) -> Bool[Tensor, " d"]:
        """Which units move with the image: those of a spread above 0.01.

        Burda et al. (2016), section 5.2 (chapter 10).
        """
        return self.spread > ACTIVE


@torch.no_grad()
def posteriors(model: VAE, data: Images) -> DiagonalGaussian:
    """q(z | x) of every image, which gives ``mu, log_var``, each of shape (n, d)."""
    parts = [model.encode(x, y) for x, y in chunks(model, data)]
    return DiagonalGaussian(*(torch.cat(part) for part in zip(*parts, strict=True)))


def unit_statistics(mu: Float[Tensor, "n d"], log_var: Float[Tensor, "n d"]) -> Units:
    """What each unit of z does, from the posteriors of some images and the prior N(0, I).

    Equation ``eq-active-unit`` (chapter 10); Burda et al. (2016), section 5.2.

    Args:
        mu, log_var: as from `posteriors`.

    Raises:
        ValueError: there are fewer than two images, or the shapes do not match.
    """
    mu, log_var = as_floats(mu, log_var)
    enough_draws(mu=mu, log_var=log_var)
    return Units(gaussian_unit_kl(mu, log_var).mean(0), mu.var(0), log_var.exp().mean(0))


def active_units(model: VAE, data: Images) -> int:
    """How many units of z move with the image: equation ``eq-active-unit`` (chapter 10)."""
    return int(unit_statistics(*posteriors(model, data)).active.sum())


def aggregated_kl_bound(
    mu: Float[Tensor, "n d"], log_var: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """A lower bound on KL(q(z) || N(0, I)) of the aggregated posterior, in nats.

    Equation ``eq-aggregated-moments`` (chapter 10): the KL of the Gaussian that has its mean and
    covariance. It is what the aggregated posterior misses of the prior in its first two moments;
    the rest, its holes and corners, comes on top.

    Args:
        mu, log_var: the posteriors that q(z) averages, as from `posteriors`.

    Raises:
        ValueError: there are fewer than two images, or the shapes do not match.
    """
    mu, log_var = as_floats(mu, log_var)
    same_shape(mu=mu, log_var=log_var)
    enough_draws(mu=mu, log_var=log_var)
    mu, log_var = mu.cpu().double(), log_var.cpu().double()  # double precision is not everywhere
    mean, variance = mu.mean(0), log_var.exp().mean(0)
    cov = torch.cov(mu.T, correction=0).reshape(*2 * mean.shape) + variance.diag()
    return gaussian_kl_full(mean, cov, torch.zeros_like(mean), torch.eye(len(mean)).to(cov))


@torch.no_grad()
def class_log_bounds(
    model: VAE,
    images: Float[Tensor, "n channels height width"],
    *,
    n_samples: int = 1,
    seed: int = 0,
) -> Float[Tensor, "n classes"]:
    """A lower bound on log p(x | y) of each image with every label y, in nats.

    Equation ``eq-conditional-elbo`` (chapter 11). All labels get the same noise, so that they
    differ by the label and not by luck.

    Args:
        model: the conditional VAE.
        images: the images; their labels are not asked for.
        n_samples: draws of z for each image.
        seed: of those draws.

    Raises:
        ValueError: the model takes no labels, or n_samples is not positive.
    """
    if not model.classes:
        raise ValueError(f"model: expected a CVAE, got a {type(model).__name__}, without labels")
    n_samples = whole_number("n_samples", n_samples)
    generator = seeded(seed)
    rows = []
    for x in images.split(CHUNK):
        eps = standard_normal((n_samples, len(x), model.latent), generator, x.device)
        labels = (torch.full((len(x),), y, device=x.device) for y in range(model.classes))
        rows.append(torch.stack([elbo(model, x, eps, y=y).value for y in labels], dim=-1))
    return torch.cat(rows)


def class_posterior(log_bounds: Float[Tensor, "*batch classes"]) -> Posterior:
    """Bayes' rule for the label, with bounds in place of log p(x | y) and all labels as frequent.

    Equations ``eq-class-posterior`` (its ``log_posterior``, log p(y | x) if the bounds touch) and
    ``eq-label-mixture`` (its ``log_evidence``, a lower bound on log p(x)) of chapter 11.

    Args:
        log_bounds: a bound on log p(x | y) for each label, as from `class_log_bounds`.

    Raises:
        ValueError: there are no labels, a bound is NaN, or no label explains an image.
    """
    classes = log_bounds.shape[-1]
    if classes < 1:
        raise ValueError(
            f"log_bounds: expected one label or more, got shape {tuple(log_bounds.shape)}"
        )
    return enumerate_posterior(log_bounds.new_full((classes,), -math.log(classes)), log_bounds)


__getattr__ = moved(
    __name__,
    {
        "test_bound": "evaluation.average_elbo",
    },
)
