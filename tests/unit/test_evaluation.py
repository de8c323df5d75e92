"""`test_bound` is an average over images with a standard error and the protocol of its making."""

import json
import statistics

import pytest
import torch
from scipy.stats import f
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    kl_divergence,
)
from torch.nn.functional import one_hot

from vae_book import evaluation
from vae_book.data import Images
from vae_book.device import describe
from vae_book.evaluation import class_log_bounds, class_posterior, test_bound
from vae_book.likelihoods import Bernoulli as BlackAndWhite
from vae_book.models import CVAE, VAE
from vae_book.monte_carlo import average


def data(n=10, seed=0, binary=False):
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 1, 28, 28, generator=draw)
    images = images.round() if binary else images
    return Images(images, torch.zeros(n, dtype=torch.long), "noise", "test")


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VAE(latent=3, hidden=16)
    for weight in model.to_log_var.parameters():
        weight.data *= 3
    model.decoder[0].weight.data *= 3  # so that the draws of z matter
    return model


def test_its_name_does_not_make_it_a_test(request):
    assert test_bound.__test__ is False
    names = {item.originalname for item in request.session.items if item.path == request.path}
    assert "test_bound" not in names


@torch.no_grad()
@pytest.mark.equation("eq-elbo", route="torch.distributions for each image", rel=1e-6)
@pytest.mark.parametrize("n_samples", [1, 3])
def test_is_the_mean_over_images_with_a_short_chunk_at_the_end(
    agree, model, monkeypatch, n_samples
):
    monkeypatch.setattr(evaluation, "CHUNK", 4)
    images = data(10)
    bound = test_bound(model, images, n_samples=n_samples, seed=5)

    draw = torch.Generator().manual_seed(5)
    reconstructions, kls = [], []
    for chunk in (images.images[:4], images.images[4:8], images.images[8:]):
        eps = torch.randn(n_samples, len(chunk), 3, generator=draw)
        for row, x in enumerate(chunk):
            mu, log_var = model.encode(x)
            sigma = (log_var / 2).exp()
            pixels = [Bernoulli(logits=model.decode(z)) for z in mu + sigma * eps[:, row]]
            # Gray levels lie outside the support of torch's Bernoulli: their score by its formula.
            scores = [x * p.probs.log() + (1 - x) * (1 - p.probs).log() for p in pixels]
            reconstructions.append(-sum(score.sum().item() for score in scores) / n_samples)
            kl = kl_divergence(Normal(mu.double(), sigma.double()), Normal(0, 1)).sum()
            kls.append(kl.item())
    per_image = [a + b for a, b in zip(reconstructions, kls, strict=True)]
    agree(bound.value, statistics.mean(per_image))
    agree(bound.reconstruction, statistics.mean(reconstructions))
    agree(bound.kl, statistics.mean(kls))
    assert bound.value == float(bound)
    assert bound.value == pytest.approx(bound.reconstruction + bound.kl, rel=1e-12)
    assert bound.standard_error == pytest.approx(statistics.stdev(per_image) / 10**0.5, rel=1e-4)


