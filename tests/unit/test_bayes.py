"""What Bayes' rule gives exactly agrees with sums, integrals, draws and other algebra."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import i0e
from scipy.stats import norm

from tests.numbers import double, normals, refused, repeatable
from vae_book.bayes import enumerate_posterior, naive_log_evidence, quadrature_log_evidence
from vae_book.linear_gaussian import LinearGaussian

integers = st.integers(0, 9)


def linear(D=3, d=2, sigma=0.7):
    return LinearGaussian(normals(D, d), normals(D, seed=1), sigma)


def moments(model):
    """The mean and covariance of (z, x), from the two lines that define the model."""
    W, b, d = model.W.numpy(), model.b.numpy(), model.latent
    noise = model.sigma.item() ** 2 * np.eye(len(b))
    cov = np.block([[np.eye(d), W.T], [W, W @ W.T + noise]])
    return np.concatenate([np.zeros(d), b]), cov


def conditioned(model, x):
    """The mean and covariance of z for one x: the joint Gaussian's, by the Schur complement."""
    mean, cov = moments(model)
    d = model.latent
    gain = cov[:d, d:] @ np.linalg.inv(cov[d:, d:])
    return gain @ (x.numpy() - mean[d:]), cov[:d, :d] - gain @ cov[d:, :d]


def log_joint(model, x, z):
    """log p(x, z) by scipy, for one x and one z a row."""
    W, b, sigma = model.W.numpy(), model.b.numpy(), model.sigma.item()
    log_likelihood = norm.logpdf(x.numpy(), z @ W.T + b, sigma).sum(-1)
    return log_likelihood + norm.logpdf(z).sum(-1)


def bayes_in_fractions(prior, likelihood):
    joint = [p * q for p, q in zip(prior, likelihood, strict=True)]
    return [each / sum(joint) for each in joint], sum(joint)


@pytest.mark.equation("eq-bayes", "eq-evidence-sum", route="arithmetic in fractions", rel=1e-12)
@repeatable
@given(st.lists(st.tuples(integers, integers), min_size=1, max_size=6))
def test_bayes_rule_is_that_of_fractions(agree, table):
    table = [*table, (1, 1)]  # some z explains x
    prior = [Fraction(p, sum(p for p, _ in table)) for p, _ in table]
    likelihood = [Fraction(q, 9) for _, q in table]
    posterior, evidence = bayes_in_fractions(prior, likelihood)
    ours = enumerate_posterior(double(prior).log(), double(likelihood).log())
    agree(ours.log_posterior.exp(), double(posterior))
    agree(ours.log_evidence.exp(), double(evidence))


@pytest.mark.equation("eq-bayes", "eq-evidence-sum", route="loops", rel=1e-12)
def test_there_is_one_posterior_for_each_x(agree):
    prior = normals(4).softmax(-1)
    likelihood = normals(2, 3, 4, seed=1).exp()
    ours = enumerate_posterior(prior.log(), likelihood.log())
    assert ours.log_evidence.shape == (2, 3)
    for index in itertools.product(range(2), range(3)):
        posterior, evidence = bayes_in_fractions(prior.tolist(), likelihood[index].tolist())
        agree(ours.log_posterior[index].exp(), double(posterior))
        agree(ours.log_evidence[index].exp(), double(evidence))


def test_likelihoods_that_underflow_are_compared():
    # One of them is e times as likely, and both are far below what a float can hold.
    log_evidence = enumerate_posterior(double([0.5, 0.5]).log(), double([-5000.0, -5001.0]))
    expected = -5000 + math.log((1 + math.exp(-1)) / 2)
    assert log_evidence.log_evidence.item() == pytest.approx(expected, rel=1e-14)
    odds = log_evidence.log_posterior.diff().item()
    assert odds == pytest.approx(-1, abs=1e-9)


@pytest.mark.parametrize("size", [1e3, 5e5, -5e5])
def test_the_posterior_sums_to_one_in_single_precision_too(size):
    log_likelihood = torch.tensor([0.3, 0.3, -1.0]) + size
    posterior = enumerate_posterior(torch.full((3,), 1 / 3).log(), log_likelihood).log_posterior
    assert posterior.exp().sum().item() == pytest.approx(1, rel=1e-6)


