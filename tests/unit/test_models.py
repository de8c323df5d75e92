"""The models are the networks that the book describes; their parts do what their names say."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

from vae_book.evaluation import average_elbo
from vae_book.images import Images
from vae_book.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian
from vae_book.models import CVAE, PACE, VAE, CompletionVAE, ConvVAE
from vae_book.reparameterization import reparameterize
from vae_book.training import fit

PARTS = ("encoder.1", "to_mu", "to_log_var", "decoder.0", "decoder.2")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(**arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VAE(**{"latent": 2, "hidden": 8, "image_shape": (1, 3, 4)} | arguments)


def conditional(**arguments):
    """A CVAE of three classes; a prior that is learned is as if it had been."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"latent": 2, "hidden": 8, "image_shape": (1, 3, 4), "classes": 3} | arguments
        model = CVAE(**options)
        if model.learned_prior:
            torch.nn.init.normal_(model.prior_network.weight, std=1 / PACE)
        return model


def priors(model):
    """Means and log-variances of p(z | y), a row for each label."""
    return (PACE * model.prior_network.weight).T.chunk(2, dim=1)


LABELS = torch.tensor([2, 0, 1, 1, 0])


def images(n=5, shape=(1, 3, 4)):
    return torch.rand(n, *shape, generator=seeded(1))


def parts(made):
    """What the decoder puts out, mean and log-variance of q, and those of the prior."""
    return made.p_x.params, *made.q_z, *made.p_z


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
    agree(model.decode(z).params, logits.reshape(5, 1, 3, 4))


@pytest.mark.equation("eq-encoder", route="each image on its own", rel=1e-12)
def test_the_posterior_of_an_image_does_not_depend_on_its_batch(agree):
    model, x = small().double(), images().double()
    together = torch.stack([*model.encode(x)])
    alone = torch.stack([torch.stack([*model.encode(image)]) for image in x], dim=1)
    agree(together, alone)
    assert (together[:, 0] != together[:, 1]).any()  # and it does depend on the image


def test_forward_is_encode_reparameterize_decode():
    model, x, eps = small(), images(), torch.randn(7, 5, 2, generator=seeded())
    params, mu, log_var, *_ = parts(model(x, eps))
    assert torch.equal(torch.stack([mu, log_var]), torch.stack([*model.encode(x)]))
    torch.testing.assert_close(params, model.decode(reparameterize(mu, log_var, eps)).params)
    assert params.shape == (7, 5, 1, 3, 4)
    assert torch.equal(params, model(x, eps).p_x.params)  # all chance is in eps


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 4, 2), (1, 1, 1)])
def test_images_of_any_shape(shape):
    model = small(image_shape=shape)
    params, mu, log_var, *_ = parts(model(images(5, shape), torch.zeros(5, 2)))
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
    params, *_ = parts(model(images(5, shape), torch.zeros(7, 5, 2)))
    channels, *size = shape
    assert params.shape == (7, 5, per_pixel * channels, *size)
    assert likelihood.log_prob(images(5, shape).round(), params).shape == (7, 5)
    for pixels in (False, True):
        assert model.sample(4, seeded(), pixels=pixels).shape == (4, *shape)
    z = torch.randn(4, 2, generator=seeded())
    means = likelihood.mean(model.decode(z).params).detach()
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
    means = torch.sigmoid(model.decode(z).params).detach()
    torch.testing.assert_close(model.sample(6, seeded()), means)
    assert not torch.equal(model.sample(6, seeded(1)), means)


@pytest.mark.parametrize("kind", ["small", "convolutional", "conditional", "completing"])
def test_samples_are_made_without_the_encoder(kind):
    model, told = globals()[kind](), {"y": SEEN[:3]} if kind == "completing" else {}
    expected = model.sample(3, seeded(), **told)
    del model.encoder, model.to_mu, model.to_log_var
    assert torch.equal(model.sample(3, seeded(), **told), expected)


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
    params, *_ = parts(model(x, torch.randn(32, 2, generator=seeded())))
    # The reconstruction alone: what reaches the encoder came through the sample.
    model.likelihood.log_prob(x, params).sum().backward()
    assert {name for name, weight in model.named_parameters() if not weight.grad.any()} == set()


def test_gradients_agree_with_finite_differences():
    model, eps = small().double(), torch.randn(5, 2, dtype=torch.float64, generator=seeded())
    x = images().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: parts(model(x, eps))[:3], x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_samples_on_the_gpu_are_those_of_the_cpu():
    on_cpu, on_gpu = (small().to(device).sample(3, seeded()) for device in ("cpu", "cuda"))
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-5)


# Given a label ------------------------------------------------------------------------------------


