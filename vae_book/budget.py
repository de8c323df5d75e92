"""Where the nats are: what separates log p(x) from the ELBO, and what the KL is spent on."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vae_book.adam import Adam
from vae_book.bounds import (
    Elbo,
    elbo_terms,
    importance_weighted_bound,
    pass_log_weights,
)
from vae_book.checks import enough_draws, numeric, same_shape, whole_number
from vae_book.device import seeded, standard_normal
from vae_book.distributions import LOG_2PI, DiagonalGaussian
from vae_book.evaluation import Protocol, chunks, posteriors, protocol
from vae_book.images import Images
from vae_book.models import VAE, Pass, measuring
from vae_book.monte_carlo import Estimate, average
from vae_book.reparameterization import reparameterize_full

TABLE = 1_000_000  # densities at a time, of draws of z under the q(z | x) of all images
MEASURING = 1  # the stream of noise that measures a q: one that its search has not seen


class Split(NamedTuple):
    """KL(q(z | x) || p(z)), averaged over images, and its two parts, in nats.

    Attributes:
        kl: the whole.
        mutual_information: E_x[KL(q(z | x) || q(z))], what z tells of which image it came from; at
            most the logarithm of the number of images.
        aggregated_kl: KL(q(z) || p(z)) of the aggregated posterior, the average of q(z | x).
    """

    kl: Estimate
    mutual_information: Estimate
    aggregated_kl: Estimate


@dataclass(frozen=True)
class Budget:
    """An account in nats, averaged over images, each line with its standard error over them.

    ``log_evidence = elbo + approximation_gap + amortization_gap``, ``elbo = log_likelihood -
    kl`` and ``kl = mutual_information + aggregated_kl`` hold line by line.

    Attributes:
        log_evidence: log p(x).
        elbo: the bound with the encoder's q(z | x).
        approximation_gap: what no q of the family reaches: log p(x) less the ELBO of the best q.
        amortization_gap: what the encoder misses of that.
        log_likelihood: E_q[log p(x | z)] of the encoder's q.
        split: of its KL.
        units: the same for each unit of z by itself, numbers of shape (d,); None if the prior is
            not a product over units. The informations of units do not add up to the whole if the
            units depend on each other, in q(z).
        protocol: how all of it was measured.
        per_image: log p(x) of each image, in double precision on the CPU, shape (n,).
    """

    log_evidence: Estimate
    elbo: Estimate
    approximation_gap: Estimate
    amortization_gap: Estimate
    log_likelihood: Estimate
    split: Split
    units: Split | None
    protocol: Protocol
    per_image: Float[Tensor, " n"] = field(compare=False, repr=False)


@measuring
@numeric
def nats_budget(
    model: VAE,
    data: Images,
    *,
    n_samples: int = 1000,
    steps: int = 300,
    seed: int = 0,
    log_evidence: Float[Tensor, " n"] | None = None,
) -> Budget:
    """The account of a model on some images; of a conditional model, all of it given y.

    Gaps: equation ``eq-nats-budget`` (chapter 13); Cremer, Li and Duvenaud (2018). Parts of the KL:
    ``eq-kl-split``; Hoffman and Johnson (2016), with these images for the distribution of x.

    Args:
        model: the VAE.
        data: the images, held out or not.
        n_samples: draws of z for each image.
        steps: of `refined`, which looks for the best q, and says how far it gets in so many.
        seed: of all noise.
        log_evidence: log p(x) of each image, where one knows it, or has a better estimate. Else it
            is the importance-weighted bound of n_samples draws from the best q, on average too low:
            a q that maximizes the ELBO is narrow, and its weights have heavy tails. What log p(x)
            lacks, the approximation gap lacks.

    Raises:
        ValueError: there are fewer than two images, they do not fit the model, or log_evidence
            does not fit them.
    """
    n_samples, generator = whole_number("n_samples", n_samples), seeded(seed)
    enough_draws(data=data.images)
    q_z, told = posteriors(model, data), model.told(data)
    best_q = _all_refined(model, data, steps, generator)
    # The same noise for both: most of what it does to them cancels in their difference. None of it
    # was seen by the search, which may have fitted q to what it saw.
    terms, _ = _bounds(model, data, q_z, n_samples, seed)
    best, weighted = _bounds(model, data, best_q, n_samples, seed)
    evidence = weighted if log_evidence is None else log_evidence.to(weighted)
    same_shape(log_evidence=evidence, images=weighted)
    joint, unit = information(q_z, told, generator=generator)
    per_unit = terms.unit_kl.shape == unit.shape
    quantity = f"budget in nats{'' if told is None else ' given y'}, {steps} steps to the best q"
    return Budget(
        log_evidence=average(evidence),
        elbo=average(terms.value),
        approximation_gap=average(evidence - best.value),
        amortization_gap=average(best.value - terms.value),
        log_likelihood=average(terms.log_likelihood),
        split=_split(terms.kl, joint),
        units=_split(terms.unit_kl, unit) if per_unit else None,
        protocol=protocol(data, quantity, seed, n_samples),
        per_image=evidence,
    )


@torch.enable_grad()
@measuring
@numeric
def refined(
    model: VAE,
    x: Float[Tensor, "n channels height width"],
    y: Tensor | None = None,
    *,
    steps: int = 300,
    n_samples: int = 8,
    lr: float = 0.1,
    generator: torch.Generator | None = None,
) -> DiagonalGaussian:
    """The q(z | x) of largest ELBO among diagonal Gaussians, sought for each image by itself.

    Starts from the encoder's. Adam moves each mean in units of its standard deviation, and each
    log-variance, with steps that shrink to 0; the gradients are pathwise (chapter 7). So no mean
    moves by more than about ``lr * steps / 2`` standard deviations: where the encoder is further
    off, as for images of another kind, the search needs more steps. The model stays as it is.
    Cremer, Li and Duvenaud (2018).

    Args:
        model: the VAE.
        x, y: images, and what the model is told about them.
        steps: how many, each with new noise.
        n_samples: draws of z for each image and step.
        lr: the size of the first steps.
        generator: of the noise.

    Raises:
        ValueError: steps is negative, n_samples or lr is not positive, or x or y does not fit the
            model.
    """
    steps, n_samples = whole_number("steps", steps, least=0), whole_number("n_samples", n_samples)
    with torch.no_grad():
        start = model.encode(x, y)

    def bound(shift: Tensor, log_scale: Tensor, eps: Tensor) -> Tensor:
        made = _passed(model, _moved(start, shift, log_scale), eps, y)
        return elbo_terms(x, made).value

    zero = torch.zeros_like(start.mu)
    noise = partial(_opposite_pairs, n_samples, start.mu, generator)
    return _moved(start, *_maximized(bound, [zero, zero.clone()], noise, steps, lr))


class FullRank(NamedTuple):
    """A Gaussian q(z | x) of any covariance for each image: N(mu, L L^T).

    Attributes:
        mu: the means.
        scale: L, lower-triangular with a positive diagonal.
    """

    mu: Float[Tensor, "n d"]
    scale: Float[Tensor, "n d d"]

    @numeric
    def elbo(
        self, model: VAE, x: Tensor, eps: Float[Tensor, "K n d"], y: Tensor | None = None
    ) -> Float[Tensor, " n"]:
        """E_q[log p(x, z)] at the draws that eps makes, plus the entropy of q, in nats."""
        z = reparameterize_full(self.mu, self.scale, eps.to(self.scale))
        joint = model.decode(z, y).log_prob(x) + model.prior(y).log_prob(z)
        log_det = self.scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return joint.mean(0) + log_det + 0.5 * self.mu.shape[-1] * (1 + LOG_2PI)


@torch.enable_grad()
@measuring
@numeric
def refined_full(
    model: VAE,
    x: Float[Tensor, "n channels height width"],
    y: Tensor | None = None,
    *,
    steps: int = 300,
    n_samples: int = 8,
    lr: float = 0.05,
    generator: torch.Generator | None = None,
) -> FullRank:
    """The q(z | x) of largest ELBO among all Gaussians, sought for each image by itself.

    As `refined`, for a larger family: what its best q gains is the part of the approximation gap
    that units cause which depend on each other. Cremer, Li and Duvenaud (2018) take flows.

    Args:
        model, x, y, steps, n_samples, lr, generator: as for `refined`.

    Raises:
        ValueError: as `refined`.
    """
    steps, n_samples = whole_number("steps", steps, least=0), whole_number("n_samples", n_samples)
    with torch.no_grad():
        start = model.encode(x, y)

    def bound(shift: Tensor, factor: Tensor, eps: Tensor) -> Tensor:
        return _full_rank(start, shift, factor).elbo(model, x, eps, y)

    zero = torch.zeros_like(start.mu)
    noise = partial(_opposite_pairs, n_samples, start.mu, generator)
    return _full_rank(start, *_maximized(bound, [zero, zero.diag_embed()], noise, steps, lr))


def _maximized(
    bound: Callable[..., Tensor],
    start: Sequence[Tensor],
    noise: Callable[[], Tensor],
    steps: int,
    lr: float,
) -> list[Tensor]:
    """What Adam makes of some numbers, in steps that shrink to 0, to maximize a bound."""
    if not 0 < lr < math.inf:
        raise ValueError(f"lr: expected a positive number, got {lr}")
    sought = [each.requires_grad_() for each in start]
    optimizer = Adam(sought, lr=lr, betas=(0.9, 0.99))
    shrinking = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(steps):
        loss = -bound(*sought, noise()).sum()
        optimizer.zero_grad()
        loss.backward(inputs=sought)
        optimizer.step()
        shrinking.step()
    return [each.detach() for each in sought]


def _full_rank(start: DiagonalGaussian, shift: Tensor, factor: Tensor) -> FullRank:
    """In units of the first q's deviations; the diagonal of L by its logarithm, so never 0."""
    diagonal = factor.diagonal(dim1=-2, dim2=-1).exp()
    scale = start.sigma.unsqueeze(-1) * (factor.tril(-1) + diagonal.diag_embed())
    return FullRank(start.mu + start.sigma * shift, scale)


