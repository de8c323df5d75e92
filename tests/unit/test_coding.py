"""Coding: as many bits as the bound says, and every image back, bit for bit."""

import math
import subprocess
import sys
import zlib

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vae_book.bounds import elbo
from vae_book.checkpoints import write_checkpoint
from vae_book.coding import (
    LOWEST,
    TOTAL,
    WORD,
    BitsBack,
    CodingError,
    GaussianCounts,
    Stack,
    compress,
    cumulative_counts,
    decompress,
    file_facts,
    yardsticks,
)
from vae_book.data import load_images
from vae_book.device import seeded
from vae_book.distributions import Distribution
from vae_book.images import binarize
from vae_book.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian, Likelihood
from vae_book.models import CVAE, VAE, CompletionVAE, ConvVAE

AROUND = 25  # bytes of a file that are not the message, give or take 2 for a state half full


class Softmax(Likelihood):
    """The gray levels 0, 1/4, ..., 1, with a softmax of minus the distance from the output."""

    def pixel_log_prob(self, x, params):
        """The log-probability of each pixel."""
        grid = torch.arange(5) / 4
        scores = -5 * (grid - params.unsqueeze(-1)).abs()
        return scores.log_softmax(-1).gather(-1, (4 * x).round().long().unsqueeze(-1)).squeeze(-1)

    def mean(self, params):
        """Not needed."""
        return params

    def sample(self, params, generator=None):
        """Not needed."""
        return params


def small(kind=VAE, seed=0, **options):
    """A VAE whose q(z | x) and p(x | z) do depend on x and z, though it is not trained."""
    torch.manual_seed(seed)
    options = {"latent": 3, "hidden": 16, "image_shape": (1, 4, 4), **options}
    model = kind(**options)
    with torch.no_grad():
        for layer in (model.to_mu, model.to_log_var):
            layer.weight *= 3
        for layer in model.decoder.modules():
            if isinstance(layer, nn.Linear | nn.ConvTranspose2d):
                layer.weight *= 4
    return model


def images(n=6, shape=(1, 4, 4), levels=2, seed=1):
    return torch.randint(levels, (n, *shape), generator=seeded(seed)) / (levels - 1)


@pytest.fixture(scope="module")
def digits():
    """A hundred real digits that the model below has not seen, binary."""
    data = load_images("test", "bundled", "cpu").images[::5]
    return binarize(data, seeded(1))


@pytest.fixture(scope="module")
def trained():
    """A small VAE after a few seconds' training on real digits."""
    torch.manual_seed(0)
    data = binarize(load_images("train", "bundled", "cpu").images, seeded(0))
    model = VAE(latent=8, hidden=64, likelihood=Bernoulli())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(200):
        x = data[torch.randint(len(data), (128,), generator=seeded(2, step))]
        loss = -elbo(model, x, generator=seeded(3, step)).value.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


# The entropy coder


@pytest.mark.parametrize("n", [2, 3, 17, 256])
@pytest.mark.parametrize("concentration", [0.1, 1.0, 10.0])
def test_symbols_need_minus_log2_p_bits(n, concentration):
    rng = np.random.default_rng(n)
    masses = rng.dirichlet(np.full(n, concentration), size=5000)
    symbols = [int(rng.choice(n, p=row)) for row in masses]
    needed = -np.log2(masses[np.arange(5000), symbols]).sum()
    stack = Stack()
    stack.push(symbols, cumulative_counts(masses))
    assert stack.bits - math.log2(LOWEST) == pytest.approx(needed, rel=1e-3, abs=1)


masses = st.lists(st.floats(1e-12, 1), min_size=2, max_size=9)


@given(st.lists(st.tuples(masses, st.integers(0, 8)), max_size=40), st.integers(0, 2**32 - 1))
def test_pop_undoes_push_and_push_undoes_pop(pairs, seed):
    counts = [cumulative_counts(np.array([row]))[0] for row, _ in pairs]
    symbols = [symbol % len(row) for row, symbol in pairs]
    stack = Stack.random(seed)
    before = stack.state, list(stack.words)
    stack.push(symbols, counts)
    assert stack.pop(counts) == symbols
    assert (stack.state, stack.words) == before
    drawn = stack.pop(counts)  # of random bits only
    stack.push(drawn, counts)
    assert (stack.state, stack.words) == (before[0], stack.drawn[:0:-1])


