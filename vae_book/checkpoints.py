"""Training runs on disk: what it takes to use a model again, or to go on training it.

A checkpoint is one file, read with ``torch.load(weights_only=True)``: it can hold numbers, but no
code.
"""

import inspect
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_book.device import best_device
from vae_book.files import check_writable, numbers_in, replacing
from vae_book.history import History
from vae_book.likelihoods import Likelihood
from vae_book.models import VAE


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after an epoch; one without settings is a model to use and no more.

    Attributes:
        architecture: the arguments of the model.
        weights: the model's state.
        optimizer: Adam's state.
        history: the fields of `vae_book.history.History`.
        settings: those that a resumed run must share.

    Raises:
        ValueError: a part is missing, not finite or does not fit the others, or another version of
            the package wrote it.
    """

    architecture: dict
    weights: dict
    optimizer: dict
    history: dict
    settings: dict

    def __post_init__(self) -> None:
        for name, part in vars(self).items():
            if not isinstance(part, dict):
                raise ValueError(f"{name}: expected a dictionary, got {part!r}")
        with torch.device("meta"):  # which takes neither memory nor random numbers
            model = self._untrained()
        _match("weights", self.weights, model.state_dict())
        if self.settings:
            _match("optimizer", self.optimizer["state"], _moments(model, self.optimizer["state"]))
            History.checked(**self.history)

    def model(self, device: torch.device | str | None = None) -> VAE:
        """The trained model, on ``device`` or on the best one."""
        model = self._untrained()
        for name, weight in model.state_dict(keep_vars=True).items():
            weight.data = weight.data.to(self.weights[name].dtype)
        model.load_state_dict(self.weights)
        return model.to(best_device() if device is None else device)

    def _untrained(self) -> VAE:
        likelihood = _made("likelihood", self.architecture["likelihood"], kinds(Likelihood))
        return _made("model", {**self.architecture, "likelihood": likelihood}, kinds(VAE))

    def restore(self, model: VAE, optimizer: torch.optim.Optimizer, settings: dict) -> dict:
        """Put model and optimizer back into this state; returns the history's fields.

        Raises:
            ValueError: the model or the settings are not those of the run.
        """
        types = "type of the weights"
        asked = {**settings, **architecture(model), types: _types(model.state_dict())}
        saved = {**self.settings, **self.architecture, types: _types(self.weights)}
        differing = [
            f"{name} was {saved.get(name)!r} and is now {asked.get(name)!r}"
            # A folder may have moved. Whether its images are the same, their fingerprint says.
            for name in sorted((saved.keys() | asked.keys()) - {"source"})
            if saved.get(name) != asked.get(name)
        ]
        if differing:
            raise ValueError(
                "resume: the checkpoint comes from another run; start a new one, or use its "
                f"settings again ({'; '.join(differing)})"
            )
        model.load_state_dict(self.weights)
        torch.clear_autocast_cache()  # inside autocast, of the weights that these take the place of
        # The options of the optimizer follow from the settings, which are the same.
        options = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": self.optimizer["state"], "param_groups": options})
        return self.history


def write_checkpoint(
    path: Path | str,
    model: VAE,
    optimizer: torch.optim.Optimizer,
    history: dict,
    settings: dict,
) -> None:
    """Write a checkpoint, whole or not at all: a crash leaves the one before it in place.

    Raises:
        ValueError: it could not be read back (see `Checkpoint` and `architecture`).
        OutOfMemoryError: torch's; the checkpoint is put together in memory.
        WriteError: the disk is full, or see `vae_book.files.replacing`.
    """
    found = Checkpoint(
        architecture(model), model.state_dict(), _state(optimizer), history, settings
    )
    packed = _packed(found)
    with replacing(path) as part:
        part.write_bytes(packed)


def rehearse_checkpoint(path: Path | str, model: VAE) -> None:
    """Raise as `write_checkpoint` would, before a run: it changes nothing at ``path``."""
    weights = _packed(Checkpoint(architecture(model), model.state_dict(), {}, {}, {}))
    check_writable(path, 3 * len(weights))  # Adam keeps two averages of each weight


def _packed(checkpoint: Checkpoint) -> memoryview:
    # In memory: of a full disk torch.save says neither which file nor why.
    content = io.BytesIO()
    try:
        torch.save(vars(checkpoint), content)
    except (RuntimeError, MemoryError) as error:  # there is no other way for this to fail
        raise torch.OutOfMemoryError(
            "model: expected a checkpoint that fits into memory; take a smaller model, or end what "
            "else uses the memory; an earlier checkpoint stays as it was"
        ) from error
    return content.getbuffer()


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint; its tensors are on the CPU.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: the file is damaged or not a checkpoint, or see `Checkpoint`.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(
            f"{path} is a folder, no checkpoint; name a file, such as one in it"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    content = Path(path).read_bytes()
    try:
        return Checkpoint(**numbers_in(content))
    except Exception as error:  # a damaged file raises a dozen kinds of error
        reason = error if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(
            f"path: {path} is damaged or not a checkpoint of vae_book ({reason}); train again, "
            "into a new file or after deleting this one"
        ) from error


def _match(name: str, found: Any, wanted: Any) -> None:
    """Raise ValueError unless ``found`` has the keys and shapes of ``wanted``, and finite numbers.

    The one gate for all tensors of a checkpoint.
    """
    if _outline(found) != _outline(wanted):
        raise ValueError(f"{name}: expected {_outline(wanted)}, got {_outline(found)}")
    if isinstance(wanted, Mapping):
        for key in wanted:
            _match(f"{name}: {key}", found[key], wanted[key])
    elif not found.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, got infinity or NaN")


def _types(weights: Mapping[str, Tensor]) -> str:
    return " and ".join(sorted({str(each.dtype) for each in weights.values()}))


def _outline(found: Any) -> str:
    if isinstance(found, Mapping):
        return ", ".join(sorted(map(repr, found))) or "nothing"
    if isinstance(found, Tensor):
        kind = "floating-point" if found.is_floating_point() else found.dtype
        return f"{kind} numbers of shape {tuple(found.shape)}"
    return type(found).__name__


def architecture(model: VAE) -> dict:
    """The class and the arguments that make a model like this one.

    A model or likelihood of one's own can be kept as well, if it keeps its arguments under their
    own names, can be made on torch's meta device, where tensors have shapes but no numbers, and is
    imported before the checkpoint is read.

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


def _made(name: str, description: dict, known: Mapping[str, type]) -> Any:
    arguments = dict(description)
    kind = arguments.pop("kind", None)
    if kind not in known:
        raise ValueError(
            f"{name}: expected one of the kinds {', '.join(known)}, got {kind}; import the "
            "module that defines it first, unless another version of vae_book wrote it"
        )
    return known[kind](**arguments)


def _state(optimizer: torch.optim.Optimizer) -> dict:
    """Its state, with an entry for each parameter: an empty one has had no gradient so far."""
    found = optimizer.state_dict()
    parameters = [each for group in found["param_groups"] for each in group["params"]]
    return {**found, "state": {each: found["state"].get(each, {}) for each in parameters}}


def _moments(model: VAE, state: dict) -> dict:
    """What `_state` is to look like for Adam and this model."""
    return {
        index: {"step": torch.zeros(()), "exp_avg": each, "exp_avg_sq": each}
        if state.get(index)
        else {}
        for index, each in enumerate(model.parameters())
    }
