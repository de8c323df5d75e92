"""Variational autoencoders (chapter 8), also with a label given (chapter 11)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from vae_book.device import standard_normal
from vae_book.likelihoods import Bernoulli, Likelihood
from vae_book.reparameterization import reparameterize


class VAE(nn.Module):
    """An encoder q(z | x) and a decoder p(x | z), each with one hidden layer.

    The defaults are the classic 784-400-20 network; Kingma and Welling (2014), appendix C.

    Args:
        latent: the size d of z.
        hidden: the number of ReLU units in the encoder and in the decoder.
        image_shape: (channels, height, width) of one image.
        likelihood: what the decoder's output means; None takes ``Bernoulli(relaxed=True)``, which
            scores gray levels by cross-entropy.
    """

    conditional: ClassVar[bool] = False

    def __init__(
        self,
        latent: int = 20,
        hidden: int = 400,
        image_shape: Sequence[int] = (1, 28, 28),
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__()
        self.latent, self.hidden, self.image_shape = latent, hidden, tuple(image_shape)
        self.likelihood: Likelihood = likelihood or Bernoulli(relaxed=True)
        pixels = math.prod(self.image_shape)
        channels, height, width = self.image_shape
        per_pixel = self.likelihood.params_per_pixel
        self.encoder = nn.Sequential(nn.Flatten(-3), nn.Linear(pixels, hidden), nn.ReLU())
        self.to_mu = nn.Linear(hidden, latent)
        self.to_log_var = nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden),
            nn.ReLU(),
            nn.Linear(hidden, per_pixel * pixels),
            nn.Unflatten(-1, (per_pixel * channels, height, width)),
        )

    def encode(
        self, x: Float[Tensor, "*batch channels height width"]
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
        """Mean and log-variance of q(z | x), computed for each image x.

        Equation ``eq-encoder``; Kingma and Welling (2014), appendix C.2.

        Raises:
            ValueError: x is not a batch of images of the model's shape.
        """
        self.check_images(x)
        features = self.encoder(x)
        return self.to_mu(features), self.to_log_var(features)

    def decode(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch params height width"]:
        """The parameters of p(x | z): for the Bernoulli likelihood, the logit of each pixel.

        Raises:
            ValueError: the last axis of z is not the latent size.
        """
        self.check_latent(z)
        return self.decoder(z)

    def forward(
        self,
        x: Float[Tensor, "*batch channels height width"],
        eps: Float[Tensor, "*sample d"],
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
        """From images to pixels: encode, take one sample of z for each row of eps, decode.

        Args:
            x: images.
            eps: draws from N(0, 1), shape (..., d) with the batch axes of x last before d.

        Returns:
            The decoder's params, mu and log_var.
        """
        mu, log_var = self.encode(x)
        return self.decode(reparameterize(mu, log_var, eps)), mu, log_var

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, *, pixels: bool = False
    ) -> Float[Tensor, "n channels height width"]:
        """Images made from nothing: z from the prior N(0, I), then the decoder; no encoder.

        Args:
            n: how many.
            generator: a CPU generator (see `vae_book.device.seeded`).
            pixels: also draw each pixel from p(x | z); by default the mean of p(x | z) is given.
        """
        z = standard_normal((n, self.latent), generator).to(next(self.parameters()))
        params = self.decode(z)
        return self.likelihood.sample(params, generator) if pixels else self.likelihood.mean(params)

    def prior(self, y: Tensor | None = None) -> tuple[Tensor | float, Tensor | float]:
        """Mean and log-variance of p(z): zero, for N(0, I)."""
        return 0.0, 0.0

    def check_images(self, x: Tensor) -> None:
        """Raise ValueError unless x is a batch of images of the model's shape."""
        if tuple(x.shape[-3:]) != self.image_shape:
            raise ValueError(
                f"x: expected images of shape (..., {', '.join(map(str, self.image_shape))}), got "
                f"{tuple(x.shape)}"
            )

    def check_latent(self, z: Tensor) -> None:
        """Raise ValueError unless the last axis of z is the latent size."""
        if z.shape[-1] != self.latent:
            raise ValueError(f"z: expected shape (..., {self.latent}), got {tuple(z.shape)}")


