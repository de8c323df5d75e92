"""What the command line does: train a model, draw from it, measure it, look at one of your own.

`vae_book.__main__` reads the arguments; each command of its own is a function here.
"""

import importlib
import inspect
import json as json_format
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vae_book import parallel, reproduction
from vae_book.checkpoints import Checkpoint, read_checkpoint
from vae_book.checks import MOST, enough_memory, trusted, whole_number
from vae_book.data import Split, load_images
from vae_book.device import best_device, seeded
from vae_book.doctor import diagnose
from vae_book.evaluation import average_elbo
from vae_book.files import alone, replacing
from vae_book.history import History
from vae_book.images import Images, binarize
from vae_book.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian, Likelihood
from vae_book.models import VAE
from vae_book.mosaic import mosaic
from vae_book.tally import fingerprint
from vae_book.training import Settings, fit

GAP = 2  # pixels between images
PAIRS = 8  # held-out images shown above their reconstructions
SAMPLES = 64  # images from the prior, shown as 8 x 8
# What --likelihood names; chapter 14 says which is for which pixels.
LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "cross-entropy": partial(Bernoulli, relaxed=True),
    "bernoulli": Bernoulli,
    "gaussian": partial(Gaussian, 0.1, variance="shared"),
    "continuous-bernoulli": ContinuousBernoulli,
}


def train(
    *,
    source: str | None,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    latent: int,
    hidden: int,
    likelihood: str,
    size: tuple[int, int] | None,
    gray: bool,
    precision: str,
    out: Path,
    resume: bool,
) -> None:
    """Train a VAE and write what shows its progress into the folder ``out``.

    Raises:
        ValueError: ``out`` holds a run already and ``resume`` is not asked for, another run is
            writing there, there is a folder where a file is to be written, or see `fit`.
        WriteError: ``out`` cannot be written to.
    """
    checkpoint = out / "checkpoint.pt"
    _check_place(checkpoint, out / "history.json")
    _check_new(checkpoint, resume)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "resample": likelihood == "bernoulli",
        "precision": precision,
    }
    Settings(**settings)  # or it would refuse only once the data are there
    done = len(read_checkpoint(checkpoint).history["kl"]) if checkpoint.exists() else 0
    _check_place(*_pictures(out, done + 1))
    device = best_device()
    with parallel.main_first():
        data, held_out = (
            load_images(split, source, device, size=size, channels=1 if gray else None)
            for split in ("train", "test")
        )
    if Path(data.source) in (out.resolve(), *out.resolve().parents):
        raise ValueError(
            f"--out: expected a folder outside of {data.source}, got {out}: what is written there "
            "would be pictures of the next run"
        )
    torch.manual_seed(seeded(seed).initial_seed())  # torch takes 64 bits
    with enough_memory("--size, --hidden or --latent"):
        model = VAE(latent, hidden, data.shape, LIKELIHOODS[likelihood]()).to(device)
    held_out = _scorable(model, held_out, seed)

    def show(history: History) -> None:
        _write_pictures(out, history.epochs, model, held_out, seed)
        history.save(out / "history.json")
        progress.set_postfix_str(_in_words(history), refresh=False)
        progress.update()

    with (
        _run_alone(out),
        tqdm(total=epochs, initial=done, unit="epoch", disable=not parallel.is_main()) as progress,
    ):
        _check_new(checkpoint, resume)  # a run may have ended while pictures were read
        history = fit(
            model,
            data,
            epochs=epochs,
            held_out=held_out,
            checkpoint=checkpoint,
            resume=resume,
            on_epoch=show,
            **settings,
        )
    if parallel.is_main():
        more = "; for more, raise --epochs" if history.epochs == done else ""
        print(f"{out}: {history.epochs} epochs, {_in_words(history)} for an image{more}")


def _check_new(checkpoint: Path, resume: bool) -> None:
    """Raise ValueError if a run would take the place of another."""
    if checkpoint.exists() and not resume:
        raise ValueError(
            f"{checkpoint} holds a run already; go on with it by adding --resume to the command, "
            "or start another one in another folder with --out"
        )


@contextmanager
def _run_alone(out: Path) -> Iterator[None]:
    """Raise ValueError if another run is writing into a folder, of which one would be lost."""
    try:
        with alone(out) if parallel.is_main() else nullcontext():
            yield
    except BlockingIOError as error:
        raise ValueError(
            f"--out: another run is writing to {out} now; wait for its end, or choose another "
            "folder"
        ) from error


