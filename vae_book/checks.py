"""What functions ask of their arguments, with messages that say what to do (used everywhere)."""

import torch
from torch import Tensor


def no_nan(**tensors: Tensor) -> None:
    """Raise ValueError if an argument, given by its name, holds a NaN."""
    for name, tensor in tensors.items():
        count = int(torch.isnan(tensor).sum())
        if count:
            raise ValueError(
                f"{name}: expected numbers, got NaN in {count} of {tensor.numel()} entries"
            )


def same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless the arguments, given by their names, have one shape."""
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"{' and '.join(tensors)}: expected the same shape, got "
            f"{' and '.join(map(str, shapes))}"
        )


def broadcastable(**shapes: torch.Size) -> None:
    """Raise ValueError unless the arguments' leading axes, given by their names, broadcast."""
    try:
        torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        raise ValueError(
            f"{' and '.join(shapes)}: expected leading axes that broadcast, got "
            f"{' and '.join(str(tuple(shape)) for shape in shapes.values())}"
        ) from None


def enough_draws(**tensors: Tensor) -> None:
    """Raise ValueError if an argument, given by its name, has fewer than two draws, or NaN."""
    for name, draws in tensors.items():
        if draws.ndim < 1 or len(draws) < 2:
            raise ValueError(
                f"{name}: expected shape (n, ...) with n >= 2, got {tuple(draws.shape)}"
            )
    no_nan(**tensors)


def cholesky(name: str, cov: Tensor, size: int) -> Tensor:
    """The lower-triangular L with ``cov = L @ L.T``.

    Raises:
        ValueError: cov is not (..., size, size), holds a NaN or infinity, is not symmetric or not
            positive definite; the message starts with ``name``.
    """
    if cov.shape[-2:] != (size, size):
        raise ValueError(f"{name}: expected shape (..., {size}, {size}), got {tuple(cov.shape)}")
    no_nan(**{name: cov})
    if not bool(cov.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers, got infinity")
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
