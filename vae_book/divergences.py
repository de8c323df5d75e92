"""Kullback-Leibler divergences, in nats (chapters 2 and 5).

KL(q || p) is the average, over z drawn from q, of log q(z) - log p(z). The functions differ in what
they know of q and p: probabilities, densities, draws, or that both are Gaussian.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vae_book.checks import (
    cholesky,
    enough_draws,
    last_axis,
    numeric,
    real_tensor,
    same_shape,
    sums_to_one,
    whole_number,
)
from vae_book.monte_carlo import Estimate, average

LogDensity = Callable[[Tensor], Tensor]
Real = float | int


class Integral(NamedTuple):
    """A number from quadrature.

    Attributes:
        value: the integral.
        error: the quadrature's own estimate of its absolute error, which is no guarantee.
    """

    value: float
    error: float


@numeric
def discrete_kl(
    log_q: Float[Tensor, "... k"], log_p: Float[Tensor, "*prior k"]
) -> Float[Tensor, "..."]:
    """KL(q || p) of two distributions over k outcomes, in nats.

    Equations ``eq-kl-discrete``, ``eq-kl-nonnegative`` and, for q the shares of the outcomes in a
    data set and p a model, ``eq-maximum-likelihood`` (chapter 2). Outcomes that q rules out add
    nothing; the divergence is infinite if q allows an outcome that p rules out. On a grid, take
    log density + log(step).

    Args:
        log_q, log_p: logarithms of the probabilities, shape (..., k); minus infinity for zero.

    Raises:
        ValueError: the numbers of outcomes differ, or the probabilities of one do not sum to 1.
    """
    last_axis(log_q.shape[-1], log_p=log_p)
    sums_to_one(log_q=log_q, log_p=log_p)
    # 0 log 0 = 0, also where p is 0 as well and the difference of logarithms means nothing.
    log_ratio = torch.where(log_q > -math.inf, log_q - log_p, 0.0)
    # Nor is the divergence finite where q is so small that exp makes it 0.
    return torch.where(log_ratio < math.inf, log_q.exp() * log_ratio, math.inf).sum(-1)


@numeric
def kl_riemann(
    log_q: LogDensity, log_p: LogDensity, lower: Real, upper: Real, n: int = 1000
) -> Float[Tensor, ""]:
    """KL(q || p) of two densities on the line, in nats, by the sum over n cells of equal width.

    Equation ``eq-kl-riemann`` (chapter 2). Each cell counts with the values in its middle.

    Args:
        log_q, log_p: log densities, functions of a tensor of points.
        lower, upper: the ends of the range; what q has outside it is lost.
        n: how many cells.

    Raises:
        ValueError: the range is empty or infinite, n is not a positive whole number, or a log
            density does not give one number for each point.
    """
    if not (math.isfinite(upper - lower) and lower < upper):
        raise ValueError(
            f"lower and upper: expected finite lower < upper, got {lower:g}, {upper:g}"
        )
    n = whole_number("n", n)
    step = (upper - lower) / n
    z = lower + step * (torch.arange(n, dtype=torch.float64) + 0.5)
    return _contribution(log_q, log_p, z).sum() * step


@numeric
def kl_quadrature(
    log_q: LogDensity,
    log_p: LogDensity,
    lower: Real = -math.inf,
    upper: Real = math.inf,
) -> Integral:
    """KL(q || p) of two densities on the line, in nats, by adaptive quadrature (scipy's quad).

    Equations ``eq-kl`` and ``eq-kl-invariance`` (chapter 2).

    Args:
        log_q, log_p: log densities, functions of a tensor.
        lower, upper: the range. Give finite ends a dozen standard deviations to both sides of a
            narrow q: on an infinite range, quadrature may overlook it.

    Raises:
        ValueError: the range is empty, q does not integrate to 1 over it, as when the quadrature
            overlooks a narrow peak, or the quadrature does not converge, as where the tails of q
            are so much heavier than those of p that the divergence is infinite. It does not
            notice all of these.
    """
    from scipy.integrate import quad  # here, because few need it and it takes long to import

    if not lower < upper:
        raise ValueError(f"lower and upper: expected lower < upper, got {lower:g} and {upper:g}")

    def integrate(function: LogDensity) -> tuple[float, float, str]:
        value, error, _, *complaints = quad(
            lambda z: float(function(torch.tensor(z, dtype=torch.float64))),
            lower,
            upper,
            epsabs=1e-12,
            epsrel=1e-10,
            limit=500,
            full_output=1,
        )
        return value, error, "".join(complaints[:1])

    mass, _, _ = integrate(lambda z: _log_density("log_q", log_q, z).exp())
    if not abs(mass - 1) < 1e-6:
        raise ValueError(
            f"log_q: expected a density of mass 1 between {lower:g} and {upper:g}, found "
            f"{mass:.6g}; if q is a density, give a range that fits it"
        )
    value, error, complaint = integrate(lambda z: _contribution(log_q, log_p, z))
    # Densities in single precision are rounded more than the quadrature likes.
    rounded = "oundoff" in complaint and error < 1e-6 * max(1, abs(value))
    if complaint and value < math.inf and not rounded:
        raise ValueError(
            f"log_q and log_p: expected a divergence that quadrature finds, got {value:.6g}, of "
            f"which scipy says: {complaint.split('.')[0]}. Is it infinite, as where the tails of q "
            "are heavier than those of p?"
        )
    return Integral(value, error)


@numeric
def kl_monte_carlo(log_q: LogDensity, log_p: LogDensity, z: Float[Tensor, "n ..."]) -> Estimate:
    """KL(q || p), in nats, as an average over draws from q, with its standard error.

    Equation ``eq-kl-monte-carlo`` (chapter 2). It works in any dimension. Draws from p instead of
    q would estimate -KL(p || q), another number. If p rules out a draw, the divergence is infinite,
    and so is its standard error.

    Args:
        log_q, log_p: log densities, functions of z that return one number a draw.
        z: n draws from q, shape (n, ...), n at least 2.

    Raises:
        ValueError: there are fewer than two draws, q rules out one of them, or a log density does
            not give one number for each.
    """
    enough_draws(z=z)
    log_density = _log_density("log_q", log_q, z)
    if bool((log_density == -math.inf).any()):
        raise ValueError("z: expected draws from q, got one that q rules out")
    log_ratio = log_density - _log_density("log_p", log_p, z)
    value = log_ratio.mean()
    # The deviation of infinite numbers has no value.
    return Estimate(value, value) if value == math.inf else average(log_ratio)


def _contribution(log_q: LogDensity, log_p: LogDensity, z: Tensor) -> Tensor:
    """The integrand q (log q - log p); zero where q is zero."""
    log_density = _log_density("log_q", log_q, z)
    log_ratio = log_density - _log_density("log_p", log_p, z)
    density = log_density.exp()
    return density * torch.where(density > 0, log_ratio, 0.0)


def _log_density(name: str, function: LogDensity, z: Tensor) -> Tensor:
    values = real_tensor(name, function(z), z.dtype, z.device)
    if values.shape != z.shape[:1]:
        raise ValueError(
            f"{name}: expected one number for each point, shape {tuple(z.shape[:1])}, got "
            f"{tuple(values.shape)}"
        )
    return values


@numeric
def gaussian_kl(
    mu: Float[Tensor, "... d"],
    log_var: Float[Tensor, "... d"],
    prior_mu: Float[Tensor, "..."] | Real = 0.0,
    prior_log_var: Float[Tensor, "..."] | Real = 0.0,
) -> Float[Tensor, "..."]:
    r"""KL(N(mu, exp(log_var)) || N(prior_mu, exp(prior_log_var))) of diagonal Gaussians, in nats.

    Equations ``eq-gaussian-kl-univariate``, ``eq-gaussian-kl-diagonal`` and
    ``eq-gaussian-kl-gradient`` (chapter 5); with the standard prior ``eq-gaussian-kl`` (chapter 8)
    and Kingma and Welling (2014), appendix B.

    In float32, with the standard prior, it overflows to infinity from log_var = 88.7 on, where exp
    does, or from 89.4 - log(d) if all d units are that wide (86.4 for d = 20); and from a mean of
    1.8e19, whose square does, or from 2.6e19 / sqrt(d) if all d are that far out.

    Args:
        mu, log_var: mean and log-variance of the first Gaussian, shape (..., d).
        prior_mu, prior_log_var: the same of the second; anything that broadcasts to (..., d).

    Returns:
        The divergence summed over the last axis, shape (...).

    Raises:
        ValueError: the shapes do not match.
    """
    return gaussian_unit_kl(mu, log_var, prior_mu, prior_log_var).sum(-1)


@numeric
def gaussian_unit_kl(
    mu: Float[Tensor, "... d"],
    log_var: Float[Tensor, "... d"],
    prior_mu: Float[Tensor, "..."] | Real = 0.0,
    prior_log_var: Float[Tensor, "..."] | Real = 0.0,
) -> Float[Tensor, "... d"]:
    """The terms that `gaussian_kl` sums: the KL of each unit of z, in nats, shape (..., d).

    Equation ``eq-gaussian-kl-univariate`` (chapter 5). Arguments and errors as there.
    """
    prior_mu, prior_log_var = torch.as_tensor(prior_mu), torch.as_tensor(prior_log_var)
    same_shape(mu=mu, log_var=log_var)
    for name, prior in {"prior_mu": prior_mu, "prior_log_var": prior_log_var}.items():
        if prior.shape[-1:] not in ((), (1,), mu.shape[-1:]):  # d numbers would become more
            last_axis(mu.shape[-1], **{name: prior})
    log_ratio = log_var - prior_log_var
    # No term is infinity minus infinity, nor 0 times it: a limit of variances is one of the KL.
    largest = torch.finfo(mu.dtype).max
    squared_distance = (mu - prior_mu).square() * torch.exp(-prior_log_var).clamp(max=largest)
    # expm1 keeps the digits of exp(r) - 1 - r when r is close to 0, where the KL is smallest.
    spread = torch.expm1(log_ratio) - log_ratio.clamp(max=largest)
    return 0.5 * (squared_distance + spread)


@numeric
def gaussian_kl_full(
    mu0: Float[Tensor, "*batch0 d"],
    cov0: Float[Tensor, "*batch1 d d"],
    mu1: Float[Tensor, "*batch2 d"],
    cov1: Float[Tensor, "*batch3 d d"],
) -> Float[Tensor, "*batch"]:
    r"""KL(N(mu0, cov0) || N(mu1, cov1)) of Gaussians with any covariances, in nats.

    Equation ``eq-gaussian-kl-full`` (chapter 5).

    Args:
        mu0, mu1: the means, shape (..., d).
        cov0, cov1: the covariances, shape (..., d, d).

    Returns:
        The divergence, of the shape to which the leading axes broadcast.

    Raises:
        ValueError: the shapes do not match, or a covariance is not symmetric or not positive
            definite.
    """
    d = mu0.shape[-1]
    last_axis(d, mu1=mu1)
    factor0, factor1 = cholesky("cov0", cov0, d), cholesky("cov1", cov1, d)
    # With cov = L L^T and G = L1^-1 L0, the trace of cov1^-1 cov0 is the sum of the squares of G,
    # and the ratio of the determinants is the product of the squares of its diagonal. Each term
    # below is then at least zero.
    ratio = torch.linalg.solve_triangular(factor1, factor0, upper=False)
    distance = torch.linalg.solve_triangular(factor1, (mu0 - mu1).unsqueeze(-1), upper=False)
    log_squares = 2 * ratio.diagonal(dim1=-2, dim2=-1).log()
    off_diagonal = ratio.tril(-1).square().sum((-2, -1))
    spread = off_diagonal + (torch.expm1(log_squares) - log_squares).sum(-1)
    return 0.5 * (distance.square().sum((-2, -1)) + spread)


@numeric
def naive_regularizer(
    mu: Float[Tensor, "... d"], log_var: Float[Tensor, "... d"]
) -> Float[Tensor, "..."]:
    r"""The penalty \|mu\|^2 + \|log_var\|^2, a simpler pull to N(0, I) than that of the KL.

    Equation ``eq-naive-regularizer`` (chapter 5). It is no divergence and not in nats. In place
    of the KL it leaves a bound where it is at least the KL, and need not elsewhere. Near zero the
    KL is about half the first term plus a quarter of the second.

    Args:
        mu, log_var: mean and log-variance, shape (..., d).

    Raises:
        ValueError: the shapes do not match.
    """
    same_shape(mu=mu, log_var=log_var)
    return (mu.square() + log_var.square()).sum(-1)
