"""Lower bounds on the evidence, in nats (chapters 3, 4, 8 and 11)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vae_book.checks import no_nan
from vae_book.device import standard_normal
from vae_book.divergences import gaussian_kl
from vae_book.likelihoods import Likelihood
from vae_book.models import VAE


class Elbo(NamedTuple):
    """The two terms of the bound, for each image, in nats.

    Attributes:
        log_likelihood: the estimate of E_q[log p(x | z)].
        kl: KL(q(z | x) || p(z)), exact.
    """

    log_likelihood: Float[Tensor, "..."]
    kl: Float[Tensor, "..."]

    @property
    def value(self) -> Tensor:
        """The bound itself: ``log_likelihood - kl``."""
        return self.log_likelihood - self.kl


def elbo(
    model: VAE,
    x: Float[Tensor, "n channels height width"],
    eps: Float[Tensor, "*samples n d"] | None = None,
    *,
    y: Int[Tensor, "n"] | None = None,
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
        y: the labels, for a model that is conditioned on them.
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
    params, mu, log_var = model(x, eps, *given)
    return elbo_terms(model.likelihood, x, params, mu, log_var, *model.prior(y))


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
    """The bound from what the model's ``forward`` and ``prior`` give; see `elbo`."""
    log_likelihood = likelihood.log_prob(x, params)
    if log_likelihood.ndim > 1:  # several samples of z: one leading axis, or more
        log_likelihood = log_likelihood.flatten(0, -2).mean(0)
    return Elbo(log_likelihood, gaussian_kl(mu, log_var, prior_mu, prior_log_var))


def importance_weighted_bound(log_weights: Float[Tensor, "K ..."]) -> Float[Tensor, "..."]:
    """The log of an average of K weights: on average a bound on log p(x), tighter for larger K.

    Equations ``eq-elbo-jensen`` and ``eq-iw-bound`` (chapter 4); Burda et al. (2016), equation 8.
    For K = 1 it is a draw of the ELBO. It is the logarithm of the average, not the average of the
    logarithms.

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
