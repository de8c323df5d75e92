"""The doctor: healthy VAEs in three styles get a clean bill, each fault is found by its name."""

import math
import random
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.distributions import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Independent,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Uniform,
    kl_divergence,
)

from vae_book import bounds, doctor, likelihoods
from vae_book.clinic import FAULTS, fault
from vae_book.data import load_images
from vae_book.distributions import DiagonalGaussian, Mixture
from vae_book.doctor import diagnose
from vae_book.models import CVAE, VAE
from vae_book.objectives import Objective
from vae_book.patient import modules_of
from vae_book.prior_density import FITTED, KEPT, agreement
from vae_book.report import Finding, Report

UNITS = 6


class Script(nn.Module):
    """As in scripts: a tuple of mean and log-variance, probabilities, flat images."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc21, self.fc22 = (
            nn.Linear(784, 64),
            nn.Linear(64, UNITS),
            nn.Linear(64, UNITS),
        )
        self.fc3, self.fc4 = nn.Linear(UNITS, 64), nn.Linear(64, 784)

    def encode(self, x):
        h = F.relu(self.fc1(x))
        return self.fc21(h), self.fc22(h)

    def reparameterize(self, mu, log_var):
        return mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)

    def decode(self, z):
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))

    def forward(self, x):
        mu, log_var = self.encode(x.flatten(1))
        return self.decode(self.reparameterize(mu, log_var)), mu, log_var

    def bce(self, made, x):
        return F.binary_cross_entropy(made, x, reduction="sum")

    def kld(self, mu, log_var):
        return -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp())

    def loss(self, x):
        made, mu, log_var = self(x)
        return self.bce(made, x) + self.kld(mu, log_var)


class Modules(nn.Module):
    """Encoder and decoder are modules, distributions go between them, the deviation is an exp."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.loc, self.scale = (
                nn.Linear(784, 64),
                nn.Linear(64, UNITS),
                nn.Linear(64, UNITS),
            )

        def forward(self, x):
            h = F.softplus(self.hidden(x.flatten(1)))
            return Independent(Normal(self.loc(h), torch.exp(self.scale(h))), 1)

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = nn.Linear(UNITS, 64), nn.Linear(64, 784)

        def forward(self, z):
            logits = self.out(F.softplus(self.hidden(z)))
            return Independent(Bernoulli(logits=logits, validate_args=False), 1)

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = self.Encoder(), self.Decoder()

    def loss(self, x):
        q = self.encoder(x)
        p = Independent(Normal(torch.zeros(UNITS), torch.ones(UNITS)), 1)
        z = q.rsample()
        return -(self.decoder(z).log_prob(x) + p.log_prob(z) - q.log_prob(z)).mean()


