"""One training loop for a CPU, a GPU and several processes (chapter 8)."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vae_book import parallel
from vae_book.bounds import condition, elbo_terms
from vae_book.checkpoints import architecture, read_checkpoint, write_checkpoint
from vae_book.data import Images, binarize
from vae_book.device import describe, seeded, standard_normal
from vae_book.evaluation import test_bound
from vae_book.models import VAE
from vae_book.objectives import Objective


@dataclass
class History:
    """What `fit` measured, one entry for each epoch, in nats for one image.

    Attributes:
        reconstruction: -E_q[log p(x | z)] on the training images, averaged while they were used.
        kl: KL(q(z | x) || p(z)), likewise.
        held_out: the negative ELBO of the held-out images after the epoch; empty without them.
        seconds: how long the epoch's training took.
        device: where it ran.
    """

    reconstruction: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    device: str = ""

    @property
    def loss(self) -> list[float]:
        """The negative ELBO of each epoch: reconstruction + KL."""
        return [a + b for a, b in zip(self.reconstruction, self.kl, strict=True)]

    @property
    def epochs(self) -> int:
        """How many epochs have been trained."""
        return len(self.kl)

    def rows(self) -> list[tuple[float, ...]]:
        """A row for each epoch: its number, reconstruction, KL, loss and, if measured, held_out."""
        columns = [self.reconstruction, self.kl, self.loss]
        columns += [self.held_out] if self.held_out else []
        return list(zip(range(1, self.epochs + 1), *columns, strict=True))

    def save(self, path: Path | str) -> None:
        """Write the history as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> "History":
        """Read a history that `save` wrote.

        Raises:
            ValueError: the file is not such a history.
        """
        try:
            stored = json.loads(Path(path).read_text())
            return cls(**{each.name: stored[each.name] for each in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"path: {path} is not a history that fit saved ({error})") from error


def fit(
    model: VAE,
    data: Images,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    n_samples: int = 1,
    objective: Objective | None = None,
    resample: bool = False,
    held_out: Images | None = None,
    checkpoint: Path | str | None = None,
    resume: bool = False,
    on_epoch: Callable[[History], None] | None = None,
) -> History:
    """Train a model by maximizing the ELBO, or another objective, with Adam.

    Equation ``eq-loss``; Kingma and Welling (2014), algorithm 1. The noise comes from the CPU, a
    stream of its own for each epoch, so that a seed means the same run on every device. Under
    ``torchrun`` each process takes its share of every batch, and the result is that of one
    process with the same ``batch_size``.

    Args:
        model: the model, on the device where it is to be trained.
        data: the training images, on the same device.
        epochs: how many passes over the data, those of a resumed run included.
        batch_size: images in a step, over all processes.
        lr: Adam's step size.
        seed: of the order of the images and of all noise.
        n_samples: draws of z for each image and step; one is enough (chapter 7).
        objective: what to minimize; None takes the negative ELBO (others: chapter 10).
        resample: make the images binary, afresh in each step, instead of using the gray levels.
        held_out: images on which to measure the bound after each epoch.
        checkpoint: a file to write after each epoch.
        resume: go on from ``checkpoint`` if it exists, else start; the weights end up as if the
            run had never stopped.
        on_epoch: called after each epoch, in the main process.

    Raises:
        ValueError: a number is out of range, the data are on another device than the model or do
            not fit it, a checkpoint to resume was made with other settings, or the loss has become
            infinite or not a number.
    """
    positive = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "n_samples": n_samples}
    _check(model, data, held_out, seed, positive)
    objective = objective or Objective()
    if objective.penalty == "naive" and getattr(model, "prior_network", None) is not None:
        raise ValueError(
            "objective: expected the penalty 'kl' for a model that learns its prior, which the "
            "naive penalty leaves untrained"
        )
    if resume and checkpoint is None:
        raise ValueError("resume: expected a checkpoint to go on from, got none")
    lr = float(lr)  # a number of numpy's would spoil the checkpoint
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    history = History(device=describe(data.images.device))
    settings = {
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "n_samples": n_samples,
        "objective": asdict(objective),
        "resample": resample,
        "source": data.source,
        "images": len(data),
        "held_out": None if held_out is None else len(held_out),
    }
    if checkpoint:
        architecture(model)  # what cannot be saved is refused now, not after the first epoch
    if checkpoint and resume and Path(checkpoint).exists():
        history = History(**read_checkpoint(checkpoint).restore(model, optimizer, settings))
    replica = DistributedDataParallel(model) if parallel.world_size() > 1 else model
    for epoch in range(history.epochs, epochs):
        start = time.perf_counter()
        reconstruction, kl = _train_epoch(
            model,
            replica,
            data,
            optimizer,
            batch_size,
            seeded(seed, epoch),
            n_samples,
            resample,
            objective,
            epoch,
        )
        if not math.isfinite(reconstruction + kl):
            raise ValueError(
                f"lr: the loss of epoch {epoch + 1} is {reconstruction + kl}; start again with "
                f"smaller steps than {lr:g}"
            )
        history.seconds.append(time.perf_counter() - start)
        history.reconstruction.append(reconstruction)
        history.kl.append(kl)
        if held_out is not None:
            history.held_out.append(test_bound(model, held_out, seed=seed).value)
        if parallel.is_main():
            # The checkpoint comes last: with it the epoch is over, and a run that stops before
            # does the whole of it again.
            if on_epoch:
                on_epoch(history)
            if checkpoint:
                write_checkpoint(checkpoint, model, optimizer, asdict(history), settings)
    return history


