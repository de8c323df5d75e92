"""The training loop, checked against a loop that is written out with its formulas."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.overrides import TorchFunctionMode

from vae_book import training
from vae_book.checkpoints import read_checkpoint
from vae_book.data import load_images
from vae_book.evaluation import average_elbo
from vae_book.files import WriteError
from vae_book.history import History
from vae_book.images import Images, quadrants
from vae_book.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian, optimal_variance
from vae_book.models import CVAE, PACE, VAE, CompletionVAE, ConvVAE
from vae_book.objectives import Objective
from vae_book.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")
N = 10
SETTINGS = {"batch_size": 4, "lr": 3e-3, "seed": 5}  # steps of 4, 4 and 2 images


def gray(n=N, *, seed=0, dtype=torch.float32):
    """Random images; the first pixel of each is its number, divided by n."""
    images = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    images[:, 0, 0, 0] = torch.arange(n) / n
    return Images(images, labels_of(torch.arange(n)), "random", "train")


def labels_of(numbers):
    """The label of each image of `gray`, in no order."""
    return (7 * numbers + 3) % 10


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    return VAE(**{"latent": 3, "hidden": 6, **options})


def conditional(seed=0, **options):
    torch.manual_seed(seed)
    return CVAE(**{"latent": 3, "hidden": 6, **options})


def convolutional(seed=0, **options):
    torch.manual_seed(seed)
    return ConvVAE(**{"latent": 3, "hidden": 6, **options})


def completing(seed=0, **options):
    torch.manual_seed(seed)
    return CompletionVAE(**{"latent": 3, "hidden": 6, **options})


def data_of(make, n=N, **options):
    """The images of `gray`, cut into parts for a model that is shown one of them."""
    return quadrants(gray(n, **options)) if make is completing else gray(n, **options)


class Spy(VAE):
    """A VAE that remembers what went in and out."""

    def __init__(self, **options):
        torch.manual_seed(0)
        super().__init__(latent=3, hidden=6, **options)
        self.calls = []

    def forward(self, x, eps, y=None):
        out = super().forward(x, eps, y)
        kept = (x, eps, out.p_x.params, *out.q_z)
        self.calls.append([t.detach().clone() for t in kept])
        return out


class ConditionalSpy(CVAE):
    """A CVAE with priors of its own that remembers images, noise and labels."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(latent=3, hidden=6, learned_prior=True)
        self.calls = []

    def forward(self, x, eps, y):
        self.calls.append([t.detach().clone() for t in (x, eps, y)])
        return super().forward(x, eps, y)


def fails_at(call, model):
    """The model, which stops working at one of its calls, counted from 0."""
    calls = itertools.count()

    def stop(*_):
        if next(calls) == call:
            raise RuntimeError("the power went out")

    model.register_forward_pre_hook(stop)
    return model


def who(x):
    """The numbers of the images of a batch that `gray` made."""
    return (x[:, 0, 0, 0] * N).round().long().tolist()


def epochs_of(spy, steps=3):
    calls = spy.calls
    return [calls[start : start + steps] for start in range(0, len(calls), steps)]


def cross_entropy(x, logits):
    on, off = 1 / (1 + torch.exp(-logits)), 1 / (1 + torch.exp(logits))
    return -(x * on.log() + (1 - x) * off.log()).sum((-3, -2, -1))


def over_samples(values):
    return values if values.ndim == 1 else values.mean(0)


def kl(mu, log_var):
    return (mu**2 + log_var.exp() - 1 - log_var).sum(-1) / 2


def bound_by_hand(w, x, eps, y=None):
    """The negative ELBO, a number for each image, from weights w; y chooses columns and priors."""
    reconstruction, units, _ = terms_by_hand(w, x, eps, y)
    return reconstruction + units.sum(-1)


def terms_by_hand(w, x, eps, y=None):
    """Reconstruction, the divergence of each unit, and the squares of the naive penalty."""

    def layer(part, value, y=None):
        weight, inputs = w[f"{part}.weight"], value.shape[-1]
        label = 0 if y is None else weight[:, inputs + y].T
        return value @ weight[:, :inputs].T + label + w[f"{part}.bias"]

    h = layer("encoder.1" if y is None else "encoder.0", x.flatten(1), y).clamp(min=0)
    mu, log_var = layer("to_mu", h), layer("to_log_var", h)
    z = mu + log_var.exp().sqrt() * eps
    if y is None:
        h = layer("decoder.0", z).clamp(min=0)
    else:  # a layer for each label
        own = w["decoder.0.weight"].unflatten(1, (-1, z.shape[-1] + 1))[:, y]
        h = (torch.einsum("hnd,...nd->...nh", own[..., :-1], z) + own[..., -1].T).clamp(min=0)
    logits = layer("decoder.2", h).view(-1, *x.shape)
    units = kl(mu.unsqueeze(-1), log_var.unsqueeze(-1))
    if y is not None:
        prior_mu, prior_log_var = (PACE * w["prior_network.weight"]).T[y].chunk(2, dim=1)
        prior = Normal(prior_mu, prior_log_var.exp().sqrt())
        units = kl_divergence(Normal(mu, log_var.exp().sqrt()), prior)
    return over_samples(cross_entropy(x, logits)), units, (mu**2 + log_var**2).sum(-1)


def assert_same_state(a, b):
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def timeless(history):
    return {name: value for name, value in asdict(history).items() if name != "seconds"}


# One step ----------------------------------------------------------------------------------------


@pytest.mark.equation("eq-loss", route="autograd on formulas, Adam by hand", abs=1e-13)
@pytest.mark.parametrize("kind", [Spy, ConditionalSpy])
@pytest.mark.parametrize("options", [{}, {"n_samples": 1}, {"n_samples": 3}])
def test_steps_are_adam_on_the_mean_negative_elbo(agree, options, kind):
    """Two epochs agree with autograd on the written-out loss and a written-out Adam.

    In float64, where even the factor by which a loss is scaled shows: Adam divides it out but for
    its epsilon of 1e-8.
    """
    spy = kind().double()
    weights = {k: v.clone().requires_grad_() for k, v in spy.state_dict().items()}
    fit(spy, gray(dtype=torch.float64), epochs=2, **SETTINGS, **options)

    first = {k: torch.zeros_like(v) for k, v in weights.items()}
    second = {k: torch.zeros_like(v) for k, v in weights.items()}
    assert [len(x) for x, *_ in spy.calls] == [4, 4, 2] * 2
    for step, (x, eps, *_) in enumerate(spy.calls, start=1):
        assert eps.shape == (*[3] * (options.get("n_samples") == 3), len(x), 3)
        w, labels = weights, [labels_of(torch.tensor(who(x)))] if kind is ConditionalSpy else []
        loss = bound_by_hand(w, x, eps, *labels).mean()
        gradients = torch.autograd.grad(loss, list(w.values()))
        with torch.no_grad():
            for name, g in zip(w, gradients, strict=True):
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g**2
                m, v = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
                w[name] -= SETTINGS["lr"] * m / (v.sqrt() + 1e-8)
    for name, trained in spy.state_dict().items():
        agree(trained, weights[name])


