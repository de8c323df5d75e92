"""Each line of the budget is the quantity that it is called, where that is known.

Exact values come from the linear-Gaussian model, torch.distributions, scipy's minimizer and sums
over a grid.
"""

import math
import statistics

import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import chi2
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from tests.numbers import double, normals, refused
from vae_book import budget
from vae_book.budget import (
    FullRank,
    correlation_gain,
    information,
    nats_budget,
    refined,
    refined_full,
)
from vae_book.device import seeded
from vae_book.distributions import DiagonalGaussian, Distribution
from vae_book.images import Images
from vae_book.likelihoods import Bernoulli as BlackAndWhite
from vae_book.linear_gaussian import LinearGaussian
from vae_book.linear_vae import linear_vae
from vae_book.models import CVAE, VAE, CompletionVAE
from vae_book.monte_carlo import average

EXACT = LinearGaussian(double([[1.0, 0.9], [-0.5, 0.1], [0.7, 0.4]]), double([0.1, 0, -0.2]), 0.6)


def made_data(n=40, seed=0):
    """Draws of x from the exact model, as they are and as images."""
    _, x = EXACT.sample(n, seeded(seed))
    return x, Images(x.reshape(n, 1, 1, 3), torch.zeros(n).long(), "model", "test")


def off(mu=0.0, log_var=0.0):
    """The exact model with an encoder that leaves the best q by this much."""
    model = linear_vae(EXACT)
    with torch.no_grad():
        model.to_mu.bias += mu
        model.to_log_var.bias += log_var
    return model


def small(kind):
    """A model of binary images, with what it is told about some of them."""
    torch.manual_seed(0)
    shape = (2, 2, 2) if kind is CompletionVAE else (1, 2, 4)
    told = {CompletionVAE: {"seen_shape": (1, 2, 2)}, CVAE: {"classes": 3}}.get(kind, {})
    model = kind(2, 8, shape, BlackAndWhite(), **told).double()
    x = torch.rand(9, *shape, generator=seeded(1)).round().double()
    seen = torch.rand(9, 1, 2, 2, generator=seeded(2)).double() if kind is CompletionVAE else None
    return model, Images(x, torch.arange(9) % 3, "noise", "test", told=seen)


# The gaps ----------------------------------------------------------------------------------------


@pytest.mark.equation(
    "eq-nats-budget", route="torch.distributions.kl_divergence to the posterior", standard_errors=4
)
def test_with_the_best_encoder_all_that_is_missing_is_the_approximation_gap(agree):
    """KL(q || p(z | x)) of a diagonal q and a full posterior, the same for all x."""
    x, data = made_data()
    mu, log_var = EXACT.mean_field(x)
    posterior = EXACT.posterior(x)
    gap = kl_divergence(
        MultivariateNormal(mu, log_var.exp().diag_embed()), MultivariateNormal(*posterior)
    )
    assert gap.min() > 0.3
    cov = EXACT.W @ EXACT.W.T + 0.36 * torch.eye(3)
    evidence = MultivariateNormal(EXACT.b, cov).log_prob(x)
    found = nats_budget(off(), data, n_samples=4000, steps=600, log_evidence=evidence)
    error = found.approximation_gap.standard_error  # of draws alone: all images have the same gap
    agree(found.approximation_gap, gap.mean())
    assert error < 0.005
    assert abs(found.amortization_gap.value) < 0.002
    assert found.amortization_gap.standard_error < 0.002
    assert found.log_evidence.value == evidence.mean()
    assert found.log_evidence.standard_error == evidence.std() / 40**0.5


def test_an_evidence_that_is_not_given_is_the_weighted_bound_of_the_best_q():
    """Below the evidence, above the ELBO; near the evidence where q is not much too narrow."""
    x, data = made_data(60)
    exact = EXACT.log_evidence(x).mean()
    found = nats_budget(off(0.6, -1.0), data, n_samples=1000, steps=100)
    assert exact - 0.1 < found.log_evidence.value < exact + 0.01
    assert found.approximation_gap.value > 0.2
    easy = LinearGaussian(double([[1.0, 0.5], [-0.5, 1.0], [0, 0]]), EXACT.b, 0.7)
    _, x = easy.sample(60, seeded(0))
    data = Images(x.reshape(60, 1, 1, 3), torch.zeros(60).long(), "model", "test")
    found = nats_budget(linear_vae(easy), data, n_samples=100, steps=100)
    assert found.log_evidence.value == pytest.approx(easy.log_evidence(x).mean().item(), abs=1e-3)
    assert abs(found.approximation_gap.value) < 1e-2


