"""What CONTRIBUTING says about new parts is enough: one class, and everything works with it."""

import math

import pytest
import torch
from torch import nn

from vae_book import annealing
from vae_book.annealing import annealed_log_likelihood, both_sides
from vae_book.bounds import elbo, log_weights
from vae_book.budget import correlation_gain, nats_budget, refined, refined_full
from vae_book.checkpoints import read_checkpoint
from vae_book.device import seeded, standard_normal
from vae_book.distributions import DiagonalGaussian, Mixture
from vae_book.evaluation import average_elbo, class_log_bounds, log_likelihood, posteriors
from vae_book.images import Images
from vae_book.likelihoods import Bernoulli, Likelihood
from vae_book.models import CVAE, VAE
from vae_book.objectives import Objective
from vae_book.training import fit


class Laplace(Likelihood):
    """Each pixel is Laplace around the decoder's output."""

    def __init__(self, scale: float = 0.2) -> None:
        self.scale = scale

    def pixel_log_prob(self, x, params):
        """-|x - m| / b - log 2b."""
        return -(x - params).abs() / self.scale - math.log(2 * self.scale)

    def mean(self, params):
        """The decoder's output."""
        return params

    def sample(self, params, generator=None):
        """By the inverse of the distribution function."""
        u = torch.rand(params.shape, generator=generator).to(params) - 0.5
        return params - self.scale * u.sign() * torch.log1p(-2 * u.abs())


class MixturePriorVAE(VAE):
    """A VAE that learns its prior, a mixture."""

    def __init__(self, latent=2, hidden=16, image_shape=(1, 4, 4), likelihood=None, parts=3):
        super().__init__(latent, hidden, image_shape, likelihood)
        self.parts = parts
        self.mu = nn.Parameter(torch.randn(parts, latent))
        self.log_var = nn.Parameter(torch.zeros(parts, latent))

    def prior(self, y=None):
        """The mixture."""
        self.told_nothing(y)
        return Mixture(DiagonalGaussian(self.mu, self.log_var))


class Noisy(VAE):
    """A VAE with layers that compute something else in training."""

    def __init__(self, latent=2, hidden=16, image_shape=(1, 4, 4), likelihood=None):
        super().__init__(latent, hidden, image_shape, likelihood)
        self.encoder.append(nn.BatchNorm1d(hidden))
        self.decoder.insert(2, nn.Dropout(0.5))


@pytest.fixture
def corners():
    """Images of a bright quarter each, in three places."""
    labels = torch.arange(60) % 3
    images = 0.2 * torch.rand(60, 1, 4, 4, generator=seeded(0))
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = [(0, 0), (0, 2), (2, 0)][label]
        image[0, top : top + 2, left : left + 2] += 0.7
    return Images(images, labels, "corners", "train")


def test_a_likelihood_and_a_learned_prior_train_measure_draw_and_are_kept(tmp_path, corners):
    torch.manual_seed(0)
    model, before = MixturePriorVAE(likelihood=Laplace(0.1)), None
    before = average_elbo(model, corners).value
    path = tmp_path / "run.pt"
    kept = {"held_out": corners, "checkpoint": path}
    history = fit(model, corners, epochs=50, batch_size=20, lr=0.01, **kept)
    bound = average_elbo(model, corners, n_samples=20)
    assert bound.value > before + 5
    assert history.held_out[-1] < history.held_out[0]
    assert model.mu.grad.any()  # the prior was trained
    estimate = log_likelihood(model, corners, n_samples=200)
    by_prior = log_likelihood(model, corners, n_samples=3000, from_prior=True)
    assert estimate.value > bound.value
    assert abs(estimate.value - by_prior.value) < 0.1
    again = read_checkpoint(path).model("cpu")
    assert type(again) is MixturePriorVAE
    assert again.likelihood.scale == 0.1
    assert torch.equal(again.sample(5, seeded(1)), model.sample(5, seeded(1)))
    assert model.sample(5, seeded(1), pixels=True).shape == (5, 1, 4, 4)