class Steps(nn.Module):
    """A model with a training step of its own, a sampling layer and two convolutions."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Flatten(), nn.Linear(8 * 196, 32), nn.ReLU())  # fmt: skip
        self.z_mean, self.z_log_var = nn.Linear(32, UNITS), nn.Linear(32, UNITS)
        self.decoder = nn.Sequential(
            nn.Linear(UNITS, 64), nn.ReLU(), nn.Linear(64, 784), nn.Sigmoid()
        )

    def encode(self, x):
        h = self.encoder(x)
        mean, log_var = self.z_mean(h), self.z_log_var(h)
        return mean, log_var, mean + torch.exp(log_var / 2) * torch.randn_like(mean)

    def compute_loss(self, x):
        mean, log_var, z = self.encode(x)
        made = self.decoder(z)
        reconstruction = F.binary_cross_entropy(made, x, reduction="none").sum(1).mean()
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp())
        kl = kl.sum(1).mean()
        return {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    def train_step(self, x, optimizer):
        optimizer.zero_grad()
        losses = self.compute_loss(x)
        losses["loss"].backward()
        optimizer.step()
        return {name: value.item() for name, value in losses.items()}


def train(model, loss, x, steps=150):
    optimizer = optim.Adam(model.parameters(), 3e-3)
    batches = x[:1280].reshape(20, 64, 784)
    for step in range(steps):
        optimizer.zero_grad()
        loss(batches[step % 20]).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def digits():
    """Digits of all classes in a random order, flat, and their labels."""
    data = load_images("train", "bundled", "cpu")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return data.images[order].flatten(1), data.labels[order]


@pytest.fixture(scope="module")
def x(digits):
    return digits[0][2000:2064]


@pytest.fixture(scope="module")
def script(digits):
    torch.manual_seed(0)
    model = Script()
    return train(model, lambda batch: model.loss(batch) / 64, digits[0])


@pytest.fixture(scope="module")
def modules(digits):
    torch.manual_seed(0)
    model = Modules()
    return train(model, model.loss, digits[0])


@pytest.fixture(scope="module")
def steps(digits):
    torch.manual_seed(0)
    model, batches = Steps(), digits[0][:1280].reshape(20, 64, 784)
    optimizer = optim.Adam(model.parameters(), 3e-3)
    for step in range(150):
        model.train_step(batches[step % 20], optimizer)
    return model


def unchecked(report):
    return {each.check for each in report.findings if each.verdict == "not checked"}


# Healthy models -----------------------------------------------------------------------------------


def test_a_script_with_tuples_and_summed_cross_entropy_gets_a_clean_bill(script, x):
    report = diagnose(script.encode, script.decode, x, loss=script.loss)
    assert report.healthy, str(report)
    assert unchecked(report) == {"labels", "density of the prior"}


def test_distributions_with_a_deviation_and_a_divergence_by_draws_get_a_clean_bill(modules, x):
    report = diagnose(modules.encoder, modules.decoder, x, loss=modules.loss)
    assert report.healthy, str(report)
    assert unchecked(report) == {"labels", "density of the prior"}


def test_a_model_with_a_step_of_its_own_and_batch_norm_gets_a_clean_bill(steps, x):
    report = diagnose(steps.encode, steps.decoder, x, loss=steps.compute_loss)
    assert report.healthy, str(report)
    assert unchecked(report) == {"labels", "density of the prior"}


class FreeBits(Script):
    """Each unit may cost two nats on average over the batch before it is charged."""

    def loss(self, x):
        mu, log_var = self.encode(x)
        made = self.decode(self.reparameterize(mu, log_var))
        kl = 0.5 * (mu**2 + log_var.exp() - 1 - log_var)
        return self.bce(made, x) / len(x) + kl.mean(0).clamp(min=2.0).sum()


class WithATask(Script):
    """The means have to tell how bright an image is as well."""

    def __init__(self):
        super().__init__()
        self.bright = nn.Linear(UNITS, 1)

    def loss(self, x):
        mu, log_var = self.encode(x)
        made = self.decode(self.reparameterize(mu, log_var))
        task = (self.bright(mu).squeeze(1) - x.mean(1)).square().sum()
        return self.bce(made, x) + self.kld(mu, log_var) + 100 * task


class TwoOutputs(Script):
    """The decoder gives mean and log-variance of each pixel; the loss is a sum over the batch."""

    def __init__(self):
        super().__init__()
        self.fc5 = nn.Linear(64, 784)

    def decode(self, z):
        h = F.relu(self.fc3(z))
        return self.fc4(h), self.fc5(h).clamp(min=-4)

    @staticmethod
    def log_likelihood(x, made):
        mean, log_var = made
        squares = (x - mean) ** 2 / log_var.exp()
        return -0.5 * (squares + log_var + math.log(2 * math.pi)).sum(1)

    def loss(self, x):
        mu, log_var = self.encode(x)
        made = self.decode(self.reparameterize(mu, log_var))
        return self.kld(mu, log_var) - self.log_likelihood(x, made).sum()


@pytest.mark.parametrize("kind", [FreeBits, WithATask])
def test_what_stands_beside_the_kl_on_purpose_is_called_no_fault(kind, digits, x):
    torch.manual_seed(0)
    model = kind()
    train(model, lambda batch: model.loss(batch) / (1 if kind is FreeBits else 64), digits[0])
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert report.healthy, str(report)
    assert "something other than a KL" in report["KL against draws"].found
    assert report["KL against draws"].verdict == "not checked"
    assert report["draws of z in the loss"].verdict == "ok"


def test_a_decoder_of_mean_and_log_variance_under_a_summed_loss_gets_a_clean_bill(digits, x):
    torch.manual_seed(0)
    model = TwoOutputs()
    train(model, lambda batch: model.loss(batch) / 64, digits[0])
    options = {"loss": model.loss, "likelihood": model.log_likelihood}
    report = diagnose(model.encode, model.decode, x, **options)
    assert report.healthy, str(report)
    assert report["scale and sign of both terms"].found == "log-likelihood summed, KL summed"
    assert {"KL against draws", "bound below the evidence"}.isdisjoint(unchecked(report))
    with pytest.raises(ValueError, match=r"^decode: .* give likelihood=f\(images, decoded\)$"):
        diagnose(model.encode, model.decode, x)


# The faults of the clinic -------------------------------------------------------------------------


class LearnedPrior(VAE):
    """A VAE with a prior of its own: a mixture, or one Gaussian."""

    def __init__(self, components):
        super().__init__(UNITS, 64, likelihood=likelihoods.Bernoulli(relaxed=True))
        shape = (components, UNITS) if components > 1 else (UNITS,)
        self.mu, self.log_var = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.rand(shape))

    def prior(self, y=None):
        parts = DiagonalGaussian(self.mu, self.log_var)
        return Mixture(parts) if self.mu.ndim > 1 else parts


def patient(name):
    """A model of the package that the fault shows in."""
    torch.manual_seed(0)
    if name == "deaf-encoder":
        return CVAE(UNITS, 64)
    if name in ("mixture-by-unit", "variance-in-sample"):
        return LearnedPrior(5 if name == "mixture-by-unit" else 1)
    likelihood = likelihoods.Bernoulli(relaxed=name != "gray-as-binary")
    return VAE(UNITS, 64, likelihood=likelihood)


# What the doctor calls them, where that is another name.
CALLED = {
    "half-missing": "kl-formula",
    "constant-of-the-kl": "kl-value",
    "left-in-training-mode": "noise-in-evaluation",
}
# Mistakes in what is done with a model: neither encoder nor decoder nor loss has them.
ELSEWHERE = ["last-batch", "train-on-test", "step-of-the-levels"]


def loss_of(model, name):
    if name in ("softmax-over-losses", "average-inside-the-logarithm"):
        return lambda x: (
            -bounds.importance_weighted_bound(
                bounds.log_weights(model, x, torch.randn(5, len(x), UNITS))
            ).mean()
        )
    if name == "kl-weight":

        def trained(x):
            made = model(x, torch.randn(len(x), UNITS))
            return Objective().loss(x, made, bounds.elbo_terms(x, made)).mean()

        return trained
    return lambda x, y=None: -bounds.elbo(model, x, y=y).value.mean()


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_encoder_decoder_and_loss_is_found_by_its_name(name, digits, x):
    model, images = patient(name), x.reshape(-1, 1, 28, 28)
    labels = digits[1][2000:2064] if isinstance(model, CVAE) else None
    images = images.round() if name == "gray-as-binary" else images
    options = {"loss": loss_of(model, name), "labels": labels}
    options |= {"prior": model.prior} if isinstance(model, LearnedPrior) else {}
    healthy = diagnose(model.encode, model.decode, images, **options)
    assert healthy.healthy, str(healthy)
    with fault(name):
        report = diagnose(model.encode, model.decode, x.reshape(-1, 1, 28, 28), **options)
    expected = () if name in ELSEWHERE else (CALLED.get(name, name),)
    assert report.faults == expected, str(report)


@pytest.mark.parametrize("sign", [1, -1])
def test_log_weights_averaged_by_a_softmax_are_told_from_the_bound(x, sign):
    model = patient("softmax-over-losses")

    def loss(x):
        log_w = bounds.log_weights(model, x, torch.randn(5, len(x), UNITS))
        return -((sign * log_w).softmax(0) * log_w).sum(0).mean()

    report = diagnose(model.encode, model.decode, x.reshape(-1, 1, 28, 28), loss=loss)
    assert report.faults == ("softmax-over-losses",)
    finding = report["draws of z in the loss"]
    # The best draws promise too much, the worst too little.
    assert sign * finding.nats > 0.01
    assert ("best" if sign > 0 else "worst") in finding.found


# Losses, given as functions of what encoder and decoder return ------------------------------------


def cross_entropy(x, made):
    return F.binary_cross_entropy(made, x, reduction="sum")


def kl(mu, log_var):
    return kl_divergence(Normal(mu, (0.5 * log_var).exp()), Normal(0.0, 1.0)).sum()


def kl_of_log_std(mu, spread):
    return kl_divergence(Normal(mu, spread.exp()), Normal(0.0, 1.0)).sum()


WRONG = {
    "mean-reduction": lambda x, q, p: cross_entropy(x, p) / 784 + kl(*q),
    "kl-over-784": lambda x, q, p: cross_entropy(x, p) + kl(*q) / 784,
    "kl-over-batch": lambda x, q, p: cross_entropy(x, p) + kl(*q) / len(x),
    "likelihood-over-batch": lambda x, q, p: cross_entropy(x, p) / len(x) + kl(*q),
    "kl-mean": lambda x, q, p: cross_entropy(x, p) + kl(*q) / UNITS,
    "kl-weight": lambda x, q, p: cross_entropy(x, p) + 0.3 * kl(*q),
    "kl-sign": lambda x, q, p: cross_entropy(x, p) - kl(*q),
    "likelihood-sign": lambda x, q, p: kl(*q) - cross_entropy(x, p),
    "both-signs": lambda x, q, p: -cross_entropy(x, p) - kl(*q),
    "no-kl": lambda x, q, p: cross_entropy(x, p),
    "kl-value": lambda x, q, p: cross_entropy(x, p) + kl(*q) + 0.5 * q[0].numel(),
    "kl-formula": lambda x, q, p: cross_entropy(x, p) + kl(*q) - 0.5 * q[1].sum(),
    "log-var-as-std": lambda x, q, p: cross_entropy(x, p) + kl_of_log_std(*q),
    "image-weights": lambda x, q, p: cross_entropy(x, p) + cross_entropy(x[:9], p[:9]) + kl(*q),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_loss_with_a_mistake_is_named_by_its_mistake(name, script, x):
    report = diagnose(
        script.encode,
        script.decode,
        x,
        loss=WRONG[name],
        draw=lambda q: script.reparameterize(*q),
    )
    assert report.faults[0] == name, str(report)
    assert len(set(report.faults)) == 1, str(report)


def test_how_far_off_a_weight_is_is_told_in_nats(script, x):
    report = diagnose(script.encode, script.decode, x, loss=WRONG["kl-over-784"])
    right = kl(*script.encode(x)).item() / len(x)
    finding = report["scale and sign of both terms"]
    assert finding.nats == pytest.approx(right * 783 / 784, rel=0.01)
    assert "log-likelihood summed, KL averaged over pixels" in finding.found


def test_a_constant_that_is_missing_is_told_in_nats(script, x):
    report = diagnose(script.encode, script.decode, x, loss=WRONG["kl-value"])
    assert "such as a penalty on the weights, is no fault" in report["KL against draws"].advice
    assert report["KL against draws"].nats == pytest.approx(0.5 * UNITS, abs=0.3)


def test_a_weight_that_was_chosen_is_no_fault(script, x):
    report = diagnose(script.encode, script.decode, x, loss=WRONG["kl-weight"], beta=0.3)
    assert report.healthy, str(report)
    wrong = diagnose(script.encode, script.decode, x, loss=WRONG["kl-weight"], beta=3.0)
    assert wrong.faults == ("kl-weight",)
    right = kl(*script.encode(x)).item() / len(x)
    assert wrong["scale and sign of both terms"].nats == pytest.approx(0.9 * right, rel=0.01)
    assert report["bound below the evidence"].found == "a KL of less than its weight bounds nothing"


RIGHT = {
    "mean over images": lambda x, q, p: (cross_entropy(x, p) + kl(*q)) / len(x),
    "mean over images and pixels": lambda x, q, p: (cross_entropy(x, p) + kl(*q)) / x.numel(),
    "whole data set": lambda x, q, p: (cross_entropy(x, p) + kl(*q)) * 60000 / len(x),
    "one for each image": lambda x, q, p: (
        F.binary_cross_entropy(p, x, reduction="none").sum(1)
        - 0.5 * (1 + q[1] - q[0] ** 2 - q[1].exp()).sum(1)
    ),
    "tuple": lambda x, q, p: (cross_entropy(x, p) + kl(*q), cross_entropy(x, p), kl(*q)),
    "squared error": lambda x, q, p: F.mse_loss(p, x, reduction="sum") + kl(*q),
    "half the squared error": lambda x, q, p: 0.5 * (p - x).square().sum() + kl(*q),
    "absolute error": lambda x, q, p: (p - x).abs().sum() + kl(*q),
    "continuous Bernoulli": lambda x, q, p: (
        kl(*q) - ContinuousBernoulli(probs=p, validate_args=False).log_prob(x).sum()
    ),
    "by hand, with a small number": lambda x, q, p: (
        kl(*q) - (x * (p + 1e-8).log() + (1 - x) * (1 - p + 1e-8).log()).sum()
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_loss_of_another_form_is_no_fault(name, script, x):
    report = diagnose(script.encode, script.decode, x, loss=RIGHT[name])
    assert report.healthy, str(report)
    assert report["scale and sign of both terms"].verdict == "ok", str(report)


def test_a_mean_squared_error_beside_a_summed_kl_is_a_mean_reduction(script, x):
    report = diagnose(
        script.encode, script.decode, x, loss=lambda x, q, p: F.mse_loss(p, x) * len(x) + kl(*q)
    )
    assert report.faults == ("mean-reduction",)


def test_a_weight_beside_a_squared_error_is_no_noise_if_that_were_larger_than_all_images(script, x):
    report = diagnose(
        script.encode, script.decode, x, loss=lambda x, q, p: (p - x).square().sum() + 99 * kl(*q)
    )
    assert report.faults == ("kl-weight",)


# Encoders, draws and decoders ---------------------------------------------------------------------


def broken(script, **methods):
    """The trained script with other methods."""
    model = type("Broken", (Script,), methods)()
    model.load_state_dict(script.state_dict())
    return model


def faults(model, x, **options):
    return diagnose(model.encode, model.decode, x, loss=model.loss, **options).faults


def two_heads_in_one(self, x):
    h = self.fc21(F.relu(self.fc1(x)))
    return h, h


def with_dropout(self, x):
    h = F.dropout(F.relu(self.fc1(x)), 0.2)
    return self.fc21(h), self.fc22(h)


def normalized_by_the_batch(self, x):
    h = F.relu(self.fc1(x))
    h = h - h.mean(0)
    return self.fc21(h), self.fc22(h)


def reparameterized(noise):
    """A method that draws z with other noise."""

    def reparameterize(self, mu, log_var):
        return mu + (0.5 * log_var).exp() * noise(mu)

    return {"reparameterize": reparameterize}


def seeded(mu):
    torch.manual_seed(42)
    return torch.randn_like(mu)


METHODS = {
    "uniform-noise": {
        "reparameterize": lambda self, mu, log_var: mu + (0.5 * log_var).exp() * torch.rand_like(mu)
    },
    "no-noise": {"reparameterize": lambda self, mu, log_var: mu},
    "log-var-as-std": {
        "reparameterize": lambda self, mu, log_var: mu + log_var.exp() * torch.randn_like(mu)
    },
    "no-reparameterization": {
        "reparameterize": lambda self, mu, log_var: Normal(mu, (0.5 * log_var).exp()).sample()
    },
    "one-noise": reparameterized(lambda mu: torch.randn(UNITS)),
    "same-noise": reparameterized(seeded),
    "one-head": {"encode": two_heads_in_one},
    "clipped-head": {"encode": lambda self, x: tuple(map(F.relu, Script.encode(self, x)))},
    "noise-in-evaluation": {"encode": with_dropout},
    "batch-in-evaluation": {"encode": normalized_by_the_batch},
    "sigmoid-twice": {
        "bce": lambda self, made, x: F.binary_cross_entropy_with_logits(made, x, reduction="sum")
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_a_mistake_in_a_method_is_found_by_its_name(name, script, x):
    assert faults(broken(script, **METHODS[name]), x) == (name,)


def test_one_noise_for_all_units_is_found_and_one_unit_alone_has_no_other(script, x):
    shared = reparameterized(lambda mu: torch.randn(len(mu), 1))
    report = diagnose((model := broken(script, **shared)).encode, model.decode, x, loss=model.loss)
    assert report.faults == ("one-noise",), str(report)
    assert report["noise"].found == "all units of z get the same noise"

    class OneUnit(Script):
        def __init__(self):
            super().__init__()
            self.fc21, self.fc22, self.fc3 = nn.Linear(64, 1), nn.Linear(64, 1), nn.Linear(1, 64)

    torch.manual_seed(0)
    assert faults(OneUnit(), x) == ()


def test_noise_drawn_once_for_all_is_found_and_a_seed_for_measuring_is_no_fault(script, x):
    eps = torch.randn(len(x), UNITS, generator=torch.Generator().manual_seed(0))
    assert faults(broken(script, **reparameterized(lambda mu: eps)), x) == ("same-noise",)

    def reparameterize(self, mu, log_var):
        return mu + (0.5 * log_var).exp() * (torch.randn_like if self.training else seeded)(mu)

    assert faults(broken(script, reparameterize=reparameterize), x) == ()


@pytest.mark.parametrize("clip", [F.relu, lambda log_var: log_var.clamp(min=0)])
def test_a_log_variance_that_is_never_negative_is_found(clip, digits, x):
    class Clipped(Script):
        def encode(self, x):
            mu, log_var = super().encode(x)
            return mu, clip(log_var)

    torch.manual_seed(0)
    report = diagnose((model := Clipped()).encode, model.decode, x, loss=model.loss)
    assert report.faults == ("clipped-head",), str(report)
    assert "the spread is never negative" in report["two outputs of the encoder"].found


@pytest.mark.parametrize(
    "encode",
    [
        lambda self, x: (Script.encode(self, x)[0], Script.encode(self, x)[1].clamp(-3, 1)),
        lambda self, x: (Script.encode(self, x)[0], self.fc22(torch.zeros(len(x), 64)) * 0),
    ],
)
def test_a_log_variance_within_limits_or_always_zero_is_no_clipped_head(encode, script, x):
    model = broken(script, encode=encode)
    report = diagnose(model.encode, model.decode, x)
    assert report["two outputs of the encoder"].verdict == "ok", str(report)


DECODERS = {
    "noise-in-evaluation": lambda self, z: Script.decode(self, F.dropout(z, 0.5)),
    "batch-in-evaluation": lambda self, z: Script.decode(self, (z - z.mean(0)) / z.std(0)),
    "": lambda self, z: Script.decode(self, F.dropout(z, 0.5, training=self.training)),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("packed", [lambda made: made, lambda made: Bernoulli(made)])
def test_a_decoder_decodes_a_code_in_one_way_in_evaluation_mode(name, packed, script, x):
    model = broken(script, decode=lambda self, z: packed(DECODERS[name](self, z)))
    report = diagnose(model.encode, model.decode, x.round(), likelihood=None)
    assert report.faults == tuple(name.split()), str(report)
    assert report["training and evaluation mode"].verdict == ("fault" if name else "ok")


def test_labels_stay_with_their_codes_where_those_beside_a_code_are_changed(digits, x):
    torch.manual_seed(0)
    model, labels = Conditional(), F.one_hot(digits[1][2000:2063]).float()
    report = diagnose(model.encode, model.decode, x[:63], loss=model.loss, labels=labels)
    assert report["training and evaluation mode"].verdict == "ok", str(report)
    assert diagnose(model.encode, model.decode, x[:2], labels=labels[:2]).healthy


def test_draws_that_are_the_mean_because_of_a_flag_are_not_called_a_fault(script, x):
    model = broken(script, **METHODS["no-noise"]).eval()
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert report.healthy
    assert "flag of the model" in report["noise"].found


def several(model, x, draws):
    """log p(x, z) - log q(z | x) of some draws, and the two terms."""
    mu, log_var = model.encode(x)
    q = Normal(mu, (0.5 * log_var).exp())
    z = q.rsample((draws,))
    log_p = -F.binary_cross_entropy(model.decode(z), x.expand(draws, -1, -1), reduction="none")
    return log_p.sum(-1) + Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z).sum(-1)


MANY_DRAWS = {
    "": lambda self, x: -several(self, x, 4).mean(),
    " ": lambda self, x: (math.log(4) - several(self, x, 4).logsumexp(0)).mean(),
    "sum-inside-the-logarithm": lambda self, x: -several(self, x, 4).logsumexp(0).mean(),
    "softmax-over-losses": lambda self, x: (
        -((log_w := several(self, x, 4)) * log_w.softmax(0)).sum()
    ),
    "draw-weights": lambda self, x: -several(self, x, 4).max(0).values.sum(),
    "average-inside-the-logarithm": lambda self, x: -several(self, x, 4).logsumexp(1).sum(),
    "image-weights": lambda self, x: -several(self, x, 4)[:, :32].mean(),
}


@pytest.mark.parametrize("name", MANY_DRAWS)
def test_several_draws_enter_by_a_mean_or_by_the_log_of_one(name, script, x):
    assert faults(broken(script, loss=MANY_DRAWS[name]), x) == tuple(name.split())


class Half(Normal):
    """A density that lacks half of its mass."""

    def log_prob(self, value):
        return super().log_prob(value) - math.log(2)


def test_a_density_that_does_not_integrate_to_one_is_found_with_its_nats(script, x):
    model = broken(
        script,
        decode=lambda self, z: Half(self.fc4(F.relu(self.fc3(z))), torch.full((1,), 0.5)),
        bce=lambda self, made, x: -made.log_prob(x).sum(),
    )
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert report.faults == ("not-normalized",), str(report)
    nats = report["likelihood sums to one"].nats
    assert nats == pytest.approx(-784 * math.log(2), rel=1e-4)


def test_gray_levels_are_a_fault_only_under_a_likelihood_of_binary_pixels(script, x):
    assert faults(script, x, likelihood="bernoulli") == ("gray-as-binary",)
    assert faults(script, x, likelihood="cross-entropy") == ()
    assert faults(script, x.round(), likelihood="bernoulli") == ()


@pytest.mark.parametrize(
    "change",
    [lambda x: x * 255, lambda x: (x - 0.13) / 0.31, lambda x: x * math.nan, lambda x: x * 0],
)
def test_pixels_out_of_range_are_found(script, x, change):
    images = change(x)
    report = diagnose(script.encode, script.decode, images, likelihood="cross-entropy")
    assert report.faults == ("range",)


@pytest.mark.parametrize("change", [lambda x: x * 255, lambda x: x.where(x < 0.9, math.nan)])
def test_by_pixels_out_of_range_nothing_else_is_judged(change, script, x):
    model = broken(
        script,
        decode=lambda self, z: self.fc4(F.relu(self.fc3(z))),
        bce=lambda self, made, x: F.binary_cross_entropy_with_logits(made, x, reduction="sum"),
    )
    prior = Normal(torch.zeros(UNITS), torch.ones(UNITS))
    assert diagnose(model.encode, model.decode, x, loss=model.loss, prior=prior).healthy
    report = diagnose(model.encode, model.decode, change(x), loss=model.loss, prior=prior)
    assert report.faults == ("range",), str(report)
    others = {each.check for each in report.findings[1:]}
    assert unchecked(report) == others - {"density of the prior"}, "which looks at no image"
    assert report["collapse"].found == "the range of the data has to be right first"


def test_a_loss_that_changes_the_images_is_told_to_change_them_before(script, x):
    model = broken(script, loss=lambda self, x: Script.loss(self, torch.bernoulli(x)))
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert "Does the loss change the images" in report["KL against draws"].found
    assert diagnose(script.encode, script.decode, torch.bernoulli(x), loss=script.loss).healthy


def test_a_claim_above_the_evidence_is_found(script, x):
    model = broken(script, kld=lambda self, *q: kl(*q) - 20 * len(q[0]))
    found = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert "above-the-evidence" in found.faults
    assert 14 < found["bound below the evidence"].nats < 20  # less the gap, a few nats


# Other conventions --------------------------------------------------------------------------------


def wrapped(model, **options):
    """Functions of the model's, as a script has them: nothing of theirs is called by the loss."""
    return {"encode": lambda x: model.encode(x), "decode": lambda z: model.decode(z)} | options