@pytest.mark.parametrize(("mu", "log_var"), [(0.6, 0.0), (0.0, -1.0), (-0.5, 0.8)])
def test_what_the_encoder_misses_of_the_best_q_is_the_amortization_gap(mu, log_var):
    x, data = made_data()
    model = off(mu, log_var)
    with torch.no_grad():
        encoder = model.encode(data.images)
    best, own = EXACT.elbo(x, *EXACT.mean_field(x)), EXACT.elbo(x, *encoder)
    found = nats_budget(model, data, steps=150, log_evidence=EXACT.log_evidence(x))
    assert found.amortization_gap.value == pytest.approx((best - own).mean().item(), abs=0.02)
    assert found.elbo.value == pytest.approx(own.mean().item(), abs=0.02)
    assert found.elbo.standard_error == pytest.approx(own.std().item() / 40**0.5, rel=0.05)
    gap = (EXACT.log_evidence(x) - best).mean().item()
    assert found.approximation_gap.value == pytest.approx(gap, abs=0.01)


def test_without_steps_the_best_q_is_the_encoders():
    model, data = small(VAE)
    best = refined(model, data.images, steps=0)
    for found, own in zip(best, model.encode(data.images), strict=True):
        assert torch.equal(found, own)
    assert nats_budget(model, data, n_samples=5, steps=0).amortization_gap.value == 0


def test_refining_leaves_the_model_and_its_gradients_alone():
    model, data = small(VAE)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad():  # of the caller
        best = refined(model, data.images, steps=3, generator=seeded(0))
    assert not torch.equal(best.mu, model.encode(data.images).mu)
    assert not best.mu.requires_grad
    assert not best.log_var.requires_grad
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is None
    assert torch.equal(torch.get_rng_state(), random)


@torch.no_grad()
@pytest.mark.parametrize("kind", [VAE, CVAE])
def test_the_refined_q_is_the_one_that_a_minimizer_finds_on_a_grid(kind):
    torch.manual_seed(0)
    plain = {"learned_prior": False, "own_weights": False}
    told = {"classes": 3, **plain} if kind is CVAE else {}
    model = kind(1, 8, (1, 2, 4), BlackAndWhite(), **told)
    model = model.double()
    model.decoder[0].weight.data[:, :1] *= 4
    x = torch.rand(3, 1, 2, 4, generator=seeded(1)).round().double()
    y = torch.tensor([0, 2, 1]) if kind is CVAE else None
    best = refined(model, x, y, steps=200, n_samples=64, generator=seeded(0))
    z = torch.linspace(-9, 9, 1001).double()
    for i in range(3):
        label = None if y is None else y[i].expand(1001)
        pixels = Bernoulli(logits=model.decode(z.unsqueeze(1), label).params).log_prob(x[i])
        joint = pixels.sum((-3, -2, -1)) + Normal(0.0, 1.0).log_prob(z)

        def negative_elbo(at, joint=joint):
            q = Normal(at[0], math.exp(at[1] / 2))
            density = q.log_prob(z).exp()
            return -torch.trapezoid(density * (joint - q.log_prob(z)), z).item()

        found = minimize(negative_elbo, [0.0, 0.0], method="Nelder-Mead").fun
        ours = negative_elbo([best.mu[i].item(), best.log_var[i].item()])
        started = negative_elbo([part[i].item() for part in model.encode(x, y)])
        assert ours - found < 2e-3
        assert started - found > 0.02


def test_a_bound_is_measured_with_noise_that_the_search_has_not_seen():
    """A step away from the optimum loses nats; on the noise of that step it would gain 0.04."""
    _, data = made_data(60)
    found = [nats_budget(off(), data, n_samples=8, steps=1, seed=seed) for seed in range(20)]
    assert -0.01 < statistics.mean(each.amortization_gap.value.item() for each in found) < 0


