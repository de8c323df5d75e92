"""Likelihoods p(x | z) of images, given the output of a decoder (chapter 6).

A likelihood turns the decoder's raw output, ``params``, into a distribution over the pixels:
``likelihood.given(params)``. Images have the shape (..., channels, height, width); log-densities
are summed over those three axes, so there is one number, in nats, for each image. Axes for samples
may come before those of the images.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vae_book.checks import as_floats, is_trusted, numeric, real_number, whole_number
from vae_book.device import check_generator

PIXEL_AXES = (-3, -2, -1)
LOG_2PI = math.log(2 * math.pi)
NEAR_ZERO = 0.1  # below it, four terms of a series are exact to double precision
Pixels = Float[Tensor, "*batch channels height width"]
Params = Float[Tensor, "..."]


class Likelihood(ABC):
    """What a decoder's output means. A new one says what it gives each pixel, and how it is drawn.

    Attributes:
        params_per_pixel: how many numbers the decoder outputs for each pixel; they lie along the
            channels.
    """

    params_per_pixel: int = 1

    def given(self, params: Params) -> "ImageDistribution":
        """The distribution p(x | z) over images that the decoder's output stands for."""
        return ImageDistribution(self, params)

    @numeric
    def log_prob(self, x: Pixels, params: Params) -> Float[Tensor, "..."]:
        """log p(x | z) of each image, in nats, summed over its pixels.

        Args:
            x: images, shape (..., channels, height, width).
            params: the output of the decoder; its shape ends in the shape of x, with
                ``params_per_pixel`` times the channels, with any axes for samples before.

        Returns:
            The shape of params without its last three axes.

        Raises:
            ValueError: x lies outside the support, the shapes do not match, or `pixel_log_prob`
                does not give one number for each pixel.
        """
        if not is_trusted():
            self.check_support(x)
        _check_shapes(x, params, self.params_per_pixel)
        return self.image_log_prob(x, params)

    def image_log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """The sum of `pixel_log_prob` over each image, for which there may be a shorter way."""
        each = self.pixel_log_prob(x, params)
        expected = (*params.shape[:-3], *x.shape[-3:])
        if each.shape != expected:  # numbers that broadcast would count some pixels twice
            raise ValueError(
                f"pixel_log_prob: expected a number for each pixel, shape {expected}, got "
                f"{tuple(each.shape)}"
            )
        return each.sum(PIXEL_AXES)

    @abstractmethod
    def pixel_log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """The log-probability or log-density of each pixel, in nats."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """E[x | z], the image that is usually shown."""

    @abstractmethod
    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x given z; the noise is drawn on the CPU."""

    @numeric
    def check_support(self, x: Params) -> None:
        """Raise ValueError unless every pixel of x is a value that this likelihood can score."""
        if not bool(x.isfinite().all()):
            raise ValueError("x: expected finite numbers, got infinity or NaN")