@pytest.mark.equation("eq-loss", route="formulas in float64 for each image", rel=1e-6)
@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize(
    "objective",
    [
        None,
        Objective(beta=0.0),
        Objective(beta=3.0, warm_up=4),
        Objective(free_nats=1.0),
        Objective(penalty="naive"),
    ],
    ids=str,
)
def test_history_is_the_mean_over_images_of_what_each_step_saw(agree, n_samples, objective):
    """Whatever was minimized: reconstruction and KL stay what they are."""
    spy = Spy()
    history = fit(spy, gray(), epochs=2, n_samples=n_samples, objective=objective, **SETTINGS)
    for epoch, calls in enumerate(epochs_of(spy)):
        wide = [[t.double() for t in call] for call in calls]
        reconstruction = [over_samples(cross_entropy(x, logits)) for x, _, logits, *_ in wide]
        reconstruction = torch.cat(reconstruction)
        divergence = torch.cat([kl(mu, log_var) for *_, mu, log_var in wide])
        assert len(reconstruction) == N
        agree(history.reconstruction[epoch], reconstruction.mean())
        agree(history.kl[epoch], divergence.mean())
    terms = zip(history.reconstruction, history.kl, strict=True)
    assert history.negative_elbo == [a + b for a, b in terms]
    assert history.epochs == 2
    assert len(history.seconds) == 2
    assert min(history.seconds) > 0
    assert history.held_out == []
    assert history.device.startswith("CPU")


@pytest.mark.parametrize("min_sigma", [0.0, 0.1])
def test_the_shared_variance_is_trained_to_the_mean_squared_error(min_sigma):
    """With a decoder that stays as it is, and gives one image for every z."""
    likelihood = Gaussian(0.6, "shared", min_sigma=min_sigma)
    spy, data = Spy(likelihood=likelihood), gray()
    assert any(parameter is likelihood.shared for parameter in spy.parameters())
    spy.requires_grad_(False).decoder[0].weight.zero_()
    likelihood.shared.requires_grad_()
    fit(spy, data, epochs=150, lr=0.05)
    mean = likelihood.mean(spy.decode(torch.zeros(N, 3)).params)
    variance = likelihood.log_var(mean).exp()
    assert variance.item() == pytest.approx(optimal_variance(data.images, mean).item(), rel=1e-4)


@pytest.mark.parametrize(
    "likelihood",
    [ContinuousBernoulli(), Gaussian(0.5), Gaussian(0.5, "shared"), Gaussian(0.5, "pixel")],
    ids=str,
)
def test_learning_with_a_density_of_gray_levels_moves_every_parameter(likelihood):
    model = tiny(likelihood=likelihood)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    history = fit(model, gray(), epochs=30, n_samples=2, **SETTINGS)
    assert history.loss[-1] < history.loss[0]
    assert not [k for k, weight in model.named_parameters() if torch.equal(weight, before[k])]


# Other objectives ---------------------------------------------------------------------------------


OBJECTIVES = [
    (Objective(beta=0.0), [0, 0, 0]),
    (Objective(beta=4.0), [4, 4, 4]),
    (Objective(warm_up=2), [0, 0.5, 1]),
    (Objective(free_nats=0.055), [1, 1, 1]),
    (Objective(beta=6.0, warm_up=3, free_nats=0.055), [0, 2, 4]),
    (Objective(beta=0.5, penalty="naive"), [0.5, 0.5, 0.5]),
    (Objective(warm_up=2, penalty="naive"), [0, 0.5, 1]),
]


@pytest.mark.equation("eq-objective", route="a written-out loss and torch's Adam", abs=1e-12)
@pytest.mark.parametrize(
    ("objective", "weights", "kind"),
    [
        (objective, weights, kind)
        for objective, weights in OBJECTIVES
        for kind in (Spy, ConditionalSpy)
        if kind is Spy or objective.penalty == "kl"  # for a learned prior the other is refused
    ],
    ids=str,
)
def test_steps_are_adam_on_the_objective(agree, objective, weights, kind):
    """Three epochs agree with Adam on a loss that is written out."""
    spy = kind().double()
    w = {k: v.clone().requires_grad_() for k, v in spy.state_dict().items()}
    adam, free = torch.optim.Adam(w.values(), lr=SETTINGS["lr"]), []
    fit(spy, gray(dtype=torch.float64), epochs=3, objective=objective, **SETTINGS)
    for calls, weight in zip(epochs_of(spy), weights, strict=True):
        for x, eps, *_ in calls:
            labels = [labels_of(torch.tensor(who(x)))] if kind is ConditionalSpy else []
            reconstruction, units, naive = terms_by_hand(w, x, eps, *labels)
            free.append(units < objective.free_nats)
            penalty = torch.where(free[-1], objective.free_nats, units).sum(-1)
            penalty = naive if objective.penalty == "naive" else penalty
            adam.zero_grad()
            (reconstruction + weight * penalty).mean().backward()
            adam.step()
    for name, trained in spy.state_dict().items():
        agree(trained, w[name])
    if objective.free_nats:
        assert 0.1 < torch.cat(free).double().mean() < 0.9


@pytest.mark.parametrize("make", [tiny, conditional, convolutional, completing])
def test_the_default_objective_is_the_bound_to_the_bit(make):
    plain, same, other = make(), make(), make()
    options = {"epochs": 2, "held_out": data_of(make, 6), **SETTINGS}
    first = fit(plain, data_of(make), **options)
    second = fit(same, data_of(make), objective=Objective(), **options)
    assert_same_state(plain, same)
    assert timeless(first) == timeless(second)
    fit(other, data_of(make), objective=Objective(beta=2.0), **options)
    assert not torch.equal(plain.to_mu.weight, other.to_mu.weight)


@pytest.mark.parametrize(
    "objective",
    [
        Objective(beta=0.0),
        Objective(beta=9.0),
        Objective(penalty="naive"),
        Objective(free_nats=2.0),
    ],
    ids=str,
)
def test_held_out_images_are_measured_by_the_bound_whatever_is_minimized(objective):
    model, held_out = tiny(), gray(6, seed=1)
    history = fit(model, gray(), epochs=2, objective=objective, held_out=held_out, **SETTINGS)
    assert (
        history.held_out[-1] == average_elbo(model, held_out, seed=SETTINGS["seed"]).negative_elbo
    )


def test_the_divergence_falls_as_it_costs_more_and_grows_where_it_is_free():
    found = []
    for objective in [Objective(beta=beta) for beta in (0.0, 0.3, 3.0)] + [
        Objective(free_nats=0.4)
    ]:
        fit(model := tiny(), data := gray(), epochs=60, lr=0.01, objective=objective)
        found.append(average_elbo(model, data).kl)
    without, light, heavy, free = found
    assert without > 3 * light > 9 * heavy
    assert free > 0.8 * 3 * 0.4 > 2 * heavy


def test_a_warm_up_goes_on_where_the_run_stopped(tmp_path):
    options = {"objective": Objective(warm_up=3, free_nats=0.005), **SETTINGS}
    whole, stopped, resumed = tiny(), tiny(), tiny(seed=1)
    history = fit(whole, gray(), epochs=4, **options)
    fit(stopped, gray(), epochs=2, checkpoint=tmp_path / "run.pt", **options)
    options |= {"checkpoint": tmp_path / "run.pt", "resume": True}
    continued = fit(resumed, gray(), epochs=4, **options)
    assert_same_state(whole, resumed)
    assert timeless(history) == timeless(continued)


