"""A decoder that runs in the reader's page: a latent plane to walk through (used in chapter 9).

The page gets the decoder's weights and a script, explorer.js, that computes with them: no kernel,
no network, no library. Where scripts are off, a picture stands in its place.
"""

import html
import json
import math
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d

from vae_book.checks import of_kind, real_number, whole_number
from vae_book.display import one_sentence, png
from vae_book.distributions import DiagonalGaussian
from vae_book.evaluation import posteriors
from vae_book.figures import CLASS_COLORS, GRAY, STYLE, WIDTH, apart
from vae_book.images import Images
from vae_book.likelihoods import Bernoulli
from vae_book.models import VAE, measuring

CIRCLES = {"50%": 0.5, "95% of the prior": 0.95}
LEAST_LIMIT = 3.0  # the larger circle and some more
LABEL = 0.16  # of the limit: how far labels are apart
SIDE = 7  # decoded images along each side of the static picture
ALIKE = 0.01  # of the ink of a pixel: what is not seen
SENTENCE = (
    "The latent plane with the posterior means of held-out images by class, and what the decoder "
    "makes of points that stand for equal shares of N(0, I)."
)


class Group(NamedTuple):
    """The images of one class in the latent plane.

    Attributes:
        name: of the class; its label where classes have no names.
        dots: the posterior means.
        label: where the name stands: at their median, or next to it.
        colors: of the dots on light and on dark paper.
    """

    name: str
    dots: Float[Tensor, "n 2"]
    label: Float[Tensor, "2"]
    colors: tuple[str, str]


def explorer(
    model: VAE, data: Images, n: int = 500, limit: float | None = None, sentence: str = SENTENCE
) -> str:
    """A part of an HTML page in which a reader moves z and sees what the decoder makes of it.

    Circles hold half and 95% of the prior N(0, I); of another prior there are none.

    Args:
        model: a VAE with a latent size of 2 and Bernoulli pixels, one a place.
        data: held-out images, on the model's device; their posterior means are drawn.
        n: how many of them at most, evenly from first to last.
        limit: how far z goes along each axis; None goes as far as the posterior means, and to 3.
        sentence: the alternative text of the picture for pages without scripts.

    Returns:
        HTML that names itself by its content: the same each time, and different from others.

    Raises:
        ValueError: the model is another one, its ``decode`` does something other than its decoder,
            of which a layer may be unknown (see `layers`), its numbers are not finite, there are no
            images, or n or limit is not positive.
    """
    return _rendered(model, data, n, limit, sentence)[0]


def show_explorer(
    model: VAE, data: Images, sentence: str, n: int = 500, limit: float | None = None
) -> None:
    """Display the `explorer` in a notebook with one sentence that states what it shows.

    As in `vae_book.figures.show` the sentence becomes the caption and the alternative text.

    Raises:
        ValueError: the sentence is not one line that ends in a full stop, or see `explorer`.
    """
    from IPython.display import display  # a notebook has it; the package does not need it

    sentence = one_sentence(sentence)
    fragment, picture = _rendered(model, data, n, limit, sentence)
    display({"text/html": fragment, "image/png": picture, "text/plain": sentence}, raw=True)


def layers(decoder: nn.Sequential) -> list[dict[str, Any]]:
    """The layers of a decoder with their weights, as explorer.js wants them.

    Each is a dictionary of plain numbers and texts: its ``kind`` and what that takes. Weights are
    little-endian float32 in base64, those of transposed convolutions with the output channels last.

    Raises:
        ValueError: a layer is none of Linear, ReLU, Sigmoid, Unflatten and ConvTranspose2d, or has
            options that explorer.js does not know.
    """
    described: list[dict[str, Any]] = []
    for module in decoder:
        described += layers(module) if isinstance(module, nn.Sequential) else [_layer(module)]
    return described


def _layer(module: nn.Module) -> dict[str, Any]:
    match module:
        case nn.ReLU():
            return {"kind": "ReLU"}
        case nn.Sigmoid():
            return {"kind": "Sigmoid"}
        case nn.Unflatten(dim=-1):
            return {"kind": "Unflatten", "shape": list(module.unflattened_size)}
        case nn.Linear(bias=Tensor() as bias):
            return {"kind": "Linear", **_weights(module.weight, bias)}
        case nn.ConvTranspose2d(groups=1, dilation=(1, 1), bias=Tensor() as bias):
            return {
                "kind": "ConvTranspose2d",
                **_weights(module.weight.movedim(1, -1), bias),
                "kernel": module.kernel_size,
                "stride": module.stride,
                "padding": module.padding,
                "extra": module.output_padding,
            }
    raise ValueError(
        "decoder: expected layers of the kinds Linear, ReLU, Sigmoid, Unflatten(-1, ...) and "
        f"ConvTranspose2d, with biases and without groups or dilation, got {module}"
    )