def test_what_is_popped_from_random_bits_is_a_draw():
    masses = np.array([0.5, 0.3, 0.15, 0.05])
    drawn = Stack.random(0).pop(cumulative_counts(masses[None]) * 20_000)
    assert scipy.stats.chisquare(np.bincount(drawn), 20_000 * masses).pvalue > 0.01


def test_a_stack_gives_no_more_than_was_put_in():
    with pytest.raises(CodingError, match="empty stack"):
        Stack().pop([[0, 1, TOTAL]] * 3)
    with pytest.raises(CodingError, match="probabilities above 0, got 1 with 0"):
        Stack().push([1], [[0, 5, 5, TOTAL]])
    with pytest.raises(ValueError, match="argument 2 is longer"):
        Stack().push([1], [[0, 5, TOTAL]] * 2)
    with pytest.raises(ValueError, match="state: expected"):
        Stack(LOWEST - 1)


BAD_TABLES = [None, [], [0], 3, ["a", "b"]]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("bad", BAD_TABLES, ids=str)
def test_a_pop_that_fails_leaves_the_stack_as_it_was(seed, bad):
    words, tables = [7, 8, 9], [[0, 5, TOTAL]] * 20 + [[0, 1, TOTAL]] * 20
    stack, other = (Stack(LOWEST + 11, words, seed=seed) for _ in range(2))
    for failing in ([*tables, bad], [[0, 5, TOTAL], bad], None):
        with pytest.raises(CodingError, match=r"tables: expected|empty stack"):
            stack.pop(failing)
        assert (stack.state, stack.words, stack.drawn) == (LOWEST + 11, words, [])
    if seed is not None:
        assert stack.pop(tables) == other.pop(tables)
        assert (stack.state, stack.words, stack.drawn) == (other.state, other.words, other.drawn)


def test_improbable_symbols_keep_a_slot_and_the_others_their_probability():
    masses = np.array([[1e-30, 0.25, 0.75, 0.0], [0.1, 0.2, 0.3, 0.4]])
    for row, counts in zip(masses, cumulative_counts(masses), strict=True):
        assert (counts[0], counts[-1]) == (0, TOTAL)
        widths = np.diff(counts)
        assert widths.min() >= 1
        assert widths / TOTAL == pytest.approx(row, abs=5 / TOTAL)


