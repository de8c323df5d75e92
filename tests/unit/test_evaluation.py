"""What is measured is what it is said to be, with a standard error and the protocol of its making.

Densities and divergences come from scipy and torch.distributions, integrals over z from sums.
"""

import json
import math
import statistics
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import f, multivariate_normal
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
)
from torch.nn.functional import one_hot

from vae_book import evaluation, tally
from vae_book.device import describe, seeded
from vae_book.divergences import kl_riemann
from vae_book.evaluation import (
    Units,
    active_units,
    aggregated_kl_bound,
    average_elbo,
    class_log_bounds,
    class_posterior,
    log_likelihood,
    posteriors,
    unit_statistics,
)
from vae_book.images import Images
from vae_book.likelihoods import Bernoulli as BlackAndWhite
from vae_book.likelihoods import Gaussian
from vae_book.models import CVAE, PACE, VAE, CompletionVAE
from vae_book.monte_carlo import Estimate, average


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


@torch.no_grad()
@pytest.mark.equation("eq-elbo", route="torch.distributions for each image", rel=1e-6)
@pytest.mark.parametrize("n_samples", [1, 3])
def test_is_the_mean_over_images_with_a_short_chunk_at_the_end(
    agree, model, monkeypatch, n_samples
):
    monkeypatch.setattr(evaluation, "CHUNK", 4)
    images = data(10)
    bound = average_elbo(model, images, n_samples=n_samples, seed=5)

    draw = torch.Generator().manual_seed(5)
    reconstructions, kls = [], []
    for chunk in (images.images[:4], images.images[4:8], images.images[8:]):
        eps = torch.randn(n_samples, len(chunk), 3, generator=draw)
        for row, x in enumerate(chunk):
            mu, log_var = model.encode(x)
            sigma = (log_var / 2).exp()
            pixels = [Bernoulli(logits=model.decode(z).params) for z in mu + sigma * eps[:, row]]
            # Gray levels lie outside the support of torch's Bernoulli: their score by its formula.
            scores = [x * p.probs.log() + (1 - x) * (1 - p.probs).log() for p in pixels]
            reconstructions.append(-sum(score.sum().item() for score in scores) / n_samples)
            kl = kl_divergence(Normal(mu.double(), sigma.double()), Normal(0, 1)).sum()
            kls.append(kl.item())
    per_image = [a + b for a, b in zip(reconstructions, kls, strict=True)]
    agree(bound.negative_elbo, statistics.mean(per_image))
    agree(bound.reconstruction, statistics.mean(reconstructions))
    agree(bound.kl, statistics.mean(kls))
    assert bound.value == -bound.negative_elbo
    assert bound.value == pytest.approx(bound.log_likelihood - bound.kl, rel=1e-12)
    assert bound.standard_error == pytest.approx(statistics.stdev(per_image) / 10**0.5, rel=1e-4)


