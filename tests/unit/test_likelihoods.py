"""Each likelihood is the distribution that it says it is, and says when it is not one."""

import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import bernoulli, kstest, norm, truncexpon
from torch.nn import functional as F

from tests.numbers import refused
from vae_book.checks import trusted
from vae_book.images import binarize
from vae_book.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    Likelihood,
    bits_per_dimension,
    log_cross_entropy_integral,
    optimal_variance,
)
from vae_book.monte_carlo import average

LOGITS = torch.linspace(-100, 100, 24, dtype=torch.float64).reshape(2, 3, 2, 2)


def binary_images(height=2, width=2):
    """Every binary image of this size, shape (2^(height*width), 1, height, width)."""
    pixels = list(itertools.product((0.0, 1.0), repeat=height * width))
    return torch.tensor(pixels, dtype=torch.float64).reshape(-1, 1, height, width)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels(*values, dtype=torch.float64):
    """Images of one pixel, shape (n, 1, 1, 1)."""
    return torch.tensor(values, dtype=dtype).reshape(-1, 1, 1, 1)


VARIANCES = ["fixed", "shared", "pixel"]
ALL = [
    Bernoulli(),
    Bernoulli(relaxed=True),
    ContinuousBernoulli(),
    *map(Gaussian, [0.3] * 3, VARIANCES),
]


# Every likelihood ---------------------------------------------------------------------------------


class Laplacian(Likelihood):
    """A likelihood of one's own, which may do something else to its numbers."""

    def __init__(self, params_per_pixel=1, change=lambda each: each):
        self.params_per_pixel, self.change = params_per_pixel, change

    def pixel_log_prob(self, x, params):
        return self.change(-(x - params).abs() - math.log(2))

    def mean(self, params):
        return params

    def sample(self, params, generator=None):
        return params


OWN = {
    "two parameters that are not split": (Laplacian(2), (3, 2, 4, 4)),
    "sums of images": (Laplacian(change=lambda each: each.sum((-3, -2, -1))), (3,)),
    "sums of rows": (Laplacian(change=lambda each: each.sum(-1)), (3, 1, 4)),
    "one for all pixels": (Laplacian(change=lambda each: each[..., :1, :1]), (3, 1, 1, 1)),
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("samples", [(), (5,)])
def test_a_likelihood_of_ones_own_gives_a_number_for_each_pixel(name, samples):
    likelihood, got = OWN[name]
    x, params = torch.zeros(3, 1, 4, 4), torch.zeros(*samples, 3, likelihood.params_per_pixel, 4, 4)
    assert Laplacian().log_prob(x, params[..., :1, :, :]).shape == (*samples, 3)
    expected = (*samples, 3, 1, 4, 4)
    with refused(
        f"pixel_log_prob: expected a number for each pixel, shape {expected}, got "
        f"{(*samples, *got)}"
    ):
        likelihood.log_prob(x, params)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_is_what_a_model_asks_of_its_likelihood(likelihood):
    assert isinstance(likelihood, Likelihood)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_axes_for_samples_come_first(likelihood, channels):
    x = torch.rand(4, channels, 2, 3, generator=generator()).round().double()
    params = torch.randn(
        2, 5, 4, channels * likelihood.params_per_pixel, 2, 3, generator=generator()
    )
    params = params.double()
    log_prob = likelihood.log_prob(x, params)
    assert log_prob.shape == (2, 5, 4)
    for i, j, k in itertools.product(range(2), range(5), range(4)):
        torch.testing.assert_close(log_prob[i, j, k], likelihood.log_prob(x[k], params[i, j, k]))
    assert likelihood.mean(params).shape == (2, 5, *x.shape)
    assert likelihood.sample(params, generator()).shape == (2, 5, *x.shape)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_depend_on_the_generator_alone(likelihood, dtype):
    before = torch.get_rng_state()
    params = torch.zeros(likelihood.params_per_pixel, 8, 8, dtype=dtype)
    first, again, other = (likelihood.sample(params, generator(seed)) for seed in (0, 0, 1))
    assert first.dtype == dtype
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)  # without one it is torch's own
    assert torch.equal(likelihood.sample(params), first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_samples_on_the_gpu_are_those_of_the_cpu(likelihood):
    params = torch.linspace(-2, 2, likelihood.params_per_pixel * 64)
    params = params.reshape(likelihood.params_per_pixel, 8, 8)
    on_cpu = likelihood.sample(params, generator())
    if isinstance(likelihood, Gaussian):
        likelihood = Gaussian(0.3, likelihood.variance).cuda()
    on_gpu = likelihood.sample(params.cuda(), generator())
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), on_cpu)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("likelihood", ALL, ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 1, 2, 2), (2, 1, 2, 3), (1, 2, 2), (2, 1, 2, 2, 1), (2, 3, 2, 2), (2, 2)]
)
def test_params_must_end_in_the_shape_of_x(likelihood, shape):
    expected = rf"^params: expected .*\(2, {likelihood.params_per_pixel}, 2, 2\)"
    with pytest.raises(ValueError, match=expected):
        likelihood.log_prob(torch.zeros(2, 1, 2, 2), torch.zeros(shape))
    with pytest.raises(ValueError, match=r"^x: expected images .*got \(2, 2\)"):
        likelihood.log_prob(torch.zeros(2, 2), torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("likelihood", "pixel", "advice"),
    [
        (Bernoulli(), 0.5, "got 0.5.*binarize.*ContinuousBernoulli.*Gaussian.*relaxed=True"),
        (Bernoulli(), 255.0, "Divide images of 0..255 by 255"),
        (Bernoulli(), -0.1, "between 0 and 1, got -0.1"),
        (Bernoulli(), math.nan, "got nan"),
        (Bernoulli(relaxed=True), 1.001, "got 1.001.*Divide"),
        (Bernoulli(relaxed=True), -0.001, "got -0.001"),
        (Bernoulli(relaxed=True), math.nan, "got nan"),
        (ContinuousBernoulli(), 255.0, "got 255.*Divide.*Gaussian"),
        (ContinuousBernoulli(), -0.1, "got -0.1"),
        (ContinuousBernoulli(), math.nan, "got nan"),
        (Gaussian(), math.nan, "finite"),
        (Gaussian(), -math.inf, "finite"),
    ],
)
def test_pixels_outside_the_support_are_refused_with_advice(likelihood, pixel, advice):
    x = torch.ones(2, 1, 2, 2)
    x[1, 0, 1, 0] = pixel
    with pytest.raises(ValueError, match=f"^x: .*{advice}"):
        likelihood.log_prob(x, torch.zeros_like(x))