def shapes(model):
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def test_the_label_adds_its_classes_to_both_inputs_and_by_default_a_prior_and_a_layer_for_each():
    plain = shapes(VAE())
    plain["encoder.0.weight"], plain["encoder.0.bias"] = (400, 784 + 10), (400,)
    del plain["encoder.1.weight"], plain["encoder.1.bias"]
    told = {**plain, "decoder.0.weight": (400, 20 + 10)}
    assert shapes(CVAE(learned_prior=False, own_weights=False)) == told
    del told["decoder.0.bias"]
    told |= {"decoder.0.weight": (400, 10 * 21), "prior_network.weight": (2 * 20, 10)}
    assert shapes(CVAE()) == told
    assert not CVAE().prior_network.weight.any()  # it starts as N(0, I)
    first = CVAE().decoder[0].weight.detach().unflatten(1, (10, 21)).transpose(0, 1).flatten(1)
    assert first.std() == pytest.approx((3 * 21) ** -0.5, rel=0.02)  # a layer of 21 inputs
    alike = torch.corrcoef(first)[~torch.eye(10, dtype=torch.bool)]
    torch.testing.assert_close(alike, torch.full_like(alike, 0.25), rtol=0, atol=0.05)
    assert CVAE().likelihood == Bernoulli(relaxed=True)
    assert CVAE(likelihood=Bernoulli()).likelihood == Bernoulli()


@pytest.mark.equation(
    "eq-conditional-encoder", route="layers in numpy, the label's column as a bias", rel=1e-12
)
@pytest.mark.parametrize("learned_prior", [False, True])
def test_the_label_chooses_a_bias_of_the_first_layers(agree, learned_prior):
    options = {"learned_prior": learned_prior, "own_weights": False}
    model, x = conditional(**options).double(), images().double()
    z = torch.randn(5, 2, generator=seeded()).double()
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}

    def layer(part, value, y=None):
        weight, bias, inputs = weights[f"{part}.weight"], weights[f"{part}.bias"], value.shape[-1]
        assert weight.shape[1] == inputs + (0 if y is None else 3)
        return value @ weight[:, :inputs].T + bias + (0 if y is None else weight[:, inputs + y].T)

    features = np.maximum(layer("encoder.0", x.reshape(5, 12).numpy(), LABELS.numpy()), 0)
    mu, log_var = model.encode(x, LABELS)
    agree(mu, layer("to_mu", features))
    agree(log_var, layer("to_log_var", features))
    hidden = np.maximum(layer("decoder.0", z.numpy(), LABELS.numpy()), 0)
    agree(model.decode(z, LABELS).params, layer("decoder.2", hidden).reshape(5, 1, 3, 4))


@pytest.mark.equation(
    "eq-label-weights", route="a layer of numpy for each label, one image at a time", rel=1e-12
)
def test_each_label_has_a_first_layer_of_the_decoder_of_its_own(agree):
    model = conditional().double()
    z = torch.randn(4, 5, 2, generator=seeded()).double()
    first, last = (model.decoder[i].weight.detach().numpy() for i in (0, 2))
    bias = model.decoder[2].bias.detach().numpy()
    made = model.decode(z, LABELS).params
    for i, y in enumerate(LABELS.tolist()):
        W, b = first[:, 3 * y : 3 * y + 2], first[:, 3 * y + 2]
        for sample in range(4):
            hidden = np.maximum(W @ z[sample, i].numpy() + b, 0)
            agree(made[sample, i], (last @ hidden + bias).reshape(1, 3, 4))


def test_the_first_layer_of_a_label_learns_from_images_of_that_label_alone():
    model, x, y = conditional(), images(), torch.tensor([2, 0, 0, 2, 0])
    made = model(x, torch.randn(5, 2, generator=seeded()), y)
    made.p_x.log_prob(x).sum().backward()
    zero, one, two = model.decoder[0].weight.grad.split(3, dim=1)
    assert zero.any()
    assert not one.any()
    assert two.any()


def test_an_image_is_encoded_by_its_own_label_alone():
    model, x = conditional().double(), images().double()
    together = torch.stack([*model.encode(x, LABELS)])
    for i, (image, y) in enumerate(zip(x, LABELS, strict=True)):
        torch.testing.assert_close(together[:, i], torch.stack([*model.encode(image, y)]))
    other = torch.stack([*model.encode(x, (LABELS + 1) % 3)])
    assert (together != other).any(-1).all()


def test_all_samples_of_an_image_are_decoded_by_its_label():
    model, z = conditional().double(), torch.randn(4, 7, 5, 2, generator=seeded()).double()
    together = model.decode(z, LABELS).params
    assert together.shape == (4, 7, 5, 1, 3, 4)
    for i, y in enumerate(LABELS):
        for sample in range(7):
            alone = model.decode(z[1, sample, i], y).params
            torch.testing.assert_close(together[1, sample, i], alone)
    everywhere = LABELS.expand(4, 7, 5)
    torch.testing.assert_close(model.decode(z, everywhere).params, together)
    torch.testing.assert_close(
        model.decode(z, LABELS[0]).params[..., 0, :, :, :], together[:, :, 0]
    )


@pytest.mark.parametrize("learned_prior", [False, True])
def test_forward_with_labels_is_encode_reparameterize_decode_and_prior(learned_prior):
    model, x = conditional(learned_prior=learned_prior), images()
    eps = torch.randn(7, 5, 2, generator=seeded())
    params, mu, log_var, *prior = parts(model(x, eps, LABELS))
    assert torch.equal(torch.stack([mu, log_var]), torch.stack([*model.encode(x, LABELS)]))
    assert torch.equal(params, model.decode(reparameterize(mu, log_var, eps), LABELS).params)
    assert torch.equal(torch.stack(prior), torch.stack([*model.prior(LABELS)]))
    # Batches of several axes are the same in another shape.
    columns = parts(model(x.unsqueeze(1), eps.unsqueeze(2), LABELS.unsqueeze(1)))
    for column, flat in zip(columns, (params, mu, log_var, *prior), strict=True):
        torch.testing.assert_close(column.reshape(flat.shape), flat)


