"""Broken VAEs: mistakes from public issue trackers, each behind a switch (chapter 12).

``with fault("kl-sign"):`` breaks the package, and mends it again at the end of the block;
``pytest --fault kl-sign`` runs the tests on the broken package. Which test has to fail then is part
of the fault.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from types import MappingProxyType, ModuleType
from typing import Any

import torch

from vae_book import bounds, device, divergences, reparameterization
from vae_book.distributions import DiagonalGaussian
from vae_book.likelihoods import Bernoulli, ImageDistribution, Likelihood
from vae_book.models import VAE, ConditionalVAE

Function = Callable[..., Any]


@dataclass(frozen=True)
class Fault:
    """A mistake in the code of a VAE.

    Attributes:
        wrong: what is wrong, in one sentence.
        met: where it was met, as repository and issue.
        owner, attribute: the module or class, and its function, that the mistake replaces.
        broken: makes the broken function from the intact one.
        symptom: what one sees.
        caught_by: the test of this repository that fails, as pytest names it.
    """

    wrong: str
    met: str
    owner: ModuleType | type
    attribute: str
    broken: Callable[[Function], Function]
    symptom: str
    caught_by: str


def _squashed(p_x: ImageDistribution) -> ImageDistribution:
    return p_x.likelihood.given(p_x.params.sigmoid())


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        "mean-reduction": Fault(
            wrong="The log-likelihood is averaged over the pixels; the KL is summed.",
            met="keras-team/keras pull request 3383, pytorch/examples issue 817",
            owner=Likelihood,
            attribute="log_prob",
            broken=lambda log_prob: (
                lambda self, x, params: log_prob(self, x, params) / x.shape[-3:].numel()
            ),
            symptom="the KL is 0, all reconstructions are one blur",
            caught_by="tests/unit/test_likelihoods.py::"
            "test_log_prob_is_the_sum_over_pixels_of_torchs_own",
        ),
        "kl-over-784": Fault(
            wrong="The KL is divided by the number of pixels; the log-likelihood is summed.",
            met="pytorch/examples issues 234, 290 and 294",
            owner=divergences,
            attribute="gaussian_unit_kl",
            broken=lambda unit_kl: lambda *args: unit_kl(*args) / 784,
            symptom="sharp reconstructions, samples are rubble",
            caught_by="tests/unit/test_divergences.py::"
            "test_the_divergence_from_the_standard_prior_is_an_average_over_draws",
        ),
        "kl-sign": Fault(
            wrong="The KL enters with the wrong sign.",
            met="dev4488/VAE_gumble_softmax issue 1, FluxML/model-zoo pull request 147",
            owner=divergences,
            attribute="gaussian_unit_kl",
            broken=lambda unit_kl: lambda *args: -unit_kl(*args),
            symptom="the loss falls below zero, and goes on falling",
            caught_by="tests/unit/test_bounds.py::"
            "test_the_bound_and_the_divergence_from_the_posterior_add_up_to_the_evidence",
        ),
        "log-var-as-std": Fault(
            wrong="exp(log_var), which is the variance, is used as the standard deviation.",
            met="rishikksh20/vae_tacotron2 issue 3, rachtsingh/ibp_vae issue 3",
            owner=reparameterization,
            attribute="reparameterize",
            broken=lambda _: lambda mu, log_var, eps: mu + log_var.exp() * eps,
            symptom="none to see; the loss is too good",
            caught_by="tests/unit/test_reparameterization.py::"
            "test_draws_have_the_mean_and_the_standard_deviation_asked_for",
        ),
        "uniform-noise": Fault(
            wrong="The noise comes from rand, uniform between 0 and 1, in place of randn.",
            met="dferendo/RecommendationSystem issue 3",
            owner=device,
            attribute="standard_normal",
            broken=lambda normal: lambda *args: torch.special.ndtr(normal(*args)),
            symptom="pale samples; the loss is too good",
            caught_by="tests/unit/test_training.py::"
            "test_noise_is_standard_normal_and_never_used_twice",
        ),
        "no-reparameterization": Fault(
            wrong="z is drawn where gradients are cut, as by sample() in place of rsample().",
            met="pytorch/pytorch issue 4620, about torch.normal",
            owner=reparameterization,
            attribute="reparameterize",
            broken=lambda draw: lambda mu, log_var, eps: draw(mu.detach(), log_var.detach(), eps),
            symptom="the KL falls to 0 and stays there",
            caught_by="tests/unit/test_reparameterization.py::"
            "test_gradients_are_one_and_half_the_deviation_times_the_noise",
        ),
        "one-head": Fault(
            wrong="The log-variance is read off the layer that gives the mean.",
            met="OpenTalker/SadTalker issue 969",
            owner=VAE,
            attribute="encode",
            broken=lambda encode: (
                lambda self, x, y=None: DiagonalGaussian(*[encode(self, x, y).mu] * 2)
            ),
            symptom="the loss stops higher up",
            caught_by="tests/unit/test_models.py::"
            "test_encoder_and_decoder_compute_two_layers_with_relu",
        ),
        "sigmoid-twice": Fault(
            wrong="The decoder ends in a sigmoid, and the loss applies another.",
            met="itakurah/focal-loss-pytorch pull request 5, about another loss",
            owner=VAE,
            attribute="decode",
            broken=lambda decode: lambda self, z, y=None: _squashed(decode(self, z, y)),
            symptom="a gray veil; the loss stays near its start",
            caught_by="tests/unit/test_models.py::"
            "test_encoder_and_decoder_compute_two_layers_with_relu",
        ),
        "gray-as-binary": Fault(
            wrong="Gray levels are scored as if they were black or white, and nobody says so.",
            met="pytorch/examples issue 460, pyro-ppl/pyro issues 529 and 1773",
            owner=Bernoulli,
            attribute="check_support",
            broken=lambda _: lambda self, x: None,
            symptom="none to see; the number is no log-likelihood",
            caught_by="tests/unit/test_likelihoods.py::"
            "test_pixels_outside_the_support_are_refused_with_advice",
        ),
        "softmax-over-losses": Fault(
            wrong="Log weights are averaged by their softmax; the bound is the log of an average.",
            met="AntixK/PyTorch-VAE issue 34 and pull request 53",
            owner=bounds,
            attribute="importance_weighted_bound",
            broken=lambda _: lambda log_weights: (log_weights.softmax(0) * log_weights).sum(0),
            symptom="a bound that is none, above log p(x)",
            caught_by="tests/unit/test_bounds.py::test_the_weighted_bound_is_the_log_of_an_average",
        ),
        "deaf-encoder": Fault(
            wrong="The condition reaches the decoder, and not the encoder.",
            met="ceh-2000/fed_cvae issue 71, there on purpose",
            owner=ConditionalVAE,
            attribute="encode",
            broken=lambda encode: (
                lambda self, x, y=None: encode(self, x, None if y is None else torch.zeros_like(y))
            ),
            symptom="hardly any; the bound is a little worse",
            caught_by="tests/unit/test_models.py::test_an_image_is_encoded_by_its_own_label_alone",
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
