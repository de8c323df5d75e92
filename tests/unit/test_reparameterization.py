"""Samples are those of the Gaussian asked for, and both gradients through them are unbiased."""

import pytest
import torch
from scipy.stats import kstest, norm

from vae_book.monte_carlo import Estimate, average
from vae_book.reparameterization import reparameterize, reparameterize_full

MU = torch.tensor([[0.0, -3.0, 2.0], [1.0, 0.5, -0.5]], dtype=torch.float64)
LOG_VAR = torch.tensor([[0.5, -4.0, 2.0], [1.0, -1.0, 3.0]], dtype=torch.float64)


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.equation("eq-reparameterize", route="moments of 100,000 draws", standard_errors=4)
def test_draws_have_the_mean_and_the_standard_deviation_asked_for(agree):
    n = 100_000
    z = reparameterize(MU, LOG_VAR, noise(n, *MU.shape))
    sigma = LOG_VAR.exp().sqrt()
    agree(Estimate(z.mean(0), sigma / n**0.5), MU)
    agree(Estimate(z.std(0), sigma / (2 * n) ** 0.5), sigma)


def test_draws_follow_the_gaussian_of_scipy():
    z = reparameterize(MU, LOG_VAR, noise(5000, *MU.shape))
    for row, column in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        target = norm(MU[row, column], LOG_VAR[row, column].exp().sqrt())
        assert kstest(z[:, row, column].numpy(), target.cdf).pvalue > 1e-4


@pytest.mark.equation("eq-reparameterize", route="central differences", abs=1e-8)
def test_gradients_are_one_and_half_the_deviation_times_the_noise(agree):
    mu, log_var, eps, step = MU.clone(), LOG_VAR.clone(), noise(2, 3), 1e-5
    z = reparameterize(mu.requires_grad_(), log_var.requires_grad_(), eps)
    by_mu, by_log_var = torch.autograd.grad(z.sum(), [mu, log_var])

    def difference(moved_mu, moved_log_var):
        ends = (
            reparameterize(MU + sign * moved_mu, LOG_VAR + sign * moved_log_var, eps)
            for sign in (1, -1)
        )
        return -torch.stack(list(ends)).diff(dim=0)[0] / (2 * step)

    agree(by_mu, difference(step, 0), torch.ones_like(MU))
    agree(by_log_var, difference(0, step), eps * LOG_VAR.exp().sqrt() / 2)


def test_is_affine_in_the_noise():
    one, other = noise(2, 2, 3)
    between = reparameterize(MU, LOG_VAR, 0.3 * one + 0.7 * other)
    ends = 0.3 * reparameterize(MU, LOG_VAR, one) + 0.7 * reparameterize(MU, LOG_VAR, other)
    torch.testing.assert_close(between, ends)
    assert torch.equal(reparameterize(MU, LOG_VAR, torch.zeros(2, 3, dtype=torch.float64)), MU)


@pytest.mark.parametrize("sample", [(), (4,), (5, 4)])
def test_axes_for_samples_come_first(sample):
    eps = noise(*sample, 2, 3)
    z = reparameterize(MU, LOG_VAR, eps)
    assert z.shape == (*sample, 2, 3)
    each = [reparameterize(MU, LOG_VAR, one) for one in eps.reshape(-1, 2, 3)]
    assert torch.equal(z.reshape(-1, 2, 3), torch.stack(each))


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 3), (2, 1), (2, 3)],
        [(2, 3), (2, 3), (2, 4)],
        [(2, 3), (2, 3), (3,)],  # would broadcast: the same noise for both rows
        [(2, 3), (2, 3), (2, 1)],  # would broadcast: the same noise for all dimensions
        [(2, 3), (2, 3), (2, 5, 3)],
    ],
)
def test_shapes_that_do_not_match_are_refused(shapes):
    with pytest.raises(ValueError, match=r"^mu, log_var and eps: expected") as error:
        reparameterize(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


# Any covariance -----------------------------------------------------------------------------------


@pytest.mark.equation("eq-reparameterize-full", route="moments of 100,000 draws", standard_errors=4)
def test_draws_have_the_covariance_asked_for(agree):
    n = 100_000
    root = noise(2, 3, 3)
    cov = root @ root.mT + torch.eye(3)
    z = reparameterize_full(MU, torch.linalg.cholesky(cov), noise(n, 2, 3))
    agree(average(z), MU)
    off = z - MU
    agree(average(off.unsqueeze(-1) * off.unsqueeze(-2)), cov)


def test_a_diagonal_factor_gives_the_draws_of_independent_numbers():
    eps = noise(5, 2, 3)
    z = reparameterize_full(MU, torch.diag_embed(LOG_VAR.exp().sqrt()), eps)
    torch.testing.assert_close(z, reparameterize(MU, LOG_VAR, eps))


def test_gradients_reach_the_mean_and_the_factor():
    scale, eps = noise(2, 3, 3).tril().requires_grad_(), noise(4, 2, 3)
    mu = MU.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda mu, scale: reparameterize_full(mu, scale.tril(), eps), (mu, scale)
    )


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 3), (3, 3), (2, 3)],
        [(2, 3), (2, 3, 2), (2, 3)],
        [(2, 3), (2, 3), (2, 3)],
        [(2, 3), (2, 3, 3), (3,)],  # would broadcast: the same noise for both rows
        [(2, 3), (2, 3, 3), (2, 1)],
        [(), (), ()],
    ],
)
def test_shapes_that_do_not_fit_the_factor_are_refused(shapes):
    with pytest.raises(ValueError, match=r"^mu, scale and eps: expected") as error:
        reparameterize_full(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


@pytest.mark.parametrize("above", [1e-9, float("nan")])
@pytest.mark.parametrize("entry", [(0, 1), (0, 2), (1, 2)])
def test_a_factor_with_something_above_its_diagonal_is_refused(above, entry):
    scale = torch.eye(3).repeat(2, 1, 1)
    scale[1][entry] = above
    with pytest.raises(ValueError, match=r"^scale: .*lower-triangular.*cholesky"):
        reparameterize_full(torch.zeros(2, 3), scale, torch.zeros(2, 3))


# Both estimators ----------------------------------------------------------------------------------

# The quadratic ------------------------------------------------------------------------------------