def test_the_noise_depends_on_the_seed_alone(model):
    before = torch.get_rng_state()
    first = test_bound(model, data(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)  # the global stream was left alone
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert test_bound(model, data(), seed=1) == first
    assert test_bound(model, data(), seed=2).value != first.value


def over_seeds(model, data, n_samples=1, seeds=40):
    """Mean, its squared standard error and variance of the bound over the noise."""
    values = [
        test_bound(model, data, n_samples=n_samples, seed=seed).value for seed in range(seeds)
    ]
    variance = statistics.variance(values)
    return statistics.mean(values), variance / seeds, variance


def test_the_order_of_the_images_matters_only_through_the_noise(model):
    images = data(6)
    backwards = Images(images.images.flip(0), images.labels, "noise", "test")
    assert test_bound(model, images).kl == pytest.approx(test_bound(model, backwards).kl, rel=1e-6)
    (there, there_error, _), (back, back_error, _) = (
        over_seeds(model, each) for each in (images, backwards)
    )
    assert abs(there - back) < 4 * (there_error + back_error) ** 0.5


def test_more_samples_lower_the_noise_and_keep_the_expectation(model):
    images = data(4)
    (one, one_error, one_variance), (many, many_error, many_variance) = (
        over_seeds(model, images, n_samples) for n_samples in (1, 16)
    )
    assert abs(one - many) < 4 * (one_error + many_error) ** 0.5
    low, high = f.ppf([1e-4, 1 - 1e-4], 39, 39)  # of a ratio of variances of 40 Gaussian draws
    assert low < one_variance / many_variance / 16 < high


def test_keeps_no_graph_of_what_it_computes(model):
    grad_enabled = []
    with model.to_mu.register_forward_hook(lambda *_: grad_enabled.append(torch.is_grad_enabled())):
        test_bound(model, data())
    assert grad_enabled == [False]


@pytest.mark.parametrize(("binary", "pixels"), [(True, "binary"), (False, "grayscale")])
def test_the_protocol_says_how_it_was_measured(model, binary, pixels):
    bound = test_bound(model, data(binary=binary), n_samples=2, seed=3)
    protocol = {
        "quantity": "negative ELBO, K=2",
        "source": "noise",
        "split": "test",
        "n_images": 10,
        "pixels": pixels,
        "seed": 3,
        "device": describe(torch.device("cpu")),
    }
    assert json.loads(json.dumps(bound.as_dict())) == {
        "value": bound.value,
        "standard_error": bound.standard_error,
        "reconstruction": bound.reconstruction,
        "kl": bound.kl,
        "protocol": protocol,
    }


def test_one_gray_pixel_makes_images_grayscale(model):
    images = data(binary=True)
    images.images[-1, 0, -1, -1] = 0.5
    assert test_bound(model, images).protocol.pixels == "grayscale"


def test_needs_two_images_and_a_sample(model):
    for n in (0, 1):
        with pytest.raises(ValueError, match=f"2 images or more .* got {n}"):
            test_bound(model, data(n))
    with pytest.raises(ValueError, match="n_samples"):
        test_bound(model, data(), n_samples=0)


# Every label -------------------------------------------------------------------------------------


def small_cvae(latent=1, shape=(1, 3, 4), **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CVAE(latent, 8, shape, BlackAndWhite(), classes=3, **options).double()


def small_images(n=5):
    return torch.rand(n, 1, 3, 4, generator=torch.Generator().manual_seed(1)).round().double()


@torch.no_grad()
@pytest.mark.equation(
    "eq-conditional-elbo", route="torch.distributions for each image and label", rel=1e-9
)
def test_every_label_is_bounded_with_the_same_noise(agree, monkeypatch):
    monkeypatch.setattr(evaluation, "CHUNK", 3)
    model, x = small_cvae(latent=2, learned_prior=True), small_images()
    model.prior_mu.normal_(generator=torch.Generator().manual_seed(2))
    bounds = class_log_bounds(model, x, n_samples=4, seed=5)

    draw = torch.Generator().manual_seed(5)
    noise = torch.cat([torch.randn(4, n, 2, generator=draw) for n in (3, 2)], dim=1)
    expected = torch.zeros(5, 3, dtype=torch.double)
    for row, image in enumerate(x):
        for label in range(3):
            y = torch.tensor(label)
            mu, log_var = model.encode(image, y)
            q = Normal(mu, (log_var / 2).exp())
            prior = Normal(model.prior_mu[label], (model.prior_log_var[label] / 2).exp())
            scores = [
                Bernoulli(logits=model.decode(q.mean + q.stddev * eps, y)).log_prob(image).sum()
                for eps in noise[:, row].double()
            ]
            expected[row, label] = sum(scores) / 4 - kl_divergence(q, prior).sum()
    agree(bounds, expected)


def exact_cvae(**options):
    """A model whose bounds touch, since z says nothing, and p(x | y), which is Bernoulli."""
    model = small_cvae(**options).requires_grad_(False)
    model.decoder[0].weight[:, 0] = 0
    model.decoder[2].weight *= 10  # so that the labels differ
    for layer in (model.to_mu, model.to_log_var):
        layer.weight.zero_()
        layer.bias.zero_()
    logits = model.decode(torch.zeros(3, 1).double(), torch.arange(3))
    return model, Independent(Bernoulli(logits=logits), 3)


@pytest.mark.equation(
    "eq-label-mixture", route="torch.distributions.MixtureSameFamily, bounds that touch", rel=1e-9
)
def test_the_mixture_over_labels_is_the_evidence_where_the_bounds_touch(agree):
    (model, given_label), x = exact_cvae(), small_images()
    mixture = MixtureSameFamily(Categorical(probs=torch.ones(3).double()), given_label)
    agree(class_posterior(class_log_bounds(model, x)).log_evidence, mixture.log_prob(x))


@pytest.mark.equation(
    "eq-class-posterior", route="which labels made the image, over draws", standard_errors=4
)
def test_the_class_posterior_is_how_often_each_label_made_the_image(agree):
    model, _ = exact_cvae(shape=(1, 1, 3))
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(3, (100_000,), generator=draw)
    drawn = model.sample(len(labels), draw, y=labels, pixels=True)
    x = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]).double().reshape(2, 1, 1, 3)
    posterior = class_posterior(class_log_bounds(model, x)).log_posterior.exp()
    for image, expected in zip(x, posterior, strict=True):
        made_it = labels[(drawn == image).flatten(1).all(1)]
        agree(average(one_hot(made_it, 3).double()), expected)
    assert (posterior[0] - posterior[1]).abs().max() > 0.05  # the images say something


def test_the_mixture_is_a_bound_on_the_evidence_by_quadrature():
    model, x = small_cvae(), small_images()
    model.decoder[0].weight.data[:, 0] *= 5  # so that z matters, and the bounds do not touch
    z = torch.linspace(-8, 8, 4001).double()
    with torch.no_grad():
        evidence = torch.zeros(5).double()
        for label in range(3):
            pixels = Bernoulli(logits=model.decode(z[:, None], torch.full((4001,), label)))
            joint = pixels.log_prob(x[:, None]).sum((-3, -2, -1)) + Normal(0, 1).log_prob(z)
            evidence += torch.trapezoid(joint.exp(), z) / 3
    bound = class_posterior(class_log_bounds(model, x, n_samples=2000)).log_evidence
    assert (bound < evidence.log()).all()
    assert (bound > evidence.log() - 2).all()


def test_a_label_is_worth_no_more_than_the_logarithm_of_how_many_there_are():
    bounds = torch.randn(50, 4, generator=torch.Generator().manual_seed(4)).double() * 20
    rule = class_posterior(bounds)
    gain = bounds - rule.log_evidence.unsqueeze(-1)
    assert gain.max() <= torch.tensor(4.0).log() + 1e-6
    torch.testing.assert_close(gain, rule.log_posterior + torch.tensor(4.0).double().log())


def test_the_bounds_of_all_labels_know_what_they_need():
    with pytest.raises(ValueError, match="model: expected a CVAE, got a VAE"):
        class_log_bounds(VAE(1, 8, (1, 3, 4)), torch.zeros(2, 1, 3, 4))
    with pytest.raises(ValueError, match="n_samples: expected 1 or more, got 0"):
        class_log_bounds(small_cvae(), small_images(), n_samples=0)
    with pytest.raises(ValueError, match="log_bounds: expected one label or more"):
        class_posterior(torch.zeros(3, 0))
