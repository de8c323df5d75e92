"""Two estimators of a gradient through a random draw, and where both are known (chapter 7).

The pathwise and the score-function estimator of the gradient of E_q[f(z)] with respect to the mean
and log-variance of a normal q, and a function f on which the gradient and the variance of both are
exact.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vae_book.checks import enough_draws, last_axis, numeric, real_number
from vae_book.reparameterization import reparameterize

Function = Callable[[Tensor], Tensor]


class GaussianGradient(NamedTuple):
    """A gradient with respect to the two parameters of a normal distribution.

    Attributes:
        mu: the part that belongs to the mean.
        log_var: the part that belongs to the log-variance.
    """

    mu: Float[Tensor, "..."]
    log_var: Float[Tensor, "..."]


@numeric
def pathwise_gradient(
    f: Function,
    mu: Float[Tensor, "... d"],
    log_var: Float[Tensor, "... d"],
    eps: Float[Tensor, "n ... d"],
) -> GaussianGradient:
    """The gradient of E_q[f(z)] through the sample: one unbiased draw of it for each noise.

    Equation ``eq-pathwise`` (chapter 7); Kingma and Welling (2014), section 2.4.

    Args:
        f: a differentiable function of z, from shape (n, ..., d) to (n, ...).
        mu, log_var: mean and log-variance of q, shape (..., d).
        eps: n draws from N(0, 1) for each entry of mu, shape (n, ..., d).

    Returns:
        n draws of both gradients, each of shape (n, ..., d); `vae_book.monte_carlo.average` gives
        the estimate and its standard error.

    Raises:
        ValueError: the shapes do not match, or f cannot be differentiated.
    """
    # One copy of mu and log_var for each draw, so that each draw has a gradient of its own.
    _check_noise(mu, log_var, eps)
    mu = mu.detach().expand_as(eps).clone().requires_grad_()
    log_var = log_var.detach().expand_as(eps).clone().requires_grad_()
    with torch.enable_grad():
        z = reparameterize(mu, log_var, eps)
        values, by_z = _values(f, z), None
        if values.requires_grad:  # if only because of weights that f has
            (by_z,) = torch.autograd.grad(values.sum(), z, allow_unused=True)
        if by_z is None:
            raise ValueError(
                "f: expected a function through which PyTorch can differentiate, got one whose "
                "result does not depend on z that way; score_function_gradient needs no derivative"
            )
        return GaussianGradient(*torch.autograd.grad(z, (mu, log_var), by_z))


@torch.no_grad()
@numeric
def score_function_gradient(
    f: Function,
    mu: Float[Tensor, "... d"],
    log_var: Float[Tensor, "... d"],
    eps: Float[Tensor, "n ... d"],
    *,
    baseline: float | Literal["leave-one-out"] = 0.0,
) -> GaussianGradient:
    """The gradient of E_q[f(z)] from the values of f alone: unbiased, and noisy.

    Equations ``eq-score-function`` and ``eq-baseline`` (chapter 7); Williams (1992), theorem 1.

    Args:
        f: any function of z, from shape (n, ..., d) to (n, ...).
        mu, log_var: mean and log-variance of q, shape (..., d).
        eps: n draws from N(0, 1) for each entry of mu, shape (n, ..., d).
        baseline: a number to subtract from f, which changes the noise but not the average; or
            ``leave-one-out`` for the average of f over the other draws.

    Returns:
        n draws of both gradients, each of shape (n, ..., d).

    Raises:
        ValueError: the shapes do not match, or the baseline needs more than one draw.
    """
    _check_noise(mu, log_var, eps)
    values = _values(f, reparameterize(mu, log_var, eps))
    if baseline == "leave-one-out":
        if len(values) < 2:
            raise ValueError("baseline: 'leave-one-out' needs 2 draws or more, got 1")
        centered = values - (values.sum(0) - values) / (len(values) - 1)
    elif isinstance(baseline, str):
        raise ValueError(f"baseline: expected a number or 'leave-one-out', got {baseline!r}")
    else:
        centered = values - real_number("baseline", baseline)
    # The derivatives of log q(z) with respect to mu and log_var, with z held fixed.
    by_mu = eps * torch.exp(-0.5 * log_var)
    by_log_var = 0.5 * (eps.square() - 1)
    weight = centered.unsqueeze(-1)
    return GaussianGradient(weight * by_mu, weight * by_log_var)


@numeric
def signal_to_noise(gradients: Float[Tensor, "n ..."]) -> Float[Tensor, "..."]:
    """The size of the mean of a gradient's draws in units of their standard deviation.

    Equation ``eq-snr`` (chapter 13); Rainforth et al. (2018), section 3. Where all draws are
    the same it is infinite, and 0 where they are all 0.

    Args:
        gradients: n independent draws of the gradient, shape (n, ...), n at least 2.

    Raises:
        ValueError: there are fewer than two draws.
    """
    enough_draws(gradients=gradients)
    mean = gradients.mean(0).abs()
    return torch.where(mean == 0, 0.0, mean / gradients.std(0))


class Quadratic:
    """f(z) = sum_j a_j (z_j - c_j)^2 / 2, on which everything about the estimators is known.

    Args:
        a: the curvature in each direction, shape (d,).
        c: where f is zero, shape (d,).

    Raises:
        ValueError: a and c are not two vectors of the same length; later, z, mu or
            log_var is of another length.
    """

    @numeric
    def __init__(self, a: Float[Tensor, "d"], c: Float[Tensor, "d"]) -> None:
        if a.ndim != 1 or a.shape != c.shape:
            raise ValueError(
                "a and c: expected two vectors of one length, got shapes "
                f"{tuple(a.shape)} and {tuple(c.shape)}"
            )
        self.a, self.c = a, c

    @numeric
    def __call__(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """The value at z."""
        last_axis(len(self.a), z=z)
        return 0.5 * (self.a * (z - self.c).square()).sum(-1)

    @numeric
    def expectation(self, mu: Float[Tensor, "d"], log_var: Float[Tensor, "d"]) -> Float[Tensor, ""]:
        """E_q[f(z)], exact; equation ``eq-quadratic`` (chapter 7)."""
        last_axis(len(self.a), mu=mu, log_var=log_var)
        return 0.5 * (self.a * ((mu - self.c).square() + log_var.exp())).sum(-1)

    @numeric
    def gradient(self, mu: Float[Tensor, "d"], log_var: Float[Tensor, "d"]) -> GaussianGradient:
        """The gradient of E_q[f(z)], exact; equation ``eq-quadratic-gradient`` (chapter 7)."""
        last_axis(len(self.a), mu=mu, log_var=log_var)
        return GaussianGradient(self.a * (mu - self.c), 0.5 * self.a * log_var.exp())

    @numeric
    def pathwise_variance(
        self, mu: Float[Tensor, "d"], log_var: Float[Tensor, "d"]
    ) -> GaussianGradient:
        """The variance of one draw of `pathwise_gradient`, exact.

        Equation ``eq-pathwise-variance`` (chapter 7).
        """
        last_axis(len(self.a), mu=mu, log_var=log_var)
        m, var = mu - self.c, log_var.exp()
        by_log_var = self.a.square() * (m.square() * var + 2 * var.square()) / 4
        return GaussianGradient(self.a.square() * var, by_log_var)

    @numeric
    def score_function_variance(
        self, mu: Float[Tensor, "d"], log_var: Float[Tensor, "d"], baseline: float = 0.0
    ) -> GaussianGradient:
        """The variance of one draw of `score_function_gradient`, exact, for a constant baseline.

        Equation ``eq-score-function-variance`` (chapter 7).
        """
        last_axis(len(self.a), mu=mu, log_var=log_var)
        m, var = mu - self.c, log_var.exp()
        # Everything but direction j adds a constant on average, and noise of its own.
        mean = 0.5 * self.a * (m.square() + var)
        noise = 0.5 * self.a.square() * var * (2 * m.square() + var)
        rest, rest_noise = mean.sum() - mean, noise.sum() - noise
        # Seen from direction j, f - baseline = b0 + b1 eps + b2 eps^2 + noise.
        b0 = 0.5 * self.a * m.square() + rest - baseline
        b1, b2 = self.a * m * var.sqrt(), 0.5 * self.a * var
        mixed = b1.square() + 2 * b0 * b2
        # The moments of a standard normal number: 1, 3, 15 and 105 for the powers 2, 4, 6, 8.
        by_mu = (b0.square() + 3 * mixed + 15 * b2.square() + rest_noise) / var
        by_log_var = (2 * b0.square() + 10 * mixed + 78 * b2.square() + 2 * rest_noise) / 4
        exact = self.gradient(mu, log_var)
        return GaussianGradient(by_mu - exact.mu.square(), by_log_var - exact.log_var.square())


def _check_noise(mu: Tensor, log_var: Tensor, eps: Tensor) -> None:
    matching = mu.shape == log_var.shape == eps.shape[1:]
    if mu.ndim < 1 or eps.ndim != mu.ndim + 1 or not matching:
        raise ValueError(
            "mu, log_var and eps: expected mu and log_var of one shape, and eps of that shape "
            f"after one axis for draws; got {tuple(mu.shape)}, {tuple(log_var.shape)} and "
            f"{tuple(eps.shape)}"
        )


def _values(f: Function, z: Tensor) -> Tensor:
    values = f(z)
    if values.shape != z.shape[:-1]:
        raise ValueError(
            f"f: expected one value for each z, shape {tuple(z.shape[:-1])}, got "
            f"{tuple(values.shape)}"
        )
    return values
