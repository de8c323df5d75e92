"""Lower bounds on the evidence, in nats (chapters 3, 4, 8 and 11)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vae_book.checks import numeric, whole_number
from vae_book.device import standard_normal
from vae_book.models import VAE, Pass


class Elbo(NamedTuple):
    """The two terms of the bound, for each image, in nats; higher is better.

    Attributes:
        log_likelihood: the estimate of E_q[log p(x | z)].
        unit_kl: KL(q(z_j | x) || p(z_j)) of each unit j, along the last axis; exact for diagonal
            Gaussians. Where it has no closed form it is estimated, for all units together.
    """

    log_likelihood: Float[Tensor, "..."]
    unit_kl: Float[Tensor, "... d"]

    @property
    def kl(self) -> Tensor:
        """KL(q(z | x) || p(z)): the sum over the units."""
        return self.unit_kl.sum(-1)

    @property
    def value(self) -> Tensor:
        """The bound itself: ``log_likelihood - kl``."""
        return self.log_likelihood - self.kl


@numeric
def elbo(
    model: VAE,
    x: Float[Tensor, "n channels height width"],
    eps: Float[Tensor, "*samples n d"] | None = None,
    *,
    y: Tensor | None = None,
    n_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Elbo:
    """A lower bound on log p(x) for each image: E_q[log p(x | z)] - KL(q(z | x) || p(z)).

    Equation ``eq-elbo`` (chapter 8); Kingma and Welling (2014), equations 3 and 10. The expectation
    is averaged over samples of z. Given y it is a bound on log p(x | y), equation
    ``eq-conditional-elbo`` (chapter 11); Sohn, Lee and Yan (2015), equation 4.

    Args:
        model: the VAE.
        x: images, shape (n, channels, height, width).
        eps: the noise to use, shape (n, d) or (samples, n, d); None draws it.
        y: what the model is told, for one that is conditioned on it: for a `CVAE`, the labels.
        n_samples: how many draws for each image when eps is None.
        generator: the CPU generator to draw from when eps is None.

    Raises:
        ValueError: n_samples is not positive, or x or y does not fit the model.
    """
    _check_batch(model, x)
    if eps is None:
        shape = (whole_number("n_samples", n_samples), len(x), model.latent)
        eps = standard_normal(shape, generator, x.device)
    if eps.shape[-2:] != (len(x), model.latent) or 0 in eps.shape[:-2]:
        raise ValueError(
            f"eps: expected shape ({len(x)}, {model.latent}) after any axes for samples, which are "
            f"not empty, got {tuple(eps.shape)}"
        )
    return elbo_terms(x, model(x, eps, y))


def _check_batch(model: VAE, x: Tensor) -> None:
    """Raise ValueError unless x is images of the model's shape, with one axis for the batch."""
    model.check_images(x)
    if x.ndim != 4:
        raise ValueError(f"x: expected a batch of images, with 4 axes, got {tuple(x.shape)}")


def elbo_terms(x: Float[Tensor, "n channels height width"], made: Pass) -> Elbo:
    """The bound from what the model's ``forward`` has made of x; see `elbo`."""
    unit_kl = made.q_z.unit_kl(made.p_z, made.z)
    log_likelihood = made.p_x.log_prob(x)
    return Elbo(_over_samples(log_likelihood, 1), _over_samples(unit_kl, 2))


def _over_samples(values: Tensor, axes: int) -> Tensor:
    """The average over samples of z, which have axes before the last ones."""
    return values if values.ndim <= axes else values.flatten(0, -axes - 1).mean(0)


@numeric
def log_weights(
    model: VAE,
    x: Float[Tensor, "n channels height width"],
    eps: Float[Tensor, "K n d"],
    *,
    y: Tensor | None = None,
) -> Float[Tensor, "K n"]:
    """log p(x, z) - log q(z | x) for draws z of q: what the bounds of chapter 4 average.

    Equation ``eq-iw-bound`` (chapter 4); given y, all of it is given y (chapter 11).

    Args:
        model: the VAE.
        x: images.
        eps: the draws from N(0, 1) that make z, K for each image.
        y: what the model is told, for one that is conditioned on it.

    Raises:
        ValueError: x, eps or y does not fit the model.
    """
    _check_batch(model, x)
    return pass_log_weights(x, model(x, eps, y))


def pass_log_weights(
    x: Float[Tensor, "n channels height width"], made: Pass
) -> Float[Tensor, "*samples n"]:
    """The weights from what the model's ``forward`` has made of x; see `log_weights`."""
    q_z, z, p_x, p_z = made
    return p_x.log_prob(x) + p_z.log_prob(z) - q_z.log_prob(z)


@numeric
def importance_weighted_bound(log_weights: Float[Tensor, "K ..."]) -> Float[Tensor, "..."]:
    """The log of an average of K weights: on average a bound on log p(x), tighter for larger K.

    Equations ``eq-elbo-jensen`` and ``eq-iw-bound`` (chapter 4); Burda et al. (2016), equation 8.
    For K = 1 it is a draw of the ELBO. It is the logarithm of the average, not the average of the
    logarithms. For large K its expectation misses log p(x) by half the relative variance of a
    weight over K, ``eq-iw-gap`` (chapter 4), if that variance and the ELBO are finite (Domke and
    Sheldon, 2018, theorem 3, under stronger conditions).

    Args:
        log_weights: log p(x, z_k) - log q(z_k | x) for K draws z_k from q, shape (K, ...).

    Returns:
        One draw of the bound, shape (...).

    Raises:
        ValueError: there are no draws.
    """
    if log_weights.ndim < 1 or len(log_weights) < 1:
        raise ValueError(
            f"log_weights: expected shape (K, ...) with K >= 1, got {tuple(log_weights.shape)}"
        )
    return log_weights.logsumexp(0) - math.log(len(log_weights))