@pytest.mark.parametrize("name", ["kl-over-784", "kl-sign", "log-var-as-std", "no-kl"])
def test_functions_that_wrap_a_model_are_found_again_in_its_loss(name, script, x):
    sound = diagnose(**wrapped(script, images=x, loss=lambda x: script.loss(x)))
    assert sound.healthy, str(sound)
    assert unchecked(sound) == {"labels", "density of the prior"}

    def loss(x):
        q = script.encode(x)
        return WRONG[name](x, q, script.decode(script.reparameterize(*q)))

    assert set(diagnose(**wrapped(script, images=x, loss=loss)).faults) == {name}


def test_distributions_that_functions_give_are_found_again_in_the_loss(modules, x):
    report = diagnose(
        lambda x: modules.encoder(x),
        lambda z: modules.decoder(z),
        x,
        loss=lambda x: modules.loss(x),
    )
    assert report.healthy, str(report)
    assert unchecked(report) == {"labels", "density of the prior"}


def test_dropout_hides_no_result_of_a_function_that_wraps_the_encoder(x):
    torch.manual_seed(0)
    model = Script()
    model.fc1 = nn.Sequential(model.fc1, nn.Dropout(0.5))
    report = diagnose(**wrapped(model, images=x, loss=lambda x: model.loss(x)))
    assert report["scale and sign of both terms"].verdict == "ok", str(report)


