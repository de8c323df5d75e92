"""The doctor: healthy VAEs in three styles get a clean bill, each fault is found by its name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.distributions import Bernoulli, Independent, Normal

from vae_book import bounds, likelihoods
from vae_book.clinic import FAULTS, fault
from vae_book.data import load_mnist
from vae_book.doctor import diagnose
from vae_book.models import CVAE, VAE

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
    data = load_mnist("train", "bundled", "cpu")
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
    assert unchecked(report) == {"labels"}


def test_distributions_with_a_deviation_and_a_divergence_by_draws_get_a_clean_bill(modules, x):
    report = diagnose(modules.encoder, modules.decoder, x, loss=modules.loss)
    assert report.healthy, str(report)
    assert unchecked(report) == {"labels"}


def test_a_model_with_a_step_of_its_own_and_batch_norm_gets_a_clean_bill(steps, x):
    report = diagnose(steps.encode, steps.decoder, x, loss=steps.compute_loss)
    assert report.healthy, str(report)
    assert unchecked(report) == {"labels"}


# The faults of the clinic -------------------------------------------------------------------------


def patient(name):
    """A model of the package that the fault shows in, and its loss."""
    torch.manual_seed(0)
    if name == "deaf-encoder":
        return CVAE(UNITS, 64)
    likelihood = likelihoods.Bernoulli(relaxed=name != "gray-as-binary")
    return VAE(UNITS, 64, likelihood=likelihood)


def loss_of(model, name):
    if name == "softmax-over-losses":
        return lambda x: (
            -bounds.importance_weighted_bound(
                bounds.log_weights(model, x, torch.randn(5, len(x), UNITS))
            ).mean()
        )
    return lambda x, y=None: -bounds.elbo(model, x, y=y).value.mean()


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_the_clinic_is_found_by_its_name(name, digits, x):
    model, images = patient(name), x.reshape(-1, 1, 28, 28)
    labels = digits[1][2000:2064] if isinstance(model, CVAE) else None
    images = images.round() if name == "gray-as-binary" else images
    healthy = diagnose(model.encode, model.decode, images, loss=loss_of(model, name), labels=labels)
    assert healthy.healthy, str(healthy)
    with fault(name):
        report = diagnose(
            model.encode,
            model.decode,
            x.reshape(-1, 1, 28, 28),
            loss=loss_of(model, name),
            labels=labels,
        )
    assert report.faults == (name,), str(report)