def _train_epoch(
    model: VAE,
    replica: nn.Module,
    data: Images,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    generator: torch.Generator,
    n_samples: int,
    resample: bool,
    objective: Objective,
    epoch: int,
) -> tuple[float, float]:
    """One pass over the data; returns the average reconstruction term and KL, in nats."""
    device = data.images.device
    order = torch.randperm(len(data), generator=generator).to(device)
    eps = standard_normal((n_samples, len(data), model.latent), generator, device)
    # Each process takes every world_size-th image of a batch. DistributedDataParallel averages the
    # gradients over processes, so the sum over its share is scaled by their number.
    world = parallel.world_size()
    share = slice(parallel.rank(), None, world)
    totals = torch.zeros(2, device=device)
    for batch, noise in zip(order.split(batch_size), eps.split(batch_size, dim=1), strict=True):
        x = data.images[batch]
        x = (binarize(x, generator) if resample else x)[share]
        y = data.labels[batch][share] if model.conditional else None
        params, mu, log_var, *prior = replica(x, noise[:, share], *condition(model, y))
        terms = elbo_terms(model.likelihood, x, params, mu, log_var, *prior)
        loss = objective(terms, mu, log_var, epoch).sum() * world / len(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals += torch.stack([-terms.log_likelihood.sum(), terms.kl.sum()]).detach()
    reconstruction, kl = (parallel.summed(totals) / len(data)).tolist()
    return reconstruction, kl


def _check(
    model: VAE,
    data: Images,
    held_out: Images | None,
    seed: int,
    positive: dict[str, int | float],
) -> None:
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    if len(data) == 0:
        raise ValueError("data: expected at least one image, got none")
    where: Tensor = next(model.parameters())
    for name, images in {"data": data, "held_out": held_out}.items():
        if images is not None and images.images.device != where.device:
            raise ValueError(
                f"{name}: the images are on {images.images.device}, the model is on "
                f"{where.device}; move one of them, for example with "
                "model.to(data.images.device)"
            )
        if images is not None and model.conditional:
            n, labels = len(images), images.labels
            if len(labels) != n or labels.device != where.device:
                raise ValueError(
                    f"{name}: expected {n} labels on {where.device}, got {len(labels)} on "
                    f"{labels.device}"
                )
    seeded(seed)
    if held_out is not None:  # what cannot be measured is refused now, not after an epoch
        try:
            test_bound(model, held_out, seed=seed)
        except ValueError as error:
            raise ValueError(f"held_out: {error}") from error