def test_no_objective_is_the_same_run_as_the_default_one(tmp_path):
    path = tmp_path / "run.pt"
    fit(tiny(), gray(), epochs=1, checkpoint=path, **SETTINGS)
    options = {"checkpoint": path, "resume": True, "objective": Objective(), **SETTINGS}
    assert fit(tiny(), gray(), epochs=2, **options).epochs == 2
    wanted = {"beta": 1.0, "warm_up": 0, "free_nats": 0.0, "penalty": "kl", "bound": "elbo"}
    assert read_checkpoint(path).settings["objective"] == wanted


# Convolutions and parts ---------------------------------------------------------------------------


def test_a_convolutional_network_learns(bundled):
    train, test = (data[::15] for data in bundled)
    model = convolutional(latent=4, hidden=16)
    untrained = average_elbo(model, test).negative_elbo
    history = fit(model, train, epochs=3, batch_size=20, lr=2e-3, held_out=test)
    assert history.held_out == sorted(history.held_out, reverse=True)
    assert history.held_out[-1] < 0.5 * untrained


@pytest.mark.parametrize("make", [convolutional, completing])
def test_learning_moves_every_weight_of_the_network(make):
    model = make()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    history = fit(model, data_of(make), epochs=10, **SETTINGS)
    assert history.loss[-1] < history.loss[0]
    assert not [k for k, weight in model.named_parameters() if torch.equal(weight, before[k])]


@pytest.mark.parametrize("resample", [False, True])
def test_each_rest_comes_with_the_part_that_is_seen_of_it(resample):
    """What is seen holds the image's number, and so does the rest, in its first black pixels."""
    images = torch.zeros(N, 1, 28, 28)
    images[torch.arange(N), 0, 0, torch.arange(N)] = 1  # top left, to be found
    images[:, 0, 27, 0] = torch.arange(N) / N  # bottom left, seen
    data, seen = quadrants(Images(images, labels_of(torch.arange(N)), "dots", "train")), []
    model = completing()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    fit(model, data, epochs=2, resample=resample, **SETTINGS)
    assert [len(x) for x, *_ in seen] == [4, 4, 2] * 2
    for x, _, y in seen:
        numbers = x.flatten(1).argmax(1)
        assert torch.equal(y[:, 0, 13, 0], numbers / N)  # gray also where x is made binary