def test_values_and_gradients_stay_finite_for_huge_params():
    for likelihood, dtype, x in itertools.product(ALL, (torch.float32, torch.float64), (0.0, 1.0)):
        size = [0.0, 1e-30, 1e-7, 1e-3, 0.1, 1.0, 30.0, 90.0, 800.0, 1e4]
        params = pixels(*size, *(-each for each in size), dtype=dtype)
        params = params.expand(-1, likelihood.params_per_pixel, 1, 1).clone().requires_grad_()
        log_prob = likelihood.log_prob(pixels(*[x] * 20, dtype=dtype), params)
        (gradient,) = torch.autograd.grad(log_prob.sum(), params)
        assert log_prob.dtype == gradient.dtype == dtype
        assert log_prob.isfinite().all()
        assert gradient.isfinite().all()
        assert likelihood.mean(params).isfinite().all()


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_gradients_agree_with_finite_differences(likelihood):
    """Also at a logit of exactly zero, where the continuous Bernoulli divides zero by zero."""
    x = pixels(0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0)
    params = pixels(0.0, 0.0, 1e-3, -0.05, 0.2, -3.0, 5.0)
    params = params.expand(-1, likelihood.params_per_pixel, 1, 1).clone().requires_grad_()
    inner = [*getattr(likelihood, "parameters", list)()]
    likelihood = likelihood.double() if inner else likelihood
    assert torch.autograd.gradcheck(
        lambda params, *_: likelihood.log_prob(x, params), (params, *inner)
    )
    # The average gray level is a smooth function of the logit as well.
    assert torch.autograd.gradcheck(likelihood.mean, params)


# Bernoulli ----------------------------------------------------------------------------------------


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


