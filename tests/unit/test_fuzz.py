"""Whatever a caller passes: numbers come out, or a refusal by name.

Every public function and method of the mathematical modules is called with numbers of all kinds,
shapes and types. A call has two good ends. Either the numbers that it returns are of single or
double precision, and NaN only if a NaN went in. Or a ``raise`` of the package ends it with a
ValueError or TypeError whose message starts with an argument. An error from inside torch is
neither.
"""

import inspect
import linecache
import math
import re
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import vae_book
from tests.numbers import repeatable
from vae_book import (
    bayes,
    bounds,
    divergences,
    evaluation,
    gradient_estimators,
    likelihoods,
    monte_carlo,
    reparameterization,
)
from vae_book.device import seeded
from vae_book.distributions import DiagonalGaussian, FullGaussian, gaussian_log_prob
from vae_book.images import Images
from vae_book.linear_gaussian import LinearGaussian, linear_joint, ppca
from vae_book.models import CVAE, VAE, ConvVAE
from vae_book.objectives import Objective
from vae_book.training import fit

pytestmark = pytest.mark.usefixtures("shapes_unchecked")
CALLS = 80  # of each entry point
PACKAGE = Path(vae_book.__file__).parent
NAMED = re.compile(r"(data: )?\w+((,| and) \w+)*: ")
IMAGE = (1, 2, 2)

# Arguments ----------------------------------------------------------------------------------------

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
SHAPES = [(), (0,), (1,), (2,), (3,), (2, 2), (3, 2), (0, 2), (2, 0), (2, 3, 2), (1, 2, 3, 2)]
MODERATE = [0.0, 1.0, -1.0, 0.5, 2.0, -3.0]
LARGE = [*MODERATE, 40.0, -100.0, 1e4, -1e30, 1e30, math.inf, -math.inf]
JUNK = [None, "2", [[1.0], [1.0, 2.0]], 1j, torch.tensor(1j), {}, np.array(["a"]), 10**400]


def tensors(*likely, pool=None):
    """Tensors of all types, of a shape that is likely to fit or of any, the values from a pool."""

    def make(shape, dtype, pool, seed):
        values = np.random.RandomState(seed).choice(pool, shape)
        if not dtype.is_floating_point:
            values = np.nan_to_num(values, posinf=9, neginf=0).clip(-9 * dtype.is_signed, 9)
        return torch.tensor(values).to(dtype)

    pools = [MODERATE, MODERATE, LARGE, [0.0, 1.0], [*MODERATE, math.nan]]
    return st.builds(
        make,
        st.sampled_from([*4 * likely, *SHAPES]),
        st.sampled_from(TYPES),
        st.sampled_from(pools if pool is None else [pool, *pools]),
        st.integers(0, 10**6),
    )


def numbers(*likely, pool=None):
    """Tensors, and now and then an array, a list, a number or what is none."""
    drawn = tensors(*likely, pool=pool)
    return st.one_of(
        *6 * [drawn],
        drawn.map(lambda x: x.tolist()),
        drawn.map(lambda x: np.broadcast_to(x.double().numpy(), x.shape)),  # not writable
        drawn.map(lambda x: x.requires_grad_() if x.is_floating_point() else x),
        st.sampled_from(LARGE + JUNK),
    )


def mapped(function, *likely):
    """Tensors that mean something, such as covariances, and as often any."""
    return tensors(*likely, pool=MODERATE).map(function) | numbers(*likely)


def positive_definite(x):
    x = x.double()
    fits = x.ndim >= 2 and x.shape[-1] == x.shape[-2]
    return x @ x.mT + torch.eye(x.shape[-1]) if fits else x


def probabilities(x):
    return x.double().log_softmax(-1) if x.ndim else x


def triangular(x):
    return x.tril() if x.ndim >= 2 else x


def standard_log_density(z):
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def uniform_log_density(z):
    return torch.where((z - 0.5).abs() <= 0.5, 0.0, -math.inf)


def some(n):
    levels = torch.arange(4.0 * n).reshape(n, *IMAGE) / max(4 * n, 1)
    return Images(levels.round(), torch.arange(n), "made", "test")


