"""What an explorer exports is the decoder and the plane; browsers are in tests/site."""

import base64
import html
import importlib.util
import json
import math
import re
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from statistics import NormalDist

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from flit_core import buildapi
from PIL import Image
from scipy.stats import chi2
from torch import nn

from tests.comparison import Printed
from vae_book import display
from vae_book import explorer as module
from vae_book.distributions import DiagonalGaussian
from vae_book.explorer import explorer, layers, show_explorer
from vae_book.figures import CLASS_COLORS
from vae_book.images import Images
from vae_book.likelihoods import ContinuousBernoulli, Gaussian
from vae_book.models import CVAE, VAE, ConvVAE

ROOT = Path(__file__).parents[2]
CLASSES = 10
DPI = display.DPI


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def spread(kind, **arguments):
    """A model whose posterior means lie all over the plane."""
    model = seeded(lambda: kind(2, **arguments))
    with torch.no_grad():
        model.to_mu.weight.mul_(20)
    return model


def some(n=60, shape=(1, 28, 28), seed=1):
    """Images with sorted labels, as the bundled digits have them."""
    images = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    return Images(images, torch.arange(n) * CLASSES // n, "noise", "test")


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """To draw a picture, at which most tests do not look, takes most of an explorer's time."""
    monkeypatch.setattr(display, "DPI", 20)


@pytest.fixture(scope="module")
def model():
    return spread(VAE, hidden=8)


def content(fragment):
    """The name of an explorer and what its script is called with."""
    name, text = re.search(r'\n\}\n\)\("([\w-]+)", (.*)\)\n</script>$', fragment).groups()
    return name, json.loads(text)


def picture(fragment):
    return base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', fragment)[1])


def numbers(text):
    return np.frombuffer(base64.b64decode(text), "<f4").astype(float)


def computed(described, x):
    """What layers make of one x, by the definition of each, in numpy."""
    for layer in described:
        match layer:
            case {"kind": "Linear", "weight": weight, "bias": bias}:
                x = numbers(weight).reshape(-1, x.size) @ x + numbers(bias)
            case {"kind": "ReLU"}:
                x = x.clip(min=0)
            case {"kind": "Sigmoid"}:
                x = 1 / (1 + np.exp(-x))
            case {"kind": "Unflatten", "shape": shape}:
                x = x.reshape(shape)
            case {"kind": "ConvTranspose2d", "weight": weight, "bias": bias, **size}:
                w = numbers(weight).reshape(len(x), *size["kernel"], -1)
                (top, left), (low, right) = size["padding"], size["extra"]
                (down, across), (tall, wide) = size["stride"], size["kernel"]
                _, height, width = x.shape
                # Everything is added onto a canvas that is large enough, and then cut.
                canvas = np.zeros(
                    (
                        w.shape[-1],
                        (height - 1) * down + tall + low,
                        (width - 1) * across + wide + right,
                    )
                )
                for i in range(height):
                    for j in range(width):
                        place = (
                            slice(i * down, i * down + tall),
                            slice(j * across, j * across + wide),
                        )
                        canvas[:, *place] += np.einsum("c,cklm->mkl", x[:, i, j], w)
                cut = canvas[:, top : canvas.shape[1] - top, left : canvas.shape[2] - left]
                x = cut + numbers(bias)[:, None, None]
            case _:
                raise AssertionError(layer)
    return x


@pytest.mark.parametrize("kind", [VAE, ConvVAE])
def test_layers_are_the_decoder(kind):
    model = seeded(lambda: kind(2, image_shape=(1, 8, 12)))
    described = layers(model.decoder)
    for z in ((0.0, 0.0), (-2.0, 1.5)):
        with torch.no_grad():
            expected = model.double().decode(torch.tensor(z).double()).params.numpy()
        assert computed(described, np.array(z)) == pytest.approx(expected, abs=1e-12)
    assert json.loads(json.dumps(described)), "plain numbers and texts"


def test_layers_knows_the_options_of_transposed_convolutions():
    options = {"stride": (2, 1), "padding": (0, 2), "output_padding": (1, 0)}
    decoder = seeded(
        lambda: nn.Sequential(
            nn.Linear(2, 24),
            nn.Sequential(nn.Sigmoid(), nn.Sequential(nn.Unflatten(-1, (2, 4, 3)))),
            nn.ConvTranspose2d(2, 3, (2, 5), **options),
        )
    ).double()
    z = torch.tensor([[0.3, -1.0]]).double()
    ours = computed(layers(decoder), z[0].numpy())
    assert ours == pytest.approx(decoder(z)[0].detach().numpy(), abs=1e-6)  # weights as float32


@pytest.mark.parametrize(
    "layer",
    [
        nn.Tanh(),
        nn.Conv2d(1, 2, 3),
        nn.Unflatten(1, (2, 1, 1)),
        nn.Linear(2, 3, bias=False),
        nn.ConvTranspose2d(2, 2, 3, bias=False),
        nn.ConvTranspose2d(2, 2, 3, groups=2),
        nn.ConvTranspose2d(2, 2, 3, dilation=2),
    ],
    ids=str,
)
def test_layers_refuses_what_the_script_cannot_compute(layer):
    with pytest.raises(ValueError, match=rf"decoder: expected .*, got {re.escape(str(layer))}$"):
        layers(nn.Sequential(nn.ReLU(), nn.Sequential(layer)))


def test_the_script_gets_the_decoder_and_the_sigmoid_of_the_mean(model):
    _, told = content(explorer(model, some()))
    z = torch.tensor([0.4, -1.1])
    with torch.no_grad():
        expected = model.likelihood.mean(model.decode(z).params).numpy()
    assert computed(told["layers"], z.numpy().astype(float)) == pytest.approx(expected, abs=1e-6)


def dots(described):
    """The places in the data of an SVG path."""
    moves = re.findall(r"M(-?\d+\.\d\d) (-?\d+\.\d\d)h0", described["dots"])
    assert "".join(f"M{x} {y}h0" for x, y in moves) == described["dots"]
    return np.array(moves, dtype=float)


def test_each_class_has_a_dot_at_every_posterior_mean(model):
    data = some()
    _, told = content(explorer(model, data))
    with torch.no_grad():
        mu = model.encode(data.images).mu.numpy()
    assert [each["name"] for each in told["classes"]] == [str(k) for k in range(CLASSES)]
    for k, each in enumerate(told["classes"]):
        assert dots(each) == pytest.approx(mu[data.labels == k], abs=0.00501)
    assert len({each["color"] for each in told["classes"]}) == CLASSES
    assert 3 < np.abs(mu).max() <= told["limit"] < np.abs(mu).max() + 0.5
    assert content(explorer(model, data, limit=2.0))[1]["limit"] == 2.0


def test_the_plane_reaches_to_three_where_the_dots_do_not():
    model = seeded(lambda: VAE(2, hidden=8))
    assert content(explorer(model, some()))[1]["limit"] == 3.0


def test_labels_stand_at_the_medians_unless_they_would_overlap():
    far = torch.tensor([[-2.0, 0.0], [-2.0, 1.0], [-1.9, 9.0], [2.0, -1.0]])
    groups = module._groups(far, torch.tensor([0, 0, 0, 1]), 3.0)
    assert [group.label.tolist() for group in groups] == [[-2.0, 1.0], [2.0, -1.0]]
    near = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.1, 0.1], [2.0, 2.0]])
    labels = torch.stack([group.label for group in module._groups(near, torch.arange(4), 3.0)])
    assert torch.pdist(labels).min() > 0.9 * module.LABEL * 3.0
    assert labels[3].tolist() == [2.0, 2.0]
    assert labels[:3].mean(0) == pytest.approx(near[:3].mean(0), abs=1e-6), "they yield alike"