MEASURES = {
    "average_elbo": lambda model, data: average_elbo(model, data, n_samples=3).value,
    "log_likelihood": lambda model, data: log_likelihood(model, data, n_samples=3).value,
    "posteriors": lambda model, data: posteriors(model, data).mu,
    "refined": lambda model, data: refined(model, data.images, steps=3, generator=seeded(1)).mu,
    "refined_full": lambda model, data: (
        refined_full(model, data.images, steps=3, generator=seeded(1)).mu
    ),
    "nats_budget": lambda model, data: nats_budget(model, data, n_samples=3, steps=2).elbo.value,
    "correlation_gain": lambda model, data: (
        correlation_gain(model, data, n_samples=3, steps=2).value
    ),
    "annealed_log_likelihood": lambda model, data: annealed_log_likelihood(
        model, data, n_temperatures=3, n_chains=2, n_leapfrog=2
    ),
    "both_sides": lambda model, data: (
        both_sides(model, 3, n_temperatures=3, n_chains=2, n_leapfrog=2).lower
    ),
    "sample": lambda model, data: model.sample(5, seeded(1)),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_a_model_is_measured_in_evaluation_mode_and_stays_in_its_own(corners, measure, monkeypatch):
    """Else dropout would stay on, and batch statistics would learn from held-out images."""
    monkeypatch.setattr(annealing, "TRIES", 6)  # all are made in the same mode
    torch.manual_seed(0)
    model = Noisy()
    fit(model, corners, epochs=3, batch_size=20, lr=0.01)
    model.decoder[2].eval()  # a mode of a part is kept, too
    model.train()
    model.to_mu.eval()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    in_training = measure(model, corners)
    assert model.encoder[-1].training
    assert not model.to_mu.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(measure(model.eval(), corners), in_training, rtol=0, atol=0)


def test_labels_are_told_apart_in_evaluation_mode(corners):
    torch.manual_seed(0)
    model = CVAE(2, 8, (1, 4, 4), classes=3)
    model.decoder.append(nn.Dropout(0.5))
    bounds = class_log_bounds(model, corners.images)
    assert model.training
    assert torch.equal(class_log_bounds(model.eval(), corners.images), bounds)


def test_memory_of_the_bound_does_not_grow_with_its_draws(corners, monkeypatch):
    """A few draws at a time give the average of all."""
    torch.manual_seed(0)
    model, outputs = VAE(2, 16, (1, 4, 4)), []
    decode = VAE.decode
    monkeypatch.setattr(
        VAE, "decode", lambda self, z, y=None: outputs.append(z.numel()) or decode(self, z, y)
    )
    found = average_elbo(model, corners, n_samples=1000)
    assert max(outputs) <= 5000 * 2
    eps = standard_normal((1000, 60, 2), seeded(0))
    with torch.no_grad():
        at_once = elbo(model, corners.images, eps)
    assert found.value == pytest.approx(at_once.value.mean().item(), rel=1e-6)
    assert found.kl == pytest.approx(at_once.kl.mean().item(), rel=1e-6)


def test_a_prior_without_closed_form_gives_weights_that_average_to_the_same_bound(corners):
    torch.manual_seed(0)
    model, x = MixturePriorVAE(likelihood=Laplace()), corners.images[:5]
    eps = torch.randn(4000, 5, 2, generator=seeded(2))
    with torch.no_grad():
        weights = log_weights(model, x, eps)
        made = model(x, eps)
        parts = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(3)),
            torch.distributions.Independent(
                torch.distributions.Normal(model.mu, (model.log_var / 2).exp()), 1
            ),
        )
        q_z = torch.distributions.Normal(made.q_z.mu, made.q_z.sigma)
        pixels = torch.distributions.Laplace(made.p_x.params, 0.2).log_prob(x).sum((-3, -2, -1))
        expected = pixels + parts.log_prob(made.z) - q_z.log_prob(made.z).sum(-1)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("told", [False, True])
def test_batch_norm_in_a_decoder_sees_images_and_not_draws(corners, told):
    """Also where there are as many images as hidden units, which it could take for each other."""
    torch.manual_seed(0)
    options = {"latent": 2, "hidden": len(corners), "image_shape": (1, 4, 4)}
    model = CVAE(classes=3, **options) if told else VAE(**options)
    model.decoder.insert(1, nn.BatchNorm1d(len(corners)))
    fit(model, corners, epochs=3, batch_size=20, lr=0.01, n_samples=2)
    y = corners.labels if told else None
    eps = standard_normal((3, 60, 2), seeded(0))
    with torch.no_grad():
        each = [elbo(model.eval(), corners.images, one, y=y).value for one in eps]
        together = elbo(model, corners.images, eps, y=y).value
    torch.testing.assert_close(together, torch.stack(each).mean(0))
    found = average_elbo(model, corners, n_samples=3).value
    assert found == pytest.approx(together.mean().item(), abs=0.5)
    assert model.sample(4, y=y[:4] if told else None).shape == (4, 1, 4, 4)


class PerRow(Bernoulli):
    def log_prob(self, x, params):
        return self.pixel_log_prob(x, params).sum((-2, -1))  # the channels stay


def test_a_log_prob_that_is_no_number_for_each_image_is_refused(corners):
    model = VAE(2, 8, (1, 4, 4), likelihood=PerRow(relaxed=True))
    with pytest.raises(ValueError, match=r"^log_prob: expected .* \(1, 60\), got \(1, 60, 1\)"):
        average_elbo(model, corners)
    with pytest.raises(ValueError, match=r"log_prob: expected .* sum over the last three axes"):
        fit(model, corners, epochs=1)


class Averaged(Objective):
    def __call__(self, terms, q_z, epoch=0):
        return -terms.value.mean()


class Crossed(Objective):
    def __call__(self, terms, q_z, epoch=0):
        return terms.kl.unsqueeze(-1) - terms.log_likelihood


class Scaled(Objective):
    def __call__(self, terms, q_z, epoch=0):
        return -5 * terms.value


@pytest.mark.parametrize(("kind", "shape"), [(Averaged, r"\(\)"), (Crossed, r"\(20, 20\)")])
def test_an_objective_that_gives_no_loss_for_each_image_is_refused(corners, kind, shape):
    model = VAE(2, 8, (1, 4, 4))
    with pytest.raises(
        ValueError, match=rf"^objective: expected a loss for each image, .* \(20,\), got {shape}"
    ):
        fit(model, corners, epochs=1, batch_size=20, objective=kind())


def test_a_run_goes_on_with_its_own_kind_of_objective_alone(corners, tmp_path):
    model, path = VAE(2, 8, (1, 4, 4)), tmp_path / "run.pt"
    kept = {"batch_size": 20, "checkpoint": path}
    fit(model, corners, epochs=1, objective=Scaled(), **kept)
    assert fit(model, corners, epochs=2, objective=Scaled(), resume=True, **kept).epochs == 2
    with pytest.raises(ValueError, match="kind of objective was 'Scaled' and is now None"):
        fit(model, corners, epochs=3, resume=True, **kept)


def test_a_step_of_one_image_under_batch_norm_names_the_batch_size(corners):
    model = Noisy()
    with pytest.raises(ValueError, match=r"^batch_size: batch norm needs two .* than 59"):
        fit(model, corners, epochs=1, batch_size=59)
