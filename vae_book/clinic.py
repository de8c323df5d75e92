"""Broken VAEs: mistakes from public code, each behind a switch (chapter 12).

``with fault("kl-sign"):`` breaks the package, and mends it again at the end of the block;
``pytest --fault kl-sign`` runs the tests on the broken package. Which test has to fail then is said
in tests/unit/test_clinic.py.
"""

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout

from vae_book import bounds, data, device, divergences, evaluation, likelihoods, reparameterization
from vae_book.bounds import Elbo
from vae_book.distributions import DiagonalGaussian, Mixture, gaussian_log_prob
from vae_book.images import Images
from vae_book.likelihoods import Bernoulli, ImageDistribution, Likelihood
from vae_book.models import VAE, ConditionalVAE
from vae_book.objectives import Objective

Function = Callable[..., Any]
MET = re.compile(r"([\w.-]+/[\w.-]+), (\S+) at ([0-9a-f]{7,40})\b")


@dataclass(frozen=True)
class Fault:
    """A mistake in the code of a VAE.

    Attributes:
        wrong: what is wrong, in one sentence.
        met: where it was met: repository, file, and a commit that has it.
        owner, attribute: the module or class, and its function, that the mistake replaces.
        broken: makes the broken function from the intact one.
        symptom: what one sees.
    """

    wrong: str
    met: str
    owner: ModuleType | type
    attribute: str
    broken: Callable[[Function], Function]
    symptom: str

    @property
    def links(self) -> str:
        """Where it was met, in Markdown, with each repository a link to that commit of it."""
        return MET.sub(r"[\1](https://github.com/\1/tree/\3), `\2` at \3", self.met)


def _half_missing(unit_kl: Function) -> Function:
    def broken(
        mu: Tensor, log_var: Tensor, prior_mu: Any = 0.0, prior_log_var: Any = 0.0
    ) -> Tensor:
        kl = unit_kl(mu, log_var, prior_mu, prior_log_var)
        return kl - 0.5 * (log_var - prior_log_var)

    return broken


def _mean_if_measured(elbo: Function) -> Function:
    """Without noise where no gradient is asked for, which is where a model is measured."""

    def broken(model: VAE, x: Tensor, eps: Tensor | None = None, **options: Any) -> Elbo:
        if not torch.is_grad_enabled():
            eps = x.new_zeros(len(x), model.latent)
        return elbo(model, x, eps, **options)

    return broken


def _with_test_images(load: Function) -> Function:
    def broken(split: str = "train", *args: Any, **options: Any) -> Images:
        data = load(split, *args, **options)
        if split == "test":
            return data
        test = load("test", *args, **options)
        images, labels = (
            torch.cat([getattr(each, name) for each in (data, test)])
            for name in ("images", "labels")
        )
        return replace(data, images=images, labels=labels)

    return broken


def _product_of_units(_: Function) -> Function:
    def broken(self: Mixture, z: Tensor) -> Tensor:
        mu, log_var = self.parts
        units = gaussian_log_prob(z[..., None, :, None], mu[..., None], log_var[..., None])
        return (units.logsumexp(-2) - math.log(len(mu))).sum(-1)

    return broken


def _step_subtracted(bits: Function) -> Function:
    def broken(nats: Any, dimensions: int, levels: int | None = None) -> Any:
        without = bits(nats, dimensions)
        return 2 * without - bits(nats, dimensions, levels)

    return broken


