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


class Layout(NamedTuple):
    """How the draws of all images stand in what a decoder got and gave.

    Attributes:
        draws: how many there are for each image.
        by_image: all draws of the first image come first; else the first draw of all images.
        flat: draws and images share one axis.
    """

    draws: int = 1
    by_image: bool = False
    flat: bool = False

    def by_draw(self, values: Tensor, n: int) -> Tensor:
        """Numbers of all draws and images in the shape (draws, n, ...)."""
        if not self.by_image:
            return values.reshape(self.draws, n, -1)
        return values.reshape(n, self.draws, -1).transpose(0, 1)


# log p(x | z), shape (draws, n), of a decoder's output that is of a family
Score = Callable[[Any, str, Layout], Tensor]


class Pass(NamedTuple):
    """One evaluation of a loss, as it was seen from outside.

    Attributes:
        encoded: what the encoder gave.
        z: what the decoder got, shape (draws, n, ...) for each call of it.
        decoded: what it gave.
        loss: one number, with its graph.
        drawn: whether the reader's own code drew z.
        layouts: how z and what was decoded stand in each call.
    """

    encoded: Encoded
    z: Sequence[Tensor]
    decoded: Sequence[Any]
    loss: Tensor
    drawn: bool
    layouts: Sequence[Layout]


class LikelihoodTerm(NamedTuple):
    """The log-likelihood in a loss.

    Attributes:
        family: what the decoder's output stands for.
        weights: of -log p(x | z) in the loss, for each draw and image.
        log_prob: log p(x | z), with its graph.
        misfit: the share of the gradient that it does not explain, leaving out probabilities near
            0 and 1, which many keep away from there.
        exact: whether it explains it there, too.
    """

    family: str
    weights: Tensor
    log_prob: Tensor
    misfit: float
    exact: bool


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
    try:
        found = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise ValueError(
            f"loss: its gradient raised RuntimeError ({error}); a loss has to return what "
            "backward() is called for, and not to call it"
        ) from error
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]


def likelihood_term(seen: Pass, score: Score, families: Sequence[str]) -> LikelihoodTerm:
    """The family of likelihoods that explains what reaches the decoder's output best."""
    n = len(seen.encoded.mu)

    def in_rows(value: Tensor, bounded: Callable[[Tensor], Tensor]) -> Tensor:
        found = []
        for decoded, layout in zip(seen.decoded, seen.layouts, strict=True):
            rows = n * layout.draws
            inputs = [each for each in parameters_of(decoded) if each.numel() % rows == 0]
            found += [torch.cat([
                layout.by_draw(g * bounded(i.detach()), n).reshape(rows, -1)
                for i, g in zip(inputs, gradients(value, inputs), strict=True)
            ], -1)]  # fmt: skip
        return torch.cat(found)

    def fit(family: str) -> LikelihoodTerm:
        log_prob = torch.cat([
            score(decoded, family, layout)
            for decoded, layout in zip(seen.decoded, seen.layouts, strict=True)
        ])  # fmt: skip
        fits = []
        for bounded in [_inside, _variance] if "probabilities" in family else [torch.ones_like]:
            wanted, own = in_rows(seen.loss, bounded), in_rows(-log_prob.sum(), bounded)
            tiny = torch.finfo(own.dtype).tiny
            weights = (wanted * own).sum(-1) / own.square().sum(-1).clamp(min=tiny)
            left = (wanted - weights.unsqueeze(-1) * own).norm() / wanted.norm().clamp(min=tiny)
            fits.append((weights.view_as(log_prob), left.item()))
        (weights, misfit), (_, everywhere) = fits[0], fits[-1]
        return LikelihoodTerm(family, weights, log_prob, misfit, everywhere < FITS)

    fits = [fit(family) for family in families]
    return min(fits, key=lambda each: each.misfit if each.misfit == each.misfit else torch.inf)


def _variance(p: Tensor) -> Tensor:
    """What turns a gradient by probabilities, infinite at 0 and 1, into one by logits."""
    return p * (1 - p)


