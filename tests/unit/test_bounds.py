"""The ELBO is a lower bound, and falls short of log p(x) by exactly KL(q(z|x) || p(z|x)).

The model has a one-dimensional z and four binary pixels, so that log p(x) and the true posterior
are sums over a fine grid of z, computed here with scipy and without the package's bound.
"""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.special import logsumexp
from scipy.stats import bernoulli, multinomial, multivariate_normal, norm
from torch.distributions import Normal, kl_divergence

from vae_book import evaluation
from vae_book.bounds import (
    Elbo,
    elbo,
    elbo_terms,
    importance_weighted_bound,
    log_weights,
)
from vae_book.device import seeded
from vae_book.evaluation import average_elbo
from vae_book.images import Images
from vae_book.likelihoods import Bernoulli, Gaussian
from vae_book.linear_gaussian import LinearGaussian
from vae_book.models import CVAE, PACE, VAE, CompletionVAE
from vae_book.monte_carlo import average, log_average

EVERY_IMAGE = torch.tensor(
    list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64
).reshape(16, 1, 2, 2)
GRID = np.linspace(-12, 12, 24_001)


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def small(latent=1, kind=VAE, **options):
    """A model whose weights are large enough for its posteriors to be far from the prior."""
    options = {"hidden": 16, "image_shape": (1, 2, 2), "likelihood": Bernoulli()} | options
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(latent, **options).double()
        for weight in model.parameters():
            weight.data *= 2
        if options.get("learned_prior"):
            torch.nn.init.normal_(model.prior_network.weight, std=0.5 / PACE)
    return model


def priors(model):
    """Means and log-variances of p(z | y), a row for each label."""
    return (PACE * model.prior_network.weight).T.chunk(2, dim=1)


@torch.no_grad()
def log_joint(model, y=None):
    """log p(x, z), or log p(x, z | y), of every image (rows) at every z of the grid (columns)."""
    mean, std, given = 0, 1, ()
    if y is not None:
        given = (torch.tensor(y),)
        if model.learned_prior:
            means, log_vars = priors(model)
            mean, std = means[y].item(), math.exp(log_vars[y].item() / 2)
    logits = model.decode(torch.from_numpy(GRID)[:, None], *given).params.numpy()
    log_likelihood = bernoulli.logpmf(EVERY_IMAGE.numpy()[:, None], 1 / (1 + np.exp(-logits)))
    return log_likelihood.sum(axis=(2, 3, 4)) + norm.logpdf(GRID, mean, std)


def log_evidence(model, y=None):
    return logsumexp(log_joint(model, y), axis=1) + np.log(GRID[1] - GRID[0])


@torch.no_grad()
@pytest.mark.equation("eq-elbo", route="sums over a grid of z, by scipy", abs=5e-4)
def test_the_bound_and_the_divergence_from_the_posterior_add_up_to_the_evidence(agree):
    model = small()
    log_p = log_evidence(model)
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-9)  # over all 16 images

    # Equally likely noise instead of random noise: the mean over it is an integral by quantiles.
    n = 20_000
    eps = torch.from_numpy(norm.ppf((np.arange(n) + 0.5) / n)).reshape(n, 1, 1).expand(n, 16, 1)
    bound = elbo(model, EVERY_IMAGE, eps).value.numpy()

    mu, log_var = (parameter.numpy() for parameter in model.encode(EVERY_IMAGE))
    log_q = norm.logpdf(GRID, mu, np.exp(log_var / 2))
    log_posterior = log_joint(model) - log_p[:, None]
    divergence = trapezoid(np.exp(log_q) * (log_q - log_posterior), GRID, axis=1)
    agree(bound + divergence, log_p)
    assert (bound < log_p - 0.01).all()
    assert divergence.max() > 0.5  # or the test above would say little


@torch.no_grad()
def test_one_sample_is_unbiased():
    # The mean over 4,000 single draws is within four standard errors of the mean by quantiles.
    model, n = small(), 4000
    x = EVERY_IMAGE[5:6]
    draws = elbo(model, x.expand(n, -1, -1, -1), noise(n, 1)).value
    eps = torch.from_numpy(norm.ppf((np.arange(n) + 0.5) / n)).reshape(n, 1, 1)
    expected = elbo(model, x, eps).value.item()
    assert abs(draws.mean().item() - expected) < 4 * draws.std().item() / n**0.5