def test_on_a_grid_the_sum_is_the_integral():
    model, x = linear(1, 1), double([0.8])
    grid = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    log_prior = double(norm.logpdf(grid)) + math.log(18 / 4000)
    on_grid = enumerate_posterior(log_prior, model.log_likelihood(x, grid[:, None]))
    (mean,), ((var,),) = conditioned(model, x)
    assert on_grid.log_posterior.exp() @ grid == pytest.approx(mean, rel=1e-10)
    assert on_grid.log_posterior.exp() @ (grid - mean) ** 2 == pytest.approx(var, rel=1e-10)
    assert on_grid.log_evidence.item() == pytest.approx(model.log_evidence(x).item(), rel=1e-10)


@pytest.mark.usefixtures("shapes_unchecked")
def test_bayes_rule_refuses_what_it_cannot_compute():
    fair, none = double([0.5, 0.5]).log(), double([-math.inf, -math.inf])
    with refused("log_likelihood: expected shape (..., 2), got (1,)"):
        enumerate_posterior(fair, double([0.0]))
    enumerate_posterior(fair + 5e-4, fair)  # nearly 1 is near enough
    for prior in (fair + 0.0015, fair - 0.0015, none, torch.stack([fair, fair + 1])):
        with refused("log_prior: expected logarithms of probabilities that sum to 1"):
            enumerate_posterior(prior, fair)
    with refused("log_prior: expected logarithms of probabilities that sum to 1"):
        enumerate_posterior(double([0.0, math.nan]), fair)
    with refused("log_likelihood: expected an x that some z can explain, got an evidence of nan"):
        enumerate_posterior(fair, double([0.0, math.nan]))
    impossible = [none, torch.stack([fair, none]), double([0.0, math.inf])]
    for log_likelihood in impossible:
        with refused("log_likelihood: expected an x that some z can explain"):
            enumerate_posterior(fair, log_likelihood)
    with refused("log_likelihood: expected an x that some z can explain"):
        enumerate_posterior(double([0.0, -math.inf]), double([-math.inf, 0.0]))


def joint_1d(w, b, sigma, x):
    """log p(x | z) + log p(z) of a model with one number each."""

    def log_joint(z):
        return -0.5 * (((x - w * z - b) / sigma) ** 2 + z**2) - math.log(2 * math.pi * sigma)

    return log_joint


