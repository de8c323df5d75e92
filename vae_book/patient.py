"""A reader's own VAE in one form, whatever its conventions; and its calls, watched.

Nothing here takes its numbers from the formulas of the package, since those are what it is compared
with: all densities are torch's.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    ContinuousBernoulli,
    Distribution,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
)

from vae_book import likelihoods
from vae_book.distributions import DiagonalGaussian

Function = Callable[..., Any]

# What the second output of an encoder may be, as the standard deviation that it stands for.
DEVIATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "log_var": lambda spread: torch.exp(0.5 * spread),
    "std": lambda spread: spread,
    "log_std": torch.exp,
    "var": torch.sqrt,
    "scale_tril": lambda spread: spread.diagonal(dim1=-2, dim2=-1),
}

# Under which names an encoder's outputs are had, in a dictionary or from an object.
MEANS = ("mu", "mean", "means", "loc", "z_mean", "z_mu", "mean_z", "mu_z", "embedding")
SPREADS = (
    *("log_var", "logvar", "log_variance", "z_log_var", "z_logvar", "logvar_z", "log_covariance"),
    *("log_std", "logstd", "log_sigma", "log_scale", "z_log_std", "z_log_sigma"),
    *("std", "stddev", "sigma", "scale", "z_std", "z_sigma", "var", "variance", "z_var"),
)

# What a decoder's tensor may be.
FAMILIES: dict[str, Callable[[Tensor], Distribution]] = {
    "logits": lambda out: Bernoulli(logits=out, validate_args=False),
    "probabilities": lambda out: Bernoulli(probs=out, validate_args=False),
    "gaussian": lambda out: Normal(out, torch.ones_like(out), validate_args=False),
    "laplace": lambda out: Laplace(out, torch.ones_like(out), validate_args=False),
    "continuous logits": lambda out: ContinuousBernoulli(logits=out, validate_args=False),
    "continuous probabilities": lambda out: ContinuousBernoulli(probs=out, validate_args=False),
}


class Encoded(NamedTuple):
    """What an encoder says of q(z | x).

    Attributes:
        mu: the means, shape (n, ...).
        spread: its second output.
        kind: what that is, a key of ``DEVIATIONS``, where its type says so; else None.
    """

    mu: Tensor
    spread: Tensor
    kind: str | None

    def normal(self, kind: str) -> Normal:
        """q(z | x), if the second output is of this kind."""
        return Normal(self.mu, DEVIATIONS[kind](self.spread), validate_args=False)

    @property
    def likely(self) -> str:
        """What the second output seems to be: only logarithms are ever negative."""
        return self.kind or ("std" if bool((self.spread > 0).all()) else "log_var")


def read_encoded(encoded: Any, places: tuple[int, int] = (0, 1)) -> Encoded:
    """Mean and spread from a tuple, a dictionary, an object that has them, or a distribution.

    Args:
        encoded: what an encoder returned.
        places: where mean and spread stand in a tuple.

    Raises:
        ValueError: it is none of those, or no diagonal Gaussian.
    """
    encoded = alone(encoded)
    while isinstance(encoded, Independent):
        encoded = encoded.base_dist
    if isinstance(encoded, DiagonalGaussian):
        return Encoded(encoded.mu, encoded.log_var, "log_var")
    if isinstance(encoded, Normal):
        return Encoded(encoded.loc, encoded.scale, "std")
    if isinstance(encoded, MultivariateNormal):
        factor = encoded._unbroadcasted_scale_tril  # its draws come from this one
        if bool((factor.tril(-1) != 0).any()):
            raise ValueError("encode: expected a diagonal Gaussian, got one with correlations")
        return Encoded(encoded.loc, factor, "scale_tril")
    pair = _pair(encoded, places)
    if len(pair) < 2 or not all(isinstance(each, Tensor) for each in pair):
        raise ValueError(
            "encode: expected a tuple (mu, log_var) or (mu, std), a dictionary with such names, a "
            f"torch Normal or a DiagonalGaussian, got {type(encoded).__name__}; if it returns "
            "something else, give a function of the images that returns (mu, log_var)"
        )
    if pair[0].shape != pair[1].shape:
        raise ValueError(
            "encode: expected mean and spread of one shape, got "
            f"{tuple(pair[0].shape)} and {tuple(pair[1].shape)}"
        )
    return Encoded(pair[0], pair[1], None)


def alone(value: Any) -> Any:
    """What a tuple, a list or a dictionary of one holds; any other value as it is."""
    while isinstance(value, tuple | list | Mapping) and len(value) == 1:
        (value,) = value.values() if isinstance(value, Mapping) else value
    return value


def _pair(encoded: Any, places: tuple[int, int]) -> tuple[Any, ...]:
    """What may be mean and spread."""
    if isinstance(encoded, Sequence) and not isinstance(encoded, str):
        return tuple(encoded[each] for each in places if each < len(encoded))
    if isinstance(encoded, Tensor | Distribution):
        return ()
    held = dict(encoded) if isinstance(encoded, Mapping) else {
        name: getattr(encoded, name, None) for name in (*MEANS, *SPREADS)
    }  # fmt: skip
    first = [next((held[n] for n in names if isinstance(held.get(n), Tensor)), None)
             for names in (MEANS, SPREADS)]  # fmt: skip
    return tuple(each for each in first if each is not None)


def mean_and_spread(encoded: Sequence[Any], again: Sequence[Any]) -> tuple[int, int]:
    """Where mean and spread stand in a tuple that also has a draw of z, perhaps the first of all.

    Args:
        encoded, again: what the encoder returned for the same images at two times.
    """
    tensors = [i for i, each in enumerate(encoded) if isinstance(each, Tensor)]
    fixed = [i for i in tensors if torch.equal(encoded[i], again[i])]
    # Without noise z is the mean that follows it.
    apart = [
        i for i, j in pairwise([*fixed, -1]) if j < 0 or not torch.equal(encoded[i], encoded[j])
    ]
    for i, j in (*pairwise(apart), *pairwise(fixed)):
        if encoded[i].shape == encoded[j].shape:
            return i, j
    return 0, 1


class OwnPrior(Distribution):
    """A prior of the reader's, or of the package's, that is asked like one of torch's.

    Args:
        prior: an object with ``sample``, which takes a shape or a number, and ``log_prob``.
        like: one z, whose shape draws have to have.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as torch has it)

    def __init__(self, prior: Any, like: Tensor) -> None:
        super().__init__(event_shape=like.shape, validate_args=False)
        self.prior = prior
        if isinstance(prior, Distribution):
            self.prior = copy.copy(prior)
            self.prior._validate_args = False  # outside its support the density is 0, not an error

    def sample(self, shape: Any = ()) -> Tensor:
        """Draws whose leading axes are ``shape``."""
        wanted = torch.Size(shape)
        try:
            drawn = self.prior.sample(wanted)
        except TypeError:
            drawn = self.prior.sample(wanted.numel())
        size = getattr(drawn, "shape", type(drawn).__name__)
        if size not in (wanted + self.event_shape, (wanted.numel(), *self.event_shape)):
            raise ValueError(
                f"prior: expected draws of shape {(wanted + self.event_shape)!s}, got {size}"
            )
        return drawn.reshape(wanted + self.event_shape).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of each z, in nats, summed over whatever axes it has left."""
        rows = value.reshape(-1, *self.event_shape)
        found = self.prior.log_prob(rows)
        if not isinstance(found, Tensor) or found.shape[:1] != rows.shape[:1]:
            got = getattr(found, "shape", type(found).__name__)
            raise ValueError(f"prior: expected log p(z) of {len(rows)} draws, got {got}")
        leading = value.shape[: value.ndim - len(self.event_shape)]
        return found.reshape(len(rows), -1).sum(-1).reshape(leading)


def read_prior(prior: Any, like: Tensor) -> Distribution:
    """p(z) as a distribution of torch's; None is N(0, I).

    Raises:
        ValueError: it is no distribution, and has no ``sample`` and ``log_prob``.
    """
    while isinstance(prior, Independent):
        prior = prior.base_dist
    if prior is None:
        return Normal(torch.zeros_like(like), torch.ones_like(like))
    if isinstance(prior, DiagonalGaussian):
        return Normal(prior.mu, prior.sigma)
    if isinstance(prior, Distribution):
        prior = copy.copy(prior)
        prior._validate_args = False  # outside its support the density is 0, not an error
        return prior
    if not is_prior(prior):
        raise ValueError(
            "prior: expected a distribution, or an object with sample and log_prob, got "
            f"{type(prior).__name__}"
        )
    return OwnPrior(prior, like)


def is_prior(prior: Any) -> bool:
    """Whether an object can be drawn from and has a log-density."""
    named = all(callable(getattr(prior, name, None)) for name in ("sample", "log_prob"))
    return named and not inspect.isclass(prior)


def fitting(prior: Any, mu: Tensor) -> Any:
    """A distribution of torch's over z, even if it was given for one unit: N(0, 1) for N(0, I).

    Args:
        prior: it is returned as it is, if it is something else.
        mu: z of each image, shape (n, ...).

    Raises:
        ValueError: it is a distribution over something of another shape.
    """
    if not isinstance(prior, Distribution):
        return prior
    shape, one = prior.batch_shape + prior.event_shape, mu.shape[1:]
    if shape not in (one, mu.shape) and (prior.event_shape or shape not in ((), (1,))):
        raise ValueError(
            f"prior: expected a distribution of z, shape {tuple(one)}, got shape {tuple(shape)}"
        )
    return prior if shape in (one, mu.shape) else prior.expand(one)


def read_decoded(decoded: Any, family: str, n: int, pixels: int) -> Distribution:
    """p(x | z) as a distribution of torch's, from a tensor, a distribution, or the book's.

    Raises:
        ValueError: it is none of those, or has not one number for each pixel.
    """
    while isinstance(decoded, Independent):
        decoded = decoded.base_dist
    if isinstance(decoded, Distribution):
        return decoded
    if isinstance(decoded, likelihoods.ImageDistribution):
        return _book_distribution(decoded)
    if not isinstance(decoded, Tensor):
        raise ValueError(
            "decode: expected a tensor of logits, probabilities or means, or a distribution, got "
            f"{type(decoded).__name__}; for other outputs give likelihood=f(images, decoded)"
        )
    if decoded.numel() % (n * pixels):
        raise ValueError(
            f"decode: expected {pixels} numbers for each of {n} images, got shape "
            f"{tuple(decoded.shape)}; for other outputs give likelihood=f(images, decoded)"
        )
    return FAMILIES[family](decoded)


def _book_distribution(p_x: likelihoods.ImageDistribution) -> Distribution:
    likelihood, params = p_x.likelihood, p_x.params
    if isinstance(likelihood, likelihoods.Bernoulli):
        return Bernoulli(logits=params, validate_args=False)
    if isinstance(likelihood, likelihoods.ContinuousBernoulli):
        return ContinuousBernoulli(logits=params, validate_args=False)
    if isinstance(likelihood, likelihoods.Gaussian):
        deviation = torch.exp(0.5 * likelihood.log_var(params))
        return Normal(likelihood.mean(params), deviation, validate_args=False)
    raise ValueError(
        f"decode: expected a likelihood of vae_book, got {type(likelihood).__name__}; give "
        "likelihood=f(images, decoded), its log-density"
    )


def parameters_of(decoded: Any) -> list[Tensor]:
    """The tensors that a decoder computed, through which its gradients pass."""
    return [each for each in tensors_of(decoded) if each.requires_grad]


def tensors_of(decoded: Any) -> list[Tensor]:
    """The tensors that a decoder computed."""
    while isinstance(decoded, Independent):
        decoded = decoded.base_dist
    if isinstance(decoded, likelihoods.ImageDistribution):
        decoded = decoded.params
    if isinstance(decoded, Distribution):
        # Where one of two may be given, the other is computed from it and kept.
        given = getattr(decoded, "_param", None)
        names = decoded.arg_constraints
        decoded = [given] if given is not None else [vars(decoded).get(name) for name in names]
    values = decoded if isinstance(decoded, list | tuple) else [decoded]
    return [each for each in values if isinstance(each, Tensor)]


class Call(NamedTuple):
    """One call of a function: its first argument and its result."""

    argument: Any
    result: Any


Memory = Callable[[Any, Sequence[Call]], Any]  # a result and the calls before -> what to return


@contextmanager
def watched(function: Function, memory: Memory = lambda result, _: result) -> Iterator[list[Call]]:
    """The calls that are made of a module or a method while the block runs, by whomever.

    Other functions cannot be watched: whoever holds one calls it itself.

    Args:
        function: the module or method.
        memory: what is returned in place of a result, from it and the calls before.
    """
    calls: list[Call] = []

    def heard(given: tuple[Any, ...], named: dict[str, Any], result: Any) -> Any:
        result = memory(result, calls)
        calls.append(Call(next(iter((*given, *named.values())), None), result))
        return result

    with ExitStack() as stack:
        owner = getattr(function, "__self__", None)
        if isinstance(function, nn.Module):
            hook = function.register_forward_hook(
                lambda _, given, named, result: heard(given, named, result), with_kwargs=True
            )
            stack.callback(hook.remove)
        elif name := _name_in(owner, function):
            _intercept(stack, owner, name, heard)
        yield calls


def _name_in(owner: object, function: Function) -> str | None:
    """Under which name an object has this method, if it can be given another in its place."""
    if owner is None or inspect.isclass(owner) or not hasattr(owner, "__dict__"):
        return None
    own = {name: each for name, each in vars(owner).items() if each == function}
    held = [vars(kind) for kind in type(owner).__mro__]
    wanted = getattr(function, "__func__", None)
    return next(iter([*own, *(n for each in held for n, v in each.items() if v is wanted)]), None)


def _intercept(stack: ExitStack, owner: object, name: str, heard: Callable[..., Any]) -> None:
    """An attribute of the object stands before the method of its class."""
    function, before = getattr(owner, name), vars(owner).get(name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        return heard(args, kwargs, function(*args, **kwargs))

    object.__setattr__(owner, name, spy)
    if before is None:
        stack.callback(object.__delattr__, owner, name)
    else:
        stack.callback(object.__setattr__, owner, name, before)


def modules_of(*functions: Any) -> list[nn.Module]:
    """The modules that functions are, are methods of, or use."""
    found: dict[int, nn.Module] = {}
    for function in functions:
        owner = getattr(function, "__self__", None)
        held = [function, owner, *_used_by(function)]
        if not isinstance(owner, nn.Module) and not isinstance(function, nn.Module):
            held += [*getattr(owner, "__dict__", {}).values()]
        found |= {id(each): each for each in held if isinstance(each, nn.Module)}
    return list(found.values())


def _used_by(function: Any) -> list[Any]:
    """What a function holds, or names: a lambda in a script speaks of the model by its name."""
    if isinstance(function, partial):
        inside = function.func
        held = [inside, getattr(inside, "__self__", None), *_used_by(inside)]
        return [*held, *function.args, *function.keywords.values()]
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function):
        return [*getattr(function, "__dict__", {}).values()] if callable(function) else []
    try:
        used = inspect.getclosurevars(function)
    except ValueError:  # a name that has no value yet
        return []
    held = [*used.nonlocals.values(), *used.globals.values()]
    plain = [each for each in held if not isinstance(each, type | ModuleType | nn.Module)]
    inner = [part for each in plain for part in getattr(each, "__dict__", {}).values()]
    return held + inner + [getattr(each, "__self__", None) for each in held]


def required_arguments(function: Function, given: int) -> int:
    """How many positional arguments a function has to be given; ``given``, if so many will do."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(called).parameters.values()
    except ValueError:  # one that is not written in Python
        return given
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [each for each in parameters if each.kind in positional]
    needed = sum(each.default is inspect.Parameter.empty for each in taken)
    more = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
    return given if needed <= given and (more or given <= len(taken)) else needed