def test_fewer_images_still_are_of_all_classes(model):
    data = some()
    _, told = content(explorer(model, data, n=20))
    assert [len(dots(each)) for each in told["classes"]] == [2] * CLASSES
    with torch.no_grad():
        ends = model.encode(data.images[[0, -1]]).mu.numpy()
    assert dots(told["classes"][0])[0] == pytest.approx(ends[0], abs=0.00501)
    assert dots(told["classes"][-1])[-1] == pytest.approx(ends[1], abs=0.00501)
    _, told = content(explorer(model, data, n=61))
    assert sum(len(dots(each)) for each in told["classes"]) == 60


def test_circles_hold_the_shares_of_the_prior_that_they_say(model):
    _, told = content(explorer(model, some(10)))
    for circle, share in zip(told["circles"], (0.5, 0.95), strict=True):
        assert circle["name"].startswith(f"{100 * share:.0f}%")
        # The squared distance from zero is chi-squared with two degrees of freedom.
        assert circle["radius"] == pytest.approx(math.sqrt(chi2(2).ppf(share)), abs=1e-4)


class OwnPrior(VAE):
    """A VAE whose prior lies elsewhere."""

    def prior(self, y=None):
        return DiagonalGaussian(torch.full((2,), 5.0), torch.zeros(2))


