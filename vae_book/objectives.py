"""What training minimizes: the negative ELBO, and its relatives (chapter 10)."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vae_book.bounds import Elbo
from vae_book.checks import real_number
from vae_book.distributions import DiagonalGaussian
from vae_book.divergences import naive_regularizer


@dataclass(frozen=True)
class Objective:
    """Reconstruction + weight * penalty for each image; by default the negative ELBO, in nats.

    Equation ``eq-objective`` (chapter 10).

    Attributes:
        beta: the weight of the penalty. Only 1 gives the bound; 0 leaves the reconstruction alone.
            Higgins et al. (2017), equation 4.
        warm_up: the epochs in which the weight rises from 0 to beta, in equal steps; Bowman et al.
            (2016), section 3.1.
        free_nats: the KL of a unit costs nothing below this; after Kingma et al. (2016), equation
            15, who average it over a batch first, where here each image counts for itself.
        penalty: ``kl``, or ``naive`` for `vae_book.divergences.naive_regularizer`.

    Raises:
        ValueError: a number is negative or not finite, warm_up is not whole, the penalty is
            unknown, or free nats are asked of the naive one, which has none.
    """

    beta: float = 1.0
    warm_up: int = 0
    free_nats: float = 0.0
    penalty: str = "kl"

    def __post_init__(self) -> None:
        for name, kind in (("beta", float), ("warm_up", int), ("free_nats", float)):
            value = getattr(self, name)
            number = real_number(name, value)
            if not 0 <= number < math.inf or kind(number) != number:
                whole = "whole " * (kind is int)
                raise ValueError(f"{name}: expected a {whole}number from 0 on, got {value}")
            object.__setattr__(self, name, kind(number))  # one of numpy's would spoil a checkpoint
        if self.penalty not in ("kl", "naive"):
            raise ValueError(f"penalty: expected 'kl' or 'naive', got {self.penalty!r}")
        if self.penalty == "naive" and self.free_nats:
            raise ValueError("free_nats: expected 0 with the naive penalty, which is not in nats")

    def weight(self, epoch: int) -> float:
        """The weight of the penalty in an epoch, counted from 0."""
        return self.beta * min(1.0, epoch / self.warm_up) if self.warm_up else self.beta

    def __call__(self, terms: Elbo, q_z: DiagonalGaussian, epoch: int = 0) -> Float[Tensor, " n"]:
        """The loss of each image, from the terms of its bound and its q(z | x)."""
        if self.penalty == "naive":
            penalty = naive_regularizer(q_z.mu, q_z.log_var)
        else:
            unit_kl = terms.unit_kl
            penalty = (unit_kl.clamp(min=self.free_nats) if self.free_nats else unit_kl).sum(-1)
        return self.weight(epoch) * penalty - terms.log_likelihood