class CVAE(VAE):
    """A conditional VAE: encoder q(z | x, y) and decoder p(x | z, y) are told the label y.

    The label enters both as ten numbers (for ten classes), of which one is 1, beside what the
    networks of `VAE` get; Sohn, Lee and Yan (2015), section 4.

    Args:
        latent, hidden, image_shape, likelihood: as for `VAE`.
        classes: how many labels there are: 0, 1, ..., classes - 1.
        learned_prior: give each label a prior p(z | y) of its own, a Gaussian whose mean and
            log-variance are trained with the model; by default p(z | y) is N(0, I) for all.

    Raises:
        ValueError: classes is not positive.
    """

    conditional: ClassVar[bool] = True

    def __init__(
        self,
        latent: int = 20,
        hidden: int = 400,
        image_shape: Sequence[int] = (1, 28, 28),
        likelihood: Likelihood | None = None,
        *,
        classes: int = 10,
        learned_prior: bool = False,
    ) -> None:
        super().__init__(latent, hidden, image_shape, likelihood)
        if classes < 1:
            raise ValueError(f"classes: expected 1 or more, got {classes}")
        self.classes, self.learned_prior = int(classes), bool(learned_prior)
        pixels = math.prod(self.image_shape)
        self.encoder = nn.Sequential(nn.Linear(pixels + classes, hidden), nn.ReLU())
        self.decoder[0] = nn.Linear(latent + classes, hidden)
        if learned_prior:
            self.prior_mu = nn.Parameter(torch.zeros(classes, latent))
            self.prior_log_var = nn.Parameter(torch.zeros(classes, latent))

    def encode(
        self,
        x: Float[Tensor, "*batch channels height width"],
        y: Int[Tensor, "*batch"] | None = None,
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
        """Mean and log-variance of q(z | x, y), computed for each image x with its label y.

        Equation ``eq-conditional-encoder`` (chapter 11).

        Raises:
            ValueError: x is not a batch of images of the model's shape, or y is not one whole
                number from 0 to classes - 1 for each of them.
        """
        self.check_images(x)
        features = self.encoder(torch.cat([x.flatten(-3), self._one_hot(y, x.shape[:-3])], dim=-1))
        return self.to_mu(features), self.to_log_var(features)

    def decode(
        self, z: Float[Tensor, "*batch d"], y: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch params height width"]:
        """The parameters of p(x | z, y); y has the batch axes of z, or the last of them.

        Raises:
            ValueError: the last axis of z is not the latent size, or y does not fit.
        """
        self.check_latent(z)
        samples = z.ndim - 1 - (y.ndim if isinstance(y, Tensor) else 0)
        label = self._one_hot(y, z.shape[max(samples, 0) : -1]).expand(*z.shape[:-1], -1)
        return self.decoder(torch.cat([z, label], dim=-1))

    def forward(
        self,
        x: Float[Tensor, "*batch channels height width"],
        eps: Float[Tensor, "*sample d"],
        y: Int[Tensor, "*batch"] | None = None,
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
        """From images and labels to pixels; see `VAE.forward`."""
        mu, log_var = self.encode(x, y)
        return self.decode(reparameterize(mu, log_var, eps), y), mu, log_var

    def prior(self, y: Tensor | None = None) -> tuple[Tensor | float, Tensor | float]:
        """Mean and log-variance of p(z | y) for each label.

        Raises:
            ValueError: the prior is learned, and y is not a tensor of labels.
        """
        if not self.learned_prior:
            return 0.0, 0.0
        label = self._one_hot(y)
        return label @ self.prior_mu, label @ self.prior_log_var

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        y: Int[Tensor, "n"] | int | None = None,
        pixels: bool = False,
    ) -> Float[Tensor, "n channels height width"]:
        """Images of given labels: z from the prior p(z | y), then the decoder.

        Args:
            n: how many.
            generator: a CPU generator (see `vae_book.device.seeded`).
            y: the label of all of them, or one for each; None takes 0, 1, 2, ... in turn.
            pixels: also draw each pixel from p(x | z, y); by default its mean is given.

        Raises:
            ValueError: y does not fit.
        """
        where = next(self.parameters())
        labels = torch.arange(n) % self.classes if y is None else torch.as_tensor(y)
        labels = labels.to(where.device)
        if labels.ndim == 0:
            labels = labels.expand(n)
        if labels.shape != (n,):
            raise ValueError(f"y: expected one label, or {n}, got shape {tuple(labels.shape)}")
        eps = standard_normal((n, self.latent), generator).to(where)
        mu, log_var = (torch.as_tensor(p).to(where).expand_as(eps) for p in self.prior(labels))
        params = self.decode(reparameterize(mu, log_var, eps), labels)
        return self.likelihood.sample(params, generator) if pixels else self.likelihood.mean(params)

    def _one_hot(self, y: object, batch: Sequence[int] | None = None) -> Tensor:
        """One number for each class, shape (*batch, classes); all but that of y are 0."""
        if (
            not isinstance(y, Tensor)
            or y.dtype == torch.bool
            or not torch.can_cast(y.dtype, torch.int64)
        ):
            kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"y: expected labels as a tensor of whole numbers, got {kind}")
        y = y.long()  # the 300 of 300 classes would become 44 beside a uint8
        if batch is not None and y.shape != tuple(batch):
            raise ValueError(
                f"y: expected a label for each image, shape {tuple(batch)}, got {tuple(y.shape)}"
            )
        outside = y[(y < 0) | (y >= self.classes)]
        if outside.numel():
            raise ValueError(
                f"y: expected labels from 0 to {self.classes - 1}, got {outside[0].item()}"
            )
        return one_hot(y, self.classes).to(next(self.parameters()))