def test_a_model_that_completes_makes_what_fits_to_what_it_sees():
    """Where the lower left is bright the upper left is, else the lower right."""
    bright = torch.arange(60) % 2 == 0
    images = 0.1 * torch.rand(60, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images[bright, :, :, :14] += 0.8
    images[~bright, :, 14:, 14:] += 0.8
    data = quadrants(Images(images, bright.long(), "corners", "train"))
    model = completing(hidden=16)
    history = fit(model, data, epochs=25, batch_size=20, lr=0.02, held_out=data)
    made = model.sample(60, torch.Generator().manual_seed(1), y=data.told).mean((2, 3))
    expected = torch.where(bright[:, None], torch.tensor([1, 0, 0]), torch.tensor([0, 0, 1]))
    assert torch.equal((made > 0.5).long(), expected)
    # Parts that are not theirs make images worse, by much.
    wrong = replace(data, told=data.told.roll(1, 0))
    assert average_elbo(model, wrong).negative_elbo > 1.3 * history.held_out[-1]


# The order of the images and the noise ------------------------------------------------------------


def test_each_epoch_uses_each_image_once_in_an_order_of_its_own():
    spy = Spy()
    fit(spy, gray(), epochs=3, **SETTINGS)
    orders = [[i for x, *_ in calls for i in who(x)] for calls in epochs_of(spy)]
    assert [sorted(order) for order in orders] == [list(range(N))] * 3
    assert len({tuple(order) for order in [*orders, range(N)]}) == 4


def test_a_batch_larger_than_the_data_is_one_step():
    spy = Spy()
    fit(spy, gray(), epochs=1, batch_size=1000)
    assert [sorted(who(x)) for x, *_ in spy.calls] == [list(range(N))]


@pytest.mark.parametrize("n_samples", [1, 2])
def test_noise_is_standard_normal_and_never_used_twice(n_samples):
    spy = Spy()
    fit(spy, gray(), epochs=40, n_samples=n_samples, **SETTINGS)
    eps = torch.cat([eps for _, eps, *_ in spy.calls], dim=-2)
    assert eps.shape == (*[2] * (n_samples == 2), 40 * N, 3)
    assert eps.unique().numel() > 0.99 * eps.numel()  # float32 holds a few equal pairs
    assert abs(eps.mean()) < 4 / eps.numel() ** 0.5
    assert abs(eps.var() - 1) < 4 * (2 / eps.numel()) ** 0.5


@pytest.mark.parametrize("make", [tiny, conditional, convolutional, completing])
def test_a_seed_fixes_the_run_to_the_bit_and_another_changes_it(make):
    def trained(seed):
        torch.rand(seed + 1)  # torch's global generator has no say
        model = make()
        settings = {**SETTINGS, "seed": seed}
        history = fit(model, data_of(make), epochs=2, held_out=data_of(make, 6), **settings)
        return model, history

    (model, history), (again, same), (other, _) = trained(1), trained(1), trained(2)
    assert_same_state(model, again)
    assert timeless(history) == timeless(same)
    assert not torch.equal(model.to_mu.weight, other.to_mu.weight)


def test_seed_governs_both_order_and_noise():
    def first_epoch(seed):
        spy = Spy()
        fit(spy, gray(), epochs=1, **{**SETTINGS, "seed": seed})
        eps = torch.cat([eps for _, eps, *_ in spy.calls])
        return [i for x, *_ in spy.calls for i in who(x)], eps

    (order, eps), (other_order, other_eps) = first_epoch(0), first_epoch(1)
    assert order != other_order
    assert not (eps == other_eps).any()


def test_in_bfloat16_products_are_short_and_all_else_is_not():
    """Against the same run in single precision: near it, and not the same."""
    data, found = gray(), {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model, types = VAE(2, 16), set()
        model.decoder[0].register_forward_hook(lambda *call, types=types: types.add(call[2].dtype))
        history = fit(model, data, epochs=20, precision=precision, **SETTINGS)
        found[precision] = torch.tensor(history.loss)
        assert types == {getattr(torch, precision)}
        assert {each.dtype for each in model.parameters()} == {torch.float32}
    near, exact = found["bfloat16"], found["float32"]
    assert not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, rtol=5e-3, atol=0)
    with pytest.raises(ValueError, match="precision: expected 'float32' or 'bfloat16', got 'half'"):
        fit(VAE(2, 16), data, epochs=1, precision="half")


@pytest.mark.parametrize(("lacks", "times"), [(True, 1), (False, 0)])
def test_where_bfloat16_is_not_faster_a_warning_says_so(monkeypatch, recwarn, lacks, times):
    monkeypatch.setattr(training, "lacks_bfloat16", lambda device: lacks)
    fit(VAE(2, 16), gray(), epochs=1, precision="bfloat16", **SETTINGS)
    fit(VAE(2, 16), gray(), epochs=1, **SETTINGS)
    said = [str(each.message) for each in recwarn]
    assert len([each for each in said if each.startswith("precision: this processor")]) == times
    assert len(said) == times


def test_resample_draws_each_pixel_afresh_in_each_step():
    data = gray()
    data.images[:, :, 14:] = 0.3  # never 1 if gray levels were cut at a half
    spy = Spy()
    spy.likelihood = Bernoulli()
    fit(spy, data, epochs=40, resample=True, **SETTINGS)
    x = torch.stack([torch.cat([x for x, *_ in calls]) for calls in epochs_of(spy)])
    assert set(x.unique().tolist()) == {0, 1}
    flat = x[:, :, :, 14:]
    assert abs(flat.mean() - 0.3) < 4 * (0.3 * 0.7 / flat.numel()) ** 0.5
    first, second = flat[0], flat[1]
    assert abs((first != second).float().mean() - 2 * 0.3 * 0.7) < 0.05
    # Over the epochs the draws average to the gray level, in whatever order the images came.
    expected = data.images[:, :, :14].mean((0, 1))
    error = 0.5 / (40 * N) ** 0.5
    assert ((x[:, :, :, :14].mean((0, 1, 2)) - expected).abs() < 5.5 * error).all()


# Labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resample", [False, True])
def test_each_image_comes_with_its_own_label(resample):
    spy, data = ConditionalSpy(), gray()
    if resample:  # which image it is has to survive: black pixels but for one
        data.images.zero_().flatten(1)[torch.arange(N), torch.arange(N)] = 1
    fit(spy, data, epochs=3, resample=resample, **SETTINGS)
    assert [len(x) for x, *_ in spy.calls] == [4, 4, 2] * 3
    for x, _, y in spy.calls:
        numbers = x.flatten(1).argmax(1) if resample else torch.tensor(who(x))
        assert torch.equal(y, labels_of(numbers))
    order = [y for _, _, labels in spy.calls for y in labels.tolist()]
    assert order[:N] != order[N : 2 * N] != labels_of(torch.arange(N)).tolist()


def test_a_model_without_labels_is_trained_as_if_there_were_none():
    plain, other = tiny(), tiny()
    fit(plain, gray(), epochs=1, **SETTINGS)
    fit(other, replace(gray(), labels=torch.full((N,), 99)), epochs=1, **SETTINGS)
    assert_same_state(plain, other)


def test_the_learned_prior_becomes_the_moments_of_the_posteriors_of_its_label():
    """With all else as it is, where the sum of the divergences is smallest."""
    model, data = conditional(classes=3, learned_prior=True), gray()
    data = replace(data, labels=torch.arange(N) % 2)  # no image of the third label
    model.to_mu.weight.data *= 5
    model.requires_grad_(False)
    model.prior_network.requires_grad_()
    fit(model, data, epochs=200, batch_size=N, lr=0.05)
    mu, log_var = model.encode(data.images, data.labels)
    prior_mu, prior_log_var = (PACE * model.prior_network.weight.detach()).T.chunk(2, dim=1)
    for label in (0, 1):
        own = data.labels == label
        mean = mu[own].mean(0)
        variance = (log_var[own].exp() + (mu[own] - mean) ** 2).mean(0)
        torch.testing.assert_close(prior_mu[label], mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(prior_log_var[label].exp(), variance, rtol=1e-3, atol=1e-3)
    assert not prior_mu[2].any()
    assert not prior_log_var[2].any()
    assert (prior_mu[0] - prior_mu[1]).abs().max() > 0.05


@pytest.mark.parametrize("learned_prior", [False, True])
def test_a_model_trained_on_labels_makes_images_of_the_label_that_it_is_given(learned_prior):
    """Three classes, each with one bright third; pixels of it and of the rest tell them apart."""
    labels = torch.arange(60) % 3
    images = 0.1 * torch.rand(60, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for label in range(3):
        images[labels == label, :, 9 * label : 9 * label + 9] += 0.85
    model = conditional(hidden=16, classes=3, learned_prior=learned_prior, own_weights=False)
    data = Images(images, labels, "thirds", "train")
    history = fit(model, data, epochs=100, batch_size=20, lr=0.02, held_out=data)
    asked = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    made = model.sample(7, torch.Generator().manual_seed(1), y=asked)
    for image, label in zip(made, asked.tolist(), strict=True):
        thirds = image[0, :27].reshape(3, 9 * 28).mean(1)
        assert thirds[label] > 0.7
        assert thirds.sum() - thirds[label] < 0.4
    # Labels that are not theirs make images worse, by much.
    wrong = replace(data, labels=(labels + 1) % 3)
    assert average_elbo(model, wrong).negative_elbo > 1.5 * history.held_out[-1]
    assert history.held_out[-1] == average_elbo(model, data).negative_elbo


def test_resume_refuses_another_model_of_labels(tmp_path):
    path = tmp_path / "run.pt"
    fit(conditional(), gray(), epochs=1, checkpoint=path, **SETTINGS)
    for model, message in [
        (conditional(classes=11), r"\(classes was 10 and is now 11\)"),
        (conditional(learned_prior=False), r"\(learned_prior was True and is now False\)"),
        (conditional(own_weights=False), r"\(own_weights was True and is now False\)"),
        (tiny(), "kind was 'CVAE' and is now 'VAE'"),
    ]:
        with pytest.raises(ValueError, match=f"^resume: .*{message}"):
            fit(model, gray(), epochs=2, checkpoint=path, resume=True, **SETTINGS)


@pytest.mark.parametrize("learned_prior", [False, True])
@pytest.mark.parametrize("name", ["data", "held_out"])
def test_labels_that_do_not_fit_are_told_before_anything_is_trained(name, learned_prior):
    model = conditional(learned_prior=learned_prior)
    before = [p.clone() for p in model.parameters()]
    wrong = {"data": gray(), name: replace(gray(), labels=gray().labels + 10)}
    with pytest.raises(ValueError, match=f"^{name}: y: expected labels from 0 to 9, got 1"):
        fit(model, epochs=1, **wrong, **SETTINGS)
    assert all(map(torch.equal, before, model.parameters()))


# What is reported and when ------------------------------------------------------------------------


def test_on_epoch_and_held_out_come_after_the_updates_of_the_epoch():
    model, held_out, seen = tiny(), gray(6, seed=1), []

    def on_epoch(history):
        now = average_elbo(model, held_out, seed=SETTINGS["seed"]).negative_elbo
        seen.append((history.epochs, history.held_out[-1], now))

    history = fit(model, gray(), epochs=3, held_out=held_out, on_epoch=on_epoch, **SETTINGS)
    assert [epoch for epoch, *_ in seen] == [1, 2, 3]
    assert [measured for _, measured, _ in seen] == [now for *_, now in seen] == history.held_out
    assert len(set(history.held_out)) == 3


def test_learning_beats_the_mean_image(bundled):
    """Below an untrained model, and below each pixel's training mean as an independent coin."""
    train, test = bundled
    model = tiny(latent=10, hidden=100)
    untrained = average_elbo(model, test).negative_elbo
    history = fit(model, train, epochs=6, batch_size=100, held_out=test)

    p = ((train.images.double().sum(0) + 0.5) / (len(train) + 1)).expand(len(test), 1, 28, 28)
    baseline = cross_entropy(test.images.double(), p.logit()).mean().item()
    assert history.held_out[-1] < 0.9 * baseline < 0.5 * untrained
    assert history.held_out == sorted(history.held_out, reverse=True)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAE_BOOK_DATA", str(tmp_path_factory.mktemp("bundled")))
        return [load_images(split, "bundled", "cpu") for split in ("train", "test")]


# Stopping and going on ----------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["after epoch 2", "within epoch 3", "in the callback of epoch 3"])
@pytest.mark.parametrize("prior", [None, {"learned_prior": False}, {"learned_prior": True}])
def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path, stop, prior):
    def make(seed=0):
        return tiny(seed) if prior is None else conditional(seed, **prior)

    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    # Calls of the model: one to measure held_out before the start and one after each epoch.
    options = {"held_out": gray(6, seed=1), **SETTINGS}
    uninterrupted = make()
    history = fit(uninterrupted, gray(), epochs=4, checkpoint=whole, **options)

    def fails(history):
        if history.epochs == 3:
            raise RuntimeError("the disk is full")

    if stop == "after epoch 2":
        fit(make(), gray(), epochs=2, checkpoint=parts, **options)
    elif stop == "within epoch 3":
        with pytest.raises(RuntimeError, match="power"):
            fit(fails_at(1 + 2 * 4 + 1, make()), gray(), epochs=4, checkpoint=parts, **options)
    else:
        with pytest.raises(RuntimeError, match="disk"):
            fit(make(), gray(), epochs=4, checkpoint=parts, on_epoch=fails, **options)
    assert len(read_checkpoint(parts).history["kl"]) == 2

    resumed, shown = make(seed=1), []
    continued = fit(
        resumed,
        gray(),
        epochs=4,
        checkpoint=parts,
        resume=True,
        on_epoch=lambda history: shown.append(history.epochs),
        **options,
    )
    assert shown == [3, 4]
    assert_same_state(uninterrupted, resumed)
    assert timeless(history) == timeless(continued)
    a, b = read_checkpoint(whole), read_checkpoint(parts)
    torch.testing.assert_close(a.optimizer, b.optimizer, rtol=0, atol=0)
    assert a.settings == b.settings


@pytest.mark.parametrize("make", [tiny, convolutional])
def test_under_autocast_a_resumed_run_ends_as_one_that_never_stopped(tmp_path, make):
    """Autocast keeps casts of weights, and a checkpoint is put over the weights themselves."""
    options = {"held_out": gray(6, seed=1), **SETTINGS}
    whole, resumed = make(), make(seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        fit(whole, gray(), epochs=3, **options)
        fit(make(), gray(), epochs=1, checkpoint=tmp_path / "run.pt", **options)
        options |= {"checkpoint": tmp_path / "run.pt", "resume": True}
        fit(resumed, gray(), epochs=3, **options)
    assert_same_state(whole, resumed)


def test_resume_starts_where_there_is_no_checkpoint_and_stops_where_all_is_done(tmp_path):
    path = tmp_path / "run.pt"
    plain, resumed, loaded = tiny(), tiny(), tiny(seed=1)
    fit(plain, gray(), epochs=2, **SETTINGS)
    fit(resumed, gray(), epochs=2, checkpoint=path, resume=True, **SETTINGS)
    assert_same_state(plain, resumed)
    before = path.read_bytes()
    history = fit(loaded, gray(), epochs=1, checkpoint=path, resume=True, **SETTINGS)
    assert history.epochs == 2
    assert_same_state(plain, loaded)
    assert path.read_bytes() == before


def test_a_checkpoint_is_ignored_unless_resume_asks_for_it(tmp_path):
    path = tmp_path / "run.pt"
    first, second = tiny(), tiny()
    fit(first, gray(), epochs=1, checkpoint=path, **SETTINGS)
    history = fit(second, gray(), epochs=1, checkpoint=path, **SETTINGS)
    assert history.epochs == 1
    assert_same_state(first, second)


def flipped(data, part):
    """The same data but for one bit."""
    content = getattr(data, part).clone()
    content.view(torch.uint8).view(-1)[0] ^= 1
    return replace(data, **{part: content})


def swapped(data):
    """The same images in another order."""
    return replace(data, images=data.images[[1, 0, *range(2, len(data))]])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 5}, "batch_size was 4 and is now 5"),
        ({"lr": 1e-2}, "lr was 0.003 and is now 0.01"),
        ({"seed": 6}, "seed was 5 and is now 6"),
        ({"n_samples": 2}, "n_samples was 1 and is now 2"),
        ({"resample": True}, "resample was False and is now True"),
        (
            {"objective": Objective(beta=2.0)},
            "objective was {'beta': 1.0, 'warm_up': 0, 'free_nats': 0.0, 'penalty': 'kl', 'bound': "
            "'elbo'} and is now {'beta': 2.0, 'warm_up': 0, 'free_nats': 0.0, 'penalty': 'kl', "
            "'bound': 'elbo'}",
        ),
        ({"objective": Objective(warm_up=2)}, "'warm_up': 2"),
        ({"objective": Objective(free_nats=0.1)}, "'free_nats': 0.1"),
        ({"objective": Objective(penalty="naive")}, "'penalty': 'naive'"),
        ({"held_out": gray(5)}, "held_out was None and is now '5 images of SHA-256 "),
        ({"data": gray(11)}, " and is now '11 images of SHA-256 "),
        ({"data": gray(seed=8)}, "images was '10 images of SHA-256 "),
        ({"data": flipped(gray(), "images")}, "images was '10 images of SHA-256 "),
        ({"data": flipped(gray(), "labels")}, "images was '10 images of SHA-256 "),
        ({"data": swapped(gray())}, "images was '10 images of SHA-256 "),
        ({"data": replace(gray(), images=gray().images.double())}, "images was '10 images of "),
        ({"data": replace(gray(), told=torch.zeros(10, 1))}, "images was '10 images of SHA-256 "),
        ({"model": tiny(latent=2)}, "latent was 3 and is now 2"),
        ({"model": tiny(hidden=7)}, "hidden was 6 and is now 7"),
        (
            {"model": tiny(likelihood=ContinuousBernoulli())},
            "and is now {'kind': 'ContinuousBernoulli'}",
        ),
        ({"model": tiny(likelihood=Gaussian(0.5))}, "and is now {'kind': 'Gaussian', 'sigma': 0.5"),
        ({"model": tiny().double()}, "weights was 'torch.float32' and is now 'torch.float64'"),
    ],
)
def test_resume_refuses_another_run(tmp_path, changed, message):
    path = tmp_path / "run.pt"
    fit(tiny(), gray(), epochs=1, checkpoint=path, **SETTINGS)
    asked = {"model": tiny(), "data": gray(), "checkpoint": path, **SETTINGS, **changed}
    before = [p.clone() for p in asked["model"].parameters()]
    with pytest.raises(ValueError, match="resume: ") as error:
        fit(epochs=2, resume=True, **asked)
    assert message in str(error.value)
    assert str(error.value).count(" was ") == 1
    assert all(map(torch.equal, before, asked["model"].parameters()))