@torch.no_grad()
@pytest.mark.equation("eq-elbo", route="loops over images and samples", rel=1e-10)
def test_agrees_with_a_plain_computation_for_given_noise(agree):
    model, eps = small(latent=3), noise(7, 16, 3)
    terms = elbo(model, EVERY_IMAGE, eps)
    mu, log_var = (parameter.numpy() for parameter in model.encode(EVERY_IMAGE))
    for row, x in enumerate(EVERY_IMAGE.numpy()):
        scores = []
        for sample in eps[:, row].numpy():
            z = torch.from_numpy(mu[row] + np.sqrt(np.exp(log_var[row])) * sample)
            p = torch.sigmoid(model.decode(z).params).numpy()
            scores.append(np.log(np.where(x == 1, p, 1 - p)).sum())
        kl = -0.5 * np.sum(1 + log_var[row] - mu[row] ** 2 - np.exp(log_var[row]))
        agree(terms.log_likelihood[row], np.mean(scores))
        agree(terms.kl[row], kl)
        agree(terms.value[row], np.mean(scores) - kl)


@torch.no_grad()
def test_a_decoder_that_ignores_z_leaves_the_evidence_less_the_divergence():
    model = small()
    model.decoder[0].weight.zero_()
    terms = elbo(model, EVERY_IMAGE, noise(16, 1))
    np.testing.assert_allclose(terms.log_likelihood, log_evidence(model), atol=1e-9)
    # q = prior closes the gap.
    for head in (model.to_mu, model.to_log_var):
        head.weight.zero_()
        head.bias.zero_()
    assert (elbo(model, EVERY_IMAGE, noise(16, 1)).kl == 0).all()


