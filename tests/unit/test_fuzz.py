"""Whatever a caller passes: numbers come out, or a refusal by name.

Every public function and method that takes numbers, from the mathematical modules to figures, is
called with numbers of all kinds, shapes and types. A call has two good ends. Either the numbers
that it returns are of single or double precision, and NaN only if a NaN went in. Or a ``raise`` of
the package ends it with a ValueError or TypeError whose message starts with an argument. An error
from inside torch is neither.
"""

import copy
import inspect
import linecache
import math
import re
import traceback
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import vae_book
from tests.numbers import repeatable
from vae_book import (
    annealing,
    bayes,
    bounds,
    budget,
    coding,
    divergences,
    evaluation,
    figures,
    gradient_estimators,
    images,
    likelihoods,
    monte_carlo,
    reparameterization,
)
from vae_book.annealing import Tempered
from vae_book.bounds import elbo_terms
from vae_book.coding import TOTAL, Stack
from vae_book.device import seeded, standard_normal
from vae_book.distributions import DiagonalGaussian, FullGaussian, Mixture, gaussian_log_prob
from vae_book.history import History
from vae_book.images import Images
from vae_book.linear_gaussian import LinearGaussian, linear_joint, ppca
from vae_book.linear_vae import linear_vae
from vae_book.models import CVAE, VAE, CompletionVAE, ConvVAE, LabelLinear
from vae_book.objectives import Objective, importance_weighted_loss
from vae_book.toy_images import draw_shapes
from vae_book.training import Settings, fit, stream

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
pictures = numbers((3, *IMAGE), (3, 2, 2, 2), pool=[0.0, 1.0])
real = st.sampled_from([*MODERATE, *LARGE, -9, 9, np.float32(0.5), torch.tensor(2), *JUNK])
counts = st.sampled_from([1, 2, 3, 2.0, np.int64(2), 0, -1, 1.5, math.nan, math.inf, "2", None])
NO_COUNTS = [0, -1, 1.5, math.nan, math.inf, -math.inf, "2", None, True, [2], torch.tensor([1, 2])]
few = st.sampled_from([*6 * [1, 2], 2.0, np.int64(2), torch.tensor(2), *NO_COUNTS])  # mostly good
places = st.sampled_from(
    [0, 2, -1, 3, slice(0, 2), [0, 1], [], [3], torch.tensor([2, 0]), [True, False, True],
     torch.tensor([True, False, True]), [True], 1.5, None, "0", torch.tensor([0.5]), [[0, 1]], {}]
)  # fmt: skip
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
    VAE(2, 3, IMAGE, likelihoods.Bernoulli()),
    CompletionVAE(2, 3, IMAGE, seen_shape=IMAGE),
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
halves = range(0, TOTAL + 1, TOTAL // 2)
tables = st.sampled_from([[halves], [halves, halves], [[0, 0, TOTAL]], [[0]], [[]], [], None, 3])
symbols = st.sampled_from(
    [[0], [1], [0, 1], [2], [-1], [0.5], ["a"], [None], [], None, 3, np.array([1]), [[0]]]
)
coded = coding.compress(MODELS[6], some(3).images)
files = st.sampled_from(
    [*3 * [coded], coded[:-1], coded[:9], coded[:4], b"", coded + b"0", b"VAE1", bytes(40), "VAE1",
     None, 3, coded[:20] + b"9" + coded[21:], bytearray(coded)]
)  # fmt: skip
later = st.sampled_from(
    [(), ((1, 0.1),), [(1, 0.1)], ((1,),), 3, None, (("1", 0.1),), ((1, "x"),), ((1, None),),
     ((1, math.nan),), ((1.5, 0.1),), ((0, 1.0),)]
)  # fmt: skip
sizes = st.sampled_from(
    [(1, 2, 2), [1, 4, 4], (1, 2), (0, 2, 2), (1, 2.0, 2), (1, "2", 2), (1, None, 2), 4, None,
     torch.tensor([1, 2, 2]), "122", (1, math.nan, 2), (-1, 2, 2)]
)  # fmt: skip
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


def informed(mu, log_var, y, n_samples):
    return budget.information(DiagonalGaussian(mu, log_var), y, n_samples=n_samples)


def the_elbo(model, data, steps):
    return FULL_RANK.elbo(model, data.images, steps)


def tempered(model, x, y):
    return Tempered(model, x, y)


def tempered_step(model, data, beta, step, n_leapfrog):
    target = Tempered(model, data.images, model.told(data))
    z = torch.zeros(2, len(data), 2)
    return annealing.transition(target, z, beta, step, n_leapfrog, None)


def tempered_search(model, data, betas, n_chains, n_leapfrog):
    target = Tempered(model, data.images, model.told(data))
    options = {"n_chains": n_chains, "n_leapfrog": n_leapfrog, "generator": None}
    return annealing.step_sizes(target, betas, **options)


def chains(model, data, betas, steps, n_chains, n_leapfrog, z):
    target = Tempered(model, data.images, model.told(data))
    return annealing.anneal(target, betas, steps, n_chains=n_chains, n_leapfrog=n_leapfrog, z=z)


def a_loss(model, data, epoch, bound):
    made = model(data.images, torch.zeros(2, len(data), 2), model.told(data))
    return Objective(bound=bound).loss(data.images, made, elbo_terms(data.images, made), epoch)


def dreg(model, data, eps, doubly):
    made = model(data.images, eps, model.told(data))
    return importance_weighted_loss(data.images, made, doubly=doubly)


def all_settings(batch_size, lr, seed, n_samples, resample, later_lr, eps, precision):
    return Settings(
        batch_size=batch_size, lr=lr, seed=seed, n_samples=n_samples, resample=resample,
        later_lr=later_lr, eps=eps, precision=precision,
    )  # fmt: skip


def step_size(later_lr, epoch):
    return Settings(later_lr=later_lr).lr_of(epoch)


def trained(model, data, held_out, epochs, batch_size, lr, n_samples, seed):
    sizes = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "n_samples": n_samples}
    return fit(copy.deepcopy(model), data, held_out=held_out, seed=seed, **sizes)


