"""Measuring a trained model on images it has not seen (used from chapter 8 on).

It is measured in evaluation mode, and left in the mode in which it was.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import trange

from vae_book.bayes import Posterior, enumerate_posterior
from vae_book.bounds import Elbo, elbo, importance_weighted_bound, log_weights
from vae_book.checks import MOST, enough_draws, numeric, of_kind, same_shape, whole_number
from vae_book.deprecated import moved
from vae_book.device import describe, seeded, standard_normal
from vae_book.distributions import DiagonalGaussian
from vae_book.divergences import gaussian_kl_full, gaussian_unit_kl
from vae_book.images import Images
from vae_book.models import VAE, measuring
from vae_book.protocol import Measurement, Protocol
from vae_book.tally import Tally, digest, fingerprint

ACTIVE = 0.01  # the variance of a unit's posterior mean above which it counts as active
CHUNK = 500  # images at a time: decoder outputs of this many rows stay in the processor's cache
OUTPUTS = 10 * CHUNK  # of the decoder at a time, where the encoder would run again for fewer
DRAWS = 500  # of an image, that have a stream of noise of their own


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
@measuring
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
    generator, n_samples = seeded(seed), whole_number("n_samples", n_samples, most=MOST)
    terms = []
    for x, y in chunks(model, data):
        eps = standard_normal((n_samples, len(x), model.latent), generator, x.device)
        terms.append(_elbo(model, x, eps, y))
    log_likelihood = torch.cat([term.log_likelihood for term in terms]).cpu().double()
    kl = torch.cat([term.kl for term in terms]).cpu().double()
    quantity = f"ELBO{_given(model, data)}"
    return Bound(
        **_averaged(log_likelihood - kl, data, quantity, seed, n_samples),
        log_likelihood=log_likelihood.mean().item(),
        kl=kl.mean().item(),
    )


def _elbo(model: VAE, x: Tensor, eps: Tensor, y: Tensor | None) -> Elbo:
    """The terms of `elbo`, a few draws at a time: memory does not grow with their number."""
    parts = eps.split(max(1, OUTPUTS // max(1, len(x))))
    terms = [elbo(model, x, part, y=y) for part in parts]
    if len(terms) == 1:
        return terms[0]
    shares = [len(part) / len(eps) for part in parts]
    averages = (sum(map(mul, shares, each)) for each in zip(*terms, strict=True))
    return Elbo(*averages)


@dataclass(frozen=True)
class Evidence(Measurement):
    """An estimate of log p(x): ``value`` is its average over images; higher is better.

    Attributes:
        per_image: the estimate of each image, in double precision on the CPU, shape (n,).
        errors: the standard error of each, over draws, to first order in the error of the average
            weight: the coefficient of variation of the weights over sqrt(K - 1), shape (n,). It is
            infinite for one draw, and too small where no draw met the weights that matter.
        effective_draws: as how many equal weights those of each image count, shape (n,); Kong, Liu
            and Wong (1994). Few of many draws are a warning: the estimate is then likely too low.
    """

    per_image: Float[Tensor, " n"] = field(compare=False, repr=False)
    errors: Float[Tensor, " n"] = field(compare=False, repr=False)
    effective_draws: Float[Tensor, " n"] = field(compare=False, repr=False)


@torch.no_grad()
@measuring
def log_likelihood(
    model: VAE,
    data: Images,
    *,
    n_samples: int,
    seed: int = 0,
    from_prior: bool = False,
    chunk: int = CHUNK,
    file: Path | str | None = None,
    progress: bool = False,
) -> Evidence:
    """An estimate of log p(x), or of log p(x | y) if the model is told y, in nats.

    The importance-weighted bound of K = ``n_samples`` draws, equation ``eq-iw-bound`` (chapter 4);
    Burda et al. (2016), equation 8. On average it is too low, less so for larger K.

    The noise of an image depends on the seed and on its place in the data alone. Memory does not
    grow with K: draws are decoded a few hundred at a time and their weights added up.

    Args:
        model: the VAE.
        data: the images, held out or not.
        n_samples: draws of z for each image.
        seed: of those draws.
        from_prior: draw z from the prior instead of from q: plain Monte Carlo, which needs no
            encoder and many more draws (chapter 1).
        chunk: how many decoder outputs are computed at a time, at most; the result is the same but
            for rounding. A few hundred stay in a processor's cache; a GPU wants more.
        file: where to keep the sums every few seconds. If it exists already, the same call goes on
            from there, to the same bits; it stays when all is done.
        progress: show a progress bar.

    Raises:
        ValueError: n_samples or chunk is not positive, there are fewer than two images, they do not
            fit the model, or the file is damaged or belongs to another measurement.
        WriteError: the file cannot be written.
    """
    K, chunk = whole_number("n_samples", n_samples), whole_number("chunk", chunk)
    seed = whole_number("seed", seed, least=0)
    _check_enough(data)
    groups = list(chunks(model, data, min(K, DRAWS), chunk))
    starts = list(accumulate((len(x) for x, _ in groups), initial=0))
    name = "" if file is None else _name(model, data, K, seed, from_prior, chunk)
    tally = Tally(starts[-1], file, name)
    blocks = -(-K // DRAWS)
    for step in trange(len(groups) * blocks, disable=not progress):
        if step < tally.steps:
            continue
        group, block = divmod(step, blocks)
        (x, y), rows = groups[group], slice(starts[group], starts[group + 1])
        draws = min(DRAWS, K - block * DRAWS)
        # A stream for each image, counted from 1: a seed that ends in 0 is the seed without it.
        streams = [seeded(seed, block, i + 1) for i in range(rows.start, rows.stop)]
        for weights in _weights(model, x, y, streams, draws, chunk, from_prior):
            weights = weights.cpu().double()
            means = [importance_weighted_bound(power * weights) for power in (1, 2)]
            tally.add(rows, torch.stack(means) + math.log(len(weights)))
        tally.step(last=step + 1 == len(groups) * blocks)
    return _evidence(model, data, tally.sums, K, seed, from_prior)


def _weights(
    model: VAE,
    x: Tensor,
    y: Tensor | None,
    streams: Sequence[torch.Generator],
    draws: int,
    chunk: int,
    from_prior: bool,
) -> Iterator[Tensor]:
    """The log-weights of some draws for some images, shape (k, n), at most ``chunk`` at a time."""
    size, noise = max(1, chunk // len(x)), []
    if from_prior:
        model.check_images(x)
    for i, stream in enumerate(streams):
        if from_prior:
            p_z = model.prior(None if y is None else y[i : i + 1])
            noise.append(p_z.sample((draws, 1), stream))
        else:
            noise.append(standard_normal((draws, 1, model.latent), stream))
    for part in torch.cat(noise, dim=1).to(x.device).split(size):
        yield model.decode(part, y).log_prob(x) if from_prior else log_weights(model, x, part, y=y)


def _evidence(
    model: VAE, data: Images, sums: Tensor, K: int, seed: int, from_prior: bool
) -> Evidence:
    """The estimate from log(sum of w) and log(sum of w^2) of each image."""
    log_sum, log_squares = sums
    effective = (2 * log_sum - log_squares).exp().clamp(1, K)  # rounding aside it is
    effective = torch.where(log_sum.isneginf(), 1.0, effective)  # all weights are 0
    variation = (K / effective - 1).clamp(min=0)
    origin = "the prior" if from_prior else "q"
    given = " | y" if _given(model, data) else ""
    per_image = log_sum - math.log(K)
    return Evidence(
        **_averaged(per_image, data, f"log p(x{given}), draws from {origin}", seed, K),
        per_image=per_image,
        errors=(variation / (K - 1)).sqrt() if K > 1 else torch.full_like(per_image, math.inf),
        effective_draws=effective,
    )


def _name(model: VAE, data: Images, K: int, seed: int, from_prior: bool, chunk: int) -> str:
    """What a file of sums belongs to."""
    weights = digest(model.state_dict().values())
    origin = "the prior" if from_prior else "q"
    return (
        f"a {type(model).__name__} of SHA-256 {weights}, {fingerprint(data)}, K = {K} from "
        f"{origin}, seed {seed}, chunk {chunk}"
    )


def _given(model: VAE, data: Images) -> str:
    return " given y" if model.told(data) is not None else ""


def chunks(
    model: VAE, data: Images, n_samples: int = 1, rows: int | None = None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images, and what the model is told about them, a few hundred decoder outputs at a time."""
    of_kind(Images, data=data)
    size, told = max(1, (rows or CHUNK) // n_samples), model.told(data)
    for start in range(0, max(1, len(data)), size):
        part = slice(start, start + size)
        yield data.images[part], None if told is None else told[part]


def _averaged(per_image: Tensor, data: Images, quantity: str, seed: int, K: int) -> dict[str, Any]:
    """The fields of a `Measurement`, from what was found for each image."""
    _check_enough(data)
    per_image = per_image.cpu().double()
    return {
        "value": per_image.mean().item(),
        "standard_error": (per_image.std() / len(data) ** 0.5).item(),
        "protocol": protocol(data, quantity, seed, K),
    }


def _check_enough(data: Images) -> None:
    if len(data) < 2:
        raise ValueError(f"data: expected 2 images or more for a standard error, got {len(data)}")


def protocol(
    data: Images, quantity: str, seed: int = 0, K: int | None = None, **known: Any
) -> Protocol:
    """How a quantity was measured on these images.

    Args:
        data: the images.
        quantity: what was measured.
        seed: of the noise.
        K: draws of z for each image.
        known: what else is known, such as ``epochs``, or is to be said in other words.
    """
    binary = bool(((data.images == 0) | (data.images == 1)).all())
    levels = "grayscale" if data.shape[0] == 1 else "color"
    found: dict[str, Any] = {
        "quantity": quantity,
        "source": data.source,
        "split": data.split,
        "n_images": len(data),
        "pixels": "binary" if binary else levels,
        "seed": seed,
        "device": describe(data.images.device),
        "K": K,
        "standard_error": "images",
    }
    return Protocol(**found | known)


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
@measuring
def posteriors(model: VAE, data: Images) -> DiagonalGaussian:
    """q(z | x) of every image, which gives ``mu, log_var``, each of shape (n, d)."""
    parts = [model.encode(x, y) for x, y in chunks(model, data)]
    return DiagonalGaussian(*(torch.cat(part) for part in zip(*parts, strict=True)))


@numeric
def unit_statistics(mu: Float[Tensor, "n d"], log_var: Float[Tensor, "n d"]) -> Units:
    """What each unit of z does, from the posteriors of some images and the prior N(0, I).

    Equation ``eq-active-unit`` (chapter 10); Burda et al. (2016), section 5.2.

    Args:
        mu, log_var: as from `posteriors`.

    Raises:
        ValueError: there are fewer than two images, or the shapes do not match.
    """
    enough_draws(mu=mu, log_var=log_var)
    return Units(gaussian_unit_kl(mu, log_var).mean(0), mu.var(0), log_var.exp().mean(0))


def active_units(model: VAE, data: Images) -> int:
    """How many units of z move with the image: equation ``eq-active-unit`` (chapter 10)."""
    return int(unit_statistics(*posteriors(model, data)).active.sum())


@numeric
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
    same_shape(mu=mu, log_var=log_var)
    enough_draws(mu=mu, log_var=log_var)
    if mu.ndim != 2:
        raise ValueError(f"mu and log_var: expected shape (n, d), got {tuple(mu.shape)}")
    mu, log_var = mu.cpu().double(), log_var.cpu().double()  # double precision is not everywhere
    mean, variance = mu.mean(0), log_var.exp().mean(0)
    cov = torch.cov(mu.T, correction=0).reshape(*2 * mean.shape) + variance.diag()
    return gaussian_kl_full(mean, cov, torch.zeros_like(mean), torch.eye(len(mean)).to(cov))


@torch.no_grad()
@measuring
@numeric
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
        rows.append(torch.stack([_elbo(model, x, eps, y).value for y in labels], dim=-1))
    return torch.cat(rows)


@numeric
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