@pytest.mark.equation(
    "eq-binarized", route="all binary images, and draws of them", rel=1e-12, standard_errors=4
)
def test_the_cross_entropy_is_the_average_over_binarized_images(agree):
    x = torch.tensor([0.0, 0.2, 0.55, 1.0], dtype=torch.float64).reshape(1, 2, 2)
    logits = torch.tensor([-1.0, 2.0, -0.3, 0.8], dtype=torch.float64).reshape(1, 2, 2)
    gray = Bernoulli(relaxed=True).log_prob(x, logits)
    binary = binary_images()
    probability = torch.where(binary == 1, x, 1 - x).prod(-1).prod(-1).prod(-1)
    on_each = Bernoulli().log_prob(binary, logits.expand_as(binary))
    agree(probability @ on_each, gray)
    draws = binarize(x.expand(20_000, 1, 2, 2), generator())
    agree(average(Bernoulli().log_prob(draws, logits.expand_as(draws))), gray)


# Continuous Bernoulli -----------------------------------------------------------------------------

SEAMS = [0.0, 1e-300, 1e-9, math.nextafter(0.1, 0), 0.1, 1e4]
LOGITS_OF_ALL_SIZES = (
    st.floats(-1e4, 1e4, allow_subnormal=False)
    | st.floats(-0.2, 0.2, allow_subnormal=False)
    | st.sampled_from([*SEAMS, *(-seam for seam in SEAMS)])
)


def exact(logit):
    """The log-integral of exp(-cross-entropy), its derivative, and the density's mean."""
    if logit == 0:
        return math.log(0.5), 0.0, 0.5
    size = abs(Decimal(logit))
    with localcontext() as context:
        context.prec = 40 - 2 * min(size.adjusted(), 0)  # as many digits as cancel, and more
        e = size.exp()
        log_integral = ((e - 1) / (e + 1) / size).ln()
        slope, mean = 2 / (e - 1 / e) - 1 / size, e / (e - 1) - 1 / size
        if logit < 0:
            slope, mean = -slope, 1 - mean
        return tuple(map(float, (log_integral, slope, mean)))


def gray_density(logit):
    """The continuous Bernoulli of scipy for a negative logit: an exponential cut off at 1."""
    return truncexpon(b=-logit, scale=-1 / logit)


@given(LOGITS_OF_ALL_SIZES)
def test_integral_slope_and_mean_are_exact_for_logits_of_all_sizes(logit):
    logits = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    log_integral = log_cross_entropy_integral(logits)
    (slope,) = torch.autograd.grad(log_integral, logits)
    mean = ContinuousBernoulli().mean(logits)
    values = [each.item() for each in (log_integral, slope, mean)]
    assert values == pytest.approx(exact(logit), rel=1e-14, abs=5e-14)
    single = torch.tensor(logit, requires_grad=True)
    log_integral = log_cross_entropy_integral(single)
    (slope,) = torch.autograd.grad(log_integral, single)
    values = [each.item() for each in (log_integral, slope, ContinuousBernoulli().mean(single))]
    assert values == pytest.approx(exact(single.item()), rel=1e-6, abs=2e-6)


@pytest.mark.equation("eq-cross-entropy-integral", route="scipy.integrate.quad", rel=1e-12)
def test_the_cross_entropy_of_gray_levels_is_no_density(agree):
    logits = torch.tensor([-30.0, -2.0, -0.1, -0.05, 0.0, 1e-3, 0.3, 3.0], dtype=torch.float64)

    def integral(logit):
        def exp_minus_cross_entropy(x):
            return np.exp(-x * np.logaddexp(0, -logit) - (1 - x) * np.logaddexp(0, logit))

        return quad(exp_minus_cross_entropy, 0, 1, epsabs=0, epsrel=1e-13)[0]

    integrals = log_cross_entropy_integral(logits).exp()
    agree(integrals, [integral(logit) for logit in logits.tolist()])
    assert integrals.max() == integrals[4] == 0.5  # below one for every logit
    # And it is this score that `Bernoulli(relaxed=True)` gives.
    score = Bernoulli(relaxed=True).log_prob(pixels(0.3), pixels(3.0)).item()
    assert score == pytest.approx(-0.3 * np.logaddexp(0, -3) - 0.7 * np.logaddexp(0, 3))


