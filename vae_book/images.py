"""Images with their labels as one value, and what is done to them (explained in chapters 6, 8, 11).

`vae_book.data` loads them, `vae_book.folders` reads them from pictures.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from vae_book.checks import is_trusted, numeric, real_number
from vae_book.device import check_generator, sent


class DataError(RuntimeError):
    """Data that is missing or damaged; the message says how to go on."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images, what is told about them, and where they come from.

    ``data[rows]`` are some of them, labels and ``told`` taken along: a slice, a list or tensor of
    places, a mask of booleans, or a single place, which gives one image (n = 1).

    Attributes:
        images: finite, of a floating-point type, shape (n, channels, height, width); levels in
            [0, 1] as loaded.
        labels: the class of each image, whole numbers from 0 on, shape (n,); kept as int64.
        source: ``bundled``, ``full``, ``fashion``, ``kmnist`` or a folder.
        split: ``train`` or ``test``.
        classes: the names of the classes, by label; empty where they have none.
        told: what a conditional model is told about each image beside its label, shape (n, ...):
            after `quadrants`, the quarters that are seen.

    Raises:
        ValueError: shapes, lengths or devices do not fit each other, or values are not what is
            said above. Whole numbers are no images, because 1 may be white or almost black: only
            the caller knows what to divide by.
    """

    images: Float[Tensor, "n channels height width"]
    labels: Integer[Tensor, " n"]
    source: str
    split: str
    classes: tuple[str, ...] = ()
    told: Tensor | None = None

    def __post_init__(self) -> None:
        images, labels, told = self.images, self.labels, self.told
        if not isinstance(images, Tensor) or images.ndim != 4 or 0 in images.shape[1:]:
            raise ValueError(
                "images: expected a tensor of shape (n, channels, height, width), got "
                f"{_described(images)}"
            )
        if not images.is_floating_point():
            raise ValueError(
                f"images: expected floating-point levels in [0, 1], got {images.dtype}; divide "
                "by the level of white first, as in images.float() / 255"
            )
        for name, rows in {"labels": labels, "told": labels if told is None else told}.items():
            fits = isinstance(rows, Tensor) and rows.shape[:1] == images.shape[:1]
            if not fits or rows.device != images.device:
                raise ValueError(
                    f"{name}: expected a tensor with a row for each of {len(images)} images on "
                    f"{images.device}, got {_described(rows)}"
                )
        if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                f"labels: expected whole numbers of shape (n,), got {_described(labels)}"
            )
        object.__setattr__(self, "labels", labels.long())
        if not images.is_meta and not bool(images.isfinite().all()):
            raise ValueError("images: expected finite numbers, got infinity or NaN")
        if told is not None and told.is_floating_point() and not bool(told.isfinite().all()):
            raise ValueError("told: expected finite numbers, got infinity or NaN")
        _within("labels", self.labels, len(self.classes) - 1.0 if self.classes else torch.inf)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> "Images":
        try:
            if isinstance(rows, list | tuple):
                rows = torch.tensor(rows) if rows else torch.empty(0, dtype=torch.int64)
            places = torch.atleast_1d(torch.arange(len(self), device=self.labels.device)[rows])
        except (IndexError, TypeError, ValueError, RuntimeError):
            places = torch.empty(0, 0)
        if places.ndim != 1:
            # By an IndexError Python knows where the images end.
            raise IndexError(
                f"rows: expected places among {len(self)} images, or one boolean for each of them, "
                f"got {rows!r:.60}"
            )
        told = None if self.told is None else self.told[places]
        return replace(self, images=self.images[places], labels=self.labels[places], told=told)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width: the ``image_shape`` of a model of these images."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def with_images(self, images: Tensor) -> "Images":
        """The same labels and source with other images, for instance binary ones."""
        return replace(self, images=images)


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"


def _within(name: str, values: Tensor, highest: float) -> None:
    """Raise ValueError unless all values lie between 0 and the highest; NaN does not."""
    if values.numel() and not values.is_meta:
        low, high = (value.item() for value in values.aminmax())
        if not (low >= 0 and high <= highest):
            raise ValueError(
                f"{name}: expected values between 0 and {highest:g}, got {low:.4g} to {high:.4g}"
            )


@numeric
def binarize(
    images: Float[Tensor, "*shape"], generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """Binary images: each pixel is on with a probability equal to its gray level.

    By equation ``eq-binarized`` (chapter 6) the gray levels' cross-entropy is the average of the
    Bernoulli log-probability over such images.

    Args:
        images: gray levels in [0, 1], any shape.
        generator: a CPU generator (see `vae_book.device.seeded`); None takes torch's global one.

    Raises:
        ValueError: a value lies outside [0, 1].
    """
    if not is_trusted():
        _within("images", images, 1.0)
    check_generator(generator)
    uniform = sent(torch.rand(images.shape, generator=generator, device="cpu"), images.device)
    return (uniform < images).to(images.dtype)


def quadrants(data: Images, seen: int = 1) -> Images:
    """Images cut into quarters: some are seen, and the others have to be found (chapter 11).

    The quarters lie one behind the other, as the channels of small images, in this order: bottom
    left, top left, top right, bottom right. The task is that of Sohn, Lee and Yan (2015), section
    5.1, the order that of Souza (2020). Of images with c channels each quarter has c.

    Args:
        data: images of even height and width.
        seen: how many of the quarters are seen, 1, 2 or 3.

    Returns:
        The quarters to find as ``images``, shape (n, (4 - seen) c, height / 2, width / 2), and
        those that are seen as ``told``, shape (n, seen c, height / 2, width / 2).

    Raises:
        ValueError: ``seen`` is not 1, 2 or 3, or the height or width is odd.
    """
    channels, height, width = data.shape
    if real_number("seen", seen) not in (1, 2, 3):
        raise ValueError(f"seen: expected 1, 2 or 3 quarters, got {seen}")
    if height % 2 or width % 2:
        raise ValueError(
            f"data: expected images of even height and width, got {tuple(data.images.shape)}"
        )
    top, bottom = data.images.chunk(2, dim=2)
    (top_left, top_right), (bottom_left, bottom_right) = top.chunk(2, 3), bottom.chunk(2, 3)
    parts = torch.cat([bottom_left, top_left, top_right, bottom_right], dim=1)
    told, images = parts.tensor_split([int(seen) * channels], dim=1)
    return replace(data, images=images, told=told)


@numeric
def whole(
    seen: Float[Tensor, "*batch seen h w"], rest: Float[Tensor, "*batch rest h w"]
) -> Float[Tensor, "*batch channels H W"]:
    """Put the quarters of `quadrants` together again.

    Raises:
        ValueError: there are not four of them, of as many channels each.
    """
    if seen.ndim < 3 or rest.ndim < 3:
        raise ValueError(
            "seen and rest: expected images of shape (..., channels, height, width), got "
            f"{tuple(seen.shape)} and {tuple(rest.shape)}"
        )
    parts = torch.cat([seen, rest], dim=-3)
    channels, left_over = divmod(parts.shape[-3], 4)
    if left_over or not channels:
        raise ValueError(
            "seen and rest: expected four quarters, those that are seen and the others, got "
            f"{seen.shape[-3]} and {rest.shape[-3]} channels"
        )
    bottom_left, top_left, top_right, bottom_right = parts.split(channels, dim=-3)
    top = torch.cat([top_left, top_right], dim=-1)
    bottom = torch.cat([bottom_left, bottom_right], dim=-1)
    return torch.cat([top, bottom], dim=-2)