def _inside(p: Tensor) -> Tensor:
    """The same, and 0 for probabilities near 0 and 1, if each image has others."""
    inside = (p > 0.01) & (p < 0.99)
    some = inside.reshape(len(p), -1).any(-1).all()
    return _variance(p) * inside if some else _variance(p)


def kl_term(
    seen: Pass, likelihood: LikelihoodTerm, p_z: Distribution, kinds: Sequence[str]
) -> KLTerm | None:
    """The reading of the encoder's output that explains what is left there; None: nothing is."""
    inputs = [seen.encoded.mu, seen.encoded.spread]
    weights = likelihood.weights.detach()
    rest, rounding = _rest(seen)
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


def shows(seen: Pass, p_z: Distribution, kind: str, weight: float) -> bool:
    """Whether a KL of some weight, by one reading, would stand out of the rounding."""
    inputs = [seen.encoded.mu, seen.encoded.spread]
    _, rounding = _rest(seen)
    _, exact, value = next(_divergences(seen, torch.ones(()).to(inputs[0]), p_z, [kind]))
    draws = 1 if exact else sum(len(z) for z in seen.z)
    return bool(weight / draws * _joined(value, inputs).norm() > 10 * rounding)


def is_formula(seen: Pass, kinds: Sequence[str]) -> bool:
    """Whether what a loss has beside the log-likelihood is built like a KL, if not one itself.

    The gradient of a KL of two Gaussians is a line in mu for the means and one in the variance for
    the log-variances, the same for all images and units; at a draw z, it has a term in z and one in
    z (z - mu) as well. So it is with wrong coefficients, and not with another loss beside the KL.
    """
    rest, rounding = _rest(seen)
    mu, z = seen.encoded.mu.detach(), torch.cat(list(seen.z)).detach()
    for kind in kinds:
        spread = seen.encoded.spread.detach().requires_grad_()
        variance = DEVIATIONS[kind](spread).square()
        (unit,) = torch.autograd.grad(variance.log().sum(), spread)
        by_mu, by_spread = rest.split([mu.numel(), spread.numel()])
        if kind == "scale_tril":
            by_spread = by_spread.view_as(spread).diagonal(dim1=-2, dim2=-1)
            unit = unit.diagonal(dim1=-2, dim2=-1)
        drawn = z.mean(0), (z * (z - mu)).mean(0) * unit
        sides = [([mu, torch.ones_like(mu), drawn[0]], by_mu),
                 ([variance.detach() * unit, unit, drawn[1]], by_spread)]  # fmt: skip
        left = [_left_by_sum(columns, values.flatten()) for columns, values in sides]
        if (torch.stack(left).norm() - rounding) <= FITS * rest.norm():
            return True
    return False


def _left_by_sum(columns: Sequence[Tensor], values: Tensor) -> Tensor:
    """The length of what a weighted sum of columns leaves of some numbers at best."""
    table = torch.stack([each.flatten() for each in columns], 1).cpu().double()
    values = values.cpu().double().unsqueeze(1)
    if not bool(table.isfinite().all()):
        return table.new_tensor(torch.inf)  # such as the logarithm of a negative number
    return (values - table @ torch.linalg.lstsq(table, values).solution).norm()


def _rest(seen: Pass) -> tuple[Tensor, Tensor]:
    """What the log-likelihood leaves of the gradient at the encoder's output, and its rounding."""
    inputs = [seen.encoded.mu, seen.encoded.spread]
    outputs = [each for decoded in seen.decoded for each in parameters_of(decoded)]
    by_loss = _joined(seen.loss, inputs)
    # What passes through the decoder: exactly what the loss sends there, whatever its likelihood.
    through = sum(
        (each * g).sum() for each, g in zip(outputs, gradients(seen.loss, outputs), strict=True)
    )
    by_likelihood = _joined(torch.as_tensor(through), inputs)
    rounding = ROUNDING * (by_loss.norm() + by_likelihood.norm())
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