@torch.no_grad()
def test_noise_comes_from_the_generator_with_one_draw_for_each_sample_and_image():
    model, x = small(latent=3).float(), EVERY_IMAGE.float()
    eps = torch.randn(5, 16, 3, generator=torch.Generator().manual_seed(2))
    before = torch.get_rng_state()
    drawn = elbo(model, x, n_samples=5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(drawn.value, elbo(model, x, eps).value)
    one = elbo(model, x, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(one.value, elbo(model, x, eps.flatten()[:48].view(16, 3)).value)


def test_more_samples_are_less_noisy_about_the_same_value():
    model, x, n = small(), EVERY_IMAGE[5:6], 2000
    with torch.no_grad():
        by_one, by_nine = (
            elbo(model, x.expand(n, -1, -1, -1), noise(k, n, 1)).value for k in (1, 9)
        )
    error = ((by_one.var() + by_nine.var()) / n).sqrt()
    assert abs(by_one.mean() - by_nine.mean()) < 4 * error
    # Standard deviations in the ratio 3 to 1, each known to about 1/sqrt(2n) for Gaussian draws.
    assert (by_one.std() / by_nine.std()).item() == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize("samples", [(), (1,), (4,), (2, 4)])
def test_there_is_one_number_for_each_image(samples):
    terms = elbo(small(), EVERY_IMAGE, noise(*samples, 16, 1))
    assert terms.log_likelihood.shape == terms.kl.shape == terms.value.shape == (16,)
    assert terms.unit_kl.shape == (16, 1)


def test_terms_are_those_of_what_the_model_puts_out():
    model, eps = small(), noise(3, 16, 1)
    terms = elbo_terms(EVERY_IMAGE, model(EVERY_IMAGE, eps))
    assert torch.equal(terms.value, elbo(model, EVERY_IMAGE, eps).value)


def test_the_value_is_likelihood_less_divergence():
    terms = Elbo(torch.tensor([-5.0, -1.0]), torch.tensor([[0.5, 1.5], [0.25, 0.0]]))
    assert terms.kl.tolist() == [2, 0.25]
    assert terms.value.tolist() == [-7, -1.25]


def test_gradients_agree_with_finite_differences():
    model, eps = small(), noise(2, 16, 1)
    for name in ("to_mu", "to_log_var", "decoder.2"):
        bias = model.get_submodule(name).bias
        (gradient,) = torch.autograd.grad(elbo(model, EVERY_IMAGE, eps).value.sum(), bias)
        step = torch.zeros_like(bias)
        step[0] = 1e-6
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                bias += sign * step
                values.append(elbo(model, EVERY_IMAGE, eps).value.sum().item())
                bias -= sign * step
        assert gradient[0].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_cannot_be_computed_is_refused():
    model = small()
    with pytest.raises(
        ValueError, match=r"^n_samples: expected a whole number of at least 1, got 0"
    ):
        elbo(model, EVERY_IMAGE, n_samples=0)
    with pytest.raises(ValueError, match=r"^x: expected images of shape"):
        elbo(model, torch.zeros(3, 1, 4, 1))
    with pytest.raises(ValueError, match="eps: expected"):
        elbo(model, EVERY_IMAGE, noise(4, 1))
    with pytest.raises(ValueError, match="binarize"):
        elbo(model, EVERY_IMAGE / 2, noise(16, 1))


# Given a label ------------------------------------------------------------------------------------

LABELS = torch.arange(16) % 3


def given(latent=1, **options):
    """A CVAE of three labels; by default with N(0, I), and one first layer for all labels."""
    plain = {"learned_prior": False, "own_weights": False}
    return small(latent, CVAE, classes=3, **plain | options)


@torch.no_grad()
@pytest.mark.equation("eq-conditional-elbo", route="sums over a grid of z, by scipy", abs=5e-4)
@pytest.mark.parametrize("learned_prior", [False, True])
def test_given_the_label_bound_and_divergence_add_up_to_the_evidence_given_it(agree, learned_prior):
    model, n = given(learned_prior=learned_prior), 10_000
    eps = torch.from_numpy(norm.ppf((np.arange(n) + 0.5) / n)).reshape(n, 1, 1).expand(n, 16, 1)
    evidence = [log_evidence(model, y) for y in range(3)]
    for y, log_p in enumerate(evidence):
        assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-9)  # over all 16 images
        labels = torch.full((16,), y)
        bound = elbo(model, EVERY_IMAGE, eps, y=labels).value.numpy()
        mu, log_var = (parameter.numpy() for parameter in model.encode(EVERY_IMAGE, labels))
        log_q = norm.logpdf(GRID, mu, np.exp(log_var / 2))
        log_posterior = log_joint(model, y) - log_p[:, None]
        divergence = trapezoid(np.exp(log_q) * (log_q - log_posterior), GRID, axis=1)
        agree(bound + divergence, log_p)
        assert (bound < log_p).all()
        assert divergence.max() > 0.1
    assert abs(evidence[0] - evidence[1]).max() > 0.1  # the label matters


@torch.no_grad()
@pytest.mark.equation("eq-conditional-elbo", route="torch.distributions for each image", rel=1e-10)
@pytest.mark.parametrize("learned_prior", [False, True])
def test_each_image_is_scored_given_its_own_label(agree, learned_prior):
    model, eps = given(latent=3, learned_prior=learned_prior), noise(7, 16, 3)
    terms = elbo(model, EVERY_IMAGE, eps, y=LABELS)
    for row, (x, y) in enumerate(zip(EVERY_IMAGE, LABELS, strict=True)):
        mu, log_var = model.encode(x, y)
        q, p = Normal(mu, log_var.exp().sqrt()), Normal(torch.zeros_like(mu), 1.0)
        if learned_prior:
            means, log_vars = priors(model)
            p = Normal(means[y], log_vars[y].exp().sqrt())
        logits = [model.decode(q.mean + q.stddev * sample, y).params for sample in eps[:, row]]
        scores = [torch.distributions.Bernoulli(logits=z).log_prob(x).sum() for z in logits]
        kl = kl_divergence(q, p).sum()
        agree(terms.log_likelihood[row], torch.stack(scores).mean())
        agree(terms.kl[row], kl)
        agree(terms.value[row], torch.stack(scores).mean() - kl)


@torch.no_grad()
@pytest.mark.parametrize("learned_prior", [None, False, True])
def test_the_divergence_is_known_for_each_unit(learned_prior):
    model = small(3) if learned_prior is None else given(3, learned_prior=learned_prior)
    told = () if learned_prior is None else (LABELS,)
    terms = elbo(model, EVERY_IMAGE, noise(16, 3), **dict(zip("y", told, strict=False)))
    mu, log_var = model.encode(EVERY_IMAGE, *told)
    means, log_vars = torch.zeros(2, 16, 3, dtype=torch.float64)
    if learned_prior:
        means, log_vars = (each[LABELS] for each in priors(model))
    for j in range(3):
        q, p = (
            Normal(mean[:, j], log_variance[:, j].exp().sqrt())
            for mean, log_variance in ((mu, log_var), (means, log_vars))
        )
        torch.testing.assert_close(terms.unit_kl[:, j], kl_divergence(q, p))
    torch.testing.assert_close(terms.kl, sum(terms.unit_kl[:, j] for j in range(3)))
    torch.testing.assert_close(terms.value, terms.log_likelihood - terms.kl)


def linear_gaussian():
    """A CVAE with p(x | y) = N(A m_y + B u_y + c, A v A^T + s^2 I), and its exact posterior.

    A pair of ReLU units, relu(t) - relu(-t), passes a number on. Three labels, and one z, for which
    the exact posterior is a Gaussian with a mean that is linear in x and shifted by y.
    """
    model = small(kind=CVAE, classes=3, hidden=4, likelihood=Gaussian(0.7), own_weights=False)
    A, B, c, u = (noise(12, 2).T.flatten()[start : start + 4] for start in (0, 4, 8, 12))
    u, m, v, s2 = u[:3], 2 * noise(3), 0.6, 0.7**2
    pair = torch.tensor([1.0, -1.0], dtype=torch.float64)
    precision = A @ A / s2 + 1 / v
    for weight in model.parameters():
        weight.data.zero_()
    model.prior_network.weight.data[0] = m / PACE
    model.prior_network.weight.data[1] = math.log(v) / PACE
    model.decoder[0].weight.data[:2, 0] = pair
    model.decoder[0].weight.data[2:, 1:] = pair[:, None] * u
    model.decoder[2].weight.data[:] = torch.cat([A[:, None] * pair, B[:, None] * pair], dim=1)
    model.decoder[2].bias.data[:] = c
    w = A / s2 / precision
    shift = m / v / precision - (u[:, None] * B + c) @ w
    model.encoder[0].weight.data[:2] = pair[:, None] * torch.cat([w, shift])
    model.to_mu.weight.data[0, :2] = pair
    model.to_log_var.bias.data[:] = -precision.log()
    covariance = v * torch.outer(A, A) + s2 * torch.eye(4, dtype=torch.float64)
    return model, m[:, None] * A + u[:, None] * B + c, covariance


@torch.no_grad()
@pytest.mark.equation("eq-conditional-elbo", route="log p(x | y), by scipy", abs=1e-9)
def test_the_bound_reaches_the_evidence_with_the_exact_posterior_and_is_below_it_elsewhere(agree):
    model, means, covariance = linear_gaussian()
    n = 12
    x, y = 2 * noise(n, 1, 2, 2), torch.arange(n) % 3
    exact = torch.tensor(
        [
            multivariate_normal.logpdf(image.flatten(), means[label], covariance)
            for image, label in zip(x, y, strict=True)
        ]
    )
    # The log-likelihood is a quadratic of eps: its mean over -1 and 1 is the expectation.
    eps = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1).expand(2, n, 1)
    agree(elbo(model, x, eps, y=y).value, exact)
    # Below it by the divergence from the exact posterior, for a q with another mean and variance.
    posterior = Normal(*_moments(model, x, y))
    model.to_mu.bias.data += 0.3
    model.to_log_var.bias.data += 0.5
    divergence = kl_divergence(Normal(*_moments(model, x, y)), posterior).squeeze(-1)
    agree(elbo(model, x, eps, y=y).value + divergence, exact)
    assert divergence.min() > 0.05


