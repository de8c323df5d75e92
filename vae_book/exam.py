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
    Layout,
    LikelihoodTerm,
    Pass,
    gradients,
    is_formula,
    kl_term,
    likelihood_term,
    shows,
    summed,
)
from vae_book.models import mode
from vae_book.patient import (
    FAMILIES,
    Call,
    Encoded,
    OwnPrior,
    alone,
    fitting,
    is_prior,
    mean_and_spread,
    modules_of,
    parameters_of,
    read_decoded,
    read_encoded,
    read_prior,
    required_arguments,
    tensors_of,
    watched,
)
from vae_book.traces import Trace, goes_around

Function = Callable[..., Any]
LogDensity = Callable[[Tensor], Tensor]

ONE = Layout()  # draw for each image
MOST = 100  # images that are looked at
DRAWS = 32  # of z, for the importance-weighted bound
KL_DRAWS = 200  # of z, for the KL
UNSEEN = (
    "the KL is too small beside the log-likelihood to be seen in single precision; train the model "
    "first, or give it in double precision"
)
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
        seed: int = 0,
    ) -> None:
        _check(encode, decode, images, loss, likelihood, labels, draw, spread, beta, seed)
        self.encode, self.decode, self.loss, self.draw = encode, decode, loss, draw
        self.likelihood, self.spread, self.beta, self.prior = likelihood, spread, beta, prior
        self.images = images[:MOST].detach()
        self.told = () if labels is None else (labels[:MOST],)
        self.modules = modules_of(encode, decode, loss, prior)
        self.training = all(each.training for each in self.modules)
        self.drawn_kls: dict[str, tuple[float, float]] = {}
        self.n, self.pixels = len(self.images), self.images[0].numel()

    # What the model says, in evaluation mode ------------------------------------------------------

    def encoding(self, images: Tensor, *told: Tensor) -> Encoded:
        """q(z | x) of some images, by the reader's encoder."""
        encoded = self.read(called("encode", self.encode, images, *told))
        if encoded.mu.shape[:1] != images.shape[:1]:
            raise ValueError(
                f"encode: expected one mean for each of {len(images)} images, got shape "
                f"{tuple(encoded.mu.shape)}; images has to have the shape that encode takes"
            )
        return encoded

    def read(self, encoded: Any) -> Encoded:
        """Mean and spread from what encode returned."""
        many = isinstance(encoded, Sequence) and len(encoded) > 2
        return read_encoded(encoded, self.places if many else (0, 1))

    @cached_property
    def places(self) -> tuple[int, int]:
        """Where mean and spread stand in a tuple that encode returns: z may be among them."""
        with self.evaluating():
            two = [called("encode", self.encode, self.images, *self.told) for _ in range(2)]
        return mean_and_spread(*two)

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
        self._refuse_nan("encode", encoded[:2])
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
                return self.possible(self.kl.kind)
        except NotChecked:
            pass
        return self.encoded.likely

    def possible(self, kind: str) -> str:
        """A reading of the second output, if it gives positive deviations; else the likely one."""
        positive = bool((self.encoded.spread > 0).all()) or kind not in ("std", "var")
        return kind if positive else self.encoded.likely

    @cached_property
    def p_z(self) -> Distribution:
        """The prior."""
        return read_prior(self.given_prior, self.encoded.mu[0])

    @cached_property
    def given_prior(self) -> Any:
        """The prior as the reader has it; None if none was given."""
        made = callable(self.prior) and not is_prior(self.prior)
        prior = called("prior", self.prior, *self.told) if made else self.prior
        return fitting(prior, self.encoded.mu)

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
            decoded = self.meant(called("decode", self.decode, z, *self.told))
        self._refuse_nan("decode", [decoded] if isinstance(decoded, Tensor) else [])
        return decoded

    def _refuse_nan(self, name: str, values: Sequence[Tensor]) -> None:
        if bool(self.images.isfinite().all()) and any(each.isnan().any() for each in values):
            raise ValueError(
                f"{name}: expected numbers, got NaN for some of the images; has training diverged?"
            )

    @cached_property
    def far(self) -> Any:
        """What the decoder makes of codes far out, where all but a sigmoid leaves [0, 1]."""
        with self.evaluating():
            z = 100 * torch.randn_like(self.encoded.mu)
            return self.meant(called("decode", self.decode, z, *self.told))

    def meant(self, decoded: Any) -> Any:
        """The decoder's output, with the likelihood of the book if one was given."""
        if not self.own_likelihood:
            decoded = alone(decoded)
        if isinstance(self.likelihood, likelihoods.Likelihood) and isinstance(decoded, Tensor):
            return self.likelihood.given(decoded)
        return decoded

    def p_x(self, decoded: Any, family: str) -> Distribution:
        """p(x | z) as a distribution that scores whatever lies between its values."""
        found = copy.copy(read_decoded(decoded, family, self.n, self.pixels))
        found._validate_args = False
        return found

    def score(self, decoded: Any, family: str, layout: Layout = ONE) -> Tensor:
        """log p(x | z), shape (draws, n)."""
        n, draws = self.n, layout.draws
        if not self.own_likelihood:
            p_x = self.p_x(decoded, family)
            shape = p_x.batch_shape + p_x.event_shape
            if math.prod(shape) != draws * n * self.pixels:
                raise ValueError(
                    f"decode: expected a number or a distribution for each of {self.pixels} pixels "
                    f"of {draws * n} images, got shape {tuple(shape)}; for other outputs give "
                    "likelihood=f(images, decoded)"
                )
            axis = int(layout.by_image)
            flat = self.images.reshape(n, -1).unsqueeze(axis).repeat_interleave(draws, axis)
            try:
                log_p = p_x.log_prob(flat.reshape(shape))
            except Exception as error:
                raise ValueError(
                    f"decode: {type(p_x).__name__} cannot score the images "
                    f"({type(error).__name__}); give likelihood=f(images, decoded)"
                ) from error
            return layout.by_draw(log_p, n).sum(-1)
        images = self.images
        if draws > 1 and (
            layout.flat or layout.by_image
        ):  # else their axes fit together as they are
            images = images.unsqueeze(int(layout.by_image))
            if layout.flat:
                images = images.repeat_interleave(draws, int(layout.by_image)).flatten(0, 1)
        values = called("likelihood", self.likelihood, images, decoded)
        if not isinstance(values, Tensor) or not values.ndim or values.numel() % (draws * n):
            raise ValueError(
                f"likelihood: expected log p(x | z) of each of {draws * n} images, got "
                f"{_kind(values)}"
            )
        return layout.by_draw(values, n).sum(-1)

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

    @property
    def loose(self) -> bool:
        """Whether the loss may leave out constants: a squared or absolute error of a tensor."""
        return self.family in ("gaussian", "laplace") and isinstance(self.decoded, Tensor)

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
        return self._by_terms() if required_arguments(self.loss, 1) == 3 else self._watched()

    def _by_terms(self) -> Pass:
        assert self.loss is not None
        raw = called("encode", self.encode, self.images, *self.told)
        encoded = self.read(raw)
        if self.draw is None:
            z = encoded.normal(self.encoded.kind or self.spread or encoded.likely).sample()
        else:
            z = called("draw", self.draw, raw)
            if not isinstance(z, Tensor) or not z.numel() or z.numel() % encoded.mu.numel():
                raise ValueError(
                    f"draw: expected z of each image, {_kind(encoded.mu)}, got {_kind(z)}"
                )
        out = called("decode", self.decode, z, *self.told)
        loss = _number(called("loss", self.loss, self.images, raw, out))
        self._refuse_nan("loss", [loss])
        return self._seen(encoded, [Call(z, out)], loss, self.draw is not None)

    def _watched(self) -> Pass:
        assert self.loss is not None
        random = torch.get_rng_state()
        hearing = watched(self.encode, memory=self._first_of_alike), watched(self.decode)
        with hearing[0] as encodings, hearing[1] as decodings, Trace() as trace:
            loss = _number(called("loss", self.loss, self.images, *self.told))
        self._refuse_nan("loss", [loss])
        if encodings:
            encoded = self.read(encodings[0].result)
        else:
            encoded = self._traced_encoding(trace, random)
        if encoded.mu.is_inference():
            raise NotChecked("the loss has no gradient; it is computed in torch.inference_mode()")
        if not decodings:
            with torch.no_grad():
                decodings = trace.decodings(lambda z: self.decode(z, *self.told), encoded.mu)
        if not decodings:
            raise NotChecked(
                "nothing that decode returns was computed in the loss; give decode as a module or "
                "method that the loss calls, such as model.decode, or a loss(images, encoded, "
                "decoded)"
            )
        seen = self._seen(encoded, decodings, loss, True)
        if not encodings and loss.requires_grad:
            self._check_way(seen)
        return seen

    def _first_of_alike(self, result: Any, before: Sequence[Call]) -> Any:
        """What encode returned first, if a later call gives the same: one code for all terms."""
        if not before:
            return result
        first, now = self.read(before[0].result), self.read(result)
        alike = first.mu.shape == now.mu.shape and first.spread.shape == now.spread.shape
        same = alike and torch.equal(first.mu, now.mu) and torch.equal(first.spread, now.spread)
        return before[0].result if same else result

    def _traced_encoding(self, trace: Trace, random: Tensor) -> Encoded:
        """What encode gives, found again in the loss."""
        after = torch.get_rng_state()
        torch.set_rng_state(random)  # such as for dropout
        told = self.read(called("encode", self.encode, self.images, *self.told))
        torch.set_rng_state(after)
        found = [trace.first(each.detach()) for each in told[:2]]
        if found[0] is None or found[1] is None:
            raise NotChecked(
                "nothing that encode returns was computed in the loss; give encode as a module or "
                "method that the loss calls, such as model.encode, or a loss(images, encoded, "
                "decoded)"
            )
        return told._replace(mu=found[0], spread=found[1])

    def _check_way(self, seen: Pass) -> None:
        """Refuse to judge a loss that does not go through what was found of encode in it."""
        results = list(seen.encoded[:2])
        around = goes_around([seen.loss], results, stop=[*results, *_outputs(seen)])
        if around or goes_around(list(seen.z), results, stop=results):
            raise NotChecked(
                "the loss uses what encode computes in other ways than through what it returns; "
                "let encode return what the loss makes its KL and z from"
            )

    def _seen(self, encoded: Encoded, decodings: Sequence[Call], loss: Tensor, drawn: bool) -> Pass:
        if len(encoded.mu) != self.n:
            raise NotChecked("the loss encodes something other than the images")
        learns = {"mean": encoded.mu.requires_grad, "spread": encoded.spread.requires_grad}
        if any(learns.values()) and not all(learns.values()):
            fixed = min(learns, key=learns.__getitem__)
            raise NotChecked(
                f"the {fixed} that encode returns has no gradient, by which the loss is read; if "
                "its layer is frozen, look with requires_grad_(True)"
            )
        layouts = [_layout(call.argument, encoded.mu) for call in decodings]
        shape = encoded.mu.shape
        zs = [
            layout.by_draw(call.argument, self.n).reshape(layout.draws, *shape)
            for call, layout in zip(decodings, layouts, strict=True)
        ]
        return Pass(encoded, zs, [self.meant(each.result) for each in decodings], loss, drawn,
                    layouts)  # fmt: skip

    @cached_property
    def encoder_cut_off(self) -> bool:
        """Whether the encoder is computed without gradients in a loss, and elsewhere with them."""
        if not self.seen.loss.requires_grad or self.seen.encoded.mu.requires_grad:
            return False
        with mode(self.modules, training=True), torch.enable_grad():
            encoded = self.encoding(self.images, *self.told)
        return encoded.mu.requires_grad or encoded.spread.requires_grad

    @property
    def decoder_cut_off(self) -> bool:
        """Whether the decoder is computed without gradients in a loss that has some."""
        held = [each for decoded in self.seen.decoded for each in tensors_of(decoded)]
        learns = any(each.requires_grad for each in held)
        return bool(held) and self.seen.loss.requires_grad and not learns

    @cached_property
    def term(self) -> LikelihoodTerm:
        """The log-likelihood in the loss."""
        seen = self.seen
        if not seen.loss.requires_grad:
            raise NotChecked("the loss has no gradient; is it computed inside torch.no_grad()?")
        if self.decoder_cut_off:
            raise NotChecked("the decoder is computed without gradients")
        if not _outputs(seen):
            raise NotChecked("decode returns neither tensors nor a distribution of such")
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

    def drawn_kl(self, kind: str) -> tuple[float, float]:
        """KL(q(z | x) || p(z)) of an image as the average over draws, with its standard error."""
        if kind not in self.drawn_kls:
            q_z = self.seen.encoded.normal(kind)
            with torch.no_grad():
                z = q_z.sample((KL_DRAWS,))
                log_q, log_p = (summed(d.log_prob(z), KL_DRAWS, self.n) for d in (q_z, self.p_z))
            each = (log_q - log_p).mean(1)
            error = (each.std() / math.sqrt(len(each))).item()
            self.drawn_kls[kind] = each.mean().item(), error
        return self.drawn_kls[kind]

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
        if not self.seen.encoded.mu.requires_grad:
            raise NotChecked("the encoder is computed without gradients")
        term = self.understood
        declared = self.seen.encoded.kind
        found = kl_term(self.seen, term, self.p_z, [declared] if declared else KINDS)
        whole = term.weights.sum(0).mean().abs().item()
        least = min(whole, 1 / self.n) if self.loose else whole  # beside an error of small noise
        kind = self.spread or self.seen.encoded.likely
        if found is None and not shows(self.seen, self.p_z, kind, least):
            raise NotChecked(UNSEEN)
        return found

    @cached_property
    def fewer(self) -> "Exam | None":
        """The same with two thirds of the images, by which weights are told from one over them."""
        n = self.n - self.n // 3
        if n < 2 or n == self.n:
            return None
        told = self.told[0][:n] if self.told else None
        given = self.likelihood, told, self.prior, self.draw, self.spread, self.beta
        return Exam(self.encode, self.decode, self.images[:n], self.loss, *given)

    @cached_property
    def formula(self) -> bool:
        """Whether what stands beside the log-likelihood is built like a KL."""
        declared = self.seen.encoded.kind
        return is_formula(self.seen, [declared] if declared else KINDS)

    @property
    def understood(self) -> LikelihoodTerm:
        """The log-likelihood in the loss, if it is one."""
        if not self.term.misfit < FITS:
            raise NotChecked(
                "what reaches the decoder's output is the gradient of none of the likelihoods "
                f"({', '.join(self.families)}); give likelihood=f(images, decoded). Does the loss "
                "change the images (binarize, add noise, flip)? Change them before and give those"
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
    seed: Any,
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
            "; give a batch of what the model is trained on"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"images: expected floating-point numbers, got {images.dtype}; give what the model is "
            "trained on, such as images.float() / 255"
        )
    if labels is not None and (
        not isinstance(labels, Tensor) or labels.shape[:1] != images.shape[:1]
    ):
        raise ValueError(
            f"labels: expected a tensor of one for each of {len(images)} images, got "
            f"{_kind(labels)}"
        )
    known = likelihood is None or callable(likelihood) or likelihood in [*LIKELIHOODS]
    if not known and not isinstance(likelihood, likelihoods.Likelihood):
        raise ValueError(
            f"likelihood: expected {', '.join(LIKELIHOODS)}, a Likelihood, a function or None, got "
            f"{likelihood!r}"
        )
    if spread is not None and spread not in KINDS:
        raise ValueError(f"spread: expected {', '.join(KINDS)} or None, got {spread!r}")
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < math.inf:
        raise ValueError(f"beta: expected a positive number, got {beta!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected a whole number from 0 to 2**63 - 1, got {seed!r}")
    given = 1 + (labels is not None)
    if loss is not None and required_arguments(loss, given) not in (given, 3):
        raise ValueError(
            f"loss: expected a function of {'images and labels' if given == 2 else 'images'}, or "
            f"of images, encoded and decoded, got one that needs {required_arguments(loss, given)} "
            "arguments; wrap it, as in loss=lambda x: loss_function(x, *model(x))"
        )


