"""One training loop for a CPU, a GPU and several processes (chapter 8)."""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vae_book import parallel
from vae_book.adam import Adam
from vae_book.bounds import elbo_terms
from vae_book.capture import captured_step
from vae_book.checkpoints import read_checkpoint, rehearse_checkpoint, write_checkpoint
from vae_book.checks import (
    MOST,
    is_out_of_memory,
    of_kind,
    real_number,
    trusted,
    what_torch_says,
    whole_number,
)
from vae_book.device import describe, lacks_bfloat16, seeded, sent, standard_normal
from vae_book.evaluation import average_elbo, chunks
from vae_book.history import History
from vae_book.images import Images, binarize
from vae_book.likelihoods import Bernoulli
from vae_book.models import VAE, mode
from vae_book.objectives import Objective
from vae_book.tally import digest, fingerprint

PRECISIONS = ("float32", "bfloat16")
FAR = 10.0  # noise beyond all that is drawn


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
            the bound stay in single precision. Faster where the processor has such products; a
            warning says where it is known to have none.

    Raises:
        ValueError: a number is out of range, a setting of another kind, or there is no such
            precision.
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
        of_kind(Objective, objective=self.objective)
        if not isinstance(self.resample, bool | np.bool_):
            raise ValueError(f"resample: expected True or False, got {self.resample!r:.60}")
        later = _pairs(self.later_lr)
        sizes = [("later_lr", lr) for _, lr in later]
        for name, size in [("lr", self.lr), ("eps", self.eps), *sizes]:
            if not 0 < real_number(name, size) < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {size}")
        # Numbers of numpy's would spoil a checkpoint.
        plain: dict[str, Any] = {
            "batch_size": whole_number("batch_size", self.batch_size, most=MOST),
            "lr": float(self.lr),
            "later_lr": later,
            "eps": float(self.eps),
            "seed": whole_number("seed", self.seed, least=0),
            "n_samples": whole_number("n_samples", self.n_samples, most=MOST),
            "resample": bool(self.resample),
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
    epochs = [whole_number("later_lr", at) for at, _ in pairs]
    for at in epochs:
        if epochs.count(at) > 1:
            raise ValueError(
                f"later_lr: expected one step size for an epoch, got two for epoch {at}"
            )
    return tuple(
        (at, real_number("later_lr", lr)) for at, (_, lr) in zip(epochs, pairs, strict=True)
    )


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
    process with the same ``batch_size``. Both hold up to rounding, which grows in training, and
    for models whose layers draw nothing and average over no batch: dropout draws from torch's own
    generator, batch norm sees the share of each process. Such layers stay in the mode, training or
    evaluation, in which the model comes. On a CUDA device steps are replayed as a graph, see
    `vae_book.capture`, and the CPU waits for the device at the end of an epoch only. This has not
    been measured on a GPU.

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
        ValueError: an argument is of another kind or out of range, the data are on another device
            than the model or do not fit it, a checkpoint to resume was made with other settings,
            processes were given different things, the loss has become infinite or not a number, or
            no weight can learn.
        OutOfMemoryError: torch's, of memory that is full; the message says what to lower.
        WriteError: the checkpoint cannot be written, found out before the first epoch where that is
            possible.
    """
    chosen = Settings(**{name: each for name, each in settings.items() if each is not None})
    epochs = whole_number("epochs", epochs)
    check_kinds(model, data, held_out, checkpoint, on_epoch)
    if checkpoint:
        checkpoint = Path(checkpoint).absolute()  # on_epoch may change the folder
    check_fit(model, data, chosen, held_out)
    optimizer = Adam(model.parameters(), lr=chosen.lr, eps=chosen.eps, fused=True)
    history = History(device=describe(data.images.device))
    if resume and checkpoint is None:
        raise ValueError("resume: expected a checkpoint to go on from, got none")
    shared = asdict(chosen)
    if type(chosen.objective) is not Objective:  # one's own may have the same numbers
        shared["kind of objective"] = type(chosen.objective).__qualname__
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
    parallel.share_weights(model)
    captured = captured_step(model, optimizer) if capture else None
    seen = [data] if held_out is None else [data, held_out]
    for epoch in range(history.epochs, epochs):
        with advice(model, seen, chosen, epoch):
            start, parts = time.perf_counter(), batches(model, data, chosen, epoch)
            for group in optimizer.param_groups:
                group["lr"] = chosen.lr_of(epoch)
            step = partial(train_epoch, model, optimizer=optimizer, settings=chosen, epoch=epoch)
            numbers = chosen.objective.numbers(epoch)
            totals = captured.epoch(step, parts, numbers) if captured else step(parts)
            *sums, finite = parallel.summed(totals).tolist()
            history.seconds.append(time.perf_counter() - start)
            steps = math.ceil(len(data) / chosen.batch_size) * parallel.world_size()
            check_steps(finite, steps, chosen, epoch)
            history.reconstruction.append(sums[0] / len(data))
            history.kl.append(sums[1] / len(data))
            history.loss.append(sums[2] / len(data))
            if held_out is not None:
                bound = average_elbo(model, held_out, seed=chosen.seed)
                history.held_out.append(bound.negative_elbo)
            check_finite(model, optimizer, history, chosen)
        if parallel.is_main():
            # The checkpoint comes last: with it the epoch is over, and a run that stops before
            # does the whole of it again.
            if on_epoch:
                on_epoch(history)
            if checkpoint:
                write_checkpoint(checkpoint, model, optimizer, asdict(history), shared)
    return history


class NotFiniteError(ValueError):
    """What training computes is infinite or NaN; the message says what to do."""


@contextmanager
def advice(model: VAE, seen: list[Images], settings: Settings, epoch: int) -> Iterator[None]:
    """Say what to do about full memory, and numbers that become infinite or NaN in an epoch.

    `check_fit` has looked at the images that are seen. A ValueError is about what training made of
    the model, unless that still makes numbers of them: then it is of one's own model or objective.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(
            f"batch_size: {settings.batch_size} images with {settings.n_samples} draws each do not "
            f"fit into the memory of the device in epoch {epoch + 1}; lower batch_size or "
            "n_samples, take a smaller model, or end what else uses the device; a checkpoint stays "
            f"as it was before ({what_torch_says(error)})"
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" in str(error):  # torch's, of batch norm
            raise ValueError(
                "batch_size: batch norm needs two images in each step, and one step has a single "
                f"one; choose another batch_size than {settings.batch_size}"
            ) from error
        if isinstance(error, NotFiniteError) or makes_numbers(model, seen):
            raise
        raise too_large_steps(settings, epoch, str(error)) from error


@torch.no_grad()
def makes_numbers(model: VAE, seen: list[Images]) -> bool:
    """Whether all that a model makes of images is finite."""
    with trusted(), mode([model], training=False):
        for x, y in (each for images in seen for each in chunks(model, images)):
            q_z, z, p_x, _ = model(x, torch.full((len(x), model.latent), FAR, device=x.device), y)
            if not all(bool(each.isfinite().all()) for each in (*q_z, z, p_x.params)):
                return False
    return True


def too_large_steps(settings: Settings, epoch: int, reason: str) -> NotFiniteError:
    """What to raise where smaller steps would help."""
    return NotFiniteError(
        f"lr: the loss of epoch {epoch + 1} is infinite or NaN, or will be ({reason}); start again "
        f"with smaller steps than {settings.lr_of(epoch):g}; a checkpoint stays as it was before"
    )


def check_steps(finite: float, steps: int, settings: Settings, epoch: int) -> None:
    """Raise NotFiniteError unless the loss of every step of an epoch is finite."""
    if finite < steps:
        # Once it is not, the weights are not, and neither is the loss of a later step.
        step = int(finite / parallel.world_size()) + 1
        if epoch == 0 and step == 1:
            raise NotFiniteError(
                "model, data or objective: expected a finite loss in the first step, got infinity "
                "or NaN before any weight has moved; look for weights that are not finite, images "
                "that are too large, or an objective that has no value"
            )
        raise too_large_steps(settings, epoch, f"from step {step} on")


def check_finite(
    model: VAE, optimizer: torch.optim.Optimizer, history: History, settings: Settings
) -> None:
    """Raise NotFiniteError unless the state after an epoch and what was measured are finite."""
    try:
        History.checked(**vars(history))
    except ValueError as error:
        raise too_large_steps(settings, history.epochs - 1, str(error)) from error
    moments = (each for state in optimizer.state.values() for each in state.values())
    if not all(bool(each.isfinite().all()) for each in (*model.parameters(), *moments)):
        reason = "the last step led to weights, or gradients, too large for a number"
        raise too_large_steps(settings, history.epochs - 1, reason)


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
            parallel.average_gradients(model)
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
    # Each process takes every world_size-th image of a batch. The gradients are averaged over
    # processes, so each image's loss is weighted by their number.
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
    ``torchrun`` it has to give each process its own share, as with torch's ``DistributedSampler``;
    each draws noise of its own.

    Args:
        model: the model to be trained; batches go to its device.
        loader: gives images, as in `Images`, with their labels; labels of a model that is told
            none are not used.
        settings: those of ``seed``, ``n_samples`` and ``resample`` count.
        epoch: makes the noise another one in each epoch.

    Raises:
        ValueError: a batch does not fit the model, or there is none.
    """
    shared = () if parallel.world_size() == 1 else (parallel.rank(),)
    generator, device = seeded(settings.seed, epoch, *shared), model.weight.device
    batch = None
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
    if batch is None:
        raise ValueError("loader: expected at least one batch, got none; an iterator can end once")


def check_kinds(
    model: object, data: object, held_out: object, checkpoint: object, on_epoch: object
) -> None:
    """Raise ValueError unless the arguments of `fit` are what they are meant to be."""
    of_kind(VAE, model=model)
    of_kind(Images, data=data)
    if held_out is not None:
        of_kind(Images, held_out=held_out)
    if not isinstance(checkpoint, str | os.PathLike | None):
        raise ValueError(f"checkpoint: expected the path of a file, got {checkpoint!r:.60}")
    if on_epoch is not None and not callable(on_epoch):
        raise ValueError(f"on_epoch: expected a function of the history, got {on_epoch!r:.60}")


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
        if images.images.requires_grad or (told is not None and told.requires_grad):
            raise ValueError(
                f"{name}: expected images that take no gradient, got some that require grad; pass "
                "them, and what is told about them, detached: images.detach()"
            )
        support = Bernoulli(relaxed=True) if settings.resample and images is data else None
        try:
            (support or model.likelihood).check_support(images.images)
            p_z = model.prior(told)  # looks at every label
            with torch.no_grad(), mode([model], training=False):
                model.encode(images.images[:1], None if told is None else told[:1])
            if images is held_out:
                average_elbo(model, held_out[:2])
        except ValueError as error:
            if isinstance(error.__cause__, RuntimeError):  # torch's, which need not be the data's
                check_short(where, settings)
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
    types = sorted({each.dtype for each in weights}, key=str)
    if len(types) != 1:
        raise ValueError(
            f"model: expected weights of one type, got {' and '.join(map(str, types))}; make them "
            "one, for example with model.float()"
        )
    if settings.precision == "bfloat16":
        check_short(weights[0], settings)
        if parallel.is_main() and lacks_bfloat16(weights[0].device):
            warnings.warn(
                "precision: this processor has no bfloat16 products, and makes them up; float32 is "
                "likely to be faster here",
                stacklevel=4,
            )
    if settings.eps < torch.finfo(types[0]).smallest_normal:
        raise ValueError(
            f"eps: expected a number that weights of {types[0]} can hold, got {settings.eps:g}, "
            "with which Adam would divide by 0; take 1e-4, or model.float(), with "
            "precision='bfloat16' for short products"
        )
    learning = any(each.requires_grad and not each.is_inference() for each in weights)
    if not learning or torch.is_inference_mode_enabled():
        raise ValueError(
            "model: expected weights that take a gradient, got none; make and train it outside of "
            "torch.inference_mode, with requires_grad where it is to learn"
        )


def check_short(weight: Tensor, settings: Settings) -> None:
    """Raise ValueError if products are short and weights of a type that does not go with them.

    Torch leaves out double precision without a word, and cannot put two half precisions together.
    """
    kind = weight.device.type
    if not torch.amp.is_autocast_available(kind):
        return
    with autocast(weight.device, settings.precision):
        short = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    if weight.dtype not in (torch.float32, short):
        name = "torch.autocast" if settings.precision == "float32" else "precision"
        raise ValueError(
            f"{name}: expected weights of torch.float32 or {short} for products in {short}, got "
            f"{weight.dtype}; take model.float(), or full products"
        )
