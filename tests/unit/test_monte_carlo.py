"""Averages over draws are what they say, and so are their standard errors."""

import math
import statistics
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.numbers import double, refused, repeatable
from vae_book.device import seeded
from vae_book.monte_carlo import average, effective_sample_size, log_average

logarithms = st.lists(st.floats(-30, 30, allow_subnormal=False), min_size=2, max_size=8)


@pytest.mark.equation("eq-monte-carlo", route="Python's statistics, in fractions", rel=1e-12)
def test_an_average_and_its_standard_error_are_those_of_statistics(agree):
    draws = [Fraction(n, 7) for n in (3, -8, 20, 5, 5, 1)]
    estimate = average(double(draws))
    agree(estimate.value, double(statistics.mean(draws)))
    agree(estimate.standard_error, double(statistics.variance(draws) / len(draws)).sqrt())


@pytest.mark.equation("eq-monte-carlo", route="repeating the average 4,000 times", rel=0.04)
def test_the_standard_error_is_the_deviation_over_repetitions(agree):
    draws = torch.empty(50, 4000, dtype=torch.float64).exponential_(generator=seeded(0))
    estimates = average(draws)
    agree(estimates.standard_error.square().mean().sqrt(), estimates.value.std())


@pytest.mark.parametrize("function", [average, log_average])
def test_the_average_is_over_the_first_axis(function):
    draws = torch.randn(6, 2, 3, dtype=torch.float64, generator=seeded(0))
    estimate = function(draws)
    for row in range(2):
        for column in range(3):
            one = function(draws[:, row, column])
            torch.testing.assert_close(estimate.value[row, column], one.value)
            torch.testing.assert_close(estimate.standard_error[row, column], one.standard_error)


def test_the_log_of_an_average_is_that_of_fractions():
    weights = [Fraction(1, 3), Fraction(2), Fraction(5, 7), Fraction(0)]
    mean = sum(weights) / 4
    error = math.sqrt(statistics.variance(weights) / 4) / mean
    estimate = log_average(double(weights).log())
    assert estimate.value.item() == pytest.approx(math.log(mean), rel=1e-12)
    assert estimate.standard_error.item() == pytest.approx(error, rel=1e-12)


def test_the_standard_error_of_the_log_is_its_deviation_over_repetitions():
    log_weights = 0.5 * torch.randn(400, 4000, dtype=torch.float64, generator=seeded(0))
    estimates = log_average(log_weights)
    spread = estimates.value.std().item()
    assert estimates.standard_error.mean().item() == pytest.approx(spread, rel=0.04)


@pytest.mark.parametrize("shift", [-5000.0, -1000.0, 1000.0, 5000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_common_factor_comes_out_however_large_or_small(shift, dtype):
    log_weights = torch.tensor([0.5, -2.0, 1.0, -math.inf], dtype=dtype)
    plain, shifted = log_average(log_weights), log_average(log_weights + shift)
    assert shifted.value.item() == pytest.approx(plain.value.item() + shift, rel=1e-6)
    torch.testing.assert_close(shifted.standard_error, plain.standard_error, rtol=1e-3, atol=0)
    torch.testing.assert_close(
        effective_sample_size(log_weights + shift),
        effective_sample_size(log_weights),
        rtol=1e-3,
        atol=0,
    )


@pytest.mark.equation("eq-jensen", route="Jensen's inequality, for any weights", abs=1e-12)
@repeatable
@given(logarithms)
def test_the_log_of_an_average_is_at_least_the_average_of_the_logs(agree, log_weights):
    value = log_average(double(log_weights)).value
    agree(value.clamp(min=statistics.fmean(log_weights)), value)


@pytest.mark.equation("eq-jensen", route="the case of equality", abs=1e-12)
def test_they_are_equal_for_equal_weights_alone(agree):
    equal = log_average(torch.full((5,), -3.7, dtype=torch.float64))
    agree(equal.value, double(-3.7))
    agree(equal.standard_error, 0.0)
    unequal = double([-1.0, -1.0, -1.1])
    assert log_average(unequal).value > unequal.mean() + 1e-4


def test_weights_that_are_all_zero_average_to_zero_and_cannot_be_trusted():
    none, some = torch.full((3,), -math.inf), double([-1.0, -2.0, -math.inf])
    estimate = log_average(torch.stack([none, some], -1))
    assert estimate.value[0] == -math.inf
    assert estimate.standard_error[0] == math.inf
    assert estimate.value[1].item() == pytest.approx(math.log((math.exp(-1) + math.exp(-2)) / 3))
    assert 0 < estimate.standard_error[1] < 1
    assert effective_sample_size(none) == 0


@pytest.mark.equation("eq-ess", route="arithmetic in fractions", rel=1e-12)
@pytest.mark.parametrize("weights", [(1, 2), (3, 1, 4, 1, 5), (1, 0, 0), (7, 7, 7, 7), (1, 10**6)])
def test_the_effective_sample_size_is_that_of_fractions(agree, weights):
    weights = [Fraction(weight, 9) for weight in weights]
    exact = sum(weights) ** 2 / sum(weight**2 for weight in weights)
    agree(effective_sample_size(double(weights).log()), double(exact))


@pytest.mark.equation("eq-ess", route="its two extremes", abs=1e-12)
def test_equal_weights_count_fully_and_a_single_one_as_one(agree):
    agree(effective_sample_size(torch.full((9, 2), -1234.5).double()), [9.0, 9.0])
    agree(effective_sample_size(double([[0.0, -800.0], [-800.0, -1600.0]])), [1.0, 1.0])


@repeatable
@given(logarithms)
def test_the_effective_sample_size_is_between_one_and_the_number_of_draws(log_weights):
    size = effective_sample_size(double(log_weights))
    assert 1 - 1e-12 <= size <= len(log_weights) * (1 + 1e-12)


@pytest.mark.equation("eq-ess-error", route="the effective sample size", rel=1e-9)
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0, 20.0])
def test_the_relative_error_follows_from_the_effective_sample_size(agree, spread):
    log_weights = spread * torch.randn(40, 3, dtype=torch.float64, generator=seeded(0))
    size = effective_sample_size(log_weights)
    agree(log_average(log_weights).standard_error.square(), (40 / size - 1) / 39)


@pytest.mark.equation("eq-ess-error", route="a single weight, the worst case", rel=1e-12)
def test_no_estimate_reports_a_relative_error_above_one(agree):
    alone = torch.full((50,), -math.inf, dtype=torch.float64)
    alone[7] = -1234.5
    agree(log_average(alone).standard_error, 1.0)
    log_weights = 30 * torch.randn(50, 200, dtype=torch.float64, generator=seeded(1))
    assert log_average(log_weights).standard_error.max() <= 1 + 1e-12


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("function", "name"),
    [(average, "draws"), (log_average, "log_weights"), (effective_sample_size, "log_weights")],
)
def test_what_has_no_average_is_refused(function, name):
    for shape in [(), (0,), (1,), (1, 4)]:
        with refused(f"{name}: expected shape (n, ...) with n >= 2, got {shape}"):
            function(torch.zeros(shape))
    found = function(torch.tensor([0.0, math.nan, 1.0]))
    assert torch.as_tensor(found[0] if isinstance(found, tuple) else found).isnan()


@pytest.mark.parametrize("function", [log_average, effective_sample_size])
def test_an_infinite_weight_is_refused(function):
    with refused("log_weights: expected logarithms of finite weights, got infinity"):
        function(torch.tensor([[0.0, 1.0], [0.0, math.inf]]))