def test_a_result_that_the_loss_goes_around_is_not_judged(script, x):
    def deviation(x):
        mu, log_var = script.encode(x)
        return mu, (0.5 * log_var).exp()  # in the loss it is computed, and log_var used beside it

    report = diagnose(deviation, script.decode, x, loss=lambda x: script.loss(x))
    assert report.healthy, str(report)
    assert "in other ways than through what it returns" in report["KL against draws"].found


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_functions_of_another_model_are_not_found_in_the_loss(part, script, x):
    torch.manual_seed(5)
    options = wrapped(script, images=x, loss=script.loss)
    options[part] = getattr(Script(), part)
    found = diagnose(**options)["scale and sign of both terms"]
    assert found.verdict == "not checked"
    assert found.found.startswith(f"nothing that {part} returns was computed in the loss")


def test_nothing_of_a_model_inside_functions_is_changed(steps, x):
    steps.train()
    before = {name: value.clone() for name, value in steps.state_dict().items()}

    class Holder:
        net = None

        def loss(self, x):
            return self.net.compute_loss(x)

    holder = Holder()
    holder.net = steps
    report = diagnose(lambda x: steps.encode(x), steps.decoder, x, loss=holder.loss)
    assert report.healthy, str(report)
    assert report["scale and sign of both terms"].verdict == "ok"
    assert steps.training
    assert all(torch.equal(steps.state_dict()[name], value) for name, value in before.items())


def test_noise_of_numpy_is_seeded_and_goes_on_as_before(script, x):
    model = broken(
        script,
        reparameterize=lambda self, mu, log_var: mu + (0.5 * log_var).exp() * torch.from_numpy(
            np.random.standard_normal(mu.shape).astype("float32")  # noqa: NPY002
        ),
    )  # fmt: skip
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (diagnose(model.encode, model.decode, x, loss=model.loss) for _ in range(2))
    assert first.healthy, str(first)
    assert first == again
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


class Given(Script):
    """What encode returns is put into another form; the loss takes it from there."""

    form = staticmethod(lambda z, mu, log_var: (z, mu, log_var))
    back = staticmethod(lambda given: given)
    noise = staticmethod(torch.randn_like)

    def encode(self, x):
        mu, log_var = super().encode(x)
        return self.form(mu + (0.5 * log_var).exp() * self.noise(mu), mu, log_var)

    def loss(self, x):
        z, mu, log_var = self.back(self.encode(x))
        return self.bce(self.decode(z), x) + self.kld(mu, log_var)


class Held:
    def __init__(self, z, mu, log_var):
        self.z, self.mean, self.logvar = z, mu, log_var


FORMS = {
    "z first": (lambda *q: q, lambda q: q),
    "z last": (lambda z, mu, log_var: [mu, log_var, z], lambda q: (q[2], q[0], q[1])),
    "features first": (lambda *q: (torch.zeros(3), *q), lambda q: q[1:]),
    "a dictionary": (
        lambda z, mu, log_var: {"log_variance": log_var, "z": z, "mean": mu},
        lambda q: (q["z"], q["mean"], q["log_variance"]),
    ),
    "an object": (Held, lambda q: (q.z, q.mean, q.logvar)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("noise", [torch.randn_like, torch.rand_like, torch.zeros_like])
def test_an_encoder_may_return_its_draw_and_name_its_outputs(form, noise, script, x):
    model = type(
        "Form", (Given,), dict(zip(("form", "back"), map(staticmethod, FORMS[form]), strict=True))
    )()
    model.load_state_dict(script.state_dict())
    model.noise = noise
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    expected = {torch.randn_like: (), torch.rand_like: ("uniform-noise",)}
    assert report.faults == expected.get(noise, ("no-noise",)), str(report)
    assert report["scale and sign of both terms"].found == "log-likelihood summed, KL summed"


def test_noise_of_python_is_seeded_and_goes_on_as_before(script, x):
    seen = []

    def loss(self, x):
        seen.append(random.random())
        return Script.loss(self, x)

    model = broken(script, loss=loss)
    for _ in range(2):
        diagnose(model.encode, model.decode, x, loss=model.loss)
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    before = random.getstate()  # the checks of types in the tests draw from it, too
    with doctor._others_seeded(0):
        random.random()
    assert random.getstate() == before


def drawn_by(noise):
    """The loss with four draws of z for each image, with noise of one's own."""

    def loss(self, x):
        mu, log_var = self.encode(x)
        z = mu + (0.5 * log_var).exp() * noise(torch.zeros(4, *mu.shape))
        log_p = -F.binary_cross_entropy(self.decode(z), x.expand(4, -1, -1), reduction="none")
        return self.kld(mu, log_var) - log_p.sum(-1).mean(0).sum()

    return loss


@pytest.mark.parametrize(
    ("noise", "fault"),
    [
        (torch.randn_like, ""),
        (lambda zero: torch.cat([eps := torch.randn_like(zero[:2]), -eps]), ""),
        (lambda zero: 0.8 * torch.randn_like(zero), "noise-scale"),
        (lambda zero: 1.3 * torch.randn_like(zero), "noise-scale"),
        (lambda zero: 0.3 + torch.randn_like(zero), "noise-scale"),
        (lambda zero: 12**0.5 * (torch.rand_like(zero) - 0.5), "uniform-noise"),
        (lambda zero: torch.randn_like(zero[:1]).expand_as(zero), "one-noise"),
    ],
)
def test_noise_that_is_not_standard_normal_is_found_by_its_moments(noise, fault, script, x):
    model = broken(script, loss=drawn_by(noise))
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert report.faults == tuple(fault.split()), str(report)
    assert report["reparameterized gradient"].verdict == "ok"
    assert report["log-variance or deviation"].verdict == "ok"


def test_healthy_noise_is_rarely_called_another(script, x):
    """Of 200 tries none, where one in 10,000 would be many."""
    eps = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0)).double()
    assert not any(doctor._is_far_from_normal(each) for each in eps)


def test_noise_of_another_deviation_is_told_from_noise_of_another_shape(script, x):
    model = broken(
        script,
        reparameterize=lambda self, mu, log_var: (
            mu + 0.1 * (0.5 * log_var).exp() * torch.randn_like(mu)
        ),
    )
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert report.faults == ("noise-scale",)
    assert re.search(r"mean -?0.0\d and deviation 0.1\d, ", report["noise"].found)


def test_a_loss_may_encode_the_images_once_for_each_term(script, x):
    model = broken(
        script,
        loss=lambda self, x: (
            self.bce(self.decode(self.reparameterize(*self.encode(x))), x)
            + self.kld(*self.encode(x))
        ),
    )
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert report.healthy, str(report)
    assert report["scale and sign of both terms"].found == "log-likelihood summed, KL summed"


@pytest.mark.parametrize(
    ("packed", "unpacked"),
    [
        (lambda made: [made], lambda packed: packed[0]),
        (lambda made: {"reconstruction": made}, lambda packed: packed["reconstruction"]),
    ],
)
def test_what_is_returned_may_be_packed_alone(packed, unpacked, script, x):
    model = broken(
        script,
        encode=lambda self, x: packed(Script.encode(self, x)),
        decode=lambda self, z: packed(Script.decode(self, z)),
        loss=lambda self, x: (
            self.bce(
                unpacked(self.decode(self.reparameterize(*(q := unpacked(self.encode(x)))))), x
            )
            + self.kld(*q)
        ),
    )
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert report.healthy, str(report)
    assert report["scale and sign of both terms"].verdict == "ok"


def test_a_number_for_each_value_of_a_pixel_is_no_number_for_each_pixel(script, x):
    def decode(z):
        return script.decode(z).unsqueeze(-1).expand(-1, -1, 17)

    with pytest.raises(ValueError, match=r"^decode: .* 784 pixels .* got shape \(64, 784, 17\)"):
        diagnose(script.encode, decode, x)


# Where the draws stand: z of the draws of each image, and back to (draws, n, ...).
ORDERS = {
    "draws first": (lambda z: z, lambda made: made),
    "images first": (lambda z: z.transpose(0, 1), lambda made: made.transpose(0, 1)),
    "in rows by draw": (
        lambda z: z.flatten(0, 1),
        lambda made: made.unflatten(0, (4, -1)),
    ),
    "in rows by image": (
        lambda z: z.transpose(0, 1).flatten(0, 1),
        lambda made: made.unflatten(0, (-1, 4)).transpose(0, 1),
    ),
}
AVERAGES = {
    "": lambda log_w: log_w.mean(),
    " ": lambda log_w: log_w.logsumexp(0).mean() - math.log(4),
    "sum-inside-the-logarithm": lambda log_w: log_w.logsumexp(0).sum(),
    "average-inside-the-logarithm": lambda log_w: log_w.flatten().logsumexp(0),
}


def score(images, made):
    """Of a reader's own, where images and what was decoded have the same leading axes."""
    return -F.binary_cross_entropy(made, images.expand_as(made), reduction="none").sum(-1)


@pytest.mark.parametrize("likelihood", [None, score])
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("order", ORDERS)
def test_draws_may_stand_in_any_order(order, average, likelihood, script, x):
    there, back = ORDERS[order]

    def loss(x):
        mu, log_var = script.encode(x)
        q = Normal(mu, (0.5 * log_var).exp())
        z = q.rsample((4,))
        log_p = score(x, back(script.decode(there(z))))
        log_w = log_p + (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1)
        return -AVERAGES[average](log_w)

    report = diagnose(script.encode, script.decode, x, loss=loss, likelihood=likelihood)
    assert report.faults == tuple(average.split()), str(report)
    assert report["draws of z in the loss"].verdict != "not checked"
    assert report["noise"].verdict == "ok"


def test_the_mean_in_place_of_draws_is_found_in_any_order(script, x):
    def loss(x):
        mu, log_var = script.encode(x)
        z = mu.repeat_interleave(4, 0)  # four draws of each image, one after the other
        if script.training:
            z = z + (0.5 * log_var).exp().repeat_interleave(4, 0) * torch.randn_like(z)
        made = script.decode(z)
        return cross_entropy(x.repeat_interleave(4, 0), made) / 4 + script.kld(mu, log_var)

    report = diagnose(script.encode, script.decode, x, loss=loss)
    assert report.faults == ("mean-at-test",), str(report)


