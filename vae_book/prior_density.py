"""Whether draws of a prior and its log-density belong together, seen from outside.

For any density h and any set of draws of p, the average of h(z) / p(z) is an estimate of 1. So a
test density h is fitted inside some of the draws, and the average is taken over others.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

FITTED, KEPT = 2000, 10_000  # draws: those that h is fitted to, and those that judge
STARTS = 4  # places where h is tried
ERRORS = 6  # standard errors from 1 that are too many; of healthy priors, most have 0 to 3
CLOSE = 0.05  # a disagreement that is let pass

LogDensity = Callable[[Tensor], Tensor]  # (n, d) -> (n,)


class Agreement(NamedTuple):
    """How well a log-density fits the draws.

    Attributes:
        ratio: the average of h(z) / p(z); where it is above 1, p is too low where the draws lie.
        error: its standard error.
        fault: a name for what is wrong; empty if the ratio is 1 within its error.
    """

    ratio: float
    error: float
    fault: str


def agreement(draws: Tensor, log_p: LogDensity) -> Agreement:
    """Compare draws with the log-density that they should have.

    An h that is chosen by some draws and judged by others is not chosen for its result.

    Args:
        draws: ``FITTED + KEPT`` of them, shape (n, d).
        log_p: the log-density of draws, in nats.
    """
    there = draws
    draws = there.cpu()  # not every device has float64

    def at_home(z: Tensor) -> Tensor:
        return log_p(z.to(there)).cpu()

    z = draws.double()
    log_density = at_home(draws).double()
    fit, kept = z[:FITTED], z[FITTED:]
    tests = list(_tests(fit))
    log_ratios = torch.stack([_log(h, fit) for h in tests]) - log_density[:FITTED]
    high = _above(tests, log_ratios, kept, log_density[FITTED:])
    low = _below(tests, log_ratios, kept, log_density[FITTED:], at_home)
    if high[0] - 1 > max(ERRORS * high[1], CLOSE):
        return Agreement(*high, _name(draws, at_home))
    if abs(low[0] - 1) > max(ERRORS * low[1], CLOSE):
        return Agreement(*low, _name(draws, at_home))
    return Agreement(*(low if math.isfinite(low[1]) else high), "")


def _tests(z: Tensor) -> Iterator[Normal]:
    """Gaussians inside the draws, from the size of a few neighbors to that of all."""
    for start in z[:STARTS]:
        for many in (max(40, 2 * z.shape[1]), len(z) // 10, len(z)):
            mean, deviation = start, z.std(0)
            for _ in range(4):
                apart = ((z - mean) / deviation).square().sum(1)
                near = z[apart.topk(many, largest=False).indices]
                mean, deviation = near.mean(0), near.std(0).clamp(min=1e-6 * z.std(0))
            yield from (Normal(mean, deviation), Normal(mean, 0.7 * deviation))


def _log(h: Normal, z: Tensor) -> Tensor:
    return h.log_prob(z).sum(-1)


def _mean(log_ratio: Tensor, most: float, second: float = 0.0) -> tuple[float, float]:
    """The average of ratios, each at most ``most``, and its standard error."""
    ratio = log_ratio.clamp(max=math.log(most)).exp()
    mean = ratio.mean().item()
    variance = max(ratio.var().item(), second - mean**2, 1e-6)
    return mean, math.sqrt(variance / len(ratio))


def _above(
    tests: list[Normal], log_ratios: Tensor, kept: Tensor, log_density: Tensor
) -> tuple[float, float]:
    """The average that exceeds 1 most clearly.

    Large ratios are cut off. That makes the average smaller, never larger: whatever h is, it
    exceeds 1 for no density that fits the draws, and its error is known.
    """

    def excess(h: int) -> float:
        mean, error = _mean(log_ratios[h], FITTED / 100)
        return (mean - 1) / error

    best = tests[max(range(len(tests)), key=excess)]
    return _mean(_log(best, kept) - log_density, KEPT / 100)


def _below(
    tests: list[Normal],
    log_ratios: Tensor,
    kept: Tensor,
    log_density: Tensor,
    log_p: LogDensity,
) -> tuple[float, float]:
    """The average that is known best; a constant that is missing takes it below 1.

    Where h has mass that draws never meet, the average is too small as well. So draws of h are
    looked at: their ratios have to be alike.
    """
    effective = 2 * log_ratios.logsumexp(1) - (2 * log_ratios).logsumexp(1)
    for h in effective.argsort(descending=True).tolist():
        if effective[h] < math.log(FITTED / 20):
            break  # of so few draws the error is not known
        z = tests[h].sample((500,))
        log_ratio = _log(tests[h], z) - log_p(z).double()
        if log_ratio.std() < 1:
            of_draws = _log(tests[h], kept) - log_density
            mean = of_draws.exp().mean().item()
            return _mean(of_draws, math.inf, second=log_ratio.exp().mean().item() * mean)
    return 1.0, math.inf


# What it is ---------------------------------------------------------------------------------------


def _name(draws: Tensor, log_p: LogDensity) -> str:
    """The mistake that makes such a difference, if it is a known one."""
    if not _independent(draws, log_p):
        return "prior-density"
    apart, log_deviation, log_mass = torch.tensor(
        [_by_unit(draws, log_p, j) for j in range(draws.shape[1])], dtype=torch.float64
    ).T
    # Of a sum over units, (d - 1) parts are in each unit's mass that are not its own.
    constant = log_mass.sum() - (len(log_mass) - 1) * log_p(draws[:1]).double().cpu().squeeze()
    if constant.abs() > CLOSE:
        return "prior-density"
    if bool((apart < 0.05).all()):
        return "mixture-by-unit"
    off = draws.double().std(0).log().cpu() - 2 * log_deviation
    return "variance-in-sample" if bool((off.abs() < 0.1).all()) else "prior-density"


def _independent(draws: Tensor, log_p: LogDensity) -> bool:
    """Whether the log-density is a sum over units: then what two draws swap changes no sum."""
    first, second = draws[:200], draws[200:400]
    swap = torch.rand_like(first) < 0.5
    mixed = torch.where(swap, second, first), torch.where(swap, first, second)
    before, after = (
        sum(log_p(each).double() for each in pair) for pair in ((first, second), mixed)
    )
    return torch.allclose(torch.as_tensor(before), torch.as_tensor(after), rtol=1e-4, atol=1e-3)


def _by_unit(draws: Tensor, log_p: LogDensity, j: int) -> tuple[float, float, float]:
    """How far a unit's draws are from its density, and the log of its deviation and its mass."""
    middle, reach = draws[:, j].mean(), 12 * draws[:, j].std()
    grid = middle + reach * torch.linspace(-1, 1, 2001).to(draws)
    z = draws[:1].repeat(len(grid), 1)
    z[:, j] = grid
    log_density = log_p(z).double().nan_to_num(-math.inf)  # NaN is outside the support
    log_mass = (log_density.logsumexp(0) + (2 * reach / (len(grid) - 1)).log()).item()
    mass = log_density.softmax(0)
    mean = (mass * grid).sum()
    log_deviation = 0.5 * (mass * (grid - mean).square()).sum().log().item()
    below = (mass.cumsum(0) - mass / 2).cpu().numpy()
    places = grid.double().cpu().numpy()
    unit = draws[:, j].double().cpu().sort().values.numpy()
    return distance(np.interp(unit, places, below)), log_deviation, log_mass


def distance(probabilities: np.ndarray) -> float:
    """How far draws are from a distribution, by Kolmogorov and Smirnov.

    Args:
        probabilities: that distribution's function at each draw, in the order of the draws.
    """
    steps = np.arange(len(probabilities) + 1) / len(probabilities)
    return float(max((probabilities - steps[:-1]).max(), (steps[1:] - probabilities).max()))
