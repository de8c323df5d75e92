"""Images as a file whose length is the bound: bits-back coding with a VAE.

An entropy coder turns a symbol of probability p into -log2 p bits. `Stack` is one, by asymmetric
numeral systems: what is pushed last is popped first. Popping from random bits *draws* a symbol, and
pushing that symbol gives the bits back. `BitsBack` codes an image so: pop z by q(z | x), push x by
p(x | z), push z by p(z). The stack grows by -log2 p(x | z) - log2 p(z) + log2 q(z | x) bits, which
is on average the negative ELBO of the image; `compress` and `decompress` do it for many.

Symbols are whole numbers 0, 1, ...: of a pixel its level, of a unit of z its bin. A distribution
over n of them is a table of *counts*, n + 1 rising whole numbers from 0 to `TOTAL`, see `Counts`.
"""

import bz2
import copy
import gzip
import math
import random
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from scipy.special import ndtri
from torch import Tensor

from vae_book.checks import numeric, real_tensor, whole_number, whole_numbers
from vae_book.distributions import DiagonalGaussian, Distribution
from vae_book.models import VAE

PRECISION = 24  # bits of a probability
TOTAL = 1 << PRECISION
WORD = 32  # bits that leave the state at a time
LOWEST = 1 << WORD  # the state is at least this, and less than 2^64


