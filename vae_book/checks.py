"""What functions ask of their arguments, with messages that say what to do (used everywhere).

Numbers pass one gate: `numeric` before a function, `as_floats` where a distribution is made. The
values of whole data sets are checked once: inside ``with trusted():`` they are not looked at again,
since that would read back from the device in every training step.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from numbers import Real
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

P = ParamSpec("P")
Result = TypeVar("Result")

MOST = 2**63 - 1  # what torch can count to
FULL = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")

_trusting = ContextVar("trusting", default=False)


@contextmanager
def trusted(trust: bool = True) -> Iterator[None]:
    """Leave out checks of values in the block: they have been made, for all data at once.

    Args:
        trust: False makes the checks after all, of what is new within such a block.
    """
    token = _trusting.set(trust)
    try:
        yield
    finally:
        _trusting.reset(token)


def is_trusted() -> bool:
    """Whether the values at hand have been checked before."""
    return _trusting.get()


def numeric(function: Callable[P, Result]) -> Callable[P, Result]:
    """The gate of a function of numbers: its arguments become what their annotations say.

    Those that are ``Float`` pass `as_floats` together, those that are ``float`` `real_number`. What
    torch cannot fit together is refused by name, and so are infinities, overflows and averages of
    nothing that have no value: a result is NaN only where a NaN went in, or came from a function.
    """
    signature = inspect.signature(function)
    hints = {name: each.annotation for name, each in signature.parameters.items()}
    optional = {name for name, each in signature.parameters.items() if each.default is None}
    floats = [name for name, hint in hints.items() if "Float[" in str(hint)]
    names = [name for name in hints if name != "self"]
    pure = not any("Callable[" in str(hint) for hint in hints.values())
    reals = [name for name, hint in hints.items() if hint in (float, float | int)]

    @wraps(function)
    def gated(*args: P.args, **kwargs: P.kwargs) -> Result:
        if is_trusted():  # distributions and data sets have passed where they were made
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        found = [name for name in floats if not (name in optional and given[name] is None)]
        given |= zip(found, as_floats(**{name: given[name] for name in found}), strict=True)
        given |= {name: real_number(name, given[name]) for name in reals}
        try:
            result = function(*bound.args, **bound.kwargs)
        except (RuntimeError, IndexError) as error:
            if isinstance(error, NotImplementedError) or is_out_of_memory(error):
                raise
            shapes = ", ".join(f"{name} of shape {tuple(given[name].shape)}" for name in found)
            raise ValueError(
                f"{' and '.join(names)}: expected arguments that fit each other, got {shapes} "
                f"({error})"
            ) from error
        if pure and _has_nan(result) and not any(map(_has_nan, given.values())):
            raise ValueError(
                f"{' and '.join(found)}: expected numbers for which {function.__qualname__} has a "
                "value, got infinite ones, ones that overflow, or none"
            )
        return result

    return gated


def _has_nan(value: object) -> bool:
    """Whether a NaN is in a tensor, a tuple of them, a model, or what another object holds."""
    if isinstance(value, Tensor):
        # The largest of numbers with a NaN is NaN: found in one pass, where isnan() writes a copy.
        return value.is_floating_point() and value.numel() > 0 and bool(value.amax().isnan())
    if isinstance(value, float):
        return value != value
    if isinstance(value, nn.Module):
        return any(map(_has_nan, value.parameters()))
    held = value if isinstance(value, tuple) else getattr(value, "__dict__", {}).values()
    return any(_has_nan(each) for each in held if isinstance(each, Tensor))


def as_floats(**values: object) -> tuple[Tensor, ...]:
    """Numbers, arrays and tensors as floating-point tensors of one type on one device.

    Whole numbers take the type of the others: cast the other way, 0.5 would become 0. Half
    precision becomes single: a log-probability sums hundreds of terms.

    Raises:
        ValueError: an argument does not consist of real numbers; the message starts with its name.
    """
    if {getattr(value, "dtype", None) for value in values.values()} == {torch.float32}:
        return tuple(values.values())  # type: ignore[arg-type]  # as in a training step
    device = next((value.device for value in values.values() if isinstance(value, Tensor)), None)
    tensors = {name: real_tensor(name, value, device=device) for name, value in values.items()}
    # A plain number has a type of its own only where there is nothing else.
    given = [tensor for name, tensor in tensors.items() if not isinstance(values[name], Real)]
    found = given or list(tensors.values())
    types = {tensor.dtype for tensor in found if tensor.is_floating_point()}
    single = torch.float32 if types else torch.get_default_dtype()
    dtype = torch.float64 if torch.float64 in types else single
    # From the values, not from the tensors: in single precision 0.1 would have lost digits.
    return tuple(real_tensor(name, value, dtype, device) for name, value in values.items())


def real_tensor(
    name: str,
    value: object,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Numbers, nested lists of them, an array or a tensor as a tensor.

    Raises:
        ValueError: it does not consist of real numbers; the message starts with ``name``.
    """
    if isinstance(value, np.ndarray):
        value = np.array(value, order="C")  # torch warns of read-only ones, refuses flipped ones
    try:
        tensor = torch.as_tensor(value, device=device)
        if tensor.is_complex():
            raise TypeError
        return tensor if dtype is None else torch.as_tensor(value, dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name}: expected real numbers, got {value!r:.60}") from None