@measuring
def correlation_gain(
    model: VAE,
    data: Images,
    *,
    n_samples: int = 1000,
    steps: int = 300,
    seed: int = 0,
) -> Estimate:
    """How much of the approximation gap of `nats_budget` a q with correlated units closes, in nats.

    The ELBO of the best Gaussian less that of the best diagonal one, image by image and with the
    same noise, which neither search has seen.

    Args:
        model, data, n_samples, steps, seed: as for `nats_budget`.
    """
    n_samples, gains = whole_number("n_samples", n_samples), []
    generator, noise = seeded(seed), seeded(seed, MEASURING)
    for x, y in chunks(model, data, 8):
        diagonal = refined(model, x, y, steps=steps, generator=generator)
        full = refined_full(model, x, y, steps=steps, generator=generator)
        start = FullRank(diagonal.mu, diagonal.sigma.diag_embed())
        with torch.no_grad():
            total = torch.zeros_like(diagonal.mu[:, 0])
            for part in _opposite_pairs(n_samples, diagonal.mu, noise).split(100):
                gain = full.elbo(model, x, part, y) - start.elbo(model, x, part, y)
                total += gain * len(part) / n_samples
        gains.append(total)
    return average(torch.cat(gains).cpu().double())


@torch.no_grad()
def information(
    q_z: DiagonalGaussian,
    y: Tensor | None = None,
    *,
    n_samples: int = 10,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n d"]]:
    """E[log q(z | x) - log q(z)] over draws of q(z | x), of each image, in nats.

    The average over images is the mutual information of image and z, equation ``eq-kl-split``
    (chapter 13); Hoffman and Johnson (2016). q(z) is the average of all q(z | x). Given y, it is
    the average over the images of the same y, and an image of which no other shares the y has no
    information.

    Args:
        q_z: q(z | x) of each image.
        y: what each was told.
        n_samples: draws for each image.
        generator: of the draws.

    Returns:
        That of z, shape (n,), and of each of its units alone, shape (n, d).
    """
    if q_z.mu.ndim != 2:
        raise ValueError(f"q_z: expected mu of shape (n, d), got {tuple(q_z.mu.shape)}")
    n_samples, n = whole_number("n_samples", n_samples), len(q_z.mu)
    if y is not None and not (isinstance(y, Tensor) and y.shape[:1] == (n,)):
        raise ValueError(f"y: expected a tensor with a row for each of {n} images, got {y!r:.60}")
    joint, unit = torch.zeros_like(q_z.mu[:, 0]), torch.zeros_like(q_z.mu)
    for group in _alike(y, n, q_z.mu.device):
        mu, log_var = (each.mT.contiguous() for each in q_z[group])  # images last, as they are many
        at_the_mean = -0.5 * (log_var + LOG_2PI)
        for rows, own in _blocks(group, max(1, TABLE // mu.numel())):
            for _ in range(n_samples):
                z = q_z[rows].sample((len(rows),), generator).unsqueeze(-1)
                # Scaled first, and then squared: an inverse variance may overflow.
                scaled = (z - mu) * (-0.5 * log_var).exp()
                log_q = at_the_mean.addcmul(scaled, scaled, value=-0.5)  # (rows, d, group)
                joint[rows] += _above_average(log_q.sum(1), own) / n_samples
                unit[rows] += _above_average(log_q, own) / n_samples
    return joint, unit


def _alike(y: Tensor | None, n: int, device: torch.device) -> list[Tensor]:
    """The numbers of the images in groups of the same y."""
    if y is None:
        return [torch.arange(n, device=device)]
    _, which = y.unique(dim=0, return_inverse=True)
    return [(which == number).nonzero().squeeze(1) for number in which.unique()]


def _blocks(group: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A few of the group at a time: which images they are, and where they stand in the group."""
    places = torch.arange(len(group), device=group.device)
    yield from zip(group.split(size), places.split(size), strict=True)


def _above_average(log_q: Tensor, own: Tensor) -> Tensor:
    """log q(z | x) - log q(z), from log q(z | x') of all x' on the last axis; x stands at own."""
    row = torch.arange(len(own), device=own.device)
    return log_q[row, ..., own] - log_q.logsumexp(-1) + math.log(log_q.shape[-1])


def _moved(q_z: DiagonalGaussian, shift: Tensor, log_scale: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(q_z.mu + q_z.sigma * shift, q_z.log_var + log_scale)


def _opposite_pairs(n: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Noise, n draws for each mean: with each its negative, so that what is odd in it cancels."""
    eps = standard_normal(((n + 1) // 2, *like.shape), generator, like.device)
    return torch.cat([eps, -eps])[:n]


def _passed(model: VAE, q_z: DiagonalGaussian, eps: Tensor, y: Tensor | None) -> Pass:
    """What the model makes of images with another q than its encoder's."""
    z = q_z.rsample(eps)
    return Pass(q_z, z, model.decode(z, y), model.prior(y))


def _all_refined(
    model: VAE, data: Images, steps: int, generator: torch.Generator
) -> DiagonalGaussian:
    parts = [
        refined(model, x, y, steps=steps, n_samples=8, generator=generator)
        for x, y in chunks(model, data, 8)
    ]
    return DiagonalGaussian(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.no_grad()
def _bounds(
    model: VAE, data: Images, q_z: DiagonalGaussian, n_samples: int, seed: int
) -> tuple[Elbo, Tensor]:
    """The ELBO and the importance-weighted bound of each image with this q."""
    generator, found, done = seeded(seed, MEASURING), [], 0
    for x, y in chunks(model, data, n_samples):
        rows = slice(done, done := done + len(x))
        made = _passed(model, q_z[rows], _opposite_pairs(n_samples, q_z.mu[rows], generator), y)
        weighted = importance_weighted_bound(pass_log_weights(x, made))
        found.append((*elbo_terms(x, made), weighted))
    log_likelihood, unit_kl, weighted = (
        torch.cat(part).cpu().double() for part in zip(*found, strict=True)
    )
    return Elbo(log_likelihood, unit_kl), weighted


def _split(kl: Tensor, informations: Tensor) -> Split:
    informations = informations.cpu().double()
    return Split(*map(average, (kl, informations, kl - informations)))
