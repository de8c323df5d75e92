"""Kullback-Leibler divergences, in nats (used in chapter 8)."""

import torch
from jaxtyping import Float
from torch import Tensor


def gaussian_kl(
    mu: Float[Tensor, "... d"],
    log_var: Float[Tensor, "... d"],
    prior_mu: Float[Tensor, "..."] | float = 0.0,
    prior_log_var: Float[Tensor, "..."] | float = 0.0,
) -> Float[Tensor, "..."]:
    r"""KL(N(mu, exp(log_var)) || N(prior_mu, exp(prior_log_var))) of diagonal Gaussians, in nats.

    Equation ``eq-gaussian-kl``; Kingma and Welling (2014), appendix B, for the standard prior.

    Args:
        mu, log_var: mean and log-variance of the first Gaussian, shape (..., d).
        prior_mu, prior_log_var: the same of the second; anything that broadcasts to (..., d).

    Returns:
        The divergence summed over the last axis, shape (...).

    Raises:
        ValueError: the shapes do not match.
    """
    if mu.shape != log_var.shape:
        raise ValueError(
            f"mu and log_var: expected the same shape, got {tuple(mu.shape)} and "
            f"{tuple(log_var.shape)}"
        )
    prior_mu = torch.as_tensor(prior_mu, dtype=mu.dtype, device=mu.device)
    prior_log_var = torch.as_tensor(prior_log_var, dtype=mu.dtype, device=mu.device)
    for name, prior in {"prior_mu": prior_mu, "prior_log_var": prior_log_var}.items():
        if prior.shape[-1:] not in ((), (1,), mu.shape[-1:]):
            raise ValueError(
                f"{name}: expected a number or shape (..., {mu.shape[-1]}), got "
                f"{tuple(prior.shape)}"
            )
    log_ratio = log_var - prior_log_var
    squared_distance = (mu - prior_mu).square() * torch.exp(-prior_log_var)
    # expm1 keeps the digits of exp(r) - 1 - r when r is close to 0, where the KL is smallest.
    return 0.5 * (squared_distance + torch.expm1(log_ratio) - log_ratio).sum(-1)