vector, row, matrix = numbers((2,)), numbers((2,), (3, 2)), numbers((2, 2))
rows, draws = numbers((3, 2)), numbers((3,), (3, 2))
images = numbers((3, *IMAGE), (3, 2, 2, 2), pool=[0.0, 1.0])
real = st.sampled_from([*MODERATE, *LARGE, -9, 9, np.float32(0.5), torch.tensor(2), *JUNK])
counts = st.sampled_from([1, 2, 3, 2.0, np.int64(2), 0, -1, 1.5, math.nan, math.inf, "2", None])
seeds = st.sampled_from([0, 1, 2**63, 2**64, 2**200, -1, 0.5, None, "0"])
densities = st.sampled_from(
    [standard_log_density, uniform_log_density, lambda z: z.unsqueeze(-1), lambda z: None]
)
functions = st.sampled_from(
    [lambda z: z.square().sum(-1), lambda z: z, lambda z: z.detach().sum(-1), lambda z: z.sum()]
)
labels = st.sampled_from(
    [None, 0, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 9]), torch.zeros(3), torch.zeros(2)]
)
torch.manual_seed(0)
MODELS = [
    VAE(2, 3, IMAGE),
    VAE(2, 3, IMAGE, likelihoods.Gaussian(variance="pixel")),
    CVAE(2, 3, IMAGE, classes=3),
    *(VAE(2, 3, IMAGE).to(dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)),
]
LIKELIHOODS = [
    likelihoods.Bernoulli(),
    likelihoods.Bernoulli(relaxed=True),
    likelihoods.ContinuousBernoulli(),
    likelihoods.Gaussian(0.5),
    likelihoods.Gaussian(variance="shared"),
    likelihoods.Gaussian(variance="pixel", min_sigma=0),
]
model, likelihood = st.sampled_from(MODELS), st.sampled_from(LIKELIHOODS)
data = st.sampled_from([some(n) for n in (0, 1, 2, 3)])
variance = st.sampled_from(["fixed", "shared", "pixel", "other", None])

# Entry points, each with what its arguments are drawn from ----------------------------------------


def gaussian(mu, log_var):
    return DiagonalGaussian(mu, log_var)


def linear(W, b, sigma):
    return LinearGaussian(W, b, sigma)


def method(make, name, *arguments):
    """A method as a function of what makes the object, and of its own arguments."""
    made = list(inspect.signature(make).parameters)

    def call(**given):
        owner = make(**{each: given.pop(each) for each in made})
        found = getattr(owner, name)
        return found(**given) if callable(found) else found

    call.__name__ = f"{make.__name__}.{name}"
    call.parameters = [*made, *arguments]
    return call


def the(likelihood):
    return likelihood


def given_params(likelihood, params):
    return likelihood.given(params)


def a_vae(model):
    return model


def quadratic(a, c):
    return gradient_estimators.Quadratic(a, c)


def joint(mu, cov, A, c, noise):
    return linear_joint(FullGaussian(mu, cov), A, c, noise)


def weight(beta, warm_up, free_nats, penalty):
    return Objective(beta, warm_up, free_nats, penalty).weight(1)


def likelihood_of(sigma, variance, min_sigma):
    return likelihoods.Gaussian(sigma, variance, min_sigma=min_sigma)


def model_of(latent, hidden, kind):
    return kind(latent, hidden, (1, 4, 4))


