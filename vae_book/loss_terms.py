"""A reader's loss, taken apart into its two terms and their weights.

Gradients tell. Among what reaches the decoder's output, only the log-likelihood counts; what then
remains at the encoder's output is the KL. Both weights are exact, whatever the noise, and for a
model that was never trained as well.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence

from vae_book.patient import DEVIATIONS, Encoded, parameters_of

FITS = 1e-3  # the share of a gradient that may be left unexplained
ROUNDING = 1e-6  # the share of a single-precision gradient that is not told from zero

# log p(x | z), shape (draws, n), of a decoder's output that is of a family
Score = Callable[[Any, str], Tensor]


class Pass(NamedTuple):
    """One evaluation of a loss, as it was seen from outside.

    Attributes:
        encoded: what the encoder gave.
        z: what the decoder got, shape (draws, n, ...) for each call of it.
        decoded: what it gave.
        loss: one number, with its graph.
        drawn: whether the reader's own code drew z.
    """

    encoded: Encoded
    z: Sequence[Tensor]
    decoded: Sequence[Any]
    loss: Tensor
    drawn: bool


class LikelihoodTerm(NamedTuple):
    """The log-likelihood in a loss.

    Attributes:
        family: what the decoder's output stands for.
        weights: of -log p(x | z) in the loss, for each draw and image.
        log_prob: log p(x | z), with its graph.
        misfit: the share of the gradient that it does not explain.
    """

    family: str
    weights: Tensor
    log_prob: Tensor
    misfit: float


class KLTerm(NamedTuple):
    """The KL in a loss.

    Attributes:
        kind: what the encoder's second output stands for in it.
        weight: relative to the weight of the log-likelihood; 1 in the negative ELBO.
        exact: in closed form, or else at the draws of z.
        misfit: the share of the gradient that it does not explain.
        error: how far the weight may be off, as a share of it.
    """

    kind: str
    weight: float
    exact: bool
    misfit: float
    error: float


def gradients(value: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a number; zeros where none arrives."""
    if not value.requires_grad:
        return [torch.zeros_like(each) for each in inputs]
    found = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]


def likelihood_term(seen: Pass, score: Score, families: Sequence[str]) -> LikelihoodTerm:
    """The family of likelihoods that explains what reaches the decoder's output best."""
    rows = [z.shape[0] * z.shape[1] for z in seen.z]

    def in_rows(value: Tensor, family: str) -> Tensor:
        found = []
        for decoded, n in zip(seen.decoded, rows, strict=True):
            inputs = [each for each in parameters_of(decoded) if each.numel() % n == 0]
            found += [torch.cat([
                (g * _bounded(i, family)).reshape(n, -1)
                for i, g in zip(inputs, gradients(value, inputs), strict=True)
            ], -1)]  # fmt: skip
        return torch.cat(found)

    def fit(family: str) -> LikelihoodTerm:
        log_prob = torch.cat([score(decoded, family) for decoded in seen.decoded])
        wanted, own = in_rows(seen.loss, family), in_rows(-log_prob.sum(), family)
        tiny = torch.finfo(own.dtype).tiny
        weights = (wanted * own).sum(-1) / own.square().sum(-1).clamp(min=tiny)
        misfit = (wanted - weights.unsqueeze(-1) * own).norm() / wanted.norm().clamp(min=tiny)
        return LikelihoodTerm(family, weights.view_as(log_prob), log_prob, misfit.item())

    fits = [fit(family) for family in families]
    return min(fits, key=lambda each: each.misfit if each.misfit == each.misfit else torch.inf)


def _bounded(output: Tensor, family: str) -> Tensor | float:
    """What turns a gradient by probabilities, infinite at 0 and 1, into one by logits."""
    return (output * (1 - output)).detach() if "probabilities" in family else 1.0