def test_no_circle_is_said_to_be_of_a_prior_that_it_is_not_of():
    model = seeded(lambda: OwnPrior(2, hidden=8))
    assert content(explorer(model, some(10)))[1]["circles"] == []
    figure = module._picture(model, module._groups(torch.zeros(1, 2), torch.tensor([0]), 3.0), 3.0)
    left, _ = figure.axes
    assert not left.patches
    assert [text.get_text() for text in left.texts] == ["0"]
    plt.close(figure)


def test_classes_are_called_by_their_names(model):
    plain, data = some(), some()
    named = replace(data, classes=tuple(rf"class <{k}> $\x$" for k in range(CLASSES)))
    name, told = content(explorer(model, named[10:]))  # the first class is not among them
    # The script makes them HTML.
    assert [html.unescape(each["name"]) for each in told["classes"]] == list(named.classes[1:])
    assert not any("<" in each["name"] for each in told["classes"])
    numbered = replace(data, classes=tuple(map(str, range(CLASSES))))
    assert explorer(model, numbered) == explorer(model, plain), "as if the classes had no names"
    assert name != content(explorer(model, plain[10:]))[0]


def luminance(color):
    parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("place", [0, 1], ids=["light", "dark"])
def test_dots_stand_out_from_the_paper(place):
    script = (ROOT / "vae_book" / "explorer.js").read_text()
    paper = re.search(r"--paper: light-dark\((#\w+), (#\w+)\)", script)[place + 1]
    paper = paper if len(paper) == 7 else f"#{''.join(2 * digit for digit in paper[1:])}"
    for colors in CLASS_COLORS:
        low, high = sorted([luminance(paper), luminance(colors[place])])
        assert (high + 0.05) / (low + 0.05) >= 3  # WCAG 2.2, 1.4.11
    assert len({colors[place] for colors in CLASS_COLORS}) == 10


def test_the_same_input_makes_the_same_explorer_and_another_one_another_name(model):
    data = some()
    fragment = explorer(model, data, limit=4.0)
    assert fragment == explorer(model, data, limit=4.0)
    name, _ = content(fragment)
    assert f'id="{name}"' in fragment
    others = [
        explorer(seeded(lambda: VAE(2, hidden=8)), data, limit=4.0),
        explorer(model, some(seed=2), limit=4.0),
        explorer(model, replace(data, labels=data.labels.flip(0)), limit=4.0),
        explorer(model, data, limit=4.0, n=59),
        explorer(model, data, limit=2.0),
        explorer(model, data, limit=4.0, sentence="Another."),
    ]
    assert len({name, *(content(other)[0] for other in others)}) == 7


def test_it_is_found_again_by_a_machine_that_rounds_differently(model):
    """nbval compares the stored fragment; the encoder's last digits and the picture may differ."""
    stored = explorer(model, some(10))
    _, told = content(stored)
    first = told["classes"][0]["dots"].split("h0")[0]
    x, y = map(float, first[1:].split())
    moved = stored.replace(first, f"M{x + 0.01:.2f} {y:.2f}")
    redrawn = re.sub('base64,[^"]+" alt', 'base64,AAAA" alt', stored)
    far = stored.replace(first, f"M{x + 0.04:.2f} {y:.2f}")
    weights = told["layers"][0]["bias"]
    assert len({stored, moved, redrawn, far}) == 4
    assert Printed(stored) == moved
    assert Printed(stored) == redrawn
    assert Printed(stored) != far
    assert Printed(stored) != stored.replace(weights, weights.swapcase())
    assert Printed(stored) != redrawn.replace("alt=", "title=")


