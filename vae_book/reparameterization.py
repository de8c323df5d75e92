"""The reparameterization trick: a sample through which a gradient can pass (used in chapter 8)."""

import torch
from jaxtyping import Float
from torch import Tensor


def reparameterize(
    mu: Float[Tensor, "... d"],
    log_var: Float[Tensor, "... d"],
    eps: Float[Tensor, "*sample d"],
) -> Float[Tensor, "*result d"]:
    """A sample of N(mu, exp(log_var)) as a smooth function of mu and log_var.

    Equation ``eq-reparameterize``; Kingma and Welling (2014), section 2.4.

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
