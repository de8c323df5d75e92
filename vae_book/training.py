"""One training loop for a CPU, a GPU and several processes (chapter 8)."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vae_book import parallel
from vae_book.adam import Adam
from vae_book.bounds import elbo_terms
from vae_book.capture import captured_step
from vae_book.checkpoints import read_checkpoint, rehearse_checkpoint, write_checkpoint
from vae_book.checks import real_number, trusted, whole_number
from vae_book.device import describe, seeded, sent, standard_normal
from vae_book.evaluation import average_elbo
from vae_book.history import History
from vae_book.images import Images, binarize
from vae_book.likelihoods import Bernoulli
from vae_book.models import VAE
from vae_book.objectives import Objective
from vae_book.tally import digest, fingerprint

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """What decides how a run goes on, beside its model and data; a resumed run shares them.

    Attributes:
        batch_size: images in a step, over all processes.
        lr: Adam's step size.
        later_lr: step sizes that take its place, as pairs (epoch, step size): from that epoch on,
            counted from 0.
        eps: what Adam adds to the root of its second moment.
        seed: of the order of the images and of all noise.
        n_samples: draws of z for each image and step; for the ELBO one is enough (chapter 7), for
            an importance-weighted bound it is K.
        objective: what to minimize; by default the negative ELBO (others: chapter 10).
        resample: make the images binary, afresh in each step, instead of using the gray levels.
        precision: ``bfloat16`` computes the matrix products of encoder and decoder with 8
            significant bits instead of 24, under torch's autocast; weights, Adam and both terms of
            the bound stay in single precision. Faster where the processor has such products.

    Raises:
        ValueError: a number is out of range, or there is no such precision.
    """

    batch_size: int = 128
    lr: float = 1e-3
    seed: int = 0
    n_samples: int = 1
    objective: Objective = field(default_factory=Objective)
    resample: bool = False
    later_lr: tuple[tuple[int, float], ...] = ()
    eps: float = 1e-8
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: expected 'float32' or 'bfloat16', got {self.precision!r}")
        later = _pairs(self.later_lr)
        sizes = [("later_lr", lr) for _, lr in later]
        for name, size in [("lr", self.lr), ("eps", self.eps), *sizes]:
            if not 0 < real_number(name, size) < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {size}")
        # Numbers of numpy's would spoil a checkpoint.
        plain: dict[str, Any] = {
            "batch_size": whole_number("batch_size", self.batch_size),
            "lr": float(self.lr),
            "later_lr": later,
            "eps": float(self.eps),
            "seed": whole_number("seed", self.seed, least=0),
            "n_samples": whole_number("n_samples", self.n_samples),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def lr_of(self, epoch: int) -> float:
        """The step size of an epoch, counted from 0."""
        epoch = whole_number("epoch", epoch, least=0)
        return max([(0, self.lr), *(each for each in self.later_lr if each[0] <= epoch)])[1]


def _pairs(later_lr: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    try:
        pairs = [(at, lr) for at, lr in later_lr]
    except (TypeError, ValueError):
        raise ValueError(
            f"later_lr: expected pairs of an epoch and a step size, got {later_lr!r:.60}"
        ) from None
    return tuple((whole_number("later_lr", at), real_number("later_lr", lr)) for at, lr in pairs)


class Batch(NamedTuple):
    """What one step takes.

    Attributes:
        x: images.
        y: what the model is told about them, or None.
        eps: the noise of z, a row for each image; with an axis for samples first if there are more.
        weight: of each image's loss, so that the step goes by the average over the batch.
    """

    x: Float[Tensor, "n channels height width"]
    y: Tensor | None
    eps: Float[Tensor, "*samples n d"]
    weight: float


def fit(
    model: VAE,
    data: Images,
    *,
    epochs: int,
    held_out: Images | None = None,
    checkpoint: Path | str | None = None,
    resume: bool = False,
    capture: bool = True,
    on_epoch: Callable[[History], None] | None = None,
    **settings: Any,
) -> History:
    """Train a model by maximizing the ELBO, or another objective, with Adam.

    Equation ``eq-loss``; Kingma and Welling (2014), algorithm 1. The noise comes from the CPU, a
    stream of its own for each epoch, so that a seed means the same run on every device. Under
    ``torchrun`` each process takes its share of every batch, and the result is that of one
    process with the same ``batch_size``. Both hold up to rounding, which grows in training. On a
    CUDA device steps are replayed as a graph, see `vae_book.capture`, and the CPU waits for the
    device at the end of an epoch only. This has not been measured on a GPU.

    Args:
        model: the model, on the device where it is to be trained.
        data: the training images, on the same device.
        epochs: how many passes over the data, those of a resumed run included.
        held_out: images on which to measure the bound after each epoch.
        checkpoint: a file to write after each epoch.
        resume: go on from ``checkpoint`` if it exists, else start; the weights end up as if the
            run had never stopped.
        capture: False starts each step from Python on a CUDA device, too, for a model that changes
            by itself what it does.
        on_epoch: called after each epoch, in the main process.
        settings: ``lr=1e-3``, ``batch_size=128`` and the others of `Settings`; None is the default.

    Raises:
        ValueError: a number is out of range, the data are on another device than the model or do
            not fit it, a checkpoint to resume was made with other settings, processes were given
            different things, the loss has become infinite or not a number, or no weight can learn.
        OutOfMemoryError: torch's, of a GPU that is full; the message says what to lower.
        WriteError: the checkpoint cannot be written, found out before the first epoch where that is
            possible.
    """
    chosen = Settings(**{name: each for name, each in settings.items() if each is not None})
    epochs = whole_number("epochs", epochs)
    if checkpoint:
        checkpoint = Path(checkpoint).absolute()  # on_epoch may change the folder
    check_fit(model, data, chosen, held_out)
    optimizer = Adam(model.parameters(), lr=chosen.lr, eps=chosen.eps, fused=True)
    history = History(device=describe(data.images.device))
    if resume and checkpoint is None:
        raise ValueError("resume: expected a checkpoint to go on from, got none")
    shared = asdict(chosen)
    if checkpoint or parallel.world_size() > 1:
        shared |= {"source": data.source, "images": fingerprint(data)}
        shared |= {"held_out": None if held_out is None else fingerprint(held_out)}
    found = "none"
    if checkpoint and resume and Path(checkpoint).exists():
        stored = read_checkpoint(checkpoint)
        history = History(**stored.restore(model, optimizer, shared))
        weights = digest(stored.weights.values())
        found = f"one of {history.epochs} epochs, weights of SHA-256 {weights}"
    # Before the first step: processes of which one has more to do wait for each other forever.
    # Folders may have other names on other machines.
    parallel.check_agreed(**{**shared, "source": "", "epochs": epochs, "checkpoint": found})
    if checkpoint and history.epochs < epochs and parallel.is_main():
        rehearse_checkpoint(checkpoint, model)
    replica = DistributedDataParallel(model) if parallel.world_size() > 1 else model
    captured = captured_step(model, optimizer) if capture else None
    for epoch in range(history.epochs, epochs):
        with advice(chosen, epoch):
            start, parts = time.perf_counter(), batches(model, data, chosen, epoch)
            for group in optimizer.param_groups:
                group["lr"] = chosen.lr_of(epoch)
            step = partial(train_epoch, replica, optimizer=optimizer, settings=chosen, epoch=epoch)
            numbers = chosen.objective.numbers(epoch)
            totals = captured.epoch(step, parts, numbers) if captured else step(parts)
            *sums, finite = parallel.summed(totals).tolist()
            history.seconds.append(time.perf_counter() - start)
            check_steps(finite, math.ceil(len(data) / chosen.batch_size) * parallel.world_size())
            history.reconstruction.append(sums[0] / len(data))
            history.kl.append(sums[1] / len(data))
            history.loss.append(sums[2] / len(data))
            if held_out is not None:
                bound = average_elbo(model, held_out, seed=chosen.seed)
                history.held_out.append(bound.negative_elbo)
            check_finite(model, optimizer, history)
        if parallel.is_main():
            # The checkpoint comes last: with it the epoch is over, and a run that stops before
            # does the whole of it again.
            if on_epoch:
                on_epoch(history)
            if checkpoint:
                write_checkpoint(checkpoint, model, optimizer, asdict(history), shared)
    return history


@contextmanager
def advice(settings: Settings, epoch: int) -> Iterator[None]:
    """Say what to do about a GPU that is full, and numbers that become infinite or NaN in an epoch.

    `check_fit` has looked at the data, so a ValueError is about what training made of the model.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"batch_size: {settings.batch_size} images with {settings.n_samples} draws each do not "
            f"fit into the memory of the device in epoch {epoch + 1}; lower batch_size or "
            "n_samples, take a smaller model, or end what else uses the device; a checkpoint stays "
            f"as it was before ({error})"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"lr: the loss of epoch {epoch + 1} is infinite or NaN, or will be ({error}); start "
            f"again with smaller steps than {settings.lr_of(epoch):g}; a checkpoint stays as it "
            "was before"
        ) from error


