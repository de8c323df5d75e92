"""Measuring a trained model on images it has not seen (used in chapter 8)."""

from dataclasses import asdict, dataclass

import torch

from vae_book.bounds import elbo
from vae_book.data import Images
from vae_book.device import describe, seeded
from vae_book.models import VAE

CHUNK = 500  # images at a time: decoder outputs of this many rows stay in the processor's cache


@dataclass(frozen=True)
class Protocol:
    """What a number was measured on and how; numbers of different protocol do not compare.

    Attributes:
        quantity: what was measured, such as ``negative ELBO, K=1``.
        source, split, n_images: the data.
        pixels: ``grayscale`` or ``binary``.
        seed: of the noise.
        device: where it ran.
    """

    quantity: str
    source: str
    split: str
    n_images: int
    pixels: str
    seed: int
    device: str


@dataclass(frozen=True)
class Bound:
    """The negative ELBO, averaged over images, in nats; lower is better.

    Attributes:
        value: the negative ELBO: ``reconstruction + kl``.
        standard_error: of ``value`` as an estimate for images like these.
        reconstruction: the average of -E_q[log p(x | z)].
        kl: the average of KL(q(z | x) || p(z)).
        protocol: how it was measured.
    """

    value: float
    standard_error: float
    reconstruction: float
    kl: float
    protocol: Protocol

    def __float__(self) -> float:
        return self.value

    def as_dict(self) -> dict:
        """Plain numbers and strings, for JSON."""
        return asdict(self)


@torch.no_grad()
def test_bound(model: VAE, data: Images, *, n_samples: int = 1, seed: int = 0) -> Bound:
    """The negative ELBO of held-out images, equation ``eq-elbo``.

    Args:
        model: the VAE.
        data: the images, for instance ``load_mnist("test")``.
        n_samples: draws of z for each image.
        seed: of those draws.

    Raises:
        ValueError: there are fewer than two images.
    """
    if len(data) < 2:
        raise ValueError(f"data: expected 2 images or more for a standard error, got {len(data)}")
    generator = seeded(seed)
    terms = [
        elbo(model, x, n_samples=n_samples, generator=generator) for x in data.images.split(CHUNK)
    ]
    reconstruction = -torch.cat([term.log_likelihood for term in terms]).cpu().double()
    kl = torch.cat([term.kl for term in terms]).cpu().double()
    per_image = reconstruction + kl
    binary = bool(((data.images == 0) | (data.images == 1)).all())
    return Bound(
        value=per_image.mean().item(),
        standard_error=(per_image.std() / len(data) ** 0.5).item(),
        reconstruction=reconstruction.mean().item(),
        kl=kl.mean().item(),
        protocol=Protocol(
            quantity=f"negative ELBO, K={n_samples}",
            source=data.source,
            split=data.split,
            n_images=len(data),
            pixels="binary" if binary else "grayscale",
            seed=seed,
            device=describe(data.images.device),
        ),
    )


test_bound.__test__ = False  # type: ignore[attr-defined]  # its name would have pytest collect it
