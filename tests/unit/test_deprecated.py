"""Old names go on working for one version, and say where the new ones are."""

import importlib

import pytest
import torch

from vae_book.evaluation import average_elbo
from vae_book.images import Images
from vae_book.models import VAE

OLD = {
    "bayes.LinearGaussian": "linear_gaussian.LinearGaussian",
    "bayes.Gaussian": "distributions.FullGaussian",
    "bayes.ppca": "linear_gaussian.ppca",
    "reparameterization.pathwise_gradient": "gradient_estimators.pathwise_gradient",
    "reparameterization.Quadratic": "gradient_estimators.Quadratic",
    "figures.show": "display.show",
    "figures.vae_diagram": "diagrams.vae_diagram",
}


def found(name):
    module, _, attribute = name.partition(".")
    return getattr(importlib.import_module(f"vae_book.{module}"), attribute)


@pytest.mark.parametrize(("old", "new"), OLD.items())
def test_an_old_name_is_the_new_one_and_says_so(old, new):
    with pytest.warns(DeprecationWarning, match=f"vae_book.{old} is vae_book.{new} now"):
        assert found(old) is found(new)


def test_what_never_was_is_an_error_as_everywhere():
    with pytest.raises(AttributeError, match=r"module 'vae_book\.bayes' has no attribute 'Bayes'"):
        found("bayes.Bayes")


def test_the_old_bound_keeps_its_sign():
    with pytest.warns(DeprecationWarning, match=r"vae_book\.evaluation\.average_elbo now"):
        measure = found("evaluation.test_bound")
    data = Images(torch.rand(4, 1, 28, 28), torch.zeros(4).long(), "noise", "test")
    model = VAE(2, 8)
    old, new = measure(model, data, seed=3), average_elbo(model, data, seed=3)
    assert old.value == -new.value == old.reconstruction + old.kl > 0
    assert (old.standard_error, old.protocol) == (new.standard_error, new.protocol)
