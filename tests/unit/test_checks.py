"""What is asked of arguments, and how it is said."""

import math

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from tests.numbers import refused
from vae_book.checks import (
    MOST,
    as_floats,
    cholesky,
    enough_draws,
    enough_memory,
    is_trusted,
    last_axis,
    numeric,
    of_kind,
    real_number,
    same_shape,
    sums_to_one,
    trusted,
    whole_number,
)
from vae_book.device import seeded

EYE = torch.eye(2, dtype=torch.float64)


def symmetric(*shape, dtype=torch.float64):
    A = torch.randn(*shape, shape[-1], dtype=dtype, generator=seeded(0))
    return A @ A.mT


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ((torch.tensor([1, 2]), 0.5), torch.float32),
        ((torch.tensor([1, 2]), torch.tensor([0.5, 1.0])), torch.float32),
        ((torch.tensor([1, 2]).byte(), torch.tensor([0.5, 1.0]).double()), torch.float64),
        ((torch.tensor([1.0, 2.0]).half(), 1), torch.float32),
        ((torch.tensor([1.0, 2.0]).half(), torch.tensor([0.5, 1.0])), torch.float32),
        ((np.array([1.0, 2.0]), 0), torch.float64),
        ((np.array([1.0, 2.0], dtype=np.float32), [3, 4]), torch.float32),
        ((torch.tensor([1.0, 2.0]), np.float64(0.5)), torch.float32),
        (([1.0, 2.0], 3), torch.float32),
        ((1, 0.5), torch.float32),
    ],
)
def test_numbers_become_floats_of_one_type_and_keep_their_values(values, dtype):
    found = as_floats(**dict(zip("abcdef", values, strict=False)))
    assert [each.dtype for each in found] == [dtype] * len(values)
    for given, tensor in zip(values, found, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), np.asarray(given, dtype=np.float64))


def test_without_any_floats_the_default_type_is_taken():
    torch.set_default_dtype(torch.float64)
    try:
        assert as_floats(a=torch.tensor([1, 2]))[0].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("value", [None, "1", 1j, torch.tensor(1j), [[1.0], [1.0, 2.0]], {}])
def test_what_is_no_number_is_refused_by_name(value):
    with refused("z: expected real numbers, got "):
        as_floats(x=torch.ones(2), z=value)


def test_constants_keep_their_digits_beside_double_precision():
    _, number, numbers = as_floats(x=torch.ones(2).double(), y=0.1, z=[0.1, 0.2])
    assert number.item() == 0.1
    assert numbers.tolist() == [0.1, 0.2]


def test_arrays_may_be_flipped_or_closed_to_writing():
    array = np.arange(3.0)
    array.flags.writeable = False
    assert as_floats(a=array[::-1])[0].tolist() == [2, 1, 0]


def test_a_real_number_is_one_number():
    values = [1, 0.5, -math.inf, np.float32(0.5), torch.tensor(2)]
    assert [real_number("r", value) for value in values] == [1.0, 0.5, -math.inf, 0.5, 2.0]
    for wrong in (None, "1", 1j, [], torch.ones(2), 10**400):
        with refused("r: expected a number, got "):
            real_number("r", wrong)


@numeric
def scaled(x: Float[Tensor, "..."], factor: float = 2.0, y: Float[Tensor, "..."] | None = None):
    """The gate's own example: it makes floats, sums, and fails where shapes do not fit."""
    assert isinstance(factor, float)
    return x * factor if y is None else x * factor + y


def test_the_gate_makes_floats_of_one_type_and_leaves_out_what_is_not_given():
    assert scaled(torch.tensor([1, 2])).dtype == torch.float32
    assert scaled(torch.tensor([1, 2]), 3, torch.ones(2).double()).tolist() == [4.0, 7.0]
    assert scaled([1, 2], factor=np.float64(0.5)).tolist() == [0.5, 1.0]


def test_the_gate_refuses_by_name_what_torch_cannot_fit_together():
    with refused("x and factor and y: expected arguments that fit each other, got x of shape (2,)"):
        scaled(torch.ones(2), 1.0, torch.ones(3))


