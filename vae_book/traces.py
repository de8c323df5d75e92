"""All that torch computes while a loss runs, and in it what an encoder and a decoder gave.

A function that wraps a model, such as a lambda, cannot be watched, since a loss calls the model
itself. But it can be asked for its results, and these be found again among the numbers of the loss.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode

from vae_book.patient import Call

TRIED = 100  # tensors of the shape of z that are given to the decoder


class Trace(TorchFunctionMode):
    """A block in which all results of torch's functions are kept, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        parts = result if isinstance(result, tuple | list) else (result,)
        self.results += [each for each in parts if isinstance(each, Tensor)]
        return result

    def first(self, wanted: Tensor) -> Tensor | None:
        """The first tensor that was computed with these numbers."""
        for each in self.results:
            if each.shape == wanted.shape and each.dtype == wanted.dtype and bool(
                torch.isclose(each, wanted, rtol=1e-5, atol=1e-7, equal_nan=True).all()
            ):  # fmt: skip
                return each
        return None

    def holding(self, value: Any) -> Any:
        """The same tuple, distribution or tensor, with the tensors of the block in their places.

        Raises:
            LookupError: the block computed no such numbers.
        """
        if isinstance(value, Tensor):
            found = self.first(value)
            if found is None:
                raise LookupError
            return found
        if isinstance(value, Mapping):
            return {name: self.holding(each) for name, each in value.items()}
        if isinstance(value, tuple | list):
            return [self.holding(each) for each in value]
        if isinstance(value, Distribution):
            value = copy.copy(value)
            parts = {n: v for n, v in vars(value).items() if isinstance(v, Tensor | Distribution)}
            vars(value).update({name: self.holding(each) for name, each in parts.items()})
            return value
        raise LookupError

    def decodings(self, decode: Callable[[Tensor], Any], like: Tensor) -> list[Call]:
        """The calls of a decoder: each tensor of the shape of z from which it makes what was made.

        Args:
            decode: the decoder.
            like: z of each image, shape (n, ...); K draws have the shape (K, n, ...).
        """
        calls: dict[int, Call] = {}
        for z in self._candidates(like):
            try:
                made = self.holding(decode(z.detach()))
            except Exception:  # what the decoder cannot take is no z
                continue
            key = next((id(each) for each in _tensors(made)), 0)
            calls.setdefault(key, Call(z, made))
        return list(calls.values())

    def _candidates(self, like: Tensor) -> list[Tensor]:
        distinct = {id(each): each for each in self.results}.values()
        found = [
            z for z in distinct if z.dtype == like.dtype and z.shape[-like.ndim :] == like.shape
        ]
        return found[:TRIED]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (part for each in value.values() for part in _tensors(each))
    elif isinstance(value, list):
        yield from (part for each in value for part in _tensors(each))
    elif isinstance(value, Distribution):
        yield from (part for each in vars(value).values() for part in _tensors(each))


def goes_around(
    values: Sequence[Tensor], results: Sequence[Tensor], stop: Sequence[Tensor]
) -> bool:
    """Whether values depend on what results were computed from by a way that meets no stop.

    Args:
        values: with their graphs.
        results: with theirs.
        stop: tensors on the ways that are allowed.
    """
    return bool(_leaves(values, stop) & _leaves(results))


def _leaves(values: Sequence[Tensor], stop: Sequence[Tensor] = ()) -> set[int]:
    """The ends of a graph, up to where it passes through some tensors."""
    seen: set[Any] = {each.grad_fn for each in stop}
    ends: set[int] = set()
    waiting: list[Any] = [each.grad_fn for each in values]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            ends.add(id(node.variable))
        waiting += [each for each, _ in node.next_functions]
    return ends