@pytest.mark.parametrize("learned_prior", [False, True])
def test_the_prior_of_each_label(learned_prior):
    model = conditional(learned_prior=learned_prior)
    mu, log_var = model.prior(LABELS)
    assert model.prior(LABELS.expand(4, 5)).mu.shape == (4, 5, 2)
    if learned_prior:
        means, log_vars = priors(model)
        assert torch.equal(mu, means[LABELS])
        assert torch.equal(log_var, log_vars[LABELS])
        assert mu.requires_grad
        assert log_var.requires_grad
    else:
        assert mu.shape == log_var.shape == (5, 2)
        assert not torch.cat([mu, log_var]).any()
        assert model.double().prior(LABELS).mu.dtype == torch.float64


def test_a_learned_prior_moves_ten_times_as_far_in_a_step_as_a_weight():
    """Adam's first step is as long as its step size, whatever the gradient."""
    model, lr = conditional(learned_prior=True), 1e-4
    before = [model.prior(LABELS), *model.to_mu.parameters()]
    before = [torch.cat([*before[0]], -1).detach(), before[1].detach().clone()]
    fit(model, Images(images(), LABELS, "made", "train"), epochs=1, lr=lr)
    after = [torch.cat([*model.prior(LABELS)], -1), model.to_mu.weight]
    moved = [(a - b).abs().max().item() for a, b in zip(after, before, strict=True)]
    assert moved == pytest.approx([10 * lr, lr], rel=1e-2)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "uint8", "uint16", "uint32"])
def test_any_whole_numbers_are_labels(kind):
    model = conditional(classes=300, learned_prior=True)  # more than fit into eight bits
    x, z, y = images(), torch.zeros(5, 2), 60 * LABELS
    other = y.to(getattr(torch, kind))
    assert torch.equal(torch.stack([*model.encode(x, other)]), torch.stack([*model.encode(x, y)]))
    assert torch.equal(model.decode(z, other).params, model.decode(z, y).params)
    assert torch.equal(torch.stack([*model.prior(other)]), torch.stack([*model.prior(y)]))
    assert torch.equal(model.sample(5, seeded(), y=other), model.sample(5, seeded(), y=y))


WRONG = [
    (LABELS + 1, "labels from 0 to 2, got 3"),
    (LABELS - 1, "labels from 0 to 2, got -1"),
    (LABELS.float(), "whole numbers, got torch.float32"),
    (LABELS > 0, "whole numbers, got torch.bool"),
    (LABELS * 1j, "whole numbers, got torch.complex64"),
    (LABELS[:4], r"\(4,\)"),
    (torch.cat([LABELS, LABELS]), r"\(10,\)"),
    (LABELS[:, None], r"\(5, 1\)"),
    (LABELS[None], r"\(1, 5\)"),
    (LABELS[:0], r"\(0,\)"),
]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("learned_prior", [False, True])
@pytest.mark.parametrize(("y", "message"), WRONG)
def test_labels_that_do_not_fit_are_refused(y, message, learned_prior):
    model, z = conditional(learned_prior=learned_prior), torch.zeros(5, 2)
    calls = [
        lambda: model.encode(images(), y),
        lambda: model.decode(z, y).params,
        lambda: model.decode(z.expand(7, 4, 5, 2), y).params,
        lambda: model(images(), z, y),
        lambda: model.sample(5, y=y),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"^y: expected .*{message}"):
            call()


def test_labels_of_more_axes_than_z_are_told_the_axes_of_z():
    with pytest.raises(ValueError, match=r"^y: .* shape \(5,\), got \(1, 5\)"):
        conditional().decode(torch.zeros(5, 2), LABELS[None])


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("y", [None, LABELS.tolist(), LABELS.numpy(), 1])
def test_labels_that_are_no_tensor_are_refused(y):
    model, z = conditional(learned_prior=True), torch.zeros(5, 2)
    for call in [
        lambda: model.encode(images(), y),
        lambda: model.decode(z, y).params,
        lambda: model(images(), z, y),
        lambda: model.prior(y),
    ]:
        name = type(y).__name__
        with pytest.raises(ValueError, match=f"^y: expected labels as a tensor .* got {name}"):
            call()


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("y", [3, -1, True, 1.0])
@pytest.mark.parametrize("learned_prior", [False, True])
def test_samples_of_no_label_are_refused(y, learned_prior):
    with pytest.raises(ValueError, match=r"^y: expected labels"):
        conditional(learned_prior=learned_prior).sample(4, y=y)