@pytest.mark.equation(
    "eq-continuous-bernoulli", route="scipy.stats.truncexpon", rel=1e-12, abs=1e-14
)
def test_the_continuous_bernoulli_is_an_exponential_cut_off_at_one(agree):
    x = torch.linspace(0, 1, 6, dtype=torch.float64).reshape(1, 2, 3)
    for logit in (-500.0, -40.0, -3.0, -0.5, -0.05):
        expected = gray_density(logit).logpdf(x.numpy()).sum()
        likelihood = ContinuousBernoulli()
        agree(likelihood.log_prob(x, torch.full_like(x, logit)), expected)
        agree(likelihood.log_prob(1 - x, torch.full_like(x, -logit)), expected)
        agree(likelihood.mean(pixels(logit)).item(), gray_density(logit).mean())
    # For a logit of zero all gray levels are equally probable.
    assert ContinuousBernoulli().log_prob(x, torch.zeros_like(x)).item() == pytest.approx(0)


def test_the_continuous_bernoulli_agrees_with_torch():
    x, logits = torch.rand(2, 4, 3, 5, 5, dtype=torch.float64, generator=generator())
    logits = 12 * logits - 6
    theirs = torch.distributions.ContinuousBernoulli(logits=logits)
    expected = theirs.log_prob(x).sum((1, 2, 3))
    # Theirs has a Taylor series of low order around zero.
    torch.testing.assert_close(
        ContinuousBernoulli().log_prob(x, logits), expected, rtol=1e-6, atol=0
    )
    torch.testing.assert_close(ContinuousBernoulli().mean(logits), theirs.mean)


@pytest.mark.parametrize("logit", [-60.0, -1.5, 0.0, 0.02, 25.0])
def test_the_continuous_bernoulli_integrates_to_one(logit):
    def density(x):
        return ContinuousBernoulli().log_prob(pixels(x), pixels(logit)).exp().item()

    assert quad(density, 0, 1, epsabs=0, epsrel=1e-12)[0] == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [-1e4, -40.0, -2.0, -1e-3, -1e-9, 0.0])
def test_gray_levels_follow_the_continuous_bernoulli_of_scipy(logit, dtype):
    n, likelihood = 5000, ContinuousBernoulli()
    cdf = gray_density(logit).cdf if logit < -1e-6 else (lambda x: x)
    for sign in (1, -1):
        params = torch.full((n, 1, 1), sign * logit, dtype=dtype)
        x = likelihood.sample(params, generator())
        assert ((x >= 0) & (x <= 1)).all()
        x = x if sign == 1 else 1 - x
        assert kstest(x.flatten().double().numpy(), cdf).pvalue > 1e-3


# Gaussian -----------------------------------------------------------------------------------------


def gaussians(sigma=0.3, min_sigma=0.1, channels=2):
    """Each kind with params, and the mean and the deviation of each pixel that they stand for."""
    mean = torch.randn(4, channels, 2, 3, dtype=torch.float64, generator=generator(1))
    ratio = torch.randn(4, channels, 2, 3, dtype=torch.float64, generator=generator(2))
    fixed, shared, pixel = (Gaussian(sigma, kind, min_sigma=min_sigma) for kind in VARIANCES)
    shared = shared.double()
    shared.shared.data.fill_(-0.7)
    added = np.full((4, channels, 2, 3), min_sigma)
    return [
        (fixed, mean, mean.numpy(), np.full_like(added, sigma)),
        (shared, mean, mean.numpy(), np.hypot(added, sigma * np.exp(-0.35))),
        (
            pixel,
            torch.cat([mean, ratio], -3),
            mean.numpy(),
            np.hypot(added, sigma * np.exp(ratio.numpy() / 2)),
        ),
    ]


@pytest.mark.equation("eq-gaussian-likelihood", route="scipy.stats.norm", rel=1e-12)
def test_the_gaussian_is_scipys_normal_with_its_constants(agree):
    x = torch.randn(4, 2, 2, 3, dtype=torch.float64, generator=generator())  # also outside [0, 1]
    for min_sigma in (0.0, 0.1):
        for likelihood, params, mean, sigma in gaussians(min_sigma=min_sigma):
            expected = norm.logpdf(x.numpy(), mean, sigma).sum((1, 2, 3))
            agree(likelihood.log_prob(x, params), expected)
            agree(likelihood.mean(params), mean)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_draws_of_the_gaussian_follow_scipys_normal(kind):
    likelihood, params, mean, sigma = gaussians()[kind]
    draws = likelihood.sample(params.expand(2000, *params.shape), generator()).detach()
    assert draws.shape == (2000, 4, 2, 2, 3)
    standard = (draws.numpy() - mean) / sigma
    assert kstest(standard.flatten(), norm.cdf).pvalue > 1e-3
    assert (abs(standard.mean(0)) < 5 / 2000**0.5).all()  # for each pixel


