"""Annealed weights average to p(x), and their logarithms hold log p(x) from both sides.

Exact values come from the linear-Gaussian model, and from sums over a grid.
"""

from itertools import pairwise

import pytest
import torch
from torch.distributions import Bernoulli, MultivariateNormal, Normal

from tests.numbers import double, normals, refused
from vae_book import annealing
from vae_book.annealing import (
    Tempered,
    anneal,
    annealed_log_likelihood,
    both_sides,
    leapfrog,
    schedule,
    step_sizes,
    transition,
)
from vae_book.device import seeded
from vae_book.images import Images
from vae_book.likelihoods import Bernoulli as BlackAndWhite
from vae_book.linear_gaussian import LinearGaussian
from vae_book.linear_vae import linear_vae
from vae_book.models import CVAE, PACE, VAE, CompletionVAE
from vae_book.monte_carlo import average

EXACT = LinearGaussian(double([[1.0, 0.9], [-0.5, 0.1], [0.7, 0.4]]), double([0.1, 0, -0.2]), 0.5)
X = double([1.2, -0.8, 0.1])


def target(n=1):
    """The same x, n times."""
    return Tempered(linear_vae(EXACT), X.expand(n, 1, 1, 3))


def tempered(beta):
    """The tempered posterior of x, a Gaussian: that of a model with noise sigma / sqrt(beta)."""
    return LinearGaussian(EXACT.W, EXACT.b, EXACT.sigma / beta**0.5).posterior(X)


def steps(size, T):
    return torch.full((T, 1), size).double()


@pytest.fixture
def short_search(monkeypatch):
    """For what holds at any step size: fewer transitions to find it by."""
    monkeypatch.setattr(annealing, "TRIES", 40)


# The weights -------------------------------------------------------------------------------------


def many_chains(T, size, **options):
    noise = {"n_leapfrog": 3, "generator": seeded(T)}
    return anneal(target(), schedule(T), steps(size, T), n_chains=20_000, **noise, **options)


@pytest.mark.equation("eq-annealed-weight", route="the exact log_evidence", standard_errors=4)
@pytest.mark.parametrize(("T", "size"), [(1, 0.4), (3, 0.4), (3, 0.05), (6, 0.7)])
def test_forwards_the_weights_average_to_the_evidence_whatever_the_steps(agree, T, size):
    found = many_chains(T, size)
    ratio = average((found.log_weights[:, 0] - EXACT.log_evidence(X)).exp())
    agree(ratio, 1)
    assert ratio.standard_error < 0.08


@pytest.mark.equation("eq-both-sides", route="the exact log_evidence", standard_errors=4)
@pytest.mark.parametrize(("T", "size"), [(3, 0.4), (6, 0.4), (6, 0.7)])
def test_backwards_their_inverses_average_to_that_of_the_evidence(agree, T, size):
    z = MultivariateNormal(*EXACT.posterior(X)).loc + (
        normals(20_000, 2) @ torch.linalg.cholesky(EXACT.posterior(X).cov).T
    )
    found = many_chains(T, size, z=z.unsqueeze(1))
    ratio = average((EXACT.log_evidence(X) - found.log_weights[:, 0]).exp())
    agree(ratio, 1)
    assert ratio.standard_error < 0.08


@pytest.mark.usefixtures("short_search")
def test_both_sides_hold_the_evidence_and_close_in_on_it():
    gaps = []
    for T in (2, 8, 40):
        x, lower, upper = both_sides(
            linear_vae(EXACT), 300, n_temperatures=T, n_chains=4, n_leapfrog=3
        )
        exact = EXACT.log_evidence(x.reshape(300, 3))
        for above in (average(exact - lower), average(upper - exact)):
            assert above.value > -3 * above.standard_error
        gaps.append(upper - lower)
    for wide, narrow in pairwise(gaps):  # of the same images
        closed = average(wide - narrow)
        assert closed.value > 3 * closed.standard_error
    assert gaps[0].mean() > 1
    assert 0 < gaps[-1].mean() < 0.5