def test_several_draws_of_wrapped_functions_are_found_again(script, x):
    report = diagnose(**wrapped(script, images=x, loss=lambda x: -several(script, x, 4).mean()))
    assert report.healthy, str(report)
    assert report["draws of z in the loss"].found.startswith("4 draws of z")


def test_a_bound_by_groups_of_draws_is_no_fault(script, x):
    def loss(x):
        return (math.log(3) - several(script, x, 6).unflatten(0, (2, 3)).logsumexp(1)).mean()

    report = diagnose(script.encode, script.decode, x, loss=loss)
    assert report.healthy, str(report)
    assert "in groups" in report["draws of z in the loss"].found


@pytest.mark.parametrize("axis", [0, 1])
def test_a_sum_of_weights_in_place_of_their_average_is_told_with_its_nats(axis, script, x):
    def loss(x):
        return -several(script, x, 10).unflatten(0, (2, 5)).logsumexp(axis).mean()

    report = diagnose(script.encode, script.decode, x, loss=loss)
    assert "sum-inside-the-logarithm" in report.faults, str(report)
    finding = report["draws of z in the loss"]
    assert finding.nats == pytest.approx(math.log((2, 5)[axis]), abs=0.02)
    assert finding.advice == f"subtract log({(2, 5)[axis]})"


def test_weights_held_fixed_have_the_gradient_of_the_bound_and_not_its_value(script, x):
    def loss(x):
        log_w = several(script, x, 4)
        return -(log_w.softmax(0).detach() * log_w).sum(0).mean()

    report = diagnose(script.encode, script.decode, x, loss=loss)
    assert report["draws of z in the loss"].verdict == "ok", str(report)


def test_the_modules_that_functions_speak_of_are_found(script):
    holder = type("Holder", (), {"step": lambda self, x: self.net.loss(x)})()
    holder.net = script
    functions = [
        script,
        script.encode,
        lambda x: script.encode(x),
        lambda x: holder.step(x),
        holder.step,
        partial(lambda model, x: model(x), script),
        partial(script.loss),
    ]
    assert [modules_of(each) for each in functions] == [[script]] * len(functions)
    assert modules_of(torch.sum, len, None, F.relu) == []


# What the terms were divided by -------------------------------------------------------------------


def squared(x, made):
    return (made - x).square().sum()


DIVIDED = {
    "mean-reduction: pixels and images": lambda x, q, p: F.mse_loss(p, x) + kl(*q),
    "mean-reduction: pixels": lambda x, q, p: F.mse_loss(p, x) + kl(*q) / 64,
    "mean-reduction: all, units": lambda x, q, p: F.mse_loss(p, x) + kl(*q) / 64 / UNITS,
    "mean-reduction: cross-entropy, all, units": lambda x, q, p: (
        F.binary_cross_entropy(p, x) + kl(*q) / 64 / UNITS
    ),
    "mean-reduction: cross-entropy, all, KL summed": lambda x, q, p: (
        F.binary_cross_entropy(p, x) + kl(*q)
    ),
    "kl-mean: beside a squared error": lambda x, q, p: squared(x, p) + kl(*q) / UNITS,
    "kl-mean: over images as well": lambda x, q, p: cross_entropy(x, p) + kl(*q) / UNITS / len(x),
    "kl-over-784: over images as well": lambda x, q, p: cross_entropy(x, p) + kl(*q) / 784 / len(x),
    "kl-weight: beside a squared error": lambda x, q, p: squared(x, p) / 64 + 0.00025 * kl(*q) / 64,
    "kl-weight: beside its average": lambda x, q, p: F.mse_loss(p, x) + 0.00025 * kl(*q) / 64,
    "kl-weight: too much noise": lambda x, q, p: squared(x, p) / 8 + kl(*q),
    "kl-weight: twice": lambda x, q, p: cross_entropy(x, p) + 2 * kl(*q),
}


@pytest.mark.parametrize("name", DIVIDED)
def test_what_a_term_was_divided_by_is_named(name, script, x):
    report = diagnose(script.encode, script.decode, x, loss=DIVIDED[name])
    assert report.faults == (name.split(":")[0],), str(report)


@pytest.mark.parametrize("weight", [1e-3, 1e-5, 1e-6, 1e-8])
def test_a_weight_too_small_to_see_is_a_fault_all_the_same(weight, script, x):
    report = diagnose(
        script.encode, script.decode, x, loss=lambda x, q, p: cross_entropy(x, p) + weight * kl(*q)
    )
    finding = report["scale and sign of both terms"]
    assert finding.fault in ("kl-weight", "no-kl"), str(report)
    assert finding.nats == pytest.approx(kl(*script.encode(x)).item() / len(x), rel=0.1)


@pytest.mark.parametrize("deviation", [0.01, 0.001])
def test_a_weight_that_rounding_hides_is_not_called_a_fault(deviation, x):
    """Beside a likelihood of little noise the KL's gradient is lost in single precision."""
    torch.manual_seed(0)
    fresh = Script()

    def scale(**methods):
        model = broken(fresh, **methods)
        report = diagnose(model.encode, model.decode, x, loss=model.loss)
        assert "kl-value" not in report.faults, str(report)
        return report["scale and sign of both terms"]

    def mean(self, z):
        return self.fc4(F.relu(self.fc3(z)))

    def normal(self, z):
        return Normal(mean(self, z), deviation)

    def likely(self, x):
        mu, log_var = self.encode(x)
        p = self.decode(self.reparameterize(mu, log_var))
        return self.kld(mu, log_var) - p.log_prob(x).sum()

    def error(self, x):
        made, mu, log_var = self(x)
        return squared(x, made) / (2 * deviation**2) + self.kld(mu, log_var)

    for found in (scale(decode=normal, loss=likely), scale(decode=mean, loss=error)):
        assert found.verdict == "not checked", str(found)
        assert "to be seen in single precision" in found.found
    without = scale(decode=mean, loss=lambda self, x: squared(x, self(x)[0]))
    assert without.fault == "no-kl", str(without)


def test_a_weight_that_happens_to_be_one_over_the_images_is_not_called_an_average(script, x):
    noise = (2 / len(x)) ** 0.5 / 2  # the error has the weight 64, or 32 beside half of it
    report = diagnose(
        script.encode,
        script.decode,
        x,
        loss=lambda x, q, p: (squared(x, p) / (2 * noise**2) + kl(*q)) / len(x),
    )
    assert report.healthy, str(report)
    beta = 1 / (64 * UNITS)
    chosen = diagnose(
        script.encode, script.decode, x, loss=lambda x, q, p: cross_entropy(x, p) + beta * kl(*q)
    )
    assert chosen.faults == ("kl-weight",), str(chosen)
    assert "for any number of images" in chosen["scale and sign of both terms"].found


def test_a_kl_of_the_right_value_and_another_gradient_is_told(script, x):
    report = diagnose(
        script.encode,
        script.decode,
        x,
        loss=lambda x, q, p: cross_entropy(x, p) + kl(q[0].detach(), q[1]),
    )
    finding = report["KL against draws"]
    assert finding.fault == "kl-formula"
    assert "the value of the KL" in finding.found
    assert "leave out detach()" in finding.advice


@pytest.mark.parametrize("name", ["logits", "probs"])
def test_a_distribution_that_keeps_both_of_two_forms_is_read_once(name, script, x):
    def decode(self, z):
        p = Script.decode(self, z)
        return ContinuousBernoulli(**{name: p.logit() if name == "logits" else p})

    def loss(self, x):
        q = self.encode(x)
        return self.kld(*q) - self.decode(self.reparameterize(*q)).log_prob(x).sum()

    model = broken(script, decode=decode, loss=loss)
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert report["scale and sign of both terms"].verdict == "ok", str(report)
    assert report["KL against draws"].verdict == "ok"


def test_what_each_term_was_divided_by_is_said_in_words(script, x):
    def found(name):
        report = diagnose(script.encode, script.decode, x, loss=DIVIDED[name])
        return report["scale and sign of both terms"]

    each = found("mean-reduction: cross-entropy, all, units")
    assert each.found == (
        "log-likelihood averaged over images and pixels, KL averaged over images and units"
    )
    assert each.advice == "sum the log-likelihood over pixels; sum the KL over the units of z"
    each = found("kl-weight: beside its average")
    assert "the KL has 0.098 times its weight beside half the squared error" in each.found
    assert each.advice.startswith("if this noise was chosen, say beta=0.098;")


@pytest.mark.parametrize(
    ("loss", "scale"),
    [
        (lambda x, q, p: squared(x, p) / (2 * 0.3**2) + kl(*q), "0.3"),
        (lambda x, q, p: squared(x, p) + kl(*q), "0.707"),
        (lambda x, q, p: (p - x).abs().sum() / 0.2 + kl(*q), "0.2"),
    ],
)
def test_a_weight_of_the_error_is_the_noise_of_the_pixels(loss, scale, script, x):
    report = diagnose(script.encode, script.decode, x, loss=loss)
    assert report.healthy, str(report)
    found = report["scale and sign of both terms"].found
    assert found.endswith(f"that of noise of scale {scale} on each pixel")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda q, log_q, log_p: (log_q - log_p - 5 * torch.log(q.stddev)).sum(),
        lambda q, log_q, log_p: (log_q - 2 * log_p).sum(),
    ],
)
def test_a_divergence_at_draws_with_wrong_coefficients_is_a_wrong_formula(wrong, script, x):
    def loss(x):
        mu, log_var = script.encode(x)
        q = Normal(mu, (0.5 * log_var).exp())
        z = q.rsample()
        return cross_entropy(x, script.decode(z)) + wrong(
            q, q.log_prob(z), Normal(0.0, 1.0).log_prob(z)
        )

    assert diagnose(script.encode, script.decode, x, loss=loss).faults == ("kl-formula",)


