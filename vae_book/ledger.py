"""The rows of the ledger: published numbers, and what it takes to measure our own beside them.

Each row is one model, trained from scratch by `vae_book.reproduce`; all numbers are in nats for an
image, and lower is better.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vae_book.device import seeded
from vae_book.images import Images, binarize, quadrants
from vae_book.likelihoods import Likelihood
from vae_book.models import CVAE, VAE, CompletionVAE
from vae_book.objectives import Objective
from vae_book.protocol import Protocol

TEST_IMAGES = 10_000  # of MNIST
BINARY_SEED = 0  # of binary images that are drawn once
Binarization = Literal["none", "test", "static", "fresh"]
# What is said of how gray levels became binary pixels.
IN_WORDS: dict[str, str | None] = {
    "none": None,
    "test": f"test images drawn once, seed {BINARY_SEED}; training on gray levels",
    "static": f"training and test images drawn once, seed {BINARY_SEED}",
    "fresh": f"test images drawn once, seed {BINARY_SEED}; training images afresh in each step",
}


@dataclass(frozen=True)
class Measure:
    """A number that is measured of a trained model.

    Attributes:
        quantity: ``-ELBO`` or ``-log p``.
        K: draws of z for each image.
        from_prior: whether these come from the prior.
        binarization: of the pixels.
    """

    quantity: Literal["-ELBO", "-log p"]
    K: int = 1
    from_prior: bool = False
    binarization: Binarization = "none"

    @property
    def key(self) -> str:
        """Its name in a file of results."""
        origin = " from the prior" if self.from_prior else ""
        pixels = "gray" if self.binarization == "none" else "binary"
        return f"{self.quantity}, K={self.K}{origin}, {pixels}"


@dataclass(frozen=True)
class Published:
    """A number that somebody else printed.

    Attributes:
        value: in nats, lower is better.
        key: the entry of the bibliography.
        where: the place in it.
        comparable: whether its protocol is that of the row, but for what the row says.
    """

    value: float
    key: str
    where: str
    comparable: bool = True


@dataclass(frozen=True)
class Row:
    """One model: how to train it, what to measure, and what was published.

    Attributes:
        model: what it is, in words.
        make: makes it, untrained.
        epochs: how long we train it.
        published_epochs: how long those who published trained it.
        measures: what is measured, with the published numbers.
        settings: of `vae_book.training.fit`.
        binarization: of the training images.
        source: of the images.
        held_back: how many of the training images are left out.
        of: what the likelihood is of: ``x``, or ``x | y`` for a model that is told the label.
        seen: how many quarters of an image a model that completes it is shown; 0 for others.
        seeds: of the training runs.
        start: what is done to the untrained model, given the training images.
        reason: for a gap between our number and the published one; ``{epochs}``,
            ``{published_epochs}`` and ``{percent}`` are filled in.
        missing: why there is no run at all, where there cannot be one.
    """

    model: str
    make: Callable[[], VAE]
    epochs: int
    published_epochs: int
    measures: Mapping[Measure, Published | None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    binarization: Binarization = "none"
    source: str = "full"
    held_back: int = 0
    of: str = "x"
    seen: int = 0
    seeds: tuple[int, ...] = (0,)
    start: Callable[[VAE, Images], None] | None = None
    reason: str = ""
    missing: str = ""

    def images(self, data: Images, binarization: Binarization) -> Images:
        """Training or test images as this row takes them."""
        if data.split == "train" and self.held_back:
            data = data[: -self.held_back]
        data = quadrants(data, self.seen) if self.seen else data
        drawn = binarization != "none" and (data.split == "test" or binarization == "static")
        if not drawn:
            return data
        stream = seeded(BINARY_SEED, 0, 0, 1 + (data.split == "test"))  # used for nothing else
        return data.with_images(binarize(data.images, stream))

    def planned(self, measure: Measure) -> Protocol:
        """The protocol of a number of this row, as far as it is known before the run."""
        quantity = {"-ELBO": "negative ELBO", "-log p": f"-log p({self.of})"}[measure.quantity]
        quantity += f", {self.seen} of 4 quarters seen" if self.seen else ""
        return Protocol(
            quantity=quantity + ", z from the prior" * measure.from_prior,
            source=self.source,
            split="test",
            n_images=TEST_IMAGES,
            pixels="grayscale" if measure.binarization == "none" else "binary",
            seed=0,
            device="",
            K=measure.K,
            binarization=IN_WORDS[measure.binarization],
            seeds=self.seeds,
            standard_error="images",
            epochs=self.epochs or None,
        )


@dataclass(frozen=True)
class Section:
    """Rows that belong together.

    Attributes:
        title: its heading.
        text: the published protocol, in Markdown.
        rows: the rows, by name.
    """

    title: str
    text: str
    rows: Mapping[str, Row]


# Models -------------------------------------------------------------------------------------------


def _two_layers(into: int, hidden: int) -> list[nn.Module]:
    return [nn.Linear(into, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()]


class DeepVAE(VAE):
    """A VAE with two hidden layers of tanh units in encoder and decoder.

    Burda, Grosse and Salakhutdinov (2016), section 5, with one stochastic layer.

    Args:
        latent, hidden, image_shape, likelihood: as for `VAE`.
    """

    def __init__(
        self,
        latent: int = 50,
        hidden: int = 200,
        image_shape: Sequence[int] = (1, 28, 28),
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__(latent, hidden, image_shape, likelihood)
        pixels = math.prod(self.image_shape)
        self.encoder = nn.Sequential(nn.Flatten(-3), *_two_layers(pixels, self.hidden))
        self.decoder = nn.Sequential(*_two_layers(self.latent, self.hidden), *self.decoder[2:])


class DeepCVAE(CVAE):
    """A `CVAE` with two hidden layers of tanh units in encoder and decoder.

    Args:
        latent, hidden, image_shape, likelihood, classes, learned_prior: as for `CVAE`.
    """

    def __init__(
        self,
        latent: int = 50,
        hidden: int = 200,
        image_shape: Sequence[int] = (1, 28, 28),
        likelihood: Likelihood | None = None,
        *,
        classes: int = 10,
        learned_prior: bool = True,
    ) -> None:
        super().__init__(
            latent, hidden, image_shape, likelihood, classes=classes, learned_prior=learned_prior
        )
        pixels = math.prod(self.image_shape)
        self.encoder = nn.Sequential(*_two_layers(pixels + self.classes, self.hidden))
        hidden_layers = _two_layers(self.latent + self.classes, self.hidden)
        self.decoder = nn.Sequential(*hidden_layers, *self.decoder[2:])


class CompletionNetwork(CompletionVAE):
    """The decoder of a `CompletionVAE`, which is told the seen part and nothing else.

    Args:
        latent, hidden, image_shape, likelihood, seen_shape: as for `CompletionVAE`.
    """

    def decode(self, z: Tensor, y: Tensor | None = None) -> Any:
        """As if every z were zero."""
        return super().decode(torch.zeros_like(z), y)


def start_from_the_mean(model: VAE, train: Images) -> None:
    """Set the bias of the decoder's last layer to the logit of the mean training image.

    Burda, Grosse and Salakhutdinov (2016), in their code.
    """
    mean = train.images.mean(0).flatten().clamp(0.001, 0.999)
    last = [each for each in model.decoder if isinstance(each, nn.Linear)][-1]
    with torch.no_grad():
        last.bias.copy_(mean.logit())


# Rows ---------------------------------------------------------------------------------------------


def _iwae_settings(K: int, bound: str, batch_size: int = 20) -> dict[str, Any]:
    """Burda et al. (2016): for i = 0, ..., 7 a round of 3^i epochs at 1e-3 * 10^(-i/7)."""
    later = tuple(((3**i - 1) // 2, 1e-3 * 10 ** (-i / 7)) for i in range(1, 8))
    objective = Objective(bound=bound)
    return {
        "batch_size": batch_size,
        "lr": 1e-3,
        "later_lr": later,
        "eps": 1e-4,
        "n_samples": K,
        "objective": objective,
        "resample": True,
    }


_EARLY = (
    "We stop after {epochs} of {published_epochs:,} epochs, {percent} of the schedule; the step "
    "sizes are those of its first epochs."
)


def _iwae(name: str, K: int, bound: str, value: float) -> Row:
    return Row(
        model=f"{name}, k = {K}",
        make=DeepVAE,
        epochs=13 if K < 50 else 4,
        published_epochs=3280,
        measures={
            Measure("-log p", K=5000, binarization="fresh"): Published(
                value, "burda2016", "table 1, one stochastic layer"
            )
        },
        settings=_iwae_settings(K, bound),
        binarization="fresh",
        held_back=400,
        start=start_from_the_mean,
        reason=_EARLY,
    )


def _labels(K: int, value: float) -> Row:
    return Row(
        model=f"IWAE told the label, k = {K}",
        make=partial(DeepCVAE, 100),
        epochs=13 if K < 50 else 4,
        published_epochs=3280,
        measures={
            Measure("-log p", K=5000, binarization="fresh"): Published(
                value, "nbip2021", "CVAE, one stochastic layer"
            )
        },
        settings=_iwae_settings(K, "iwae"),
        binarization="fresh",
        of="x | y",
        start=start_from_the_mean,
        reason=_EARLY,
    )


def _completion(seen: int, network: float, vae: float) -> dict[str, Row]:
    shapes: dict[str, Any] = {"image_shape": (4 - seen, 14, 14), "seen_shape": (seen, 14, 14)}
    options: dict[str, Any] = {
        "epochs": 20,
        "published_epochs": 50,
        "settings": {"resample": True},
        "binarization": "fresh",
        "of": "missing | seen",
        "seen": seen,
    }
    exact = Measure("-log p", K=1, from_prior=True, binarization="fresh")
    sampled = Measure("-log p", K=100, binarization="fresh")
    other = partial(Published, key="pyrocvae", where="its table", comparable=False)
    why = (
        "The published numbers are those of gray levels, two hidden layers of 500 units and 200 "
        "latent units, trained for at most 50 epochs and stopped early, by the test images; that "
        "of the conditional VAE is a negative ELBO. Another task, shown for its order of magnitude."
    )
    return {
        f"completion-{seen}-network": Row(
            "deterministic network",
            partial(CompletionNetwork, 20, 400, **shapes),
            measures={exact: other(network)},
            reason=why,
            **options,
        ),
        f"completion-{seen}": Row(
            "conditional VAE, d = 20",
            partial(CompletionVAE, 20, 400, **shapes),
            measures={sampled: other(vae)},
            reason=why,
            **options,
        ),
    }


SECTIONS: tuple[Section, ...] = (
    Section(
        "The VAE of PyTorch's examples",
        "784-400-20 with ReLU, Adam with step size 1e-3, batches of 128, gray levels scored by "
        "cross-entropy, one draw of $z$ for each image. It is the model of chapter 8. The script's "
        "README prints no numbers; the published one is what the script itself prints at the end "
        "of its ten epochs {cite}`pytorchvae`. Cross-entropy on gray levels is a loss and no "
        "log-likelihood (chapter 6), so this number compares with others of its kind only.",
        {
            "pytorch-example": Row(
                model="VAE 784-400-20",
                make=VAE,
                epochs=10,
                published_epochs=10,
                measures={Measure("-ELBO"): Published(105.6, "pytorchvae", "its output")},
                seeds=(0, 1, 2),
                reason="",
            )
        },
    ),
    Section(
        "The same model, trained long",
        "The same network and optimizer for 150 epochs on gray levels. Beside the bound on gray "
        "levels stands $-\\log p(x)$ of binary test images, which is a log-likelihood: by "
        "equation {eq}`eq-binarized` the model of gray levels is also a model of binary images "
        "drawn from them. We know of no published number for this run.",
        {
            "classic-150": Row(
                model="VAE 784-400-20",
                make=VAE,
                epochs=150,
                published_epochs=150,
                measures={
                    Measure("-ELBO"): None,
                    Measure("-log p", K=1000, binarization="test"): None,
                },
            )
        },
    ),
    Section(
        "Binary images that are drawn once",
        "784-400-40 with ReLU, batches of 100, Adam with step size 1e-4 that is lowered in steps, "
        "500 epochs, $-\\log p(x)$ by 200 importance samples, in the reproducibility table of "
        "pythae {cite}`chadebec2022`. The reference value of that table is from "
        "{cite:t}`rezende2015`. Both use the binary digits that Hugo Larochelle drew once; his "
        "files are not part of this book, so ours are **drawn once with a seed of our own**. "
        "The authors of the IWAE found test images about two nats worse after training on the "
        "50,000 images that Larochelle drew than on 59,600 that are drawn afresh in each step, as "
        "the README of their code says.",
        {
            "static-binary": Row(
                model="VAE 784-400-40",
                make=partial(VAE, 40),
                epochs=50,
                published_epochs=500,
                measures={
                    Measure("-log p", K=200, binarization="static"): Published(
                        89.78, "chadebec2022", "table of its code"
                    )
                },
                settings={"batch_size": 100, "lr": 1e-4},
                binarization="static",
                reason="We train for {epochs} of {published_epochs:,} epochs, {percent}, with "
                "step size 1e-4 throughout, and on another drawing of the binary pixels.",
            )
        },
    ),
    Section(
        "The importance-weighted autoencoder",
        "One stochastic layer of 50 units, two hidden layers of 200 tanh units, binary images "
        "drawn afresh in each step, batches of 20, the decoder's bias started at the mean image, "
        "Adam with $\\epsilon = 10^{-4}$ and, for $i = 0, \\dots, 7$, $3^i$ epochs with step size "
        "$10^{-3 - i/7}$; 59,600 training images; $-\\log p(x)$ by 5,000 importance samples "
        "{cite}`burda2016`. The start of the bias and the number of training images are from their "
        "code. It also starts Adam's second moment at one, uses $\\beta_1 = 0.99$ and rounds the "
        "step sizes; ours is Adam as the paper and torch have it, with the formula's step sizes.",
        {
            "iwae-vae-1": _iwae("VAE", 1, "elbo", 86.76),
            "iwae-vae-5": _iwae("VAE", 5, "elbo", 86.47),
            "iwae-vae-50": _iwae("VAE", 50, "elbo", 86.35),
            "iwae-5": _iwae("IWAE", 5, "iwae", 85.54),
            "iwae-50": _iwae("IWAE", 50, "iwae", 84.78),
        },
    ),
    Section(
        "A flow for the posterior",
        "A diagonal Gaussian posterior against an inverse autoregressive flow, binary images drawn "
        "once (Larochelle's), 65,000 and 150,000 steps {cite}`altosaar2016`.",
        {
            name: Row(
                model=model,
                make=VAE,
                epochs=0,
                published_epochs=0,
                measures={
                    Measure("-log p", K=1000, binarization="static"): Published(
                        value, "altosaar2016", "README"
                    )
                },
                missing="The chapter on flows is not written yet.",
            )
            for name, model, value in (
                ("flow-mean-field", "diagonal Gaussian posterior", 97.10),
                ("flow-iaf", "inverse autoregressive flow", 95.33),
            )
        },
    ),
    Section(
        "An autoencoder that is told the label",
        "The importance-weighted autoencoder above with a prior $p(z \\mid y)$ for each label "
        "{cite}`nbip2021`. This code has 100 latent units where the paper's has 50, and trains "
        "on all 60,000 images where the paper's authors hold 400 back: its numbers do not compare "
        "with those of the paper.",
        {
            "label-1": _labels(1, 82.32),
            "label-5": _labels(5, 81.41),
            "label-50": _labels(50, 80.78),
        },
    ),
    *(
        Section(
            f"Completion from {words}",
            "The missing quarters of a binary digit, given the others (chapter 11): one hidden "
            "layer of 400 units, $d = 20$, Adam with step size 1e-3, batches of 128, 20 epochs. "
            "The deterministic network has no $z$, and its $-\\log p$ is exact. "
            "{cite:t}`sohn2015` try their model on this task; the published numbers here are those "
            "of a later reproduction {cite}`pyrocvae`.",
            _completion(seen, network, vae),
        )
        for seen, words, network, vae in (
            (1, "one quarter", 100.4, 71.8),
            (2, "two quarters", 61.9, 51.0),
            (3, "three quarters", 25.4, 24.2),
        )
    ),
)

ROWS: Mapping[str, Row] = MappingProxyType(
    {name: row for section in SECTIONS for name, row in section.rows.items()}
)