@pytest.mark.equation("eq-evidence", route="closed form by scipy.stats.norm", rel=1e-9)
@pytest.mark.parametrize("sigma", [2.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("x", [0.3, -2.123456789, 40.0])
@pytest.mark.parametrize(("lower", "upper"), [(-50, 50), (-60, 1000.5)])
def test_quadrature_finds_the_evidence_however_narrow_the_peak(agree, sigma, x, lower, upper):
    ours = quadrature_log_evidence(joint_1d(1.3, 0.2, sigma, x), lower, upper)
    agree(double(ours), norm.logpdf(x, 0.2, math.hypot(1.3, sigma)))


@pytest.mark.equation("eq-evidence", route="LinearGaussian.log_evidence", rel=1e-9)
@pytest.mark.parametrize("x", [-3.0, 0.4, 8.0])
def test_quadrature_agrees_with_the_linear_model(agree, x):
    model = linear(4, 1)
    x = double([x, 1.0, -0.5, 2.0])
    ours = quadrature_log_evidence(
        lambda z: model.log_likelihood(x, z.unsqueeze(-1)) + double(norm.logpdf(z)),
        -20,
        20,
    )
    agree(double(ours), model.log_evidence(x))


@pytest.mark.equation("eq-evidence", route="scipy.stats.norm.cdf", rel=1e-9, abs=1e-12)
@pytest.mark.parametrize(("lower", "upper"), [(0, 5), (-5, 0), (1, 4), (-9, 9), (-0.1, 30)])
def test_only_the_area_between_the_ends_counts(agree, lower, upper):
    ours = quadrature_log_evidence(
        lambda z: -0.5 * z.square() - 0.5 * math.log(2 * math.pi), lower, upper
    )
    agree(double(ours), np.log(norm.cdf(upper) - norm.cdf(lower)))


@pytest.mark.equation("eq-evidence", route="the integral of an exponential", rel=1e-9)
@pytest.mark.parametrize("rate", [1e3, 1e7])
def test_a_peak_at_either_end_is_found(agree, rate):
    area = double(1 / rate).log()
    agree(double(quadrature_log_evidence(lambda z: -rate * z, 0, 1)), area)
    agree(double(quadrature_log_evidence(lambda z: rate * z, -1, 0)), area)


def test_an_area_that_no_float_holds_has_a_logarithm():
    shifted = quadrature_log_evidence(lambda z: -0.5 * z.square() - 5000, -12, 12)
    assert shifted == pytest.approx(0.5 * math.log(2 * math.pi) - 5000, rel=1e-12)


def test_two_peaks_both_count():
    def two(z):
        return torch.logaddexp(-0.5 * ((z - 3) / 0.1) ** 2, -0.5 * ((z + 4) / 0.2) ** 2)

    expected = math.log(0.3 * math.sqrt(2 * math.pi))
    assert quadrature_log_evidence(two, -10, 10) == pytest.approx(expected, rel=1e-9)


@pytest.mark.equation("eq-evidence", route="scipy.integrate.quad, peak by peak", rel=1e-9)
@pytest.mark.parametrize(("lower", "upper"), [(-10, 10), (-4, 4), (-10, 9.3)])
@pytest.mark.parametrize(("x", "sigma"), [(1.7, 0.1), (1.7, 0.01), (1.0, 1e-3)])
def test_a_square_that_is_seen_leaves_two_narrow_peaks(agree, x, sigma, lower, upper):
    def log_joint(z):
        return -0.5 * (((x - z**2) / sigma) ** 2 + z**2) - math.log(2 * math.pi * sigma)

    z, reach = math.sqrt(x), 10 * sigma
    one, _ = quad(
        lambda z: norm.pdf(z) * norm.pdf(x, z**2, sigma), z - reach, z + reach, epsrel=1e-11
    )
    agree(double(quadrature_log_evidence(log_joint, lower, upper)), math.log(2 * one))


@pytest.mark.equation("eq-evidence", route="scipy.special.i0e, a Bessel function", rel=1e-9)
@pytest.mark.parametrize("concentration", [30.0, 3e4])
def test_fifty_peaks_all_count(agree, concentration):
    ours = quadrature_log_evidence(lambda z: concentration * torch.cos(10 * math.pi * z), -5, 5)
    agree(double(ours), concentration + math.log(10 * i0e(concentration)))


@pytest.mark.parametrize(
    ("lower", "upper"),
    [(1, 1), (2, 1), (-math.inf, 0), (0, math.inf), (math.nan, 1), (0, math.nan)],
)
def test_the_evidence_needs_a_range(lower, upper):
    with refused(f"lower and upper: expected finite lower < upper, got {lower}, {upper}"):
        quadrature_log_evidence(lambda z: -z.square(), lower, upper)


def test_the_evidence_of_an_impossible_x_is_refused():
    with refused("log_joint: expected an x that some z can explain, got a maximum of nan"):
        quadrature_log_evidence(lambda z: torch.where(z > 0.5, math.nan, -z.square()), -1, 1)
    for limit in (-math.inf, math.inf):
        with refused(f"log_joint: expected an x that some z can explain, got a maximum of {limit}"):
            quadrature_log_evidence(lambda z, limit=limit: 0 * z + limit, -1, 1)


@pytest.mark.equation("eq-naive-evidence", route="the exact log_evidence", standard_errors=4)
@pytest.mark.parametrize(("D", "d"), [(1, 1), (3, 2), (2, 4)])
def test_draws_from_the_prior_estimate_the_evidence(agree, D, d):
    model = linear(D, d, sigma=1.0)
    x = model.b + double([[0.0], [0.5], [-1.0]])
    z = normals(10_000, 1, d, seed=5)
    estimate = naive_log_evidence(model.log_likelihood(x, z))
    assert (estimate.standard_error < 0.05).all()
    agree(estimate, model.log_evidence(x))


@pytest.mark.equation("eq-naive-evidence", route="loops over draws", rel=1e-12)
def test_the_naive_estimate_averages_likelihoods(agree):
    likelihood = [[0.5, 1e-9], [0.25, 1e-3], [1.5, 0.2]]
    by_hand = [math.log(sum(row[column] for row in likelihood) / 3) for column in range(2)]
    agree(naive_log_evidence(double(likelihood).log()).value, double(by_hand))


@pytest.mark.usefixtures("shapes_unchecked")
def test_the_naive_estimate_needs_two_draws():
    for shape in [(), (0,), (1,), (1, 3)]:
        with refused(f"log_likelihood: expected shape (n, ...) with n >= 2, got {shape}"):
            naive_log_evidence(torch.zeros(shape))
    with refused("log_weights: expected logarithms of finite weights, got infinity"):
        naive_log_evidence(double([0.0, math.inf]))


# Probabilistic PCA