def test_masses_whose_sum_no_float_holds_have_counts_and_others_keep_theirs():
    rng = np.random.default_rng(0)
    ordinary = rng.random((20, 7)) * 10.0 ** rng.integers(-300, 290, (20, 1))
    rows = cumulative_counts(ordinary)
    assert rows == [cumulative_counts(row[None])[0] for row in ordinary]
    huge = np.array([[1e308, 1e308], [1.7e308, 0.1e308], [1e308, 0.0]])
    assert cumulative_counts(huge) == cumulative_counts(huge / 2**100)
    assert cumulative_counts(huge)[0] == [0, TOTAL // 2, TOTAL]
    assert cumulative_counts(np.concatenate([huge, huge / 2**100]))[3:] == cumulative_counts(huge)


def test_the_bins_of_a_gaussian_have_its_probabilities():
    edges = [-math.inf, *np.linspace(-3, 3, 50), math.inf]
    counts = GaussianCounts(0.7, 0.4, edges)
    expected = TOTAL * np.diff(scipy.stats.norm(0.7, 0.4).cdf(edges))
    assert (counts[0], counts[len(counts) - 1]) == (0, TOTAL)
    assert np.diff([counts[k] for k in range(52)]) == pytest.approx(expected, abs=1)


# One image


def random_stack(seed, size=50):
    state, *words = np.random.default_rng(seed).integers(LOWEST, size=size).tolist()
    return Stack(LOWEST + state, words)


def bits_of_the_bound(coder, stack, symbols, y=None):
    """-log2 p(x | z) - log2 p(z) + log2 q(z | x) of the bins that the stack is about to draw."""
    x = (torch.tensor(symbols) / 1.0).reshape(1, *coder.model.image_shape)
    drawn = np.array(Stack(stack.state, stack.words).pop(coder.posterior(symbols, y)))
    p_z, q_z = (
        scipy.stats.norm(each.mu.flatten().numpy(), each.sigma.flatten().numpy())
        for each in (coder.model.prior(y), coder.model.encode(x, y))
    )
    left, middle, right = (p_z.ppf((drawn + at) / 2**12) for at in (0, 0.5, 1))
    log_likelihood = coder.model.decode(torch.tensor(middle)[None], y).log_prob(x).item()
    of_z = np.log2(q_z.cdf(right) - q_z.cdf(left)).sum() + 12 * len(drawn)
    return of_z - log_likelihood / math.log(2)


@torch.no_grad()
def test_an_image_adds_its_own_term_of_the_bound(trained, digits):
    coder = BitsBack(trained, levels=2, latent_bits=12)
    for i, x in enumerate(digits[:20]):
        symbols, stack = x.long().flatten().tolist(), random_stack(i)
        needed, before = bits_of_the_bound(coder, stack, symbols), stack.bits
        coder.push(stack, i, symbols, None)
        assert stack.bits - before == pytest.approx(needed, abs=0.05)
        assert coder.pop(stack, i, None) == symbols
        assert stack.bits == before


@torch.no_grad()
def test_an_image_with_a_label_adds_its_term_of_the_bound_given_the_label():
    model = small(CVAE, classes=6, own_weights=False)
    nn.init.normal_(model.prior_network.weight, std=0.1, generator=seeded(0))
    coder = BitsBack(model, levels=2, latent_bits=12)
    for i, x in enumerate(images()):
        symbols, stack, y = x.long().flatten().tolist(), random_stack(i), torch.tensor([i])
        needed, before = bits_of_the_bound(coder, stack, symbols, y), stack.bits
        coder.push(stack, i, symbols, y)
        assert stack.bits - before == pytest.approx(needed, abs=0.05)


def test_the_bins_are_permuted_anew_for_each_image_unit_and_seed():
    coder = BitsBack(small(), levels=2, latent_bits=12)
    pads = {tuple(coder.pad(i, [0, 0, 0])) for i in range(100)}
    other = BitsBack(small(), levels=2, latent_bits=12, seed=1)
    pads |= {tuple(other.pad(i, [0, 0, 0])) for i in range(100)}
    assert len(pads) == 200
    assert len({k for pad in pads for k in pad}) > 540  # of 600 draws of 4096, 43 repeat on average
    assert sorted(coder.pad(3, [k, 0, 0])[0] for k in range(4096)) == list(range(4096))
    assert coder.pad(5, coder.pad(5, [1, 20, 4095])) == [1, 20, 4095]


# Files


@pytest.mark.equation("eq-bits-back", route="the ELBO of 200 draws of z an image", rel=0.005)
@torch.no_grad()
def test_the_length_of_a_file_is_the_negative_bound(agree, trained, digits):
    bound = elbo(trained, digits, n_samples=200, generator=seeded(0)).value.mean().item()
    facts = [file_facts(compress(trained, digits, seed=seed)) for seed in range(4)]
    per_image = np.mean([each.bits_per_image - 8 * AROUND / len(digits) for each in facts])
    agree(per_image, -bound / math.log(2))
    assert facts[0].bits_per_image == pytest.approx(-bound / math.log(2), rel=0.02)


def test_it_is_shorter_than_the_yardsticks(trained, digits):
    train = binarize(load_images("train", "bundled", "cpu").images, seeded(0))
    others = yardsticks(train, digits)
    assert file_facts(compress(trained, digits)).bits_per_image < min(others.values())


MODELS = {
    "VAE": (lambda: small(), (1, 4, 4), 2, None),
    "Bernoulli": (lambda: small(likelihood=Bernoulli()), (1, 4, 4), 2, None),
    "oblong": (lambda: small(image_shape=(3, 2, 5)), (3, 2, 5), 2, None),
    "five levels": (lambda: small(likelihood=Softmax()), (1, 4, 4), 5, None),
    "ConvVAE": (lambda: small(ConvVAE, image_shape=(1, 8, 8)), (1, 8, 8), 2, None),
    "CVAE": (
        lambda: small(CVAE, classes=6, learned_prior=True),
        (1, 4, 4),
        2,
        torch.tensor([5, 0, 3, 3, 1, 2]),
    ),
    "CompletionVAE": (
        lambda: small(CompletionVAE, image_shape=(3, 2, 2), seen_shape=(1, 2, 2)),
        (3, 2, 2),
        2,
        images(shape=(1, 2, 2), seed=7),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_image_comes_back(name):
    make, shape, levels, y = MODELS[name]
    model, x = make(), images(shape=shape, levels=levels)
    if name == "CVAE":
        nn.init.normal_(model.prior_network.weight, std=0.1)
    data = compress(model, x, y, levels=levels)
    found = decompress(model, data, y)
    assert found.dtype == x.dtype
    assert torch.equal(found, x)
    assert file_facts(data)[:4] == (levels, 12, 0, 6)


def test_the_model_is_left_as_it_was():
    model = small().train()
    model.encoder.append(nn.Dropout())  # which is at rest in the copy
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(decompress(model, compress(model, images())), images())
    assert model.training
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name])


def test_the_initial_bits_are_random_words_of_the_seed():
    model, x = small(latent=20), images()
    files = [compress(model, x, seed=seed) for seed in (0, 1)]
    assert files[0] != files[1]
    assert compress(model, x) == files[0]
    # The first image draws 20 bins of 12 bits, and q(z | x) - p(z) does not need all of them.
    for data in files:
        assert 2 * WORD <= file_facts(data).initial_bits <= 20 * 12 + 2 * WORD
        assert file_facts(data).file_bits == 8 * len(data)
        assert torch.equal(decompress(model, data), x)


def test_the_number_of_threads_does_not_matter(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    compress(small(), images())
    assert asked == [1, 2]
    with pytest.raises(ValueError, match="y: expected None"):
        compress(small(), images(), torch.zeros(6))
    assert asked == [1, 2, 1, 2]


def test_a_fresh_process_decodes_the_file(tmp_path, trained, digits):
    optimizer = torch.optim.Adam(trained.parameters())
    history = {"kl": [], "reconstruction": [], "loss": [], "held_out": [], "seconds": []}
    write_checkpoint(tmp_path / "model.pt", trained, optimizer, history, {})
    (tmp_path / "digits.vae").write_bytes(compress(trained, digits[:20]))
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from vae_book.checkpoints import read_checkpoint\n"
        "from vae_book.coding import decompress\n"
        "torch.set_num_threads(2)\n"
        "model = read_checkpoint('model.pt').model()\n"
        "torch.save(decompress(model, Path('digits.vae').read_bytes()), 'found.pt')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert torch.equal(torch.load(tmp_path / "found.pt"), digits[:20])


# What does not fit


def test_a_damaged_file_is_refused():
    model = small()
    data = compress(model, images(2))
    for place in range(len(data)):
        bad = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        with pytest.raises(ValueError, match="data: expected"):
            decompress(model, bad)
    for length in range(len(data)):
        with pytest.raises(ValueError, match="data: expected"):
            decompress(model, data[:length])
    short = b"VAE1" + zlib.crc32(b"VAE1").to_bytes(4, "little")  # its checksum is right
    for other in (data + data, b"\x89PNG" + data, short):
        with pytest.raises(ValueError, match="data: expected"):
            file_facts(other)


@pytest.mark.parametrize("seed", range(1, 9))
def test_another_model_is_refused(seed):
    data = compress(small(), images())
    with pytest.raises(ValueError, match="model: expected the one that compressed these images"):
        decompress(small(seed=seed), data)


def test_the_slightest_change_of_the_model_is_noticed(trained, digits):
    data = compress(trained, digits[:20])
    other = VAE(latent=8, hidden=64, likelihood=Bernoulli())
    other.load_state_dict(trained.state_dict())
    with torch.no_grad():
        other.to_mu.bias[0] += 1e-3
    with pytest.raises(ValueError, match="model: expected the one"):
        decompress(other, data)


def test_images_told_something_else_are_refused():
    make, _, _, y = MODELS["CompletionVAE"]
    model = make()
    data = compress(model, images(shape=(3, 2, 2)), y)
    with pytest.raises(ValueError, match="told the same"):
        decompress(model, data, 1 - y)
    with pytest.raises(ValueError, match="y: expected one for each of the 6 images, got 5"):
        decompress(model, data, y[:5])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images() * 0.4, r"images: expected pixels that are 0 or 1, got 0\.4\. Gray levels become"),
        (images() * 2, "images: expected pixels that are 0 or 1, got 2"),
        (images() - 1, "images: expected pixels that are 0 or 1, got -1"),
        (images() / 0, "images: expected pixels that are 0 or 1, got (nan|inf)"),
        (images(shape=(1, 4, 5)), r"x: expected images of shape \(\.\.\., 1, 4, 4\)"),
        (images()[0], "images: expected one or more"),
        (images()[:0], "images: expected one or more"),
    ],
)
def test_images_that_do_not_fit_are_refused(shapes_unchecked, x, message):
    with pytest.raises(ValueError, match=message):
        compress(small(), x)