def _moments(model, x, y):
    mu, log_var = model.encode(x, y)
    return mu, (log_var / 2).exp()


def test_the_gradient_of_the_learned_prior_is_that_of_the_divergence():
    model = given(latent=2, learned_prior=True)
    y = LABELS % 2  # no image of the third label
    elbo(model, EVERY_IMAGE, noise(3, 16, 2), y=y).value.sum().backward()
    mu, log_var = (each.detach() for each in model.encode(EVERY_IMAGE, y))
    m, v = priors(model)[0].detach(), priors(model)[1].detach().exp()
    m_grad, log_v_grad = (model.prior_network.weight.grad / PACE).T.chunk(2, dim=1)
    for label in range(3):
        off, var = mu[y == label] - m[label], log_var[y == label].exp()
        by_mean = (off / v[label]).sum(0)
        by_log_var = ((var + off**2) / v[label] - 1).sum(0) / 2
        torch.testing.assert_close(m_grad[label], by_mean)
        torch.testing.assert_close(log_v_grad[label], by_log_var)
    assert not m_grad[2].any()
    assert m_grad[:2].all()


@pytest.mark.parametrize("own_weights", [False, True])
def test_gradients_given_labels_agree_with_finite_differences(own_weights):
    model = given(latent=2, learned_prior=True, own_weights=own_weights)
    eps, step = noise(2, 16, 2), 1e-6
    elbo(model, EVERY_IMAGE, eps, y=LABELS).value.sum().backward()
    # The last columns belong to the labels.
    for part in ("encoder.0", "decoder.0", "prior_network"):
        weight, values = model.get_parameter(f"{part}.weight"), []
        with torch.no_grad():
            for row in weight:
                for shift in (step, -2 * step, step):
                    row[-1] += shift
                    values.append(elbo(model, EVERY_IMAGE, eps, y=LABELS).value.sum())
        up, down, _ = torch.stack(values).reshape(-1, 3).T
        slopes = (up - down) / (2 * step)
        torch.testing.assert_close(weight.grad[:, -1], slopes, rtol=1e-5, atol=1e-7)
        assert slopes.abs().max() > 1e-1


