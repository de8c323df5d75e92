"""Two estimators of a gradient through a random draw, and where both are known (chapter 7).

The pathwise and the score-function estimator of the gradient of E_q[f(z)] with respect to the mean
and log-variance of a normal q; the same gradient by quadrature; a function f on which the gradient
and the variance of both estimators are exact; and where the noise of a gradient comes from.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from vae_book.checks import enough_draws, last_axis, numeric, real_number, same_shape
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


class VarianceSplit(NamedTuple):
    """The two sources of a gradient's noise, each a variance of one image's gradient of one draw.

    Attributes:
        images: how much the expected gradient differs from image to image.
        z: how much the gradient of one image differs from draw to draw, on average over images.
    """

    images: Float[Tensor, "..."]
    z: Float[Tensor, "..."]


@numeric
def pathwise_gradient(
    f: Function,
    mu: Float[Tensor, "... d"],
    log_var: Float[Tensor, "... d"],
    eps: Float[Tensor, "n ... d"],
) -> GaussianGradient:
    """The gradient of E_q[f(z)] through the sample: one unbiased draw of it for each noise.

    Equation ``eq-pathwise`` (chapter 7), with its conditions on f; Kingma and Welling (2014),
    section 2.4.

    Args:
        f: a function of z, from shape (n, ..., d) to (n, ...). It is differentiable up to kinks,
            and has no jumps: those would go unnoticed.
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
    """The gradient of E_q[f(z)] from the values of f alone: one unbiased draw for each noise.

    Equations ``eq-score-function`` and ``eq-baseline`` (chapter 7); Williams (1992), theorem 1.

    Args:
        f: a function of z, from shape (n, ..., d) to (n, ...), whose square has a finite average
            under q.
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
def bonnet_price_gradient(
    f: Function, mu: Float[Tensor, "..."], log_var: Float[Tensor, "..."]
) -> GaussianGradient:
    """The gradient of E_q[f(z)] for one number z, by quadrature of the derivatives of f.

    Equation ``eq-bonnet-price`` (chapter 7): the derivative with respect to mu is E_q[f'(z)], that
    with respect to the variance E_q[f''(z)] / 2. Rezende et al. (2014), section 3; Bonnet (1964);
    Price (1958). Gauss-Hermite quadrature with 64 points is exact for polynomials f up to degree
    128.

    Args:
        f: a smooth function, applied to each number of a tensor by itself.
        mu, log_var: mean and log-variance of q, of any shape.

    Raises:
        ValueError: the shapes do not match, f does not give one number for each z, or it cannot be
            differentiated.
    """
    same_shape(mu=mu, log_var=log_var)
    nodes, weights = (torch.tensor(each, dtype=mu.dtype) for each in hermegauss(64))
    nodes, weights = (
        each.to(mu.device).reshape(-1, *[1] * mu.ndim) for each in (nodes, weights / weights.sum())
    )
    mu, log_var = mu.detach(), log_var.detach()
    with torch.enable_grad():
        z = (mu + torch.exp(0.5 * log_var) * nodes).requires_grad_()
        slope = _slope(f(z), z)
        bend = _slope(slope, z) if slope.requires_grad else torch.zeros_like(z)
    by_var = 0.5 * (weights * bend).sum(0)
    return GaussianGradient((weights * slope).sum(0).detach(), (by_var * log_var.exp()).detach())


@numeric
def split_variance(draws: Float[Tensor, "n K ..."]) -> VarianceSplit:
    """How much of the noise of a gradient comes from the images, and how much from the draws of z.

    Equation ``eq-gradient-noise`` (chapter 7): the average over a batch of B images with K draws
    each has the variance ``images / B + z / (B * K)``. Both estimates are unbiased; that of
    ``images`` may come out below zero.

    Args:
        draws: gradients of n independent images, for K independent draws of z each.

    Raises:
        ValueError: there are fewer than two images, or fewer than two draws for each.
    """
    enough_draws(draws=draws)
    if draws.ndim < 2 or draws.shape[1] < 2:
        raise ValueError(
            "draws: expected shape (n, K, ...) with two draws or more for each image, got "
            f"{tuple(draws.shape)}"
        )
    z = draws.var(1).mean(0)
    # The average over the draws of an image still has a K-th of their noise.
    return VarianceSplit(draws.mean(1).var(0) - z / draws.shape[1], z)


@numeric
def signal_to_noise(gradients: Float[Tensor, "n ..."]) -> Float[Tensor, "..."]:
    """The size of the mean of a gradient's draws in units of their standard deviation.

    Equation ``eq-snr`` (chapter 13); Rainforth et al. (2018), equation 4. Where all draws are
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
    def best_baseline(
        self, mu: Float[Tensor, "d"], log_var: Float[Tensor, "d"]
    ) -> GaussianGradient:
        """The constant baseline that makes `score_function_variance` least, for each parameter.

        Equation ``eq-best-baseline`` (chapter 7). Where the curvature a_j is positive it is above
        the average of f: draws with a large score have, on average, a larger f.
        """
        last_axis(len(self.a), mu=mu, log_var=log_var)
        mean, bend = self.expectation(mu, log_var), self.a * log_var.exp()
        return GaussianGradient(mean + bend, mean + 2 * bend)

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
        # Seen from direction j, f - baseline = g0 + g1 eps + g2 eps^2 + noise.
        g0 = 0.5 * self.a * m.square() + rest - baseline
        g1, g2 = self.a * m * var.sqrt(), 0.5 * self.a * var
        mixed = g1.square() + 2 * g0 * g2
        # The moments of a standard normal number: 1, 3, 15 and 105 for the powers 2, 4, 6, 8.
        by_mu = (g0.square() + 3 * mixed + 15 * g2.square() + rest_noise) / var
        by_log_var = (2 * g0.square() + 10 * mixed + 78 * g2.square() + 2 * rest_noise) / 4
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


def _slope(values: Tensor, z: Tensor) -> Tensor:
    """The derivative of each value with respect to its own z, differentiable once more."""
    by_z = None
    if values.shape != z.shape:
        raise ValueError(
            f"f: expected one value for each z, shape {tuple(z.shape)}, got {tuple(values.shape)}"
        )
    if values.requires_grad:
        (by_z,) = torch.autograd.grad(values.sum(), z, create_graph=True, allow_unused=True)
    if by_z is None:
        raise ValueError("f: expected a function of z through which PyTorch can differentiate")
    return by_z


def _values(f: Function, z: Tensor) -> Tensor:
    values = f(z)
    if values.shape != z.shape[:-1]:
        raise ValueError(
            f"f: expected one value for each z, shape {tuple(z.shape[:-1])}, got "
            f"{tuple(values.shape)}"
        )
    return values