def test_resume_goes_on_with_images_that_were_moved(tmp_path):
    path = tmp_path / "run.pt"
    fit(tiny(), gray(), epochs=1, checkpoint=path, **SETTINGS)
    moved = replace(gray(), source="other")
    history = fit(tiny(), moved, epochs=2, checkpoint=path, resume=True, **SETTINGS)
    assert history.epochs == 2


def test_a_number_of_numpy_does_not_spoil_the_checkpoint(tmp_path):
    objective = Objective(beta=np.float64(2.0), free_nats=np.float64(0.1))
    fit(
        tiny(),
        gray(),
        epochs=1,
        lr=np.float64(3e-3),
        objective=objective,
        checkpoint=tmp_path / "run.pt",
    )
    settings = read_checkpoint(tmp_path / "run.pt").settings
    assert settings["lr"] == 3e-3
    assert settings["objective"] == asdict(Objective(beta=2.0, free_nats=0.1))


# Errors -------------------------------------------------------------------------------------------


MEMORY = [  # what torch says on different systems
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 16000000000000 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:115] data. DefaultCPUAllocator: not enough memory: you tried "
    "to allocate 16000000000000 bytes.",
    "Storage size calculation overflowed with sizes=[1000000000000000000, 784]",
]


def gray_elsewhere():
    data = gray()
    return replace(data, images=data.images.to("meta"), labels=data.labels.to("meta"))


