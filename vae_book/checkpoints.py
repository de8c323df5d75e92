"""Training runs on disk: what it takes to use a model again, or to go on training it.

A checkpoint is one file, read with ``torch.load(weights_only=True)``: it can hold numbers, but no
code.
"""

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vae_book.device import best_device
from vae_book.likelihoods import Likelihood
from vae_book.models import VAE


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after an epoch.

    Attributes:
        architecture: the arguments of the model.
        weights: the model's state.
        optimizer: the optimizer's state.
        history: the fields of `vae_book.training.History`.
        settings: those that a resumed run must share.
    """

    architecture: dict
    weights: dict
    optimizer: dict
    history: dict
    settings: dict

    def model(self, device: torch.device | str | None = None) -> VAE:
        """The trained model, on ``device`` or on the best one.

        Raises:
            ValueError: another version of the package wrote the checkpoint.
        """
        arguments = {**self.architecture, "likelihood": _made(self.architecture["likelihood"])}
        model = _made(arguments)
        model.load_state_dict(self.weights)
        return model.to(best_device() if device is None else device)

    def restore(self, model: VAE, optimizer: torch.optim.Optimizer, settings: dict) -> dict:
        """Put model and optimizer back into this state; returns the history's fields.

        Raises:
            ValueError: the model or the settings are not those of the run.
        """
        asked = {**settings, **architecture(model)}
        saved = {**self.settings, **self.architecture}
        differing = [
            f"{name} was {saved.get(name)!r} and is now {asked.get(name)!r}"
            for name in sorted(saved.keys() | asked.keys())
            if saved.get(name) != asked.get(name)
        ]
        if differing:
            raise ValueError(
                "resume: the checkpoint comes from another run; start a new one, or use its "
                f"settings again ({'; '.join(differing)})"
            )
        model.load_state_dict(self.weights)
        optimizer.load_state_dict(self.optimizer)
        return self.history


def write_checkpoint(
    path: Path | str,
    model: VAE,
    optimizer: torch.optim.Optimizer,
    history: dict,
    settings: dict,
) -> None:
    """Write a checkpoint, whole or not at all: a crash leaves the one before it in place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    content = Checkpoint(
        architecture(model), model.state_dict(), optimizer.state_dict(), history, settings
    )
    try:
        torch.save(vars(content), part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint; its tensors are on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or not a checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises a dozen kinds of error on a damaged file
        raise ValueError(
            f"path: {path} is damaged or not a checkpoint of vae_book ({type(error).__name__})"
        ) from error


def architecture(model: VAE) -> dict:
    """The class and the arguments that make a model like this one.

    A model or likelihood of one's own can be kept as well, if it keeps its arguments under their
    own names, and is imported before the checkpoint is read.

    Raises:
        ValueError: a checkpoint cannot hold this kind of model or likelihood.
    """
    found = _described("model", model, kinds(VAE))
    likelihood = _described("likelihood", model.likelihood, kinds(Likelihood))
    return {**found, "likelihood": likelihood}


def kinds(base: type) -> dict[str, type]:
    """A class and all that have been derived from it so far, by name."""
    found = {base.__name__: base}
    derived: list[type] = base.__subclasses__()
    for kind in derived:
        found |= kinds(kind)
    return found


def _described(name: str, thing: object, known: Mapping[str, type]) -> dict:
    kind = type(thing)
    parameters = inspect.signature(kind).parameters
    lost = [each for each in parameters if not hasattr(thing, each)]
    if lost or known[kind.__name__] is not kind:
        reason = f"has no attribute {lost[0]}" if lost else "shares its name with another"
        raise ValueError(
            f"checkpoint: expected a {name} that keeps its arguments under their own names and has "
            f"a name of its own, got {kind.__name__}, which {reason}"
        )
    arguments = {each: getattr(thing, each) for each in parameters}
    # The likelihood, an argument of the model, is described by itself.
    lists = {each: list(value) for each, value in arguments.items() if isinstance(value, tuple)}
    return {"kind": kind.__name__, **arguments, **lists}


def _made(description: dict) -> Any:
    arguments, known = dict(description), {**kinds(VAE), **kinds(Likelihood)}
    kind = arguments.pop("kind", None)
    if kind not in known:
        raise ValueError(
            f"checkpoint: expected one of the kinds {', '.join(known)}, got {kind}; import the "
            "module that defines it first, or train the model again, if another version of "
            "vae_book wrote it"
        )
    return known[kind](**arguments)