def test_the_noise_depends_on_the_seed_alone(model):
    before = torch.get_rng_state()
    first = average_elbo(model, data(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)  # the global stream was left alone
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert average_elbo(model, data(), seed=1) == first
    assert average_elbo(model, data(), seed=2).value != first.value


def over_seeds(model, data, n_samples=1, seeds=40):
    """Mean, its squared standard error and variance of the bound over the noise."""
    values = [
        average_elbo(model, data, n_samples=n_samples, seed=seed).value for seed in range(seeds)
    ]
    variance = statistics.variance(values)
    return statistics.mean(values), variance / seeds, variance


def test_the_order_of_the_images_matters_only_through_the_noise(model):
    images = data(6)
    backwards = Images(images.images.flip(0), images.labels, "noise", "test")
    assert average_elbo(model, images).kl == pytest.approx(
        average_elbo(model, backwards).kl, rel=1e-6
    )
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
        average_elbo(model, data())
    assert grad_enabled == [False]


@pytest.mark.parametrize(("binary", "pixels"), [(True, "binary"), (False, "grayscale")])
def test_the_protocol_says_how_it_was_measured(model, binary, pixels):
    bound = average_elbo(model, data(binary=binary), n_samples=2, seed=3)
    protocol = {
        "quantity": "ELBO",
        "source": "noise",
        "split": "test",
        "n_images": 10,
        "pixels": pixels,
        "seed": 3,
        "device": describe(torch.device("cpu")),
        "K": 2,
        "standard_error": "images",
    }
    assert json.loads(json.dumps(bound.as_dict())) == {
        "value": bound.value,
        "standard_error": bound.standard_error,
        "log_likelihood": bound.log_likelihood,
        "kl": bound.kl,
        "protocol": protocol,
    }


def test_images_of_several_channels_are_in_color():
    images = Images(torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "mine", "test")
    assert evaluation.protocol(images, "ELBO").pixels == "color"


def test_one_gray_pixel_makes_images_grayscale(model):
    images = data(binary=True)
    images.images[-1, 0, -1, -1] = 0.5
    assert average_elbo(model, images).protocol.pixels == "grayscale"


def test_needs_two_images_and_a_sample(model):
    for n in (0, 1):
        with pytest.raises(ValueError, match=f"2 images or more .* got {n}"):
            average_elbo(model, data(n))
    with pytest.raises(ValueError, match="n_samples"):
        average_elbo(model, data(), n_samples=0)


# The log-likelihood -------------------------------------------------------------------------------


def small_vae(kind=VAE, latent=1, shape=(1, 3, 4), **options):
    """A model of binary images in which z matters; a prior that is learned is as if it had been."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(latent, 8, shape, BlackAndWhite(), **options).double()
        if getattr(model, "prior_network", None) is not None:
            for weight in model.prior_network.parameters():
                torch.nn.init.normal_(weight, std=0.5 / PACE if kind is CVAE else 0.5)
    model.decoder[0].weight.data[:, :latent] *= 4
    return model


def small_cvae(latent=1, shape=(1, 3, 4), **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"classes": 3, "own_weights": False, **options}
        return CVAE(latent, 8, shape, BlackAndWhite(), **options).double()


def small_images(n=5):
    return torch.rand(n, 1, 3, 4, generator=torch.Generator().manual_seed(1)).round().double()


def several(kind, n=5):
    """A model with two z, and n different images with what it is told about them."""
    if kind == "part":
        model = small_vae(CompletionVAE, 2, (2, 3, 2), seen_shape=(1, 3, 2))
        draw = torch.Generator().manual_seed(2)
        x, y = small_images(n).reshape(n, 2, 3, 2), torch.rand(n, 1, 3, 2, generator=draw).double()
        return model, Images(x, torch.zeros(n).long(), "noise", "test", told=y)
    options = {"kind": CVAE, "classes": 3, "own_weights": False} if kind == "label" else {}
    model = small_vae(latent=2, **options)
    return model, Images(small_images(n), torch.arange(n) % 3, "noise", "test")


KINDS = ["nothing", "label", "part"]


def copies(x, y, n):
    """The same image n times: what differs between them is the noise alone."""
    labels, told = (y, None) if y.ndim == 0 else (torch.tensor(0), y.expand(n, *y.shape))
    return Images(x.expand(n, *x.shape), labels.expand(n), "noise", "test", told=told)


def linear_gaussian():
    """A VAE with p(x | z) = N(A z + c, s^2 I), so that log p(x) is known; its q is a little off.

    A pair of ReLU units, relu(t) - relu(-t), passes a number on.
    """
    model = VAE(1, 2, (1, 2, 2), Gaussian(0.7)).double().requires_grad_(False)
    A, c = torch.tensor([[1.0, -0.5, 0.3, 0.8], [0.2, 0.0, -1.0, 0.5]]).double()
    pair, s2 = torch.tensor([1.0, -1.0]).double(), 0.7**2
    precision = 1 + A @ A / s2
    for weight in model.parameters():
        weight.zero_()
    model.encoder[1].weight[:] = torch.outer(pair, A / s2 / precision)
    model.encoder[1].bias[:] = -pair * (c @ A / s2 / precision)
    model.to_mu.weight[0], model.to_mu.bias[0] = pair, 0.15
    model.to_log_var.bias[0] = 0.3 - precision.log()
    model.decoder[0].weight[:, 0] = pair
    model.decoder[2].weight[:] = torch.outer(A, pair)
    model.decoder[2].bias[:] = c
    return model, c, torch.outer(A, A) + s2 * torch.eye(4)


@pytest.mark.equation("eq-iw-bound", route="the exact log p(x), by scipy", standard_errors=4)
@pytest.mark.parametrize(("from_prior", "n_samples"), [(False, 1000), (True, 5000)])
@pytest.mark.parametrize("x", [[0.5, 0.0, -1.0, 1.0], [2.0, -1.0, 0.0, 1.5]])
def test_with_many_draws_the_estimate_is_the_log_likelihood(agree, x, from_prior, n_samples):
    model, mean, covariance = linear_gaussian()
    data = copies(torch.tensor(x).double().reshape(1, 2, 2), torch.tensor(0), 20)
    found = log_likelihood(model, data, n_samples=n_samples, from_prior=from_prior)
    agree(
        Estimate(found.value, found.standard_error),
        multivariate_normal.logpdf(x, mean, covariance),
    )
    assert found.standard_error < 0.01


@torch.no_grad()
@pytest.mark.equation("eq-iw-bound", route="integrals over z by the trapezoid", standard_errors=4)
@pytest.mark.parametrize(("from_prior", "n_samples"), [(False, 1000), (True, 5000)])
@pytest.mark.parametrize("kind", ["nothing", "label, N(0, I)", "label", "part"])
def test_with_many_draws_it_is_the_integral_over_z(agree, kind, from_prior, n_samples):
    z, x = torch.linspace(-10, 10, 8001).double()[:, None], small_images()[0]
    y, mean, variance, given = torch.tensor(2), torch.zeros(1), torch.ones(1), ()
    if kind == "nothing":
        model = small_vae()
    elif kind == "part":
        model = small_vae(CompletionVAE, shape=(2, 3, 2), seen_shape=(1, 3, 2))
        x, y = x.reshape(2, 3, 2), small_images()[1, :, :, :2]
    else:
        options = {"classes": 3, "own_weights": False}
        model = small_vae(CVAE, learned_prior=kind == "label", **options)
        y = torch.tensor(2)
    if kind in ("label", "part"):
        mean, log_variance = model.prior(y)
        variance = log_variance.exp()
        assert mean.abs() > 0.1
    if kind != "nothing":
        given = (y.expand(8001, *y.shape),)
    pixels = Bernoulli(logits=model.decode(z, *given).params).log_prob(x).sum((-3, -2, -1))
    joint = pixels + Normal(mean, variance.sqrt()).log_prob(z).squeeze(1)
    exact = torch.trapezoid(joint.exp(), z.squeeze(1)).log()
    found = log_likelihood(model, copies(x, y, 20), n_samples=n_samples, from_prior=from_prior)
    agree(Estimate(found.value, found.standard_error), exact)
    assert found.standard_error < 0.03
    if kind != "nothing":  # and what it is told matters
        other = torch.tensor(1) if kind.startswith("label") else 1 - y
        assert abs(log_likelihood(model, copies(x, other, 20), n_samples=500).value - exact) > 0.1


def test_with_one_draw_it_is_the_bound_and_with_more_it_rises_to_the_likelihood():
    model, mean, covariance = linear_gaussian()
    x = torch.tensor([0.5, 0.0, -1.0, 1.0]).double()
    data = copies(x.reshape(1, 2, 2), torch.tensor(0), 2000)
    # The log-likelihood is a quadratic of eps: its mean over -1 and 1 is the expectation.
    eps = torch.tensor([-1.0, 1.0]).double().reshape(2, 1, 1)
    (mu, log_var), _, p_x, _ = model(x.reshape(1, 1, 2, 2), eps)
    reconstruction = -Independent(Normal(p_x.params, 0.7), 3).log_prob(x.reshape(1, 2, 2)).mean()
    kl = kl_divergence(Normal(mu, log_var.exp().sqrt()), Normal(0.0, 1.0)).sum()
    found = [log_likelihood(model, data, n_samples=K) for K in (1, 3, 30)]
    assert abs(found[0].value + (reconstruction + kl).item()) < 4 * found[0].standard_error
    exact = multivariate_normal.logpdf(x, mean, covariance)
    for one, more in pairwise(found):
        error = math.hypot(one.standard_error, more.standard_error)
        assert one.value < more.value - 4 * error
    assert found[-1].value < exact + 4 * found[-1].standard_error


@torch.no_grad()
@pytest.mark.equation("eq-iw-bound", route="torch.distributions for each image and draw", rel=1e-7)
@pytest.mark.parametrize("from_prior", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_mean_over_images_of_the_log_of_their_average_weight(
    agree, monkeypatch, kind, from_prior
):
    monkeypatch.setattr(evaluation, "DRAWS", 2)  # of three, with one stream of noise
    model, data = several(kind)
    options = {"n_samples": 3, "seed": 5, "from_prior": from_prior}
    found = log_likelihood(model, data, chunk=5, **options)  # two images of two draws at a time
    sizes = [(0, 2), (1, 1)]  # noise in single precision, hence the tolerance
    noise = torch.stack(
        [
            torch.cat([torch.randn(n, 2, generator=seeded(5, block, i + 1)) for block, n in sizes])
            for i in range(5)
        ],
        dim=1,
    ).double()
    per_image = []
    for i, x in enumerate(data.images):
        y = () if model.told(data) is None else (model.told(data)[i],)
        p = Normal(torch.zeros(2).double(), 1.0)
        if y:
            mean, log_variance = model.prior(*y)
            p = Normal(mean, log_variance.exp().sqrt())
        mu, log_var = model.encode(x, *y)
        q = p if from_prior else Normal(mu, log_var.exp().sqrt())
        weights = []
        for eps in noise[:, i]:
            z = q.mean + q.stddev * eps
            log_joint = (
                Bernoulli(logits=model.decode(z, *y).params).log_prob(x).sum() + p.log_prob(z).sum()
            )
            weights.append((log_joint - q.log_prob(z).sum()).exp().item())
        per_image.append(math.log(statistics.mean(weights)))
    agree(found.value, statistics.mean(per_image))
    agree(found.standard_error, statistics.stdev(per_image) / 5**0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("from_prior", [False, True])
def test_the_protocol_of_a_log_likelihood_says_how_it_was_estimated(kind, from_prior):
    model, data = several(kind)
    found = log_likelihood(model, data, n_samples=3, seed=7, from_prior=from_prior)
    what = "log p(x)" if kind == "nothing" else "log p(x | y)"
    origin = "the prior" if from_prior else "q"
    assert json.loads(json.dumps(found.as_dict())) == {
        "value": found.value,
        "standard_error": found.standard_error,
        "protocol": {
            "quantity": f"{what}, draws from {origin}",
            "source": "noise",
            "split": "test",
            "n_images": 5,
            "pixels": "binary",
            "seed": 7,
            "device": describe(torch.device("cpu")),
            "K": 3,
            "standard_error": "images",
        },
    }
    before = torch.get_rng_state()
    assert log_likelihood(model, data, n_samples=3, seed=7, from_prior=from_prior) == found
    assert torch.equal(torch.get_rng_state(), before)
    other = log_likelihood(model, data, n_samples=3, seed=8, from_prior=from_prior)
    assert other.value != found.value
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", KINDS)
def test_plain_monte_carlo_needs_no_encoder(kind):
    model, data = several(kind)
    expected = log_likelihood(model, data, n_samples=3, from_prior=True)
    for weight in (*model.encoder.parameters(), *model.to_log_var.parameters()):
        weight.data.fill_(math.nan)
    assert log_likelihood(model, data, n_samples=3, from_prior=True) == expected


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("from_prior", [False, True])
def test_a_log_likelihood_needs_two_images_a_draw_and_labels_that_fit(from_prior):
    model, data = several("label")

    def measure(data=data, n_samples=1, model=model):
        return log_likelihood(model, data, n_samples=n_samples, from_prior=from_prior)

    for n_samples in (0, -1):
        with pytest.raises(
            ValueError, match=f"^n_samples: expected a whole number of at least 1, got {n_samples}"
        ):
            measure(n_samples=n_samples)
    one = Images(data.images[:1], data.labels[:1], "noise", "test")
    with pytest.raises(ValueError, match=r"^data: expected 2 images or more .* got 1"):
        measure(one)
    with pytest.raises(ValueError, match=r"^y: expected labels from 0 to 2, got 3"):
        measure(Images(data.images, data.labels + 1, "noise", "test"))
    gray = data.with_images(data.images / 2)
    with pytest.raises(ValueError, match=r"^x: Bernoulli\(\) scores pixels that are 0 or 1"):
        measure(gray)
    with pytest.raises(ValueError, match=r"^x: expected"):
        measure(Images(torch.zeros(2, 2, 3, 2), data.labels[:2], "noise", "test"))


# Log-likelihoods that take long ------------------------------------------------------------------


@pytest.mark.parametrize("from_prior", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_log_likelihood_does_not_depend_on_the_chunk(monkeypatch, kind, from_prior):
    monkeypatch.setattr(evaluation, "DRAWS", 4)
    model, data = several(kind)
    options = {"n_samples": 11, "seed": 2, "from_prior": from_prior}
    whole = log_likelihood(model, data, chunk=1000, **options)
    for chunk in (1, 2, 3, 4, 7, 8, 9):
        found = log_likelihood(model, data, chunk=chunk, **options)
        for name in ("per_image", "errors", "effective_draws"):
            torch.testing.assert_close(
                getattr(found, name), getattr(whole, name), rtol=1e-9, atol=0
            )
    part = log_likelihood(model, data[:2], chunk=3, **options)  # and not on the other images
    torch.testing.assert_close(part.per_image, whole.per_image[:2], rtol=1e-9, atol=0)


@pytest.mark.parametrize("from_prior", [False, True])
@pytest.mark.parametrize("n_samples", [1, 3, 2000])
def test_no_more_is_decoded_at_a_time_than_a_chunk(monkeypatch, n_samples, from_prior):
    model, data = several("nothing")
    decode, rows = model.decode, []

    def watched(z, y=None):
        rows.append(z[..., 0].numel())
        return decode(z, y)

    monkeypatch.setattr(model, "decode", watched)
    log_likelihood(model, data, n_samples=n_samples, from_prior=from_prior, chunk=60)
    assert max(rows) <= 60
    assert sum(rows) == 5 * n_samples


def test_each_image_has_its_standard_error_over_draws():
    model, mean, covariance = linear_gaussian()
    x = torch.tensor([2.0, -1.0, 0.0, 1.5]).double()
    data = copies(x.reshape(1, 2, 2), torch.tensor(0), 1000)
    found = log_likelihood(model, data, n_samples=200)
    spread = found.per_image.std().item()  # the same image a thousand times
    assert found.errors.mean().item() == pytest.approx(spread, rel=0.1)
    exact = multivariate_normal.logpdf(x, mean, covariance)
    within = ((found.per_image - exact).abs() < 2 * found.errors).double().mean()
    assert within > 0.9
    assert found.value == pytest.approx(found.per_image.mean().item())
    assert log_likelihood(model, data[:3], n_samples=1).errors.isinf().all()


@torch.no_grad()
def test_the_effective_draws_are_those_of_the_weights():
    model, data = several("label")
    found = log_likelihood(model, data, n_samples=40, seed=3)
    for i in range(5):
        eps = torch.randn(40, 1, 2, generator=seeded(3, 0, i + 1)).double()
        x, y = data.images[i : i + 1], data.labels[i : i + 1]
        weights = evaluation.log_weights(model, x, eps, y=y).softmax(0)
        expected = 1 / weights.square().sum()
        torch.testing.assert_close(found.effective_draws[i], expected)
    assert (found.effective_draws < 40).all()


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("after", [1, 3, 7])
def test_a_log_likelihood_that_was_killed_goes_on_to_the_same_bits(monkeypatch, tmp_path, after):
    monkeypatch.setattr(evaluation, "DRAWS", 4)
    monkeypatch.setattr(tally, "SECONDS", -1)  # kept after each step
    model, data = several("part")
    options = {"n_samples": 10, "seed": 4, "chunk": 8}
    whole = log_likelihood(model, data, **options)
    file, count = tmp_path / "log_p.pt", iter(range(100))
    intact = evaluation.log_weights

    def killed(*args, **kwargs):
        if next(count) == after:
            raise Killed
        return intact(*args, **kwargs)

    monkeypatch.setattr(evaluation, "log_weights", killed)
    with pytest.raises(Killed):
        log_likelihood(model, data, file=file, **options)
    done = next(count)
    found = log_likelihood(model, data, file=file, **options)
    assert next(count) - done - 1 == 9 - after  # what was done is not done again
    assert torch.equal(found.per_image, whole.per_image)
    assert torch.equal(found.errors, whole.errors)
    assert found == whole
    assert log_likelihood(model, data, file=file, **options) == whole  # it is all there
    assert not list(tmp_path.glob(".part-*"))


def test_a_file_of_another_measurement_or_a_damaged_one_is_refused(tmp_path):
    model, data = several("nothing")
    file = tmp_path / "log_p.pt"
    log_likelihood(model, data, n_samples=3, file=file)
    other, _ = several("nothing")
    other.to_mu.bias.data += 1
    for model_, options in (
        (model, {"n_samples": 4}),
        (model, {"n_samples": 3, "seed": 1}),
        (model, {"n_samples": 3, "from_prior": True}),
        (model, {"n_samples": 3, "chunk": 2}),
        (other, {"n_samples": 3}),
    ):
        with pytest.raises(ValueError, match=r"^file: .* holds another measurement .* delete it"):
            log_likelihood(model_, data, file=file, **options)
    with pytest.raises(ValueError, match=r"^file: .* holds another measurement"):
        log_likelihood(model, data.with_images(1 - data.images), n_samples=3, file=file)
    content = file.read_bytes()
    for damage in (b"", content[: len(content) // 2], b"no tally"):
        file.write_bytes(damage)
        with pytest.raises(ValueError, match=r"^file: .* is damaged .*; delete it"):
            log_likelihood(model, data, n_samples=3, file=file)


@pytest.mark.parametrize("progress", [False, True])
def test_a_progress_bar_only_where_one_is_asked_for(capsys, progress):
    model, data = several("nothing")
    log_likelihood(model, data, n_samples=3, progress=progress)
    printed = capsys.readouterr()
    assert ("100%" in printed.err) == progress
    assert not printed.out


# What the units do --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_posteriors_are_those_of_all_images_at_once(monkeypatch, kind):
    monkeypatch.setattr(evaluation, "CHUNK", 4)
    model, data = several(kind, 10)
    given = () if model.told(data) is None else (model.told(data),)
    for one, other in zip(posteriors(model, data), model.encode(data.images, *given), strict=True):
        torch.testing.assert_close(one, other.detach())
        assert one.shape == (10, 2)
        assert not one.requires_grad
        assert len(one.unique(dim=0)) == 10
    if given:
        told = None if data.told is None else data.told.flip(0)
        shuffled = replace(data, labels=data.labels.flip(0), told=told)
        assert (posteriors(model, shuffled).mu != posteriors(model, data).mu).any()


def some_posteriors(n=7, d=3, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    mu = torch.randn(n, d, generator=draw, dtype=dtype) * torch.tensor([0.05, 1.0, 2.0][:d])
    return mu + 0.3, torch.randn(n, d, generator=draw, dtype=dtype) - 1


@pytest.mark.equation("eq-active-unit", route="numpy.var", rel=1e-12)
def test_the_units_in_numbers(agree):
    mu, log_var = some_posteriors()
    units = unit_statistics(mu, log_var)
    kl = kl_divergence(Normal(mu, log_var.exp().sqrt()), Normal(0.0, 1.0)).mean(0)
    torch.testing.assert_close(units.kl, kl)
    agree(units.spread, np.var(mu.numpy(), axis=0, ddof=1))
    np.testing.assert_allclose(units.variance, np.exp(log_var.numpy()).mean(0), rtol=1e-12)


def test_a_unit_is_active_above_a_hundredth():
    spreads = [0.0, 0.0099, 0.0101, 1.0]
    # Two images at a distance of sqrt(2 v) have the variance v.
    mu = torch.tensor([[0.0] * 4, [(2 * v) ** 0.5 for v in spreads]]).double() + 5
    units = unit_statistics(mu, torch.zeros_like(mu))
    torch.testing.assert_close(units.spread, torch.tensor(spreads).double())
    assert units.active.tolist() == [False, False, True, True]
    zero = torch.zeros(1)
    assert Units(kl=zero, spread=zero + 0.02, variance=zero).active.tolist() == [True]
    assert Units(kl=zero + 1, spread=zero, variance=zero + 1).active.tolist() == [False]


@pytest.mark.parametrize("kind", KINDS)
def test_units_that_the_image_does_not_move_are_counted_out(kind):
    model, data = several(kind)
    model.to_mu.weight.data.fill_(0.0)
    assert active_units(model, data) == 0
    model.to_mu.weight.data[0, 0] = 1e6
    model.to_mu.bias.data[1] = 3  # which is far from 0, but for all images
    model.encoder[-2].bias.data[0] = 10  # so that the first unit of the encoder is on
    assert active_units(model, data) == 1
    model.to_mu.weight.data[1, 0] = -1e6
    assert active_units(model, data) == 2


def mixture(mu, log_var):
    """The aggregated posterior."""
    parts = Independent(Normal(mu, log_var.exp().sqrt()), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(mu)).double()), parts)


def moments(mu, log_var):
    """The Gaussian with the moments of the aggregated posterior, by numpy."""
    cov = np.cov(mu.numpy(), rowvar=False, bias=True).reshape(2 * mu.shape[1:])
    cov = cov + np.diag(np.exp(log_var.numpy()).mean(0))
    return MultivariateNormal(mu.mean(0), torch.from_numpy(cov))


def prior(d):
    return MultivariateNormal(torch.zeros(d).double(), torch.eye(d).double())


@pytest.mark.equation(
    "eq-aggregated-moments", route="torch.distributions on numpy's moments", rel=1e-10
)
@pytest.mark.parametrize(("n", "d"), [(7, 3), (2, 3), (50, 1), (50, 2)])
def test_the_bound_on_the_aggregated_divergence_is_that_of_the_fitted_normal(agree, n, d):
    mu, log_var = some_posteriors(n, d)
    expected = kl_divergence(moments(mu, log_var), prior(d))
    agree(aggregated_kl_bound(mu, log_var), expected)
    single = aggregated_kl_bound(mu.float(), log_var.float())
    torch.testing.assert_close(single, expected, rtol=1e-5, atol=0)


@pytest.mark.equation(
    "eq-aggregated-moments", route="100,000 draws of the mixture", standard_errors=4
)
def test_what_the_fitted_normal_misses_is_on_top_by_draws(agree):
    """KL(q || p) = KL(q || N) + KL(N || p): the log ratio of two Gaussians is a quadratic."""
    mu, log_var = some_posteriors()
    q, fitted, p = mixture(mu, log_var), moments(mu, log_var), prior(3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z = q.sample((100_000,))
    bound = aggregated_kl_bound(mu, log_var)
    agree(average(fitted.log_prob(z) - p.log_prob(z)), bound)
    total, error = average(q.log_prob(z) - p.log_prob(z))
    missed, its_error = average(q.log_prob(z) - fitted.log_prob(z))
    assert abs(total - missed - bound) < 4 * torch.hypot(error, its_error)
    assert missed > 10 * its_error  # q is no Gaussian, and the bound is one


@pytest.mark.equation("eq-aggregated-moments", route="the mixture's KL by a Riemann sum", rel=1e-9)
def test_what_the_fitted_normal_misses_is_on_top_by_integrals(agree):
    mu, log_var = some_posteriors(d=1)
    mu[::2] += 4  # two hills
    q, fitted, p = mixture(mu, log_var), moments(mu, log_var), prior(1)

    def kl(q, p):
        def at(z):
            return q.log_prob(z.reshape(-1, 1)).squeeze(), p.log_prob(z.reshape(-1, 1)).squeeze()

        return kl_riemann(lambda z: at(z)[0], lambda z: at(z)[1], -20, 25, 4000).item()

    bound = aggregated_kl_bound(mu, log_var).item()
    agree(kl(q, p), kl(q, fitted) + bound)
    agree(kl(fitted, p), bound)
    assert kl(q, fitted) > 0.1
    # And it is at most the average divergence of the posteriors.
    assert bound < kl(q, p) < unit_statistics(mu, log_var).kl.sum()


def test_the_bound_is_reached_by_posteriors_that_are_all_the_same():
    mu, log_var = (part[:1].expand(9, 3) for part in some_posteriors())
    expected = kl_divergence(Normal(mu[0], log_var[0].exp().sqrt()), Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(aggregated_kl_bound(mu, log_var), expected)
    assert aggregated_kl_bound(torch.zeros(9, 3), torch.zeros(9, 3)) == 0
    # Means that are spread as the variances fall short of 1 make the moments those of the prior.
    mu = torch.tensor([[0.6], [-0.6]]).double()
    assert aggregated_kl_bound(mu, torch.full((2, 1), 0.64).double().log()) < 1e-15


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("measure", [unit_statistics, aggregated_kl_bound])
def test_units_are_measured_on_two_images_or_more(measure):
    mu, log_var = some_posteriors()
    for n in (0, 1):
        with pytest.raises(ValueError, match=rf"^mu: expected shape .* got \({n}, 3\)"):
            measure(mu[:n], log_var[:n])
    for other in (log_var[:5], log_var[:, :2]):
        with pytest.raises(ValueError, match=r"^mu and log_var: expected the same shape"):
            measure(mu, other)


# Every label -------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.equation(
    "eq-conditional-elbo", route="torch.distributions for each image and label", rel=1e-9
)
def test_every_label_is_bounded_with_the_same_noise(agree, monkeypatch):
    monkeypatch.setattr(evaluation, "CHUNK", 3)
    model, x = small_cvae(latent=2, learned_prior=True), small_images()
    model.prior_network.weight[:2].normal_(0, 1 / PACE, generator=seeded(2))
    bounds = class_log_bounds(model, x, n_samples=4, seed=5)

    draw = torch.Generator().manual_seed(5)
    noise = torch.cat([torch.randn(4, n, 2, generator=draw) for n in (3, 2)], dim=1)
    expected = torch.zeros(5, 3, dtype=torch.double)
    for row, image in enumerate(x):
        for label in range(3):
            y = torch.tensor(label)
            mu, log_var = model.encode(image, y)
            q = Normal(mu, (log_var / 2).exp())
            mean, log_var = (PACE * model.prior_network.weight[:, label]).chunk(2)
            prior = Normal(mean, (log_var / 2).exp())
            scores = [
                Bernoulli(logits=model.decode(q.mean + q.stddev * eps, y).params)
                .log_prob(image)
                .sum()
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
    logits = model.decode(torch.zeros(3, 1).double(), torch.arange(3)).params
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
            pixels = Bernoulli(logits=model.decode(z[:, None], torch.full((4001,), label)).params)
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
    with pytest.raises(ValueError, match="n_samples: expected a whole number of at least 1, got 0"):
        class_log_bounds(small_cvae(), small_images(), n_samples=0)
    with pytest.raises(ValueError, match="log_bounds: expected one label or more"):
        class_posterior(torch.zeros(3, 0))


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("measure", [average_elbo, posteriors, active_units])
def test_what_is_no_images_is_refused_by_name(measure):
    model = VAE(1, 8, (1, 3, 4))
    said = r"^data: expected an object of vae_book.images.Images, got one of Tensor; make one first"
    with pytest.raises(ValueError, match=said):
        measure(model, torch.zeros(2, 1, 3, 4))


def test_more_draws_than_torch_can_count_are_refused_by_name():
    data = Images(torch.zeros(2, 1, 3, 4), torch.zeros(2).long(), "made", "test")
    with pytest.raises(ValueError, match=r"^n_samples: .* below 2\*\*63, got 1000"):
        average_elbo(VAE(1, 8, (1, 3, 4)), data, n_samples=10**20)