def real_number(name: str, value: object) -> float:
    """A number as Python's, such as the end of a range; it may be infinite.

    Raises:
        ValueError: it is not one real number; the message starts with ``name``.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)  # type: ignore[arg-type]  # what has no float raises
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name}: expected a number, got {value!r:.60}") from None


def of_kind(kind: type, **values: object) -> None:
    """Raise ValueError unless each argument, given by its name, is an object of this class."""
    for name, value in values.items():
        if not isinstance(value, kind):
            one = f"one of {type(value).__name__}"
            found = f"the class {value.__name__}" if isinstance(value, type) else one
            raise ValueError(
                f"{name}: expected an object of {kind.__module__}.{kind.__name__}, got {found}; "
                "make one first"
            )


def same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless the arguments, given by their names, have one shape."""
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"{' and '.join(tensors)}: expected the same shape, got "
            f"{' and '.join(map(str, shapes))}"
        )


def last_axis(size: int, **tensors: Tensor) -> None:
    """Raise ValueError unless the last axis of each argument, given by its name, has this size."""
    for name, tensor in tensors.items():
        if tensor.shape[-1:] != (size,):
            raise ValueError(f"{name}: expected shape (..., {size}), got {tuple(tensor.shape)}")


def whole_number(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """A count, such as of draws; with ``most=MOST`` one that torch can count to.

    Raises:
        ValueError: it is not whole, below ``least`` or above ``most``; by name.
    """
    try:
        count = int(value)  # type: ignore[call-overload]  # what has no int raises
        if count != value or isinstance(value, bool) or count < least:
            raise ValueError
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(
            f"{name}: expected a whole number of at least {least}, got {value!r}"
        ) from None
    if most is not None and count > most:
        raise ValueError(
            f"{name}: expected a whole number below 2**{most.bit_length()}, got {value!r}"
        )
    return count


def whole_numbers(name: str, values: object, least: int = 1) -> tuple[int, ...]:
    """Several counts, such as the sizes of a shape.

    Raises:
        ValueError: they are no sequence of whole numbers from ``least`` on; by name.
    """
    try:
        given: tuple[object, ...] = tuple(values)  # type: ignore[arg-type]  # or raises
    except TypeError:
        raise ValueError(f"{name}: expected several whole numbers, got {values!r:.60}") from None
    return tuple(whole_number(name, each, least) for each in given)


@contextmanager
def enough_memory(options: str) -> Iterator[None]:
    """Say what is to be lowered if memory does not suffice for the block.

    Raises:
        OutOfMemoryError: torch's, in one line that starts with ``options``.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(
            f"{options}: expected what fits into the memory of this machine; lower it "
            f"({what_torch_says(error)})"
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice, for which torch has a kind of error on a GPU alone."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(each in str(error) for each in FULL)


def what_torch_says(error: Exception) -> str:
    """The line in which an error tells of full memory, without the place in torch's own code."""
    said = str(error).split("DefaultCPUAllocator: ")[-1].partition("\n")[0]
    return said or type(error).__name__


def sums_to_one(**logarithms: Tensor) -> None:
    """Raise ValueError unless the probabilities along the last axis sum to 1; by name, as logs."""
    for name, log_probability in logarithms.items():
        off = (log_probability.logsumexp(-1).exp() - 1).abs().max().item()
        if not off < 1e-3:  # NaN is not
            raise ValueError(
                f"{name}: expected logarithms of probabilities that sum to 1, got a sum that is "
                f"off by {off:.3g}; on a grid, add the logarithm of the step to the log density"
            )


def enough_draws(**tensors: Tensor) -> None:
    """Raise ValueError if an argument, given by its name, has fewer than two draws."""
    for name, draws in tensors.items():
        if draws.ndim < 1 or len(draws) < 2 or draws.numel() == 0:
            raise ValueError(
                f"{name}: expected shape (n, ...) with n >= 2, got {tuple(draws.shape)}"
            )


def cholesky(name: str, cov: Tensor, size: int) -> Tensor:
    """The lower-triangular L with ``cov = L @ L.T``.

    Raises:
        ValueError: cov is not (..., size, size), holds a NaN or infinity, is not symmetric or not
            positive definite; the message starts with ``name``.
    """
    if cov.shape[-2:] != (size, size):
        raise ValueError(f"{name}: expected shape (..., {size}, {size}), got {tuple(cov.shape)}")
    if not bool(cov.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers, got infinity or NaN")
    asymmetry = (cov - cov.mT).abs().amax((-2, -1))
    # A few roundings apart is what a product such as A @ A.T leaves.
    roundings = 100 * torch.finfo(cov.dtype).eps * cov.abs().amax((-2, -1))
    if bool((asymmetry > roundings).any()):
        raise ValueError(
            f"{name}: expected a symmetric matrix, got entries that differ by "
            f"{asymmetry.max().item():.3g} from their mirror images"
        )
    factor, failed = torch.linalg.cholesky_ex(cov)
    if bool(failed.any()):
        smallest = torch.linalg.eigvalsh(cov).min().item()
        raise ValueError(
            f"{name}: expected a positive definite matrix, got one whose smallest eigenvalue is "
            f"{smallest:.3g}"
        )
    return factor