def test_only_the_shared_variance_is_a_parameter():
    names = [[name for name, _ in Gaussian(0.3, kind).named_parameters()] for kind in VARIANCES]
    assert names == [[], ["shared"], []]
    assert [Gaussian(0.3, kind).params_per_pixel for kind in VARIANCES] == [1, 1, 2]
    # It starts from sigma.
    start = Gaussian(0.3, "shared", min_sigma=0.0).log_var(torch.zeros(1, 1, 1)).exp().sqrt()
    assert start.item() == pytest.approx(0.3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_shared_variance_in_half_precision_is_computed_with_in_single(dtype):
    likelihood = Gaussian(0.1, "shared").to(dtype)
    with torch.no_grad():
        likelihood.shared.fill_(-0.37)
    draw = torch.Generator().manual_seed(0)
    x, mean = torch.rand(2, 3, 1, 28, 28, generator=draw).to(dtype).double()
    sigma = math.sqrt(0.01 * math.exp(likelihood.shared.item()) + 0.02**2)
    expected = norm.logpdf(x.numpy(), mean.numpy(), sigma).sum((1, 2, 3))
    found = likelihood.given(mean.to(dtype)).log_prob(x.to(dtype))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["shared", "pixel"])
def test_a_learned_variance_keeps_its_floor(kind):
    likelihood = Gaussian(0.3, kind, min_sigma=0.01)
    params = torch.full((likelihood.params_per_pixel, 2, 2), -1e4)
    for parameter in likelihood.parameters():
        parameter.data.fill_(-1e4)
    sigma = likelihood.log_var(params).exp().sqrt()
    torch.testing.assert_close(sigma, torch.full_like(sigma, 0.01))
    if kind == "pixel":  # of which the default has one, too
        assert Gaussian(0.3, kind).log_var(params).exp().min() > 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0.0}, "sigma: expected a positive number, got 0"),
        ({"sigma": -1.0}, "sigma: .*-1"),
        ({"sigma": math.nan}, "sigma: .*nan"),
        ({"sigma": math.inf}, "sigma: .*inf"),
        ({"min_sigma": -0.1}, "min_sigma: .*zero or a positive number, got -0.1"),
        ({"min_sigma": math.nan}, "min_sigma: .*nan"),
        ({"min_sigma": math.inf}, "min_sigma: .*inf"),
        ({"variance": "diagonal"}, "variance: .*'fixed', 'shared' or 'pixel', got 'diagonal'"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_a_gaussian_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Gaussian(**arguments)


@pytest.mark.parametrize("method", ["mean", "log_var", "sample"])
@pytest.mark.parametrize("shape", [(3, 2, 2), (5, 1, 2, 2), (2, 2)])
def test_a_variance_for_each_pixel_needs_an_even_number_of_channels(method, shape):
    with pytest.raises(ValueError, match=r"^params: expected an even number of channels"):
        getattr(Gaussian(0.3, "pixel"), method)(torch.zeros(shape))


def test_print_shows_the_arguments():
    shown = "Gaussian(sigma=0.3, variance='shared', min_sigma=0.05)"
    assert str(Gaussian(0.3, "shared", min_sigma=0.05)) == shown


# What is reported ---------------------------------------------------------------------------------


@pytest.mark.equation("eq-optimal-variance", route="scipy.optimize.minimize_scalar", rel=1e-6)
def test_images_are_most_probable_under_their_mean_squared_error(agree):
    x = torch.rand(5, 2, 3, 4, dtype=torch.float64, generator=generator())
    for mean in (x.flip(0), torch.rand(3, *x.shape, dtype=torch.float64, generator=generator(1))):

        def surprise(log_var, mean=mean):
            return -Gaussian(math.exp(log_var / 2)).log_prob(x, mean).mean().item()

        best = minimize_scalar(surprise, bracket=(-3, 0), tol=1e-12)
        agree(optimal_variance(x, mean), math.exp(best.x))


@pytest.mark.usefixtures("shapes_unchecked")
def test_the_optimal_variance_names_the_argument_that_does_not_fit():
    with pytest.raises(ValueError, match=r"^mean: .*\(2, 1, 3, 3\).*got \(1, 3, 3\)"):
        optimal_variance(torch.zeros(2, 1, 3, 3), torch.zeros(1, 3, 3))


@pytest.mark.equation("eq-bits", route="probabilities of fine gray levels", abs=1e-6)
def test_bits_are_those_of_the_gray_level_in_which_a_pixel_falls(agree):
    levels, sigma = 4096, 0.3
    mean = torch.rand(2, 3, 4, dtype=torch.float64, generator=generator())
    x = torch.randint(levels, (2, 3, 4), generator=generator()).double() / (levels - 1)
    nats = -Gaussian(sigma).log_prob(x, mean).item()
    edges = ((x - mean)[..., None] + torch.tensor([-0.5, 0.5]) / (levels - 1)).numpy() / sigma
    probability = np.diff(norm.cdf(edges)).squeeze(-1)
    agree(bits_per_dimension(nats, 24, levels), -np.log2(probability).mean())


def test_a_fair_coin_has_one_bit_and_a_uniform_density_the_logarithm_of_255():
    x, zero = torch.ones(3, 4, 5), torch.zeros(3, 4, 5)
    coin, uniform = (
        -likelihood.log_prob(x, zero).item() for likelihood in (Bernoulli(), ContinuousBernoulli())
    )
    assert bits_per_dimension(coin, 60) == pytest.approx(1)
    # Between 256 levels there are 255 steps.
    assert bits_per_dimension(uniform, 60, levels=256) == pytest.approx(math.log2(255))
    # For binary pixels in both numbers, an image is a draw of this many bits.
    assert bits_per_dimension(10 * math.log(2), 5) == pytest.approx(2)


def test_bits_do_not_depend_on_the_unit_in_which_gray_is_measured():
    x, mean = torch.rand(2, 2, 3, 4, dtype=torch.float64, generator=generator())
    of_unit = -Gaussian(0.3).log_prob(x, mean).item()
    of_bytes = -Gaussian(0.3 * 255).log_prob(255 * x, 255 * mean).item()  # levels 1 apart
    assert bits_per_dimension(of_unit, 24, levels=256) == pytest.approx(
        bits_per_dimension(of_bytes, 24)
    )


@pytest.mark.parametrize("dimensions", [0, -3])
def test_bits_need_dimensions(dimensions):
    with pytest.raises(ValueError, match=r"^dimensions: expected a whole number of at least 1"):
        bits_per_dimension(1.0, dimensions)


@pytest.mark.parametrize("levels", [1, 0, -256])
def test_bits_of_a_density_need_two_levels(levels):
    with pytest.raises(ValueError, match=r"^levels: expected a whole number of at least 2"):
        bits_per_dimension(1.0, 5, levels)


@pytest.mark.parametrize("pixels", [(1, 2, 4), (1, 3, 5), (3, 2, 2), (1, 28, 28)])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (4, 3), (4, 1)])
@pytest.mark.parametrize("scale", [1e-3, 5.0, 1e4])
def test_in_single_precision_a_bernoulli_takes_a_shorter_way_to_the_same_sum(pixels, batch, scale):
    draw = torch.Generator().manual_seed(len(batch))
    logits = scale * torch.randn(*batch, *pixels, generator=draw)
    x = torch.rand(*batch[-1:], *pixels, generator=draw)
    weight = torch.randn(batch, generator=draw)
    found, expected = [], []
    for dtype, results in ((torch.float32, found), (torch.float64, expected)):
        given = [each.to(dtype, copy=True).requires_grad_() for each in (x, logits)]
        if dtype == torch.float32:
            sums = Bernoulli(relaxed=True).log_prob(*given)
        else:
            on, off = (F.logsigmoid(sign * given[1]) for sign in (1, -1))
            sums = (given[0] * on + (1 - given[0]) * off).sum((-3, -2, -1))
        results += [sums, *torch.autograd.grad((weight * sums).sum(), given)]
    # The slope in x is a sum over samples of numbers as large as the logits, which nearly cancel.
    bounds = (1e-5, max(1e-5, 1e-6 * scale), 1e-5)
    for one, other, atol in zip(found, expected, bounds, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-6, atol=atol)
    short = Bernoulli(relaxed=True).log_prob(x, logits)
    assert not short.requires_grad
    assert torch.equal(short, found[0].detach())


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("pixels", [(1, 28, 28), (3, 5, 7)])
@pytest.mark.parametrize("scale", [30.0, 1e3, 1e6])
def test_an_image_that_is_sure_has_a_probability_of_one_and_none_has_more(pixels, n, scale):
    draw = torch.Generator().manual_seed(0)
    x = (torch.rand(n, *pixels, generator=draw) < 0.5).float()
    logits = (2 * x - 1) * scale * (1 + torch.rand(300, n, *pixels, generator=draw))
    sure = Bernoulli().log_prob(x, logits)
    assert (sure <= 0).all()
    assert (sure > -1e-6 * scale).all()
    wrong = logits.where(torch.rand(logits.shape, generator=draw) > 0.01, -1e-3 * logits.sign())
    assert (Bernoulli().log_prob(x, wrong) <= 0).all()