def check_steps(finite: float, steps: int) -> None:
    """Raise ValueError unless the loss of every step of an epoch is finite."""
    if finite < steps:
        # Once it is not, the weights are not, and neither is the loss of a later step.
        raise ValueError(f"from step {int(finite / parallel.world_size()) + 1} on")


def check_finite(model: VAE, optimizer: torch.optim.Optimizer, history: History) -> None:
    """Raise ValueError unless the state after an epoch and what was measured are finite."""
    History.checked(**vars(history))
    moments = (each for state in optimizer.state.values() for each in state.values())
    if not all(bool(each.isfinite().all()) for each in (*model.parameters(), *moments)):
        raise ValueError("the last step led to weights, or gradients, too large for a number")


def train_epoch(
    model: nn.Module,
    batches: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    epoch: int,
) -> Float[Tensor, "4"]:
    """One pass over the data; the sums of the reconstruction terms, the KLs and the losses.

    The fourth number is that of the steps with a finite loss. This is the loop of chapter 8.
    """
    totals = torch.zeros(4, device=next(model.parameters()).device)
    with trusted(), torch.enable_grad():  # check_fit has looked at all of the data
        for x, y, eps, weight in batches:
            with autocast(x.device, settings.precision):
                made = model(x, eps, y)
            terms = elbo_terms(x, made)
            loss = settings.objective.loss(x, made, terms, epoch).sum()
            optimizer.zero_grad()
            (loss * weight).backward()
            optimizer.step()
            torch.clear_autocast_cache()  # inside autocast, of weights as they were before the step
            with torch.no_grad():
                sums = [-terms.log_likelihood.sum(), terms.unit_kl.sum(), loss]
                # A sum and not in place: the terms may be in double precision.
                totals = totals + torch.stack([*sums, loss.isfinite().to(loss.dtype)])
    return totals


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 in the block, where they are asked for."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def batches(model: VAE, data: Images, settings: Settings, epoch: int) -> Iterator[Batch]:
    """The batches of an epoch, in random order; of each, the share of this process."""
    generator, device = seeded(settings.seed, epoch), data.images.device
    order = sent(torch.randperm(len(data), generator=generator, device="cpu"), device)
    eps = standard_normal((settings.n_samples, len(data), model.latent), generator, device)
    told, size = model.told(data), settings.batch_size
    # Each process takes every world_size-th image of a batch. DistributedDataParallel averages the
    # gradients over processes, so each image's loss is weighted by their number.
    world = parallel.world_size()
    share = slice(parallel.rank(), None, world)
    for rows, noise in zip(order.split(size), eps.split(size, dim=1), strict=True):
        x = data.images.index_select(0, rows)  # faster than data.images[rows]
        x = (binarize(x, generator) if settings.resample else x)[share]
        y = None if told is None else told[rows[share]]
        noise = noise[0, share] if settings.n_samples == 1 else noise[:, share]
        yield Batch(x, y, noise, world / len(rows))


