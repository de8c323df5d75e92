"""Names of earlier versions, which go on working for one version, with a warning."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple


def moved(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__``: its old names, each with the module.name that has its place."""

    def getattr_(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, new = names[name].rpartition(".")
        warnings.warn(
            f"{module}.{name} is vae_book.{place}.{new} now; the old name goes with version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        found = getattr(import_module(f"vae_book.{place}"), new)
        return negative(found) if name == "test_bound" else found

    return getattr_


class NegativeBound(NamedTuple):
    """What ``test_bound`` gave: the negative ELBO as ``value``, its terms and the protocol."""

    value: float
    standard_error: float
    protocol: Any
    reconstruction: float
    kl: float


def negative(average_elbo: Callable[..., Any]) -> Callable[..., NegativeBound]:
    """The function under the sign of its old name."""

    def test_bound(*args: Any, **options: Any) -> NegativeBound:
        bound = average_elbo(*args, **options)
        terms = bound.reconstruction, bound.kl
        return NegativeBound(bound.negative_elbo, bound.standard_error, bound.protocol, *terms)

    return test_bound
