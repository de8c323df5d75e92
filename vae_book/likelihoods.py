"""Likelihoods p(x | z) of images, given what a decoder puts out (used in chapter 8).

A likelihood turns the decoder's raw output, ``params``, into a distribution over the pixels. Images
have the shape (..., channels, height, width); log-densities are summed over those three axes, so
there is one number, in nats, for each image.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

PIXEL_AXES = (-3, -2, -1)
Images = Float[Tensor, "*batch channels height width"]


@runtime_checkable
class Likelihood(Protocol):
    """What a model asks of its likelihood."""

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """log p(x | z) of each image, in nats."""

    def mean(self, params: Tensor) -> Tensor:
        """E[x | z], the image that is usually shown."""

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x given z."""


@dataclass(frozen=True)
class Bernoulli:
    """Each pixel is on with its own probability; ``params`` are the logits.

    Equation ``eq-bernoulli``; Kingma and Welling (2014), appendix C.1.

    ``Bernoulli()`` is a probability distribution over binary images and refuses anything else.
    ``Bernoulli(relaxed=True)`` also takes gray levels in [0, 1] and scores them with the same
    formula, the binary cross-entropy, as the classic VAE scripts do. For gray levels that is a
    useful loss but not a density: it does not integrate to one over [0, 1], so its values are
    not log-likelihoods and compare only with values obtained in the same way.
    """

    relaxed: bool = False

    def log_prob(self, x: Images, params: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The log-probability of each image, in nats, summed over its pixels.

        Args:
            x: images, shape (..., channels, height, width).
            params: logits; their shape ends in the shape of x, with any axes for samples before.

        Returns:
            The shape of params without its last three axes.

        Raises:
            ValueError: x lies outside the support, or the shapes do not match.
        """
        self.check_support(x)
        if params.shape[-x.ndim :] != x.shape:
            raise ValueError(
                f"params: expected a shape that ends in that of x, {tuple(x.shape)}, got "
                f"{tuple(params.shape)}"
            )
        # From logits, not from probabilities: log(sigmoid(l)) alone underflows to -inf.
        cross_entropy = binary_cross_entropy_with_logits(
            params, x.expand_as(params), reduction="none"
        )
        return -cross_entropy.sum(PIXEL_AXES)

    def mean(self, params: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The probability that each pixel is on, the shape of params."""
        return torch.sigmoid(params)

    def sample(
        self, params: Float[Tensor, "*shape"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*shape"]:
        """Images of zeros and ones, the shape of params; the noise is drawn on the CPU."""
        uniform = torch.rand(params.shape, generator=generator).to(params.device)
        return (uniform < self.mean(params)).to(params.dtype)

    def check_support(self, x: Images) -> None:
        """Raise ValueError unless every pixel of x is a value that this likelihood can score."""
        allowed = (x >= 0) & (x <= 1) if self.relaxed else (x == 0) | (x == 1)
        if bool(allowed.all()):
            return
        worst = x[~allowed][0].item()
        if 0 <= worst <= 1:
            raise ValueError(
                f"x: Bernoulli() scores pixels that are 0 or 1, got {worst:.4g}. Make the images "
                "binary with vae_book.data.binarize, or ask for the binary cross-entropy of gray "
                "levels by name with Bernoulli(relaxed=True)"
            )
        raise ValueError(
            f"x: expected pixels between 0 and 1, got {worst:.4g}. Divide images of 0..255 by 255"
        )