def test_the_shorter_way_has_a_second_derivative():
    """Minus the variance of a pixel."""
    logits = torch.linspace(-3, 3, 8).reshape(1, 1, 2, 4).requires_grad_()
    total = Bernoulli().log_prob(torch.ones(1, 1, 2, 4), logits).sum()
    (slope,) = torch.autograd.grad(total, logits, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), logits)
    p = torch.sigmoid(logits.detach())
    torch.testing.assert_close(curvature, -p * (1 - p))


def test_a_derived_bernoulli_is_scored_by_its_own_pixels():
    class Tilted(Bernoulli):
        def pixel_log_prob(self, x, params):
            return super().pixel_log_prob(x, params + 1)

    x, params = (torch.rand(3, 1, 4, 4) < 0.5).float(), torch.randn(3, 1, 4, 4)
    expected = torch.distributions.Bernoulli(logits=params + 1).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(Tilted().log_prob(x, params), expected)


def test_the_shorter_way_keeps_what_is_infinite_or_not_a_number():
    ones = torch.ones(1, 2, 4)
    certain = Bernoulli().log_prob(ones, torch.full((1, 2, 4), math.inf))
    assert certain == 0
    assert Bernoulli().log_prob(ones, torch.full((1, 2, 4), -math.inf)) == -math.inf
    logits = torch.zeros(2, 1, 2, 4)
    logits[0, 0, 0, 0] = math.nan
    found = Bernoulli().log_prob(ones, logits)
    assert found.isnan().tolist() == [True, False]


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # torch's own, of forward mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_func_differentiates_the_cross_entropy_both_ways(dtype):
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 2, 4, generator=draw, dtype=dtype)
    logits = torch.randn(2, 3, 1, 2, 4, generator=draw, dtype=dtype)

    def total(x, logits):
        return Bernoulli(relaxed=True).log_prob(x, logits).sum()

    expected = logits.sum(0), x - torch.sigmoid(logits)
    for found, slope in zip(torch.func.grad(total, (0, 1))(x, logits), expected, strict=True):
        torch.testing.assert_close(found, slope)
    moves = torch.ones_like(x), torch.ones_like(logits)
    _, moved = torch.func.jvp(total, (x, logits), moves)
    torch.testing.assert_close(moved, sum(each.sum() for each in expected))
    _, moved = torch.func.jvp(lambda logits: total(x, logits), (logits,), moves[1:])
    torch.testing.assert_close(moved, expected[1].sum())
    with trusted():  # which looks at no value, as vmap cannot
        each = torch.func.vmap(torch.func.grad(total, 1))(x, logits[0])
    torch.testing.assert_close(each, expected[1][0])


@pytest.mark.parametrize("short", [torch.bfloat16, torch.float16])
def test_the_sum_of_one_image_stays_in_single_precision_under_autocast(short):
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 28, 28, generator=draw)
    logits = 100 * torch.randn(4, 1, 1, 28, 28, generator=draw)
    plain = Bernoulli(relaxed=True).log_prob(x, logits)
    with torch.autocast("cpu", short):
        assert torch.equal(Bernoulli(relaxed=True).log_prob(x, logits), plain)