@pytest.mark.usefixtures("short_search")
def test_the_images_of_both_sides_are_draws_of_the_model():
    x = both_sides(linear_vae(EXACT), 4000, n_temperatures=1, n_chains=1, n_leapfrog=1).x
    found = average(x.reshape(4000, 3))
    assert ((found.value - EXACT.b).abs() < 4 * found.standard_error).all()
    cov = EXACT.W @ EXACT.W.T + 0.25 * torch.eye(3)
    torch.testing.assert_close(x.reshape(4000, 3).T.cov(), cov, rtol=0.1, atol=0.1)


@torch.no_grad()
@pytest.mark.usefixtures("short_search")
@pytest.mark.parametrize("kind", ["nothing", "label", "part"])
def test_for_every_model_the_bounds_meet_at_the_integral_over_z(kind):
    torch.manual_seed(1)
    shape = (2, 2, 2) if kind == "part" else (1, 2, 4)
    if kind == "part":
        model = CompletionVAE(1, 8, shape, BlackAndWhite(), seen_shape=(1, 2, 2))
        y = torch.rand(4, 1, 2, 2, generator=seeded(2)).double()
    elif kind == "label":
        model, y = (
            CVAE(1, 8, shape, BlackAndWhite(), classes=3, own_weights=False),
            torch.arange(4) % 3,
        )
        torch.nn.init.normal_(model.prior_network.weight, std=0.5 / PACE)
    else:
        model, y = VAE(1, 8, shape, BlackAndWhite()), None
    model = model.double()
    model.decoder[0].weight.data[:, :1] *= 4
    x, lower, upper = both_sides(model, 4, y=y, n_temperatures=20, n_chains=120, n_leapfrog=3)
    z, exact = torch.linspace(-9, 9, 4001).double(), []
    for i in range(4):
        told = None if y is None else y[i].expand(4001, *y.shape[1:])
        pixels = Bernoulli(logits=model.decode(z.unsqueeze(1), told).params).log_prob(x[i])
        mean, log_var = model.prior(None if y is None else y[i])
        prior = Normal(mean, (log_var / 2).exp()).log_prob(z)
        exact.append(torch.trapezoid((pixels.sum((-3, -2, -1)) + prior).exp(), z).log())
    exact = torch.stack(exact)
    assert (lower - exact).abs().max() < 0.15
    assert (upper - exact).abs().max() < 0.15
    seen = {"told": y} if kind == "part" else {}
    labels = y if kind == "label" else torch.zeros(4).long()
    data = Images(x, labels, "model", "test", **seen)
    found = annealed_log_likelihood(model, data, n_temperatures=20, n_chains=120, n_leapfrog=3)
    assert (found - exact).abs().max() < 0.15


# The transitions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "size"), [(1.0, 0.5), (0.3, 0.8), (0.01, 0.9)])
def test_a_transition_leaves_the_tempered_posterior_as_it_is(beta, size):
    mu, cov = tempered(beta)
    z = (mu + normals(40_000, 2) @ torch.linalg.cholesky(cov).T).unsqueeze(1)
    for seed in range(3):
        before = z
        z, accepted = transition(target(), z, beta, double([size]), 3, seeded(seed))
    assert 0.3 < accepted.mean() < 0.99  # so that it matters what is rejected
    assert (z != before).double().mean() == pytest.approx(accepted.mean().item(), abs=0.02)
    found = average(z.squeeze(1))
    assert ((found.value - mu).abs() < 4 * found.standard_error).all()
    centered = z.squeeze(1) - mu
    second = average(centered.unsqueeze(-1) * centered.unsqueeze(-2))
    assert ((second.value - cov).abs() < 4 * second.standard_error).all()


def test_the_slope_is_that_of_the_tempered_density():
    z = normals(3, 1, 2)
    mu, cov = tempered(0.3)
    expected = (mu - z) @ torch.linalg.inv(cov)
    torch.testing.assert_close(target().slope(z, 0.3), expected)


