"""Bayes' rule where it can be computed, as a check on estimates (chapters 1, 3 and 4).

`enumerate_posterior` is for a latent variable with finitely many values, or on a grid, and
`quadrature_log_evidence` for one on the line. `naive_log_evidence` is the estimate from draws of
the prior. For the VAE with a linear decoder, where all has a closed form, see
`vae_book.linear_gaussian`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vae_book.checks import enough_draws, last_axis, numeric, real_tensor, sums_to_one
from vae_book.deprecated import moved
from vae_book.monte_carlo import Estimate, log_average

NEGLIGIBLE = 40.0  # nats below the highest peak: e^-40 is below the rounding of a double


class Posterior(NamedTuple):
    """What Bayes' rule gives for a latent variable with k values.

    Attributes:
        log_posterior: log p(z | x), shape (..., k).
        log_evidence: log p(x), shape (...).
    """

    log_posterior: Float[Tensor, "... k"]
    log_evidence: Float[Tensor, "..."]


@numeric
def enumerate_posterior(
    log_prior: Float[Tensor, "*prior k"], log_likelihood: Float[Tensor, "*batch k"]
) -> Posterior:
    """Bayes' rule for a latent variable with k values: multiply, sum, divide.

    Equations ``eq-bayes`` and ``eq-evidence-sum`` (chapter 1).

    Args:
        log_prior: log p(z) of each value, shape (..., k); on a grid, log density + log(step).
        log_likelihood: log p(x | z) of the observed x for each value, shape (..., k).

    Raises:
        ValueError: the numbers of values differ, the prior does not sum to 1, or x is impossible
            under every z.
    """
    last_axis(log_prior.shape[-1], log_likelihood=log_likelihood)
    sums_to_one(log_prior=log_prior)
    log_joint = log_prior + log_likelihood
    log_evidence = log_joint.logsumexp(-1)
    if not bool(log_evidence.isfinite().all()):
        raise ValueError(
            "log_likelihood: expected an x that some z can explain, got an evidence of "
            f"{log_evidence.exp().min().item():.3g}"
        )
    # Subtracting the evidence would leave its rounding, which the posterior's sum would show.
    return Posterior(log_joint.log_softmax(-1), log_evidence)


@numeric
def quadrature_log_evidence(
    log_joint: Callable[[Tensor], Tensor], lower: float | int, upper: float | int
) -> float:
    """log p(x), in nats, for a latent variable on the line: the area under p(x | z) p(z).

    Equation ``eq-evidence`` (chapter 1), by adaptive quadrature (scipy's quad).

    Peaks are looked for on a grid of 2001 points, between which one that no point shows is lost.

    Args:
        log_joint: log p(x | z) + log p(z) as a function of a tensor of z, for the observed x.
        lower, upper: the ends of a range outside of which the area is negligible.

    Raises:
        ValueError: the range is empty or infinite, or x is impossible under every z.
    """
    from scipy.integrate import quad  # here, because few need it and it takes long to import

    if not (math.isfinite(upper - lower) and lower < upper):
        raise ValueError(
            f"lower and upper: expected finite lower < upper, got {lower:g}, {upper:g}"
        )
    peaks = _peaks(log_joint, lower, upper)
    highest = max(peaks.values())
    # Taking out the maximum keeps the integrand from underflowing; cutting the range ever finer
    # towards each peak that matters keeps a narrow one from being overlooked.
    tops = [peak for peak, height in peaks.items() if height > highest - NEGLIGIBLE]
    steps = [side * (upper - lower) / 10**k for side in (-1, 1) for k in range(1, 9)]
    cuts = tops + [peak + step for peak in tops for step in steps]
    area, _ = quad(
        lambda z: float(torch.exp(log_joint(torch.tensor(z, dtype=torch.float64)) - highest)),
        lower,
        upper,
        points=[cut for cut in cuts if lower < cut < upper],
        epsabs=0,
        epsrel=1e-10,
        limit=500 + len(cuts),
    )
    if not area > 0:
        raise ValueError(
            "lower and upper: expected a range about as wide as the posterior, got one in which "
            "the quadrature found nothing"
        )
    return highest + math.log(area)


def _peaks(
    log_joint: Callable[[Tensor], Tensor], lower: float | int, upper: float | int
) -> dict[float, float]:
    """Where log_joint has local maxima, found on a grid and refined, and its values there."""
    z = torch.linspace(lower, upper, 2001, dtype=torch.float64)
    values = _on_grid(log_joint, z)
    end = values.new_full((1,), -math.inf)
    before, after = torch.cat([end, values[:-1]]), torch.cat([values[1:], end])
    bend = 2 * values - before - after
    # What bends less is flat, but for rounding.
    tops = ((values >= before) & (values > after) & (bend > 1e-9)).nonzero().squeeze(1).tolist()
    return dict(_refined(log_joint, z, top) for top in {int(values.argmax()), *tops})


def _refined(log_joint: Callable[[Tensor], Tensor], z: Tensor, top: int) -> tuple[float, float]:
    """Where log_joint is largest around a point of the grid, and its value there."""
    for _ in range(3):  # each time closer around the best point
        z = torch.linspace(z[max(top - 1, 0)], z[min(top + 1, 2000)], 2001, dtype=torch.float64)
        values = _on_grid(log_joint, z)
        top = int(values.argmax())
    return z[top].item(), values[top].item()


def _on_grid(log_joint: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """The values of log_joint, of which the largest is finite."""
    values = real_tensor("log_joint", log_joint(z), z.dtype)
    if values.shape != z.shape:
        raise ValueError(
            f"log_joint: expected one number for each z, shape {tuple(z.shape)}, got "
            f"{tuple(values.shape)}"
        )
    if not math.isfinite(highest := values.max().item()):
        raise ValueError(
            f"log_joint: expected an x that some z can explain, got a maximum of {highest}"
        )
    return values


@numeric
def naive_log_evidence(log_likelihood: Float[Tensor, "n ..."]) -> Estimate:
    """An estimate of log p(x), in nats: the average of p(x | z) over draws of z from the prior.

    Equation ``eq-naive-evidence`` (chapter 1), which shows when it fails: when few of the draws
    explain x. The average is unbiased; its logarithm is too low on average.

    Args:
        log_likelihood: log p(x | z) at n draws of z from the prior, shape (n, ...), n at least 2.

    Raises:
        ValueError: there are fewer than two draws, or an entry is plus infinity.
    """
    enough_draws(log_likelihood=log_likelihood)
    return log_average(log_likelihood)


__getattr__ = moved(
    __name__,
    {
        "LinearGaussian": "linear_gaussian.LinearGaussian",
        "linear_joint": "linear_gaussian.linear_joint",
        "ppca": "linear_gaussian.ppca",
        "Gaussian": "distributions.FullGaussian",
    },
)