def test_a_full_covariance_with_a_wrong_divergence_is_a_wrong_formula(script, x):
    def encode(self, x):
        mu, log_var = Script.encode(self, x)
        factor = torch.diag_embed((0.5 * log_var).exp())
        return MultivariateNormal(mu, scale_tril=factor, validate_args=False)

    def loss(self, x):
        q = self.encode(x)
        half_missing = kl(q.mean, 2 * q.stddev.log()) - q.stddev.log().sum()
        return self.bce(self.decode(q.rsample()), x) + half_missing

    model = broken(script, encode=encode, loss=loss)
    assert faults(model, x) == ("kl-formula",)


def test_single_and_double_precision_give_the_same_findings(script, x):
    twice = broken(script).double()
    report = diagnose(twice.encode, twice.decode, x.double(), loss=twice.loss)
    assert report.healthy, str(report)
    assert unchecked(report) == {"labels", "density of the prior"}


# The prior ----------------------------------------------------------------------------------------


def components(count, d, seed=0):
    """Components that stand apart in part, of unequal deviations."""
    g = torch.Generator().manual_seed(seed)
    mu = 1.5 * torch.randn(count, d, generator=g)
    return DiagonalGaussian(mu, 0.8 * torch.randn(count, d, generator=g) - 1)


def correlated(d, seed):
    """A covariance that no density without correlations comes near to."""
    A = torch.randn(d, d, generator=torch.Generator().manual_seed(seed))
    return A @ A.T + 0.01 * torch.eye(d)


HEALTHY = {
    "standard": lambda d, s: Normal(torch.zeros(d), torch.ones(d)),
    "Gaussian": lambda d, s: DiagonalGaussian(*(each[0] for each in components(1, d, s))),
    "correlated": lambda d, s: MultivariateNormal(torch.zeros(d), correlated(d, s)),
    **{
        f"mixture of {count}": lambda d, s, count=count: Mixture(components(count, d, s))
        for count in (3, 10, 50)
    },
}


def compared(prior, d, log_prob=None):
    draws = prior.sample((FITTED + KEPT,))
    log_prob = log_prob or (lambda z: prior.log_prob(z).reshape(len(z), -1).sum(1))
    return agreement(draws, log_prob)


@pytest.mark.parametrize("d", [1, 2, 6, 20])
@pytest.mark.parametrize("kind", HEALTHY)
def test_draws_and_density_of_a_healthy_prior_agree(kind, d):
    for seed in range(3):
        torch.manual_seed(seed)
        found = compared(HEALTHY[kind](d, seed), d)
        assert found.fault == ""
        assert found.ratio < 1 + 5 * found.error


@pytest.mark.parametrize("d", [2, 6, 20])
@pytest.mark.parametrize("count", [3, 10])
def test_a_mixture_by_unit_is_found_by_its_name(count, d):
    for seed in range(3):
        torch.manual_seed(seed)
        prior = Mixture(components(count, d, seed))
        with fault("mixture-by-unit"):
            found = compared(prior, d)
        assert found.fault == "mixture-by-unit"
        assert found.ratio > 1 + 5 * found.error


@pytest.mark.parametrize("d", [2, 6, 20])
def test_a_variance_for_a_deviation_in_sample_is_found_by_its_name(d):
    for seed in range(3):
        torch.manual_seed(seed)
        with fault("variance-in-sample"):
            found = compared(HEALTHY["Gaussian"](d, seed), d)
        assert found.fault == "variance-in-sample"


@pytest.mark.parametrize("kind", ["Gaussian", "mixture of 3"])
@pytest.mark.parametrize("off", [math.log(1.5), -math.log(1.5)])
def test_a_constant_that_the_log_density_lacks_is_found(kind, off):
    torch.manual_seed(0)
    prior = HEALTHY[kind](6, 0)
    found = compared(prior, 6, lambda z: prior.log_prob(z) + off)
    assert found.fault == "prior-density"
    assert found.ratio == pytest.approx(math.exp(-off), abs=5 * found.error)


class OwnMixture(nn.Module):
    """A reader's mixture prior: a number of draws, weights of its own, one z in a row."""

    def __init__(self, by_unit=False):
        super().__init__()
        torch.manual_seed(3)
        self.means = nn.Parameter(2 * torch.randn(4, UNITS))
        self.log_vars = nn.Parameter(0.5 * torch.randn(4, UNITS))
        self.logits, self.by_unit = nn.Parameter(torch.randn(4)), by_unit

    def forward(self, z):
        raise AssertionError("a prior is asked for draws and its log-density alone")

    def sample(self, number):
        which = torch.multinomial(self.logits.softmax(0), number, replacement=True)
        return self.means[which] + (0.5 * self.log_vars[which]).exp() * torch.randn(number, UNITS)

    def log_prob(self, z):
        assert z.ndim == 2
        each = Normal(self.means, (0.5 * self.log_vars).exp()).log_prob(z[:, None])
        log_weights = self.logits.log_softmax(0)
        if self.by_unit:
            return (each + log_weights[:, None]).logsumexp(1)  # one number for each unit
        return (each.sum(-1) + log_weights).logsumexp(1)


def test_nats_that_a_prior_lacks_are_told(script, x):
    prior = OwnMixture()
    exact = prior.log_prob
    prior.log_prob = lambda z: exact(z) - 2 * math.log(2)
    finding = diagnose(script.encode, script.decode, x, prior=prior)["density of the prior"]
    assert finding.fault == "prior-density"
    assert -2 * math.log(2) < finding.nats < -0.5  # as far as it can be seen, and never more


@pytest.mark.parametrize("by_unit", [False, True])
def test_a_prior_of_the_readers_own_class_is_asked_and_judged(by_unit, script, x):
    prior = OwnMixture(by_unit)

    def loss(self, x):
        mu, log_var = self.encode(x)
        z = self.reparameterize(mu, log_var)
        q = Normal(mu, (0.5 * log_var).exp())
        log_p = prior.log_prob(z).reshape(len(z), -1).sum(-1)
        return self.bce(self.decode(z), x) + (q.log_prob(z).sum(-1) - log_p).sum()

    model = broken(script, loss=loss)
    report = diagnose(model.encode, model.decode, x, loss=model.loss, prior=prior)
    assert report.faults == (("mixture-by-unit",) if by_unit else ()), str(report)
    assert report["scale and sign of both terms"].verdict == "ok"
    assert report["KL against draws"].verdict == "ok"
    assert unchecked(report) == {"labels"}
    told = float(report["collapse"].found.split("KL ")[1].split()[0])
    drawn = float(report["KL against draws"].found.split("by draws ")[1].split()[0])
    assert told == pytest.approx(drawn, rel=0.05)


def test_a_prior_that_differs_from_image_to_image_is_compared_at_the_first(script, x):
    log_var = torch.linspace(1, 2, 64)[:, None].expand(-1, UNITS)
    each = DiagonalGaussian(torch.zeros(64, UNITS), log_var)

    def checked(prior):
        report = diagnose(script.encode, script.decode, x, prior=prior)
        return report["density of the prior"]

    assert checked(lambda: each).verdict == "ok"
    with fault("variance-in-sample"):
        assert checked(lambda: each).fault == "variance-in-sample"
    ours = Normal(each.mu, each.sigma)
    assert checked(ours).found == "the prior is another one for each image"


# Trained with a mistake ---------------------------------------------------------------------------


def trained_with(digits, loss):
    torch.manual_seed(0)
    model = Script()
    return train(model, lambda x: loss(model, x), digits[0])


def test_a_model_that_collapsed_is_told_so_without_its_loss(digits, x):
    model = trained_with(
        digits,
        lambda model, x: (
            cross_entropy(x, (out := model(x))[0]) / 784 + model.kld(*out[1:])
        ) / len(x),
    )  # fmt: skip
    assert diagnose(model.encode, model.decode, x).faults == ("collapse",)


def test_codes_far_from_the_prior_are_told_so_without_the_loss(digits, x):
    model = trained_with(
        digits,
        lambda model, x: (
            cross_entropy(x, (out := model(x))[0]) + model.kld(*out[1:]) / 784
        ) / len(x),
    )  # fmt: skip
    assert diagnose(model.encode, model.decode, x).faults == ("prior-missed",)


@pytest.mark.parametrize("steps", [15, 30])
def test_codes_of_a_model_that_has_hardly_been_trained_are_not_judged(steps, digits, x):
    torch.manual_seed(0)
    model = Script()
    train(model, lambda batch: model.loss(batch) / 64, digits[0], steps=steps)
    report = diagnose(model.encode, model.decode, x)
    assert report.healthy, str(report)
    assert report["samples of the prior"].found.endswith("seems not to be trained yet")


def test_the_distance_of_all_codes_together_from_the_prior_is_told(script, x):
    mu = torch.tensor([1.5, -1.5]).repeat(32)[:, None].expand(-1, UNITS)

    def encode(x):
        return mu[: len(x)].clone(), torch.full_like(mu[: len(x)], math.log(0.5))

    finding = diagnose(encode, script.decode, x)["samples of the prior"]
    variance = 1.5**2 + 0.5  # of the means, and the average of the codes' own
    assert finding.nats == pytest.approx(
        UNITS * 0.5 * (variance - 1 - math.log(variance)), rel=1e-3
    )


# Labels -------------------------------------------------------------------------------------------


class Conditional(nn.Module):
    """A VAE that is told labels as rows of ten numbers."""

    def __init__(self, encoder=True, decoder=True):
        super().__init__()
        self.told = encoder, decoder
        self.encoder, self.decoder = nn.Linear(794, 2 * UNITS), nn.Linear(UNITS + 10, 784)

    def encode(self, x, y):
        return self.encoder(torch.cat([x, y * self.told[0]], 1)).chunk(2, 1)

    def decode(self, z, y):
        return torch.sigmoid(self.decoder(torch.cat([z, y * self.told[1]], 1)))

    def loss(self, x, y):
        mu, log_var = self.encode(x, y)
        z = mu + (0.5 * log_var).exp() * torch.randn_like(mu)
        return cross_entropy(x, self.decode(z, y)) + kl(mu, log_var)