# A richer family ---------------------------------------------------------------------------------


def test_among_all_gaussians_the_best_is_the_posterior_of_a_linear_model():
    x, data = made_data(3)
    best = refined_full(off(0.4, -1.0), data.images, steps=300, n_samples=64, generator=seeded(0))
    posterior = EXACT.posterior(x)
    torch.testing.assert_close(best.mu, posterior.mu, rtol=0, atol=0.03)
    cov = best.scale @ best.scale.mT
    torch.testing.assert_close(cov, posterior.cov.expand_as(cov), rtol=0, atol=0.05)
    assert best.scale.diagonal(dim1=-2, dim2=-1).min() > 0
    assert not best.scale.triu(1).any()


def test_the_elbo_of_a_full_gaussian_is_the_closed_form():
    x, data = made_data(5)
    scale = double([[0.5, 0.0], [0.3, 0.4]]).expand(5, 2, 2)
    q = FullRank(normals(5, 2), scale)
    eps = [normals(20, 5, 2, seed=i) for i in range(150)]  # of each, an average over 20 draws
    draws = torch.stack([q.elbo(off(), data.images, each) for each in eps])
    found = average(draws)
    exact = EXACT.elbo_full(x, q.mu, scale[0] @ scale[0].T)
    assert ((found.value - exact).abs() < 4 * found.standard_error).all()


def test_in_a_linear_model_correlations_are_all_of_the_approximation_gap():
    x, data = made_data()
    gap = (EXACT.log_evidence(x) - EXACT.elbo(x, *EXACT.mean_field(x))).mean().item()
    found = correlation_gain(off(0.3, 0.5), data, n_samples=1000, steps=120)
    assert found.value == pytest.approx(gap, abs=0.02)
    assert found.standard_error < 0.01


def one_unit(n):
    """A linear model of a single unit, and images that it made."""
    exact = LinearGaussian(double([[1.0], [0.5]]), double([0.0, 0.3]), 0.8)
    _, x = exact.sample(n, seeded(3))
    data = Images(x.reshape(n, 1, 1, 2), torch.zeros(n).long(), "model", "test")
    return data, linear_vae(exact)


def test_in_a_model_with_one_unit_there_is_nothing_to_correlate():
    data, model = one_unit(20)
    found = correlation_gain(model, data, n_samples=500, steps=60)
    assert abs(found.value) < 0.01


def test_a_gain_is_measured_with_noise_that_neither_search_has_seen():
    """With one unit the families are one; on the noise of one search the other would lose 0.03."""
    data, model = one_unit(60)
    found = [correlation_gain(model, data, n_samples=8, steps=1, seed=seed) for seed in range(20)]
    assert abs(statistics.mean(each.value.item() for each in found)) < 0.01


@pytest.mark.parametrize("kind", [CVAE, CompletionVAE])
def test_what_is_told_is_told_to_the_full_gaussian_too(kind):
    model, data = small(kind)
    told, eps = model.told(data), normals(1, 9, 2)
    with torch.no_grad():
        q_z = model.encode(data.images, told)
        full = FullRank(q_z.mu, q_z.sigma.diag_embed()).elbo(model, data.images, eps, told)
        z = q_z.rsample(eps[0])
        pixels = model.decode(z, told).log_prob(data.images)
        entropy = Normal(q_z.mu, q_z.sigma).entropy().sum(-1)
        p_z = model.prior(told)
        expected = pixels + Normal(p_z.mu, p_z.sigma).log_prob(z).sum(-1) + entropy
    torch.testing.assert_close(full, expected)
    assert correlation_gain(model, data, n_samples=4, steps=2).value.isfinite()


# The KL ------------------------------------------------------------------------------------------