@pytest.mark.parametrize(
    "likelihood",
    [ContinuousBernoulli(), Gaussian(0.1), Softmax()],
    ids=lambda each: type(each).__name__,
)
def test_a_likelihood_without_probabilities_of_these_levels_is_refused(likelihood):
    with pytest.raises(ValueError, match="model: expected a likelihood that gives the 2 levels"):
        compress(small(likelihood=likelihood), images())
    with pytest.raises(ValueError, match="model: expected a likelihood that gives the 5 levels"):
        compress(small(), images(levels=5), levels=5)


def test_a_model_whose_numbers_cannot_be_coded_is_refused():
    model = small()
    nn.init.constant_(model.to_mu.bias, math.nan)
    with pytest.raises(ValueError, match="model: expected encode to give finite numbers"):
        compress(model, images())
    model = small()
    nn.init.constant_(model.to_log_var.bias, -1e4)  # its e^-5000 is 0
    with pytest.raises(ValueError, match="model: expected encode to give standard deviations abo"):
        compress(model, images())

    class Unknown(Distribution):
        batch = ()

        def sample(self, shape, generator=None):
            raise NotImplementedError

        def log_prob(self, z):
            raise NotImplementedError

    model = small()
    model.prior = lambda y=None: Unknown()
    with pytest.raises(ValueError, match="model: expected prior to give a DiagonalGaussian"):
        compress(model, images())


