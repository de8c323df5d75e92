"""What training minimizes: the negative ELBO, its relatives, and tighter bounds (chapter 10)."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vae_book.bounds import Elbo, importance_weighted_bound, pass_log_weights
from vae_book.checks import numeric, real_number, whole_number
from vae_book.distributions import DiagonalGaussian
from vae_book.divergences import naive_regularizer
from vae_book.models import Pass

BOUNDS = ("elbo", "iwae", "iwae-dreg")


@dataclass(frozen=True)
class Objective:
    """Distortion + weight * penalty for each image; by default the negative ELBO, in nats.

    Equation ``eq-objective`` (chapter 10).

    Attributes:
        beta: the weight of the penalty. With the KL, 1 gives the negative ELBO, more a looser bound
            on -log p(x), and less, in general, no bound; 0 leaves the reconstruction term alone.
            Higgins et al. (2017), equation 4.
        warm_up: the epochs in which the weight rises from 0 to beta, in equal steps; after Bowman
            et al. (2016), section 3.1, where it rises along a sigmoid.
        free_nats: what each unit is charged at least, used or not, so that a KL below it has no
            gradient; after Kingma et al. (2016), equation 15, who take groups of units and average
            their KL over the minibatch first, where here each unit of each image counts by itself.
        penalty: ``kl``, or ``naive`` for `vae_book.divergences.naive_regularizer`.
        bound: ``elbo``; or the importance-weighted bound of all draws of an image, by its own
            gradient, ``iwae``, or by the doubly reparameterized one, ``iwae-dreg``; see
            `importance_weighted_loss`. The last two have no penalty to change.

    Raises:
        ValueError: a number is negative or not finite, warm_up is not whole, the penalty or the
            bound is unknown, free nats are asked of the naive penalty, which has none, or a
            changed penalty of an importance-weighted bound.
    """

    beta: float = 1.0
    warm_up: int = 0
    free_nats: float = 0.0
    penalty: str = "kl"
    bound: str = "elbo"

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
        if self.bound not in BOUNDS:
            raise ValueError(f"bound: expected one of {', '.join(BOUNDS)}, got {self.bound!r}")
        changed = (self.beta, self.warm_up, self.free_nats, self.penalty) != (1, 0, 0, "kl")
        if self.bound != "elbo" and changed:
            raise ValueError(
                "bound: expected 'elbo' with a beta, warm_up, free_nats or penalty of its own, "
                f"got {self.bound!r}, which has no penalty to change"
            )

    def weight(self, epoch: int) -> float:
        """The weight of the penalty in an epoch, counted from 0."""
        epoch = whole_number("epoch", epoch, least=0)
        return self.beta * min(1.0, epoch / self.warm_up) if self.warm_up else self.beta

    def numbers(self, epoch: int) -> object:
        """What of an epoch the loss depends on; losses with equal numbers are one function."""
        # One's own objective may use the epoch in another way.
        return self.weight(epoch) if type(self) is Objective else epoch

    def loss(
        self, x: Float[Tensor, "n channels height width"], made: Pass, terms: Elbo, epoch: int = 0
    ) -> Float[Tensor, " n"]:
        """The loss of each image, whatever the bound.

        Args:
            x: images.
            made: what the model's ``forward`` has made of them.
            terms: their ELBO, as from `vae_book.bounds.elbo_terms`.
            epoch: the epoch, counted from 0.

        Raises:
            ValueError: an objective of one's own gives something else.
        """
        if self.bound == "elbo":
            found = self(terms, made.q_z, epoch)
            if found.shape != terms.log_likelihood.shape:
                raise ValueError(
                    f"objective: expected a loss for each image, shape "
                    f"{tuple(terms.log_likelihood.shape)}, got {tuple(found.shape)}"
                )
            return found
        return importance_weighted_loss(x, made, doubly=self.bound == "iwae-dreg")

    def __call__(self, terms: Elbo, q_z: DiagonalGaussian, epoch: int = 0) -> Float[Tensor, " n"]:
        """The loss of each image, from the terms of its ELBO and its q(z | x).

        Raises:
            ValueError: the bound is another than the ELBO, which these terms do not give.
        """
        if self.bound != "elbo":
            raise ValueError(f"bound: expected 'elbo', got {self.bound!r}; use the method loss")
        if self.penalty == "naive":
            penalty = naive_regularizer(q_z.mu, q_z.log_var)
        else:
            unit_kl = terms.unit_kl
            penalty = (unit_kl.clamp(min=self.free_nats) if self.free_nats else unit_kl).sum(-1)
        return self.weight(epoch) * penalty - terms.log_likelihood


@numeric
def importance_weighted_loss(
    x: Float[Tensor, "n channels height width"], made: Pass, *, doubly: bool = False
) -> Float[Tensor, " n"]:
    """The negative importance-weighted bound of each image, in nats; K is the number of draws.

    Burda, Grosse and Salakhutdinov (2016), equation 8. In its own gradient draw k counts by its
    share s_k = w_k / (w_1 + ... + w_K). For the encoder, part of that is noise that averages to 0,
    and beside which the gradient vanishes for large K (Rainforth et al., 2018). The doubly
    reparameterized gradient, equation ``eq-dreg`` of chapter 13 (Tucker et al., 2019), leaves that
    part out: draw k counts by s_k squared, and through z alone. Near the posterior it has far less
    noise; for a q that is too narrow and far off it can have more. The value and the decoder's
    gradient stay.

    Args:
        x: images.
        made: what the model's ``forward`` has made of them and of K draws for each; without an axis
            for samples, K = 1. With ``doubly``, all that goes backwards through its z is changed,
            so take no other gradient from it.
        doubly: take the doubly reparameterized gradient.
    """
    z = made.z
    if doubly:
        mu, log_var = made.q_z
        made = made._replace(q_z=DiagonalGaussian(mu.detach(), log_var.detach()))
    found = pass_log_weights(x, made)
    log_weights = found.reshape(math.prod(found.shape[:-1]), len(x))  # n may be 0 in a process
    if doubly and z.requires_grad:
        share = log_weights.detach().softmax(0).reshape(z.shape[:-1]).unsqueeze(-1)
        z.register_hook(lambda gradient: share * gradient)  # which has the factor share already
    return -importance_weighted_bound(log_weights)
