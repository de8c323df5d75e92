"""`gaussian_kl` is the integral that defines it, and behaves as a divergence should."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import Independent, Normal, kl_divergence

from vae_book.divergences import gaussian_kl

repeatable = settings(database=None, deadline=None, derandomize=True)
# The package has the processor treat subnormal numbers as zero (see vae_book.device).
floats = partial(st.floats, allow_subnormal=False)
moderate = floats(-4, 4)
# One row a dimension: mu, log_var, prior_mu, prior_log_var.
rows = st.lists(st.tuples(moderate, moderate, moderate, moderate), min_size=1, max_size=5)


def columns(rows):
    return torch.tensor(rows, dtype=torch.float64).unbind(-1)


def torchs_own(mu, log_var, prior_mu, prior_log_var):
    q, p = (
        Independent(Normal(mean, (log_variance / 2).exp()), 1)
        for mean, log_variance in ((mu, log_var), (prior_mu, prior_log_var))
    )
    return kl_divergence(q, p)


def integral(mu, log_var, prior_mu, prior_log_var):
    q = norm(mu, math.exp(log_var / 2))
    p = norm(prior_mu, math.exp(prior_log_var / 2))
    reach = 12 * q.std()
    value, _ = quad(
        lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), mu - reach, mu + reach, epsabs=1e-12
    )
    return value


def test_each_dimension_adds_the_integral_of_its_log_ratio():
    dimensions = [(0.7, -1.2, 0.0, 0.0), (-2.0, 0.5, 1.0, 1.5), (0.1, 0.0, 0.1, -0.7)]
    expected = sum(integral(*dimension) for dimension in dimensions)
    assert gaussian_kl(*columns(dimensions)).item() == pytest.approx(expected, rel=1e-9)


@repeatable
@given(rows)
def test_agrees_with_torch_distributions(rows):
    torch.testing.assert_close(
        gaussian_kl(*columns(rows)), torchs_own(*columns(rows)), rtol=1e-12, atol=1e-12
    )


def test_the_prior_is_standard_normal_unless_it_is_given():
    mu, log_var = torch.tensor([[0.5, -1.0], [2.0, 0.0]]), torch.tensor([[0.3, -2.0], [0.0, 1.0]])
    zero = torch.zeros(2, 2)
    torch.testing.assert_close(gaussian_kl(mu, log_var), torchs_own(mu, log_var, zero, zero))


@repeatable
@given(rows)
def test_is_never_negative_and_zero_at_equality(rows):
    mu, log_var, *prior = columns(rows)
    assert gaussian_kl(mu, log_var, *prior) >= 0
    assert gaussian_kl(mu, log_var, mu, log_var) == 0


@repeatable
@given(rows, floats(-5, 5), floats(0.1, 10), st.booleans())
def test_does_not_change_when_both_are_shifted_and_scaled(rows, shift, scale, mirrored):
    mu, log_var, prior_mu, prior_log_var = columns(rows)
    factor, widened = (-scale if mirrored else scale), 2 * math.log(scale)
    moved = gaussian_kl(
        factor * mu + shift, log_var + widened, factor * prior_mu + shift, prior_log_var + widened
    )
    torch.testing.assert_close(
        moved, gaussian_kl(mu, log_var, prior_mu, prior_log_var), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 1), (4, 3), (5, 1, 3)])
def test_the_prior_broadcasts(shape):
    draw = torch.Generator().manual_seed(0)
    mu, log_var = torch.randn(2, 4, 3, generator=draw)
    prior_mu, prior_log_var = torch.randn(2, *shape, generator=draw)
    full = torch.broadcast_shapes(shape, (4, 3))
    expected = torchs_own(*(x.expand(full) for x in (mu, log_var, prior_mu, prior_log_var)))
    torch.testing.assert_close(gaussian_kl(mu, log_var, prior_mu, prior_log_var), expected)


@repeatable
@given(floats(-1e4, 1e4, width=32), floats(-40, 40, width=32))
def test_single_precision_stays_within_a_few_roundings_of_double(mu, log_var):
    # The terms are mu^2, exp(log_var) - 1 and log_var; each may be off by a rounding or two.
    single = gaussian_kl(torch.tensor([mu]), torch.tensor([log_var])).item()
    double = gaussian_kl(*torch.tensor([[mu], [log_var]], dtype=torch.float64)).item()
    size = mu**2 + abs(math.expm1(log_var)) + abs(log_var)
    tiny = torch.finfo(torch.float32).tiny
    assert math.isfinite(single)
    assert abs(single - double) <= 2 * torch.finfo(torch.float32).eps * size + tiny


def test_keeps_its_digits_where_the_gaussians_almost_agree():
    # exp(r) - 1 - r = r^2 / 2 + r^3 / 6 + ...: without expm1, single precision would leave nothing.
    log_var = torch.tensor([1e-3, -1e-3])
    expected = (log_var.double() ** 2 / 4 + log_var.double() ** 3 / 12).sum().float()
    torch.testing.assert_close(gaussian_kl(torch.zeros(2), log_var), expected, rtol=1e-4, atol=0)


@repeatable
@given(rows)
def test_gradients_are_those_of_the_closed_form(rows):
    inputs = [column.requires_grad_() for column in columns(rows)]
    gradients = torch.autograd.grad(gaussian_kl(*inputs), inputs)
    mu, log_var, prior_mu, prior_log_var = (column.detach() for column in inputs)
    prior_var = prior_log_var.exp()
    ratio, distance = log_var.exp() / prior_var, mu - prior_mu
    expected = [
        distance / prior_var,
        (ratio - 1) / 2,
        -distance / prior_var,
        (1 - ratio - distance**2 / prior_var) / 2,
    ]
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-10)


def test_gradients_agree_with_finite_differences():
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 2, 3, dtype=torch.float64, generator=draw).requires_grad_().unbind()
    assert torch.autograd.gradcheck(gaussian_kl, inputs)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        (((4, 3), (4, 2)), "mu and log_var"),
        (((4, 3), (3,)), "mu and log_var"),
        (((4, 3), (4, 3), (4,)), "prior_mu"),
        (((4, 1), (4, 1), (3,)), "prior_mu"),  # would broadcast, and count one dimension thrice
        (((4, 3), (4, 3), (), (2,)), "prior_log_var"),
    ],
)
def test_shapes_that_do_not_match_are_refused(shapes, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        gaussian_kl(*map(torch.zeros, shapes))