def sample(*, checkpoint: Path, n: int, seed: int, out: Path) -> None:
    """Write ``n`` images from the prior of a trained model as one picture."""
    _check_place(out)
    kind = Image.registered_extensions().get(out.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(
            f"--out: expected the name of a picture, got {out}; such as {out.stem}.png"
        )
    n = whole_number("n", n, most=MOST)
    model = read_checkpoint(checkpoint).model()
    with enough_memory("--n"):
        with trusted():  # numbers that overflow are the weights' fault, and are named so below
            images = model.sample(n, seeded(seed))
        _check_finite(checkpoint, images)
        with replacing(out) as part:
            save_grid(images, part, nrow=math.ceil(math.sqrt(n)))


def evaluate(
    *, checkpoint: Path, source: str | None, split: Split, samples: int, seed: int, json: bool
) -> None:
    """Print the negative ELBO of a trained model, its terms and the protocol."""
    trained = read_checkpoint(checkpoint)
    model = trained.model()
    if not source:
        source = trained.settings.get("source")
        if not isinstance(source, str):
            raise ValueError(f"source: {checkpoint} does not say what to measure on; add --source")
        if Path(source).is_absolute() and not Path(source).is_dir():
            raise ValueError(f"source: {checkpoint} names {source}, no folder now; add --source")
    data = _load_for(model, split, source)
    _check_split(trained, model, data)
    scored = _scorable(model, data, seed)
    model.likelihood.check_support(scored.images)
    model.prior(model.told(scored))  # looks at every label
    # Numbers that overflow are the weights' fault, and are named so below.
    with trusted(), enough_memory("--samples"):
        bound = average_elbo(model, scored, n_samples=samples, seed=seed)
    _check_finite(checkpoint, bound.value, bound.standard_error, bound.kl)
    if scored is not data:
        pixels = f"binary, drawn from the gray levels with seed {seed}"
        bound = replace(bound, protocol=replace(bound.protocol, pixels=pixels))
    if json:
        print(json_format.dumps(bound.as_dict(), indent=1))
        return
    print(
        f"negative ELBO   {bound.negative_elbo:.3f} nats, standard error {bound.standard_error:.3f}"
    )
    print(f"reconstruction  {bound.reconstruction:.3f}")
    print(f"KL              {bound.kl:.3f}")
    for name, value in bound.protocol.as_dict().items():
        print(f"{name:<15} {value}")


def reproduce(*, name: str | None, list: bool, full: bool, results: Path, runs: Path) -> None:
    """Train and measure a row of the ledger, and print what came out; or list the rows."""
    if list:
        print(reproduction.listing(results))
        return
    if name is None:
        raise ValueError("NAME: expected a row of the ledger, got none; --list names them")
    found = reproduction.reproduce(name, results=results, runs=runs, full=full)
    for key, each in found["measured"].items():
        print(
            f"{name}: {key}: {each['value']:.3f} nats, standard error {each['standard_error']:.3f}"
        )
    print(f"written to {results / name}.json")


def doctor(*, make_vae: str) -> None:
    """Print what `diagnose` finds in the VAE that a function of the reader's makes.

    Raises:
        ValueError: there is no such function, or it returns something else than the arguments.
        SystemExit: with code 1, if a fault was found.
    """
    arguments = _made_by(make_vae)
    unknown = arguments.keys() - inspect.signature(diagnose).parameters.keys()
    if unknown or not {"encode", "decode"} <= arguments.keys():
        raise ValueError(
            f"{make_vae}: expected the arguments of vae_book.doctor.diagnose, at least 'encode' "
            f"and 'decode', got {', '.join(sorted(map(str, arguments))) or 'nothing'}"
        )
    if "images" not in arguments:
        digits = load_images("test", "bundled", "cpu").images
        arguments["images"] = digits[:: len(digits) // 64][:64]  # they are sorted by class
    try:
        report = diagnose(**arguments)
    except SystemExit as error:  # of the functions: it would end as if there were no fault
        raise ValueError(f"{make_vae}: a function of it raised SystemExit ({error})") from error
    print(report)
    if not report.healthy:
        raise SystemExit(1)


def _made_by(make_vae: str) -> dict:
    name, _, attribute = make_vae.partition(":")
    if not name or not attribute or name.endswith(".py") or "/" in name:
        raise ValueError(
            f"make_vae: expected my_module:make_vae, got {make_vae!r}; that is a module's name, "
            "without .py, and a function's"
        )
    try:
        made = getattr(importlib.import_module(name), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(f"{make_vae}: {error}; is it in this folder or installed?") from error
    except (Exception, SystemExit) as error:  # of an attribute that is missing, or of the module
        raise ValueError(f"{make_vae}: {type(error).__name__} ({error})") from error
    try:
        arguments = made() if callable(made) else made
    except (Exception, SystemExit) as error:
        raise ValueError(f"{make_vae}: it raised {type(error).__name__} ({error})") from error
    if not isinstance(arguments, dict):
        raise ValueError(
            f"{make_vae}: expected a function that returns a dictionary, got "
            f"{type(arguments).__name__}"
        )
    return dict(arguments)


def _check_finite(checkpoint: Path, *results: Tensor | float) -> None:
    if not all(torch.as_tensor(each).isfinite().all() for each in results):
        raise ValueError(
            f"checkpoint: the model in {checkpoint} gives results that are infinite or not "
            "numbers, as after steps that were too large; train again with a smaller --lr"
        )


def _check_place(*files: Path) -> None:
    """Raise ValueError if a folder is in the place of a file, or a file in that of their folder."""
    for file in files:
        if file.parent.is_file():
            raise ValueError(f"--out: expected a folder, got {file.parent}; choose another place")
        if file.is_dir():
            raise ValueError(
                f"--out: expected a file, got a folder: {file}; rename it, or choose another place"
            )


def _check_split(trained: Checkpoint, model: VAE, data: Images) -> None:
    """Raise ValueError if pictures of the folder that a model was trained on are in another split.

    One more or less moves others. Those of one split may be others than then while those of
    training are the same. Warns where nobody can tell.
    """
    run, folder = trained.settings, Path(data.source)
    if not run.get("held_out") or not folder.is_dir():  # the other sources do not change
        return
    if data.split == "test" and fingerprint(_scorable(model, data, run["seed"])) == run["held_out"]:
        return
    if folder.resolve() != Path(run["source"]).resolve():
        if not Path(run["source"]).is_dir():
            warnings.warn(
                f"{run['source']}, where the pictures of training were, is gone; if some of them "
                f"are in {folder}, the model may know what it is measured on",
                stacklevel=2,
            )
        return
    on_train = data if data.split == "train" else _load_for(model, "train", data.source)
    if fingerprint(on_train) != run["images"]:
        raise ValueError(
            f"source: the pictures of {folder} are split otherwise than when the model was "
            f"trained, so that it may know those for {data.split}; put the folder back as it was, "
            "train again, or measure on another one by --source"
        )


def _load_for(model: VAE, split: Split, source: str) -> Images:
    """One split of a data set, as large and with as many channels as the model takes."""
    channels, height, width = model.image_shape
    if channels not in (1, 3):
        raise ValueError(f"checkpoint: expected a model of 1 or 3 channels, got one of {channels}")
    kept: Literal[1, 3] = 1 if channels == 1 else 3
    return load_images(split, source, model.weight.device, size=(height, width), channels=kept)


def _scorable(model: VAE, data: Images, seed: int) -> Images:
    """The images as the model's likelihood takes them: drawn once if it takes binary ones only."""
    if len(data) < 2:
        raise ValueError(
            f"source: expected 2 {data.split} images or more in {data.source}, for a standard "
            f"error, got {len(data)}; add some: without folders train and test, a tenth is for test"
        )
    if model.likelihood != Bernoulli():
        return data
    # Not seeded(seed), which average_elbo's noise comes from: the two would not be independent.
    return data.with_images(binarize(data.images, seeded(seed, 0)))


@torch.no_grad()
def _write_pictures(out: Path, epoch: int, model: VAE, held_out: Images, seed: int) -> None:
    # Evenly spaced, because data sets are often sorted by class.
    chosen = torch.linspace(0, len(held_out) - 1, min(PAIRS, len(held_out))).long()
    originals = held_out.images[chosen.to(held_out.images.device)]
    reconstructions = model.decode(model.encode(originals).mu).mean
    pairs = torch.cat([originals, reconstructions])
    reconstruction, sample = _pictures(out, epoch)
    with replacing(reconstruction) as part:
        save_grid(pairs, part, nrow=len(originals))
    with replacing(sample) as part:
        save_grid(model.sample(SAMPLES, seeded(seed)), part)


def _pictures(out: Path, epoch: int) -> tuple[Path, Path]:
    return out / f"reconstruction_{epoch:04}.png", out / f"sample_{epoch:04}.png"


def save_grid(images: Tensor, file: Path, nrow: int = 8) -> None:
    """Save images of shape (n, channels, height, width) as one PNG, ``nrow`` to a row.

    As torchvision's ``save_image`` does, which takes twice as long to import as torch.

    Raises:
        ValueError: there are no images.
    """
    n = len(images)
    if n == 0:
        raise ValueError("images: expected at least one, got none")
    sheet = mosaic(images.float(), min(nrow, n), line=GAP if n > 1 else 0).astype(np.float32)
    levels = (255 * sheet + 0.5).clip(0, 255).astype(np.uint8)
    Image.fromarray(levels.squeeze(-1) if levels.shape[-1] == 1 else levels).save(file)


def _in_words(history: History) -> str:
    return (
        f"reconstruction {history.reconstruction[-1]:.2f}, KL {history.kl[-1]:.2f}, "
        f"held-out bound {history.held_out[-1]:.2f} nats"
    )
