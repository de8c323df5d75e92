"""Variational autoencoders: fully connected (chapter 8), convolutional (9), conditional (11).

All have one form: ``encode`` gives q(z | x), ``decode`` p(x | z), ``prior`` p(z), each as a
distribution; what a model is told, y, is the last argument of each.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vae_book.checks import (
    MOST,
    is_trusted,
    last_axis,
    numeric,
    of_kind,
    real_tensor,
    whole_number,
    whole_numbers,
)
from vae_book.distributions import DiagonalGaussian, Distribution
from vae_book.images import Images
from vae_book.likelihoods import Bernoulli, ImageDistribution, Likelihood

P = ParamSpec("P")
Result = TypeVar("Result")


@contextmanager
def mode(modules: Sequence[nn.Module], training: bool) -> Iterator[None]:
    """All modules in training or in evaluation mode for a block; buffers and modes come back."""
    parts = [part for each in modules for part in each.modules()]
    flags = [part.training for part in parts]
    buffers = [dict(part._buffers) for part in parts]
    try:
        for part, own in zip(parts, buffers, strict=True):
            # Copies, since a graph that is still needed may hold what would be written back.
            part._buffers.update((n, b if b is None else b.clone()) for n, b in own.items())
        for each in modules:
            each.train(training)
        yield
    finally:
        for part, flag, own in zip(parts, flags, buffers, strict=True):
            part.training = flag
            part._buffers.update(own)


def measuring(
    function: Callable[Concatenate[Any, P], Result],
) -> Callable[Concatenate[Any, P], Result]:
    """Have a function of a model measure it in evaluation mode, whatever mode it is in."""

    @wraps(function)
    def in_evaluation_mode(model: Any, *args: P.args, **kwargs: P.kwargs) -> Result:
        with mode([model], training=False):
            return function(model, *args, **kwargs)

    return in_evaluation_mode


class Pass(NamedTuple):
    """What a model makes of images on the way to their bound; given y, all of it is given y.

    Attributes:
        q_z: q(z | x), the approximate posterior.
        z: draws from it, shape (..., d), with the axes for samples first.
        p_x: p(x | z) at those draws.
        p_z: p(z), the prior.
    """

    q_z: DiagonalGaussian
    z: Float[Tensor, "... d"]
    p_x: ImageDistribution
    p_z: Distribution


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

    Raises:
        ValueError: a size is not a positive whole number.

    Attributes:
        classes: how many labels the model tells apart; 0 for one that is not told any.
    """

    classes: int = 0

    def __init__(
        self,
        latent: int = 20,
        hidden: int = 400,
        image_shape: Sequence[int] = (1, 28, 28),
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__()
        latent = whole_number("latent", latent, most=MOST)
        hidden = whole_number("hidden", hidden, most=MOST)
        image_shape = whole_numbers("image_shape", image_shape)
        if len(image_shape) != 3:
            raise ValueError(f"image_shape: expected (channels, height, width), got {image_shape}")
        self.latent, self.hidden, self.image_shape = latent, hidden, image_shape
        likelihood = Bernoulli(relaxed=True) if likelihood is None else likelihood
        of_kind(Likelihood, likelihood=likelihood)
        self.likelihood: Likelihood = likelihood
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

    @property
    def weight(self) -> Tensor:
        """One of the weights, for the type and the device of what the model computes."""
        return next(self.decoder.parameters())

    @numeric
    def encode(
        self, x: Float[Tensor, "*batch channels height width"], y: Tensor | None = None
    ) -> DiagonalGaussian:
        """q(z | x) of each image x.

        Equation ``eq-encoder``; Kingma and Welling (2014), appendix C.2.

        Raises:
            ValueError: x is not a batch of images of the model's shape, or y is given.
        """
        self.check_images(x)
        self.told_nothing(y)
        return self.posterior(self.encoder(x.to(self.weight.dtype)))

    def posterior(self, features: Float[Tensor, "*batch hidden"]) -> DiagonalGaussian:
        """q(z | x) from what the encoder's layers make of x."""
        return DiagonalGaussian(self.to_mu(features), self.to_log_var(features))

    @numeric
    def decode(self, z: Float[Tensor, "*batch d"], y: Tensor | None = None) -> ImageDistribution:
        """p(x | z); with the Bernoulli likelihood its params are the logit of each pixel.

        Raises:
            ValueError: the last axis of z is not the latent size, or y is given.
        """
        self.check_latent(z)
        self.told_nothing(y)
        return self.likelihood.given(self.decoded(z.to(self.weight.dtype)))

    def decoded(self, rows: Float[Tensor, "*batch row"]) -> Float[Tensor, "*batch c h w"]:
        """What the decoder's layers make of each row, as of one batch, which is all some know."""
        out = self.decoder(rows.reshape(-1, rows.shape[-1]))
        return out.reshape(*rows.shape[:-1], *out.shape[1:])

    def prior(self, y: Tensor | None = None) -> Distribution:
        """p(z) = N(0, I).

        Raises:
            ValueError: y is given.
        """
        self.told_nothing(y)
        zero = self.weight.new_zeros(self.latent)
        return DiagonalGaussian(zero, zero)

    def told(self, data: Images) -> Tensor | None:
        """What the model is told about each of the images, the y of its methods: nothing."""
        return None

    def forward(
        self,
        x: Float[Tensor, "*batch channels height width"],
        eps: Float[Tensor, "*sample d"],
        y: Tensor | None = None,
    ) -> Pass:
        """From images to pixels: encode, draw z for each row of eps, decode.

        Args:
            x: images.
            eps: draws from N(0, 1), shape (..., d) with the batch axes of x last before d.
            y: what the model is told, for one that is conditioned on it.
        """
        q_z = self.encode(x, y)
        z = q_z.rsample(eps)
        return Pass(q_z, z, self.decode(z, y), self.prior(y))

    @torch.no_grad()
    @measuring
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        y: Tensor | None = None,
        pixels: bool = False,
    ) -> Float[Tensor, "n channels height width"]:
        """Images that the model makes: z from the prior, then the decoder; no encoder.

        Args:
            n: how many.
            generator: a CPU generator (see `vae_book.device.seeded`).
            y: what each of them is told, for a model that is conditioned on it.
            pixels: also draw each pixel from p(x | z); by default the mean of p(x | z) is given.

        Raises:
            ValueError: y does not fit.
        """
        n = whole_number("n", n, least=0)
        y = None if y is None else _tensor(y).to(self.weight.device)
        p_z = self.prior(y)
        if p_z.batch not in ((), (n,)):
            raise ValueError(f"y: expected {n} of them, got {p_z.batch}")
        p_x = self.decode(p_z.sample((n,), generator), y)
        return (p_x.sample(generator) if pixels else p_x.mean).to(self.weight.dtype)

    def told_nothing(self, y: Tensor | None) -> None:
        """Raise ValueError if this model, which is told nothing, is told y."""
        if y is not None:
            raise ValueError(f"y: expected None, since a {type(self).__name__} takes no labels")

    def check_images(self, x: Tensor) -> None:
        """Raise ValueError unless x is a batch of images of the model's shape."""
        if tuple(x.shape[-3:]) != self.image_shape:
            raise ValueError(
                f"x: expected images of shape (..., {', '.join(map(str, self.image_shape))}), got "
                f"{tuple(x.shape)}"
            )

    def check_latent(self, z: Tensor) -> None:
        """Raise ValueError unless the last axis of z is the latent size."""
        last_axis(self.latent, z=z)


