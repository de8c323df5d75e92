"""The linear-Gaussian model as a VAE has the densities and the best q of the exact model."""

import torch

from tests.numbers import double, normals
from vae_book.bounds import elbo
from vae_book.linear_gaussian import LinearGaussian
from vae_book.linear_vae import linear_vae

EXACT = LinearGaussian(normals(4, 3), normals(4, seed=1), 0.6)
MODEL = linear_vae(EXACT)
X = normals(5, 4, seed=2)


@torch.no_grad()
def test_the_decoder_is_that_of_the_exact_model():
    z = normals(2, 5, 3)
    found = MODEL.decode(z).log_prob(X.reshape(5, 1, 1, 4))
    torch.testing.assert_close(found, EXACT.log_likelihood(X, z))


@torch.no_grad()
def test_the_encoder_gives_the_best_diagonal_gaussian():
    for found, best in zip(MODEL.encode(X.reshape(5, 1, 1, 4)), EXACT.mean_field(X), strict=True):
        torch.testing.assert_close(found, best)


@torch.no_grad()
def test_the_elbo_is_the_exact_one_on_average_over_opposite_draws():
    eps = 3**0.5 * torch.cat([torch.eye(3), -torch.eye(3)]).double()  # exact for quadratics of z
    found = elbo(MODEL, X.reshape(5, 1, 1, 4), eps.unsqueeze(1).expand(6, 5, 3)).value
    torch.testing.assert_close(found, EXACT.elbo(X, *EXACT.mean_field(X)))


def test_one_unit_is_enough():
    exact = LinearGaussian(double([[1.0], [2.0]]), double([0.0, 0.5]), 1)
    assert linear_vae(exact).encode(torch.zeros(3, 1, 1, 2)).mu.shape == (3, 1)