def streamed(model, x, labels, n_samples, epoch):
    return tuple(stream(model, [(x, labels)], Settings(n_samples=n_samples), epoch))


def seeded_by(seed, more):
    return torch.rand(2, generator=seeded(seed, more))


def of_labels(latent, classes, hidden):
    return CVAE(latent, hidden, (1, 2, 2), classes=classes)


def of_parts(latent, hidden, shape):
    return CompletionVAE(latent, hidden, (1, 2, 2), seen_shape=shape)


def of_sizes(shape, hidden, latent):
    return VAE(latent, hidden, shape)


def layer_of_labels(latent, classes, hidden):
    return LabelLinear(latent, classes, hidden)


def made_images(images, labels, told):
    return Images(images, labels, "made", "test", told=told)


def chosen(data, rows):
    return data[rows]


def other_images(data, images):
    return data.with_images(images)


def a_pass(model, x, eps, y):
    return model(x, eps, y)


def a_stack(state, words, seed):
    return Stack(state, words, seed)


def random_stack(seed):
    return Stack.random(seed)


def from_mixture(mu, log_var, shape):
    return Mixture(DiagonalGaussian(mu, log_var)).sample(shape)


def mixture(mu, log_var):
    return Mixture(DiagonalGaussian(mu, log_var))


def kl_of(mu, log_var, prior_mu, prior_log_var, z):
    return DiagonalGaussian(mu, log_var).kl(DiagonalGaussian(prior_mu, prior_log_var), z)


def checked_history(kl, reconstruction, seconds):
    columns = {"kl": kl, "reconstruction": reconstruction, "loss": kl, "held_out": []}
    return History.checked(**columns, seconds=seconds)


def a_linear_vae(W, b, sigma):
    return linear_vae(LinearGaussian(W, b, sigma))


def drawn(make, *names):
    """A figure as a function of its numbers; it has to be made, and is closed again."""

    def draw(**given):
        try:
            make(**given)
        finally:
            plt.close("all")

    draw.__name__ = make.__name__
    draw.parameters = names or tuple(inspect.signature(make).parameters)
    return draw