@torch.no_grad()
@pytest.mark.parametrize("learned_prior", [False, True])
def test_noise_for_a_model_of_labels_comes_from_the_generator(learned_prior):
    model = given(latent=3, learned_prior=learned_prior).float()
    x, eps = EVERY_IMAGE.float(), torch.randn(5, 16, 3, generator=seeded(2))
    expected = elbo(model, x, eps, y=LABELS)
    drawn = elbo(model, x, y=LABELS, n_samples=5, generator=seeded(2))
    assert torch.equal(drawn.log_likelihood, expected.log_likelihood)
    assert torch.equal(drawn.unit_kl, expected.unit_kl)
    terms = elbo_terms(x, model(x, eps, LABELS))
    assert torch.equal(terms.value, expected.value)


@torch.no_grad()
@pytest.mark.parametrize("samples", [(), (1,), (4,), (2, 4)])
@pytest.mark.parametrize("n", [16, 1, 0])
def test_there_is_one_number_for_each_image_and_label(samples, n):
    model = given(latent=2, learned_prior=True)
    terms = elbo(model, EVERY_IMAGE[:n], noise(*samples, n, 2), y=LABELS[:n])
    assert terms.log_likelihood.shape == terms.kl.shape == terms.value.shape == (n,)
    assert terms.unit_kl.shape == (n, 2)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("learned_prior", [False, True])
def test_labels_go_to_models_that_are_conditioned_on_them(learned_prior):
    plain, conditional = small(), given(learned_prior=learned_prior)
    with pytest.raises(ValueError, match=r"^y: expected None, since a VAE takes no labels"):
        elbo(plain, EVERY_IMAGE, y=LABELS)
    with pytest.raises(ValueError, match=r"^y: expected labels .* got NoneType"):
        elbo(conditional, EVERY_IMAGE)
    wrong = [LABELS + 1, LABELS - 1, LABELS[:15], LABELS[None], LABELS.float(), LABELS > 0]
    for y in [*wrong, LABELS.tolist(), LABELS.numpy(), 1]:
        with pytest.raises(ValueError, match=r"^y: expected "):
            elbo(conditional, EVERY_IMAGE, y=y)


@torch.no_grad()
@pytest.mark.parametrize("learned_prior", [False, True])
def test_held_out_images_are_measured_given_their_labels(monkeypatch, learned_prior):
    monkeypatch.setattr(evaluation, "CHUNK", 4)
    model = small(2, CVAE, image_shape=(1, 28, 28), learned_prior=learned_prior).float()
    x = torch.rand(10, 1, 28, 28, generator=seeded(3)).round()
    y = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    bound = average_elbo(model, Images(x, y, "noise", "test"), n_samples=2, seed=5)
    draw = seeded(5)
    values = [
        elbo(model, x[part], torch.randn(2, len(x[part]), 2, generator=draw), y=y[part]).value
        for part in (slice(0, 4), slice(4, 8), slice(8, 10))
    ]
    assert bound.value == pytest.approx(torch.cat(values).mean().item(), rel=1e-6)
    assert (bound.protocol.quantity, bound.protocol.K) == ("ELBO given y", 2)
    shuffled = average_elbo(model, Images(x, y.flip(0), "noise", "test"), n_samples=2, seed=5)
    assert shuffled.value != bound.value


