"""The Bernoulli likelihood is a distribution over binary images, and says when it is not one."""

import itertools

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import bernoulli

from vae_book.likelihoods import Bernoulli, Likelihood

LOGITS = torch.linspace(-100, 100, 24, dtype=torch.float64).reshape(2, 3, 2, 2)


def binary_images(height=2, width=2):
    """Every binary image of this size, shape (2^(height*width), 1, height, width)."""
    pixels = list(itertools.product((0.0, 1.0), repeat=height * width))
    return torch.tensor(pixels, dtype=torch.float64).reshape(-1, 1, height, width)


def test_is_what_a_model_asks_of_its_likelihood():
    assert isinstance(Bernoulli(), Likelihood)


@pytest.mark.parametrize("relaxed", [False, True])
def test_log_prob_is_the_sum_over_pixels_of_torchs_own(relaxed):
    for x in (torch.zeros_like(LOGITS), torch.ones_like(LOGITS), (LOGITS.sin() > 0).double()):
        each = torch.distributions.Bernoulli(logits=LOGITS).log_prob(x)
        expected = torch.stack([image.sum() for image in each])
        log_prob = Bernoulli(relaxed).log_prob(x, LOGITS)
        torch.testing.assert_close(log_prob, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.equation("eq-bernoulli", route="scipy.stats.bernoulli", rel=1e-12)
def test_log_prob_agrees_with_scipy_on_every_binary_image(agree):
    x = binary_images()
    logits = torch.linspace(-5, 4, 4, dtype=torch.float64).reshape(1, 1, 2, 2).expand_as(x)
    expected = bernoulli.logpmf(x.numpy(), torch.sigmoid(logits).numpy()).sum(axis=(1, 2, 3))
    agree(Bernoulli().log_prob(x, logits), expected)


@pytest.mark.equation("eq-bernoulli", route="the sum over all binary images", rel=1e-12)
def test_probabilities_of_all_images_sum_to_one(agree):
    x = binary_images()
    logits = torch.tensor([-3.0, 0.2, 1.0, 30.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    agree(Bernoulli().log_prob(x, logits.expand_as(x)).exp().sum(), 1)


def test_stays_finite_where_the_probability_underflows():
    # log(1 - sigmoid(100)) is -inf in single precision; the log-probability is -100 a pixel.
    x, logits = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 100.0)
    assert Bernoulli().log_prob(x, logits).item() == -400


def test_axes_for_samples_come_first():
    x = binary_images()[:3]
    params = torch.linspace(-2, 2, 5 * 4 * x.numel(), dtype=torch.float64).reshape(5, 4, *x.shape)
    log_prob = Bernoulli().log_prob(x, params)
    assert log_prob.shape == (5, 4, 3)
    for i, j in itertools.product(range(5), range(4)):
        torch.testing.assert_close(log_prob[i, j], Bernoulli().log_prob(x, params[i, j]))


def test_mean_is_the_probability_of_each_pixel():
    torch.testing.assert_close(
        Bernoulli().mean(LOGITS), torch.distributions.Bernoulli(logits=LOGITS).mean
    )


def test_samples_are_binary_with_the_frequencies_of_the_mean():
    n = 20_000
    logits = torch.tensor([-200.0, -2.0, 0.0, 1.0, 200.0, 3.0]).reshape(1, 2, 3)
    draws = Bernoulli().sample(logits.expand(n, 1, 2, 3), torch.Generator().manual_seed(0))
    assert draws.shape == (n, 1, 2, 3)
    assert draws.dtype == logits.dtype
    assert set(draws.unique().tolist()) == {0, 1}
    p = torch.distributions.Bernoulli(logits=logits).mean
    assert ((draws.mean(0) - p).abs() <= 4 * (p * (1 - p) / n).sqrt()).all()


def test_samples_depend_on_the_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (
        Bernoulli().sample(torch.zeros(1, 8, 8), torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_are_double_for_double_parameters():
    assert Bernoulli().sample(LOGITS).dtype == torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_samples_on_the_gpu_are_those_of_the_cpu():
    logits = torch.linspace(-2, 2, 64).reshape(1, 8, 8)
    on_gpu, on_cpu = (
        Bernoulli().sample(logits.to(device), torch.Generator().manual_seed(0))
        for device in ("cuda", "cpu")
    )
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), on_cpu)


@pytest.mark.parametrize(
    ("relaxed", "pixel", "advice"),
    [
        (False, 0.5, "binarize.*relaxed=True"),
        (False, 255.0, "Divide images of 0..255 by 255"),
        (False, float("nan"), "got nan"),
        (True, 1.001, "got 1.001.*Divide"),
        (True, -0.001, "got -0.001"),
        (True, float("nan"), "got nan"),
    ],
)
def test_pixels_outside_the_support_are_refused_with_advice(relaxed, pixel, advice):
    x = torch.ones(2, 1, 2, 2)
    x[1, 0, 1, 0] = pixel
    with pytest.raises(ValueError, match=advice):
        Bernoulli(relaxed).log_prob(x, torch.zeros_like(x))


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("shape", [(3, 1, 2, 2), (2, 1, 2, 3), (1, 2, 2), (2, 1, 2, 2, 1)])
def test_params_must_end_in_the_shape_of_x(shape):
    with pytest.raises(ValueError, match=r"^params: .*\(2, 1, 2, 2\)"):
        Bernoulli().log_prob(torch.zeros(2, 1, 2, 2), torch.zeros(shape))


@pytest.mark.parametrize("logit", [-2.0, 0.0, 3.0])
def test_gray_levels_get_the_cross_entropy_which_is_no_density(logit):
    def score(x):
        image = torch.full((1, 1, 1), x, dtype=torch.float64)
        return Bernoulli(relaxed=True).log_prob(image, torch.full_like(image, logit))

    p = torch.sigmoid(torch.tensor(logit, dtype=torch.float64))
    assert score(0.3).item() == pytest.approx((0.3 * p.log() + 0.7 * (1 - p).log()).item())
    integral, _ = quad(lambda x: score(x).exp().item(), 0, 1)
    # (2p - 1) / logit, or 1/2 at p = 1/2: always below one.
    expected = 0.5 if logit == 0 else ((2 * p - 1) / logit).item()
    assert integral == pytest.approx(expected)
    assert integral < 0.51
