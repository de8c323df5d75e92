"""`reparameterize` samples the Gaussian that it is told to, and lets gradients through."""

import pytest
import torch
from scipy.stats import kstest, norm

from vae_book.monte_carlo import Estimate
from vae_book.reparameterization import reparameterize

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
