"""Variational autoencoders: fully connected (chapter 8), convolutional (9), conditional (11)."""

import math
from collections.abc import Sequence
from functools import partial
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

    Kingma and Welling (2014), appendix C, with ReLU for tanh. The default sizes, 784-400-20, are
    those of the VAE in PyTorch's examples; the paper has 500 hidden units for MNIST.

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
        z = standard_normal((n, self.latent), generator).to(next(self.decoder.parameters()))
        params = self.decode(z)
        return self._images(params, generator, pixels)

    def _images(self, params: Tensor, generator: torch.Generator | None, pixels: bool) -> Tensor:
        """Pixels drawn from p(x | z), or its mean."""
        return self.likelihood.sample(params, generator) if pixels else self.likelihood.mean(params)

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


class ImageLayers(nn.Sequential):
    """Convolutions, which know one batch axis only, for images with any number of them."""

    def forward(self, x: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch c2 h2 w2"]:
        """The last layer's maps."""
        batch, image = x.shape[:-3], x.shape[-3:]
        y = super().forward(x.reshape(math.prod(batch), *image))
        return y.reshape(*batch, *y.shape[1:])


class ConvVAE(VAE):
    """A convolutional VAE: each layer looks at neighboring pixels, the same way everywhere.

    Encoder: convolutions 1-32-64, kernel 3, stride 2, then a linear bottleneck of 16 numbers.
    Decoder: a linear layer to 64 maps of a quarter of the height and width, then transposed
    convolutions 64-64-32-1; equations ``eq-convolution`` and ``eq-transposed-convolution`` (chapter
    9). The sizes are those of Chollet (2020), "Variational AutoEncoder", a Keras example.

    Args:
        latent, image_shape, likelihood: as for `VAE`.
        hidden: how many numbers pass the bottleneck.

    Raises:
        ValueError: height or width is not a multiple of 4.
    """

    def __init__(
        self,
        latent: int = 2,
        hidden: int = 16,
        image_shape: Sequence[int] = (1, 28, 28),
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__(latent, hidden, image_shape, likelihood)
        channels, height, width = self.image_shape
        if height % 4 or width % 4:
            raise ValueError(
                f"image_shape: expected height and width to be multiples of 4, got {height} x "
                f"{width}; pad the images"
            )
        small = (64, height // 4, width // 4)
        maps = math.prod(small)
        down = partial(nn.Conv2d, kernel_size=3, stride=2, padding=1)
        up = partial(nn.ConvTranspose2d, kernel_size=3, stride=2, padding=1, output_padding=1)
        per_pixel = self.likelihood.params_per_pixel
        self.encoder = nn.Sequential(
            ImageLayers(down(channels, 32), nn.ReLU(), down(32, 64), nn.ReLU()),
            nn.Flatten(-3),
            nn.Linear(maps, hidden),  # no ReLU: in so narrow a layer most would soon be dead
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, maps),
            nn.ReLU(),
            nn.Unflatten(-1, small),
            ImageLayers(
                up(64, 64),
                nn.ReLU(),
                up(64, 32),
                nn.ReLU(),
                nn.ConvTranspose2d(32, per_pixel * channels, kernel_size=3, padding=1),
            ),
        )
        # Convolutions on a CPU take a quarter less time with the channels of a pixel side by side.
        self.to(memory_format=torch.channels_last)


class ConditionalVAE(VAE):
    """A VAE that is told something, y: encoder q(z | x, y), prior p(z | y), decoder p(x | z, y).

    What is told enters as a row of numbers beside what the networks of `VAE` get; Sohn, Lee and
    Yan (2015), section 4. A subclass says how y becomes that row.

    Args:
        told: how many numbers y is turned into.
        latent, hidden, image_shape, likelihood: as for `VAE`.
        prior_network: gives the mean and the log-variance of p(z | y), one after the other, from
            that row; None makes p(z | y) = N(0, I).
    """

    conditional: ClassVar[bool] = True

    def __init__(
        self,
        told: int,
        latent: int,
        hidden: int,
        image_shape: Sequence[int],
        likelihood: Likelihood | None,
        prior_network: nn.Module | None,
    ) -> None:
        super().__init__(latent, hidden, image_shape, likelihood)
        pixels = math.prod(self.image_shape)
        self.encoder = nn.Sequential(nn.Linear(pixels + told, hidden), nn.ReLU())
        self.decoder[0] = nn.Linear(latent + told, hidden)
        self.prior_network = prior_network

    def embed(self, y: Tensor | None, batch: Sequence[int] | None = None) -> Tensor:
        """y as a row of numbers for each image, shape (..., told).

        Raises:
            ValueError: y is not what the model wants to be told, or not for each of the batch.
        """
        raise NotImplementedError

    def encode(
        self, x: Float[Tensor, "*batch channels height width"], y: Tensor | None = None
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
        """Mean and log-variance of q(z | x, y), computed for each image x with its y.

        Equation ``eq-conditional-encoder`` (chapter 11).

        Raises:
            ValueError: x is not a batch of images of the model's shape, or y does not fit it.
        """
        self.check_images(x)
        features = self.encoder(torch.cat([x.flatten(-3), self.embed(y, x.shape[:-3])], dim=-1))
        return self.to_mu(features), self.to_log_var(features)

    def decode(
        self, z: Float[Tensor, "*batch d"], y: Tensor | None = None
    ) -> Float[Tensor, "*batch params height width"]:
        """The parameters of p(x | z, y); y has the batch axes of z, or the last of them.

        Raises:
            ValueError: the last axis of z is not the latent size, or y does not fit.
        """
        self.check_latent(z)
        row = self.embed(y)
        if row.shape[:-1] != z.shape[z.ndim - row.ndim : -1]:
            raise ValueError(
                f"y: expected a label for each z, shape {tuple(z.shape[:-1])}, got "
                f"{tuple(row.shape[:-1])}"
            )
        return self.decoder(torch.cat([z, row.expand(*z.shape[:-1], -1)], dim=-1))

    def forward(  # type: ignore[override]  # the prior comes on top
        self,
        x: Float[Tensor, "*batch channels height width"],
        eps: Float[Tensor, "*sample d"],
        y: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """From images and what is told to pixels; see `VAE.forward`.

        Returns:
            The decoder's params, mu and log_var, then mean and log-variance of the prior.
        """
        mu, log_var = self.encode(x, y)
        return self.decode(reparameterize(mu, log_var, eps), y), mu, log_var, *self.prior(y)

    def prior(self, y: Tensor | None) -> tuple[Float[Tensor, "... d"], Float[Tensor, "... d"]]:
        """Mean and log-variance of p(z | y) for each y.

        Raises:
            ValueError: y is not what the model wants to be told.
        """
        row = self.embed(y)
        if self.prior_network is None:
            zero = row.new_zeros(*row.shape[:-1], self.latent)
            return zero, zero
        mu, log_var = self.prior_network(row).chunk(2, dim=-1)
        return mu, log_var

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        y: Tensor | int | None = None,
        pixels: bool = False,
    ) -> Float[Tensor, "n channels height width"]:
        """Images made from what is told: z from the prior p(z | y), then the decoder.

        Args:
            n: how many.
            generator: a CPU generator (see `vae_book.device.seeded`).
            y: what each of them is told.
            pixels: also draw each pixel from p(x | z, y); by default its mean is given.

        Raises:
            ValueError: y does not fit.
        """
        where = next(self.decoder.parameters()).device
        y = None if y is None else torch.as_tensor(y, device=where)
        mu, log_var = self.prior(y)
        if mu.shape != (n, self.latent):
            raise ValueError(f"y: expected {n} of them, got {tuple(mu.shape[:-1])}")
        eps = standard_normal((n, self.latent), generator).to(mu)
        params = self.decode(reparameterize(mu, log_var, eps), y)
        return self._images(params, generator, pixels)


class CVAE(ConditionalVAE):
    """A VAE that is told the label y of the image, as ten numbers (for ten classes), one of them 1.

    Args:
        latent, hidden, image_shape, likelihood: as for `VAE`.
        classes: how many labels there are: 0, 1, ..., classes - 1.
        learned_prior: give each label a prior p(z | y) of its own, a Gaussian whose mean and
            log-variance are trained with the model; by default p(z | y) is N(0, I) for all.

    Raises:
        ValueError: classes is not positive.
    """

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
        if classes < 1:
            raise ValueError(f"classes: expected 1 or more, got {classes}")
        table = nn.Linear(classes, 2 * latent, bias=False) if learned_prior else None
        super().__init__(classes, latent, hidden, image_shape, likelihood, table)
        self.classes, self.learned_prior = int(classes), bool(learned_prior)
        if table is not None:
            nn.init.zeros_(table.weight)  # all labels start from N(0, I)

    def embed(
        self, y: Tensor | None, batch: Sequence[int] | None = None
    ) -> Float[Tensor, "... classes"]:
        """One number for each class; all but that of y are 0."""
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
        return one_hot(y, self.classes).to(next(self.decoder.parameters()))

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
        labels = torch.arange(n) % self.classes if y is None else torch.as_tensor(y)
        labels = labels.expand(n) if labels.ndim == 0 else labels
        return super().sample(n, generator, y=labels, pixels=pixels)


class CompletionVAE(ConditionalVAE):
    """A VAE that is shown a part y of the image, and draws the rest x.

    The prior p(z | y) is a network with one hidden layer; Sohn, Lee and Yan (2015), section 4, who
    call x what is shown and y what is drawn (chapter 11). `vae_book.data.quadrants` cuts the
    images.

    Args:
        latent, hidden, likelihood: as for `VAE`.
        image_shape: the shape of the rest, by default three quarters of an MNIST digit.
        seen_shape: the shape of the part that is shown.
    """

    def __init__(
        self,
        latent: int = 20,
        hidden: int = 400,
        image_shape: Sequence[int] = (3, 14, 14),
        likelihood: Likelihood | None = None,
        *,
        seen_shape: Sequence[int] = (1, 14, 14),
    ) -> None:
        seen = math.prod(seen_shape)
        network = nn.Sequential(nn.Linear(seen, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        super().__init__(seen, latent, hidden, image_shape, likelihood, network)
        self.seen_shape = tuple(seen_shape)

    def embed(
        self, y: Tensor | None, batch: Sequence[int] | None = None
    ) -> Float[Tensor, "... seen"]:
        """The pixels that are shown, in a row."""
        wanted = tuple(self.seen_shape)
        if (
            not isinstance(y, Tensor)
            or not y.is_floating_point()
            or tuple(y.shape[-3:]) != wanted
            or (batch is not None and y.shape[:-3] != tuple(batch))
        ):
            found = f"{tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            each = "..." if batch is None else ", ".join(map(str, batch))
            raise ValueError(
                f"y: expected the part that is seen of each image, shape "
                f"({each}, {', '.join(map(str, wanted))}), got {found}"
            )
        return y.flatten(-3)