def test_a_model_of_labels_still_checks_images_and_z():
    model = conditional()
    with pytest.raises(ValueError, match=r"^x: expected images of shape \(\.\.\., 1, 3, 4\)"):
        model.encode(torch.zeros(5, 1, 4, 3), LABELS)
    with pytest.raises(ValueError, match=r"^z: expected shape \(\.\.\., 2\), got \(5, 3\)"):
        model.decode(torch.zeros(5, 3), LABELS)


def test_there_is_one_class_or_more():
    for classes in (0, -1):
        with pytest.raises(
            ValueError, match=f"^classes: expected a whole number of at least 1, got {classes}"
        ):
            conditional(classes=classes)
    assert conditional(classes=1).sample(2).shape == (2, 1, 3, 4)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("learned_prior", [False, True])
@pytest.mark.parametrize(
    ("y", "labels"),
    [
        (None, [0, 1, 2, 0, 1]),
        (2, [2] * 5),
        (np.int64(2), [2] * 5),
        (torch.tensor(2), [2] * 5),
        (LABELS, LABELS.tolist()),
        (LABELS.tolist(), LABELS.tolist()),
        (LABELS.numpy(), LABELS.tolist()),
    ],
    ids=str,
)
def test_samples_are_decoded_draws_from_the_prior_of_their_label(y, labels, learned_prior):
    model = conditional(learned_prior=learned_prior, hidden=64)
    z = torch.randn(5, 2, generator=seeded())
    if learned_prior:
        mean, log_var = priors(model)
        sigma = log_var.exp().sqrt()
        z = torch.stack([mean[k] + sigma[k] * e for k, e in zip(labels, z, strict=True)])
    means = torch.sigmoid(model.decode(z, torch.tensor(labels)).params).detach()
    torch.testing.assert_close(model.sample(5, seeded(), y=y), means)
    assert not torch.allclose(model.sample(5, seeded(1), y=y), means)


@pytest.mark.parametrize("learned_prior", [False, True])
def test_sampling_given_labels_follows_the_model_and_leaves_no_trace(learned_prior):
    model, before = conditional(learned_prior=learned_prior), torch.get_rng_state()
    for pixels in (False, True):
        samples = model.double().sample(50, seeded(), y=1, pixels=pixels)
        assert samples.dtype == torch.float64
        assert not samples.requires_grad
        assert (set(samples.unique().tolist()) == {0, 1}) == pixels
        assert torch.equal(samples, model.sample(50, seeded(), y=1, pixels=pixels))
        assert model.sample(0, y=1, pixels=pixels).shape == (0, 1, 3, 4)
        assert model.sample(0, pixels=pixels).shape == (0, 1, 3, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.bfloat16().sample(3, y=1).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "likelihood", [ContinuousBernoulli(), Gaussian(0.3, "shared"), Gaussian(0.3, "pixel")], ids=str
)
def test_a_model_of_labels_takes_each_likelihood(likelihood):
    model, x = conditional(likelihood=likelihood, image_shape=(2, 3, 4)), images(5, (2, 3, 4))
    params, *_ = parts(model(x, torch.zeros(7, 5, 2), LABELS))
    assert params.shape == (7, 5, 2 * likelihood.params_per_pixel, 3, 4)
    assert likelihood.log_prob(x, params).shape == (7, 5)
    for pixels in (False, True):
        assert model.sample(4, pixels=pixels).shape == (4, 2, 3, 4)


def test_the_loss_reaches_every_weight_of_a_model_of_labels():
    model, x, y = conditional(hidden=64), images(30), torch.arange(30) % 3
    made = model(x, torch.randn(30, 2, generator=seeded()), y)
    (made.p_x.log_prob(x) - made.q_z.kl(made.p_z)).sum().backward()
    assert {name for name, weight in model.named_parameters() if not weight.grad.any()} == set()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("learned_prior", [False, True])
def test_labels_follow_the_model_to_the_gpu(learned_prior):
    on_cpu = conditional(learned_prior=learned_prior)
    on_gpu = conditional(learned_prior=learned_prior).to("cuda")
    for y in (None, 1, LABELS, LABELS.cuda()):
        samples = on_gpu.sample(5, seeded(), y=y)
        there = y.cpu() if isinstance(y, torch.Tensor) else y
        assert samples.is_cuda
        torch.testing.assert_close(
            samples.cpu(), on_cpu.sample(5, seeded(), y=there), rtol=1e-4, atol=1e-5
        )
    x, eps = images(), torch.zeros(5, 2)
    here = parts(on_cpu(x, eps, LABELS))
    for y in (LABELS, LABELS.cuda()):
        for one, other in zip(here, parts(on_gpu(x.cuda(), eps.cuda(), y)), strict=True):
            torch.testing.assert_close(other.cpu(), one, rtol=1e-4, atol=1e-4)


# Convolutions -------------------------------------------------------------------------------------