def on_a_grid(q_z, units):
    """The mutual information of image and these units of z, by sums over a grid."""
    axis = torch.linspace(-7, 7, 281).double()
    grid = torch.cartesian_prod(*[axis] * len(units)).reshape(-1, len(units))
    q = Normal(q_z.mu[:, None, units], (q_z.log_var / 2).exp()[:, None, units])
    each = q.log_prob(grid).sum(-1).exp()  # (images, places)
    average_q = each.mean(0)
    terms = each * (each.clamp(min=1e-300).log() - average_q.clamp(min=1e-300).log())
    return terms.sum(-1) * (axis[1] - axis[0]) ** len(units)


@pytest.mark.equation("eq-kl-split", route="sums over a grid", standard_errors=5)
@pytest.mark.parametrize("table", [100, 4_000_000])
def test_mutual_information_is_that_of_a_sum_over_a_grid(monkeypatch, agree, table):
    monkeypatch.setattr(budget, "TABLE", table)
    q_z = DiagonalGaussian(normals(12, 2), 0.5 * normals(12, 2, seed=1) - 1)
    repeats = [information(q_z, n_samples=60, generator=seeded(seed)) for seed in range(12)]
    joint, unit = (average(torch.stack(part)) for part in zip(*repeats, strict=True))
    exact = torch.stack([on_a_grid(q_z, [j]) for j in range(2)], dim=-1)
    for found, wanted in ((joint, on_a_grid(q_z, [0, 1])), (unit, exact)):
        agree(found, wanted)
        assert (found.standard_error < 0.06).all()


def test_images_that_z_does_not_tell_apart_give_no_information_and_others_their_number():
    same = DiagonalGaussian(torch.ones(7, 2), torch.zeros(7, 2))
    for found in information(same):
        assert found.abs().max() < 1e-6
    apart = DiagonalGaussian(100.0 * torch.arange(14).reshape(7, 2), torch.zeros(7, 2))
    for found in information(apart):
        torch.testing.assert_close(found, torch.full_like(found, math.log(7)))


@pytest.mark.parametrize("log_var", [-150.0, 150.0])
def test_information_needs_no_inverse_variance_that_a_float_holds(log_var):
    scale = math.exp(log_var / 2)
    mu = scale * normals(9, 2)
    q_z = DiagonalGaussian(mu, torch.full_like(mu, log_var))
    plain = DiagonalGaussian(mu / scale, torch.zeros_like(mu))
    found, wanted = (information(each, generator=seeded(1))[0] for each in (q_z, plain))
    torch.testing.assert_close(found.to(wanted), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 1000])
def test_given_y_images_are_told_apart_from_those_of_the_same_y_alone(monkeypatch, rows):
    monkeypatch.setattr(budget, "TABLE", rows)
    y = torch.tensor([5, 1, 5, 1, 9, 5])
    mu = torch.tensor([[0.0], [3.0], [100.0], [3.0], [0.0], [200.0]])
    joint, unit = information(DiagonalGaussian(mu, torch.zeros(6, 1)), y)
    wanted = torch.tensor([math.log(3), 0.0, math.log(3), 0.0, 0.0, math.log(3)])
    torch.testing.assert_close(joint, wanted)
    torch.testing.assert_close(unit, wanted.unsqueeze(1))
    shown = y.reshape(6, 1, 1, 1).float()  # told by pixels
    assert torch.equal(information(DiagonalGaussian(mu, torch.zeros(6, 1)), shown)[0], joint)


def test_the_kl_of_the_exact_posteriors_is_all_information():
    """Their average over the x of the model is the prior, up to the finite number of images."""
    exact = LinearGaussian(double([[1.0], [0.5]]), double([0.0, 0.3]), 0.8)
    _, x = exact.sample(2000, seeded(3))
    data = Images(x.reshape(2000, 1, 1, 2), torch.zeros(2000).long(), "model", "test")
    found = nats_budget(linear_vae(exact), data, n_samples=2, steps=0)
    information = 0.5 * math.log(1 + 1.25 / 0.64)  # half the log of prior over posterior variance
    for split in (found.split, found.units):
        kl = split.kl
        assert abs(kl.value - information) < 4 * kl.standard_error
        assert split.mutual_information.value == pytest.approx(information, abs=0.03)
        assert abs(split.aggregated_kl.value) < 0.03


