"""The linear-Gaussian model as a VAE of the book's contract, with its best encoder.

What is measured on a trained VAE can be tried on this one first, where the answer is known.
"""

import torch
from torch import nn

from vae_book.likelihoods import Gaussian
from vae_book.linear_gaussian import LinearGaussian
from vae_book.models import VAE


@torch.no_grad()
def linear_vae(exact: LinearGaussian) -> VAE:
    """A VAE with the decoder of a linear-Gaussian model, and the best of its diagonal Gaussians q.

    Its images are rows of D pixels, shape (1, 1, D), in float64. Its encoder
    gives each x the q(z | x) of `LinearGaussian.mean_field` (chapter 3).

    Args:
        exact: the model, of sizes D and d.
    """
    D, d = exact.W.shape
    model = VAE(d, D, (1, 1, D), Gaussian(exact.sigma.item())).double()
    model.encoder = nn.Sequential(nn.Flatten(-3))
    linear = nn.Linear(d, D).double()
    model.decoder = nn.Sequential(linear, nn.Unflatten(-1, (1, 1, D)))
    model.to_mu, model.to_log_var = nn.Linear(D, d).double(), nn.Linear(D, d).double()
    offset, log_var = exact.mean_field(torch.zeros(D))
    at_units, _ = exact.mean_field(torch.eye(D))  # mu is affine in x
    model.to_mu.weight.copy_((at_units - offset).T)
    model.to_mu.bias.copy_(offset)
    model.to_log_var.weight.zero_()
    model.to_log_var.bias.copy_(log_var)
    linear.weight.copy_(exact.W)
    linear.bias.copy_(exact.b)
    return model
