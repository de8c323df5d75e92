"""The reparameterization trick: a draw as a smooth function of parameters and noise (chapter 7)."""

import torch
from jaxtyping import Float
from torch import Tensor

from vae_book.checks import numeric
from vae_book.deprecated import moved


@numeric
def reparameterize(
    mu: Float[Tensor, "... d"],
    log_var: Float[Tensor, "... d"],
    eps: Float[Tensor, "*sample d"],
) -> Float[Tensor, "*result d"]:
    """A sample of N(mu, exp(log_var)) as a smooth function of mu and log_var.

    Equation ``eq-reparameterize`` (chapter 7); Kingma and Welling (2014), section 2.4.

    Args:
        mu, log_var: mean and log-variance, shape (..., d).
        eps: draws from N(0, 1), shape (..., d) or with further leading axes for several samples.

    Returns:
        ``mu + exp(log_var / 2) * eps``. Halving the log-variance gives the log of the standard
        deviation: the factor of eps is a standard deviation, not a variance.

    Raises:
        ValueError: the shapes do not match.
    """
    if mu.shape != log_var.shape or eps.shape[-mu.ndim :] != mu.shape:
        raise ValueError(
            "mu, log_var and eps: expected mu and log_var of one shape, and eps of that shape "
            f"after any axes for samples; got {tuple(mu.shape)}, {tuple(log_var.shape)} and "
            f"{tuple(eps.shape)}"
        )
    return mu + torch.exp(0.5 * log_var) * eps


@numeric
def reparameterize_full(
    mu: Float[Tensor, "... d"], scale: Float[Tensor, "... d d"], eps: Float[Tensor, "*sample d"]
) -> Float[Tensor, "*result d"]:
    """A sample of N(mu, L L^T), with any covariance, as a smooth function of mu and L.

    Equation ``eq-reparameterize-full`` (chapter 7); Kingma and Welling (2019), section 2.5.1.

    Args:
        mu: mean, shape (..., d).
        scale: the lower-triangular L, for instance ``torch.linalg.cholesky(covariance)``.
        eps: draws from N(0, 1), shape (..., d) or with further leading axes for several samples.

    Raises:
        ValueError: the shapes do not match, or an entry above the diagonal of L is not zero.
    """
    if mu.ndim < 1 or scale.shape != (*mu.shape, mu.shape[-1]) or eps.shape[-mu.ndim :] != mu.shape:
        raise ValueError(
            "mu, scale and eps: expected shapes (..., d), (..., d, d) and (..., d) after any axes "
            f"for samples; got {tuple(mu.shape)}, {tuple(scale.shape)} and {tuple(eps.shape)}"
        )
    if bool(scale.triu(1).any()):
        raise ValueError(
            "scale: expected a lower-triangular matrix, got entries above the diagonal; a "
            "covariance C is given as torch.linalg.cholesky(C)"
        )
    return mu + (scale @ eps.unsqueeze(-1)).squeeze(-1)


__getattr__ = moved(
    __name__,
    {
        "GaussianGradient": "gradient_estimators.GaussianGradient",
        "pathwise_gradient": "gradient_estimators.pathwise_gradient",
        "score_function_gradient": "gradient_estimators.score_function_gradient",
        "Quadratic": "gradient_estimators.Quadratic",
    },
)
