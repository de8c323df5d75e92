"""Variational autoencoders (chapter 8)."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
        if tuple(x.shape[-3:]) != self.image_shape:
            raise ValueError(
                f"x: expected images of shape (..., {', '.join(map(str, self.image_shape))}), got "
                f"{tuple(x.shape)}"
            )
        features = self.encoder(x)
        return self.to_mu(features), self.to_log_var(features)

    def decode(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch params height width"]:
        """The parameters of p(x | z): for the Bernoulli likelihood, the logit of each pixel.

        Raises:
            ValueError: the last axis of z is not the latent size.
        """
        if z.shape[-1] != self.latent:
            raise ValueError(f"z: expected shape (..., {self.latent}), got {tuple(z.shape)}")
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
