"""Annealed importance sampling: log p(x) from below, and from above on images that a model made.

A chain walks from the prior to the posterior over the tempered posteriors, proportional to
p(z) p(x | z)^beta with beta from 0 to 1, and its weight estimates p(x).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vae_book.bounds import importance_weighted_bound
from vae_book.checks import as_floats, numeric, real_number, trusted, whole_number
from vae_book.device import seeded, standard_normal
from vae_book.evaluation import chunks
from vae_book.images import Images
from vae_book.models import VAE, measuring

TARGET = 0.65  # of the acceptance; Neal (2011): the best, in many dimensions
TRIES = 100  # transitions at least in the search for step sizes


class Tempered:
    """log p(z) + beta log p(x | z) of some images, as a function of z; all given y.

    Args:
        model: any model of the book.
        x: images, shape (n, channels, height, width).
        y: what it is told about them.
    """

    def __init__(self, model: VAE, x: Tensor, y: Tensor | None = None) -> None:
        (x,) = as_floats(x=x)
        model.check_images(x)
        model.likelihood.check_support(x)
        self.model, self.x, self.y, self.prior = model, x, y, model.prior(y)

    @numeric
    def log_likelihood(self, z: Float[Tensor, "K n d"]) -> Float[Tensor, "K n"]:
        """log p(x | z)."""
        with trusted():  # a step too long may overflow, and is rejected then
            return self.model.decode(z, self.y).log_prob(self.x)

    @numeric
    def log_density(self, z: Float[Tensor, "K n d"], beta: float) -> Float[Tensor, "K n"]:
        """The logarithm of the tempered posterior, up to a constant."""
        with trusted():
            return self.prior.log_prob(z) + beta * self.log_likelihood(z)

    @torch.enable_grad()
    @numeric
    def slope(self, z: Float[Tensor, "K n d"], beta: float) -> Float[Tensor, "K n d"]:
        """Its gradient with respect to z."""
        z = z.detach().requires_grad_()
        return torch.autograd.grad(self.log_density(z, beta).sum(), z)[0]


def schedule(n: int, rate: float = 4.0) -> list[float]:
    """The n + 1 values of beta from 0 to 1: of a sigmoid, so that most steps are near both ends.

    As in the code of Wu et al. (2017).

    Args:
        n: how many steps.
        rate: the sigmoid runs from -rate to rate.

    Raises:
        ValueError: n is not positive, or the rate is too small or too large for a sigmoid.
    """
    n, rate = whole_number("n", n), real_number("rate", rate)
    if not 0.001 <= rate <= 100:
        raise ValueError(f"rate: expected a number from 0.001 to 100, got {rate}")
    values = torch.linspace(-rate, rate, n + 1, dtype=torch.float64).sigmoid()
    return ((values - values[0]) / (values[-1] - values[0])).tolist()


@numeric
def leapfrog(
    slope: Callable[[Tensor], Tensor],
    z: Float[Tensor, "*batch d"],
    momentum: Float[Tensor, "*batch d"],
    step: Float[Tensor, "..."],
    n_steps: int,
) -> tuple[Tensor, Tensor]:
    """Motion on the log-density of that slope: nearly keeps its sum with -|momentum|^2 / 2.

    Neal (2011). With the momentum reversed it leads back to where it began.
    """
    n_steps = whole_number("n_steps", n_steps)
    momentum = momentum + 0.5 * step * slope(z)
    for _ in range(n_steps - 1):
        z = z + step * momentum
        momentum = momentum + step * slope(z)
    z = z + step * momentum
    return z, momentum + 0.5 * step * slope(z)


@torch.no_grad()
@numeric
@trusted()
def transition(
    target: Tempered,
    z: Float[Tensor, "K n d"],
    beta: float,
    step: Float[Tensor, " n"],
    n_leapfrog: int,
    generator: torch.Generator | None,
) -> tuple[Float[Tensor, "K n d"], Float[Tensor, "K n"]]:
    """A step of Hamiltonian Monte Carlo, which leaves the tempered posterior as it is.

    Neal (2011).

    Args:
        target: the images and their model.
        z: K chains for each of n images.
        beta: the inverse temperature.
        step: the size of the leapfrog steps for each image.
        n_leapfrog: how many of these.
        generator: of the momenta and of the decisions.

    Returns:
        The new z, and the probability with which each proposal was accepted.
    """
    momentum = standard_normal(z.shape, generator, z.device).to(z)
    decision = torch.rand(z.shape[:-1], generator=generator, device="cpu").to(z)
    moved, after = leapfrog(
        lambda at: target.slope(at, beta), z, momentum, step.unsqueeze(-1), n_leapfrog
    )
    gain = target.log_density(moved, beta) - target.log_density(z, beta)
    gain = gain + 0.5 * (momentum.square().sum(-1) - after.square().sum(-1))
    accepted = gain.nan_to_num(nan=-torch.inf).clamp(max=0).exp()  # what has run away is rejected
    return torch.where((decision < accepted).unsqueeze(-1), moved, z), accepted


@trusted()
def step_sizes(
    target: Tempered,
    betas: list[float],
    *,
    n_chains: int,
    n_leapfrog: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "T n"]:
    """For each temperature and image, the step size at which about 65% are accepted.

    Found in a run of its own. Were they found on the way, a step would depend on where its chain
    has been; it would not leave the tempered posterior as it is, and the bounds would be none.

    Args:
        target: the images and their model.
        betas: as from `schedule`.
        n_chains, n_leapfrog, generator: as for `anneal`.
    """
    betas, n, found = _inverse_temperatures(betas), len(target.x), []
    n_chains, n_leapfrog = (
        whole_number("n_chains", n_chains),
        whole_number("n_leapfrog", n_leapfrog),
    )
    z = target.prior.sample((n_chains, n), generator)
    step = z.new_full((n,), 0.5)
    for beta in betas[1:]:
        for _ in range(max(1, TRIES // len(betas))):
            z, accepted = transition(target, z, beta, step, n_leapfrog, generator)
            step = step * (0.5 * (accepted.mean(0) - TARGET)).exp()
        found.append(step)
    return torch.stack(found)


def _inverse_temperatures(betas: Sequence[float]) -> list[float]:
    found = [real_number("betas", each) for each in betas] if isinstance(betas, Sequence) else []
    if found[:1] + found[-1:] != [0, 1] or not all(a <= b for a, b in pairwise(found)):
        raise ValueError(f"betas: expected numbers that rise from 0 to 1, got {betas!r:.60}")
    return found


class Annealed(NamedTuple):
    """What chains have found.

    Attributes:
        log_weights: of each chain, for each image, in nats.
        acceptance: the share of accepted proposals, for each image.
    """

    log_weights: Float[Tensor, "K n"]
    acceptance: Float[Tensor, " n"]

    @property
    def lower(self) -> Float[Tensor, " n"]:
        """Of chains that ran forwards: on average a lower bound on log p(x) of each image."""
        return importance_weighted_bound(self.log_weights)

    @property
    def upper(self) -> Float[Tensor, " n"]:
        """Of chains that ran backwards: on average an upper bound on log p(x) of each image."""
        return -importance_weighted_bound(-self.log_weights)


@torch.no_grad()
@numeric
@trusted()
def anneal(
    target: Tempered,
    betas: list[float],
    steps: Float[Tensor, "T n"],
    *,
    n_chains: int = 16,
    n_leapfrog: int = 10,
    z: Float[Tensor, "*chains n d"] | None = None,
    generator: torch.Generator | None = None,
) -> Annealed:
    """Chains from the prior to the posterior; or, from given z, from the posterior to the prior.

    Equation ``eq-annealed-weight`` (chapter 13); Neal (2001), with the transitions of Wu et al.
    (2017). Forwards the weights average to p(x), so that the logarithm of their average is on
    average too low. Backwards, from exact draws of the posterior, their inverses average to
    1 / p(x): too high (Grosse, Ghahramani and Adams, 2015).

    Args:
        target: the images and their model.
        betas: as from `schedule`.
        steps: as from `step_sizes`, found without the noise of this run.
        n_chains: chains for each image.
        n_leapfrog: leapfrog steps in a transition.
        z: exact draws of p(z | x), from which to go backwards: for each image one, from which all
            of its chains start, or one for each chain.
        generator: of all noise.
    """
    betas, n_leapfrog = _inverse_temperatures(betas), whole_number("n_leapfrog", n_leapfrog)
    shape = (whole_number("n_chains", n_chains), len(target.x))
    if steps.shape != (len(betas) - 1, shape[1]):
        raise ValueError(
            f"steps: expected one for each of {len(betas) - 1} temperatures above the first and "
            f"each of {shape[1]} images, got {tuple(steps.shape)}"
        )
    forwards = z is None
    state = target.prior.sample(shape, generator) if z is None else z.expand(*shape, -1)
    log_weights, acceptance = state.new_zeros(shape), state.new_zeros(shape[1])
    levels = list(zip(betas[:-1], betas[1:], steps, strict=True))
    for before, beta, step in levels if forwards else reversed(levels):
        # Forwards the weight comes first and then the move; backwards the other way round.
        if forwards:
            log_weights += (beta - before) * target.log_likelihood(state)
        state, accepted = transition(target, state, beta, step, n_leapfrog, generator)
        if not forwards:
            log_weights += (beta - before) * target.log_likelihood(state)
        acceptance += accepted.mean(0) / len(levels)
    return Annealed(log_weights, acceptance)


def _whole(**numbers: int) -> dict[str, Any]:
    return {name: whole_number(name, each) for name, each in numbers.items()}


@measuring
def annealed_log_likelihood(
    model: VAE,
    data: Images,
    *,
    n_temperatures: int = 500,
    n_chains: int = 16,
    n_leapfrog: int = 10,
    seed: int = 0,
) -> Float[Tensor, " n"]:
    """A stochastic lower bound on log p(x), or log p(x | y), of each image, in nats.

    It needs no encoder. Neal (2001); Wu, Burda, Salakhutdinov and Grosse (2017).

    Args:
        model: any model of the book.
        data: the images, held out or not.
        n_temperatures: steps from the prior to the posterior; more make the bound tighter.
        n_chains: chains for each image.
        n_leapfrog: leapfrog steps in a transition.
        seed: of all noise.

    Raises:
        ValueError: a number is not positive, or the images do not fit the model.
    """
    betas, options = schedule(n_temperatures), _whole(n_chains=n_chains, n_leapfrog=n_leapfrog)
    generator, found = seeded(seed), []
    for x, y in chunks(model, data, options["n_chains"]):
        target = Tempered(model, x, y)
        steps = step_sizes(target, betas, **options, generator=generator)
        found.append(anneal(target, betas, steps, **options, generator=generator).lower)
    return torch.cat(found)


class Sides(NamedTuple):
    """log p(x) of images that a model made, from both sides, in nats.

    Attributes:
        x: the images.
        lower, upper: a stochastic lower and upper bound for each of them. For a single image they
            may stand the wrong way round; on average they do not.
    """

    x: Float[Tensor, "n channels height width"]
    lower: Float[Tensor, " n"]
    upper: Float[Tensor, " n"]


@torch.no_grad()
@measuring
def both_sides(
    model: VAE,
    n: int,
    *,
    y: Tensor | None = None,
    n_temperatures: int = 500,
    n_chains: int = 16,
    n_leapfrog: int = 10,
    seed: int = 0,
) -> Sides:
    """Bounds on log p(x) from below and from above, for images that the model makes.

    Equation ``eq-both-sides`` (chapter 13). The z from which an image was made is an exact draw of
    its posterior; Grosse, Ghahramani and Adams (2015), Wu et al. (2017). The gap between the
    averages says how good chains like these are; on real images there is no such z, and so no upper
    bound.

    Args:
        model: any model of the book.
        n: how many images.
        y: what each of them is told, for a model that is conditioned on it.
        n_temperatures, n_chains, n_leapfrog, seed: as for `annealed_log_likelihood`.

    Raises:
        ValueError: a number is not positive, or y does not fit.
    """
    betas, options = schedule(n_temperatures), _whole(n_chains=n_chains, n_leapfrog=n_leapfrog)
    generator = seeded(seed)
    z = model.prior(y).sample((whole_number("n", n),), generator)
    x = model.decode(z, y).sample(generator)
    target = Tempered(model, x, y)
    steps = step_sizes(target, betas, **options, generator=generator)
    up = anneal(target, betas, steps, **options, generator=generator)
    down = anneal(target, betas, steps, **options, z=z, generator=generator)
    return Sides(x, up.lower, down.upper)