@runtime_checkable
class Counts(Protocol):
    """A distribution in whole numbers: symbol k has probability (c[k + 1] - c[k]) / TOTAL.

    Rising numbers c[0] = 0, ..., c[n] = TOTAL: a list, a range, or anything that has a length and
    gives them by index.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, k: int, /) -> int: ...


class CodingError(ValueError):
    """A stack that holds something else than what is asked of it."""


class Stack:
    """Symbols as one large number, the last one on top: range asymmetric numeral systems (rANS).

    To push a symbol of probability p divides the number by p, so it becomes -log2 p bits longer.
    Only the ``state`` takes part; whatever makes it too long waits in ``words``. Duda (2009),
    "Asymmetric numeral systems", arXiv:0902.0271; in this form Duda (2013), arXiv:1311.2540.

    Args:
        state: the number, from `LOWEST` to 2^64.
        words: numbers below 2^32, of which the last is the next to come back.
        seed: of random words, which are drawn when more is popped than was pushed; None makes
            that an error.

    Attributes:
        drawn: the random words so far.

    Raises:
        ValueError: the state or a word is out of range.
    """

    def __init__(
        self, state: int = LOWEST, words: Sequence[int] = (), seed: int | None = None
    ) -> None:
        state = whole_number("state", state, least=0)
        if not LOWEST <= state < LOWEST << WORD:
            raise ValueError(f"state: expected a number from 2^{WORD} to 2^{2 * WORD}, got {state}")
        self.state, self.words = state, list(whole_numbers("words", words, least=0))
        if max(self.words, default=0) >= LOWEST:
            raise ValueError(f"words: expected numbers below 2^{WORD}, got {max(self.words)}")
        seed = None if seed is None else whole_number("seed", seed, least=0)
        self.noise = None if seed is None else random.Random(seed)
        self.drawn: list[int] = []

    @classmethod
    def random(cls, seed: int) -> "Stack":
        """A stack of nothing but random bits: `WORD` of them, and as many more as are popped."""
        stack = cls(seed=whole_number("seed", seed, least=0))
        stack.state += stack.random_word()
        return stack

    @property
    def bits(self) -> float:
        """The length of the number in bits."""
        return math.log2(self.state) + WORD * len(self.words)

    def push(self, symbols: Sequence[int], tables: Sequence[Counts]) -> None:
        """Put symbols on the stack, the first of them on top, each coded by its own table.

        Raises:
            CodingError: a table gives a symbol no probability, or there is not one table for each
                symbol. The stack is then as it was.
        """
        try:
            slots = [(c[k], c[k + 1] - c[k], k) for k, c in zip(symbols, tables, strict=True)]
        except (TypeError, IndexError, ValueError) as error:
            raise CodingError(
                f"symbols and tables: expected whole numbers and a table for each ({error})"
            ) from error
        for _, width, symbol in slots:
            if width < 1 or symbol < 0:
                raise CodingError(f"symbols: expected probabilities above 0, got {symbol} with 0")
        for start, width, _ in reversed(slots):
            if self.state >= width << (2 * WORD - PRECISION):  # it would exceed 2^64
                self.words.append(self.state % LOWEST)
                self.state >>= WORD
            quotient, rest = divmod(self.state, width)
            self.state = quotient * TOTAL + start + rest

    def pop(self, tables: Sequence[Counts]) -> list[int]:
        """Take symbols from the stack, one by each table, in the order in which they were pushed.

        It undoes `push`. From random bits it draws symbols, each with its probability.

        Raises:
            CodingError: the stack is empty, and was made without a seed, or a table is none. The
                stack is then as it was.
        """
        # The state and the words are changed when all is popped.
        symbols, state, left = [], self.state, len(self.words)
        drawn, noise = len(self.drawn), self.noise and self.noise.getstate()
        try:
            for counts in tables:
                quotient, slot = divmod(state, TOTAL)
                symbol = bisect_right(counts, slot) - 1
                start, width = counts[symbol], counts[symbol + 1] - counts[symbol]
                state = quotient * width + slot - start
                if state < LOWEST:
                    left -= 1
                    word = self.words[left] if left >= 0 else self.random_word()
                    state = state << WORD | word
                symbols.append(symbol)
        except Exception as error:
            del self.drawn[drawn:]
            if self.noise and noise:
                self.noise.setstate(noise)
            if not isinstance(error, TypeError | IndexError):
                raise
            raise CodingError(
                f"tables: expected numbers that rise from 0 to {TOTAL} for each symbol ({error})"
            ) from error
        self.state = state
        del self.words[max(left, 0) :]
        return symbols

    def random_word(self) -> int:
        """One more word of random bits.

        Raises:
            CodingError: the stack was made without a seed.
        """
        if self.noise is None:
            raise CodingError("stack: expected one more word, got an empty stack")
        self.drawn.append(self.noise.getrandbits(WORD))
        return self.drawn[-1]


# From probabilities to counts ---------------------------------------------------------------------


def cumulative_counts(masses: Float[np.ndarray, "rows n"]) -> list[list[int]]:
    """Probabilities as tables of counts, one for each row.

    Each symbol gets one of the `TOTAL` slots in advance, since what is improbable has to be coded
    as well; the others are shared out by rounding the distribution function.

    Args:
        masses: probabilities, or other numbers that are not negative: a row is divided by its sum.

    Raises:
        ValueError: a number is negative or not finite, or a row has no positive sum.
    """
    masses = real_tensor("masses", masses, torch.float64).detach().numpy()
    fits = masses.ndim == 2 and masses.size and np.isfinite(masses).all() and (masses >= 0).all()
    if not fits or not (masses.max(axis=1) > 0).all():
        raise ValueError(
            "masses: expected rows of numbers that are not negative, with a positive sum, got "
            f"{masses!r:.60}"
        )
    n, largest = masses.shape[1], masses.max(axis=1, keepdims=True)
    # A sum may exceed what a float holds. Other rows keep their bits: files depend on them.
    cdf = np.cumsum(masses / np.where(largest > 1e300, largest, 1), axis=1)
    ends = np.rint(cdf / cdf[:, -1:] * (TOTAL - n)).astype(np.int64) + np.arange(1, n + 1)
    return np.pad(ends, ((0, 0), (1, 0))).tolist()


class GaussianCounts:
    """The counts of N(mu, sigma^2) over bins of the line, each computed when it is asked for.

    A search among thousands of bins needs a dozen of them. No bin gets a slot in advance: bins far
    from mu would be drawn now and then, and cost much. One without a slot is never drawn, and only
    what has been drawn from q(z | x) is pushed by it.

    Args:
        mu, sigma: the mean and the standard deviation.
        edges: the n + 1 ends of the bins, from minus infinity to infinity.
    """

    def __init__(self, mu: float, sigma: float, edges: Sequence[float]) -> None:
        self.mu, self.scale, self.edges = mu, sigma * math.sqrt(2), edges

    def __len__(self) -> int:
        return len(self.edges)

    def __getitem__(self, k: int, /) -> int:
        cdf = 0.5 * math.erfc((self.mu - self.edges[k]) / self.scale)
        return round(cdf * TOTAL)


# One image ----------------------------------------------------------------------------------------


class BitsBack:
    """Codes one image at a time with a VAE; Townsend, Bird and Barber (2019), arXiv:1901.04866.

    Each unit of z is cut into bins to which p(z) gives equal probability, and takes the median of
    its bin as its value. The network runs in double precision on the CPU, image by image: both
    directions need the same numbers to the last bit.

    The z of an image is drawn from bits that the image before it left on the stack, and topmost
    is the z of that one. Those bits are random only if the z of many images are spread like p(z).
    `pad` makes them so: it permutes the bins, by pseudo-random numbers that both directions know.

    Args:
        model: the VAE, which is copied.
        levels: how many values a pixel has: 0, 1 / (levels - 1), ..., 1.
        latent_bits: the binary logarithm of the number of bins.
        seed: of the permutations.
    """

    def __init__(self, model: VAE, levels: int, latent_bits: int, seed: int = 0) -> None:
        self.latent_bits, self.seed = latent_bits, seed
        self.model = copy.deepcopy(model).cpu().double().eval()
        self.bins = 1 << latent_bits
        self.edges: list[float] = ndtri(np.arange(self.bins + 1) / self.bins).tolist()
        self.medians = torch.from_numpy(ndtri((np.arange(self.bins) + 0.5) / self.bins))
        self.gray = torch.arange(levels, dtype=torch.float64) / (levels - 1)

    def push(self, stack: Stack, i: int, symbols: Sequence[int], y: Tensor | None) -> None:
        """Put image number i on the stack: its levels, pixel by pixel."""
        z = stack.pop(self.posterior(symbols, y))
        stack.push(symbols, self.likelihood(z, y))
        stack.push(self.pad(i, z), self.prior())

    def pop(self, stack: Stack, i: int, y: Tensor | None) -> list[int]:
        """Take image number i from the stack: the same steps, each undone, the last one first."""
        z = self.pad(i, stack.pop(self.prior()))
        symbols = stack.pop(self.likelihood(z, y))
        stack.push(z, self.posterior(symbols, y))
        return symbols

    def pad(self, i: int, z: Sequence[int]) -> list[int]:
        """The bins in another order, a new one for each unit and image; twice, it undoes itself."""
        noise = random.Random(f"{self.seed}, {i}")  # close numbers could give the same stream
        return [k ^ noise.getrandbits(self.latent_bits) for k in z]

    def prior(self) -> Sequence[Counts]:
        """p(z) over the bins of each unit: all are equally probable."""
        return [range(0, TOTAL + 1, TOTAL // self.bins)] * self.model.latent

    def posterior(self, symbols: Sequence[int], y: Tensor | None) -> Sequence[Counts]:
        """q(z | x) over the bins of each unit.

        Raises:
            ValueError: q(z | x) is not a Gaussian, or not finite.
        """
        x = self.gray[torch.tensor(symbols)].reshape(1, *self.model.image_shape)
        p_z, q_z = _gaussian("prior", self.model.prior(y)), self.model.encode(x, y)
        mu = ((_gaussian("encode", q_z).mu - p_z.mu) / p_z.sigma).flatten().tolist()
        sigma = (q_z.sigma / p_z.sigma).flatten().tolist()
        return [GaussianCounts(m, s, self.edges) for m, s in zip(mu, sigma, strict=True)]

    def likelihood(self, z: Sequence[int], y: Tensor | None) -> Sequence[Counts]:
        """p(x | z) over the levels of each pixel, at the medians of the bins.

        Raises:
            ValueError: it does not give probabilities to these levels.
        """
        p_z = _gaussian("prior", self.model.prior(y))
        p_x = self.model.decode((p_z.mu + p_z.sigma * self.medians[z]).reshape(1, -1), y)
        shape = len(self.gray), *self.model.image_shape
        each_level = self.gray.reshape(-1, 1, 1, 1).expand(shape)
        params = p_x.params.expand(len(self.gray), *p_x.params.shape[1:])
        masses = p_x.likelihood.pixel_log_prob(each_level, params).exp()
        off = (masses.sum(0) - 1).abs().max().item()
        if not off < 1e-6:  # NaN is not
            raise ValueError(
                f"model: expected a likelihood that gives the {len(masses)} levels of a pixel "
                f"probabilities, got a sum that is off from 1 by {off:.3g}. Bernoulli() fits "
                "levels=2; a density cannot be coded"
            )
        return cumulative_counts(masses.flatten(1).T.numpy())


def _gaussian(name: str, distribution: Distribution) -> DiagonalGaussian:
    """The distribution, if its bins of equal probability are known."""
    if not isinstance(distribution, DiagonalGaussian):
        raise ValueError(
            f"model: expected {name} to give a DiagonalGaussian, got "
            f"{type(distribution).__name__}, whose quantiles are not known"
        )
    sigma = distribution.sigma
    if not bool((distribution.mu.isfinite() & sigma.isfinite()).all()):
        raise ValueError(f"model: expected {name} to give finite numbers, got infinity or NaN")
    if not bool((sigma > 0).all()):
        raise ValueError(
            f"model: expected {name} to give standard deviations above 0, got one that is too "
            f"small for a float, of log-variance {distribution.log_var.min().item():.4g}"
        )
    return distribution


# Many images, and the file ------------------------------------------------------------------------

HEADER = struct.Struct("<4sHBIIIQ")
MAGIC = b"VAE1"
CHECKSUM = struct.Struct("<I")


class Facts(NamedTuple):
    """What a file says about itself.

    Attributes:
        levels, latent_bits, seed: with what `compress` made it.
        n_images: how many images it holds.
        initial_bits: the random bits at the bottom of the stack, from which the first z is drawn.
            They could have been another message, so they do not count as part of this one.
        file_bits: the length of the whole file.
    """

    levels: int
    latent_bits: int
    seed: int
    n_images: int
    initial_bits: int
    file_bits: int

    @property
    def bits_per_image(self) -> float:
        """``file_bits`` without ``initial_bits``, by the number of images."""
        return (self.file_bits - self.initial_bits) / self.n_images


@torch.no_grad()
@numeric
def compress(
    model: VAE,
    images: Float[Tensor, "n channels height width"],
    y: Tensor | None = None,
    *,
    levels: int = 2,
    latent_bits: int = 12,
    seed: int = 0,
) -> bytes:
    """A file from which `decompress` makes the images again, bit for bit, with the same model.

    Its length, without the initial bits (see `Facts`), is that of the images' negative ELBO in
    bits, equation ``eq-bits-back`` (chapter 13), on average over the draws of z, and 23 to 27 bytes
    more. Townsend, Bird and Barber (2019).

    Args:
        model: the VAE. Its likelihood has to give probabilities to the levels, as `Bernoulli` does
            to two; p(z) and q(z | x) have to be diagonal Gaussians.
        images: the images, whose pixels are 0, 1 / (levels - 1), ..., 1.
        y: what the model is told about each image, for one that is conditioned on it; it does not
            become part of the file.
        levels: how many values a pixel has, from 2 to 256.
        latent_bits: the binary logarithm of the number of bins for each unit of z, from 1 to 16.
            The bins should be narrower than q(z | x); more of them cost initial bits only.
        seed: of the initial bits, and of permutations of the bins.

    Raises:
        ValueError: the images, y or the model do not fit, or a number is out of range.
    """
    levels = _in_range("levels", levels, 2, 256)
    latent_bits = _in_range("latent_bits", latent_bits, 1, 16)
    seed = _in_range("seed", seed, 0, 2**32 - 1)
    model.check_images(images)
    symbols = _as_levels(images, levels).tolist()
    told = _told(y, len(symbols))
    stack, coder = Stack.random(seed), BitsBack(model, levels, latent_bits, seed)
    with _one_thread():
        for i in reversed(range(len(symbols))):  # so that the first is popped first
            coder.push(stack, i, symbols[i], told[i])
    return _write(stack, levels, latent_bits, seed, len(symbols))


@torch.no_grad()
def decompress(
    model: VAE, data: bytes, y: Tensor | None = None
) -> Float[Tensor, "n channels height width"]:
    """The images in a file that `compress` made, on the CPU.

    At the end the stack has to hold the initial bits again, all of them. It would not if the model
    were another one, or if this processor rounded otherwise than the one that wrote the file.

    Args:
        model: the model that compressed them.
        data: the file.
        y: what the model was told.

    Raises:
        ValueError: the file is damaged or not one of `compress`, or y or the model is another.
    """
    facts = file_facts(data)
    told, stack = None if y is None else _told(y, facts.n_images), _read(data)
    coder = BitsBack(model, facts.levels, facts.latent_bits, facts.seed)
    try:
        with _one_thread():
            each = range(facts.n_images)
            symbols = [coder.pop(stack, i, None if told is None else told[i]) for i in each]
        _check_initial_bits(stack, facts)
    except CodingError as error:
        raise ValueError(
            "model: expected the one that compressed these images, told the same, on a machine "
            f"that rounds as this one does; the initial bits did not come back ({error})"
        ) from error
    return coder.gray.float()[torch.tensor(symbols)].reshape(-1, *model.image_shape)


def file_facts(data: bytes) -> Facts:
    """What a file of `compress` says about itself.

    Raises:
        ValueError: the file is damaged, or `compress` did not make it.
    """
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"data: expected bytes, got {type(data).__name__}")
    content, check = data[: -CHECKSUM.size], data[-CHECKSUM.size :]
    if not data.startswith(MAGIC):
        raise ValueError(f"data: expected a file of compress, got one that begins {data[:4]!r}")
    whole_words = (len(content) - HEADER.size) % (WORD // 8) == 0
    if len(content) < HEADER.size or not whole_words or CHECKSUM.pack(zlib.crc32(content)) != check:
        raise ValueError(f"data: expected an intact file, got {len(data)} bytes that are damaged")
    _, levels, latent_bits, seed, n_images, drawn, _ = HEADER.unpack_from(content)
    if not (2 <= levels <= 256 and 1 <= latent_bits <= 16 and n_images and drawn):
        raise ValueError(
            f"data: expected a file of compress, got {levels} levels, {latent_bits} latent bits, "
            f"{n_images} images and {drawn} initial words"
        )
    return Facts(levels, latent_bits, seed, n_images, WORD * drawn, 8 * len(data))


def _write(stack: Stack, levels: int, latent_bits: int, seed: int, n_images: int) -> bytes:
    """Header, words, and a checksum of both."""
    drawn = len(stack.drawn)
    header = HEADER.pack(MAGIC, levels, latent_bits, seed, n_images, drawn, stack.state)
    content = header + struct.pack(f"<{len(stack.words)}I", *stack.words)
    return content + CHECKSUM.pack(zlib.crc32(content))


def _read(data: bytes) -> Stack:
    """The stack in an intact file."""
    facts, words = HEADER.unpack_from(data), data[HEADER.size : -CHECKSUM.size]
    return Stack(facts[-1], struct.unpack(f"<{len(words) * 8 // WORD}I", words))


def _check_initial_bits(stack: Stack, facts: Facts) -> None:
    """Raise CodingError unless the stack holds the initial bits again, and nothing else."""
    initial = Stack.random(facts.seed)
    if len(stack.words) != facts.initial_bits // WORD - 1:
        raise CodingError(f"stack: expected the initial bits, got {len(stack.words)} words")
    below = [initial.random_word() for _ in range(facts.initial_bits // WORD - 1)]
    # What was drawn first lay on top of what was drawn later.
    if (stack.state, stack.words) != (initial.state, below[::-1]):
        raise CodingError("stack: expected the initial bits, got others")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads would add in another order, and round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_range(name: str, value: int, least: int, most: int) -> int:
    value = whole_number(name, value, least)
    if value > most:
        raise ValueError(f"{name}: expected a whole number from {least} to {most}, got {value}")
    return value


def _as_levels(images: Tensor, levels: int) -> Int[Tensor, "n pixels"]:
    """The levels of the pixels, one row for each image."""
    if images.ndim != 4 or len(images) < 1:
        raise ValueError(
            "images: expected one or more, shape (n, channels, height, width), got "
            f"{tuple(images.shape)}"
        )
    images = images.cpu().float()
    symbols = (images.nan_to_num() * (levels - 1)).round().clamp(0, levels - 1)
    other = images[images != symbols / (levels - 1)]
    if other.numel():
        values = "0 or 1" if levels == 2 else f"0, 1/{levels - 1}, ..., 1"
        raise ValueError(
            f"images: expected pixels that are {values}, got {other[0].item():.4g}. Gray levels "
            "become binary by `binarize`, or are coded by a likelihood that gives probabilities to "
            "levels=256"
        )
    return symbols.long().flatten(1)


def _told(y: Tensor | None, n: int) -> Sequence[Tensor | None]:
    """What is told about each of the images, as a batch of one."""
    if y is None:
        return [None] * n
    if not isinstance(y, Tensor) or y.ndim < 1:
        raise ValueError(f"y: expected a tensor with a row for each image, got {y!r:.60}")
    if len(y) != n:
        raise ValueError(f"y: expected one for each of the {n} images, got {len(y)}")
    return y.cpu().split(1)


# Yardsticks ---------------------------------------------------------------------------------------


@numeric
def yardsticks(
    train: Float[Tensor, "m channels height width"],
    images: Float[Tensor, "n channels height width"],
    *,
    levels: int = 2,
) -> dict[str, float]:
    """Bits for each image without any z: gzip, bz2, PNG, and a histogram of each pixel.

    The compressors get all images in one file. gzip and bz2 take one byte a pixel, or eight pixels
    a byte if there are two levels, whichever is shorter; PNG takes all maps one below the other.

    Args:
        train: the images whose levels are counted for the histogram, with one added to each count.
        images: those to code.
        levels: how many values a pixel has, from 2 to 256.

    Raises:
        ValueError: a pixel has another value, the images differ in shape, or there are none.
    """
    levels = _in_range("levels", levels, 2, 256)
    if train.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"images: expected the shape of those to count, {tuple(train.shape[1:])}, got "
            f"{tuple(images.shape[1:])}"
        )
    counted, coded = (_as_levels(each, levels).numpy().astype(np.uint8) for each in (train, images))
    files = [coded.tobytes(), np.packbits(coded).tobytes()] if levels == 2 else [coded.tobytes()]
    lengths = {
        "gzip": min(len(gzip.compress(file, mtime=0)) for file in files),
        "bz2": min(len(bz2.compress(file)) for file in files),
        "PNG": _png_length(coded.reshape(-1, images.shape[-1]), levels),
    }
    bits = {name: 8 * length / len(images) for name, length in lengths.items()}
    return {**bits, "histogram": _histogram_bits(counted, coded, levels)}


def _png_length(picture: np.ndarray, levels: int) -> int:
    file = BytesIO()
    Image.fromarray(picture.astype(bool) if levels == 2 else picture).save(
        file, format="PNG", optimize=True
    )
    return len(file.getvalue())


def _histogram_bits(counted: np.ndarray, coded: np.ndarray, levels: int) -> float:
    """-log2 of the share of each level, counted pixel by pixel; the average over coded images."""
    pixels = counted.shape[1]
    cell = np.arange(pixels) * levels
    counts = 1 + np.bincount((cell + counted).ravel(), minlength=pixels * levels)
    shares = counts[cell + coded] / (len(counted) + levels)
    return float(-np.log2(shares).sum(axis=1).mean())