def with_gradient(data, part, factor=None):
    """The same data with a part that takes a gradient; with a factor, one that carries a graph."""
    leaf = getattr(data, part).clone().requires_grad_()
    return replace(data, **{part: leaf if factor is None else factor * leaf})


def mixed(dtype):
    model = tiny()
    model.encoder.to(dtype)
    return model


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs: .*got 0"),
        ({"batch_size": -4}, "batch_size: .*got -4"),
        ({"lr": 0.0}, "lr: .*got 0"),
        ({"lr": math.nan}, "lr: .*got nan"),
        ({"lr": math.inf}, "lr: .*got inf"),
        ({"n_samples": 0}, "n_samples: expected a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed: .*-1"),
        ({"data": gray(0)}, "data: .*none"),
        ({"data": gray_elsewhere()}, "data: .*meta.*cpu"),
        ({"data": replace(gray(), images=gray().images * 255)}, "data: x: .*255"),
        ({"held_out": gray(1)}, "held_out: .*got 1"),
        ({"held_out": gray_elsewhere()}, "held_out: .*meta"),
        ({"held_out": replace(gray(), images=gray().images * 255)}, "held_out: x: .*255"),
        ({"model": tiny(image_shape=(1, 14, 14))}, r"data: x: .*\(\.\.\., 1, 14, 14\)"),
        ({"model": tiny(likelihood=Bernoulli())}, "data: x: .*binarize"),
        ({"resume": True}, "resume: .*checkpoint"),
        ({"model": tiny().half()}, "eps: .*float16.*1e-08.*precision='bfloat16'"),
        ({"model": tiny().requires_grad_(False)}, "model: .*gradient.*requires_grad"),
        ({"model": torch.nn.Linear(3, 3)}, "model: expected an object of .*VAE, got one of Linear"),
        ({"model": VAE}, "model: expected an object of .*VAE, got the class VAE"),
        ({"data": gray().images}, "data: expected an object of .*Images, got one of Tensor"),
        ({"data": None}, "data: expected an object of .*Images, got one of NoneType"),
        (
            {"held_out": gray().images},
            "held_out: expected an object of .*Images, got one of Tensor",
        ),
        ({"checkpoint": 3}, "checkpoint: expected the path of a file, got 3"),
        ({"on_epoch": 3}, "on_epoch: expected a function of the history, got 3"),
        ({"objective": "kl"}, "objective: expected an object of .*Objective, got one of str"),
        ({"objective": Objective}, "objective: .* got the class Objective"),
        ({"resample": "no"}, "resample: expected True or False, got 'no'"),
        ({"resample": torch.tensor([0, 1])}, "resample: expected True or False, got tensor"),
        ({"batch_size": 10**20}, r"batch_size: .* below 2\*\*63, got 1000"),
        ({"n_samples": 10**20}, r"n_samples: .* below 2\*\*63, got 1000"),
        ({"later_lr": [(1, 1e-3), (1, 1e-4)]}, "later_lr: .* one step size .* two .* epoch 1"),
        ({"data": with_gradient(gray(), "images")}, "data: .* requires? grad; .*detach"),
        ({"data": with_gradient(gray(), "images", 1.0)}, "data: .* requires? grad; .*detach"),
        ({"held_out": with_gradient(gray(), "images")}, "held_out: .* requires? grad; .*detach"),
        (
            {"model": completing(), "data": with_gradient(quadrants(gray()), "told", 1.0)},
            "data: .* requires? grad; .*detach",
        ),
        *(
            (
                {"model": make().to(dtype), "eps": 1e-4, "precision": "bfloat16"},
                f"precision: .*float32 or .*bfloat16.* got {dtype}; .*model.float()",
            )
            for make in (tiny, conditional, convolutional)
            for dtype in (torch.float16, torch.float64)
        ),
        ({"model": mixed(torch.float16), "eps": 1e-4}, "model: .*one type, got .*16 and .*32"),
        ({"model": mixed(torch.float64)}, "model: .*one type, got .*32 and .*64"),
    ],
)
def test_an_error_of_use_names_the_argument_and_trains_nothing(wrong, message):
    arguments = {"model": tiny(), "data": gray(), "epochs": 1, **SETTINGS, **wrong}
    model = arguments["model"]
    weights = [] if model is VAE else list(model.parameters())
    before = [p.clone() for p in weights]
    with pytest.raises(ValueError, match=f"(?s)^{message}"):
        fit(**arguments)
    assert all(map(torch.equal, before, weights))


@pytest.mark.parametrize("make", [conditional, completing])
def test_under_autocast_weights_of_another_half_type_are_not_blamed_on_the_data(make):
    said = r"^torch.autocast: .*float32 or torch.bfloat16.* got torch.float16; "
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match=said):
            fit(make().half(), data_of(make), epochs=1, eps=1e-4)
        with pytest.raises(ValueError, match=r"^data: x: expected images of shape"):
            fit(make(image_shape=(1, 8, 8)).half(), data_of(make), epochs=1, eps=1e-4)


@pytest.mark.parametrize("make", [tiny, conditional, convolutional, completing])
def test_weights_in_bfloat16_go_with_products_in_bfloat16(make):
    history = fit(make().bfloat16(), data_of(make), epochs=1, precision="bfloat16", **SETTINGS)
    near = fit(make(), data_of(make), epochs=1, **SETTINGS)
    assert history.loss == pytest.approx(near.loss, rel=1e-2)


class Failing(Objective):
    """An objective of one's own with a mistake that shows in some epoch."""

    def loss(self, x, made, terms, epoch=0):
        """That of Objective."""
        if epoch == self.warm_up:
            raise ValueError("my objective is wrong")
        return replace(self, warm_up=0)(terms, made.q_z)

    def __call__(self, terms, q_z, epoch=0):
        """That of Objective."""
        return Objective()(terms, q_z)


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("held_out", [None, gray(6, seed=1)])
def test_a_mistake_of_ones_own_is_not_blamed_on_the_steps(epoch, held_out):
    objective = Failing(warm_up=epoch)
    with pytest.raises(ValueError, match=r"^my objective is wrong$"):
        fit(tiny(), gray(), epochs=3, objective=objective, held_out=held_out, **SETTINGS)


class NoNumber(Objective):
    """An objective whose values are none."""

    def loss(self, x, made, terms, epoch=0):
        """Of the shape of that of Objective."""
        return super().loss(x, made, terms, epoch) * math.nan


def spoiled():
    model = tiny()
    model.to_mu.weight.data[0, 0] = math.nan
    return model


@pytest.mark.parametrize(
    "wrong",
    [
        {"objective": NoNumber()},
        {"model": spoiled()},
        {
            "data": replace(gray(), images=1e25 * gray().images),
            "model": tiny(likelihood=Gaussian()),
        },
    ],
    ids=["objective", "model", "data"],
)
def test_before_any_step_the_step_size_is_not_to_blame(wrong):
    said = r"^model, data or objective: expected a finite loss in the first step"
    with pytest.raises(ValueError, match=said):
        fit(**{"model": tiny(), "data": gray(), "epochs": 1, **SETTINGS, **wrong})


