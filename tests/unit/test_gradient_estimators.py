"""Both gradients through a sample are unbiased, with the variances of the formulas."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial.hermite_e import hermegauss
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import f_oneway, norm
from torch.distributions import Normal

from vae_book.gradient_estimators import (
    Quadratic,
    bonnet_price_gradient,
    pathwise_gradient,
    score_function_gradient,
    signal_to_noise,
    split_variance,
)
from vae_book.linear_gaussian import LinearGaussian
from vae_book.monte_carlo import average
from vae_book.reparameterization import reparameterize

MU = torch.tensor([[0.0, -3.0, 2.0], [1.0, 0.5, -0.5]], dtype=torch.float64)
LOG_VAR = torch.tensor([[0.5, -4.0, 2.0], [1.0, -1.0, 3.0]], dtype=torch.float64)


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# Signal to noise ----------------------------------------------------------------------------------


@pytest.mark.equation("eq-snr", route="the moments of a normal distribution", rel=0.02)
def test_signal_to_noise_is_the_mean_in_standard_deviations(agree):
    mean, deviation = torch.tensor([1.0, -3.0, 0.5]), torch.tensor([2.0, 0.5, 0.1])
    found = signal_to_noise(mean + deviation * noise(200_000, 3))
    agree(found, mean.abs() / deviation)


def test_signal_to_noise_without_noise_is_infinite_and_without_signal_zero():
    found = signal_to_noise(torch.tensor([[2.0, 0.0, 1.0], [2.0, 0.0, -1.0]]))
    assert found.tolist() == [float("inf"), 0.0, 0.0]
    with pytest.raises(ValueError, match="n >= 2"):
        signal_to_noise(torch.zeros(1, 3))


# Any covariance -----------------------------------------------------------------------------------


# Both estimators ----------------------------------------------------------------------------------

ESTIMATORS = [pathwise_gradient, score_function_gradient]


def waves(z):
    return torch.sin(z).sum(-1)


def gauss_hermite(d, points=12):
    """A grid and weights that average polynomials of N(0, I), to degree 23, without error."""
    nodes, weights = hermegauss(points)
    grid = torch.tensor(list(product(nodes, repeat=d)), dtype=torch.float64)
    weights = torch.tensor(list(product(weights, repeat=d)), dtype=torch.float64).prod(-1)
    return grid, weights / weights.sum()


def quadratic(d):
    """A quadratic of size d, and the mean and log-variance of a q."""
    a, c, mu, log_var = noise(4, 3)[:, :d]
    return Quadratic(a, c), mu, log_var


def mean_and_variance(weights, draws):
    mean = weights @ draws
    return mean, weights @ (draws - mean).square()


@pytest.mark.equation("eq-pathwise", route="the expectation of a sine in closed form", abs=1e-12)
def test_pathwise_draws_average_to_the_gradient(agree):
    mu, log_var = MU[0], LOG_VAR[1]
    grid, weights = gauss_hermite(1, points=100)
    draws = pathwise_gradient(waves, mu, log_var, grid.expand(-1, 3))
    # E sin(z) = sin(mu) exp(-variance / 2).
    damping = torch.exp(-0.5 * log_var.exp())
    agree(weights @ draws.mu, torch.cos(mu) * damping)
    agree(weights @ draws.log_var, -0.5 * log_var.exp() * torch.sin(mu) * damping)


@pytest.mark.equation("eq-score-function", route="torch.distributions, by autograd", rel=1e-12)
def test_score_function_draws_are_values_times_the_slope_of_the_log_density(agree):
    mu, log_var = MU.clone().requires_grad_(), LOG_VAR.clone().requires_grad_()
    eps = noise(7, *MU.shape)
    draws = score_function_gradient(waves, mu, log_var, eps, baseline=0.3)
    assert not draws.mu.requires_grad
    z = (mu + log_var.exp().sqrt() * eps).detach()
    log_q = Normal(mu, log_var.exp().sqrt()).log_prob(z).sum(-1)
    for i, j in product(range(7), range(2)):
        slopes = torch.autograd.grad(log_q[i, j], (mu, log_var), retain_graph=True)
        for ours, slope in zip(draws, slopes, strict=True):
            agree(ours[i, j], (waves(z[i, j]) - 0.3) * slope[j])


@pytest.mark.equation("eq-baseline", route="exact averages over all draws", rel=1e-10, abs=1e-12)
def test_baselines_leave_the_average_as_it_is(agree):
    f, mu, log_var = quadratic(2)
    exact = f.gradient(mu, log_var)
    grid, weights = gauss_hermite(2)
    for baseline in (-20.0, 0.0, 1.0, 300.0):
        draws = score_function_gradient(f, mu, log_var, grid, baseline=baseline)
        for ours, truth in zip(draws, exact, strict=True):
            agree(weights @ ours, truth)
    # All triples of draws of one number: the average over others is fair, one that includes the
    # draw itself takes away a third of the gradient.
    f, mu, log_var = quadratic(1)
    triples, weights = gauss_hermite(3)
    eps = triples.T.unsqueeze(-1)
    fair = score_function_gradient(
        f,
        mu.expand(len(triples), 1),
        log_var.expand(len(triples), 1),
        eps,
        baseline="leave-one-out",
    )
    values = f(reparameterize(mu, log_var, eps))
    slopes = [eps * torch.exp(-log_var / 2), (eps.square() - 1) / 2]
    for ours, slope, truth in zip(fair, slopes, f.gradient(mu, log_var), strict=True):
        agree(weights @ ours.mean(0), truth)
        selfish = ((values - values.mean(0)).unsqueeze(-1) * slope).mean(0)
        agree(weights @ selfish, 2 / 3 * truth)


@pytest.mark.parametrize(
    ("estimate", "options"),
    [
        (pathwise_gradient, {}),
        (score_function_gradient, {}),
        (score_function_gradient, {"baseline": -7.0}),
        (score_function_gradient, {"baseline": "leave-one-out"}),
    ],
)
def test_draws_average_to_the_gradient_of_a_linear_gaussian_bound(estimate, options):
    model = LinearGaussian(noise(3, 2), noise(3), 0.8)
    x, mu, log_var = noise(3, 3)[2], torch.tensor([0.3, -0.5]).double(), LOG_VAR[1, :2]

    def log_weight(z):
        log_q = Normal(mu, log_var.exp().sqrt()).log_prob(z).sum(-1)
        return model.log_likelihood(x, z) + Normal(0.0, 1.0).log_prob(z).sum(-1) - log_q

    # q itself moves with its parameters, but the average slope of log q is zero.
    draws = estimate(log_weight, mu, log_var, noise(100_000, 2), **options)
    for ours, truth in zip(draws, model.elbo_gradient(x, mu, log_var), strict=True):
        value, standard_error = average(ours)
        assert ((value - truth).abs() < 4 * standard_error).all()


@pytest.mark.parametrize("estimate", ESTIMATORS)
@pytest.mark.parametrize("batch", [(), (2,), (2, 4)])
def test_each_entry_of_a_batch_has_a_gradient_of_its_own(estimate, batch):
    mu, log_var, eps = noise(*batch, 3), noise(*batch, 3) / 2, noise(6, *batch, 3)
    draws = estimate(waves, mu, log_var, eps)
    assert draws.mu.shape == draws.log_var.shape == eps.shape
    assert not draws.mu.requires_grad
    for entry in product(*map(range, batch)):
        for i in range(6):
            alone = estimate(waves, mu[entry], log_var[entry], eps[(i, *entry)].unsqueeze(0))
            for ours, one in zip(draws, alone, strict=True):
                torch.testing.assert_close(ours[(i, *entry)], one[0])


def test_leave_one_out_is_for_each_entry_of_a_batch():
    mu, log_var, eps = noise(2, 3), noise(2, 3) / 2, noise(6, 2, 3)
    together = score_function_gradient(waves, mu, log_var, eps, baseline="leave-one-out")
    for j in range(2):
        values = waves(mu[j] + log_var[j].exp().sqrt() * eps[:, j])
        for i in range(6):
            others = (values.sum() - values[i]).item() / 5
            one = score_function_gradient(
                waves, mu[j], log_var[j], eps[i : i + 1, j], baseline=others
            )
            torch.testing.assert_close(together.mu[i, j], one.mu[0])
            torch.testing.assert_close(together.log_var[i, j], one.log_var[0])


def test_only_the_score_function_gets_past_a_step():
    mu, log_var = MU[1], LOG_VAR[1]
    eps = noise(100_000, 3)

    def positive(z):
        return (z > 0).to(z).sum(-1)

    draws = score_function_gradient(positive, mu, log_var, eps, baseline="leave-one-out")
    sigma = log_var.exp().sqrt()
    density = torch.from_numpy(norm.pdf(mu / sigma))
    for ours, truth in zip(draws, (density / sigma, -density * mu / sigma / 2), strict=True):
        value, standard_error = average(ours)
        assert ((value - truth).abs() < 4 * standard_error).all()
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for step in (positive, lambda z: (weights * (z > 0)).sum(-1)):
        with pytest.raises(ValueError, match=r"^f: .*differentiate.*score_function_gradient"):
            pathwise_gradient(step, mu, log_var, eps)


@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_nothing_but_the_gradient_is_left_behind(estimate):
    network = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0)).double()
    mu, log_var = MU[0].clone().requires_grad_(), LOG_VAR[0].clone().requires_grad_()
    with torch.no_grad():  # the caller's mode does not matter
        inside = estimate(network, mu, log_var, noise(5, 3))
    outside = estimate(network, mu, log_var, noise(5, 3))
    assert torch.equal(inside.mu, outside.mu)
    assert all(weight.grad is None for weight in [*network.parameters(), mu, log_var])
    assert torch.equal(mu, MU[0])


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_estimators_refuse_what_does_not_fit(estimate):
    for shapes in [
        [(3,), (3,), (3,)],  # no axis for draws
        [(3,), (3,), (5, 4, 3)],
        [(3,), (1,), (5, 3)],
        [(2, 3), (2, 3), (5, 1, 3)],
        [(2, 3), (2, 3), (5, 2, 1)],
        [(), (), (5,)],
    ]:
        with pytest.raises(ValueError, match=r"^mu, log_var and eps: expected") as error:
            estimate(waves, *map(torch.zeros, shapes))
        assert all(str(shape) in str(error.value) for shape in shapes)
    zero, eps = torch.zeros(3), torch.zeros(5, 3)
    with pytest.raises(ValueError, match=r"^f: expected .*\(5,\), got \(5, 3\)"):
        estimate(torch.sin, zero, zero, eps)
    with pytest.raises(ValueError, match=r"^f: expected .*\(5,\), got \(\)"):
        estimate(torch.sum, zero, zero, eps)


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_baseline_is_a_number_or_leaves_one_out():
    zero = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"^baseline: 'leave-one-out' needs 2 draws or more, got 1"
    ):
        score_function_gradient(waves, zero, zero, torch.zeros(1, 3), baseline="leave-one-out")
    with pytest.raises(ValueError, match=r"^baseline: .*got 'mean'"):
        score_function_gradient(waves, zero, zero, torch.zeros(5, 3), baseline="mean")


# The quadratic ------------------------------------------------------------------------------------


@pytest.mark.equation("eq-quadratic", route="Gauss-Hermite quadrature", rel=1e-12)
def test_the_quadratics_average_is_the_integral(agree):
    for d in (1, 2, 3):
        f, mu, log_var = quadratic(d)
        grid, weights = gauss_hermite(d)
        z = mu + log_var.exp().sqrt() * grid
        by_hand = sum(f.a[j] * (z[:, j] - f.c[j]) ** 2 / 2 for j in range(d))
        agree(f(z), by_hand)
        agree(f.expectation(mu, log_var), weights @ by_hand)


@pytest.mark.equation("eq-quadratic-gradient", route="autograd on the expectation", rel=1e-12)
def test_the_quadratics_gradient_is_that_of_its_average(agree):
    f, mu, log_var = quadratic(3)
    mu, log_var = mu.clone().requires_grad_(), log_var.clone().requires_grad_()
    slopes = torch.autograd.grad(f.expectation(mu, log_var), (mu, log_var))
    for ours, slope in zip(f.gradient(mu, log_var), slopes, strict=True):
        agree(ours, slope)


@pytest.mark.equation("eq-pathwise-variance", route="Gauss-Hermite quadrature", rel=1e-10)
def test_pathwise_draws_have_the_variance_of_the_formula(agree):
    for d in (1, 2, 3):
        f, mu, log_var = quadratic(d)
        grid, weights = gauss_hermite(d)
        draws = pathwise_gradient(f, mu, log_var, grid)
        for ours, mean, exact in zip(
            draws, f.gradient(mu, log_var), f.pathwise_variance(mu, log_var), strict=True
        ):
            by_quadrature = mean_and_variance(weights, ours)
            agree(mean, by_quadrature[0])
            agree(exact, by_quadrature[1])


@pytest.mark.equation("eq-score-function-variance", route="Gauss-Hermite quadrature", rel=1e-9)
def test_score_function_draws_have_the_variance_of_the_formula(agree):
    for d, baseline in product((1, 2, 3), (-4.0, 0.0, 2.5)):
        f, mu, log_var = quadratic(d)
        grid, weights = gauss_hermite(d)
        draws = score_function_gradient(f, mu, log_var, grid, baseline=baseline)
        exact = f.score_function_variance(mu, log_var, baseline)
        for ours, mean, variance in zip(draws, f.gradient(mu, log_var), exact, strict=True):
            by_quadrature = mean_and_variance(weights, ours)
            agree(mean, by_quadrature[0])
            agree(variance, by_quadrature[1])
    default = f.score_function_variance(mu, log_var)
    agree(default.mu, f.score_function_variance(mu, log_var, 0.0).mu)


NUMBERS = st.floats(-3, 3, allow_subnormal=False)


@given(st.lists(st.tuples(*[NUMBERS] * 4), min_size=1, max_size=3), NUMBERS)
def test_variances_hold_for_every_quadratic(rows, baseline):
    a, c, mu, log_var = torch.tensor(rows, dtype=torch.float64).T
    f = Quadratic(a, c)
    grid, weights = gauss_hermite(len(a), points=6)
    path = pathwise_gradient(f, mu, log_var, grid), f.pathwise_variance(mu, log_var)
    score = (
        score_function_gradient(f, mu, log_var, grid, baseline=baseline),
        f.score_function_variance(mu, log_var, baseline),
    )
    for draws, exact in (path, score):
        for ours, truth in zip(draws, exact, strict=True):
            _, variance = mean_and_variance(weights, ours)
            scale = weights @ ours.square()
            assert ((variance - truth).abs() <= 1e-10 * scale + 1e-12).all()


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_quadratic_is_made_of_vectors_of_one_length_and_takes_no_other():
    for a, c in [((3,), (2,)), ((2, 3), (2, 3)), ((), ())]:
        with pytest.raises(ValueError, match=r"^a and c: expected two vectors of one length"):
            Quadratic(torch.zeros(a), torch.zeros(c))
    f, three, one = Quadratic(torch.ones(3), torch.zeros(3)), torch.zeros(3), torch.zeros(1)
    with pytest.raises(ValueError, match=r"^z: expected shape \(\.\.\., 3\), got \(5, 1\)"):
        f(torch.zeros(5, 1))
    for exact in (f.expectation, f.gradient, f.pathwise_variance, f.score_function_variance):
        with pytest.raises(ValueError, match=r"^mu: expected shape \(\.\.\., 3\), got \(1,\)"):
            exact(one, three)
        with pytest.raises(ValueError, match=r"^log_var: expected shape \(\.\.\., 3\), got \(1,\)"):
            exact(three, one)


@pytest.mark.equation("eq-best-baseline", route="scipy.optimize.minimize_scalar", rel=1e-6)
def test_no_constant_baseline_has_less_variance_than_the_best(agree):
    f, mu, log_var = quadratic(3)
    grid, weights = gauss_hermite(3)

    def variance(baseline, part, j):
        draws = score_function_gradient(f, mu, log_var, grid, baseline=baseline)
        return mean_and_variance(weights, draws[part][:, j])[1].item()

    for part, best in enumerate(f.best_baseline(mu, log_var)):
        for j in range(3):
            agree(best[j], minimize_scalar(variance, args=(part, j)).x)


# Bonnet and Price ---------------------------------------------------------------------------------


@pytest.mark.equation("eq-bonnet-price", route="the expectation of a sine in closed form", abs=1e-9)
def test_the_gradient_by_derivatives_of_f_is_that_of_the_expectation(agree):
    ours = bonnet_price_gradient(torch.sin, MU[:, :2], LOG_VAR[:, :2])
    damping = torch.exp(-0.5 * LOG_VAR[:, :2].exp())
    agree(ours.mu, torch.cos(MU[:, :2]) * damping)
    agree(ours.log_var, -0.5 * LOG_VAR[:, :2].exp() * torch.sin(MU[:, :2]) * damping)


@pytest.mark.equation("eq-bonnet-price", route="differences of scipy.integrate.quad", rel=1e-6)
def test_the_gradient_by_derivatives_of_f_is_the_slope_of_the_integral(agree):
    def bump(z):
        return 1 / (1 + z.square())

    def expectation(mu, log_var):
        q = norm(mu, math.exp(log_var / 2))
        return quad(lambda z: q.pdf(z) / (1 + z * z), mu - 12, mu + 12, epsabs=1e-13)[0]

    mu, log_var, h = 0.7, -1.0, 1e-3
    ours = bonnet_price_gradient(bump, torch.tensor(mu).double(), torch.tensor(log_var).double())
    up, down = expectation(mu + h, log_var), expectation(mu - h, log_var)
    agree(ours.mu, (up - down) / (2 * h))
    up, down = expectation(mu, log_var + h), expectation(mu, log_var - h)
    agree(ours.log_var, (up - down) / (2 * h))


def test_the_gradient_of_a_linear_function_has_no_part_for_the_variance():
    ours = bonnet_price_gradient(lambda z: 3 * z, MU, LOG_VAR)
    torch.testing.assert_close(ours.mu, torch.full_like(MU, 3.0))
    assert torch.equal(ours.log_var, torch.zeros_like(MU))


@pytest.mark.usefixtures("shapes_unchecked")
def test_the_gradient_by_derivatives_of_f_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"^mu and log_var: "):
        bonnet_price_gradient(torch.sin, torch.zeros(3), torch.zeros(2))
    with pytest.raises(
        ValueError, match=r"^f: expected one value for each z, .*\(64, 3\), got \(\)"
    ):
        bonnet_price_gradient(torch.sum, torch.zeros(3), torch.zeros(3))
    for step in (lambda z: (z > 0).double(), torch.zeros_like):
        with pytest.raises(ValueError, match=r"^f: .*differentiate"):
            bonnet_price_gradient(step, torch.zeros(3), torch.zeros(3))


# Where the noise comes from -----------------------------------------------------------------------


@pytest.mark.equation("eq-gradient-noise", route="scipy.stats.f_oneway", rel=1e-10)
def test_the_split_is_that_of_an_analysis_of_variance(agree):
    draws = noise(7, 4) + 2 * noise(7, 1)
    images, z = split_variance(draws)
    agree((z + 4 * images) / z, f_oneway(*draws.numpy()).statistic)


@pytest.mark.equation("eq-gradient-noise", route="the variance over many batches", rel=0.03)
def test_the_two_parts_make_the_variance_of_a_batch(agree):
    # Images are the centers of a quadratic of curvature 2, N(0, 3^2) over the data set.
    mu, sigma = 0.4, 0.5

    def gradients(B, K):
        centers, eps = 3 * noise(B, 1, 60_000), noise(B, K, 60_000).flip(-1)
        return 2 * (mu + sigma * eps - centers)

    images, z = split_variance(gradients(2, 3).movedim(2, 0).reshape(60_000 * 2, 3))
    agree(images, 36.0)
    agree(z, 1.0)
    for B, K in ((3, 1), (3, 4), (1, 2)):
        agree(gradients(B, K).mean((0, 1)).var(), 36 / B + 1 / (B * K))


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_split_needs_two_images_and_two_draws():
    for shape in ((3,), (3, 1), (3, 1, 5)):
        with pytest.raises(ValueError, match=r"^draws: expected shape \(n, K, \.\.\.\)"):
            split_variance(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"^draws: "):
        split_variance(torch.zeros(1, 3))