def test_a_nan_comes_out_only_where_one_went_in():
    assert scaled(torch.tensor([math.nan, 1.0])).isnan().tolist() == [True, False]
    assert scaled(torch.tensor([math.inf])).item() == math.inf
    with refused("x and y: expected numbers for which scaled has a value"):
        scaled(torch.tensor([math.inf]), 1.0, torch.tensor([-math.inf]))


def test_the_gate_stands_open_for_numbers_that_were_checked_before():
    with trusted():
        assert scaled(torch.tensor([math.inf]), 1.0, torch.tensor([-math.inf])).isnan().all()


def test_values_are_trusted_inside_the_block_alone():
    assert not is_trusted()
    with pytest.raises(ZeroDivisionError), trusted():
        is_trusted() / 0
    with trusted():
        assert is_trusted()
    assert not is_trusted()


def test_what_torch_cannot_count_to_is_refused_by_name():
    assert whole_number("n", 2**63 - 1, most=MOST) == 2**63 - 1
    torch.empty(1).split(MOST)  # the largest that it takes
    for wrong in (2**63, 10**30):
        with refused(f"n: expected a whole number below 2**63, got {wrong}"):
            whole_number("n", wrong, most=MOST)
    assert whole_number("seed", 10**30, least=0) == 10**30


def test_an_object_of_another_class_is_refused_by_name():
    of_kind(Tensor, x=torch.ones(2), y=torch.nn.Parameter(torch.ones(2)))
    for value, found in [
        (None, "one of NoneType"),
        ([1.0], "one of list"),
        (Tensor, "the class Tensor"),
    ]:
        with refused(f"x: expected an object of torch.Tensor, got {found}; make one first"):
            of_kind(Tensor, y=torch.ones(2), x=value)


def test_too_little_memory_is_not_blamed_on_the_shapes():
    @numeric
    def repeated(x: Float[Tensor, "n"], n: int) -> Float[Tensor, "n"]:
        return torch.empty(n, dtype=torch.float64) + x

    for n in (10**15, 2**62):
        with pytest.raises(RuntimeError, match=r"memory|overflow"):
            repeated(torch.ones(2), n)
        said = (
            r"^--samples: expected what fits into the memory of this machine; lower it \([^\n]*\)$"
        )
        with pytest.raises(torch.OutOfMemoryError, match=said), enough_memory("--samples"):
            repeated(torch.ones(2), n)
    with pytest.raises(RuntimeError, match=r"^another$"), enough_memory("--samples"):
        raise RuntimeError("another")


def test_a_count_is_a_whole_number_that_is_large_enough():
    found = [whole_number("n", value) for value in (1, 3.0, np.int64(5), torch.tensor(2))]
    assert found == [1, 3, 5, 2]
    assert {type(value) for value in found} == {int}
    assert whole_number("n", 0, least=0) == 0
    for wrong in (0, -1, 1.5, math.inf, math.nan, "two", None, True, torch.ones(2)):
        with refused("n: expected a whole number of at least 1, got "):
            whole_number("n", wrong)


def test_the_last_axis_has_the_size_asked_for():
    last_axis(3, z=torch.zeros(2, 3), x=torch.zeros(3))
    for shape in [(), (2,), (3, 2)]:
        with refused(f"z: expected shape (..., 3), got {shape}"):
            last_axis(3, z=torch.zeros(shape))


def test_probabilities_sum_to_one():
    sums_to_one(p=torch.tensor([[0.25, 0.75], [1.0, 0.0]]).log())
    for wrong in ([0.5, 0.6], [0.5, 0.4], [0.5, math.nan], [0.0, 0.0]):
        with refused("p: expected logarithms of probabilities that sum to 1"):
            sums_to_one(p=torch.tensor(wrong).log())


def test_arguments_have_one_shape():
    same_shape(a=torch.zeros(2, 3), b=torch.ones(2, 3))
    with refused("a and b: expected the same shape, got (2, 3) and (3,)"):
        same_shape(a=torch.zeros(2, 3), b=torch.zeros(3))


def test_two_draws_are_enough():
    enough_draws(z=torch.zeros(2), x=torch.zeros(2, 3))
    for shape in [(), (0,), (1,), (1, 5), (2, 0)]:
        with refused(f"z: expected shape (n, ...) with n >= 2, got {shape}"):
            enough_draws(z=torch.zeros(shape))


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
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), "expected finite numbers, got infinity"),
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
