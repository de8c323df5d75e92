"""Distributions over z agree with torch's, and their divergences with integrals and draws."""

import pytest
import torch
from scipy.integrate import quad
from torch.distributions import Independent, MixtureSameFamily, Normal, kl_divergence

from tests.numbers import normals, refused
from vae_book.device import seeded
from vae_book.distributions import DiagonalGaussian, Mixture, gaussian_log_prob
from vae_book.monte_carlo import average


def some(*batch, d=3, seed=0):
    """A Gaussian, and the same of torch."""
    mu, log_var = normals(*batch, d, seed=seed), normals(*batch, d, seed=seed + 1)
    return DiagonalGaussian(mu, log_var), Independent(Normal(mu, log_var.exp().sqrt()), 1)


def mixture(components=2, d=3):
    """A mixture, and the same of torch."""
    parts, torchs = some(components, d=d, seed=5)
    which = torch.distributions.Categorical(torch.ones(components).double())
    return Mixture(parts), MixtureSameFamily(which, torchs)


@pytest.mark.parametrize("batch", [(), (4,), (2, 4)])
def test_the_density_is_that_of_torch(batch):
    ours, torchs = some(*batch)
    z = normals(5, *batch, 3, seed=9)
    torch.testing.assert_close(ours.log_prob(z), torchs.log_prob(z))
    torch.testing.assert_close(gaussian_log_prob(z, *ours), torchs.log_prob(z))
    assert ours.batch == batch
    torch.testing.assert_close(ours.sigma, torchs.base_dist.stddev)


def test_the_density_has_mass_one():
    ours, _ = some(d=1)
    mass, _ = quad(lambda z: ours.log_prob(torch.tensor([z]).double()).exp().item(), -12, 12)
    assert mass == pytest.approx(1, abs=1e-8)


def test_noise_makes_the_draw_and_gradients_pass_it():
    ours, _ = some(4)
    mu, log_var = (each.clone().requires_grad_() for each in ours)
    eps = normals(7, 4, 3, seed=3)
    z = DiagonalGaussian(mu, log_var).rsample(eps)
    torch.testing.assert_close(z, ours.mu + ours.log_var.exp().sqrt() * eps)
    by_mu, by_log_var = torch.autograd.grad(z.sum(), (mu, log_var))
    torch.testing.assert_close(by_mu, torch.full_like(mu, 7))
    torch.testing.assert_close(by_log_var, (0.5 * ours.sigma * eps).sum(0))


def test_draws_repeat_with_their_seed_and_have_the_moments():
    ours, torchs = some()
    draws = ours.sample((50_000,), seeded(1))
    assert torch.equal(draws, ours.sample((50_000,), seeded(1)))
    for estimate, exact in (
        (average(draws), torchs.mean),
        (average((draws - torchs.mean).square()), torchs.variance),
    ):
        assert ((estimate.value - exact).abs() < 4.5 * estimate.standard_error).all()
    assert some(4)[0].sample((4,)).shape == (4, 3)
    assert some(4)[0].sample((6, 4)).shape == (6, 4, 3)


def test_the_divergence_of_two_gaussians_is_exact_and_that_of_torch():
    (q, torch_q), (p, torch_p) = some(4), some(seed=7)
    torch.testing.assert_close(q.kl(p), kl_divergence(torch_q, torch_p.expand((4,))))
    units = kl_divergence(torch_q.base_dist, torch_p.base_dist)
    torch.testing.assert_close(q.unit_kl(p), units)


def test_without_a_closed_form_the_divergence_is_estimated_at_the_draws():
    (q, torch_q), (p, torch_p) = some(), mixture()
    z = q.sample((20_000,), seeded(2))
    estimate = average(q.kl(p, z))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch_q.sample((20_000,))
    other = average(torch_q.log_prob(theirs) - torch_p.log_prob(theirs))
    error = torch.hypot(estimate.standard_error, other.standard_error)
    assert abs(estimate.value - other.value) < 4 * error
    assert q.unit_kl(p, z).shape == (20_000, 1)
    with refused("z: expected draws, as this divergence has no closed form, got None"):
        q.kl(p)


def test_parts_of_a_batch_are_distributions_and_come_apart():
    q, _ = some(4)
    mu, log_var = q[1]
    assert torch.equal(mu, q.mu[1])
    assert torch.equal(log_var, q.log_var[1])
    assert q[1:3].batch == (2,)


@pytest.mark.usefixtures("shapes_unchecked")
def test_numbers_become_floats_where_a_distribution_is_made():
    whole = DiagonalGaussian(torch.tensor([1, 2]), torch.tensor([0, 0]))
    half = DiagonalGaussian(torch.tensor([0.5, 0.5]), torch.tensor([0, 0]))
    assert whole.kl(half).item() == pytest.approx((0.5**2 + 1.5**2) / 2)
    assert DiagonalGaussian([1.0, 2.0], [0.0, 0.0]).kl(half).item() == whole.kl(half).item()
    assert DiagonalGaussian(*torch.zeros(2, 3).half()).mu.dtype == torch.float32


@pytest.mark.usefixtures("shapes_unchecked")
def test_mean_and_log_variance_have_one_shape():
    with refused("mu and log_var: expected the same shape, got (4, 3) and (3,)"):
        DiagonalGaussian(torch.zeros(4, 3), torch.zeros(3))


# Mixtures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [1, 2, 7])
def test_the_density_of_a_mixture_is_that_of_torch(components):
    ours, torchs = mixture(components)
    z = normals(5, 4, 3, seed=9)
    torch.testing.assert_close(ours.log_prob(z), torchs.log_prob(z))
    assert ours.batch == ()


def test_draws_of_a_mixture_have_its_moments_and_take_all_units_from_one_component():
    ours, torchs = mixture(4)
    draws = ours.sample((50_000,), seeded(1))
    assert torch.equal(draws, ours.sample((50_000,), seeded(1)))
    assert ours.sample((6, 4), seeded(1)).shape == (6, 4, 3)
    off = draws - torchs.mean
    means = ours.parts.mu - torchs.mean
    for estimate, exact in (
        (average(draws), torchs.mean),
        (average(off.square()), torchs.variance),
        (average(off[:, 0] * off[:, 1]), (means[:, 0] * means[:, 1]).mean()),
    ):
        assert ((estimate.value - exact).abs() < 4.5 * estimate.standard_error).all()


def test_a_mixture_is_not_the_product_of_the_mixtures_of_its_units():
    (ours, _), z = mixture(), normals(9, 3, seed=2)
    alone = [Mixture(DiagonalGaussian(ours.parts.mu[:, [j]], ours.parts.log_var[:, [j]]))
             for j in range(3)]  # fmt: skip
    product = sum(each.log_prob(z[:, [j]]) for j, each in enumerate(alone))
    assert (ours.log_prob(z) - product).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(3,), (2, 2, 3), (0, 3)])
def test_the_components_of_a_mixture_have_one_axis(shape):
    with refused(f"parts: expected mu and log_var of shape (components, d), got {shape}"):
        Mixture(DiagonalGaussian(torch.zeros(shape), torch.zeros(shape)))
