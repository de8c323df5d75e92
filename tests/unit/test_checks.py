"""What is asked of arguments, and how it is said."""

import math

import numpy as np
import pytest
import torch

from tests.numbers import refused
from vae_book.checks import broadcastable, cholesky, enough_draws, no_nan, same_shape
from vae_book.device import seeded

EYE = torch.eye(2, dtype=torch.float64)


def symmetric(*shape, dtype=torch.float64):
    A = torch.randn(*shape, shape[-1], dtype=dtype, generator=seeded(0))
    return A @ A.mT


def test_a_nan_is_refused_by_name_and_infinity_is_not():
    no_nan(a=torch.tensor([1.0, math.inf, -math.inf]), b=torch.zeros(0))
    with refused("b: expected numbers, got NaN in 2 of 6 entries"):
        no_nan(a=torch.zeros(2), b=torch.tensor([[0, 0, math.nan], [0, math.nan, 0]]))


def test_arguments_have_one_shape():
    same_shape(a=torch.zeros(2, 3), b=torch.ones(2, 3))
    with refused("a and b: expected the same shape, got (2, 3) and (3,)"):
        same_shape(a=torch.zeros(2, 3), b=torch.zeros(3))


def test_leading_axes_broadcast():
    broadcastable(a=torch.Size([4, 1]), b=torch.Size([3]), c=torch.Size([]))
    with refused("a and b: expected leading axes that broadcast, got (4,) and (2, 3)"):
        broadcastable(a=torch.Size([4]), b=torch.Size([2, 3]))


def test_two_draws_are_enough():
    enough_draws(z=torch.zeros(2), x=torch.zeros(2, 0))
    for shape in [(), (0,), (1,), (1, 5)]:
        with refused(f"z: expected shape (n, ...) with n >= 2, got {shape}"):
            enough_draws(z=torch.zeros(shape))
    with refused("z: expected numbers, got NaN in 1 of 2 entries"):
        enough_draws(z=torch.tensor([0, math.nan]))


@pytest.mark.parametrize("shape", [(1,), (4,), (3, 4), (2, 3, 4)])
def test_the_factor_is_numpys(shape):
    cov = symmetric(*shape)
    factor = cholesky("cov", cov, shape[-1])
    np.testing.assert_allclose(factor, np.linalg.cholesky(cov.numpy()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roundings_are_not_asymmetry(dtype):
    eps = torch.finfo(dtype).eps
    for scale in (1e-6, 1.0, 1e6):
        for size, passes in ((10, True), (300, False)):
            cov = scale * torch.tensor([[2.0, 0.5], [0.5 + size * eps, 1.0]], dtype=dtype)
            if passes:
                cholesky("cov", cov, 2)
            else:
                with refused("cov: expected a symmetric matrix"):
                    cholesky("cov", cov, 2)


@pytest.mark.parametrize(
    ("cov", "message"),
    [
        (torch.eye(3), "expected shape (..., 2, 2), got (3, 3)"),
        (torch.zeros(2, 3), "expected shape (..., 2, 2), got (2, 3)"),
        (torch.zeros(2), "expected shape (..., 2, 2), got (2,)"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), "expected numbers, got NaN in 2 of 4"),
        (torch.tensor([[1.0, 0.0], [0.0, math.inf]]), "expected finite numbers, got infinity"),
        (torch.tensor([[-math.inf, 0.0], [0.0, 1.0]]), "expected finite numbers, got infinity"),
        (
            torch.tensor([[1.0, 0.5], [0.25, 1.0]]),
            "expected a symmetric matrix, got entries that differ by 0.25 from",
        ),
        (
            # Rows of a batch are judged by their own size.
            torch.stack([1e15 * EYE, torch.tensor([[1.0, -0.5], [0.5, 1.0]])]),
            "expected a symmetric matrix, got entries that differ by 1 from",
        ),
        (
            torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
            "expected a positive definite matrix, got one whose smallest eigenvalue is -1",
        ),
        (
            torch.stack([EYE, torch.diag(torch.tensor([2.0, -0.5]))]),
            "expected a positive definite matrix, got one whose smallest eigenvalue is -0.5",
        ),
        (torch.zeros(2, 2), "expected a positive definite matrix"),
    ],
)
def test_what_is_no_covariance_is_refused_by_name(cov, message):
    with refused(f"noise: {message}"):
        cholesky("noise", cov, 2)
