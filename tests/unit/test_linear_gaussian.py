"""What the linear-Gaussian model gives exactly agrees with integrals, draws and other algebra."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import kstest, multivariate_normal, norm
from torch.distributions import MultivariateNormal, kl_divergence

from tests.numbers import double, normals, refused
from vae_book.device import seeded
from vae_book.distributions import FullGaussian
from vae_book.divergences import gaussian_kl_full
from vae_book.linear_gaussian import LinearGaussian, linear_joint, ppca
from vae_book.monte_carlo import average

SIZES = [(1, 1), (3, 2), (2, 2), (2, 4), (6, 3), (1, 3)]  # D, d


def linear(D=3, d=2, sigma=0.7):
    return LinearGaussian(normals(D, d), normals(D, seed=1), sigma)


def beliefs(*shape, d=2):
    """The means and log-variances of Gaussians, none of them a posterior."""
    return normals(*shape, d, seed=2), normals(*shape, d, seed=3)


def covariance(d, *shape, seed=4):
    A = normals(*shape, d, 2 * d, seed=seed)
    return A @ A.mT / d


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


@pytest.mark.equation("eq-linear-gaussian-evidence", route="scipy's density", rel=1e-11)
@pytest.mark.parametrize(("D", "d"), SIZES)
def test_the_evidence_is_scipys_density(agree, D, d):
    model, x = linear(D, d), normals(2, 5, D, seed=6)
    mean, cov = moments(model)
    expected = multivariate_normal(mean[d:], cov[d:, d:]).logpdf(x.numpy().reshape(10, D))
    agree(model.log_evidence(x), expected.reshape(2, 5))


@pytest.mark.equation("eq-linear-gaussian-evidence", route="scipy.integrate.quad", rel=1e-9)
@pytest.mark.parametrize("D", [1, 3])
def test_the_evidence_is_the_integral_over_z(agree, D):
    model, x = linear(D, 1), normals(D, seed=6)
    area, _ = quad(lambda z: np.exp(log_joint(model, x, np.array([z]))), -10, 10, epsabs=0)
    agree(model.log_evidence(x), np.log(area))


@pytest.mark.equation("eq-linear-gaussian-posterior", route="Schur complement", rel=1e-10)
@pytest.mark.parametrize(("D", "d"), SIZES)
def test_the_posterior_is_the_joint_conditioned_on_x(agree, D, d):
    model, x = linear(D, d), normals(2, 3, D, seed=6)
    posterior = model.posterior(x)
    assert posterior.mu.shape == (2, 3, d)
    for index in itertools.product(range(2), range(3)):
        mean, cov = conditioned(model, x[index])
        agree(posterior.mu[index], mean)
        agree(posterior.cov, cov)


@pytest.mark.equation("eq-linear-gaussian-posterior", route="Bayes' rule by scipy", rel=1e-10)
@pytest.mark.parametrize(("D", "d"), SIZES)
def test_the_posterior_is_joint_over_evidence(agree, D, d):
    model, x, z = linear(D, d), normals(D, seed=6), normals(7, d, seed=7)
    mu, cov = model.posterior(x)
    log_posterior = multivariate_normal(mu.numpy(), cov.numpy()).logpdf(z.numpy())
    agree(log_posterior + model.log_evidence(x).numpy(), log_joint(model, x, z.numpy()))


@pytest.mark.equation("eq-linear-gaussian-posterior", route="scipy.integrate.quad", rel=1e-9)
def test_the_posterior_has_the_moments_of_the_integrals(agree):
    model, x = linear(2, 1), normals(2, seed=6)

    def integral(power, center=0.0):
        def integrand(z):
            return np.exp(log_joint(model, x, np.array([z]))) * (z - center) ** power

        return quad(integrand, -10, 10, epsabs=0, epsrel=1e-11)[0]

    mu, cov = model.posterior(x)
    agree(mu[0], double(integral(1) / integral(0)))
    agree(cov[0, 0], double(integral(2, mu.item()) / integral(0)))


@pytest.mark.parametrize(("D", "d"), SIZES)
def test_the_likelihood_is_scipys_and_broadcasts(D, d):
    model, x, z = linear(D, d), normals(4, 1, D, seed=6), normals(5, d, seed=7)
    expected = norm.logpdf(x.numpy(), (z @ model.W.T + model.b).numpy(), 0.7).sum(-1)
    np.testing.assert_allclose(model.log_likelihood(x, z), expected, rtol=1e-12)


@pytest.mark.equation("eq-elbo-kl", route="scipy and torch.distributions", abs=1e-10)
@pytest.mark.parametrize(("D", "d"), SIZES)
def test_the_bound_falls_short_of_the_evidence_by_the_divergence(agree, D, d):
    model, x = linear(D, d), normals(D, seed=6)
    mean, cov = moments(model)
    log_evidence = double(multivariate_normal(mean[d:], cov[d:, d:]).logpdf(x.numpy()))
    posterior = MultivariateNormal(*map(torch.from_numpy, conditioned(model, x)))

    mu, log_var = beliefs(d=d)
    for q_cov in (log_var.exp().diag(), covariance(d)):
        q = MultivariateNormal(mu, q_cov)
        agree(model.elbo_full(x, mu, q_cov), log_evidence - kl_divergence(q, posterior))
    q = MultivariateNormal(mu, log_var.exp().diag())
    agree(model.elbo(x, mu, log_var), log_evidence - kl_divergence(q, posterior))


@pytest.mark.equation("eq-elbo-kl", route="gaussian_kl_full from the posterior", abs=1e-10)
@pytest.mark.parametrize(("D", "d"), SIZES)
def test_the_bound_is_tight_at_the_posterior_alone(agree, D, d):
    model, x = linear(D, d), normals(5, D, seed=6)
    log_evidence, posterior = model.log_evidence(x), model.posterior(x)
    agree(model.elbo_full(x, *posterior), log_evidence)
    mu, cov = normals(5, d, seed=2), covariance(d, 5)
    gap = gaussian_kl_full(mu, cov, *posterior)
    assert (gap > 0.01).all()
    agree(model.elbo_full(x, mu, cov), log_evidence - gap)


@pytest.mark.equation("eq-linear-gaussian-elbo", route="scipy.integrate.quad", rel=1e-9)
@pytest.mark.parametrize(("D", "mu", "log_var"), [(1, 0.3, -1.0), (1, -2.0, 1.0), (4, 0.5, -3.0)])
def test_the_bound_is_the_integral_that_defines_it(agree, D, mu, log_var):
    model, x = linear(D, 1), normals(D, seed=6)
    q = norm(mu, math.exp(log_var / 2))
    reach = 12 * q.std()
    value, _ = quad(
        lambda z: q.pdf(z) * (log_joint(model, x, np.array([z])) - q.logpdf(z)),
        mu - reach,
        mu + reach,
        epsabs=1e-12,
    )
    agree(model.elbo(x, double([mu]), double([log_var])), double(value))
    agree(model.elbo_full(x, double([mu]), double([[math.exp(log_var)]])), double(value))


@pytest.mark.equation("eq-linear-gaussian-elbo", route="draws scored by scipy", standard_errors=4)
@pytest.mark.parametrize(("D", "d"), [(3, 2), (2, 4)])
def test_the_bound_is_an_average_over_draws(agree, D, d):
    model, x = linear(D, d), normals(D, seed=6)
    mu, log_var = beliefs(d=d)
    for cov, ours in (
        (log_var.exp().diag(), model.elbo(x, mu, log_var)),
        (covariance(d), model.elbo_full(x, mu, covariance(d))),
    ):
        q = multivariate_normal(mu.numpy(), cov.numpy())
        z = q.rvs(10_000, random_state=0)
        agree(average(double(log_joint(model, x, z) - q.logpdf(z))), ours)


@pytest.mark.equation("eq-linear-gaussian-gradient", route="autograd of elbo", rel=1e-10)
@pytest.mark.parametrize(("D", "d"), SIZES)
def test_the_gradient_is_autograds(agree, D, d):
    model, x = linear(D, d), normals(4, D, seed=6)
    mu, log_var = (q.requires_grad_() for q in beliefs(4, d=d))
    expected = torch.autograd.grad(model.elbo(x, mu, log_var).sum(), (mu, log_var))
    for ours, autograds in zip(model.elbo_gradient(x, mu, log_var), expected, strict=True):
        agree(ours, autograds)


@pytest.mark.equation("eq-linear-gaussian-gradient", route="central differences", rel=1e-7)
def test_the_gradient_is_the_slope_of_the_bound(agree):
    model, x, (mu, log_var) = linear(), normals(3, seed=6), beliefs()
    by_mu, by_log_var = model.elbo_gradient(x, mu, log_var)
    for i, step in enumerate(1e-5 * torch.eye(2, dtype=torch.float64)):
        by_side = [model.elbo(x, mu + side * step, log_var) for side in (1, -1)]
        agree(by_mu[i], (by_side[0] - by_side[1]) / 2e-5)
        by_side = [model.elbo(x, mu, log_var + side * step) for side in (1, -1)]
        agree(by_log_var[i], (by_side[0] - by_side[1]) / 2e-5)


@pytest.mark.equation("eq-aggregated", route="the covariance of the posterior's mean", abs=1e-12)
@pytest.mark.parametrize(("D", "d"), SIZES)
def test_averaged_over_the_models_x_the_posterior_is_the_prior(agree, D, d):
    model = linear(D, d)
    _, cov = moments(model)
    # The mean is linear in x - b: its columns are its values one step from b.
    mean, posterior_cov = model.posterior(model.b + torch.eye(D))
    agree(mean.mT @ double(cov[d:, d:]) @ mean + posterior_cov, torch.eye(d))
    agree(model.posterior(model.b).mu, torch.zeros(d))
    agree(model.posterior(model.b + 3.0).mu, 3 * mean.sum(0))


@pytest.mark.equation(
    "eq-aggregated", route="draws from the posteriors of draws", standard_errors=4
)
def test_draws_of_x_and_then_of_its_posterior_are_those_of_the_prior(agree):
    model = linear()
    _, x = model.sample(10_000, seeded(0))
    mu, cov = model.posterior(x)
    z = mu + normals(10_000, 2, seed=8) @ torch.linalg.cholesky(cov).mT
    agree(average(z), torch.zeros(2))
    agree(average(z[:, :, None] * z[:, None]), torch.eye(2))


@pytest.mark.equation("eq-mean-field", route="scipy.optimize.minimize", rel=1e-5, abs=1e-5)
@pytest.mark.parametrize(("D", "d"), [(3, 2), (2, 3)])
def test_mean_field_is_where_a_search_ends(agree, D, d):
    model, x = linear(D, d), normals(D, seed=6)

    def loss(parameters):
        return -model.elbo(x, *torch.from_numpy(parameters).split(d)).item()

    found = minimize(loss, np.zeros(2 * d), method="BFGS", options={"gtol": 1e-7}).x
    agree(torch.cat(model.mean_field(x)), found)


@pytest.mark.equation("eq-mean-field", route="numpy's determinant of the precision", abs=1e-10)
@pytest.mark.parametrize(("D", "d"), SIZES)
def test_mean_field_falls_short_by_the_correlation(agree, D, d):
    model, x = linear(D, d), normals(5, D, seed=6)
    W = model.W.numpy()
    precision = np.eye(d) + W.T @ W / 0.7**2
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    agree(model.log_evidence(x) - model.elbo(x, *model.mean_field(x)), np.full(5, gap))


def test_nearby_the_mean_field_the_bound_is_lower():
    model, x = linear(), normals(3, seed=6)
    mu, log_var = model.mean_field(x)
    best = model.elbo(x, mu, log_var)
    off = 0.1 * normals(100, 2, 2, seed=9)
    assert (model.elbo(x, mu + off[:, 0], log_var + off[:, 1]) < best).all()


def test_all_is_differentiable():
    W, b, x = (t.requires_grad_() for t in (normals(3, 2), normals(3, seed=1), normals(3, seed=6)))
    sigma = double(0.7).requires_grad_()
    mu, log_var = (q.requires_grad_() for q in beliefs())
    root = (2 * torch.eye(2).double() + 0.3).requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda *m: LinearGaussian(*m[:3]).log_evidence(m[3]), (W, b, sigma, x))
    assert check(lambda *m: LinearGaussian(*m[:3]).elbo(*m[3:]), (W, b, sigma, x, mu, log_var))
    assert check(
        lambda *m: LinearGaussian(*m[:3]).elbo_full(m[3], m[4], m[5] @ m[5].mT),
        (W, b, sigma, x, mu, root),
    )
    assert check(lambda *m: LinearGaussian(*m[:3]).posterior(m[3]), (W, b, sigma, x))


@pytest.mark.parametrize(
    ("of_x", "of_q"), [((), ()), ((5,), ()), ((), (5,)), ((5,), (5,)), ((4, 1), (5,))]
)
def test_leading_axes_broadcast(of_x, of_q):
    model, x, (mu, log_var) = linear(), normals(*of_x, 3, seed=6), beliefs(*of_q)
    cov = covariance(2, *of_q)
    full = torch.broadcast_shapes(of_x, of_q)
    bound, bound_full = model.elbo(x, mu, log_var), model.elbo_full(x, mu, cov)
    by_mu, by_log_var = model.elbo_gradient(x, mu, log_var)
    assert bound.shape == bound_full.shape == full
    assert by_mu.shape == by_log_var.shape == (*full, 2)
    x = x.expand(*full, 3)
    mu, log_var, cov = mu.expand(*full, 2), log_var.expand(*full, 2), cov.expand(*full, 2, 2)
    for index in np.ndindex(*full):
        q = mu[index], log_var[index]
        torch.testing.assert_close(bound[index], model.elbo(x[index], *q))
        one = model.elbo_full(x[index], mu[index], cov[index])
        torch.testing.assert_close(bound_full[index], one)
        one_by_mu, one_by_log_var = model.elbo_gradient(x[index], *q)
        torch.testing.assert_close(by_mu[index], one_by_mu)
        torch.testing.assert_close(by_log_var[index], one_by_log_var)
        mean_field = model.mean_field(x)
        for ours, one in zip(mean_field, model.mean_field(x[index]), strict=True):
            assert ours.shape == (*full, 2)
            torch.testing.assert_close(ours[index], one)


def test_single_precision_becomes_double():
    W, b, x = normals(3, 2).float(), normals(3, seed=1).float(), normals(4, 3, seed=6).float()
    mu, log_var = (q.float() for q in beliefs(4))
    single = LinearGaussian(W, b, torch.tensor(0.5))
    twin = LinearGaussian(W.double(), b.double(), 0.5)
    results = [
        (
            *model.sample(2, seeded(0)),
            model.log_likelihood(x.type(dtype), mu.type(dtype)),
            model.log_evidence(x.type(dtype)),
            *model.posterior(x.type(dtype)),
            model.elbo(x.type(dtype), mu.type(dtype), log_var.type(dtype)),
            model.elbo_full(x.type(dtype), mu.type(dtype), torch.eye(2, dtype=dtype)),
            *model.elbo_gradient(x.type(dtype), mu.type(dtype), log_var.type(dtype)),
            *model.mean_field(x.type(dtype)),
        )
        for model, dtype in ((single, torch.float32), (twin, torch.float64))
    ]
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == torch.float64
        assert torch.equal(ours, expected)


def test_draws_have_the_moments_of_the_model():
    model, n = linear(), 20_000
    z, x = model.sample(n, seeded(0))
    assert z.shape == (n, 2)
    assert x.shape == (n, 3)
    mean, cov = map(torch.from_numpy, moments(model))
    both = torch.cat([z, x], -1)
    for draws, expected in (
        (both, mean),
        ((both - mean)[:, :, None] * (both - mean)[:, None], cov),
    ):
        value, error = average(draws)
        assert ((value - expected).abs() < 4.5 * error).all()


def test_draws_are_gaussian():
    # Moments alone would bear draws with tails so heavy that they have none.
    model = linear(sigma=0.3)
    z, x = model.sample(5000, seeded(0))
    noise = (x - z @ model.W.T - model.b) / 0.3
    for draws in (z, noise):
        assert kstest(draws.flatten().numpy(), norm.cdf).pvalue > 0.01


def test_draws_repeat_with_their_seed():
    model = linear()
    before = torch.get_rng_state()
    z, x = model.sample(4, seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    again = model.sample(4, seeded(3))
    assert torch.equal(z, again[0])
    assert torch.equal(x, again[1])
    assert not torch.equal(z, model.sample(4, seeded(4))[0])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert torch.equal(model.sample(4)[1], x)


def test_the_size_of_z_is_the_number_of_columns():
    assert linear(3, 2).latent == 2
    assert linear(2, 4).latent == 4


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("W", "b", "sigma", "message"),
    [
        (torch.ones(3), torch.ones(3), 1, "W: expected shape (D, d), got (3,)"),
        (torch.ones(2, 3, 2), torch.ones(2), 1, "W: expected shape (D, d), got (2, 3, 2)"),
        (torch.ones(3, 0), torch.ones(3), 1, "W: expected shape (D, d), got (3, 0)"),
        (torch.ones(3, 2), torch.ones(2), 1, "b: expected shape (3,) to fit W, got (2,)"),
        (torch.ones(3, 2), torch.ones(3, 1), 1, "b: expected shape (3,) to fit W, got (3, 1)"),
        (torch.ones(3, 2), torch.tensor(1.0), 1, "b: expected shape (3,) to fit W, got ()"),
        (torch.ones(3, 2), torch.ones(3), 0, "sigma: expected a positive number, got 0"),
        (torch.ones(3, 2), torch.ones(3), -0.5, "sigma: expected a positive number, got -0.5"),
        (torch.ones(3, 2), torch.ones(3), math.nan, "sigma: expected a positive number, got nan"),
        (torch.ones(3, 2), torch.ones(3), math.inf, "sigma: expected a positive number, got inf"),
        (torch.ones(3, 2), torch.ones(3), torch.ones(3), "sigma: expected a positive number"),
    ],
)
def test_what_is_no_model_is_refused(W, b, sigma, message):
    with refused(message):
        LinearGaussian(W, b, sigma)


CALLS = {
    "log_likelihood": ("x", "z"),
    "log_evidence": ("x",),
    "posterior": ("x",),
    "elbo": ("x", "mu", "log_var"),
    "elbo_full": ("x", "mu", "cov"),
    "elbo_gradient": ("x", "mu", "log_var"),
    "mean_field": ("x",),
}


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("method", CALLS)
def test_a_method_refuses_what_does_not_fit_the_model(method):
    model = linear()
    good = {
        name: torch.eye(2) if name == "cov" else torch.ones(4, 3 if name == "x" else 2)
        for name in CALLS[method]
    }
    call = getattr(model, method)
    call(**good)
    for name, value in good.items():
        if name in ("x", "z"):
            size = value.shape[-1]
            for wrong in (torch.ones(4, size + 1), torch.ones(4, 1), torch.tensor(1.0)):
                with refused(f"{name}: expected shape (..., {size}), got {tuple(wrong.shape)}"):
                    call(**{**good, name: wrong})
    if "log_var" in good:
        with refused("mu and log_var: expected the same shape, got (4, 2) and (2,)"):
            call(good["x"], good["mu"], torch.ones(2))
        with refused("mu: expected shape (..., 2), got (4, 3)"):
            call(good["x"], torch.ones(4, 3), torch.ones(4, 3))
    if "cov" in good:
        with refused("mu: expected shape (..., 2), got (4, 3)"):
            call(good["x"], torch.ones(4, 3), good["cov"])
        with refused("cov: expected shape (..., 2, 2), got (3, 3)"):
            call(good["x"], good["mu"], torch.eye(3))
        with refused("cov: expected a positive definite matrix"):
            call(good["x"], good["mu"], torch.ones(2, 2))
        with refused("cov: expected a symmetric matrix"):
            call(good["x"], good["mu"], double([[1.0, 0.5], [0.0, 1.0]]))


@pytest.mark.parametrize("sigma", [1e-170, 1e-300, 1e170])
def test_a_sigma_whose_square_no_float_holds_has_a_likelihood(sigma):
    model, z = LinearGaussian(torch.ones(3, 1), torch.zeros(3), sigma), torch.ones(1)
    expected = norm.logpdf(0, scale=sigma) * 3
    assert model.log_likelihood(torch.ones(3), z).item() == pytest.approx(expected, rel=1e-12)


def test_noise_too_small_for_the_digits_of_a_float_is_refused():
    with refused("W and sigma: expected a positive definite matrix"):
        LinearGaussian(torch.ones(3, 2), torch.zeros(3), 1e-9).log_evidence(torch.zeros(3))
    with refused("W and sigma: expected"):
        LinearGaussian(torch.ones(3, 2), torch.zeros(3), 1e-9).posterior(torch.zeros(3))


@pytest.mark.equation("eq-linear-joint", route="scipy: prior and conditional", rel=1e-10)
@pytest.mark.parametrize(("k", "m"), [(1, 1), (2, 3), (3, 1)])
def test_the_joint_is_prior_and_conditional(agree, k, m):
    prior = FullGaussian(normals(k), covariance(k))
    A, c, noise = normals(m, k, seed=1), normals(m, seed=2), covariance(m, seed=5)
    joint = linear_joint(prior, A, c, noise)
    u, v = normals(6, k, seed=6), normals(6, m, seed=7)
    log_prior = multivariate_normal(*(t.numpy() for t in prior)).logpdf(u.numpy())
    log_conditional = [
        multivariate_normal((A @ each + c).numpy(), noise.numpy()).logpdf(value.numpy())
        for each, value in zip(u, v, strict=True)
    ]
    log_joint = multivariate_normal(*(t.numpy() for t in joint)).logpdf(torch.cat([u, v], -1))
    agree(log_joint, log_prior + np.array(log_conditional))


def test_the_joint_has_a_mean_for_each_mean_of_the_prior():
    mu, cov, A, c, noise = normals(4, 2), covariance(2), normals(3, 2), normals(3), covariance(3)
    joint = linear_joint(FullGaussian(mu, cov), A, c, noise)
    for row in range(4):
        one = linear_joint(FullGaussian(mu[row], cov), A, c, noise)
        torch.testing.assert_close(joint.mu[row], one.mu)
        assert torch.equal(joint.cov, one.cov)


@pytest.mark.equation("eq-elbo-joint", route="Gauss-Hermite quadrature over the data", rel=1e-10)
@pytest.mark.parametrize(("D", "d"), [(1, 1), (2, 2), (2, 1)])
def test_minus_entropy_minus_the_average_bound_is_the_divergence_of_the_joints(agree, D, d):
    model = linear(D, d)
    data = FullGaussian(normals(D, seed=5), covariance(D, seed=6))
    A, c, noise = normals(d, D, seed=7), normals(d, seed=8), covariance(d, seed=9)

    q = linear_joint(data, A, c, noise)  # x, z
    prior = FullGaussian(torch.zeros(d).double(), torch.eye(d).double())
    p = linear_joint(prior, model.W, model.b, 0.7**2 * torch.eye(D).double())  # z, x
    order = [*range(d, d + D), *range(d)]
    kl = gaussian_kl_full(*q, p.mu[order], p.cov[order][:, order])

    # The bound is quadratic in x: three nodes a dimension are exact.
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    eps = double(list(itertools.product(nodes, repeat=D)))
    weights = double(list(itertools.product(weights, repeat=D))).prod(-1)
    x = data.mu + eps @ torch.linalg.cholesky(data.cov).mT
    bound = (weights / weights.sum()) @ model.elbo_full(x, x @ A.mT + c, noise)
    entropy = multivariate_normal(data.mu.numpy(), data.cov.numpy()).entropy()
    agree(kl, -entropy - bound.numpy())


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": torch.ones(2, 3)}, "A: expected shape (3, 2) to fit c and prior, got (2, 3)"),
        ({"A": torch.ones(3, 1)}, "A: expected shape (3, 2) to fit c and prior, got (3, 1)"),
        ({"c": torch.tensor(1.0)}, "c: expected shape (m,), got ()"),
        ({"c": torch.ones(4, 3)}, "c: expected shape (m,), got (4, 3)"),
        ({"c": torch.ones(1)}, "A: expected shape (1, 2) to fit c and prior, got (3, 2)"),
        ({"noise": torch.eye(2)}, "noise: expected shape (..., 3, 3), got (2, 2)"),
        ({"noise": -torch.eye(3)}, "noise: expected a positive definite matrix"),
        ({"noise": torch.ones(3, 3).tril()}, "noise: expected a symmetric matrix"),
        ({"noise": math.nan * torch.eye(3)}, "noise: expected finite numbers"),
        ({"mu": torch.ones(3)}, "A: expected shape (3, 3) to fit c and prior, got (3, 2)"),
        ({"cov": torch.eye(3)}, "prior: expected shape (..., 2, 2), got (3, 3)"),
        ({"cov": torch.zeros(2, 2)}, "prior: expected a positive definite matrix"),
        ({"cov": math.nan * torch.eye(2)}, "prior: expected finite numbers"),
    ],
)
def test_what_is_no_joint_is_refused(change, message):
    parts = {"mu": torch.zeros(2), "cov": torch.eye(2), "A": torch.ones(3, 2)}
    parts |= {"c": torch.ones(3), "noise": torch.eye(3)}
    linear_joint(FullGaussian(parts["mu"], parts["cov"]), parts["A"], parts["c"], parts["noise"])
    parts |= change
    with refused(message):
        linear_joint(
            FullGaussian(parts["mu"], parts["cov"]), parts["A"], parts["c"], parts["noise"]
        )


# Probabilistic PCA

SPREAD = torch.tensor([3.0, 1.5, 0.8, 0.4, 0.1], dtype=torch.float64)


def spread_data(n=300):
    """Correlated data of five numbers, with very different variances."""
    generator = torch.Generator().manual_seed(3)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator).double())
    return torch.randn(n, 5, generator=generator).double() * SPREAD @ turn.T + torch.arange(5)


@pytest.mark.equation("eq-ppca", route="scipy.optimize over all W and b", abs=1e-6)
def test_ppca_makes_the_data_most_probable(agree):
    x, sigma = spread_data(), 0.9

    def negative(flat):
        parameters = torch.tensor(flat, requires_grad=True)
        W, b = parameters[:10].reshape(5, 2), parameters[10:]
        value = -LinearGaussian(W, b, sigma).log_evidence(x).mean()
        (gradient,) = torch.autograd.grad(value, parameters)
        return value.item(), gradient.numpy()

    start = np.random.default_rng(0).normal(size=15)
    found = minimize(negative, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    agree(ppca(x, 2, sigma).log_evidence(x).mean(), -found.fun)


@pytest.mark.equation("eq-ppca-rate", route="variances of the data by numpy's SVD", rel=1e-10)
@pytest.mark.parametrize(("latent", "sigma"), [(2, 0.9), (5, 0.9), (5, 2.0), (3, 0.05)])
def test_ppca_posteriors_cost_what_exceeds_the_noise(agree, latent, sigma):
    x = spread_data()
    q = ppca(x, latent, sigma).posterior(x)
    kl = gaussian_kl_full(q.mu, q.cov, torch.zeros(latent).double(), torch.eye(latent).double())
    centered = x.numpy() - x.numpy().mean(0)
    variances = np.linalg.svd(centered, compute_uv=False)[:latent] ** 2 / len(x)
    agree(kl.mean(), np.log(np.maximum(variances / sigma**2, 1)).sum() / 2)


def test_ppca_ignores_what_varies_less_than_the_noise():
    model = ppca(spread_data(), 5, 0.9)
    assert ((model.W.norm(dim=0) > 0) == torch.tensor([True, True, False, False, False])).all()
    assert torch.equal(ppca(spread_data(), 2, 10.0).W, torch.zeros(5, 2).double())


def test_ppca_of_one_number_is_the_variance_left_over():
    x = torch.tensor([[1.0], [2.0], [6.0]]).double()  # variance 14 / 3
    model = ppca(x, 1, 1.0)
    torch.testing.assert_close(model.W.square(), torch.tensor([[14 / 3 - 1]]).double())
    assert model.b.item() == 3


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("x", "latent", "sigma", "message"),
    [
        (torch.zeros(1, 3), 1, 1.0, r"x: .*n >= 2"),
        (torch.zeros(4), 1, 1.0, r"x: expected shape \(n, D\), got \(4,\)"),
        (torch.zeros(4, 3), 0, 1.0, r"latent: expected 1 to 3"),
        (torch.zeros(4, 3), 4, 1.0, r"latent: expected 1 to 3"),
        (torch.zeros(4, 3), 2, 0.0, r"sigma: expected a positive"),
    ],
)
def test_ppca_refuses_what_it_cannot_fit(x, latent, sigma, message):
    with pytest.raises(ValueError, match=message):
        ppca(x, latent, sigma)


# The bound in other words


def grid_of(mu, cov, n=6):
    """Points and weights of Gauss-Hermite quadrature for N(mu, cov), exact up to degree 2n - 1."""
    points, weights = np.polynomial.hermite_e.hermegauss(n)
    z = double(list(itertools.product(points, repeat=len(mu))))
    weights = [math.prod(w) for w in itertools.product(weights, repeat=len(mu))]
    return mu + z @ torch.linalg.cholesky(cov).mT, double(weights) / sum(weights)


@pytest.mark.equation("eq-elbo-entropy", route="quadrature and torch's entropy", abs=1e-10)
@pytest.mark.parametrize(("D", "d"), SIZES)
def test_the_bound_is_the_average_log_joint_plus_the_entropy(agree, D, d):
    model, x, (mu, log_var) = linear(D, d), normals(D, seed=6), beliefs(d=d)
    for cov, ours in (
        (log_var.exp().diag(), model.elbo(x, mu, log_var)),
        (covariance(d), model.elbo_full(x, mu, covariance(d))),
    ):
        z, weights = grid_of(mu, cov)
        log_joints = double(log_joint(model, x, z.numpy()))
        agree(ours, weights @ log_joints + MultivariateNormal(mu, cov).entropy())


@pytest.mark.equation("eq-evidence-gradient", route="quadrature over the posterior", rel=1e-10)
@pytest.mark.parametrize(("D", "d"), SIZES)
def test_the_gradient_of_the_evidence_is_the_posteriors_average(agree, D, d):
    model, x = linear(D, d), normals(D, seed=6)
    z, weights = grid_of(*map(torch.from_numpy, conditioned(model, x)))
    residuals = x - z @ model.W.T - model.b
    by_b = residuals / model.sigma**2  # of log p(x, z), by hand
    by_W = by_b[:, :, None] * z[:, None]
    by_sigma = residuals.square().sum(-1) / model.sigma**3 - D / model.sigma

    parameters = [p.clone().requires_grad_() for p in (model.W, model.b, model.sigma)]
    log_evidence = LinearGaussian(*parameters).log_evidence(x)
    gradients = torch.autograd.grad(log_evidence, parameters)
    for ours, of_joint in zip(gradients, (by_W, by_b, by_sigma), strict=True):
        agree(ours, torch.tensordot(weights, of_joint, 1))