def test_the_picture_shows_the_dots_and_what_is_decoded_around_them(model):
    mu = torch.tensor([[-2.0, 1.0], [0.5, 2.5], [1.0, -1.0]])
    groups = module._groups(mu, torch.tensor([3, 3, 7]), 3.0)
    figure = module._picture(model, groups, 3.0)
    left, right = figure.axes
    drawn = {tuple(point) for line in left.lines for point in line.get_xydata().tolist()}
    assert drawn == {tuple(point) for point in mu.tolist()}
    assert {"3", "7"} < {text.get_text() for text in left.texts}
    mosaic = right.images[0].get_array()
    assert mosaic.shape == (7 * 28, 7 * 28)
    assert right.images[0].get_extent() == [0, 7, 0, 7]
    quantile = [NormalDist().inv_cdf((k + 0.5) / 7) for k in range(7)]
    for row, column in ((0, 0), (6, 0), (3, 3), (2, 5)):
        image = mosaic[28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
        z = torch.tensor([quantile[column], quantile[6 - row]])
        with torch.no_grad():
            expected = model.likelihood.mean(model.decode(z).params)[0]
        assert np.asarray(image) == pytest.approx(expected.numpy(), abs=1e-6)
    for ticks, names in (
        (right.get_xticks(), right.get_xticklabels()),
        (right.get_yticks(), right.get_yticklabels()),
    ):
        assert list(ticks) == [0.5, 3.5, 6.5], "it stands where its z is"
        assert [float(each.get_text().replace("\u2212", "-")) for each in names] == [
            round(quantile[k], 1) for k in (0, 3, 6)
        ]
    assert right.images[0].origin == "upper"
    plt.close(figure)


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append(data))
    return shown


def test_show_gives_a_page_its_explorer_and_paper_its_picture(displayed, model, monkeypatch):
    monkeypatch.setattr(display, "DPI", DPI)
    show_explorer(model, some(), 'Digits & "their" plane. ', n=20, limit=2.5)
    (data,) = displayed
    sentence = 'Digits & "their" plane.'
    assert set(data) == {"text/html", "image/png", "text/plain"}
    assert data["text/plain"] == sentence
    assert data["text/html"] == explorer(model, some(), n=20, limit=2.5, sentence=sentence)
    assert 'alt="Digits &amp; &quot;their&quot; plane."' in data["text/html"]
    assert picture(data["text/html"]) == data["image/png"]
    assert Image.open(BytesIO(data["image/png"])).size == (1200, 600)
    assert not plt.get_fignums()


@pytest.mark.parametrize("sentence", ["", "no full stop", "two\nlines."])
def test_show_wants_a_sentence(displayed, model, sentence):
    with pytest.raises(ValueError, match="sentence: expected one line"):
        show_explorer(model, some(), sentence)
    assert not displayed


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: VAE(3, hidden=8), "model: expected a latent size of 2, got 3"),
        (lambda: CVAE(2, hidden=8), "model: expected a decoder of z alone, got a CVAE"),
        (
            lambda: VAE(2, hidden=8, likelihood=ContinuousBernoulli()),
            "model: expected the likelihood Bernoulli, got ContinuousBernoulli",
        ),
        (
            lambda: VAE(2, hidden=8, likelihood=Gaussian()),
            "model: expected the likelihood Bernoulli, got Gaussian",
        ),
        (
            lambda: VAE(2, hidden=8, image_shape=(3, 4, 4)),
            "model: expected images of one channel, got 3",
        ),
    ],
)
def test_other_models_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        explorer(other(), some())


class Louder(VAE):
    """Its decode does more than its decoder."""

    def decode(self, z, y=None):
        return self.likelihood.given(3 * self.decoder(z))


class Unshaped(VAE):
    """Its decode, and not its decoder, makes the shape of an image."""

    def __init__(self):
        super().__init__(2, 8)
        self.decoder = nn.Linear(2, 784)

    def decode(self, z, y=None):
        return self.likelihood.given(self.decoder(z).unflatten(-1, (1, 28, 28)))


class WiderDecoder(VAE):
    """Its decoder gets more than z."""

    def __init__(self):
        super().__init__(2, 8)
        self.decoder[0] = nn.Linear(4, 8)

    def decode(self, z, y=None):
        return self.likelihood.given(self.decoder(torch.cat([z, z**2], -1)))


