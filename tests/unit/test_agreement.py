"""What `agree` lets pass and what it does not."""

import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests import agreement
from tests.agreement import Agreement
from vae_book.monte_carlo import Estimate

ESTIMATE = Estimate(torch.tensor(5.0), torch.tensor(0.5))


@pytest.mark.parametrize(
    ("tolerance", "values", "passes"),
    [
        ({}, (1.0, 1.0), True),
        ({}, (torch.tensor(1.0), torch.tensor(1.0 + 2**-52, dtype=torch.float64)), False),
        ({"rel": 0.1}, (100.0, 110.0), True),
        ({"rel": 0.1}, (110.0, 100.0), True),  # of the larger
        ({"rel": 0.1}, (-100.0, -110.0), True),
        ({"rel": 0.1}, (100.0, 112.0), False),
        ({"rel": 0.1}, (112.0, 100.0), False),
        ({"rel": 0.1}, (-100.0, 100.0), False),
        ({"abs": 0.1}, (0.0, 0.09), True),
        ({"abs": 0.1}, (0.0, -0.11), False),
        ({"abs": 1.0, "rel": 0.1}, (10.0, 12.0), True),  # 1 and 1.2
        ({"abs": 1.0, "rel": 0.1}, (10.0, 12.4), False),
        ({"rel": 0.1}, (1.0, 1.0, 1.0), True),
        ({"rel": 0.1}, (1.0, 1.0, 2.0), False),
        ({"rel": 0.1}, (2.0, 1.0, 1.0), False),
        ({"rel": 0.1}, (1.0,), False),
        ({"rel": 0.1}, (), False),
        ({"rel": 1.0}, (math.nan, math.nan), False),
        ({"rel": 1.0}, (1.0, math.nan), False),
        ({"rel": 1.0}, (math.inf, math.inf), False),
        ({"rel": 1.0}, (1.0, math.inf), False),
        ({"rel": 1.0}, (-math.inf, 1.0), False),
        ({"standard_errors": 4}, (ESTIMATE, 6.9), True),
        ({"standard_errors": 4}, (ESTIMATE, 3.1), True),
        ({"standard_errors": 4}, (ESTIMATE, 7.1), False),
        ({"standard_errors": 4}, (ESTIMATE, 2.9), False),
        ({"standard_errors": 4}, (5.0, ESTIMATE), False),
        ({"standard_errors": 4}, (Estimate(torch.tensor(5.0), torch.tensor(math.nan)), 5.0), False),
        ({"standard_errors": 4}, (5.0, 6.0), False),  # is for estimates alone
        ({"rel": 1.0}, (ESTIMATE, 5.0), False),
    ],
)
def test_numbers_agree_within_the_tolerance_and_no_further(tolerance, values, passes):
    agree = Agreement("by hand", **tolerance)
    if passes:
        agree(*values)
        assert agree.compared == len(values) - 1
    else:
        with pytest.raises(AssertionError):
            agree(*values)


@pytest.mark.parametrize(
    ("one", "other"),
    [((2,), ()), ((), (2,)), ((2,), (1,)), ((2,), (3,)), ((2, 3), (3, 2)), ((2, 1), (1, 2))],
)
def test_shapes_that_differ_do_not_agree(one, other):
    with pytest.raises(AssertionError):
        Agreement("by hand", abs=1)(torch.zeros(one), torch.zeros(other))


def test_an_estimate_that_may_be_anything_agrees_with_nothing():
    agree = Agreement("by hand", standard_errors=4)
    for error in (math.inf, [0.1, math.inf]):
        error = torch.tensor(error)
        with pytest.raises(AssertionError, match="expected finite standard errors, got"):
            agree(Estimate(torch.zeros_like(error), error), torch.zeros_like(error))


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_nothing_agrees_with_nothing(shape):
    none = torch.zeros(shape)
    with pytest.raises(AssertionError, match=r"expected numbers to compare, got none: shape \("):
        Agreement("by hand", abs=1)(none, none)
    with pytest.raises(AssertionError, match="expected numbers to compare, got none"):
        Agreement("by hand", standard_errors=4)(Estimate(none, none), none)


def test_one_entry_of_many_is_enough_to_disagree():
    ones = torch.ones(3, 4)
    off = ones.clone()
    off[1, 2] = 1.2
    with pytest.raises(AssertionError, match=r"off by 0\.2"):
        Agreement("by hand", rel=0.1)(ones, off)


def test_numbers_of_every_kind_are_compared():
    agree = Agreement("by hand", rel=1e-7)
    agree(1, 1.0, np.float32(1), torch.ones((), requires_grad=True), torch.tensor(1))
    agree([1, 2], (1.0, 2.0), np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]))


def test_single_precision_is_not_rounded_to():
    agree = Agreement("by hand", rel=1e-9)
    agree(torch.tensor(0.1, dtype=torch.float64), 0.1)
    with pytest.raises(AssertionError):
        agree(1.0, 1.0 + 1e-8)


def fixture(**tolerance):
    """The fixture's own generator, for a test that has this mark."""
    mark = SimpleNamespace(kwargs={"route": "by hand", **tolerance})
    node = SimpleNamespace(get_closest_marker={"equation": mark}.get)
    return inspect.unwrap(agreement.agree)(SimpleNamespace(node=node))


def test_the_tolerance_is_that_of_the_mark():
    assert next(fixture(rel=0.1)) == Agreement("by hand", rel=0.1)
    assert next(fixture(abs=0.1)) == Agreement("by hand", abs=0.1)
    assert next(fixture(standard_errors=4)) == Agreement("by hand", standard_errors=4)
    with pytest.raises(TypeError):
        next(fixture(relative=0.1))


def test_a_test_that_never_compares_fails():
    idle = fixture()
    next(idle)
    with pytest.raises(AssertionError, match="has to call agree"):
        next(idle)
    busy = fixture()
    next(busy)(1.0, 1.0)
    assert next(busy, "done") == "done"