@pytest.mark.parametrize(
    ("encoder", "decoder", "found"),
    [(1, 1, ()), (0, 1, ("deaf-encoder",)), (1, 0, ("deaf-decoder",)), (0, 0, ("deaf-decoder",))],
)
def test_labels_that_are_not_heard_are_found(encoder, decoder, found, digits, x):
    torch.manual_seed(0)
    model, labels = Conditional(encoder, decoder), F.one_hot(digits[1][2000:2064]).float()
    report = diagnose(model.encode, model.decode, x, loss=model.loss, labels=labels)
    assert report.faults == found, str(report)


def test_one_label_for_all_tells_nothing_of_who_hears_it(x):
    torch.manual_seed(0)
    model, labels = Conditional(), F.one_hot(torch.full((64,), 3), 10).float()
    report = diagnose(model.encode, model.decode, x, labels=labels)
    assert report["labels"].found == "all labels are alike; give images of several classes"


# What is left as it was, and what cannot be seen --------------------------------------------------


def test_nothing_of_the_readers_is_changed(steps, x):
    steps.train()
    steps.encoder[2].eval()  # frozen on purpose
    before = {name: value.clone() for name, value in steps.state_dict().items()}
    attributes, random = set(vars(steps)), torch.get_rng_state()
    diagnose(steps.encode, steps.decoder, x, loss=steps.compute_loss)
    assert torch.equal(torch.get_rng_state(), random)
    assert set(vars(steps)) == attributes
    assert not steps.decoder._forward_hooks
    assert steps.training
    assert not steps.encoder[2].training
    after = steps.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    steps.encoder[2].train()


def test_gradients_of_the_reader_stay_as_they_are(script, x):
    model = broken(script)
    diagnose(model.encode, model.decode, x, loss=model.loss)
    assert all(each.grad is None for each in model.parameters())


def test_the_same_seed_gives_the_same_report(script, x):
    first, again, other = (
        diagnose(script.encode, script.decode, x, loss=script.loss, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("watchable", [True, False])
def test_the_loss_is_called_once_in_each_mode(script, x, watchable):
    calls = []

    def loss(images):
        assert len(images) == 64
        calls.append((script.training, torch.is_grad_enabled()))
        return script.loss(images)

    encode = script.encode if watchable else lambda images: script.encode(images)
    diagnose(encode, script.decode, x, loss=loss)
    assert calls == [(True, True), (False, False)]


def test_a_model_that_draws_in_training_mode_alone_is_told_so(script, x):
    class Quiet(type(script)):
        def reparameterize(self, mu, log_var):
            return super().reparameterize(mu, log_var) if self.training else mu

    quiet = Quiet()
    quiet.load_state_dict(script.state_dict())
    report = diagnose(quiet.encode, quiet.decode, x, loss=quiet.loss)
    assert report.faults == ("mean-at-test",), str(report)


def test_without_a_loss_its_checks_are_not_made_and_the_others_are(script, x):
    report = diagnose(script.encode, script.decode, x)
    assert report.healthy
    assert {each.check for each in report.findings if each.verdict == "ok"} == {
        "range of the data",
        "two outputs of the encoder",
        "decoder's output",
        "likelihood sums to one",
        "collapse",
        "training and evaluation mode",
        "samples of the prior",
    }


def test_an_untrained_model_is_neither_healthy_nor_collapsed_in_the_eyes_of_the_doctor(x):
    torch.manual_seed(1)
    model = Script()
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert report.healthy, str(report)
    assert report["collapse"].verdict == "not checked"
    assert report["scale and sign of both terms"].verdict == "ok"


def test_an_untrained_model_of_noise_is_not_called_collapsed():
    """The average of such images is as gray as what untrained weights draw."""
    noise = (torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    for seed in range(6):
        torch.manual_seed(seed)
        model = VAE(2, 8, (1, 4, 4), likelihoods.Bernoulli())
        finding = diagnose(model.encode, model.decode, noise)["collapse"]
        assert finding.verdict == ("not checked" if finding.found.startswith("0 of") else "ok")


def test_as_many_images_as_units_are_not_taken_for_priors_of_each(script, x):
    report = diagnose(script.encode, script.decode, x[:UNITS])
    assert report["samples of the prior"].verdict == "ok"


def test_a_likelihood_and_a_prior_of_the_readers_own_are_taken(script, x):
    def log_prob(images, made):
        return Normal(made, 0.3).log_prob(images).sum(-1)

    wide = Independent(Normal(torch.zeros(UNITS), 2 * torch.ones(UNITS)), 1)

    def loss(images, q, made):
        q = Normal(q[0], (0.5 * q[1]).exp())
        return kl_divergence(q, wide.base_dist).sum() - log_prob(images, made).sum()

    options = {"loss": loss, "likelihood": log_prob}
    assert diagnose(script.encode, script.decode, x, prior=wide, **options).healthy
    assert diagnose(script.encode, script.decode, x, **options).faults == ("kl-formula",)


def test_a_full_covariance_without_correlations_is_a_diagonal_gaussian(script, x):
    model = broken(
        script,
        encode=lambda self, x: MultivariateNormal(
            (pair := Script.encode(self, x))[0],
            scale_tril=torch.diag_embed((0.5 * pair[1]).exp()),
            validate_args=False,
        ),
        loss=lambda self, x: (
            self.bce(self.decode((q := self.encode(x)).rsample()), x)
            + kl_divergence(q, MultivariateNormal(torch.zeros(UNITS), torch.eye(UNITS))).sum()
        ),
    )
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert report.healthy, str(report)
    assert unchecked(report) == {"labels", "density of the prior"}


def test_codes_may_have_any_shape(x):
    torch.manual_seed(0)

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(1, 4, 4, 4), nn.ConvTranspose2d(2, 1, 4, 4)

        def encode(self, x):
            return self.down(x).chunk(2, 1)

        def loss(self, x):
            mu, log_var = self.encode(x)
            logits = self.up(mu + (0.5 * log_var).exp() * torch.randn_like(mu))
            return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl(mu, log_var)

    model = Maps()
    report = diagnose(model.encode, model.up, x.view(-1, 1, 28, 28), loss=model.loss)
    assert report.healthy, str(report)
    assert report["scale and sign of both terms"].verdict == "ok"


def test_dropout_of_a_module_is_no_fault_and_its_distance_is_told(x):
    torch.manual_seed(0)
    model = Script()
    model.fc1 = nn.Sequential(model.fc1, nn.Dropout(0.5))
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert report.healthy, str(report)
    finding = report["training and evaluation mode"]
    assert finding.advice == "measure in evaluation mode only"
    assert finding.nats > 0.01


def test_draws_of_the_prior_that_decode_to_nothing_are_found(x):
    class Narrow(Script):
        def encode(self, x):
            return torch.zeros(len(x), UNITS), torch.full((len(x), UNITS), -4.0)

        def decode(self, z):
            return torch.where(z[:, :1].abs() < 1, self.fc4(F.relu(self.fc3(z))), math.nan)

    model = Narrow()
    assert "samples" in diagnose(model.encode, model.decode, x, likelihood="gaussian").faults


def test_batch_norm_in_both_networks_is_no_fault_and_keeps_its_statistics(x):
    torch.manual_seed(0)
    model = Script()
    model.fc3 = nn.Sequential(nn.Linear(UNITS, 64), nn.BatchNorm1d(64))
    statistics = model.fc3[1].running_mean
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    assert report.healthy, str(report)
    assert report["scale and sign of both terms"].verdict == "ok"
    assert model.fc3[1].running_mean is statistics
    assert not statistics.any()


def nearly_continuous(self, made, x):
    """The continuous Bernoulli with the first terms of a series for probabilities near 0.5."""
    near = made.clamp(0.45, 0.55)
    series = math.log(2) + 4 / 3 * (near - 0.5) ** 2
    far = torch.where(near == made, 0.4, made)
    exact = (2 * torch.atanh(1 - 2 * far) / (1 - 2 * far)).log()
    constant = torch.where(near == made, series, exact)
    return F.binary_cross_entropy(made, x, reduction="sum") - constant.sum()


def test_a_formula_that_is_exact_to_a_thousandth_is_no_fault(script, x):
    for model in (Script(), broken(script)):
        model.bce = nearly_continuous.__get__(model)
        report = diagnose(model.encode, model.decode, x, loss=model.loss)
        assert report.healthy, str(report)


# Bad input ----------------------------------------------------------------------------------------


class Draws:
    """A prior of the wrong shape, and with one log-density for all."""

    def __init__(self, d):
        self.d = d

    def sample(self, shape):
        return torch.zeros(*shape, self.d)

    def log_prob(self, z):
        return torch.zeros(() if self.d == UNITS else len(z))


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encode": 3}, "encode: expected a function or a module, got int"),
        ({"decode": None}, "decode: expected a function or a module, got NoneType"),
        ({"loss": 3}, "loss: expected a function or None, got int"),
        ({"draw": "randn"}, "draw: expected a function or None, got str"),
        ({"images": [1, 2]}, "images: expected a tensor of two or more images, .* got list"),
        ({"images": torch.rand(1, 784)}, r"images: .* two or more .* got shape \(1, 784\)"),
        ({"images": torch.ones(9, 784, dtype=torch.uint8)}, "images: expected floating-point"),
        ({"images": torch.rand(9, 28, 28)}, r"encode: raised .*, given shape \(9, 28, 28\)"),
        ({"labels": torch.zeros(3)}, "labels: expected a tensor of one for each of 64 images"),
        ({"likelihood": "poisson"}, "likelihood: expected bernoulli, .* got 'poisson'"),
        ({"likelihood": lambda x, made: made.sum()}, "likelihood: expected log p"),
        ({"spread": "sigma"}, "spread: expected log_var, std, log_std, var or None, got 'sigma'"),
        ({"spread": "std"}, "spread: expected what encode returns, got 'std', but some are neg"),
        ({"beta": 0}, "beta: expected a positive number, got 0"),
        ({"prior": "normal"}, "prior: expected a distribution, .* and log_prob, got str"),
        ({"prior": Draws(3)}, r"prior: expected draws of shape .*\[64, 6\].* got .*\[64, 3\]"),
        ({"prior": Draws(UNITS)}, "prior: expected log p\\(z\\) of .* draws, got"),
        ({"encode": lambda x: x}, "encode: expected a tuple .* got Tensor"),
        ({"encode": lambda x: (x, x[:, :3])}, "encode: expected mean and spread of one shape"),
        ({"encode": lambda x: (x[0], x[0])}, "encode: expected one mean for each of 64 images"),
        ({"decode": lambda z: z}, r"decode: expected 784 numbers .* got shape \(64, 6\)"),
        ({"decode": lambda z: "image"}, "decode: expected a tensor of logits, .* got str"),
        ({"loss": lambda x: 3.0}, "loss: expected a tensor of one number, .* got float"),
        ({"loss": lambda x: {"elbo": x}}, "loss: expected a tensor of one number, .* NoneType"),
        ({"loss": lambda x: x}, r"loss: expected a tensor of one number, .* got shape \(64, 784\)"),
        ({"loss": lambda x: 1 / 0}, "loss: raised ZeroDivisionError"),
        ({"loss": lambda x: x.sum() * math.nan}, "loss: expected numbers, got NaN"),
        ({"loss": lambda made, x, mu, log_var: 0}, "loss: .* of images, or .* 4 arguments; wrap"),
        ({"loss": lambda: 0}, "loss: expected a function of images, .* needs 0 arguments"),
        ({"loss": nn.MSELoss()}, "loss: expected a function of images, .* needs 2 arguments"),
        ({"loss": lambda x: 0, "labels": torch.zeros(64)}, "loss: expected .* images and labels"),
        ({"labels": torch.tensor(3)}, r"labels: expected a tensor of one for .* got shape \(\)"),
        ({"likelihood": ["bernoulli"]}, r"likelihood: expected bernoulli, .* got \['bernoulli'\]"),
        (
            {"decode": lambda z: OneHotCategorical(logits=torch.zeros(len(z), 784, 5))},
            "decode: expected a number or a distribution for each of 784 pixels of 64 images, got",
        ),
        ({"seed": 1.5}, "seed: expected a whole number from 0 .* got 1.5"),
        ({"seed": -1}, "seed: expected a whole number from 0 .* got -1"),
        ({"encode": lambda x: (x * math.nan, x)}, "encode: expected numbers, got NaN"),
        ({"decode": lambda z: torch.full((64, 784), math.nan)}, "decode: expected numbers, got"),
        ({"prior": Normal}, "prior: raised TypeError"),
        ({"prior": Normal(torch.zeros(3), 1.0)}, r"prior: .* shape \(6,\), got shape \(3,\)"),
        ({"draw": lambda q: None, "loss": lambda x, q, p: 0}, r"draw: .* \(64, 6\), got NoneType"),
    ],
)  # fmt: skip
def test_an_argument_that_is_none_is_named(change, message, script, x):
    arguments = {"encode": script.encode, "decode": script.decode, "images": x} | change
    with pytest.raises(ValueError, match=f"^{message}"):
        diagnose(**arguments)


def test_a_distribution_of_levels_is_scored_and_its_mass_not_checked(script, x):
    def decode(z):
        return Categorical(logits=torch.zeros(len(z), 784, 5))

    report = diagnose(script.encode, decode, x)
    assert report["likelihood sums to one"].verdict == "not checked"

    def refuses(z):
        p_x = decode(z)
        p_x.log_prob = None
        return p_x

    with pytest.raises(ValueError, match=r"^decode: Categorical cannot score .* give likelihood="):
        diagnose(script.encode, refuses, x)


def test_a_loss_that_calls_backward_itself_is_told_not_to(script, x):
    model = broken(script)

    def step(x):
        loss = model.loss(x)
        loss.backward()
        return loss

    with pytest.raises(ValueError, match=r"^loss: its gradient raised .* and not to call it"):
        diagnose(model.encode, model.decode, x, loss=step)


@pytest.mark.parametrize("packed", [lambda p: p, lambda p: Bernoulli(p, validate_args=False)])
def test_a_decoder_without_gradients_is_told_from_one_with_fixed_weights(packed, script, x):
    model = broken(
        script,
        decode=lambda self, z: packed(Script.decode(self, z)),
        bce=lambda self, made, x: Script.bce(self, getattr(made, "probs", made), x),
    )
    for layer in (model.fc3, model.fc4):
        layer.requires_grad_(False)
    assert faults(model, x) == ()

    def loss(x):
        mu, log_var = model.encode(x)
        with torch.no_grad():
            made = model.decode(model.reparameterize(mu, log_var))
        return model.bce(made, x) + model.kld(mu, log_var)

    report = diagnose(model.encode, model.decode, x, loss=loss)
    assert report.faults == ("decoder-without-gradients",), str(report)
    finding = report["scale and sign of both terms"]
    assert finding.found == "the decoder is computed without gradients"


def test_a_decoder_that_returns_an_object_without_tensors_is_not_said_to_lack_gradients(script, x):
    model = broken(
        script,
        decode=lambda self, z: Held(Script.decode(self, z), None, None),
        bce=lambda self, made, x: cross_entropy(x, made.z),
    )
    report = diagnose(
        model.encode, model.decode, x, loss=model.loss,
        likelihood=lambda images, made: Bernoulli(made.z, validate_args=False).log_prob(images),
    )  # fmt: skip
    assert report.healthy, str(report)
    assert report["draws of z in the loss"].found.startswith("decode returns neither tensors")


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (
            lambda model, x: model.loss(x).detach(),
            "the loss has no gradient; is it computed inside",
        ),
        (
            lambda model, x: torch.inference_mode()(model.loss)(x),
            "the loss has no gradient; it is computed in torch.inference_mode",
        ),
    ],
)
def test_a_loss_without_a_gradient_is_said_to_have_none(loss, found, script, x):
    report = diagnose(script.encode, script.decode, x, loss=lambda x: loss(script, x))
    finding = report["scale and sign of both terms"]
    assert finding.verdict == "not checked"
    assert finding.found.startswith(found)