def kl_term(
    seen: Pass, likelihood: LikelihoodTerm, p_z: Distribution, kinds: Sequence[str]
) -> KLTerm | None:
    """The reading of the encoder's output that explains what is left there; None: nothing is."""
    inputs = [seen.encoded.mu, seen.encoded.spread]
    weights = likelihood.weights.detach()
    rest, rounding = _rest(seen, likelihood)
    if rest.norm() <= rounding:
        return None
    fits = []
    for kind, exact, value in _divergences(seen, weights, p_z, kinds):
        own = _joined(value, inputs)
        weight = (rest * own).sum() / own.square().sum().clamp(min=torch.finfo(own.dtype).tiny)
        left = ((rest - weight * own).norm() - rounding).clamp(min=0) / rest.norm()
        if bool(left.isfinite()):
            relative = weight / (weights.sum(0).mean() if exact else 1)
            error = rounding / (weight * own).norm()
            fits.append(KLTerm(kind, relative.item(), exact, left.item(), error.item()))
    return min(fits, key=lambda each: each.misfit)


def is_formula(seen: Pass, likelihood: LikelihoodTerm, kinds: Sequence[str]) -> bool:
    """Whether what a loss has beside the log-likelihood is built like a KL, if not one itself.

    The gradient of a KL of two Gaussians is a line in mu for the means and one in the variance for
    the log-variances, the same for all images and units. So it is with wrong coefficients, and not
    with another loss beside the KL.
    """
    rest, rounding = _rest(seen, likelihood)
    by_mu, by_spread = rest.chunk(2)
    mu = seen.encoded.mu.detach().flatten()
    for kind in kinds:
        spread = seen.encoded.spread.detach().requires_grad_()
        variance = DEVIATIONS[kind](spread).square()
        (unit,) = torch.autograd.grad(variance.log().sum(), spread)
        lines = [(by_mu, mu, torch.ones_like(mu)),
                 (by_spread, (variance.detach() * unit).flatten(), unit.flatten())]  # fmt: skip
        left = [_left_by_line(*each) for each in lines]
        if (torch.stack(left).norm() - rounding) <= FITS * rest.norm():
            return True
    return False


def _left_by_line(values: Tensor, slope: Tensor, constant: Tensor) -> Tensor:
    """The length of what a sum of two columns leaves of some numbers at best."""
    columns = torch.stack([slope, constant], 1).cpu().double()
    values = values.cpu().double().unsqueeze(1)
    if not bool(columns.isfinite().all()):
        return columns.new_tensor(torch.inf)  # such as the logarithm of a negative number
    return (values - columns @ torch.linalg.lstsq(columns, values).solution).norm()


def _rest(seen: Pass, likelihood: LikelihoodTerm) -> tuple[Tensor, Tensor]:
    """What the log-likelihood leaves of the gradient at the encoder's output, and its rounding."""
    inputs = [seen.encoded.mu, seen.encoded.spread]
    by_loss = _joined(seen.loss, inputs)
    log_likelihood = (likelihood.weights.detach() * likelihood.log_prob).sum()
    by_likelihood = _joined(-log_likelihood, inputs)
    # What the likelihood does not explain at the decoder, it does not explain here either.
    rounding = (ROUNDING + 2 * likelihood.misfit) * (by_loss.norm() + by_likelihood.norm())
    return by_loss - by_likelihood, rounding


def _joined(value: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in gradients(value, inputs)])


def _divergences(
    seen: Pass, weights: Tensor, p_z: Distribution, kinds: Sequence[str]
) -> Iterator[tuple[str, bool, Tensor]]:
    """KL(q || p) of all images by each reading of q: in closed form, and at the draws."""
    z = torch.cat(list(seen.z))
    for kind in kinds:
        q_z = seen.encoded.normal(kind)
        if isinstance(p_z, Normal):
            yield kind, True, kl_divergence(q_z, p_z).sum()
        log_ratio = summed(q_z.log_prob(z), *z.shape[:2]) - summed(p_z.log_prob(z), *z.shape[:2])
        yield kind, False, (weights * log_ratio).sum()


def summed(values: Tensor, draws: int, n: int) -> Tensor:
    """One number for each draw and image, shape (draws, n), from one for each part of them."""
    return values.reshape(draws, n, -1).sum(-1)