@pytest.mark.parametrize("error", [*map(RuntimeError, MEMORY), MemoryError()])
def test_too_little_memory_of_a_cpu_is_said_like_that_of_a_gpu(monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(training.Adam, "step", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"^batch_size: 4 images .* epoch 1; lower"):
        fit(tiny(), gray(), epochs=1, **SETTINGS)


def test_more_draws_than_memory_are_said_with_what_to_lower():
    with pytest.raises(torch.OutOfMemoryError, match=r"^batch_size: .*1000000000000 draws.* lower"):
        fit(tiny(), gray(), epochs=1, n_samples=10**12)


def test_a_run_that_diverges_stops_and_leaves_the_last_good_checkpoint(tmp_path):
    path, model = tmp_path / "run.pt", tiny()

    def spoil(history):
        if history.epochs == 2:
            model.to_mu.bias.data.fill_(1e30)  # its square overflows

    with pytest.raises(ValueError, match=r"^lr: the loss of epoch 3 is (inf|nan).*0\.003"):
        fit(model, gray(), epochs=4, checkpoint=path, on_epoch=spoil, **SETTINGS)
    assert len(read_checkpoint(path).history["kl"]) == 2


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_step_from_which_on_a_loss_is_not_finite_is_said(steps, monkeypatch):
    """Weights become NaN after so many steps; an epoch has three."""

    class Spoil(torch.optim.Adam):
        def step(self, closure=None):
            super().step(closure)
            self.done = getattr(self, "done", 0) + 1
            if self.done == steps:
                self.param_groups[0]["params"][0].data.fill_(math.nan)

    monkeypatch.setattr(training, "Adam", Spoil)
    epoch, step = divmod(steps, 3)
    said = rf"epoch {epoch + 1} is infinite or NaN, or will be \(from step {step + 1} on\); start"
    if step == 0:  # after the last step of an epoch the weights tell
        said = rf"epoch {epoch} is infinite or NaN, or will be \(the last step led to weights"
    with pytest.raises(ValueError, match=said):
        fit(tiny(), gray(), epochs=3, **SETTINGS | {"batch_size": 4})


class Jump(torch.optim.Adam):
    """Adam whose last step of an epoch is too large for some number."""

    place = ""

    def step(self, closure=None):
        super().step(closure)
        parameter = self.param_groups[0]["params"][0]
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 6:  # the last of the second epoch
            where = parameter.data if self.place == "weights" else self.state[parameter][self.place]
            where.view(-1)[0] = math.inf if self.place == "exp_avg_sq" else math.nan


@pytest.mark.parametrize("place", ["weights", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("held_out", [None, gray(6, seed=1)])
def test_a_last_step_that_is_too_large_is_not_kept(tmp_path, monkeypatch, place, held_out):
    """The losses of the epoch were finite still."""
    path, shown = tmp_path / "run.pt", []
    monkeypatch.setattr(Jump, "place", place)
    monkeypatch.setattr(training, "Adam", Jump)
    with pytest.raises(ValueError, match=r"^lr: the loss of epoch 2 .* smaller steps than 0\.003"):
        fit(
            tiny(),
            gray(),
            epochs=3,
            checkpoint=path,
            held_out=held_out,
            on_epoch=lambda history: shown.append(history.epochs),
            **SETTINGS,
        )
    assert shown == [1]
    assert len(read_checkpoint(path).history["kl"]) == 1


class Strict(Bernoulli):
    """A likelihood that itself refuses what is not a number, as torch.distributions does."""

    def pixel_log_prob(self, x, params):
        """That of Bernoulli."""
        if not params.isfinite().all():
            raise ValueError("logits: expected finite numbers")
        return super().pixel_log_prob(x, params)


@pytest.mark.parametrize("likelihood", [None, Strict(relaxed=True)])
@pytest.mark.parametrize("lr", [10.0, 1e20])
def test_steps_that_are_too_large_are_said_to_be_whatever_notices_it(likelihood, lr):
    model = tiny(likelihood=likelihood)
    said = rf"^lr: the loss of epoch \d+ .* smaller steps than {re.escape(f'{lr:g}')}"
    with pytest.raises(ValueError, match=said):
        fit(model, gray(), epochs=200, held_out=gray(6, seed=1), lr=lr, batch_size=4)


@pytest.mark.parametrize("place", ["forward", "average_elbo"])
def test_a_full_gpu_is_said_with_what_to_lower_and_the_checkpoint_stays(
    tmp_path, monkeypatch, place
):
    path = tmp_path / "run.pt"
    options = {"checkpoint": path, "held_out": gray(6, seed=1), **SETTINGS}
    fit(tiny(), gray(), epochs=1, **options)
    before = path.read_bytes()
    calls = itertools.count()

    def full(*args, **kwargs):
        if next(calls):  # the first call of either is one of `check_fit`
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return measured(*args, **kwargs)

    owner = VAE if place == "forward" else training
    measured = getattr(owner, place)
    monkeypatch.setattr(owner, place, full)
    with pytest.raises(torch.OutOfMemoryError, match=r"^batch_size: 4 images .* epoch 2; lower"):
        fit(tiny(), gray(), epochs=2, resume=True, **options)
    assert path.read_bytes() == before


@pytest.mark.parametrize("made_inside", [False, True])
def test_inference_mode_is_refused_by_name(made_inside):
    with torch.inference_mode(made_inside):
        model = tiny()
    said = r"^model: .* outside of torch.inference_mode"
    with torch.inference_mode(not made_inside), pytest.raises(ValueError, match=said):
        fit(model, gray(), epochs=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("batch_size", [1, 3, 100])  # of which the second leaves a batch of one
def test_images_of_any_floating_point_type_are_trained_on(dtype, batch_size):
    data = gray()
    data = data.with_images(data.images.round())  # which every type holds
    kept = [
        fit(tiny(), each, epochs=2, batch_size=batch_size, held_out=each).loss
        for each in (data, data.with_images(data.images.to(dtype)))
    ]
    assert kept[0] == pytest.approx(kept[1], rel=1e-5)


class DefaultGpu(TorchFunctionMode):
    """Refuse to draw by a generator of the CPU as torch.set_default_device("cuda") does."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("generator") and "device" not in kwargs:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        return function(*args, **kwargs)


@pytest.mark.parametrize("likelihood", [Bernoulli(), ContinuousBernoulli(), Gaussian()])
def test_noise_is_drawn_on_the_cpu_whatever_the_default_device(likelihood):
    model, data, generator = tiny(likelihood=likelihood), gray(), torch.Generator()
    with DefaultGpu():
        fit(model, data, epochs=1, resample=True)
        model.likelihood.sample(torch.zeros(2, 1, 28, 28), generator)


def test_a_change_of_folder_while_training_does_not_move_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    fit(
        tiny(),
        gray(),
        epochs=2,
        checkpoint="run.pt",
        on_epoch=lambda _: os.chdir(tmp_path / "other"),
    )
    assert len(read_checkpoint(tmp_path / "run.pt").history["kl"]) == 2
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("where", ["folder", "file/run.pt"])
def test_a_checkpoint_that_cannot_be_written_is_found_before_the_first_epoch(tmp_path, where):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    model, shown = tiny(), []
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(WriteError, match=f"{where} could not be written"):
        fit(model, gray(), epochs=1, checkpoint=tmp_path / where, on_epoch=shown.append)
    assert not shown
    assert all(map(torch.equal, before, model.parameters()))


# History on disk ----------------------------------------------------------------------------------


def test_history_comes_back_from_json(tmp_path):
    history = fit(tiny(), gray(), epochs=2, held_out=gray(6), **SETTINGS)
    history.save(tmp_path / "history.json")
    assert History.load(tmp_path / "history.json") == history


def other(history, **changed):
    return json.dumps({**asdict(history), **changed})


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_damaged_history_is_named_with_the_way_out(tmp_path):
    history, path = fit(tiny(), gray(), epochs=2, **SETTINGS), tmp_path / "history.json"
    contents = ["", '{"kl": [1.0]}', "[1, 2]", "3", "null", '{"kl": [1.', "\xff\xfe", "[" * 10**5]
    columns = ("reconstruction", "kl", "loss", "seconds")
    wrong = (None, [], [1.0], [1.0, None], [1.0, math.nan], [math.inf, 1.0], ["1", "2"], "12")
    contents += [other(history, **{name: value}) for name in columns for value in wrong]
    contents += [other(history, held_out=[1.0]), other(history, more=[1.0, 2.0])]
    for content in contents:
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match=r"^path: .*history\.json is not a .*; delete it"):
            History.load(path)
    path.write_text(other(history))
    assert History.load(path) == history


def test_a_history_that_could_not_be_read_back_is_not_written(tmp_path):
    history = fit(tiny(), gray(), epochs=1, **SETTINGS)
    history.save(tmp_path / "history.json")
    before = (tmp_path / "history.json").read_bytes()
    with pytest.raises(ValueError, match=r"^history: expected finite numbers as kl"):
        replace(history, kl=[math.nan]).save(tmp_path / "history.json")
    assert (tmp_path / "history.json").read_bytes() == before


# Speed --------------------------------------------------------------------------------------------


def test_importing_the_loop_flushes_denormals_in_every_thread():
    """Adam's averages decay into numbers that many processors handle tens of times slower."""
    program = """
import vae_book.training, torch
assert torch.get_num_threads() == 2
print((torch.full((4_000_000,), 1e-39) * 1.5).count_nonzero().item())
if not torch.set_flush_denormal(True):
    print("unsupported")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    if "unsupported" in done.stdout:
        pytest.skip("this processor cannot flush denormals")
    assert done.stdout.split() == ["0"]


def test_adam_is_that_of_torch_and_does_not_import_its_compiler(tmp_path):
    program = """
import sys, torch
from vae_book import budget, training
from vae_book.images import Images
from vae_book.models import VAE
images = Images(torch.ones(4, 1, 2, 2), torch.zeros(4).long(), "made", "train")
for theirs in (False, True):
    torch.manual_seed(0)
    model = VAE(2, 3, (1, 2, 2))
    if theirs:
        print("torch._dynamo" in sys.modules)
        training.Adam = torch.optim.Adam
    training.fit(model, images, epochs=3, checkpoint=sys.argv[1] + "/" + str(theirs), lr=0.01)
    budget.refined(model, images.images, steps=2)
    print([each.tolist() for each in model.parameters()])
print("torch._dynamo" in sys.modules)
"""
    command = [sys.executable, "-c", program, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ours, before, theirs, after = done.stdout.splitlines()
    assert ours == theirs
    assert (before, after) == ("False", "True"), "what torch does has changed"


def test_a_learned_prior_is_not_left_without_its_divergence():
    model = CVAE(3, 5, classes=10, learned_prior=True)
    with pytest.raises(ValueError, match=r"^objective: expected the penalty 'kl'"):
        fit(model, gray(), epochs=1, objective=Objective(penalty="naive"))


@pytest.mark.parametrize("make", [tiny, conditional])
@pytest.mark.parametrize("n_samples", [1, 2])
def test_a_stream_of_the_same_batches_is_the_same_training(make, n_samples):
    data, settings = gray(), training.Settings(**SETTINGS, n_samples=n_samples)
    results = []
    for streamed in (False, True):
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
        parts = list(training.batches(model, data, settings, 2))
        if streamed:
            # The loader gives the images in that order; the noise is another, so that of `batches`
            # takes its place.
            order = torch.cat([(N * part.x[:, 0, 0, 0]).round().long() for part in parts])
            rows = order.split(settings.batch_size)
            loader = [(data.images[part], data.labels[part]) for part in rows]
            own = list(training.stream(model, loader, settings, 2))
            assert [each.eps.shape for each in own] == [each.eps.shape for each in parts]
            assert all(abs(each.eps.mean().item()) < 1 for each in own)
            parts = [a._replace(eps=b.eps) for a, b in zip(own, parts, strict=True)]
        totals = training.train_epoch(model, iter(parts), optimizer, settings, 2)
        results.append((totals, model.state_dict()))
    (totals, weights), (streamed_totals, streamed_weights) = results
    assert torch.equal(totals, streamed_totals)
    assert all(torch.equal(weights[name], streamed_weights[name]) for name in weights)


def test_a_stream_has_other_noise_in_each_epoch_and_draws_binary_pixels_if_asked():
    data = gray()
    loader = [(data.images, data.labels)]
    first, again, next_one = (
        next(training.stream(tiny(), loader, training.Settings(resample=True), epoch))
        for epoch in (0, 0, 1)
    )
    assert torch.equal(first.eps, again.eps)
    assert not torch.equal(first.eps, next_one.eps)
    assert set(first.x.unique().tolist()) == {0, 1}
    assert not torch.equal(first.x, next_one.x)


def test_each_process_draws_other_noise_for_its_share_of_a_stream(monkeypatch):
    data = gray()
    monkeypatch.setattr(training.parallel, "world_size", lambda: 2)
    noise = []
    for rank in (0, 1, 1):
        monkeypatch.setattr(training.parallel, "rank", lambda rank=rank: rank)
        parts = training.stream(tiny(), [(data.images, data.labels)], training.Settings())
        noise.append(next(parts).eps)
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(noise[1], noise[2])


def test_a_stream_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^loader: expected at least one batch, got none"):
        train_on(tiny(), [])


def train_on(model, loader, **settings):
    chosen = training.Settings(**settings)
    parts = training.stream(model, iter(loader), chosen)
    return training.train_epoch(model, parts, torch.optim.Adam(model.parameters()), chosen, 0)


@pytest.mark.parametrize("resample", [False, True])
@pytest.mark.parametrize("change", [lambda x: x[..., :14], lambda x: 255 * x, lambda x: x / 0])
def test_a_stream_looks_at_each_batch_while_it_is_trained_on(change, resample):
    data, model = gray(), tiny()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"^(x|images): "):
        train_on(model, [(change(data.images), data.labels)], resample=resample)
    assert all(map(torch.equal, before, model.parameters()))


def test_a_stream_looks_at_each_label():
    data = gray()
    with pytest.raises(ValueError, match=r"^y: .*got 10"):
        train_on(conditional(), [(data.images, data.labels + 1)])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (gray().images, "pairs of images and labels, got a Tensor"),
        ([gray().images], "pairs of images and labels, got a list"),
        ({"x": gray().images, "y": gray().labels}, "pairs of images and labels, got a dict"),
        ((gray(0).images, gray(0).labels), "at least one image"),
    ],
)
def test_a_stream_of_other_things_is_refused_by_name(batch, message):
    with pytest.raises(ValueError, match=f"^loader: expected {message}"):
        train_on(tiny(), [batch])
