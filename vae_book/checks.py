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


def cholesky(name: str, cov: Tensor, size: int) -> Tensor:
    """The lower-triangular L with ``cov = L @ L.T``.

    Raises:
        ValueError: cov is not (..., size, size), holds a NaN, is not symmetric or not positive
            definite; the message starts with ``name``.
    """
    if cov.shape[-2:] != (size, size):
        raise ValueError(f"{name}: expected shape (..., {size}, {size}), got {tuple(cov.shape)}")
    no_nan(**{name: cov})
    asymmetry = (cov - cov.mT).abs().max().item()
    # A few roundings apart is what a product such as A @ A.T leaves.
    if asymmetry > 100 * torch.finfo(cov.dtype).eps * cov.abs().max().item():
        raise ValueError(
            f"{name}: expected a symmetric matrix, got entries that differ by {asymmetry:.3g} "
            "from their mirror images"
        )
    factor, failed = torch.linalg.cholesky_ex(cov)
    if bool(failed.any()):
        smallest = torch.linalg.eigvalsh(cov).min().item()
        raise ValueError(
            f"{name}: expected a positive definite matrix, got one whose smallest eigenvalue is "
            f"{smallest:.3g}"
        )
    return factor