def convolutional(**arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvVAE(**{"latent": 2, "hidden": 8, "image_shape": (1, 8, 12)} | arguments)


@pytest.mark.parametrize("latent", [2, 10])
def test_the_convolutional_network_has_the_layers_that_it_describes(latent):
    model, maps = ConvVAE(latent), 64 * 7 * 7
    shapes = {
        "encoder.0.0": (32, 1, 3, 3),
        "encoder.0.2": (64, 32, 3, 3),
        "encoder.2": (16, maps),
        "to_mu": (latent, 16),
        "to_log_var": (latent, 16),
        "decoder.0": (maps, latent),
        # The weights of a transposed convolution have the axis of what goes in first.
        "decoder.3.0": (64, 64, 3, 3),
        "decoder.3.2": (64, 32, 3, 3),
        "decoder.3.4": (32, 1, 3, 3),
    }
    found = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    weights = {f"{name}.weight": shape for name, shape in shapes.items()}
    biases = {
        f"{name}.bias": (shape[1 if name.startswith("decoder.3") else 0],)
        for name, shape in shapes.items()
    }
    assert found == weights | biases
    assert model.encoder[0](images(5, (1, 28, 28))).shape == (5, 64, 7, 7)
    assert (model.hidden, model.image_shape) == (16, (1, 28, 28))
    assert model.likelihood == Bernoulli(relaxed=True)
    assert ConvVAE(likelihood=Bernoulli()).likelihood == Bernoulli()


def test_the_convolutional_network_has_as_many_weights_as_the_one_of_its_source():
    """Chollet's summaries count 69,076 weights for the encoder and 65,089 for the decoder."""
    model = ConvVAE()
    assert model.latent == 2
    parts = {"encoder": 0, "to_mu": 0, "to_log_var": 0, "decoder": 0}
    for name, weight in model.named_parameters():
        parts[name.split(".")[0]] += weight.numel()
    assert parts["encoder"] + parts["to_mu"] + parts["to_log_var"] == 69_076
    assert parts["decoder"] == 65_089


def half_the_size(maps, weight, bias):
    """A convolution in every second row and column of maps with a frame of zeros."""
    framed = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
    sums = [
        sum(correlate2d(one, kernel, "valid") for one, kernel in zip(framed, kernels, strict=True))
        for kernels in weight
    ]
    return np.stack(sums)[:, ::2, ::2] + bias[:, None, None]


def transposed(maps, weight, bias, stride):
    """Each number puts its multiple of the kernel around its place; what meets there adds up."""
    _, height, width = maps.shape
    out = np.zeros((weight.shape[1], stride * height + 2, stride * width + 2))
    for row, column in np.ndindex(height, width):
        around = np.s_[:, stride * row : stride * row + 3, stride * column : stride * column + 3]
        out[around] += np.einsum("i,iokl->okl", maps[:, row, column], weight)
    return out[:, 1:-1, 1:-1] + bias[:, None, None]


@torch.no_grad()
@pytest.mark.equation(
    "eq-encoder",
    "eq-convolution",
    "eq-transposed-convolution",
    route="scipy.signal.correlate2d, and painting patch by patch",
    rel=1e-10,
    abs=1e-12,
)
@pytest.mark.parametrize("shape", [(1, 8, 12), (3, 4, 4)])
def test_the_convolutional_encoder_and_decoder_compute_their_layers(agree, shape):
    model, x = convolutional(image_shape=shape, latent=3).double(), images(4, shape).double()
    z = torch.randn(4, 3, generator=seeded()).double()
    weights = {name: weight.numpy() for name, weight in model.named_parameters()}
    small = (64, shape[1] // 4, shape[2] // 4)

    def of(part):
        return weights[f"{part}.weight"], weights[f"{part}.bias"]

    def layer(part, value):
        weight, bias = of(part)
        return weight @ value + bias

    def relu(value):
        return np.maximum(value, 0)

    mu, log_var = model.encode(x)
    params = model.decode(z).params
    for i in range(4):
        maps = relu(half_the_size(x[i].numpy(), *of("encoder.0.0")))
        maps = relu(half_the_size(maps, *of("encoder.0.2")))
        features = layer("encoder.2", maps.flatten())  # no ReLU in the bottleneck
        agree(mu[i], layer("to_mu", features))
        agree(log_var[i], layer("to_log_var", features))
        maps = relu(layer("decoder.0", z[i].numpy())).reshape(small)
        maps = relu(transposed(maps, *of("decoder.3.0"), stride=2))
        maps = relu(transposed(maps, *of("decoder.3.2"), stride=2))
        agree(params[i], transposed(maps, *of("decoder.3.4"), stride=1))  # no sigmoid


@torch.no_grad()
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (2, 1, 3), (0,), (3, 0)], ids=str)
def test_convolutions_treat_each_image_of_any_batch_alone(batch):
    model, x = convolutional().double(), torch.rand(*batch, 1, 8, 12, generator=seeded()).double()
    eps = torch.randn(7, *batch, 2, generator=seeded(1)).double()
    params, mu, log_var, *_ = parts(model(x, eps))
    assert mu.shape == log_var.shape == (*batch, 2)
    assert params.shape == (7, *batch, 1, 8, 12)
    for index in np.ndindex(*batch):
        alone = parts(model(x[index], eps[:, *index]))
        torch.testing.assert_close(params[:, *index], alone[0])
        torch.testing.assert_close(mu[index], alone[1])
        torch.testing.assert_close(log_var[index], alone[2])
        for sample in range(7):
            z = reparameterize(mu[index], log_var[index], eps[sample, *index])
            torch.testing.assert_close(params[sample, *index], model.decode(z).params)
    if batch == (5,):
        assert (mu[0] != mu[1:]).all()  # and it does depend on the image