def _weights(weight: Tensor, bias: Tensor) -> dict[str, str]:
    return {"weight": _base64(weight), "bias": _base64(bias)}


def _base64(numbers: Tensor) -> str:
    return b64encode(numbers.detach().cpu().float().numpy().astype("<f4").tobytes()).decode()


def _numbers(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(b64decode(text), "<f4").astype(float))


@measuring
def _rendered(
    model: VAE, data: Images, n: int, limit: float | None, sentence: str
) -> tuple[str, bytes]:
    """The part of the page, and the picture that is in it as a PNG file."""
    of_kind(Images, data=data)
    network = layers(_mean(model))
    for name, weights in model.named_parameters():
        _check_finite(name, weights)
    n = whole_number("n", n)
    if not len(data):
        raise ValueError("data: expected one image or more, got none")
    kept = torch.linspace(0, len(data) - 1, min(n, len(data)), dtype=torch.float64).round().long()
    data = data[kept.to(data.labels.device)]
    mu = posteriors(model, data).mu.cpu()
    _check_finite("posterior means", mu)
    if limit is None:
        limit = max(LEAST_LIMIT, math.ceil(2 * mu.abs().max().item()) / 2)
    elif not 0 < real_number("limit", limit) < math.inf:
        raise ValueError(f"limit: expected a positive number, got {limit}")
    _check_alike(model, network)
    groups = _groups(mu, data.labels.cpu(), limit, data.classes)
    picture = png(_picture(model, groups, limit))
    content = {
        "layers": network,
        "classes": [
            {
                "name": html.escape(group.name),  # the script writes it into the page as it is
                "color": f"light-dark({', '.join(group.colors)})",
                # Of an SVG path. With decimals, which tests compare nearly and not as text.
                "dots": "".join(f"M{x:.2f} {y:.2f}h0" for x, y in group.dots.tolist()),
                "at": [f"{value:.2f}" for value in group.label.tolist()],
            }
            for group in groups
        ],
        "circles": [{"name": name, "radius": radius} for name, radius in _circles(model).items()],
        "limit": limit,
    }
    # Named for what goes in: what comes out is rounded, on each machine a little differently.
    names = [name for label, name in enumerate(data.classes) if name != str(label)]
    digest = sha256(json.dumps([network, limit, sentence, *names]).encode())
    for tensor in (*model.state_dict().values(), data.images, data.labels):
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
    name = f"vae-explorer-{digest.hexdigest()[:12]}"
    source = f"data:image/png;base64,{b64encode(picture).decode()}"
    still = f'<img src="{source}" alt="{html.escape(sentence)}" style="max-width: 100%">'
    script = files("vae_book").joinpath("explorer.js").read_text("utf-8")
    call = f'({script})("{name}", {json.dumps(content)})'
    fragment = f'<div class="vae-explorer" id="{name}">{still}</div>\n<script>\n{call}\n</script>'
    return fragment, picture


def _mean(model: VAE) -> nn.Sequential:
    """From z to the mean of p(x | z), if it is a picture that explorer.js can make."""
    try:
        model.prior()
    except ValueError as error:
        kind = type(model).__name__
        raise ValueError(f"model: expected a decoder of z alone, got a {kind} ({error})") from error
    if model.latent != 2:
        raise ValueError(f"model: expected a latent size of 2, got {model.latent}")
    if model.image_shape[0] != 1:
        raise ValueError(f"model: expected images of one channel, got {model.image_shape[0]}")
    if not isinstance(model.likelihood, Bernoulli):
        kind = type(model.likelihood).__name__
        raise ValueError(f"model: expected the likelihood Bernoulli, got {kind}")
    return nn.Sequential(model.decoder, nn.Sigmoid())