def _squashed(p_x: ImageDistribution) -> ImageDistribution:
    return p_x.likelihood.given(p_x.params.sigmoid())


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        "mean-reduction": Fault(
            wrong="The log-likelihood is averaged over the pixels; the KL is summed.",
            met="keras-team/keras, examples/variational_autoencoder.py at f6bcaff",
            owner=Likelihood,
            attribute="log_prob",
            broken=lambda log_prob: (
                lambda self, x, params: log_prob(self, x, params) / x.shape[-3:].numel()
            ),
            symptom="the KL is 0, all reconstructions are one blur",
        ),
        "kl-mean": Fault(
            wrong="The KL is averaged over the units of z; the log-likelihood is summed.",
            met="keras-team/keras, examples/variational_autoencoder_deconv.py at f78d417 (2.0.0); "
            "NCAR/holodec-ml, holodecml/vae/losses.py at 36715eb, over the images as well",
            owner=divergences,
            attribute="gaussian_unit_kl",
            broken=lambda unit_kl: lambda mu, *args: unit_kl(mu, *args) / mu.shape[-1],
            symptom="the loss is too good; the KL is large",
        ),
        "kl-sign": Fault(
            wrong="The KL enters with the wrong sign.",
            met="dev4488/VAE_gumble_softmax, vae_gumbel_softmax.py at dd931d8",
            owner=divergences,
            attribute="gaussian_unit_kl",
            broken=lambda unit_kl: lambda *args: -unit_kl(*args),
            symptom="the loss falls below zero, and goes on falling",
        ),
        "half-missing": Fault(
            wrong="In the KL of two Gaussians the log-ratio of the variances has no half.",
            met="AntixK/PyTorch-VAE, models/lvae.py at a6896b9; from there in probml/pyprobml, "
            "notebooks/book2/21/lvae.ipynb at 232b5e0",
            owner=divergences,
            attribute="gaussian_unit_kl",
            broken=_half_missing,
            symptom="larger variances; a KL that can be negative",
        ),
        "kl-weight": Fault(
            wrong="In training the KL has a weight that nobody chose: 0.00025 beside a mean.",
            met="AntixK/PyTorch-VAE, experiment.py at a6896b9, by the kld_weight of its "
            "configurations; 1 in validation",
            owner=Objective,
            attribute="weight",
            broken=lambda weight: lambda self, epoch: 784 * 0.00025 * weight(self, epoch),
            symptom="the losses of training and of held-out images are not the same quantity",
        ),
        "constant-of-the-kl": Fault(
            wrong="The 1/2 that the KL has for each unit of z is subtracted once in all.",
            met="ericjang/draw, draw.py at 56bb940",
            owner=divergences,
            attribute="gaussian_unit_kl",
            broken=lambda unit_kl: (
                lambda mu, *args: unit_kl(mu, *args) + 0.5 * (1 - 1 / mu.shape[-1])
            ),
            symptom="none in training; the loss is too high by a constant",
        ),
        "log-var-as-std": Fault(
            wrong="exp(log_var), which is the variance, is used as the standard deviation.",
            met="pyg-team/pytorch_geometric, nn/models/autoencoder.py at cc071b7 (1.5.0); "
            "keras-team/keras, examples/variational_autoencoder_deconv.py at b09ec1c (2.1.6); "
            "bjlkeng/sandbox, bitsback/bitsback.py at 3dac794, in a coder",
            owner=reparameterization,
            attribute="reparameterize",
            broken=lambda _: lambda mu, log_var, eps: mu + log_var.exp() * eps,
            symptom="none to see; the loss is too good",
        ),
        "variance-in-sample": Fault(
            wrong="exp(log_var) is used as the deviation where the prior is sampled, only there.",
            met="jmtomczak/intro_dgm, vaes/vae_priors_example.ipynb at 28bbc85",
            owner=DiagonalGaussian,
            attribute="sample",
            broken=lambda sample: (
                lambda self, *args, **options: (
                    self.mu + self.sigma * (sample(self, *args, **options) - self.mu)
                )
            ),
            symptom="none in any loss; with a learned prior, samples of another one",
        ),
        "mixture-by-unit": Fault(
            wrong="In a mixture, the sum over components stands before that over the units of z.",
            met="jmtomczak/intro_dgm, vaes/vae_priors_example.ipynb at 28bbc85; "
            "scverse/scvi-tools, src/scvi/external/mrvi/_module.py at a9e45bf, mended by pull "
            "request 3189",
            owner=Mixture,
            attribute="log_prob",
            broken=_product_of_units,
            symptom="none in training; the prior that is paid for is not the one that is sampled",
        ),
        "uniform-noise": Fault(
            wrong="The noise comes from rand, uniform between 0 and 1, in place of randn.",
            met="Jackson-Kang/Pytorch-VAE-tutorial, 01_Variational_AutoEncoder.ipynb at 767cbf8; "
            "toshikwa/slac.pytorch, slac/network/latent.py at 30926f1",
            owner=device,
            attribute="standard_normal",
            broken=lambda normal: lambda *args: torch.special.ndtr(normal(*args)),
            symptom="the loss is too good; pale samples, if the prior is drawn with such noise",
        ),
        "no-noise": Fault(
            wrong="The decoder gets the mean in place of a draw, and the KL is charged.",
            met="dmis-lab/VAECox, vae_models.py at b994677",
            owner=reparameterization,
            attribute="reparameterize",
            broken=lambda draw: lambda mu, log_var, eps: draw(mu, log_var, 0 * eps),
            symptom="all variances are 1; the loss is too good",
        ),
        "mean-at-test": Fault(
            wrong="Held-out images are measured with the mean in place of a draw.",
            met="pytorch/examples, vae/main.py at e128eda; mended by pull request 419",
            owner=bounds,
            attribute="elbo",
            broken=_mean_if_measured,
            symptom="held-out images have a lower loss than those of training",
        ),
        "no-reparameterization": Fault(
            wrong="z is drawn where gradients are cut, as by sample() in place of rsample().",
            met="NinelK/WavesProject, src/Models/vae_model.py at 28dab32",
            owner=reparameterization,
            attribute="reparameterize",
            broken=lambda draw: lambda mu, log_var, eps: draw(mu.detach(), log_var.detach(), eps),
            symptom="the KL falls to 0 and stays there",
        ),
        "one-head": Fault(
            wrong="The log-variance is read off the layer that gives the mean.",
            met="OpenTalker/SadTalker, src/audio2pose_models/cvae.py at cd4c046",
            owner=VAE,
            attribute="encode",
            broken=lambda encode: (
                lambda self, x, y=None: DiagonalGaussian(*[encode(self, x, y).mu] * 2)
            ),
            symptom="the loss stays higher",
        ),
        "sigmoid-twice": Fault(
            wrong="The decoder ends in a sigmoid, and the loss applies another.",
            met="Ray-Luo/GANs, VAE1/train_ave.py at f47338f",
            owner=VAE,
            attribute="decode",
            broken=lambda decode: lambda self, z, y=None: _squashed(decode(self, z, y)),
            symptom="mostly empty images: gray samples, and a loss that stays near its start",
        ),
        "left-in-training-mode": Fault(
            wrong="What is random in training, here dropout, stays so in measurements.",
            met="sinhasam/vaal, sampler.py at 67263f3, with batch norm; ritheshkumar95/"
            "pytorch-vqvae, vqvae.py at 8d123c0, with batch norm in a VQ-VAE",
            owner=VAE,
            attribute="encode",
            broken=lambda encode: lambda self, x, y=None: encode(self, dropout(x, 0.2), y),
            symptom="an image has another code each time it is encoded",
        ),
        "gray-as-binary": Fault(
            wrong="Gray levels are scored as if they were black or white, and nobody says so.",
            met="pytorch/examples, vae/main.py at fcce71c",
            owner=Bernoulli,
            attribute="check_support",
            broken=lambda _: lambda self, x: None,
            symptom="none to see; the number is no log-likelihood",
        ),
        "softmax-over-losses": Fault(
            wrong="Losses of draws are weighted by their softmax, so that the worst count most.",
            met="AntixK/PyTorch-VAE, models/iwae.py at a6896b9",
            owner=bounds,
            attribute="importance_weighted_bound",
            broken=lambda _: lambda log_weights: ((-log_weights).softmax(0) * log_weights).sum(0),
            symptom="more draws make the bound worse",
        ),
        "average-inside-the-logarithm": Fault(
            wrong="One logarithm is taken of an average over draws and images.",
            met="scverse/scvi-tools, src/scvi/module/_vae.py at 9137c05 (1.0.0 to 1.1.6)",
            owner=bounds,
            attribute="importance_weighted_bound",
            broken=lambda bound: (
                lambda log_weights: bound(log_weights.flatten()).expand(log_weights.shape[1:])
            ),
            symptom="the estimate is nearly that of the likeliest image of a batch",
        ),
        "step-of-the-levels": Fault(
            wrong="Bits of a density: the step between gray levels enters with the wrong sign.",
            met="ritheshkumar95/pytorch-vqvae, vae.py at 3be148b, where the KL is not divided by "
            "the number of pixels, either",
            owner=likelihoods,
            attribute="bits_per_dimension",
            broken=_step_subtracted,
            symptom="fewer bits than any file needs, or less than none",
        ),
        "last-batch": Fault(
            wrong="The result is overwritten batch by batch: it is that of the last one.",
            met="scverse/scvi-tools, scvi/model/base/_vaemixin.py at 752b543",
            owner=evaluation,
            attribute="chunks",
            broken=lambda chunks: lambda *args: iter(list(chunks(*args))[-1:]),
            symptom="the number depends on the batch size",
        ),
        "train-on-test": Fault(
            wrong="Training and test images are joined before training.",
            met="keras-team/keras-io, examples/generative/vae.py at 09e02e1, where nothing is "
            "measured",
            owner=data,
            attribute="load_images",
            broken=_with_test_images,
            symptom="held-out images score as well as those of training",
        ),
        "deaf-encoder": Fault(
            wrong="The condition reaches the decoder, and not the encoder.",
            met="YixinChen-AI/CVAE-GAN-zoos-PyTorch-Beginner, CVAE-GAN/CVAE-GAN.py at 4b63ed0",
            owner=ConditionalVAE,
            attribute="encode",
            broken=lambda encode: (
                lambda self, x, y=None: encode(self, x, None if y is None else torch.zeros_like(y))
            ),
            symptom="hardly any; after long training the bound may be a little worse",
        ),
    }
)


@contextmanager
def fault(name: str) -> Iterator[Fault]:
    """Break the package in one place, for the time of a ``with`` block.

    What has been imported from the package by name outside it, in a notebook or in a test, stays
    as it is; what that calls is broken.

    Args:
        name: a key of ``FAULTS``.

    Raises:
        ValueError: there is no such fault.
    """
    if name not in FAULTS:
        raise ValueError(f"name: expected one of {', '.join(FAULTS)}, got {name!r}")
    chosen = FAULTS[name]
    intact = getattr(chosen.owner, chosen.attribute)
    broken = wraps(intact)(chosen.broken(intact))
    _replace(chosen, intact, broken)
    try:
        yield chosen
    finally:
        _replace(chosen, broken, intact)


def _replace(chosen: Fault, old: Function, new: Function) -> None:
    """Everywhere in the package: who imports a function by name holds it as well."""
    modules = [module for name, module in sys.modules.items() if name.startswith("vae_book.")]
    for holder in [chosen.owner, *modules]:
        if vars(holder).get(chosen.attribute) is old:
            setattr(holder, chosen.attribute, new)