def test_an_aggregated_posterior_off_the_prior_is_charged_for_it():
    """Means moved by 2 cost 2 nats a unit, and say nothing about the image."""
    x, data = made_data(300)
    moved, own = (
        nats_budget(off(mu=mu), data, n_samples=2, steps=0).split.aggregated_kl for mu in (2.0, 0)
    )
    shift = (EXACT.mean_field(x)[0].mean(0) * 2 + 2).sum()  # of half the mean square of mu + 2
    assert moved.value - own.value == pytest.approx(shift.item(), abs=0.05)


# The account -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [VAE, CVAE, CompletionVAE])
def test_the_lines_add_up_for_every_model(kind):
    model, data = small(kind)
    found = nats_budget(model, data, n_samples=6, steps=5)
    for total, *parts in (
        (found.log_evidence, found.elbo, found.approximation_gap, found.amortization_gap),
        (found.log_likelihood, found.elbo, found.split.kl),
        found.split,
        found.units,
    ):
        torch.testing.assert_close(total.value, sum(part.value for part in parts))
    torch.testing.assert_close(found.split.kl.value, found.units.kl.value.sum())
    assert found.units.kl.value.shape == (2,)
    given = "" if kind is VAE else " given y"
    assert found.protocol.quantity == f"budget in nats{given}, 5 steps to the best q"
    assert found.protocol.K == 6
    torch.testing.assert_close(found.per_image.mean(), found.log_evidence.value)
    assert (found.protocol.n_images, found.protocol.pixels) == (9, "binary")


class Halves(Distribution):
    """A prior that is no product over units: N(1, I) or N(-1, I), equally likely."""

    batch = ()

    def sample(self, shape, generator=None):
        raise NotImplementedError

    def log_prob(self, z):
        parts = [Normal(mean, 1.0).log_prob(z).sum(-1) for mean in (-1.0, 1.0)]
        return torch.logaddexp(*parts) - math.log(2)


def test_a_prior_that_is_no_product_has_no_account_of_units(monkeypatch):
    model, data = small(VAE)
    monkeypatch.setattr(VAE, "prior", lambda self, y=None: Halves())
    found = nats_budget(model, data, n_samples=6, steps=5)
    assert found.units is None
    total, *parts = found.split
    torch.testing.assert_close(total.value, sum(part.value for part in parts))


def test_standard_errors_are_the_spread_over_sets_of_images():
    lines = {"elbo": [], "log_likelihood": [], "kl": [], "mutual_information": []}
    errors = {name: [] for name in lines}
    for seed in range(60):
        _, data = made_data(50, seed=100 + seed)
        found = nats_budget(off(0.3, 0.2), data, n_samples=20, steps=0, seed=seed)
        for name in lines:
            line = getattr(found, name, None) or getattr(found.split, name)
            lines[name].append(line.value.item())
            errors[name].append(line.standard_error.item() ** 2)
    low, high = chi2.ppf([1e-4, 1 - 1e-4], 59) / 59
    for name, values in lines.items():
        assert low < statistics.variance(values) / statistics.mean(errors[name]) < high, name


def test_a_seed_means_the_same_numbers():
    model, data = small(VAE)
    first, again, other = (
        nats_budget(model, data, n_samples=4, steps=2, seed=seed) for seed in (1, 1, 2)
    )
    assert first.elbo == again.elbo
    assert first.split == again.split
    assert first.approximation_gap == again.approximation_gap
    assert first.elbo != other.elbo


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_does_not_fit_is_refused():
    model, data = small(VAE)
    with refused("data: expected shape (n, ...) with n >= 2"):
        nats_budget(model, data[:1])
    with refused("n_samples: expected a whole number of at least 1, got 0"):
        nats_budget(model, data, n_samples=0)
    with refused("steps: expected a whole number of at least 0, got -1"):
        nats_budget(model, data, n_samples=2, steps=-1)
    with refused("log_evidence and images: expected the same shape"):
        nats_budget(model, data, n_samples=2, steps=1, log_evidence=torch.zeros(8))
    with refused("n_samples: expected a whole number of at least 1, got 0"):
        information(DiagonalGaussian(torch.zeros(2, 1), torch.zeros(2, 1)), n_samples=0)