def test_an_encoder_without_gradients_is_found_unless_its_weights_are_frozen(script, x):
    model = broken(script)

    def loss(x):
        with torch.no_grad():
            mu, log_var = model.encode(x)
        made = model.decode(model.reparameterize(mu, log_var))
        return model.bce(made, x) + model.kld(mu, log_var)

    report = diagnose(model.encode, model.decode, x, loss=loss)
    assert report.faults == ("encoder-without-gradients",), str(report)
    assert report["scale and sign of both terms"].verdict == "not checked"
    for layer in (model.fc1, model.fc21, model.fc22):
        layer.requires_grad_(False)
    for each in (loss, model.loss):
        report = diagnose(model.encode, model.decode, x, loss=each)
        assert report.healthy, str(report)
        assert report["reparameterized gradient"].verdict == "not checked"


@pytest.mark.parametrize("fixed", ["mean", "spread"])
@pytest.mark.parametrize("constant", [False, True])
def test_a_loss_cannot_be_read_by_what_has_no_gradient(fixed, constant, script, x):
    head = {"mean": "fc21", "spread": "fc22"}[fixed]

    def encode(self, x):
        made = dict(zip(("mean", "spread"), Script.encode(self, x), strict=True))
        return tuple((made | ({fixed: torch.zeros(len(x), UNITS)} if constant else {})).values())

    model = broken(script, encode=encode)
    if not constant:
        model.fc1.requires_grad_(False)
        getattr(model, head).requires_grad_(False)
    report = diagnose(model.encode, model.decode, x, loss=model.loss)
    finding = report["scale and sign of both terms"]
    assert finding.verdict == "not checked"
    assert finding.found.startswith(f"the {fixed} that encode returns has no gradient")
    assert report.healthy, str(report)


@pytest.mark.parametrize("prior", [Normal(0.0, 1.0), Normal(torch.zeros(1), torch.ones(1))])
def test_a_prior_of_one_unit_is_that_of_all(prior, script, x):
    report = diagnose(script.encode, script.decode, x, loss=script.loss, prior=prior)
    assert report.healthy, str(report)
    assert unchecked(report) == {"labels"}


def test_a_prior_without_density_where_the_codes_lie_is_refused_by_no_error(script, x):
    prior = Uniform(-torch.ones(UNITS), torch.ones(UNITS))
    report = diagnose(script.encode, script.decode, x, loss=script.loss, prior=prior)
    assert "KL against draws" in unchecked(report) or not report.healthy


# The report ---------------------------------------------------------------------------------------


@pytest.fixture
def report():
    return Report((
        Finding("scale", "fault", "KL | log-likelihood < 0", "kl-sign", 12.345, "change the sign"),
        Finding("noise", "ok", "standard normal"),
        Finding("labels", "not checked", "no labels were given"),
    ))  # fmt: skip


def test_a_report_is_read_in_a_terminal(report):
    assert str(report).splitlines() == [
        "fault        scale [kl-sign]: KL | log-likelihood < 0 (12.35 nats an image)",
        "             -> change the sign",
        "ok           noise: standard normal",
        "not checked  labels: no labels were given",
        "2 of 3 checks made; found: kl-sign",
    ]
    assert all(len(line) <= 100 for line in str(report).splitlines())
    assert repr(report) == "Report(2 of 3 checks made; found: kl-sign)"


def test_a_report_is_a_table_in_jupyter(report):
    html, markdown = report._repr_html_(), report._repr_markdown_()
    assert html.count("<tr>") == 4
    assert "<td>fault: kl-sign</td><td>KL | log-likelihood &lt; 0</td><td>12.35</td>" in html
    rows = markdown.splitlines()[:5]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {6}
    assert r"| fault: kl-sign | KL \| log-likelihood < 0 | 12.35 |" in markdown


def test_findings_are_had_by_the_name_of_their_check(report):
    assert report["noise"].verdict == "ok"
    assert not report.healthy
    with pytest.raises(KeyError):
        report["nose"]


def test_the_lines_of_the_readme_run_and_print_what_stands_there(capsys):
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    code, printed = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", text, re.DOTALL).groups()
    torch.manual_seed(0)
    exec(code, {})
    found = capsys.readouterr().out
    without_digits = [re.sub(r"[\d.]+ nats", "nats", each) for each in (printed, found)]
    assert without_digits[0] in without_digits[1]
    assert found.splitlines()[-1].endswith("found: mean-reduction")
