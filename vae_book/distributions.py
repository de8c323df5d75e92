"""Distributions over the latent z, as objects: q(z | x), p(z), p(z | x) (chapters 3 to 12).

Each is checked once, where it is made. Noise is passed in as ``eps``, which makes runs repeatable.
The methods call the functions of the chapters: `reparameterize`, `gaussian_kl` and their kin.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vae_book.checks import as_floats, numeric, same_shape, whole_numbers
from vae_book.device import check_generator, standard_normal
from vae_book.divergences import gaussian_unit_kl
from vae_book.reparameterization import reparameterize

LOG_2PI = math.log(2 * math.pi)


class Distribution(ABC):
    """What a model asks of its q(z | x) and its p(z): a draw, its log-density, its divergence."""

    @property
    @abstractmethod
    def batch(self) -> tuple[int, ...]:
        """The leading axes: one distribution for each of their entries."""

    @abstractmethod
    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Draws whose leading axes are ``shape``, to which those of the distribution broadcast."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density at z, in nats, summed over the last axis."""

    def unit_kl(self, other: "Distribution", z: Tensor | None = None) -> Tensor:
        """An estimate of KL(self || other), in nats, at draws z of self, shape (..., 1).

        Equation ``eq-kl-monte-carlo`` (chapter 2). Where the divergence has a closed form, a
        subclass gives that, for each unit of z.
        """
        if z is None:
            raise ValueError("z: expected draws, as this divergence has no closed form, got None")
        return (self.log_prob(z) - other.log_prob(z)).unsqueeze(-1)

    def kl(self, other: "Distribution", z: Tensor | None = None) -> Tensor:
        """KL(self || other), in nats; exact where it has a closed form, else estimated at z."""
        return self.unit_kl(other, z).sum(-1)


@dataclass(frozen=True, eq=False)
class DiagonalGaussian(Distribution):
    """N(mu, diag exp(log_var)): independent Gaussians, one for each unit of z.

    ``mu, log_var = q`` takes it apart, ``q[i]`` gives that of one image.

    Attributes:
        mu: the means, shape (..., d).
        log_var: the logarithms of the variances, shape (..., d).

    Raises:
        ValueError: the two shapes differ, or are those of single numbers.
    """

    mu: Float[Tensor, "*batch d"]
    log_var: Float[Tensor, "*batch d"]

    def __post_init__(self) -> None:
        mu, log_var = as_floats(mu=self.mu, log_var=self.log_var)
        same_shape(mu=mu, log_var=log_var)
        if mu.ndim < 1:
            raise ValueError("mu and log_var: expected shape (..., d), got ()")
        object.__setattr__(self, "mu", mu)
        object.__setattr__(self, "log_var", log_var)

    def __iter__(self) -> Iterator[Tensor]:
        yield from (self.mu, self.log_var)

    def __getitem__(self, index: Any) -> "DiagonalGaussian":
        return DiagonalGaussian(self.mu[index], self.log_var[index])

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading axes: one distribution for each of their entries."""
        return tuple(self.mu.shape[:-1])

    @property
    def sigma(self) -> Float[Tensor, "*batch d"]:
        """The standard deviations."""
        return torch.exp(0.5 * self.log_var)

    @numeric
    def rsample(self, eps: Float[Tensor, "*sample d"]) -> Float[Tensor, "*result d"]:
        """The draw that the noise eps makes, through which gradients pass: `reparameterize`."""
        return reparameterize(self.mu, self.log_var, eps.to(self.mu))

    def sample(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None
    ) -> Float[Tensor, "..."]:
        """Draws whose leading axes are ``shape``; their noise is drawn on the CPU."""
        shape = whole_numbers("shape", shape, least=0)
        return self.rsample(standard_normal((*shape, self.mu.shape[-1]), generator, self.mu.device))

    def log_prob(self, z: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
        """The log-density at z, in nats, summed over the last axis: `gaussian_log_prob`."""
        return gaussian_log_prob(z, self.mu, self.log_var)

    def unit_kl(self, other: Distribution, z: Tensor | None = None) -> Float[Tensor, "... d"]:
        """KL(self || other) of each unit, in nats: `gaussian_unit_kl`, or estimated at z.

        Equation ``eq-gaussian-kl-univariate`` (chapter 5); exact if the other is of this kind.
        """
        if isinstance(other, DiagonalGaussian):
            return gaussian_unit_kl(self.mu, self.log_var, other.mu, other.log_var)
        return super().unit_kl(other, z)


@dataclass(frozen=True, eq=False)
class Mixture(Distribution):
    """A mixture of Gaussians, all equally likely: the density is the mean of theirs.

    The components keep together what the units of z do: a draw takes all its units from one of
    them. Tomczak and Welling (2018) compare priors of this kind.

    Attributes:
        parts: the components, whose mu and log_var have the shape (components, d).

    Raises:
        ValueError: the components have another number of axes.
    """

    parts: DiagonalGaussian

    def __post_init__(self) -> None:
        if len(self.parts.batch) != 1 or not self.parts.batch[0]:
            raise ValueError(
                "parts: expected mu and log_var of shape (components, d), got "
                f"{tuple(self.parts.mu.shape)}"
            )

    @property
    def batch(self) -> tuple[int, ...]:
        """One distribution, for whatever leading axes."""
        return ()

    def sample(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None
    ) -> Float[Tensor, "..."]:
        """Draws whose leading axes are ``shape``: first which component, then a draw of it."""
        shape = whole_numbers("shape", shape, least=0)
        check_generator(generator)
        which = torch.randint(len(self.parts.mu), shape, generator=generator, device="cpu")
        return self.parts[which.to(self.parts.mu.device)].sample(shape, generator)

    @numeric
    def log_prob(self, z: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
        """The log-density at z, in nats: the logarithm of a mean, of densities of whole z."""
        each = self.parts.log_prob(z.unsqueeze(-2))
        return each.logsumexp(-1) - math.log(len(self.parts.mu))


class FullGaussian(NamedTuple):
    """N(mu, cov), a Gaussian with any covariance.

    Attributes:
        mu: the mean, shape (..., d).
        cov: the covariance, shape (d, d).
    """

    mu: Float[Tensor, "... d"]
    cov: Float[Tensor, "d d"]


@numeric
def gaussian_log_prob(
    z: Float[Tensor, "... d"], mu: Float[Tensor, "..."], log_var: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """log N(z; mu, diag exp(log_var)), in nats, summed over the last axis.

    Equation ``eq-iw-bound`` (chapter 4) takes it of q(z | x) and of p(z).

    Args:
        z: where, shape (..., d).
        mu, log_var: mean and log-variance; their shapes broadcast to that of z.
    """
    squares = (z - mu).square() * torch.exp(-log_var)
    return -0.5 * (squares + log_var + LOG_2PI).sum(-1)