@pytest.mark.parametrize(
    "options",
    [{"levels": 1}, {"levels": 257}, {"latent_bits": 0}, {"latent_bits": 17}, {"seed": -1}],
)
def test_numbers_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}: expected a whole number"):
        compress(small(), images(), **options)


# Yardsticks


def test_noise_cannot_be_compressed():
    x, other = images(500, (1, 8, 64)), images(500, (1, 8, 64), seed=3)
    for bits in yardsticks(other, x).values():
        assert 512 <= bits < 1.1 * 512
    x = images(100, (1, 8, 64), levels=256)
    found = yardsticks(x, x, levels=256)
    assert found.pop("histogram") < 4096  # which has seen them
    for bits in found.values():
        assert 4096 <= bits < 1.05 * 4096


def test_images_without_a_surprise_need_next_to_nothing():
    x = torch.ones(2000, 1, 8, 8)
    for bits in yardsticks(x, x).values():
        assert bits < 2


def test_the_histogram_counts_each_pixel_by_itself():
    train = torch.tensor([[0.0, 1.0], [0.0, 0.5], [0.0, 0.5]]).reshape(3, 1, 1, 2)
    x = torch.tensor([[0.0, 0.5], [1.0, 0.0]]).reshape(2, 1, 1, 2)
    shares = [4 / 6, 3 / 6, 1 / 6, 1 / 6]  # one more than counted, of three images and three levels
    assert yardsticks(train, x, levels=3)["histogram"] == pytest.approx(-np.log2(shares).sum() / 2)


def test_yardsticks_refuse_what_does_not_fit(shapes_unchecked):
    with pytest.raises(ValueError, match="images: expected pixels that are 0 or 1"):
        yardsticks(images(), images() * 0.4)
    with pytest.raises(ValueError, match="images: expected the shape of those to count"):
        yardsticks(images(), images(shape=(1, 5, 4)))
    with pytest.raises(ValueError, match="levels: expected a whole number"):
        yardsticks(images(), images(), levels=1)