class Doubled(nn.Sequential):
    """Its layers stand in it, but it does something else."""

    def forward(self, x):
        return 2 * super().forward(x)


def doubled():
    model = VAE(2, hidden=8)
    model.decoder = Doubled(*model.decoder)
    return model


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (lambda: Louder(2, hidden=8), r"pixels that are off by up to 0\.\d+"),
        (doubled, r"pixels that are off by up to 0\.\d+"),
        (Unshaped, "another shape"),
        (WiderDecoder, "another shape"),
    ],
)
def test_what_the_page_would_show_otherwise_than_the_model_is_refused(other, found):
    with pytest.raises(ValueError, match=rf"^model: expected a decode\(\) .*, got {found}$"):
        explorer(seeded(other), some())


class OwnEncoder(VAE):
    """An encoder of another make, and no layer called to_mu."""

    def __init__(self):
        super().__init__(2, 8)
        del self.to_mu, self.to_log_var
        self.encoder = nn.Sequential(nn.Flatten(-3), nn.Linear(784, 4))

    def encode(self, x, y=None):
        return DiagonalGaussian(*self.encoder(x).chunk(2, -1))


class Logarithm(nn.Module):
    """NaN for what is negative."""

    def forward(self, x):
        return x.log()


@pytest.mark.parametrize("part", ["to_mu", "decoder.0"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(part, number):
    model = seeded(lambda: VAE(2, hidden=8))
    nn.init.constant_(model.get_submodule(part).bias, number)
    message = f"model: expected finite numbers, got infinity or NaN in its {part}.bias; "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        explorer(model, some())


def test_posterior_means_that_are_not_finite_are_refused():
    model = seeded(OwnEncoder)
    model.encoder.append(Logarithm())
    with pytest.raises(ValueError, match=r"^model: .* infinity or NaN in its posterior means"):
        explorer(model, some())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", [VAE, ConvVAE])
def test_weights_of_other_types_are_exported_as_they_are(kind, dtype):
    model = spread(kind).to(dtype)
    _, told = content(explorer(model, some(20)))
    z = np.array([0.5, -1.0])  # exact in each type
    with torch.no_grad():
        expected = model.double().decode(torch.from_numpy(z)).mean.numpy()
    assert computed(told["layers"], z) == pytest.approx(expected, abs=1e-6)


def test_an_encoder_of_another_make_is_taken():
    model, data = seeded(OwnEncoder), some(10)
    _, told = content(explorer(model, data))
    with torch.no_grad():
        mu = model.encode(data.images).mu.numpy()
    assert np.concatenate([dots(each) for each in told["classes"]]) == pytest.approx(
        mu, abs=0.00501
    )


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (some().images, "data: expected an object of vae_book.images.Images, got one of Tensor"),
        (some()[[]], "data: expected one image or more, got none"),
    ],
    ids=["tensor", "empty"],
)
def test_what_is_no_set_of_images_is_refused(model, data, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        explorer(model, data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n: expected a whole number of at least 1, got 0"),
        ({"limit": 0.0}, "limit: expected a positive number, got 0"),
        ({"limit": math.nan}, "limit: expected a positive number, got nan"),
    ],
)
def test_other_arguments_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        explorer(model, some(), **arguments)


def test_the_script_loads_nothing():
    script = (ROOT / "vae_book" / "explorer.js").read_text()
    assert not re.findall(r"https?:|fetch|XMLHttp|import\b|url\(|</script", script)


def test_the_package_ships_the_script(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    wheel = tmp_path / buildapi.build_wheel(str(tmp_path))
    assert "vae_book/explorer.js" in zipfile.ZipFile(wheel).namelist()


def test_a_chapter_runs_again_when_script_or_checkpoint_change(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("book_tool", ROOT / "tools" / "book.py")
    book = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(book)
    monkeypatch.setattr(book, "ROOT", tmp_path)
    notebook = book.nbformat.v4.new_notebook()
    keys = {book.inputs_key(notebook, "CPU")}
    for name in ("vae_book/a.py", "vae_book/a.js", "book/results/a.pt", "book/results/a.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        keys.add(book.inputs_key(notebook, "CPU"))
    assert len(keys) == 5