def test_leapfrog_leads_back_if_the_momentum_is_reversed_and_keeps_the_energy_to_second_order():
    z, momentum, density = normals(5, 2), normals(5, 2, seed=1), MultivariateNormal(*tempered(1.0))

    def slope(at):
        return (density.loc - at) @ density.precision_matrix

    def energy(at, momentum):
        return density.log_prob(at) - 0.5 * momentum.square().sum(-1)

    errors = []
    for n_steps in (25, 50):
        step = double(0.5 / n_steps)
        moved, after = leapfrog(slope, z, momentum, step, n_steps)
        back, reversed_ = leapfrog(slope, moved, -after, step, n_steps)
        assert (moved - z).abs().min() > 0.01
        torch.testing.assert_close(back, z)
        torch.testing.assert_close(-reversed_, momentum)
        errors.append((energy(moved, after) - energy(z, momentum)).abs().max())
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # goes with the step squared


def test_a_proposal_that_runs_away_is_rejected():
    z = normals(4, 1, 2)
    moved, accepted = transition(target(), z, 1.0, double([1e200]), 3, seeded(0))
    assert torch.equal(moved, z)
    assert not accepted.any()


def test_each_image_gets_steps_of_its_own_that_are_accepted_as_often_as_wanted():
    """Images of models with a narrow and a wide posterior: a pixel that is told y pixels apart."""
    torch.manual_seed(0)
    model = CVAE(2, 8, (1, 4, 4), BlackAndWhite(), classes=2, learned_prior=True).double()
    model.prior_network.weight.data[2:, 1] = -4 / PACE  # variances of e^-4 for one of two
    x, y = torch.rand(6, 1, 4, 4, generator=seeded(1)).round().double(), torch.arange(6) % 2
    about, betas = Tempered(model, x, y), schedule(40)
    sizes = step_sizes(about, betas, n_chains=50, n_leapfrog=4, generator=seeded(0))
    assert sizes.shape == (40, 6)
    ratio = sizes[-1, y == 0].min() / sizes[-1, y == 1].max()
    assert 4 < ratio < 12  # about e^2, the ratio of the standard deviations
    found = anneal(about, betas, sizes, n_chains=50, n_leapfrog=4, generator=seeded(1))
    assert ((found.acceptance - 0.65).abs() < 0.12).all()


# The schedule, the noise -------------------------------------------------------------------------


def test_the_schedule_rises_from_0_to_1_slowly_at_both_ends():
    betas = schedule(10)
    assert (betas[0], betas[-1], len(betas)) == (0, 1, 11)
    jumps = [b - a for a, b in pairwise(betas)]
    assert min(jumps) > 0
    assert jumps == pytest.approx(jumps[::-1])
    assert jumps[:5] == sorted(jumps[:5])
    assert schedule(1) == [0, 1]


@pytest.mark.usefixtures("short_search")
def test_the_noise_depends_on_the_seed_alone_and_the_model_stays_as_it_is():
    model = linear_vae(EXACT)
    data = Images(X.expand(3, 1, 1, 3), torch.zeros(3).long(), "model", "test")
    options = {"n_temperatures": 3, "n_chains": 2, "n_leapfrog": 2}
    before = torch.get_rng_state()
    first, again, other = (
        annealed_log_likelihood(model, data, seed=seed, **options) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.requires_grad
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("name", ["n_temperatures", "n_chains", "n_leapfrog"])
def test_numbers_are_positive(name):
    model = linear_vae(EXACT)
    data = Images(X.expand(3, 1, 1, 3), torch.zeros(3).long(), "model", "test")
    wanted = f"{'n' if name == 'n_temperatures' else name}: expected a whole number of at least 1"
    with refused(wanted):
        annealed_log_likelihood(model, data, **{name: 0})
    with refused(wanted):
        both_sides(model, 2, **{name: 0})


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    "betas", [[1.0, 0.0], [0.0, 0.5], [0.0, 0.7, 0.3, 1.0], [0.0, float("nan"), 1.0], [0.0], []]
)
def test_inverse_temperatures_rise_from_0_to_1(betas):
    """Others would give a bound on something else than log p(x)."""
    about, steps = Tempered(linear_vae(EXACT), X.expand(3, 1, 1, 3)), torch.ones(1, 3).double()
    with refused("betas: expected numbers that rise from 0 to 1"):
        anneal(about, betas, steps)