def stream(
    model: VAE, loader: Iterable[tuple[Tensor, Tensor]], settings: Settings, epoch: int = 0
) -> Iterator[Batch]:
    """The batches of an epoch from a DataLoader, for data that do not fit into memory (chapter 14).

    Pass them to `train_epoch`. The loader decides the order and the size of the batches. Under
    ``torchrun`` it has to give each process its own share, as with torch's ``DistributedSampler``.

    Args:
        model: the model to be trained; batches go to its device.
        loader: gives images, as in `Images`, with their labels; labels of a model that is told
            none are not used.
        settings: those of ``seed``, ``n_samples`` and ``resample`` count.
        epoch: makes the noise another one in each epoch.

    Raises:
        ValueError: a batch does not fit the model.
    """
    generator, device = seeded(settings.seed, epoch), model.weight.device
    for batch in loader:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            kind = type(batch).__name__
            raise ValueError(f"loader: expected pairs of images and labels, got a {kind} of others")
        images, labels = (each.to(device) if isinstance(each, Tensor) else each for each in batch)
        data = Images(images, labels, "a stream", "train")
        if len(data) == 0:
            raise ValueError("loader: expected at least one image in each batch, got none")
        with trusted(False):  # `train_epoch` trusts, and this batch has not been looked at
            x = binarize(data.images, generator) if settings.resample else data.images
            model.check_images(x)
            model.likelihood.check_support(x)
            y = model.told(data)
            model.prior(y)  # looks at every label
        eps = standard_normal((settings.n_samples, len(data), model.latent), generator, device)
        eps = eps[0] if settings.n_samples == 1 else eps
        yield Batch(x, y, eps, 1 / len(data))