@pytest.mark.parametrize("shape", [(1, 8, 12), (3, 4, 4), (1, 32, 32)])
@pytest.mark.parametrize(
    ("likelihood", "per_pixel"),
    [(Bernoulli(), 1), (Gaussian(0.3, "shared"), 1), (Gaussian(0.3, "pixel"), 2)],
    ids=str,
)
def test_a_convolutional_network_takes_other_images_and_likelihoods(likelihood, per_pixel, shape):
    model, x = convolutional(image_shape=shape, likelihood=likelihood), images(5, shape).round()
    params, mu, log_var, *_ = parts(model(x, torch.zeros(7, 5, 2)))
    channels, *size = shape
    assert params.shape == (7, 5, per_pixel * channels, *size)
    assert mu.shape == log_var.shape == (5, 2)
    assert likelihood.log_prob(x, params).shape == (7, 5)
    z = torch.randn(4, 2, generator=seeded())
    means = likelihood.mean(model.decode(z).params).detach()
    torch.testing.assert_close(model.sample(4, seeded()), means)
    assert model.sample(4, seeded(), pixels=True).shape == (4, *shape)


@pytest.mark.parametrize("shape", [(1, 28, 27), (1, 6, 8), (1, 8, 6), (3, 2, 4)])
def test_images_that_cannot_be_halved_twice_are_refused_with_what_to_do(shape):
    _, height, width = shape
    message = f"multiples of 4, got {height} x {width}; pad the images$"
    with pytest.raises(ValueError, match=f"^image_shape: expected .*{message}"):
        ConvVAE(image_shape=shape)


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_convolutional_network_checks_images_and_z():
    model = convolutional()
    for shape in [(5, 1, 12, 8), (5, 96), (5, 3, 8, 12), (5, 1, 8, 16)]:
        with pytest.raises(ValueError, match=r"^x: expected images of shape \(\.\.\., 1, 8, 12\)"):
            model.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"^z: expected shape \(\.\.\., 2\), got \(5, 3\)"):
        model.decode(torch.zeros(5, 3))


def test_the_loss_reaches_every_weight_of_a_convolutional_network():
    model, x = convolutional(hidden=16), images(32, (1, 8, 12))
    params, *_ = parts(model(x, torch.randn(32, 2, generator=seeded())))
    model.likelihood.log_prob(x, params).sum().backward()
    assert {name for name, weight in model.named_parameters() if not weight.grad.any()} == set()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_convolutions_on_the_gpu_are_those_of_the_cpu():
    x, eps = images(5, (1, 8, 12)), torch.randn(5, 2, generator=seeded())
    for one, other in zip(
        parts(convolutional()(x, eps))[:3],
        parts(convolutional().to("cuda")(x.cuda(), eps.cuda()))[:3],
        strict=True,
    ):
        assert other.is_cuda
        torch.testing.assert_close(other.cpu(), one, rtol=1e-3, atol=1e-4)  # TF32 rounds more


# Given a part of the image ------------------------------------------------------------------------