def rows_of_images(images, other):
    figures.image_rows({"one": images, "other": other})


def a_curve(abscissa, ordinate, height, x_limits, size):
    levels = {"level": height}
    lines = {"one": (abscissa, ordinate)}
    figures.curves(lines, "x", "y", points=lines, levels=levels, x_limits=x_limits, size=size)


def an_ellipse(mu, cov):
    figures.ellipses({"one": (mu, cov)}, "x", "y")


def of_classes(points, labels):
    figures.classes(points, labels, "x", "y")


FULL_RANK = budget.FullRank(torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2))
unit = st.sampled_from([0.0, 0.3, 0.5, 1.0, *JUNK, math.nan, math.inf, -1.0])

ARGUMENTS = {
    "lr": unit,
    "rate": real,
    "log_evidence": st.none() | numbers((3,), (2,)),
    "steps": few,
    "n_steps": few,
    "n_temperatures": few,
    "n_chains": few,
    "n_leapfrog": few,
    "epochs": few,
    "epoch": few,
    "batch_size": few,
    "classes": few,
    "columns": few,
    "side": few,
    "seen": few,
    "levels": few,
    "latent_bits": few,
    "betas": st.sampled_from([[0.0, 1.0], [0.0, 0.5, 1.0], [], [0.0], [0.0, "1"], None, 3, (0, 1)]),
    "step": numbers((3,), (2,)),
    "momentum": row,
    "slope": densities,
    "bound": st.sampled_from(["elbo", "iwae", "iwae-dreg", "other", None, 3]),
    "doubly": st.booleans(),
    "held_out": st.none() | data,
    "eps": numbers((2,), (3, 2), (4, 3, 2), (0, 3, 2)),
    "later_lr": later,
    "precision": st.sampled_from(["float32", "bfloat16", "float16", None, 32]),
    "resample": st.booleans(),
    "more": seeds,
    "shape": sizes,
    "image_shape": sizes,
    "labels": st.sampled_from([torch.arange(3), torch.arange(2), torch.tensor([0, 1, -1])])
    | vector,
    "told": st.none() | pictures,
    "rows": places,
    "rest": pictures,
    "state": st.sampled_from([2**32, 2**33 + 1, 2**64, 0, 2**40 + 0.5, "2", None, math.nan]),
    "words": st.sampled_from([(), [1, 2], [2**32], [-1], [0.5], ["a"], None, 3, np.array([1])]),
    "symbols": symbols,
    "tables": tables,
    "masses": numbers((2, 3), (1, 2)),
    "train": pictures,
    "kl": numbers((1,), (2,)).map(lambda x: x.tolist() if torch.is_tensor(x) else x),
    "reconstruction": st.sampled_from([[1.0], [1.0, 2.0], [], None, [math.nan], [None], 3]),
    "seconds": st.sampled_from([[1.0], [1.0, 2.0], [], None, [math.nan], [None], 3]),
    "abscissa": numbers((3,), (2,)),
    "ordinate": numbers((3,), (2,)),
    "height": real,
    "size": real,
    "x_limits": st.sampled_from([None, (0.0, 1.0), (0.0,), ("a", 1.0), 3, (math.nan, 1.0)]),
    "points": numbers((3, 2), (4, 2)),
    "places": numbers((3, 2), (4, 2)),
    "gap": real,
    "other": pictures,
    "mu": row,
    "log_var": row,
    "gradients": draws,
    "prior_mu": vector,
    "prior_log_var": vector,
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
    "logits": pictures,
    "params": pictures,
    "mean": pictures,
    "images": pictures,
    "log_joint": densities,
    "lower": real,
    "upper": real,
    "n": counts,
    "nats": real,
    "dimensions": counts,
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
    "refined": {"x": pictures, "n_samples": few},
    "refined_full": {"x": pictures, "n_samples": few},
    "nats_budget": {"n_samples": few},
    "correlation_gain": {"n_samples": few},
    "the_elbo": {"steps": numbers((2, 3, 2), (3, 2))},
    "both_sides": {"n": few, "y": labels | st.none()},
    "leapfrog": {"step": numbers((3, 1), (1,))},
    "chains": {"z": st.none() | numbers((3, 2), (2, 3, 2)), "steps": numbers((1, 3), (2, 3))},
    "tempered_step": {"beta": unit},
    "tempered.log_likelihood": {"x": pictures, "z": numbers((2, 3, 2), (3, 2))},
    "tempered.log_density": {"x": pictures, "z": numbers((2, 3, 2), (3, 2))},
    "tempered.slope": {"x": pictures, "z": numbers((2, 3, 2), (3, 2)), "beta": unit},
    "whole": {"seen": pictures},
    "streamed": {"x": pictures, "n_samples": few},
    "all_settings": {"eps": unit},
    "trained": {"n_samples": few},
    "file_facts": {"data": files},
    "decompress": {"data": files, "model": st.sampled_from(MODELS[:3] + 3 * MODELS[6:7])},
    "standard_normal": {"device": st.just("cpu")},
    "from_mixture": {"shape": sizes | st.just((3,))},
    "draw_shapes": {"n": few},
    "a_pass": {"x": pictures},
    "layer_of_labels": {"latent": few, "hidden": few},
    "kl_riemann": {"log_q": densities, "log_p": densities},
    "kl_quadrature": {"log_q": densities, "log_p": densities},
    "kl_monte_carlo": {"log_q": densities, "log_p": densities, "z": draws},
    "split_variance": {"draws": numbers((3, 2), (2, 2, 3))},
    "naive_log_evidence": {"log_likelihood": draws},
    "optimal_variance": {"x": pictures},
    "cross_entropy": {"x": pictures},
    "elbo": {"x": pictures},
    "log_weights": {"x": pictures},
    "the.log_prob": {"x": pictures},
    "the.check_support": {"x": pictures},
    "given_params.log_prob": {"x": pictures},
    "a_vae.encode": {"x": pictures},
    "a_vae.decode": {"z": numbers((3, 2), (4, 3, 2))},
}
MODULES = [
    annealing,
    bayes,
    bounds,
    budget,
    coding,
    divergences,
    evaluation,
    gradient_estimators,
    images,
    likelihoods,
    monte_carlo,
    reparameterization,
]
# They take what a model has made of images, and words, or they are called below.
NOT_CALLED = {"elbo_terms", "pass_log_weights", "protocol", "chunks"}
NOT_CALLED |= {"information", "transition", "step_sizes", "anneal"}
PLAIN = [
    function
    for module in MODULES
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
    method(a_vae, "prior", "y"),
    a_pass,
    of_sizes,
    of_labels,
    of_parts,
    layer_of_labels,
    a_linear_vae,
    method(mixture, "log_prob", "z"),
    from_mixture,
    kl_of,
    method(gaussian, "sample", "shape"),
    informed,
    the_elbo,
    tempered_step,
    tempered_search,
    chains,
    method(tempered, "log_likelihood", "z"),
    method(tempered, "log_density", "z", "beta"),
    method(tempered, "slope", "z", "beta"),
    a_loss,
    dreg,
    all_settings,
    step_size,
    trained,
    streamed,
    checked_history,
    seeded_by,
    standard_normal,
    made_images,
    chosen,
    other_images,
    draw_shapes,
    a_stack,
    random_stack,
    method(a_stack, "push", "symbols", "tables"),
    method(a_stack, "pop", "tables"),
    drawn(figures.image_grid),
    drawn(rows_of_images),
    drawn(a_curve),
    drawn(an_ellipse),
    drawn(of_classes),
    figures.apart,
]
ENTRIES = {function.__name__: function for function in [*PLAIN, *MADE]}


@pytest.fixture(autouse=True, scope="module")
def short_searches():
    """The search for step sizes repeats one transition: of many, a few meet what all do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annealing, "TRIES", 6)
        yield


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
    except (ValueError, TypeError, IndexError) as error:
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
        if isinstance(each, torch.Tensor) and not isinstance(result, nn.Module | Images):
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
            history = fit(trained, data, epochs=5, batch_size=16, lr=0.02, eps=1e-4)
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
