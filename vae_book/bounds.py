"""Lower bounds on the evidence, in nats (chapters 3, 4, 8 and 11)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vae_book.checks import no_nan
from vae_book.device import standard_normal
from vae_book.divergences import gaussian_unit_kl
from vae_book.likelihoods import Likelihood
from vae_book.models import VAE
from vae_book.reparameterization import reparameterize


class Elbo(NamedTuple):
    """The two terms of the bound, for each image, in nats.

    Attributes:
        log_likelihood: the estimate of E_q[log p(x | z)].
        unit_kl: the exact KL(q(z_j | x) || p(z_j)) of each unit j, along the last axis.
    """

    log_likelihood: Float[Tensor, "..."]
    unit_kl: Float[Tensor, "... d"]

    @property
    def kl(self) -> Tensor:
        """KL(q(z | x) || p(z)): with diagonal Gaussians, the sum over the units."""
        return self.unit_kl.sum(-1)

    @property
    def value(self) -> Tensor:
        """The bound itself: ``log_likelihood - kl``."""
        return self.log_likelihood - self.kl


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
    is averaged over samples of z, the KL is exact. With labels y it is a bound on log p(x | y),
    equation ``eq-conditional-elbo`` (chapter 11); Sohn, Lee and Yan (2015), equation 4.

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
    given = condition(model, y)
    if eps is None:
        if n_samples < 1:
            raise ValueError(f"n_samples: expected 1 or more, got {n_samples}")
        eps = standard_normal((n_samples, len(x), model.latent), generator, x.device)
    return elbo_terms(model.likelihood, x, *model(x, eps, *given))


def condition(model: VAE, y: Tensor | None) -> tuple[Tensor, ...]:
    """What the model is told beside the images: the labels, or nothing.

    Raises:
        ValueError: labels are missing, or given to a model that does not take them.
    """
    if model.conditional and y is None:
        raise ValueError("y: expected labels, since the model is conditioned on them, got None")
    if y is not None and not model.conditional:
        raise ValueError(f"y: expected None, since a {type(model).__name__} takes no labels")
    return () if y is None else (y,)


def elbo_terms(
    likelihood: Likelihood,
    x: Tensor,
    params: Tensor,
    mu: Tensor,
    log_var: Tensor,
    prior_mu: Tensor | float = 0.0,
    prior_log_var: Tensor | float = 0.0,
) -> Elbo:
    """The bound from what the model's ``forward`` gives; see `elbo`."""
    log_likelihood = likelihood.log_prob(x, params)
    if log_likelihood.ndim > 1:  # several samples of z: one leading axis, or more
        log_likelihood = log_likelihood.flatten(0, -2).mean(0)
    return Elbo(log_likelihood, gaussian_unit_kl(mu, log_var, prior_mu, prior_log_var))


def log_weights(
    model: VAE,
    x: Float[Tensor, "n channels height width"],
    eps: Float[Tensor, "K n d"],
    *,
    y: Tensor | None = None,
) -> Float[Tensor, "K n"]:
    """log p(x, z) - log q(z | x) for draws z of q: what the bounds of chapter 4 average.

    Equation ``eq-iw-bound`` (chapter 4); given y, all of it is given y
    (chapter 11).

    Args:
        model: the VAE.
        x: images.
        eps: the draws from N(0, 1) that make z, K for each image.
        y: what the model is told, for one that is conditioned on it.

    Raises:
        ValueError: x, eps or y does not fit the model.
    """
    params, mu, log_var, *prior = model(x, eps, *condition(model, y))
    prior_mu, prior_log_var = prior or (torch.zeros_like(mu), torch.zeros_like(log_var))
    z = reparameterize(mu, log_var, eps)
    distance = (z - prior_mu).square() * (-prior_log_var).exp()
    log_ratio = 0.5 * (eps.square() + log_var - distance - prior_log_var).sum(-1)
    return model.likelihood.log_prob(x, params) + log_ratio


def importance_weighted_bound(log_weights: Float[Tensor, "K ..."]) -> Float[Tensor, "..."]:
    """The log of an average of K weights: on average a bound on log p(x), tighter for larger K.

    Equations ``eq-elbo-jensen`` and ``eq-iw-bound`` (chapter 4); Burda et al. (2016), equation 8.
    For K = 1 it is a draw of the ELBO. It is the logarithm of the average, not the average of the
    logarithms. For large K its expectation misses log p(x) by half the relative variance of a
    weight over K, ``eq-iw-gap`` (chapter 4), under the conditions of Domke and Sheldon (2018),
    theorem 3.

    Args:
        log_weights: log p(x, z_k) - log q(z_k | x) for K draws z_k from q, shape (K, ...).

    Returns:
        One draw of the bound, shape (...).

    Raises:
        ValueError: there are no draws, or a weight is NaN.
    """
    if log_weights.ndim < 1 or len(log_weights) < 1:
        raise ValueError(
            f"log_weights: expected shape (K, ...) with K >= 1, got {tuple(log_weights.shape)}"
        )
    no_nan(log_weights=log_weights)
    return log_weights.logsumexp(0) - math.log(len(log_weights))