def completing(**arguments):
    """A CompletionVAE of images of three parts, 2 x 3 each, that is shown a fourth."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"latent": 2, "hidden": 8, "image_shape": (3, 2, 3), "seen_shape": (1, 2, 3)}
        return CompletionVAE(**options | arguments)


def cut_images(n=5):
    """The parts to find and those that are seen."""
    whole = torch.rand(n, 4, 2, 3, generator=seeded(1))
    return whole[:, 1:], whole[:, :1]


def test_what_is_seen_goes_into_three_networks():
    found = {name: tuple(weight.shape) for name, weight in CompletionVAE().named_parameters()}
    seen, rest = 14 * 14, 3 * 14 * 14
    weights = {
        "encoder.0": (400, rest + seen),
        "to_mu": (20, 400),
        "to_log_var": (20, 400),
        "decoder.0": (400, 20 + seen),
        "decoder.2": (rest, 400),
        "prior_network.0": (400, seen),
        "prior_network.2": (2 * 20, 400),
    }
    expected = {f"{name}.weight": shape for name, shape in weights.items()}
    assert found == expected | {f"{name}.bias": shape[:1] for name, shape in weights.items()}
    assert CompletionVAE().likelihood == Bernoulli(relaxed=True)
    assert CompletionVAE(likelihood=Bernoulli()).likelihood == Bernoulli()
    assert completing().seen_shape == (1, 2, 3)


@torch.no_grad()
@pytest.mark.equation(
    "eq-conditional-encoder", route="layers in numpy, what is seen beside the image", rel=1e-12
)
def test_what_is_seen_stands_beside_the_image_and_beside_z(agree):
    model, (x, y) = completing().double(), (part.double() for part in cut_images())
    z = torch.randn(5, 2, generator=seeded()).double()
    weights = {name: weight.numpy() for name, weight in model.named_parameters()}

    def layer(part, *values):
        row = np.concatenate([value.reshape(5, -1) for value in values], axis=1)
        return row @ weights[f"{part}.weight"].T + weights[f"{part}.bias"]

    def relu(value):
        return np.maximum(value, 0)

    features = relu(layer("encoder.0", x.numpy(), y.numpy()))
    for one, head in zip(model.encode(x, y), ("to_mu", "to_log_var"), strict=True):
        agree(one, layer(head, features))
    params = layer("decoder.2", relu(layer("decoder.0", z.numpy(), y.numpy())))
    agree(model.decode(z, y).params, params.reshape(5, 3, 2, 3))
    prior = layer("prior_network.2", relu(layer("prior_network.0", y.numpy())))
    for one, columns in zip(model.prior(y), (prior[:, :2], prior[:, 2:]), strict=True):
        agree(one, columns)


@torch.no_grad()
def test_forward_with_a_part_is_encode_reparameterize_decode_and_prior():
    model, (x, y), eps = completing(), cut_images(), torch.randn(7, 5, 2, generator=seeded())
    params, mu, log_var, *prior = parts(model(x, eps, y))
    assert torch.equal(torch.stack([mu, log_var]), torch.stack([*model.encode(x, y)]))
    assert torch.equal(params, model.decode(reparameterize(mu, log_var, eps), y).params)
    assert torch.equal(torch.stack(prior), torch.stack([*model.prior(y)]))
    assert params.shape == (7, 5, 3, 2, 3)
    columns = parts(model(x.unsqueeze(1), eps.unsqueeze(2), y.unsqueeze(1)))
    for column, flat in zip(columns, (params, mu, log_var, *prior), strict=True):
        torch.testing.assert_close(column.reshape(flat.shape), flat)
    # Further axes of z are decoded with the same parts, told once or for each.
    z = torch.randn(4, 7, 5, 2, generator=seeded(2))
    together = model.decode(z, y).params
    assert together.shape == (4, 7, 5, 3, 2, 3)
    torch.testing.assert_close(together, model.decode(z, y.expand(4, 7, 5, 1, 2, 3)).params)
    for i in range(5):
        torch.testing.assert_close(together[1, 2, i], model.decode(z[1, 2, i], y[i]).params)


def told(kind):
    """A model of this kind, images, what it is told, and the same with another for the third."""
    if kind == "part":
        x, y = cut_images()
        other = y.clone()
        other[2] = 1 - y[2]
        return completing(), x, y, other
    model = conditional(learned_prior=kind == "label, learned prior")
    other = LABELS.clone()
    other[2] = 2
    return model, images(), LABELS, other


@torch.no_grad()
@pytest.mark.parametrize("kind", ["label", "label, learned prior", "part"])
@pytest.mark.parametrize("part", ["encoder", "decoder", "prior"])
def test_no_network_is_deaf_to_what_is_told(kind, part):
    model, x, y, other = told(kind)
    z = torch.randn(5, 2, generator=seeded())
    networks = {
        "encoder": lambda y: torch.cat([*model.encode(x, y)], dim=1),
        "decoder": lambda y: model.decode(z, y).params.flatten(1),
        "prior": lambda y: torch.cat([*model.prior(y)], dim=1),
    }
    # But for roundings, which depend on where in memory a row begins.
    changed = ~torch.isclose(networks[part](y), networks[part](other), rtol=1e-5, atol=1e-6)
    if (kind, part) == ("label", "prior"):
        assert not changed.any()  # N(0, I) for all
    else:
        assert changed[2].all()  # every number of the image that is told another thing
        assert not changed[[0, 1, 3, 4]].any()  # and none of any other


@pytest.mark.usefixtures("shapes_unchecked")
@torch.no_grad()
def test_completions_are_decoded_draws_from_the_prior_of_what_is_seen():
    model, (_, y), before = completing(hidden=64), cut_images(), torch.get_rng_state()
    eps = torch.randn(5, 2, generator=seeded())
    mu, log_var = model.prior(y)
    means = torch.sigmoid(model.decode(mu + log_var.exp().sqrt() * eps, y).params)
    for given in (y, y.numpy(), y.tolist()):
        torch.testing.assert_close(model.sample(5, seeded(), y=given), means)
    assert not torch.allclose(model.sample(5, seeded(1), y=y), means)
    pixels = model.sample(5, seeded(), y=y, pixels=True)
    assert set(pixels.unique().tolist()) == {0, 1}
    assert pixels.shape == means.shape == (5, 3, 2, 3)
    assert model.sample(0, y=y[:0]).shape == (0, 3, 2, 3)
    same = y[:1].expand(5, 1, 2, 3)  # five completions of one image
    assert len(model.sample(5, seeded(), y=same).unique(dim=0)) == 5
    assert torch.equal(torch.get_rng_state(), before)
    drawn = model.double().sample(5, seeded(), y=y.double(), pixels=True)
    assert drawn.dtype == torch.float64
    assert not drawn.requires_grad


@pytest.mark.usefixtures("shapes_unchecked")
def test_as_many_samples_are_made_as_parts_are_given():
    model, (_, y) = completing(), cut_images()
    for n, given, found in [(4, y, "5,"), (6, y, "5,"), (5, y[None], "1, 5")]:
        with pytest.raises(ValueError, match=rf"^y: expected {n} of them, got \({found}\)"):
            model.sample(n, y=given)
    same = model.sample(5, seeded(), y=y[:1].expand(5, 1, 2, 3))
    torch.testing.assert_close(model.sample(5, seeded(), y=y[0]), same)  # one for all of them


SEEN = cut_images()[1]
NO_PART = [
    (None, "got NoneType"),
    (SEEN.tolist(), "got list"),
    (SEEN.numpy(), "got ndarray"),
    ((255 * SEEN).byte(), r"got \(5, 1, 2, 3\) of torch.uint8"),
    (SEEN > 0.5, r"got \(5, 1, 2, 3\) of torch.bool"),
    (LABELS, r"got \(5,\) of torch.int64"),
    (SEEN.mT, r"got \(5, 1, 3, 2\) of torch.float32"),
    (SEEN.expand(5, 3, 2, 3), r"got \(5, 3, 2, 3\) of torch.float32"),
    (SEEN.flatten(1), r"got \(5, 6\) of torch.float32"),
]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("y", "message"), NO_PART)
def test_what_is_no_part_of_an_image_is_refused(y, message):
    model, (x, _), z = completing(), cut_images(), torch.zeros(5, 2)
    for call in [
        lambda: model.encode(x, y),
        lambda: model.decode(z, y).params,
        lambda: model(x, z, y),
        lambda: model.prior(y),
    ]:
        with pytest.raises(ValueError, match=rf"^y: expected the part .*1, 2, 3\), {message}"):
            call()


@pytest.mark.usefixtures("shapes_unchecked")
def test_each_image_and_each_z_needs_its_part():
    model, (x, y), z = completing(), cut_images(), torch.zeros(5, 2)
    with pytest.raises(ValueError, match=r"^y: expected the part .* got NoneType"):
        model.sample(5)
    for wrong in (y[:4], torch.cat([y, y]), y[0], y[None], y[:, None]):
        shape = r"\(5,\)"
        with pytest.raises(ValueError, match=rf"^y: expected one .* shape {shape}, got "):
            model.encode(x, wrong)
        with pytest.raises(ValueError, match=r"^y: expected one "):
            model(x, z, wrong)
    for wrong in (y[:4], torch.cat([y, y]), y[None], y[:, None]):
        with pytest.raises(ValueError, match=r"^y: expected one .* shape \(5,\), got \("):
            model.decode(z, wrong)
    with pytest.raises(ValueError, match=r"^x: expected images of shape \(\.\.\., 3, 2, 3\)"):
        model.encode(x[:, :2], y)
    with pytest.raises(ValueError, match=r"^z: expected shape \(\.\.\., 2\), got \(5, 3\)"):
        model.decode(torch.zeros(5, 3), y)


@pytest.mark.parametrize(
    "likelihood", [ContinuousBernoulli(), Gaussian(0.3, "shared"), Gaussian(0.3, "pixel")], ids=str
)
def test_a_model_that_completes_takes_each_likelihood(likelihood):
    model, (x, y) = completing(likelihood=likelihood), cut_images()
    params, *_ = parts(model(x, torch.zeros(7, 5, 2), y))
    assert params.shape == (7, 5, 3 * likelihood.params_per_pixel, 2, 3)
    assert likelihood.log_prob(x, params).shape == (7, 5)
    for pixels in (False, True):
        assert model.sample(5, y=y, pixels=pixels).shape == (5, 3, 2, 3)


def test_a_method_of_ones_own_is_given_labels_in_training_and_in_evaluation():
    """Chapter 11 withholds the label from the decoder in this way."""
    given = []

    class Watched(CVAE):
        def decode(self, z, y=None):
            given.append((y.dtype, y.shape[-1:]))
            return super().decode(z, torch.zeros_like(y))

    data = Images(torch.rand(6, 1, 4, 4), torch.arange(6) % 3, "made", "train")
    model = Watched(2, 3, (1, 4, 4), Bernoulli(relaxed=True), classes=3)
    fit(model, data, epochs=1, batch_size=6)
    average_elbo(model, data)
    assert set(given) == {(torch.int64, (6,))}
    assert len(given) >= 2


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("kind", [VAE, ConvVAE, CVAE, CompletionVAE])
@pytest.mark.parametrize("likelihood", ["bernoulli", "", Bernoulli])
def test_what_is_no_likelihood_is_refused_by_name(kind, likelihood):
    with pytest.raises(ValueError, match=r"^likelihood: expected an object of .*Likelihood, got "):
        kind(2, 3, likelihood=likelihood)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("y", ["a", "12", [[1], [1, 2]], 1j])
def test_samples_of_what_is_no_label_are_refused_by_name(y):
    with pytest.raises(ValueError, match=r"^y: expected real numbers, got "):
        conditional().sample(3, y=y)


@pytest.mark.parametrize("name", ["latent", "hidden"])
@pytest.mark.parametrize("kind", [VAE, ConvVAE, CVAE, CompletionVAE])
def test_sizes_that_torch_cannot_count_to_are_refused_by_name(kind, name):
    with pytest.raises(ValueError, match=rf"^{name}: .* below 2\*\*63, got 1000"):
        kind(**{name: 10**20})
