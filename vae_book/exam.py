"""A reader's VAE on the doctor's table: what it says and what its loss does, each seen once."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    ContinuousBernoulli,
    Distribution,
    Independent,
    Normal,
    kl_divergence,
)

from vae_book import likelihoods
from vae_book.distributions import DiagonalGaussian
from vae_book.loss_terms import (
    FITS,
    KLTerm,
    LikelihoodTerm,
    Pass,
    gradients,
    is_formula,
    kl_term,
    likelihood_term,
    summed,
)
from vae_book.patient import (
    FAMILIES,
    Encoded,
    OwnPrior,
    is_prior,
    mode,
    modules_of,
    parameters_of,
    read_decoded,
    read_encoded,
    read_prior,
    required_arguments,
    watched,
)

Function = Callable[..., Any]
LogDensity = Callable[[Tensor], Tensor]

MOST = 100  # images that are looked at
DRAWS = 32  # of z, for the importance-weighted bound
KINDS = ("log_var", "std", "log_std", "var")
LIKELIHOODS = {
    "bernoulli": ("logits", "probabilities"),
    "cross-entropy": ("logits", "probabilities"),
    "gaussian": ("gaussian",),
    "laplace": ("laplace",),
    "continuous-bernoulli": ("continuous logits", "continuous probabilities"),
}


class NotChecked(Exception):  # noqa: N818 (not an error)
    """Why a check cannot be made."""


class Exam:
    """A VAE and what has been seen of it so far; each look is taken once."""

    def __init__(
        self,
        encode: Function,
        decode: Function,
        images: Tensor,
        loss: Function | None,
        likelihood: Any,
        labels: Tensor | None,
        prior: Any,
        draw: Function | None,
        spread: str | None,
        beta: float,
    ) -> None:
        _check(encode, decode, images, loss, likelihood, labels, draw, spread, beta)
        self.encode, self.decode, self.loss, self.draw = encode, decode, loss, draw
        self.likelihood, self.spread, self.beta, self.prior = likelihood, spread, beta, prior
        self.images = images[:MOST].detach()
        self.told = () if labels is None else (labels[:MOST],)
        self.modules = modules_of(encode, decode, loss, prior)
        self.training = all(each.training for each in self.modules)
        self.n, self.pixels = len(self.images), self.images[0].numel()

    # What the model says, in evaluation mode ------------------------------------------------------

    def encoding(self, images: Tensor, *told: Tensor) -> Encoded:
        """q(z | x) of some images, by the reader's encoder."""
        encoded = read_encoded(called("encode", self.encode, images, *told))
        if encoded.mu.shape[:1] != images.shape[:1]:
            raise ValueError(
                f"encode: expected one mean for each of {len(images)} images, got shape "
                f"{tuple(encoded.mu.shape)}; images has to have the shape that encode takes"
            )
        return encoded

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, no gradients."""
        with mode(self.modules, training=False), torch.no_grad():
            yield

    @cached_property
    def encoded(self) -> Encoded:
        """q(z | x) of the images."""
        with self.evaluating():
            encoded = self.encoding(self.images, *self.told)
        if self.spread in ("std", "var") and bool((encoded.spread < 0).any()):
            raise ValueError(
                f"spread: expected what encode returns, got {self.spread!r}, but some are negative"
            )
        return encoded

    @cached_property
    def q_z(self) -> Normal:
        """q(z | x) as a distribution, by the best reading of the second output."""
        return self.encoded.normal(self.kind)

    @cached_property
    def kind(self) -> str:
        """What the second output of the encoder is: said, else found in the loss, else likely."""
        if self.encoded.kind or self.spread:
            return str(self.encoded.kind or self.spread)
        try:
            if self.kl is not None and self.kl.misfit < FITS:
                return self.kl.kind
        except NotChecked:
            pass
        return self.encoded.likely

    @cached_property
    def p_z(self) -> Distribution:
        """The prior."""
        return read_prior(self.given_prior, self.encoded.mu[0])

    @cached_property
    def given_prior(self) -> Any:
        """The prior as the reader has it; None if none was given."""
        made = callable(self.prior) and not is_prior(self.prior)
        return called("prior", self.prior, *self.told) if made else self.prior

    def drawn_from(self, draws: int) -> tuple[Tensor, LogDensity]:
        """Draws of the reader's own prior, shape (draws, d), and its own log-density of such."""
        prior, like = self.given_prior, self.encoded.mu[0]
        if prior is None:
            raise NotChecked("no prior was given: it is N(0, I)")
        if isinstance(prior, DiagonalGaussian) and prior.batch:
            prior = prior[(0,) * len(prior.batch)]  # that of the first image
        if isinstance(prior, Distribution):
            shape = prior.batch_shape + prior.event_shape
            if shape != like.shape:
                raise NotChecked("the prior is another one for each image")
        own = OwnPrior(prior, like)
        with self.evaluating():
            z = own.sample((draws,)).reshape(draws, -1)

        def log_p(z: Tensor) -> Tensor:
            try:
                return own.log_prob(z.reshape(-1, *like.shape))
            except Exception as error:  # outside the support, and whatever else
                raise NotChecked(f"the prior's log_prob raised {type(error).__name__}") from error

        return z, log_p

    @cached_property
    def decoded(self) -> Any:
        """What the decoder makes of the mean of z of each image."""
        with self.evaluating():
            z = self.encoded.normal(self.encoded.kind or self.spread or self.encoded.likely).mean
            return self.meant(called("decode", self.decode, z, *self.told))

    @cached_property
    def far(self) -> Any:
        """What the decoder makes of codes far out, where all but a sigmoid leaves [0, 1]."""
        with self.evaluating():
            z = 100 * torch.randn_like(self.encoded.mu)
            return self.meant(called("decode", self.decode, z, *self.told))

    def meant(self, decoded: Any) -> Any:
        """The decoder's output, with the likelihood of the book if one was given."""
        if isinstance(self.likelihood, likelihoods.Likelihood) and isinstance(decoded, Tensor):
            return self.likelihood.given(decoded)
        return decoded

    def p_x(self, decoded: Any, family: str) -> Distribution:
        """p(x | z) as a distribution that scores whatever lies between its values."""
        found = copy.copy(read_decoded(decoded, family, self.n, self.pixels))
        found._validate_args = False
        return found

    def score(self, decoded: Any, family: str) -> Tensor:
        """log p(x | z), shape (draws, n)."""
        if not self.own_likelihood:
            p_x = self.p_x(decoded, family)
            shape = p_x.batch_shape + p_x.event_shape
            draws = math.prod(shape) // (self.n * self.pixels)
            if math.prod(shape) != draws * self.n * self.pixels or not draws:
                raise ValueError(
                    f"decode: expected one distribution for each of {self.pixels} pixels of "
                    f"{self.n} images, got shape {tuple(shape)}"
                )
            flat = self.images.reshape(1, self.n, -1).expand(draws, -1, -1)
            return summed(p_x.log_prob(flat.reshape(shape)), draws, self.n)
        values = called("likelihood", self.likelihood, self.images, decoded)
        if not isinstance(values, Tensor) or values.numel() % self.n:
            raise ValueError(
                f"likelihood: expected log p(x | z) of each of {self.n} images, got {_kind(values)}"
            )
        draws = 1 if values.shape[0] == self.n else values.shape[0]
        return summed(values, draws, self.n)

    @property
    def families(self) -> Sequence[str]:
        """What the decoder's output may stand for, the likeliest first."""
        if not isinstance(self.decoded, Tensor) or self.own_likelihood:
            return ["its own"]
        inside = all(bool(((each >= 0) & (each <= 1)).all()) for each in (self.decoded, self.far))
        found = FAMILIES if self.likelihood is None else LIKELIHOODS[str(self.likelihood)]
        possible = [each for each in found if inside or "probabilities" not in each]
        return sorted(possible, key=lambda each: ("probabilities" in each) != inside)

    @cached_property
    def family(self) -> str:
        """What the decoder's tensor stands for: found in the loss, else likely."""
        try:
            if self.term.misfit < FITS:
                return self.term.family
        except NotChecked:
            pass
        return self.families[0]

    @property
    def own_likelihood(self) -> bool:
        """Whether the likelihood is a function of the reader's."""
        return callable(self.likelihood) and not isinstance(self.likelihood, likelihoods.Likelihood)

    @property
    def binary(self) -> bool:
        """Whether all pixels are 0 or 1."""
        return bool(((self.images == 0) | (self.images == 1)).all())

    @cached_property
    def bounded(self) -> bool:
        """Whether the likelihood scores pixels between 0 and 1 only."""
        if self.own_likelihood:
            return False
        p_x = self.p_x(self.decoded, self.family)
        return isinstance(p_x, Bernoulli | ContinuousBernoulli)

    @cached_property
    def strict(self) -> bool:
        """Whether pixels are said to be 0 or 1, and not gray levels by name."""
        out = without_events(self.decoded)
        if isinstance(out, likelihoods.ImageDistribution):
            return out.likelihood == likelihoods.Bernoulli()
        if isinstance(out, Bernoulli):
            return bool(out._validate_args)
        return self.likelihood == "bernoulli"

    @cached_property
    def average_kl(self) -> float:
        """KL(q(z | x) || p(z)) of an image, in evaluation mode; by draws if p is no Gaussian."""
        if isinstance(self.p_z, Normal):
            return (kl_divergence(self.q_z, self.p_z).sum() / self.n).item()
        with self.evaluating():
            z = self.q_z.sample((DRAWS,))
            log_q, log_p = (summed(d.log_prob(z), DRAWS, self.n) for d in (self.q_z, self.p_z))
        return (log_q - log_p).mean().item()

    # What the loss does, in training mode ---------------------------------------------------------

    @property
    def seen(self) -> Pass:
        """One evaluation of the reader's loss."""
        if isinstance(self._look, NotChecked):
            raise self._look
        return self._look

    @cached_property
    def _look(self) -> Pass | NotChecked:
        if self.loss is None:
            return NotChecked("no loss was given")
        try:
            with mode(self.modules, training=True):
                return self._pass()
        except NotChecked as reason:
            return reason

    @cached_property
    def measured(self) -> Pass:
        """An evaluation of the loss as held-out images meet it: evaluation mode, no gradients."""
        if self.loss is None:
            raise NotChecked("no loss was given")
        with self.evaluating():
            return self._pass()

    def _pass(self) -> Pass:
        assert self.loss is not None
        return self._by_terms() if required_arguments(self.loss) == 3 else self._watched()

    def _by_terms(self) -> Pass:
        assert self.loss is not None
        raw = called("encode", self.encode, self.images, *self.told)
        encoded = read_encoded(raw)
        if self.draw is None:
            z = encoded.normal(self.encoded.kind or self.spread or encoded.likely).sample()
        else:
            z = called("draw", self.draw, raw)
        out = called("decode", self.decode, z, *self.told)
        loss = _number(called("loss", self.loss, self.images, raw, out))
        return Pass(encoded, [z.unsqueeze(0)], [self.meant(out)], loss, self.draw is not None)

    def _watched(self) -> Pass:
        assert self.loss is not None
        with watched(self.encode) as encodings, watched(self.decode) as decodings:
            loss = _number(called("loss", self.loss, self.images, *self.told))
        if not encodings or not decodings:
            silent = "decode" if encodings else "encode"
            raise NotChecked(
                f"{silent} was not seen inside the loss; give encode and decode as modules or "
                "methods, such as model.encode, or a loss(images, encoded, decoded)"
            )
        encoded = read_encoded(encodings[0].result)
        per_draw = encoded.mu.numel()
        zs = [call.argument for call in decodings]
        shapes = {tuple(z.shape[z.ndim - encoded.mu.ndim :]) for z in zs}
        if len(encoded.mu) != self.n or shapes != {tuple(encoded.mu.shape)}:
            raise NotChecked("the loss encodes or decodes something other than one z or K for each")
        zs = [z.reshape(z.numel() // per_draw, *encoded.mu.shape) for z in zs]
        return Pass(encoded, zs, [self.meant(each.result) for each in decodings], loss, True)

    @cached_property
    def term(self) -> LikelihoodTerm:
        """The log-likelihood in the loss."""
        seen = self.seen
        if not seen.loss.requires_grad:
            raise NotChecked("the loss has no gradient; is it computed inside torch.no_grad()?")
        if all(not each.any() for each in gradients(seen.loss, _outputs(seen))):
            raise NotChecked("no gradient of the loss reaches what the decoder returned")
        return likelihood_term(seen, self.score, self.families)

    @cached_property
    def log_weights(self) -> Tensor:
        """log p(x, z) - log q(z | x) for new draws of z, shape (draws, n), in the loss's mode."""
        q_z = self.seen.encoded.normal(self.kind)
        with mode(self.modules, training=True), torch.no_grad():
            z = q_z.sample((DRAWS,))
            decoded = [self.meant(called("decode", self.decode, each, *self.told)) for each in z]
            log_likelihood = torch.cat([self.score(each, self.family) for each in decoded])
            log_p, log_q = (summed(each.log_prob(z), DRAWS, self.n) for each in (self.p_z, q_z))
        return log_likelihood + log_p - log_q

    @cached_property
    def seen_log_weights(self) -> Tensor:
        """log p(x, z) - log q(z | x) of the draws inside the loss, shape (draws, n)."""
        z = torch.cat(list(self.seen.z)).detach()
        q_z = self.seen.encoded.normal(self.kind)
        log_p, log_q = (summed(each.log_prob(z), *z.shape[:2]) for each in (self.p_z, q_z))
        return (self.term.log_prob + log_p - log_q).detach()

    @cached_property
    def kl(self) -> KLTerm | None:
        """The KL in the loss; None if there is none."""
        term = self.understood
        declared = self.seen.encoded.kind
        return kl_term(self.seen, term, self.p_z, [declared] if declared else KINDS)

    @cached_property
    def formula(self) -> bool:
        """Whether what stands beside the log-likelihood is built like a KL."""
        declared = self.seen.encoded.kind
        return is_formula(self.seen, self.understood, [declared] if declared else KINDS)

    @property
    def understood(self) -> LikelihoodTerm:
        """The log-likelihood in the loss, if it is one."""
        if not self.term.misfit < FITS:
            raise NotChecked(
                "what reaches the decoder's output is the gradient of none of the likelihoods "
                f"({', '.join(self.families)}); give likelihood=f(images, decoded)"
            )
        return self.term


# Arguments ----------------------------------------------------------------------------------------


def _check(
    encode: Any,
    decode: Any,
    images: Any,
    loss: Any,
    likelihood: Any,
    labels: Any,
    draw: Any,
    spread: Any,
    beta: Any,
) -> None:
    for name, value in {"encode": encode, "decode": decode}.items():
        if not callable(value):
            raise ValueError(f"{name}: expected a function or a module, got {_kind(value)}")
    for name, value in {"loss": loss, "draw": draw}.items():
        if value is not None and not callable(value):
            raise ValueError(f"{name}: expected a function or None, got {_kind(value)}")
    if not isinstance(images, Tensor) or images.ndim < 2 or len(images) < 2:
        raise ValueError(
            f"images: expected a tensor of two or more images, shape (n, ...), got {_kind(images)}"
        )
    if not images.is_floating_point():
        raise ValueError(f"images: expected floating-point numbers, got {images.dtype}")
    if labels is not None and (not isinstance(labels, Tensor) or len(labels) != len(images)):
        raise ValueError(
            f"labels: expected a tensor of one for each of {len(images)} images, got "
            f"{_kind(labels)}"
        )
    known = likelihood is None or callable(likelihood) or likelihood in LIKELIHOODS
    if not known and not isinstance(likelihood, likelihoods.Likelihood):
        raise ValueError(
            f"likelihood: expected {', '.join(LIKELIHOODS)}, a Likelihood, a function or None, got "
            f"{likelihood!r}"
        )
    if spread is not None and spread not in KINDS:
        raise ValueError(f"spread: expected {', '.join(KINDS)} or None, got {spread!r}")
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < math.inf:
        raise ValueError(f"beta: expected a positive number, got {beta!r}")


def _kind(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def called(name: str, function: Function, *given: Any) -> Any:
    """What a function of the reader's returns; what it raises is said to be its own."""
    try:
        return function(*given)
    except Exception as error:
        shapes = ", ".join(_kind(each) for each in given)
        raise ValueError(f"{name}: raised {type(error).__name__} ({error}), given {shapes}") from (
            error
        )


def _number(loss: Any) -> Tensor:
    """The loss of all images, from the forms in which it is returned."""
    if isinstance(loss, dict):
        loss = loss.get("loss")
    elif isinstance(loss, tuple | list) and loss:
        loss = loss[0]
    if not isinstance(loss, Tensor) or loss.ndim > 1:
        raise ValueError(
            "loss: expected a tensor of one number, or of one for each image, perhaps as 'loss' in "
            f"a dictionary or first in a tuple, got {_kind(loss)}"
        )
    return loss.sum()


def _outputs(seen: Pass) -> list[Tensor]:
    return [each for decoded in seen.decoded for each in parameters_of(decoded)]


def without_events(decoded: Any) -> Any:
    """The distribution inside torch's Independent."""
    while isinstance(decoded, Independent):
        decoded = decoded.base_dist
    return decoded