ARGUMENTS = {
    "mu": row,
    "log_var": row,
    "gradients": draws,
    "prior_mu": vector,
    "prior_log_var": vector,
    "eps": numbers((2,), (3, 2), (4, 3, 2), (0, 3, 2)),
    "z": row,
    "x": rows,
    "W": numbers((3, 2)),
    "b": draws,
    "sigma": real,
    "min_sigma": real,
    "a": vector,
    "c": vector,
    "A": matrix,
    "cov": mapped(positive_definite, (2, 2)),
    "noise": mapped(positive_definite, (2, 2)),
    "mu0": vector,
    "mu1": vector,
    "cov0": mapped(positive_definite, (2, 2)),
    "cov1": mapped(positive_definite, (2, 2)),
    "scale": mapped(triangular, (2, 2), (3, 2, 2)),
    "log_prior": mapped(probabilities, (2,), (3, 2)),
    "log_likelihood": row,
    "log_q": mapped(probabilities, (2,), (3, 2)),
    "log_p": mapped(probabilities, (2,), (3, 2)),
    "log_weights": draws,
    "log_bounds": row,
    "draws": draws,
    "logits": images,
    "params": images,
    "mean": images,
    "images": images,
    "log_joint": densities,
    "lower": real,
    "upper": real,
    "n": counts,
    "nats": real,
    "dimensions": counts,
    "levels": counts,
    "latent": counts,
    "hidden": counts,
    "f": functions,
    "baseline": real | st.just("leave-one-out"),
    "n_samples": counts,
    "seed": seeds,
    "from_prior": st.booleans(),
    "chunk": counts,
    "file": st.none(),
    "progress": st.just(False),
    "pixels": st.booleans(),
    "data": data,
    "model": model,
    "likelihood": likelihood,
    "kind": st.sampled_from([VAE, ConvVAE, CVAE]),
    "y": labels,
    "variance": variance,
    "beta": real,
    "warm_up": counts,
    "free_nats": real,
    "penalty": st.sampled_from(["kl", "naive", "other", None]),
}
HERE = {  # where a name stands for something else
    "kl_riemann": {"log_q": densities, "log_p": densities},
    "kl_quadrature": {"log_q": densities, "log_p": densities},
    "kl_monte_carlo": {"log_q": densities, "log_p": densities, "z": draws},
    "split_variance": {"draws": numbers((3, 2), (2, 2, 3))},
    "naive_log_evidence": {"log_likelihood": draws},
    "optimal_variance": {"x": images},
    "cross_entropy": {"x": images},
    "elbo": {"x": images},
    "log_weights": {"x": images},
    "the.log_prob": {"x": images},
    "the.check_support": {"x": images},
    "given_params.log_prob": {"x": images},
    "a_vae.encode": {"x": images},
    "a_vae.decode": {"z": numbers((3, 2), (4, 3, 2))},
}
MODULES = [bayes, bounds, divergences, evaluation, gradient_estimators, likelihoods, monte_carlo]
# They take what a model has made of images, and words.
NOT_CALLED = {"elbo_terms", "pass_log_weights", "protocol", "chunks"}
PLAIN = [
    function
    for module in [*MODULES, reparameterization]
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and name[0] != "_" and name not in NOT_CALLED
]
MADE = [
    gaussian_log_prob,
    ppca,
    joint,
    weight,
    likelihood_of,
    model_of,
    method(gaussian, "sigma"),
    method(gaussian, "rsample", "eps"),
    method(gaussian, "log_prob", "z"),
    method(linear, "latent"),
    method(linear, "sample", "n"),
    method(linear, "log_likelihood", "x", "z"),
    method(linear, "log_evidence", "x"),
    method(linear, "posterior", "x"),
    method(linear, "mean_field", "x"),
    method(linear, "elbo", "x", "mu", "log_var"),
    method(linear, "elbo_gradient", "x", "mu", "log_var"),
    method(linear, "elbo_full", "x", "mu", "cov"),
    method(quadratic, "__call__", "z"),
    method(quadratic, "expectation", "mu", "log_var"),
    method(quadratic, "gradient", "mu", "log_var"),
    method(quadratic, "pathwise_variance", "mu", "log_var"),
    method(quadratic, "best_baseline", "mu", "log_var"),
    method(quadratic, "score_function_variance", "mu", "log_var", "baseline"),
    method(the, "log_prob", "x", "params"),
    method(the, "mean", "params"),
    method(the, "sample", "params"),
    method(the, "check_support", "x"),
    method(given_params, "log_prob", "x"),
    method(given_params, "mean"),
    method(given_params, "sample"),
    method(a_vae, "encode", "x", "y"),
    method(a_vae, "decode", "z", "y"),
    method(a_vae, "sample", "n", "y", "pixels"),
]
ENTRIES = {function.__name__: function for function in [*PLAIN, *MADE]}


def arguments(name, function):
    wanted = getattr(function, "parameters", None) or inspect.signature(function).parameters
    known = ARGUMENTS | HERE.get(name, {})
    return {each: known[each] for each in wanted if each != "generator"}


# What has to hold ---------------------------------------------------------------------------------


def parts(value):
    """The numbers in what goes in or comes out."""
    if isinstance(value, torch.Tensor | float | list):
        yield value
    elif isinstance(value, np.ndarray):
        yield value.tolist()
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, tuple):
        for each in value:
            yield from parts(each)
    elif hasattr(value, "__dict__"):
        for each in vars(value).values():
            yield from parts(each)


def holds_nan(value):
    try:
        return any(torch.as_tensor(each).isnan().any() for each in parts(value))
    except (TypeError, ValueError, RuntimeError):
        return False  # no numbers