# Given a part of the image ------------------------------------------------------------------------


def cut(latent=2):
    """A CompletionVAE, six binary images of three parts, 2 x 1 each, and what is seen of them."""
    model = small(latent, CompletionVAE, image_shape=(3, 2, 1), seen_shape=(1, 2, 1))
    whole = noise(6, 4, 2, 1).sigmoid().round()
    return model, whole[:, 1:], noise(6, 1, 2, 1).sigmoid()


@torch.no_grad()
@pytest.mark.equation("eq-conditional-elbo", route="torch.distributions, parts seen", rel=1e-10)
def test_each_image_is_scored_given_what_is_seen_of_it(agree):
    (model, x, y), eps = cut(3), noise(7, 6, 3)
    terms = elbo(model, x, eps, y=y)
    for row in range(6):
        (mu, log_var), (mean, log_variance) = model.encode(x[row], y[row]), model.prior(y[row])
        q, p = Normal(mu, log_var.exp().sqrt()), Normal(mean, log_variance.exp().sqrt())
        logits = [model.decode(q.mean + q.stddev * sample, y[row]).params for sample in eps[:, row]]
        scores = [torch.distributions.Bernoulli(logits=z).log_prob(x[row]).sum() for z in logits]
        agree(terms.log_likelihood[row], torch.stack(scores).mean())
        agree(terms.unit_kl[row], kl_divergence(q, p))
        agree(terms.value[row], torch.stack(scores).mean() - kl_divergence(q, p).sum())


def test_every_weight_of_the_prior_of_what_is_seen_is_trained():
    model, x, y = cut()
    elbo(model, x, noise(6, 2), y=y).value.sum().backward()
    without = {name for name, weight in model.named_parameters() if not weight.grad.any()}
    assert without == set()


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_is_seen_goes_to_models_that_are_told_it():
    model, x, y = cut()
    with pytest.raises(ValueError, match=r"^y: expected .* got NoneType"):
        elbo(model, x)
    for wrong in (y[:5], y[:, None], y.mT, y > 0, LABELS[:6], y.tolist()):
        with pytest.raises(ValueError, match=r"^y: expected "):
            elbo(model, x, y=wrong)
        with pytest.raises(ValueError, match=r"^y: expected "):
            log_weights(model, x, noise(3, 6, 2), y=wrong)


# The weights of draws -----------------------------------------------------------------------------


def told(kind):
    """A model with two z, images, and what it is told about them."""
    if kind == "part":
        model, x, y = cut()
        return model, x, {"y": y}
    if kind == "nothing":
        return small(2), EVERY_IMAGE, {}
    return given(2, learned_prior=kind == "label, learned prior"), EVERY_IMAGE, {"y": LABELS}


KINDS = ["nothing", "label", "label, learned prior", "part"]


@torch.no_grad()
@pytest.mark.equation("eq-iw-bound", route="densities of torch.distributions", rel=1e-10, abs=1e-10)
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_the_joint_density_over_that_of_the_draw(agree, kind):
    model, x, y = told(kind)
    eps = noise(5, len(x), 2)
    weights = log_weights(model, x, eps, **y)
    assert weights.shape == (5, len(x))
    for i in range(len(x)):
        its = [each[i] for each in y.values()]
        mu, log_var = model.encode(x[i], *its)
        q, p = Normal(mu, log_var.exp().sqrt()), Normal(torch.zeros_like(mu), 1.0)
        if kind in KINDS[2:]:
            mean, log_variance = model.prior(*its)
            p = Normal(mean, log_variance.exp().sqrt())
        for k in range(5):
            z = mu + log_var.exp().sqrt() * eps[k, i]
            pixels = torch.distributions.Bernoulli(logits=model.decode(z, *its).params)
            log_joint = pixels.log_prob(x[i]).sum() + p.log_prob(z).sum()
            agree(weights[k, i], log_joint - q.log_prob(z).sum())