def check_fit(model: VAE, data: Images, settings: Settings, held_out: Images | None) -> None:
    """Raise ValueError unless model and data fit each other; looks at all images once."""
    if len(data) == 0:
        raise ValueError("data: expected at least one image, got none")
    check_trainable(model, settings)
    where: Tensor = next(model.parameters())
    for name, images in {"data": data, "held_out": held_out}.items():
        if images is None:
            continue
        if images.images.device != where.device:
            raise ValueError(
                f"{name}: the images are on {images.images.device}, the model is on "
                f"{where.device}; move one of them, for example with "
                "model.to(data.images.device)"
            )
        told = model.told(images)
        if told is not None and (len(told) != len(images) or told.device != where.device):
            raise ValueError(
                f"{name}: expected {len(images)} labels on {where.device}, got {len(told)} on "
                f"{told.device}"
            )
        support = Bernoulli(relaxed=True) if settings.resample and images is data else None
        try:
            (support or model.likelihood).check_support(images.images)
            p_z = model.prior(told)  # looks at every label
            with torch.no_grad():
                model.encode(images.images[:1], None if told is None else told[:1])
            if images is held_out:
                average_elbo(model, held_out[:2])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        learned = p_z.log_prob(torch.zeros(model.latent, device=where.device)).requires_grad
        if learned and settings.objective.penalty == "naive":
            raise ValueError(
                "objective: expected the penalty 'kl' for a model that learns its prior, which the "
                "naive penalty leaves untrained"
            )


def check_trainable(model: VAE, settings: Settings) -> None:
    """Raise ValueError unless Adam can train the model's weights."""
    weights = list(model.parameters())
    for dtype in {each.dtype for each in weights}:
        if settings.eps < torch.finfo(dtype).smallest_normal:
            raise ValueError(
                f"eps: expected a number that weights of {dtype} can hold, got {settings.eps:g}, "
                "with which Adam would divide by 0; take 1e-4, or model.float(), with "
                "precision='bfloat16' for short products"
            )
    learning = any(each.requires_grad and not each.is_inference() for each in weights)
    if not learning or torch.is_inference_mode_enabled():
        raise ValueError(
            "model: expected weights that take a gradient, got none; make and train it outside of "
            "torch.inference_mode, with requires_grad where it is to learn"
        )
