"""Measuring a trained model on images it has not seen (used in chapters 8 and 11)."""

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vae_book.bayes import Posterior, enumerate_posterior
from vae_book.bounds import elbo
from vae_book.data import Images
from vae_book.device import describe, seeded, standard_normal
from vae_book.models import CVAE, VAE

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
    """The negative ELBO of held-out images, equation ``eq-elbo``; given their labels for a CVAE.

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
    batches = zip(data.images.split(CHUNK), data.labels.split(CHUNK), strict=True)
    terms = [
        elbo(
            model,
            x,
            y=y if model.conditional else None,
            n_samples=n_samples,
            generator=generator,
        )
        for x, y in batches
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
            quantity=f"negative ELBO{' given the label' * model.conditional}, K={n_samples}",
            source=data.source,
            split=data.split,
            n_images=len(data),
            pixels="binary" if binary else "grayscale",
            seed=seed,
            device=describe(data.images.device),
        ),
    )


test_bound.__test__ = False  # type: ignore[attr-defined]  # its name would have pytest collect it


@torch.no_grad()
def class_log_bounds(
    model: VAE,
    images: Float[Tensor, "n channels height width"],
    *,
    n_samples: int = 1,
    seed: int = 0,
) -> Float[Tensor, "n classes"]:
    """A lower bound on log p(x | y) of each image with every label y, in nats.

    Equation ``eq-conditional-elbo`` (chapter 11). All labels get the same noise, so that they
    differ by the label and not by luck.

    Args:
        model: the conditional VAE.
        images: the images; their labels are not asked for.
        n_samples: draws of z for each image.
        seed: of those draws.

    Raises:
        ValueError: the model takes no labels, or n_samples is not positive.
    """
    if not isinstance(model, CVAE):
        raise ValueError(f"model: expected a CVAE, got a {type(model).__name__}, without labels")
    if n_samples < 1:
        raise ValueError(f"n_samples: expected 1 or more, got {n_samples}")
    generator = seeded(seed)
    rows = []
    for x in images.split(CHUNK):
        eps = standard_normal((n_samples, len(x), model.latent), generator, x.device)
        labels = (torch.full((len(x),), y, device=x.device) for y in range(model.classes))
        rows.append(torch.stack([elbo(model, x, eps, y=y).value for y in labels], dim=-1))
    return torch.cat(rows)


def class_posterior(log_bounds: Float[Tensor, "*batch classes"]) -> Posterior:
    """Bayes' rule for the label, with bounds in place of log p(x | y) and all labels as frequent.

    Equations ``eq-class-posterior`` (its ``log_posterior``, log p(y | x) if the bounds touch) and
    ``eq-label-mixture`` (its ``log_evidence``, a lower bound on log p(x)) of chapter 11.

    Args:
        log_bounds: a bound on log p(x | y) for each label, as from `class_log_bounds`.

    Raises:
        ValueError: there are no labels, a bound is NaN, or no label explains an image.
    """
    classes = log_bounds.shape[-1]
    if classes < 1:
        raise ValueError(
            f"log_bounds: expected one label or more, got shape {tuple(log_bounds.shape)}"
        )
    return enumerate_posterior(log_bounds.new_full((classes,), -math.log(classes)), log_bounds)