@torch.no_grad()
@pytest.mark.equation("eq-elbo-jensen", route="elbo with equally likely noise", standard_errors=4)
@pytest.mark.parametrize("learned_prior", [None, False, True])
def test_log_weights_are_the_bound_on_average(agree, learned_prior):
    model = small() if learned_prior is None else given(learned_prior=learned_prior)
    y, n = {} if learned_prior is None else {"y": LABELS}, 10_000
    eps = torch.from_numpy(norm.ppf((np.arange(n) + 0.5) / n)).reshape(n, 1, 1).expand(n, 16, 1)
    agree(
        average(log_weights(model, EVERY_IMAGE, noise(n, 16, 1), **y)),
        elbo(model, EVERY_IMAGE, eps, **y).value,
    )


@torch.no_grad()
@pytest.mark.equation("eq-elbo-jensen", route="sums over a grid of z, by scipy", standard_errors=4)
@pytest.mark.parametrize("learned_prior", [None, False, True])
def test_the_average_weight_is_the_evidence(agree, learned_prior):
    if learned_prior is None:
        model, y, log_p = small(), {}, log_evidence(small())
    else:
        model, y = given(learned_prior=learned_prior), {"y": LABELS}
        by_label = np.stack([log_evidence(model, label) for label in range(3)])
        log_p = by_label[LABELS, np.arange(16)]
    # From a wider q, so that no weight is much larger than the others.
    model.to_log_var.bias += 1
    weights = log_weights(model, EVERY_IMAGE, noise(20_000, 16, 1), **y)
    agree(log_average(weights), log_p)


@torch.no_grad()
def test_with_the_exact_posterior_all_weights_are_the_evidence():
    model, means, covariance = linear_gaussian()
    x, y = 2 * noise(6, 1, 2, 2), torch.arange(6) % 3
    exact = [
        multivariate_normal.logpdf(image.flatten(), means[label], covariance)
        for image, label in zip(x, y, strict=True)
    ]
    weights = log_weights(model, x, noise(9, 6, 1), y=y)
    torch.testing.assert_close(weights, torch.tensor(exact).expand(9, 6), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("shapes_unchecked")
def test_weights_need_images_noise_and_labels_that_fit():
    plain, conditional, eps = small(), given(), noise(5, 16, 1)
    with pytest.raises(ValueError, match=r"^x: expected images of shape"):
        log_weights(plain, torch.zeros(16, 1, 4, 1), eps)
    with pytest.raises(ValueError, match="eps: expected"):
        log_weights(plain, EVERY_IMAGE, noise(5, 4, 1))
    with pytest.raises(ValueError, match=r"^y: expected None, since a VAE takes no labels"):
        log_weights(plain, EVERY_IMAGE, eps, y=LABELS)
    with pytest.raises(ValueError, match=r"^y: expected labels .* got NoneType"):
        log_weights(conditional, EVERY_IMAGE, eps)
    with pytest.raises(ValueError, match=r"^y: expected one for each image"):
        log_weights(conditional, EVERY_IMAGE, eps, y=LABELS[:15])


# Several draws ------------------------------------------------------------------------------------

# A latent variable with three values: p(x, z) for the observed x, and a q that is not p(z | x).
JOINT, Q = (0.10, 0.02, 0.05), (0.2, 0.5, 0.3)


def expected_bound(K, bound):
    """The average of bound(weights) over all draws of K values of z from q."""
    total = 0.0
    for draws in itertools.product(range(3), repeat=K):
        probability = math.prod(Q[z] for z in draws)
        total += probability * bound([JOINT[z] / Q[z] for z in draws])
    return total


def by_the_package(weights):
    return importance_weighted_bound(torch.tensor(weights, dtype=torch.float64).log())


@pytest.mark.equation("eq-iw-bound", route="all draws from three values of z", rel=1e-12)
@pytest.mark.parametrize("K", [1, 2, 3, 5])
def test_the_weighted_bound_is_the_log_of_an_average(agree, K):
    by_hand = expected_bound(K, lambda weights: math.log(sum(weights) / K))
    agree(expected_bound(K, by_the_package), torch.tensor(by_hand, dtype=torch.float64))


def test_the_weighted_bound_grows_with_the_draws_from_the_elbo_to_the_evidence():
    log_p = math.log(sum(JOINT))
    elbo = sum(q * math.log(p / q) for p, q in zip(JOINT, Q, strict=True))
    bounds = [expected_bound(K, by_the_package).item() for K in range(1, 7)]
    assert bounds[0] == pytest.approx(elbo, rel=1e-12)
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1] - 0.1
    assert bounds[-1] < log_p - 0.01


