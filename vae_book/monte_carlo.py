"""Averages over random draws, each with its standard error (chapter 1)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vae_book.checks import enough_draws, numeric


class Estimate(NamedTuple):
    """An average over draws.

    Attributes:
        value: the average.
        standard_error: an estimate of the standard deviation that the average has over repetitions.
    """

    value: Float[Tensor, "..."]
    standard_error: Float[Tensor, "..."]


@numeric
def average(draws: Float[Tensor, "n ..."]) -> Estimate:
    """The average over the first axis, and its standard error.

    Equation ``eq-monte-carlo`` (chapter 1).

    Args:
        draws: independent draws of one quantity, shape (n, ...), n at least 2.

    Raises:
        ValueError: there are fewer than two draws.
    """
    enough_draws(draws=draws)
    return Estimate(draws.mean(0), draws.std(0) / math.sqrt(len(draws)))


@numeric
def log_average(log_weights: Float[Tensor, "n ..."]) -> Estimate:
    """The logarithm of an average of weights, in nats, from the logarithms of the weights.

    By Jensen's inequality, equation ``eq-jensen`` (chapter 4), it is at least the average of the
    logarithms. The weights themselves are too small for a float: e^-1000 is 0. So the largest is
    taken out before, and put back after.

    The standard error is that of the average divided by the average, which is about that of the
    logarithm where it is well below 1 and the largest weights are not too rare to be drawn. By
    equation ``eq-ess-error`` (chapter 1) it is never above 1, and about one over the root of the
    effective sample size where that is far below n. Near 1, a single weight outweighs all others:
    the estimate cannot be trusted, and may be off by any number of nats.

    Args:
        log_weights: logarithms of n independent weights, shape (n, ...), n at least 2.

    Raises:
        ValueError: there are fewer than two weights, or one is plus infinity.
    """
    weights, largest = _scaled(log_weights)
    mean = weights.mean(0)
    error = weights.std(0) / mean / math.sqrt(len(weights))
    return Estimate(mean.log() + largest, torch.where(mean == 0, math.inf, error))


@numeric
def effective_sample_size(log_weights: Float[Tensor, "n ..."]) -> Float[Tensor, "..."]:
    r"""About how many equally weighted draws an average of unequally weighted ones is worth.

    Equation ``eq-ess`` (chapter 1); Kong, Liu and Wong (1994). It is the square of the sum of the
    weights over the sum of their squares: n for equal weights, 1 if one weight is all that counts,
    0 if all weights are zero.

    Args:
        log_weights: logarithms of the n weights, shape (n, ...).

    Raises:
        ValueError: there are fewer than two weights, or one is plus infinity.
    """
    weights, _ = _scaled(log_weights)
    squares = weights.square().sum(0)
    return torch.where(squares == 0, 0.0, weights.sum(0).square() / squares)


def _scaled(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weights over the largest of them, and the logarithm of that."""
    enough_draws(log_weights=log_weights)
    largest = log_weights.max(0).values
    if bool((largest == math.inf).any()):
        raise ValueError("log_weights: expected logarithms of finite weights, got infinity")
    # Where all weights are zero there is no largest to take out.
    shift = torch.where(largest == -math.inf, 0.0, largest)
    return torch.exp(log_weights - shift), shift