@dataclass(frozen=True, eq=False)
class ImageDistribution:
    """p(x | z): a likelihood with the numbers that a decoder gives it.

    Attributes:
        likelihood: what the numbers mean.
        params: the numbers, shape (..., params, height, width).
    """

    likelihood: Likelihood
    params: Params

    def __post_init__(self) -> None:
        (params,) = as_floats(params=self.params)
        object.__setattr__(self, "params", params)

    def log_prob(self, x: Pixels) -> Float[Tensor, "..."]:
        """log p(x | z) of each image, in nats; see `Likelihood.log_prob`.

        Raises:
            ValueError: a `log_prob` of one's own gives something other than one for each image.
        """
        found = self.likelihood.log_prob(x, self.params)
        if found.shape != self.params.shape[:-3]:
            raise ValueError(
                f"log_prob: expected a number for each image, shape {tuple(self.params.shape[:-3])}"
                f", got {tuple(found.shape)}; sum over the last three axes"
            )
        return found

    @property
    def mean(self) -> Tensor:
        """E[x | z], the image that is usually shown."""
        return self.likelihood.mean(self.params)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x given z; the noise is drawn on the CPU."""
        return self.likelihood.sample(self.params, generator)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Each pixel is on with its own probability; ``params`` are the logits.

    Equation ``eq-bernoulli`` (chapter 6); Kingma and Welling (2014), appendix C.1.

    ``Bernoulli()`` is a probability distribution over binary images and refuses anything else.
    ``Bernoulli(relaxed=True)`` also takes gray levels in [0, 1] and scores them with the same
    formula, the binary cross-entropy, as the classic VAE scripts do. For gray levels that is a
    useful loss but not a density: it does not integrate to one over [0, 1], so its values are
    not log-likelihoods of the gray image. `ContinuousBernoulli` adds what is missing. They are
    averages of log-likelihoods over binary images drawn from it, equation ``eq-binarized``.
    """

    relaxed: bool = False

    def pixel_log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """x log p + (1 - x) log(1 - p) for each pixel, with p = sigmoid(params), in nats."""
        return -cross_entropy(x, params)

    def image_log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Its sum over each image; in single precision by a shorter way."""
        derived = type(self).pixel_log_prob is not Bernoulli.pixel_log_prob
        if derived or {x.dtype, params.dtype} != {torch.float32}:
            return super().image_log_prob(x, params)
        return -_SummedCrossEntropy.apply(x.flatten(-3), params.flatten(-3))

    @numeric
    def mean(self, params: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The probability that each pixel is on, the shape of params."""
        return torch.sigmoid(params)

    @numeric
    def sample(
        self, params: Float[Tensor, "*shape"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*shape"]:
        """Images of zeros and ones, the shape of params; the noise is drawn on the CPU."""
        return (_uniform(params, generator) < self.mean(params)).to(params.dtype)

    @numeric
    def check_support(self, x: Pixels) -> None:
        """Raise ValueError unless every pixel of x is a value that this likelihood can score."""
        if self.relaxed:
            _check_unit_interval(x)
            return
        gray = x[(x != 0) & (x != 1)]
        if gray.numel() == 0:
            return
        worst = gray[0].item()
        if not 0 <= worst <= 1:
            _check_unit_interval(x)
        raise ValueError(
            f"x: Bernoulli() scores pixels that are 0 or 1, got {worst:.4g}. Make the images "
            "binary with vae_book.data.binarize, score gray levels by a density with "
            "ContinuousBernoulli() or Gaussian(), or ask for their binary cross-entropy by name "
            "with Bernoulli(relaxed=True)"
        )


@dataclass(frozen=True)
class ContinuousBernoulli(Likelihood):
    """A density over gray levels in [0, 1]: cross-entropy, normalized; ``params`` are the logits.

    Equation ``eq-continuous-bernoulli`` (chapter 6); Loaiza-Ganem and Cunningham (2019),
    section 3. For one pixel with logit l the density at x is
    ``exp(l * x) * l / (exp(l) - 1)``.
    """

    def pixel_log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """The log-density of each pixel, in nats."""
        return -(cross_entropy(x, params) + log_cross_entropy_integral(params))

    @numeric
    def check_support(self, x: Pixels) -> None:
        """Raise ValueError unless every pixel lies in [0, 1]."""
        _check_unit_interval(x)

    @numeric
    def mean(self, params: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The average gray level of each pixel, which is *not* the sigmoid of its logit."""
        near, small, large = _around_zero(params)
        # Both terms grow without limit towards zero and almost cancel there: use the series.
        direct = -1 / torch.expm1(-large) - 1 / large
        series = 0.5 + small / 12 - small**3 / 720 + small**5 / 30240 - small**7 / 1209600
        return torch.where(near, series, torch.where(params > 0, direct, 1 - direct))

    @numeric
    def sample(
        self, params: Float[Tensor, "*shape"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*shape"]:
        """Gray levels, the shape of params, by the inverse of the distribution function."""
        # For a positive logit; a negative one gives the mirror image, x -> 1 - x.
        size = params.abs().clamp(min=torch.finfo(params.dtype).eps)
        x = 1 + torch.log1p(_uniform(params, generator) * torch.expm1(-size)) / size
        return torch.where(params > 0, x, 1 - x).clamp(0, 1)


class Gaussian(nn.Module, Likelihood):
    r"""Each pixel is normal around the decoder's output, with a variance given or learned.

    Equation ``eq-gaussian-likelihood`` (chapter 6); Kingma and Welling (2014), appendix C.2.

    Args:
        sigma: the standard deviation; where it is learned, the value to start from.
        variance: ``fixed``: sigma for all pixels, always; ``params`` are the means. ``shared``:
            one number for all pixels and images, trained with the model, of which this object
            is a part. ``pixel``: computed for each pixel of each image; the first half of the
            channels of ``params`` holds the means, the second log(variance / sigma^2).
        min_sigma: noise that a learned variance always has on top, so that the density of a
            pixel that never varies stays finite; the default is about five of 255 gray levels.
            Zero leaves it out.

    Raises:
        ValueError: sigma is not positive, min_sigma is negative, or variance is another word.
    """

    @numeric
    def __init__(
        self,
        sigma: float = 1.0,
        variance: Literal["fixed", "shared", "pixel"] = "fixed",
        *,
        min_sigma: float = 0.02,
    ) -> None:
        super().__init__()
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma: expected a positive number, got {sigma}")
        if not 0 <= min_sigma < math.inf:
            raise ValueError(f"min_sigma: expected zero or a positive number, got {min_sigma}")
        if variance not in ("fixed", "shared", "pixel"):
            raise ValueError(f"variance: expected 'fixed', 'shared' or 'pixel', got {variance!r}")
        # Numbers of numpy's would spoil a checkpoint.
        self.sigma, self.variance, self.min_sigma = float(sigma), variance, float(min_sigma)
        self.params_per_pixel = 2 if variance == "pixel" else 1
        if variance == "shared":
            self.shared = nn.Parameter(torch.zeros(()))  # log(variance / sigma^2)

    def pixel_log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """The log-density of each pixel, in nats, with all its constants."""
        log_var = self.log_var(params)
        squares = (x - self.mean(params)).square() * torch.exp(-log_var)
        return -0.5 * (squares + log_var + LOG_2PI)

    @numeric
    def log_var(self, params: Params) -> Params:
        """The logarithm of each pixel's variance, a tensor that broadcasts to the images."""
        log_unit = 2 * math.log(self.sigma)
        if self.variance == "fixed":
            return params.new_full((), log_unit)  # new_tensor would wait for the device
        # A model in half precision holds the shared one in that, too.
        shared = self.variance == "shared"
        raw = self.shared.to(params.dtype) if shared else _halves(params)[1]
        if self.min_sigma == 0:
            return log_unit + raw
        # Variances of independent noise add up; this is the logarithm of their sum.
        floor = raw.new_full((), 2 * math.log(self.min_sigma))
        return torch.logaddexp(log_unit + raw, floor)

    @numeric
    def mean(self, params: Params) -> Params:
        """The mean of each pixel: params, or their first half."""
        return _halves(params)[0] if self.variance == "pixel" else params

    @numeric
    def sample(self, params: Params, generator: torch.Generator | None = None) -> Params:
        """A normal draw for each pixel; it may leave [0, 1]. The noise is drawn on the CPU."""
        check_generator(generator)
        mean = self.mean(params)
        eps = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device="cpu")
        return mean + torch.exp(0.5 * self.log_var(params)) * eps.to(mean.device)

    def extra_repr(self) -> str:
        """The arguments, for print(model)."""
        return f"sigma={self.sigma}, variance={self.variance!r}, min_sigma={self.min_sigma:.3g}"


@numeric
def log_cross_entropy_integral(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The log of the integral of exp(-cross-entropy) over the gray levels x in [0, 1], in nats.

    Equation ``eq-cross-entropy-integral`` (chapter 6); Loaiza-Ganem and Cunningham (2019),
    section 3. For a logit l the integral is tanh(l / 2) / l, which is 1/2 at l = 0, and less
    elsewhere: never 1, so the cross-entropy of gray levels is not a density's.
    """
    near, small, large = _around_zero(logits)
    direct = torch.log(torch.tanh(large / 2) / large)
    series = -(small**2) / 12 + 7 * small**4 / 1440 - 31 * small**6 / 90720
    series = series + 127 * small**8 / 4838400 - math.log(2)
    return torch.where(near, series, direct)


@numeric
def optimal_variance(x: Pixels, mean: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The shared variance under which images are most probable: their mean squared error.

    Equation ``eq-optimal-variance`` (chapter 6); Rybkin, Daniilidis and Levine (2021).

    Args:
        x: images, shape (..., channels, height, width).
        mean: their reconstructions, the same shape, or with axes for samples before.

    Raises:
        ValueError: the shapes do not match.
    """
    _check_shapes(x, mean, name="mean")
    return (x - mean).square().mean()


def bits_per_dimension(nats: float, dimensions: int, levels: int | None = None) -> float:
    """Nats for one image as bits for one of its numbers.

    Equation ``eq-bits`` (chapter 6); Theis, van den Oord and Bethge (2016).

    Args:
        nats: a negative log-likelihood, or a bound on it.
        dimensions: how many numbers an image has: channels * height * width.
        levels: for a density over [0, 1], how many gray levels there are, the lowest at 0 and the
            highest at 1. 256 of them, k / 255, are 1 / 255 apart; the density times this step is
            the probability of a level, approximately. None for probabilities, such as a
            Bernoulli's.

    Raises:
        ValueError: dimensions is not positive, or levels is below 2.
    """
    if not isinstance(nats, Tensor):  # those of many images at once
        nats = real_number("nats", nats)
    whole_number("dimensions", dimensions)
    steps = 1 if levels is None else whole_number("levels", levels, least=2) - 1
    return nats / (dimensions * math.log(2)) + math.log2(steps)


def _around_zero(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which logits are close to zero, these for a series, and the sizes of all others.

    At zero a direct formula is 0/0. So each of the two gets harmless numbers in the other's places,
    through which a gradient stays finite.
    """
    size = logits.abs().clamp(max=torch.finfo(logits.dtype).max)  # 0 times infinity is 0 here
    near = size < NEAR_ZERO
    return near, torch.where(near, logits, 0.0), torch.where(near, 1.0, size)


@numeric
def cross_entropy(
    x: Float[Tensor, "*pixels"], logits: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """log(1 + exp(l)) - x l for each pixel x with logit l, in nats; its slope is sigmoid(l) - x.

    Equation ``eq-bernoulli`` (chapter 6), of which it is the negative logarithm. From logits, not
    from probabilities: log(sigmoid(l)) alone would underflow to -inf. In single precision it is
    exact to 2e-7 of 1 or of |l|, whichever is larger. It was faster than torch's own on an AMD
    EPYC, and slower on an Intel Xeon that has AVX-512.
    """
    return _CrossEntropy.apply(x.expand_as(logits), logits)


def _with_signature(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """With its signature at hand: torch asks for it in every call, and looking takes 80 µs."""
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


class _CrossEntropy(torch.autograd.Function):
    """By the logarithm of 1 + exp(-|l|): log1p takes longer, for a gain below 1e-7."""

    generate_vmap_rule = True  # for torch.func, as setup_context and jvp are

    @staticmethod
    @_with_signature
    def forward(x: Tensor, logits: Tensor) -> Tensor:
        largest = torch.finfo(logits.dtype).max
        finite = logits.clamp(-largest, largest)  # 0 times infinity is 0 here
        small = torch.exp(-logits.abs())
        log = torch.log1p(small) if logits.dtype == torch.float64 else torch.log(1 + small)
        return log + finite.clamp(min=0) - x * finite

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, logits = ctx.saved_tensors
        by_x = (-gradient * logits).sum_to_size(x.shape) if ctx.needs_input_grad[0] else None
        return by_x, gradient * (torch.sigmoid(logits) - x)

    @staticmethod
    def jvp(ctx: Any, x_moves: Tensor, logits_move: Tensor) -> Tensor:
        x, logits = ctx.saved_tensors
        return (torch.sigmoid(logits) - x) * logits_move - logits * x_moves


class _SummedCrossEntropy(_CrossEntropy):
    """The sum of `cross_entropy` over the last axis, in single precision.

    One logarithm for eight pixels: a product of eight factors between 1 and 2 is nearly as exact.
    """

    @staticmethod
    @_with_signature
    def forward(x: Tensor, logits: Tensor) -> Tensor:
        largest = torch.finfo(logits.dtype).max
        factors = logits.abs().neg_().exp_().add_(1)
        factors = factors.unflatten(-1, (math.gcd(logits.shape[-1], 8), -1)).prod(-2)
        finite = logits.clamp(-largest, largest)  # 0 times infinity is 0 here
        # relu(l) is at least x l, and so is its sum, however it is rounded, if both are taken in
        # the same order. In a product that order may depend on the place in memory: hence the
        # last relu.
        if x.shape[:-1] == (1,):
            with torch.autocast(logits.device.type, enabled=False):
                scores = finite @ x[0]
                excess = (finite.relu_() @ torch.ones_like(x[0]) - scores).relu_()
        else:
            scores = (finite * x).sum(-1)
            excess = finite.relu_().sum(-1) - scores
        total = factors.log_().sum(-1) + excess
        # Two sums may overflow where the pixels' terms cancel; training has diverged by then, and
        # does not wait for a GPU to look.
        if not is_trusted() and bool(total.isnan().any()):
            return cross_entropy(x, logits).sum(-1)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        return _CrossEntropy.backward(ctx, gradient.unsqueeze(-1))

    @staticmethod
    def jvp(ctx: Any, x_moves: Tensor, logits_move: Tensor) -> Tensor:
        return _CrossEntropy.jvp(ctx, x_moves, logits_move).sum(-1)


def _uniform(params: Tensor, generator: torch.Generator | None) -> Tensor:
    check_generator(generator)
    uniform = torch.rand(params.shape, generator=generator, dtype=params.dtype, device="cpu")
    return uniform.to(params.device)


def _halves(params: Tensor) -> tuple[Tensor, Tensor]:
    if params.ndim < 3 or params.shape[-3] % 2:
        raise ValueError(
            "params: expected an even number of channels, means before log-variances, got shape "
            f"{tuple(params.shape)}"
        )
    mean, log_ratio = params.chunk(2, dim=-3)
    return mean, log_ratio


def _check_unit_interval(x: Tensor) -> None:
    outside = x[~((x >= 0) & (x <= 1))]  # so that NaN is outside as well
    if outside.numel():
        raise ValueError(
            f"x: expected pixels between 0 and 1, got {outside[0].item():.4g}. Divide images of "
            "0..255 by 255; for other ranges there is Gaussian()"
        )


def _check_shapes(
    x: Tensor, params: Tensor, params_per_pixel: int = 1, name: str = "params"
) -> None:
    if x.ndim < 3:
        raise ValueError(
            f"x: expected images of shape (..., channels, height, width), got {tuple(x.shape)}"
        )
    *batch, channels, height, width = x.shape
    expected = (*batch, params_per_pixel * channels, height, width)
    if params.shape[-x.ndim :] != expected:
        raise ValueError(
            f"{name}: expected a shape that ends in {expected}, as x is {tuple(x.shape)}, got "
            f"{tuple(params.shape)}"
        )
