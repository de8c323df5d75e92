"""An objective is the sum that its attributes describe, and its gradient goes where it should."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from tests.numbers import double, normals, refused
from vae_book.bounds import Elbo, elbo_terms
from vae_book.device import seeded
from vae_book.distributions import DiagonalGaussian
from vae_book.divergences import gaussian_unit_kl
from vae_book.images import Images
from vae_book.linear_gaussian import LinearGaussian
from vae_book.linear_vae import linear_vae
from vae_book.models import CVAE, VAE, Pass
from vae_book.monte_carlo import average
from vae_book.objectives import Objective, importance_weighted_loss
from vae_book.training import Settings, batches, fit

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
    assert [type(value) for value in vars(objective).values()] == [float, int, float, str, str]
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


# Importance-weighted bounds ----------------------------------------------------------------------

EXACT = LinearGaussian(double([[1.0, 0.3], [-0.5, 0.8], [0.2, -1.1]]), double([0.1, 0, -0.2]), 0.7)
X = double([0.8, -1.0, 0.4])
WEIGHTED = ["iwae", "iwae-dreg"]


def repeated(K, n, off=(0.0, 0.0), seed=0):
    """The same x n times, with K draws each of a q of its own, whose mean and log-variance leave
    the best diagonal q by ``off``; mu and log_var, as leaves, x and the pass.
    """
    model, x = linear_vae(EXACT), X.expand(n, 1, 1, 3)
    mu, log_var = (part.detach() for part in model.encode(x))
    mu, log_var = (mu + off[0]).requires_grad_(), (log_var + off[1]).requires_grad_()
    q_z = DiagonalGaussian(mu, log_var)
    z = q_z.rsample(normals(K, n, 2, seed=seed))
    return mu, log_var, x, Pass(q_z, z, model.decode(z), model.prior())


def encoder_gradients(K, n, off=(0.5, -0.6), *, doubly):
    """The gradient in mu and log_var that each of n repetitions finds, side by side."""
    mu, log_var, x, made = repeated(K, n, off)
    loss = importance_weighted_loss(x, made, doubly=doubly).sum()
    return torch.cat(torch.autograd.grad(loss, [mu, log_var]), dim=-1)


def log_mean_weight(mu, log_var, eps, W):
    """log (1/K) sum p(x, z_k) / q(z_k) of one image, by torch.distributions."""
    q_z = Independent(Normal(mu, (log_var / 2).exp()), 1)
    z = mu + (log_var / 2).exp() * eps
    prior, pixels = Independent(Normal(torch.zeros_like(z), 1.0), 1), Normal(z @ W.T + EXACT.b, 0.7)
    weights = pixels.log_prob(X).sum(-1) + prior.log_prob(z) - q_z.log_prob(z)
    return weights.exp().mean().log()


@pytest.mark.parametrize("samples", [(), (3,)])
@pytest.mark.parametrize("doubly", [False, True])
def test_no_images_have_no_weighted_loss(samples, doubly):
    """As in a process to which the last batch leaves none."""
    model, x = VAE(2, 3, (1, 2, 2)), torch.rand(0, 1, 2, 2)
    loss = importance_weighted_loss(x, model(x, torch.zeros(*samples, 0, 2)), doubly=doubly)
    assert loss.shape == (0,)
    loss.sum().backward()
    assert not any(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("doubly", [False, True])
@pytest.mark.parametrize("K", [1, 4])
def test_the_weighted_loss_is_the_log_of_the_average_weight(K, doubly):
    mu, log_var, x, made = repeated(K, 3, (0.5, -0.6))
    found = importance_weighted_loss(x, made, doubly=doubly)
    expected = [
        -log_mean_weight(mu[i], log_var[i], normals(K, 3, 2)[:, i], EXACT.W) for i in range(3)
    ]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("K", [1, 4])
def test_its_own_gradient_is_that_of_its_value(K):
    """By finite differences of the value, in mean, log-variance and decoder."""
    model = linear_vae(EXACT)
    mu, log_var, _, made = repeated(K, 1, (0.5, -0.6))
    made = made._replace(p_x=model.decode(made.z))
    loss = importance_weighted_loss(X.reshape(1, 1, 1, 3), made).sum()
    found = torch.autograd.grad(loss, [mu, log_var, model.decoder[0].weight])
    at = [mu.detach()[0], log_var.detach()[0], normals(K, 1, 2)[:, 0], EXACT.W]
    for gradient, place in zip(found, [0, 1, 3], strict=True):
        for i in range(gradient.numel()):
            values = []
            for step in (-1e-5, 1e-5):
                moved = [part.clone() for part in at]
                moved[place].view(-1)[i] += step
                values.append(-log_mean_weight(*moved))
            slope = (values[1] - values[0]) / 2e-5
            torch.testing.assert_close(gradient.flatten()[i], slope, rtol=1e-6, atol=1e-8)


@pytest.mark.equation(
    "eq-dreg", route="the bound's own gradient by autograd, same draws", standard_errors=4
)
@pytest.mark.parametrize("K", [1, 2, 10])
def test_the_doubly_reparameterized_gradient_averages_to_the_same_with_less_noise(agree, K):
    """Tucker et al. (2019). Both take the same draws, which makes the comparison sharp."""
    off = (0.1, 0.2)
    ours, theirs = (encoder_gradients(K, 20_000, off, doubly=doubly) for doubly in (True, False))
    difference = average(ours - theirs)
    agree(difference, torch.zeros_like(difference.value))
    assert (average(ours).value.abs() > 4 * difference.standard_error).any()
    assert (ours.var(0) < 0.1 * theirs.var(0)).all()


@pytest.mark.parametrize("K", [2, 10])
def test_for_a_q_that_is_narrow_and_far_off_it_averages_to_the_same_with_more_noise(K):
    off = (0.5, -0.6)
    ours, theirs = (encoder_gradients(K, 20_000, off, doubly=doubly) for doubly in (True, False))
    difference = average(ours - theirs)
    assert (difference.value.abs() < 4 * difference.standard_error).all()
    assert (ours.var(0) > 1.2 * theirs.var(0)).any()


def test_with_more_draws_the_signal_to_noise_falls_and_doubly_reparameterized_rises():
    """Rainforth et al. (2018), theorem 1, and Tucker et al. (2019): K^-1/2 and K^1/2."""
    for doubly, slope in ((False, -0.5), (True, 0.5)):
        few, many = (
            encoder_gradients(K, 20_000, (0.1, 0.2), doubly=doubly)[:, :2] for K in (2, 32)
        )
        ratio = (many.mean(0) / many.std(0) / (few.mean(0) / few.std(0))).log() / math.log(16)
        assert ((ratio - slope).abs() < 0.25).all(), ratio


def test_with_one_draw_both_average_to_the_exact_gradient_of_the_elbo():
    off = (0.5, -0.6)
    mu, log_var, _, _ = repeated(1, 1, off)
    exact = -torch.cat(EXACT.elbo_gradient(X, mu[0].detach(), log_var[0].detach()))
    for doubly in (False, True):
        found = average(encoder_gradients(1, 20_000, off, doubly=doubly))
        assert ((found.value - exact).abs() < 4 * found.standard_error).all()


@pytest.mark.parametrize("K", [1, 5])
def test_at_the_exact_posterior_the_doubly_reparameterized_gradient_has_no_noise(K, monkeypatch):
    """All weights are equal there, and none of them depends on z."""
    independent = double([[1.0, 0.5], [-0.5, 1.0], [0.0, 0.0]])  # orthogonal columns
    monkeypatch.setitem(globals(), "EXACT", LinearGaussian(independent, EXACT.b, 0.7))
    ours = encoder_gradients(K, 100, (0.0, 0.0), doubly=True)
    theirs = encoder_gradients(K, 100, (0.0, 0.0), doubly=False)
    assert ours.abs().max() < 1e-12
    assert theirs.abs().mean() > 0.1


def test_the_decoder_and_a_learned_prior_feel_the_gradient_of_the_bound_either_way():
    torch.manual_seed(0)
    model = CVAE(2, 4, (1, 2, 2), learned_prior=True, classes=3).double()
    x, y = torch.rand(5, 1, 2, 2, generator=seeded(1)).double(), torch.arange(5) % 3
    eps = normals(4, 5, 2)
    found = []
    for doubly in (False, True):
        loss = importance_weighted_loss(x, model(x, eps, y), doubly=doubly).sum()
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    names = [name for name, _ in model.named_parameters()]
    for name, own, other in zip(names, *found, strict=True):
        same = name.startswith(("decoder", "prior_network"))
        assert torch.allclose(own, other, rtol=1e-9, atol=1e-12) == same, name
        assert own.any()


@pytest.mark.parametrize("bound", WEIGHTED)
def test_one_draw_needs_no_axis_for_draws(bound):
    torch.manual_seed(0)
    model = VAE(2, 4, (1, 2, 2)).double()
    x, eps = torch.rand(5, 1, 2, 2, generator=seeded(1)).double(), normals(5, 2)
    found = []
    for noise in (eps, eps.unsqueeze(0)):
        made = model(x, noise)
        loss = Objective(bound=bound).loss(x, made, elbo_terms(x, made))
        found.append([loss, *torch.autograd.grad(loss.sum(), list(model.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("bound", ["elbo", *WEIGHTED])
def test_nothing_is_asked_of_a_pass_without_gradients(bound):
    model, x = linear_vae(EXACT), X.expand(2, 1, 1, 3)
    with torch.no_grad():
        made = model(x, normals(3, 2, 2))
        loss = Objective(bound=bound).loss(x, made, elbo_terms(x, made))
    assert loss.isfinite().all()


def test_a_larger_k_is_a_tighter_bound_below_the_evidence():
    found = [
        average(-importance_weighted_loss(*repeated(K, 20_000, (0.5, 0.6))[2:]).detach())
        for K in (1, 3, 30)
    ]
    values = [each.value for each in found]
    assert values == sorted(values)
    assert values[-1] < EXACT.log_evidence(X) + 4 * found[-1].standard_error
    assert values[-1] > EXACT.log_evidence(X) - 0.05


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("bound", WEIGHTED)
def test_fit_takes_adam_steps_on_the_weighted_bound(bound, K):
    x = MultivariateNormal(EXACT.b, torch.eye(3).double()).sample((7,)).reshape(7, 1, 1, 3)
    data = Images(x, torch.zeros(7, dtype=torch.long), "noise", "train")
    settings = {"batch_size": 4, "lr": 0.01, "n_samples": K, "objective": Objective(bound=bound)}
    model, by_hand = linear_vae(EXACT), linear_vae(EXACT)
    history = fit(model, data, epochs=1, **settings)
    optimizer, losses = torch.optim.Adam(by_hand.parameters(), lr=0.01), []
    for x, _, eps, _ in batches(by_hand, data, Settings(**settings), 0):
        mu, log_var = by_hand.encode(x)
        z = mu + (log_var / 2).exp() * eps.reshape(K, len(x), 2)
        still = bound == "iwae-dreg"
        q = Normal(*(t.detach() if still else t for t in (mu, (log_var / 2).exp())))
        weights = Normal(by_hand.decoder(z), 0.7).log_prob(x).sum((-3, -2, -1))
        weights = weights + Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z).sum(-1)
        share = weights.detach().softmax(0)
        optimizer.zero_grad()
        (-(share * weights).sum() / len(x)).backward(retain_graph=True)
        if still:  # the encoder's part is that with squared shares
            encoder = [*by_hand.to_mu.parameters(), *by_hand.to_log_var.parameters()]
            squared = torch.autograd.grad(-(share**2 * weights).sum() / len(x), encoder)
            for weight, gradient in zip(encoder, squared, strict=True):
                weight.grad = gradient
        optimizer.step()
        losses.append(-weights.exp().mean(0).log())
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, by_hand.state_dict()[name], rtol=1e-6, atol=1e-9)
    assert history.loss[0] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-6)
    assert history.negative_elbo[0] != history.loss[0]


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_bound_is_one_that_is_known_and_a_weighted_one_has_no_penalty_to_change():
    with refused("bound: expected one of elbo, iwae, iwae-dreg, got 'vimco'"):
        Objective(bound="vimco")
    for bound in WEIGHTED:
        for change in ({"beta": 2.0}, {"warm_up": 1}, {"free_nats": 0.1}, {"penalty": "naive"}):
            with refused("bound: expected 'elbo' with a beta, warm_up, free_nats or penalty"):
                Objective(bound=bound, **change)
        *_, terms = inputs()
        with refused(f"bound: expected 'elbo', got '{bound}'; use the method loss"):
            Objective(bound=bound)(terms, DiagonalGaussian(*inputs()[:2]))


def test_the_elbo_comes_by_the_method_loss_as_well():
    model, x = linear_vae(EXACT), X.expand(2, 1, 1, 3)
    made = model(x, normals(3, 2, 2))
    terms, objective = elbo_terms(x, made), Objective(beta=0.5, warm_up=4)
    assert torch.equal(objective.loss(x, made, terms, 2), objective(terms, made.q_z, 2))
