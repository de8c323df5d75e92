"""The VAE is the network that the book describes, and its parts do what their names say."""

import numpy as np
import pytest
import torch

from vae_book.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian
from vae_book.models import VAE
from vae_book.reparameterization import reparameterize

PARTS = ("encoder.1", "to_mu", "to_log_var", "decoder.0", "decoder.2")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(**arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VAE(**{"latent": 2, "hidden": 8, "image_shape": (1, 3, 4)} | arguments)


def images(n=5, shape=(1, 3, 4)):
    return torch.rand(n, *shape, generator=seeded(1))


def test_the_defaults_are_the_classic_network():
    shapes = {name: tuple(weight.shape) for name, weight in VAE().named_parameters()}
    sizes = [(784, 400), (400, 20), (400, 20), (20, 400), (400, 784)]
    assert shapes == {
        f"{part}.{kind}": shape
        for part, (inputs, outputs) in zip(PARTS, sizes, strict=True)
        for kind, shape in (("weight", (outputs, inputs)), ("bias", (outputs,)))
    }
    total = sum(weight.numel() for weight in VAE().parameters())
    assert total == 784 * 400 + 400 + 2 * (400 * 20 + 20) + 20 * 400 + 400 + 400 * 784 + 784
    assert VAE().likelihood == Bernoulli(relaxed=True)
    assert VAE(likelihood=Bernoulli()).likelihood == Bernoulli()


@pytest.mark.equation("eq-encoder", route="both layers in numpy", rel=1e-12)
def test_encoder_and_decoder_compute_two_layers_with_relu(agree):
    model, x = small().double(), images().double()
    z = torch.randn(5, 2, generator=seeded()).double()
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}

    def layer(part, value):
        return value @ weights[f"{part}.weight"].T + weights[f"{part}.bias"]

    features = np.maximum(layer("encoder.1", x.reshape(5, 12).numpy()), 0)
    mu, log_var = model.encode(x)
    agree(mu, layer("to_mu", features))
    agree(log_var, layer("to_log_var", features))
    logits = layer("decoder.2", np.maximum(layer("decoder.0", z.numpy()), 0))  # no sigmoid
    agree(model.decode(z), logits.reshape(5, 1, 3, 4))


@pytest.mark.equation("eq-encoder", route="each image on its own", rel=1e-12)
def test_the_posterior_of_an_image_does_not_depend_on_its_batch(agree):
    model, x = small().double(), images().double()
    together = torch.stack(model.encode(x))
    alone = torch.stack([torch.stack(model.encode(image)) for image in x], dim=1)
    agree(together, alone)
    assert (together[:, 0] != together[:, 1]).any()  # and it does depend on the image


def test_forward_is_encode_reparameterize_decode():
    model, x, eps = small(), images(), torch.randn(7, 5, 2, generator=seeded())
    params, mu, log_var = model(x, eps)
    assert torch.equal(torch.stack([mu, log_var]), torch.stack(model.encode(x)))
    torch.testing.assert_close(params, model.decode(reparameterize(mu, log_var, eps)))
    assert params.shape == (7, 5, 1, 3, 4)
    assert torch.equal(params, model(x, eps)[0])  # all chance is in eps


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 4, 2), (1, 1, 1)])
def test_images_of_any_shape(shape):
    model = small(image_shape=shape)
    params, mu, log_var = model(images(5, shape), torch.zeros(5, 2))
    assert params.shape == (5, *shape)
    assert mu.shape == log_var.shape == (5, 2)
    assert model.sample(4).shape == (4, *shape)


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 4, 2)])
@pytest.mark.parametrize(
    ("likelihood", "per_pixel"),
    [
        (Bernoulli(), 1),
        (ContinuousBernoulli(), 1),
        (Gaussian(0.3), 1),
        (Gaussian(0.3, "shared"), 1),
        (Gaussian(0.3, "pixel"), 2),
    ],
)
def test_the_decoder_gives_each_pixel_the_numbers_that_its_likelihood_asks_for(
    likelihood, per_pixel, shape
):
    model = small(image_shape=shape, likelihood=likelihood)
    params, *_ = model(images(5, shape), torch.zeros(7, 5, 2))
    channels, *size = shape
    assert params.shape == (7, 5, per_pixel * channels, *size)
    assert likelihood.log_prob(images(5, shape).round(), params).shape == (7, 5)
    for pixels in (False, True):
        assert model.sample(4, seeded(), pixels=pixels).shape == (4, *shape)
    z = torch.randn(4, 2, generator=seeded())
    means = likelihood.mean(model.decode(z)).detach()
    torch.testing.assert_close(model.sample(4, seeded()), means)


def test_a_variance_that_is_learned_is_a_part_of_the_model():
    model = small(likelihood=Gaussian(0.3, "shared"))
    assert "likelihood.shared" in dict(model.named_parameters())
    assert model.double().likelihood.shared.dtype == torch.float64
    assert "likelihood.shared" not in dict(small(likelihood=Gaussian(0.3)).named_parameters())


@pytest.mark.usefixtures("shapes_unchecked")
def test_shapes_that_do_not_fit_the_model_are_refused():
    model = small()
    for shape in [(5, 1, 4, 3), (5, 12), (5, 3, 3, 4)]:
        with pytest.raises(ValueError, match=r"^x: expected images of shape \(\.\.\., 1, 3, 4\)"):
            model.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"^z: expected shape \(\.\.\., 2\), got \(5, 3\)"):
        model.decode(torch.zeros(5, 3))


def test_samples_are_decoded_draws_from_the_prior():
    model = small(hidden=64)
    z = torch.randn(6, 2, generator=seeded())
    means = torch.sigmoid(model.decode(z)).detach()
    torch.testing.assert_close(model.sample(6, seeded()), means)
    assert not torch.equal(model.sample(6, seeded(1)), means)


def test_samples_are_made_without_the_encoder():
    model = small()
    expected = model.sample(3, seeded())
    del model.encoder, model.to_mu, model.to_log_var
    assert torch.equal(model.sample(3, seeded()), expected)


def test_sampled_pixels_are_binary_with_the_means_as_frequencies():
    n, model = 20_000, small()
    model.decoder[0].weight.data.zero_()  # every z gives the same image
    model.decoder[0].bias.data.fill_(3)
    draws = model.sample(n, seeded(), pixels=True)
    p = model.sample(1, seeded())[0]
    assert set(draws.unique().tolist()) == {0, 1}
    assert ((draws.mean(0) - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()
    assert p.std() > 0.1


def test_sampling_follows_the_model_and_leaves_no_trace():
    before = torch.get_rng_state()
    for pixels in (False, True):
        samples = small().double().sample(3, seeded(), pixels=pixels)
        assert samples.dtype == torch.float64
        assert not samples.requires_grad
    assert torch.equal(torch.get_rng_state(), before)  # the global stream was left alone


def test_the_loss_reaches_every_weight():
    model, x = small(hidden=64), images(32)
    params, *_ = model(x, torch.randn(32, 2, generator=seeded()))
    # The reconstruction alone: what reaches the encoder came through the sample.
    model.likelihood.log_prob(x, params).sum().backward()
    assert {name for name, weight in model.named_parameters() if not weight.grad.any()} == set()


def test_gradients_agree_with_finite_differences():
    model, eps = small().double(), torch.randn(5, 2, dtype=torch.float64, generator=seeded())
    x = images().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x, eps), x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_samples_on_the_gpu_are_those_of_the_cpu():
    on_cpu, on_gpu = (small().to(device).sample(3, seeded()) for device in ("cpu", "cuda"))
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-5)