@torch.no_grad()
def _check_alike(model: VAE, network: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError unless the layers for the page compute what the model decodes."""
    steps = torch.linspace(-LEAST_LIMIT, LEAST_LIMIT, 5).to(model.weight)
    z = torch.cartesian_prod(steps, steps)
    mean = model.decode(z).mean.cpu().double()
    try:
        computed = _computed(network, z.cpu().double())
        fits = computed.shape == mean.shape
    except RuntimeError:  # torch's, of shapes
        fits = False
    off = (computed - mean).abs().max().item() if fits else math.inf
    # Half precision rounds by more than what is not seen.
    if not off <= max(ALIKE, 16 * torch.finfo(model.weight.dtype).eps):
        found = f"pixels that are off by up to {off:.2g}" if fits else "another shape"
        raise ValueError(
            "model: expected a decode() that gives what the layers of its decoder and a sigmoid "
            f"give, since the page has those alone, got {found}"
        )


def _check_finite(what: str, numbers: Tensor) -> None:
    if not bool(numbers.isfinite().all()):
        raise ValueError(
            f"model: expected finite numbers, got infinity or NaN in its {what}; has training "
            "diverged?"
        )


def _computed(network: Sequence[dict[str, Any]], z: Float[Tensor, "n 2"]) -> Tensor:
    """What explorer.js makes of each z, from what it is given."""
    x = z
    for layer in network:
        match layer:
            case {"kind": "Linear", "weight": weight, "bias": bias}:
                b = _numbers(bias)
                x = x @ _numbers(weight).view(len(b), -1).T + b
            case {"kind": "ConvTranspose2d", "weight": weight, "bias": bias, **size}:
                w = _numbers(weight).view(x.shape[1], *size["kernel"], -1).movedim(-1, 1)
                options = (size[name] for name in ("stride", "padding", "extra"))
                x = conv_transpose2d(x, w, _numbers(bias), *options)
            case {"kind": "Unflatten", "shape": shape}:
                x = x.unflatten(-1, shape)
            case {"kind": "ReLU"}:
                x = x.relu()
            case {"kind": "Sigmoid"}:
                x = x.sigmoid()
    return x


def _groups(
    mu: Float[Tensor, "n 2"],
    labels: Int[Tensor, " n"],
    limit: float,
    classes: Sequence[str] = (),
) -> list[Group]:
    found = labels.unique().tolist()
    names = [classes[label] if classes else str(label) for label in found]
    dots = [mu[labels == label] for label in found]
    places = apart(torch.stack([each.median(0).values for each in dots]), LABEL * limit)
    return [Group(name, *rest) for name, *rest in zip(names, dots, places, cycle(CLASS_COLORS))]


def _circles(model: VAE) -> dict[str, float]:
    """The radii of circles that hold shares of the prior, by what is written there."""
    p_z = model.prior()
    standard = isinstance(p_z, DiagonalGaussian) and not any(bool(each.any()) for each in p_z)
    return {name: _radius(p) for name, p in CIRCLES.items()} if standard else {}


def _radius(probability: float) -> float:
    """Of the circle around zero that z ~ N(0, I) falls into with that probability."""
    return round(math.sqrt(-2 * math.log(1 - probability)), 4)


@torch.no_grad()
def _picture(model: VAE, groups: Sequence[Group], limit: float) -> Figure:
    """What is to be seen without a script: the dots, and images for equal shares of N(0, I)."""
    centers = torch.arange(SIDE) + 0.5
    steps = torch.special.ndtri(centers / SIDE).to(model.weight)
    z = torch.cartesian_prod(steps.flip(0), steps).flip(1)  # in reading order, z_2 going down
    rows = model.decode(z).mean.squeeze(1).unflatten(0, (SIDE, SIDE))
    mosaic = rows.transpose(1, 2).flatten(2).flatten(0, 1)
    halo = [withStroke(linewidth=2, foreground="white")]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, WIDTH / 2))
        for name, dots, label, (color, _) in groups:
            left.plot(*zip(*dots.tolist(), strict=True), ".", color=color, ms=3)
            named = {"size": 9, "weight": "bold", "path_effects": halo, "parse_math": False}
            left.text(*label.tolist(), name, **named)
        for name, radius in _circles(model).items():
            left.add_patch(plt.Circle((0, 0), radius, fill=False, color=GRAY))
            left.text(0, radius, name, size=8, bbox={"fc": "white", "ec": "none", "pad": 0.5})
        for text in left.texts:
            text.set(ha="center", va="center")
        left.set(xlim=(-limit, limit), ylim=(-limit, limit))
        right.imshow(mosaic.cpu().numpy(), cmap="gray_r", vmin=0, vmax=1, extent=(0, SIDE, 0, SIDE))
        some = slice(0, None, SIDE // 2)  # the first, the middle and the last
        names = [f"{step:.1f}".replace("-", "\u2212") for step in steps[some].tolist()]
        right.set_xticks(centers[some], names)
        right.set_yticks(centers[some], names)
        for axis, title in ((left, "posterior means"), (right, "decoded, at quantiles")):
            axis.set(aspect="equal", xlabel="$z_1$", ylabel="$z_2$")
            axis.set_title(title, fontsize=11)
            axis.grid(visible=False)
    return figure