def check(function, given):
    """Raise AssertionError unless the call has one of its two good ends."""
    # A user's function of z may make a NaN of what is none.
    nan_goes_in = holds_nan(tuple(given.values())) or any(map(inspect.isfunction, given.values()))
    try:
        result = function(**given)
    except (ValueError, TypeError) as error:
        refusal = error
    else:
        refusal = None
    if refusal:
        last = traceback.extract_tb(refusal.__traceback__)[-1]
        line = linecache.getline(last.filename, last.lineno).strip()
        assert PACKAGE in Path(last.filename).parents, f"an error from elsewhere: {refusal}"
        assert line.startswith("raise"), f"an error from inside torch or Python: {refusal}"
        assert NAMED.match(str(refusal)), f"a message that names no argument: {refusal}"
        return
    for each in parts(result):
        if isinstance(each, torch.Tensor) and not isinstance(result, nn.Module):
            whole = each.dtype in (torch.int64, torch.bool)
            assert whole or each.dtype in (torch.float32, torch.float64) or "model" in given
    assert nan_goes_in or not holds_nan(result), "NaN out of numbers"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ENTRIES)
def test_numbers_come_out_or_an_argument_is_refused_by_name(name):
    drawn = st.fixed_dictionaries(arguments(name, ENTRIES[name]))

    @settings(repeatable, max_examples=CALLS)
    @given(drawn)
    def call(given):
        check(ENTRIES[name], given)

    call()


# Where the answer is known ------------------------------------------------------------------------


def test_whole_numbers_mean_what_they_say():
    ones, zeros = torch.tensor([1, 2]), torch.tensor([0, 0])
    for dtype in (torch.int64, torch.uint8, torch.float16, torch.float64):
        kl = divergences.gaussian_kl(ones.to(dtype), zeros.to(dtype), prior_mu=0.5)
        assert kl.item() == 1.25  # (0.5^2 + 1.5^2) / 2
        z = reparameterization.reparameterize(ones.to(dtype), zeros.to(dtype), ones.to(dtype))
        assert z.tolist() == [2.0, 4.0]
        x, params = torch.ones(1, 1, 2).to(dtype), torch.zeros(1, 1, 2).to(dtype)
        found = likelihoods.Gaussian(0.5).log_prob(x, params).item()
        assert found == pytest.approx(-4 - math.log(2 * math.pi * 0.25))
        assert likelihoods.ContinuousBernoulli().mean(params).tolist() == [[[0.5, 0.5]]]


@pytest.mark.parametrize("name", ["log_var", "prior_log_var"])
@pytest.mark.parametrize("limit", [math.inf, -math.inf])
def test_the_divergence_from_or_to_a_variance_without_limit_is_infinite(name, limit):
    at = {"mu": torch.zeros(1), "log_var": torch.zeros(1), name: torch.tensor([limit])}
    assert divergences.gaussian_kl(**at).item() == math.inf


def test_a_sure_pixel_that_is_right_costs_nothing():
    sure = torch.full(IMAGE, math.inf)
    assert likelihoods.Bernoulli().log_prob(torch.zeros(IMAGE), -sure).item() == 0
    assert likelihoods.Bernoulli().log_prob(torch.ones(IMAGE), sure).item() == 0


def test_an_average_over_no_noise_is_refused():
    x = some(3).images
    with pytest.raises(ValueError, match=r"^eps: .* not empty, got \(0, 3, 2\)$"):
        bounds.elbo(MODELS[0], x, torch.empty(0, 3, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_each_precision_are_trained_under_no_grad_and_autocast_or_not(dtype):
    one = torch.rand(1, *IMAGE, generator=seeded(0)).round().expand(64, *IMAGE)
    data = Images(one.to(dtype), torch.zeros(64).long(), "one image", "train")
    for context in (torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        torch.manual_seed(0)
        trained = VAE(2, 8, IMAGE).to(dtype)
        with context:
            history = fit(trained, data, epochs=5, batch_size=16, lr=0.02)
        assert history.loss[-1] < history.loss[0] - 0.1
        assert trained.weight.dtype == dtype


@pytest.mark.parametrize(
    ("lr", "likelihood"),
    [(1e4, None), (10.0, likelihoods.Gaussian(variance="pixel", min_sigma=0))],
)
def test_a_run_that_diverges_is_told_to_take_smaller_steps(lr, likelihood):
    noise = torch.rand(64, *IMAGE, generator=seeded(0))
    data = Images(noise, torch.zeros(64).long(), "noise", "train")
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"^lr: the loss of epoch \d+ is .* smaller steps"):
        fit(VAE(2, 8, IMAGE, likelihood), data, epochs=20, batch_size=8, lr=lr)


def test_the_default_type_may_be_double():
    torch.set_default_dtype(torch.float64)
    try:
        assert divergences.gaussian_kl(torch.tensor([1, 2]), [0, 0]).dtype == torch.float64
        assert bounds.elbo(VAE(2, 3, IMAGE), some(3).images.double()).value.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