def _tensor(y: object) -> Tensor:
    return y if isinstance(y, Tensor) else real_tensor("y", y)


class ImageLayers(nn.Sequential):
    """Convolutions, which know one batch axis only, for images with any number of them."""

    def forward(self, x: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch c2 h2 w2"]:
        """The last layer's maps."""
        batch, image = x.shape[:-3], x.shape[-3:]
        y = super().forward(x.reshape(math.prod(batch), *image))
        return y.reshape(*batch, *y.shape[1:])


class ConvVAE(VAE):
    """A convolutional VAE: most of its layers see neighboring pixels, the same way everywhere.

    Encoder: convolutions 1-32-64, kernel 3, stride 2, then a linear bottleneck of 16 numbers.
    Decoder: a linear layer to 64 maps of a quarter of the height and width, then transposed
    convolutions 64-64-32-1; equations ``eq-convolution`` and ``eq-transposed-convolution`` (chapter
    9). The sizes are those of Chollet (2020), "Variational AutoEncoder", a Keras example, where a
    ReLU follows the bottleneck.

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
        latent, hidden = self.latent, self.hidden
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
            nn.Linear(maps, hidden),  # no ReLU: chapter 9 measures what it does here
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
    Yan (2015), section 4. A subclass says what is told of a data set, in ``told``, and how it
    becomes that row, in ``embed``.

    Args:
        row: how many numbers y is turned into.
        latent, hidden, image_shape, likelihood: as for `VAE`.
        prior_network: gives the mean and the log-variance of p(z | y), one after the other, from
            that row; None makes p(z | y) = N(0, I).
    """

    def __init__(
        self,
        row: int,
        latent: int,
        hidden: int,
        image_shape: Sequence[int],
        likelihood: Likelihood | None,
        prior_network: nn.Module | None,
    ) -> None:
        super().__init__(latent, hidden, image_shape, likelihood)
        latent, hidden = self.latent, self.hidden
        pixels = math.prod(self.image_shape)
        self.encoder = nn.Sequential(nn.Linear(pixels + row, hidden), nn.ReLU())
        self.decoder[0] = nn.Linear(latent + row, hidden)
        self.prior_network = prior_network

    def embed(self, y: Tensor | None) -> Tensor:
        """y as a row of numbers for each image, shape (..., row).

        Raises:
            ValueError: y is not what the model wants to be told.
        """
        raise NotImplementedError

    @numeric
    def encode(
        self, x: Float[Tensor, "*batch channels height width"], y: Tensor | None = None
    ) -> DiagonalGaussian:
        """q(z | x, y) of each image x with its y.

        Equation ``eq-conditional-encoder`` (chapter 11).

        Raises:
            ValueError: x is not a batch of images of the model's shape, or y does not fit it.
        """
        self.check_images(x)
        row = self.embed(y)
        if row.shape[:-1] != x.shape[:-3]:
            raise ValueError(
                f"y: expected one for each image, shape {tuple(x.shape[:-3])}, got "
                f"{tuple(row.shape[:-1])}"
            )
        return self.posterior(self.encoder(torch.cat([x.flatten(-3).to(row), row], dim=-1)))

    @numeric
    def decode(self, z: Float[Tensor, "*batch d"], y: Tensor | None = None) -> ImageDistribution:
        """p(x | z, y); y has the batch axes of z, or the last of them.

        Raises:
            ValueError: the last axis of z is not the latent size, or y does not fit.
        """
        self.check_latent(z)
        row = self.embed(y)
        if row.shape[:-1] != z.shape[z.ndim - row.ndim : -1]:
            raise ValueError(
                f"y: expected one for each z, shape {tuple(z.shape[:-1])}, got "
                f"{tuple(row.shape[:-1])}"
            )
        beside = row.expand(*z.shape[:-1], -1)
        return self.likelihood.given(self.decoded(torch.cat([z.to(row), beside], dim=-1)))

    def prior(self, y: Tensor | None = None) -> Distribution:
        """p(z | y) for each y.

        Raises:
            ValueError: y is not what the model wants to be told.
        """
        row = self.embed(y)
        if self.prior_network is None:
            zero = row.new_zeros(*row.shape[:-1], self.latent)
            return DiagonalGaussian(zero, zero)
        return DiagonalGaussian(*self.prior_network(row).chunk(2, dim=-1))


ALIKE = 0.25


class LabelLinear(nn.Linear):
    """A linear layer of z with weights and biases of its own for each label: W_y z + b_y.

    Equation ``eq-label-weights`` (chapter 11). It takes z and the one-hot row of the label side by
    side. In the weight, label y has columns y (d + 1) to y (d + 1) + d, of which the last is b_y.
    The weights of two labels start with a correlation of `ALIKE`.

    Args:
        latent: the size d of z.
        classes: how many labels there are.
        hidden: how many numbers to output.
    """

    def __init__(self, latent: int, classes: int, hidden: int) -> None:
        latent, hidden = whole_number("latent", latent), whole_number("hidden", hidden)
        classes = whole_number("classes", classes)
        super().__init__(classes * (latent + 1), hidden, bias=False)
        self.sizes = (latent, classes)
        # Each label's is a layer of latent + 1 inputs. In our trials the bound was the better, the
        # more alike they started, and more samples obeyed, the less.
        width, shape = (latent + 1) ** -0.5, (hidden, classes, latent + 1)
        of_all = torch.empty(hidden, 1, latent + 1).uniform_(-width, width)
        of_each = torch.empty(shape).uniform_(-width, width)
        # In place: without memory, as before a checkpoint is read, torch imports its compiler else.
        start = of_each.mul_((1 - ALIKE) ** 0.5).add_(of_all.mul_(ALIKE**0.5))
        self.weight.data.copy_(start.flatten(1))

    def forward(self, z_and_row: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch hidden"]:
        """W_y z + b_y."""
        z, row = z_and_row.split(self.sizes, dim=-1)
        z_and_one = torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)
        return super().forward((row.unsqueeze(-1) * z_and_one.unsqueeze(-2)).flatten(-2))


PACE = 10.0


class LabelTable(nn.Linear):
    """Numbers for each label, all 0 at first: `PACE` times the column that a one-hot row picks.

    Adam moves each weight by about its step size, however large the gradient. At steps of 0.001 a
    prior would be long on its way; the factor lets it move ten times as fast as a weight.

    Args:
        classes: how many labels there are.
        numbers: how many numbers each of them has.
    """

    def __init__(self, classes: int, numbers: int) -> None:
        super().__init__(classes, numbers, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, row: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch numbers"]:
        """The numbers of the label of each row."""
        return PACE * super().forward(row)


class CVAE(ConditionalVAE):
    """A VAE that is told the label y of the image, as ten numbers (for ten classes), one of them 1.

    With the defaults most samples show what was asked for; chapter 11 measures what either choice
    buys.

    Args:
        latent, hidden, image_shape, likelihood: as for `VAE`.
        classes: how many labels there are: 0, 1, ..., classes - 1.
        learned_prior: give each label a prior p(z | y) of its own, a Gaussian whose mean and
            log-variance are trained with the model; else p(z | y) is N(0, I) for all.
        own_weights: give each label a first layer of the decoder of its own, by a `LabelLinear`;
            else all share one, of which a label chooses the bias.

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
        learned_prior: bool = True,
        own_weights: bool = True,
    ) -> None:
        classes = whole_number("classes", classes, most=MOST)
        latent = whole_number("latent", latent, most=MOST)
        table = LabelTable(classes, 2 * latent) if learned_prior else None
        super().__init__(classes, latent, hidden, image_shape, likelihood, table)
        self.classes = classes
        self.learned_prior, self.own_weights = bool(learned_prior), bool(own_weights)
        if own_weights:
            self.decoder[0] = LabelLinear(latent, classes, self.hidden)

    def told(self, data: Images) -> Tensor | None:
        """The labels of the images."""
        return data.labels

    def embed(self, y: Tensor | None) -> Float[Tensor, "... classes"]:
        """One number for each class; all but that of y are 0."""
        if (
            not isinstance(y, Tensor)
            or y.dtype == torch.bool
            or not torch.can_cast(y.dtype, torch.int64)
        ):
            kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"y: expected labels as a tensor of whole numbers, got {kind}")
        y = y.long()  # the 300 of 300 classes would become 44 beside a uint8
        if not is_trusted() and (outside := y[(y < 0) | (y >= self.classes)]).numel():
            raise ValueError(
                f"y: expected labels from 0 to {self.classes - 1}, got {outside[0].item()}"
            )
        # Unlike one_hot, which looks at the labels again on some devices.
        classes = torch.arange(self.classes, device=y.device)
        return (y.unsqueeze(-1) == classes).to(self.weight)

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
            n, generator, pixels: as for `VAE.sample`.
            y: the label of all of them, or one for each; None takes 0, 1, 2, ... in turn.

        Raises:
            ValueError: y does not fit.
        """
        n = whole_number("n", n, least=0)
        labels = torch.arange(n) % self.classes if y is None else _tensor(y)
        labels = labels.expand(n) if labels.ndim == 0 else labels
        return super().sample(n, generator, y=labels, pixels=pixels)


class CompletionVAE(ConditionalVAE):
    """A VAE that is shown a part y of the image, and draws the rest x.

    The prior p(z | y) is a network with one hidden layer; Sohn, Lee and Yan (2015), section 4, who
    call x what is shown and y what is drawn (chapter 11). `vae_book.images.quadrants` cuts the
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
        latent = whole_number("latent", latent, most=MOST)
        hidden = whole_number("hidden", hidden, most=MOST)
        seen_shape = whole_numbers("seen_shape", seen_shape)
        if len(seen_shape) != 3:
            raise ValueError(f"seen_shape: expected (channels, height, width), got {seen_shape}")
        seen = math.prod(seen_shape)
        network = nn.Sequential(nn.Linear(seen, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        super().__init__(seen, latent, hidden, image_shape, likelihood, network)
        self.seen_shape = seen_shape

    def told(self, data: Images) -> Tensor | None:
        """The pixels that are shown of the images."""
        return data.told

    def embed(self, y: Tensor | None) -> Float[Tensor, "... seen"]:
        """The pixels that are shown, in a row."""
        wanted = self.seen_shape
        if not isinstance(y, Tensor) or not y.is_floating_point() or tuple(y.shape[-3:]) != wanted:
            found = f"{tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                "y: expected the part that is seen of each image, shape "
                f"(..., {', '.join(map(str, wanted))}), got {found}"
            )
        return y.flatten(-3).to(self.weight.dtype)
