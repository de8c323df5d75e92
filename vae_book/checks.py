"""What functions ask of their arguments, with messages that say what to do (used everywhere).

Numbers pass `as_floats` where a distribution is made. The values of whole data sets are checked
once: inside ``with trusted():`` they are not looked at again, since that would read back from the
device in every training step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real

import torch
from torch import Tensor

_trusting = ContextVar("trusting", default=False)


@contextmanager
def trusted() -> Iterator[None]:
    """Leave out checks of values in the block: they have been made, for all data at once."""
    token = _trusting.set(True)
    try:
        yield
    finally:
        _trusting.reset(token)


def is_trusted() -> bool:
    """Whether the values at hand have been checked before."""
    return _trusting.get()


def as_floats(*values: object) -> tuple[Tensor, ...]:
    """Numbers, arrays and tensors as floating-point tensors of one type on one device.

    Whole numbers take the type of the others: cast the other way, 0.5 would become 0. Half
    precision becomes single: a log-probability sums hundreds of terms.
    """
    if {getattr(value, "dtype", None) for value in values} == {torch.float32}:
        return values  # type: ignore[return-value]  # as in a training step
    device = next((value.device for value in values if isinstance(value, Tensor)), None)
    tensors = [torch.as_tensor(value, device=device) for value in values]
    # A plain number has a type of its own only where there is nothing else.
    given = [
        tensor for tensor, value in zip(tensors, values, strict=True) if not isinstance(value, Real)
    ]
    types = {tensor.dtype for tensor in given or tensors if tensor.is_floating_point()}
    single = torch.float32 if types else torch.get_default_dtype()
    dtype = torch.float64 if torch.float64 in types else single
    return tuple(tensor.to(dtype) for tensor in tensors)


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


def whole_number(name: str, value: object, least: int = 1) -> int:
    """A count, such as of draws.

    Raises:
        ValueError: it is not whole, or below ``least``; the message starts with ``name``.
    """
    try:
        count = int(value)  # type: ignore[call-overload]  # what has no int raises
        if count != value or isinstance(value, bool) or count < least:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{name}: expected a whole number of at least {least}, got {value!r}"
        ) from None
    return count


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
        if draws.ndim < 1 or len(draws) < 2:
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
