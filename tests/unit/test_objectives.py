"""An objective is the sum that its attributes describe, and its gradient goes where it should."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tests.numbers import double
from vae_book.bounds import Elbo
from vae_book.distributions import DiagonalGaussian
from vae_book.divergences import gaussian_unit_kl
from vae_book.objectives import Objective

# Two images, three units: a mean, a variance and a mean and variance of the prior each.
POSTERIORS = [
    [(0.1, 0.9, 0.0, 1.0), (2.0, 0.3, 0.5, 1.0), (0.0, 1.0, 0.0, 1.0)],
    [(-1.5, 0.2, 0.0, 2.0), (0.2, 1.1, 0.0, 1.0), (0.7, 0.6, 0.0, 0.5)],
]
RECONSTRUCTIONS = [80.0, 120.0]


def inputs():
    """Mean and log-variance of the posteriors, as leaves, and the terms of the bound."""
    mu, var, prior_mu, prior_var = double(POSTERIORS).unbind(-1)
    mu, log_var = mu.clone().requires_grad_(), var.log().requires_grad_()
    log_likelihood = -double(RECONSTRUCTIONS).requires_grad_()
    return (
        mu,
        log_var,
        Elbo(log_likelihood, gaussian_unit_kl(mu, log_var, prior_mu, prior_var.log())),
    )


def divergence(mu, var, prior_mu, prior_var):
    return kl_divergence(
        Normal(double(mu), double(var).sqrt()), Normal(double(prior_mu), double(prior_var).sqrt())
    ).item()


def by_hand(weight=1.0, free_nats=0.0, naive=False):
    """The loss of each image, by loops over its units."""
    losses = []
    for reconstruction, units in zip(RECONSTRUCTIONS, POSTERIORS, strict=True):
        penalty = 0.0
        for mu, var, prior_mu, prior_var in units:
            if naive:
                penalty += mu**2 + math.log(var) ** 2
            else:
                penalty += max(free_nats, divergence(mu, var, prior_mu, prior_var))
        losses.append(reconstruction + weight * penalty)
    return double(losses)


def loss(objective, epoch=0):
    mu, log_var, terms = inputs()
    return objective(terms, DiagonalGaussian(mu, log_var), epoch).detach()


def gradients(objective, epoch=0):
    mu, log_var, terms = inputs()
    return torch.autograd.grad(
        objective(terms, DiagonalGaussian(mu, log_var), epoch).sum(), [mu, log_var]
    )


@pytest.mark.parametrize("epoch", [0, 1, 100])
def test_by_default_it_is_the_negative_bound(epoch):
    *_, terms = inputs()
    assert torch.equal(loss(Objective(), epoch), -terms.value)
    torch.testing.assert_close(loss(Objective(), epoch), by_hand())


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0, 10.0])
def test_beta_weighs_the_divergence(beta):
    torch.testing.assert_close(loss(Objective(beta=beta)), by_hand(weight=beta))


def test_without_weight_the_reconstruction_is_alone():
    assert loss(Objective(beta=0.0)).tolist() == RECONSTRUCTIONS
    for gradient in gradients(Objective(beta=0.0)):
        assert not gradient.any()


def test_the_reconstruction_counts_once_whatever_else_does():
    for objective in [Objective(), Objective(beta=3.0, free_nats=0.2), Objective(penalty="naive")]:
        mu, log_var, terms = inputs()
        total = objective(terms, DiagonalGaussian(mu, log_var)).sum()
        (gradient,) = torch.autograd.grad(total, terms.log_likelihood)
        assert gradient.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("beta", "warm_up", "weights"),
    [
        (1.0, 0, [1, 1, 1]),
        (0.5, 0, [0.5, 0.5, 0.5]),
        (1.0, 1, [0, 1, 1]),
        (1.0, 4, [0, 0.25, 0.5, 0.75, 1, 1, 1]),
        (4.0, 4, [0, 1, 2, 3, 4, 4, 4]),
        (0.0, 4, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_the_weight_rises_from_nothing_to_beta_in_equal_steps(beta, warm_up, weights):
    objective = Objective(beta=beta, warm_up=warm_up)
    assert [objective.weight(epoch) for epoch in range(len(weights))] == weights
    for epoch, weight in enumerate(weights):
        torch.testing.assert_close(loss(objective, epoch), by_hand(weight=weight))


@pytest.mark.equation("eq-objective", route="loops and torch.distributions", rel=1e-6)
@pytest.mark.parametrize("free_nats", [0.0, 0.05, 0.5, 3.0])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_free_nats_are_for_each_unit_of_each_image(agree, free_nats, beta):
    objective = Objective(beta=beta, free_nats=free_nats)
    agree(loss(objective), by_hand(weight=beta, free_nats=free_nats))


def test_below_the_free_nats_a_unit_is_left_alone_and_above_it_feels_the_divergence():
    nats = 0.3
    *_, terms = inputs()
    free = terms.unit_kl < nats
    assert free.tolist() == [[True, False, True], [False, True, False]]  # all kinds of pairs
    found = gradients(Objective(free_nats=nats))
    full = gradients(Objective())
    for gradient, whole in zip(found, full, strict=True):
        assert not gradient[free].any()
        assert torch.equal(gradient[~free], whole[~free])
        assert gradient[~free].all()
        assert whole[:, 1].all()


def test_the_naive_penalty_takes_the_place_of_the_divergence():
    for beta in (0.0, 1.0, 0.3):
        objective = Objective(beta=beta, penalty="naive")
        torch.testing.assert_close(loss(objective), by_hand(weight=beta, naive=True))
        for epoch, weight in enumerate([0.0, beta / 2, beta]):
            warm = Objective(beta=beta, warm_up=2, penalty="naive")
            torch.testing.assert_close(loss(warm, epoch), by_hand(weight=weight, naive=True))


def test_the_naive_penalty_pulls_without_an_end():
    """Its gradients are 2 mu and 2 log_var: the variance is pulled to 1 from both sides alike."""
    mu, log_var, _ = inputs()
    by_mu, by_log_var = gradients(Objective(beta=0.5, penalty="naive"))
    torch.testing.assert_close(by_mu, mu.detach())
    torch.testing.assert_close(by_log_var, log_var.detach())


def test_the_divergence_is_the_one_that_the_terms_know():
    """With a prior that is learned, for instance: not always that from N(0, I)."""
    mu, log_var, terms = inputs()
    other, q_z = Elbo(terms.log_likelihood, terms.unit_kl + 1), DiagonalGaussian(mu, log_var)
    torch.testing.assert_close(
        Objective(beta=2.0)(other, q_z), Objective(beta=2.0)(terms, q_z) + 2 * 3
    )


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("name", ["beta", "warm_up", "free_nats"])
@pytest.mark.parametrize("value", [-0.1, -1, math.inf, -math.inf, math.nan])
def test_numbers_start_at_zero_and_are_finite(name, value):
    whole = "whole " if name == "warm_up" else ""
    with pytest.raises(
        ValueError, match=f"^{name}: expected a {whole}number from 0 on, got {value}$"
    ):
        Objective(**{name: value})


@pytest.mark.usefixtures("shapes_unchecked")
def test_the_weight_rises_in_whole_epochs():
    with pytest.raises(ValueError, match=r"^warm_up: expected a whole number from 0 on, got 2\.5$"):
        Objective(warm_up=2.5)


@pytest.mark.usefixtures("shapes_unchecked")
def test_numbers_of_other_kinds_become_those_of_python():
    objective = Objective(beta=np.float32(0.5), warm_up=np.int64(4), free_nats=torch.tensor(0.25))
    assert [type(value) for value in vars(objective).values()] == [float, int, float, str]
    assert objective == Objective(beta=0.5, warm_up=4, free_nats=0.25)
    assert type(Objective(beta=2).beta) is float


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("penalty", ["KL", "", "l2", None])
def test_an_unknown_penalty_is_refused(penalty):
    with pytest.raises(ValueError, match=f"^penalty: expected 'kl' or 'naive', got {penalty!r}$"):
        Objective(penalty=penalty)


def test_free_nats_of_the_naive_penalty_are_refused():
    with pytest.raises(ValueError, match=r"^free_nats: expected 0 with the naive penalty"):
        Objective(free_nats=0.1, penalty="naive")
    assert Objective(free_nats=0.0, penalty="naive").penalty == "naive"


def test_objectives_of_the_same_numbers_are_the_same():
    assert Objective(beta=2.0, warm_up=3) == Objective(2.0, 3)
    assert Objective(beta=2.0) != Objective()
    with pytest.raises(AttributeError):
        Objective().beta = 2.0