@pytest.mark.equation("eq-iw-gap", route="all counts of three values of z, by scipy", rel=0.02)
def test_the_weighted_bound_tends_to_the_evidence(agree):
    K = 100
    log_weights = torch.tensor([math.log(p / q) for p, q in zip(JOINT, Q, strict=True)]).double()
    counts = [(i, j, K - i - j) for i in range(K + 1) for j in range(K + 1 - i)]
    draws = torch.stack([log_weights.repeat_interleave(torch.tensor(n)) for n in counts], 1)
    bound = multinomial(K, Q).pmf(counts) @ importance_weighted_bound(draws).numpy()
    variance = sum(p**2 / q for p, q in zip(JOINT, Q, strict=True)) / sum(JOINT) ** 2 - 1
    agree(K * (math.log(sum(JOINT)) - bound), variance / 2)


def linear_log_weights(*shape):
    """log p(x, z) - log q(z) for draws from a q that is off; the model, and what its bound is."""
    model = LinearGaussian(noise(3, 2), noise(3), 0.8)
    x, mu, log_var = noise(3), noise(2), torch.tensor([-0.5, -1.0], dtype=torch.float64)
    std = (log_var / 2).exp()
    z = mu + std * torch.randn(*shape, 2, dtype=torch.float64, generator=seeded(1))
    log_prior = norm.logpdf(z.numpy()).sum(-1)
    log_q = norm.logpdf(z.numpy(), mu.numpy(), std.numpy()).sum(-1)
    log_likelihood = norm.logpdf(x.numpy(), (z @ model.W.T + model.b).numpy(), 0.8).sum(-1)
    log_weights = torch.from_numpy(log_likelihood + log_prior - log_q)
    return log_weights, model.elbo(x, mu, log_var), model.log_evidence(x)


@pytest.mark.equation("eq-elbo-jensen", route="LinearGaussian.elbo, exact", standard_errors=4)
def test_with_one_draw_the_weighted_bound_is_the_elbo_on_average(agree):
    log_weights, exact, _ = linear_log_weights(1, 20_000)
    agree(average(importance_weighted_bound(log_weights)), exact)


@pytest.mark.equation("eq-elbo-jensen", route="the exact log_evidence", standard_errors=4)
def test_the_evidence_is_the_log_of_the_average_weight_and_the_elbo_is_below(agree):
    log_weights, exact, log_p = linear_log_weights(200_000)
    agree(log_average(log_weights), log_p)
    assert exact < log_p - 0.1


@pytest.mark.equation("eq-jensen", route="the mean of the logarithms", abs=1e-12)
def test_the_weighted_bound_is_at_least_the_mean_of_the_log_weights(agree):
    log_weights = 3 * noise(4, 100)
    bound = importance_weighted_bound(log_weights)
    agree(torch.maximum(bound, log_weights.mean(0)), bound)
    assert (bound > log_weights.mean(0)).all()
    agree(importance_weighted_bound(log_weights[:1].expand(7, -1)), log_weights[0])


@pytest.mark.parametrize("shift", [-5000.0, 5000.0])
def test_the_weighted_bound_bears_weights_that_no_float_holds(shift):
    log_weights = noise(4, 3)
    shifted = importance_weighted_bound(log_weights + shift)
    torch.testing.assert_close(shifted, importance_weighted_bound(log_weights) + shift)
    assert importance_weighted_bound(torch.full((3,), -math.inf)) == -math.inf


@pytest.mark.usefixtures("shapes_unchecked")
def test_the_weighted_bound_needs_a_draw():
    for shape in [(), (0,), (0, 3)]:
        message = f"log_weights: expected shape (K, ...) with K >= 1, got {shape}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            importance_weighted_bound(torch.zeros(shape))
    assert importance_weighted_bound(torch.tensor([0.0, math.nan])).isnan()


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_without_the_axis_of_a_batch_is_refused(channels):
    """Its channels would be taken for images."""
    model, x = VAE(2, 8, (channels, 4, 4)), torch.rand(channels, 4, 4)
    for bound in (
        lambda: elbo(model, x),
        lambda: log_weights(model, x, torch.zeros(5, channels, 2)),
    ):
        with pytest.raises(ValueError, match=r"^x: expected a batch of images, with 4 axes"):
            bound()