def _kind(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def called(name: str, function: Function, *given: Any) -> Any:
    """What a function of the reader's returns; what it raises is said to be its own."""
    try:
        return function(*given)
    except Exception as error:
        shapes = ", ".join(_kind(each) for each in given) or "nothing"
        said = str(error).strip().split("\n")[0]
        raise ValueError(f"{name}: raised {type(error).__name__} ({said}), given {shapes}") from (
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


def _layout(z: Any, mu: Tensor) -> Layout:
    """How draws stand in z: (..., n, d), (n, K, d) or (K n, d) in one of two orders."""
    if not isinstance(z, Tensor):
        raise NotChecked("the loss gives decode something other than a tensor")
    n, each = len(mu), mu.numel()
    draws = z.numel() // each
    after = tuple(mu.shape[1:])
    flat = z.ndim == mu.ndim
    fits = z.numel() == draws * each and draws and tuple(z.shape[z.ndim - len(after) :]) == after
    rows = z.shape[: z.ndim - len(after)]
    if not fits or not (flat or rows[-1] == n or rows[0] == n):
        raise NotChecked("the loss decodes something other than one z or K for each")
    if draws == 1:
        return Layout()
    (by_mu,) = gradients(z.reshape(draws * n, -1)[:draws].sum(), [mu])
    apart = (z.detach().reshape(n, draws, -1) - mu.detach().reshape(n, 1, -1)).square().sum()
    other = (z.detach().reshape(draws, n, -1) - mu.detach().reshape(1, n, -1)).square().sum()
    by_image = not by_mu[1:].any() if by_mu.any() else bool(apart < other)
    return Layout(draws, bool(by_image), flat)


def _outputs(seen: Pass) -> list[Tensor]:
    return [each for decoded in seen.decoded for each in parameters_of(decoded)]


def without_events(decoded: Any) -> Any:
    """The distribution inside torch's Independent."""
    while isinstance(decoded, Independent):
        decoded = decoded.base_dist
    return decoded
