"""The equations of chapter 10, each by an independent route."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from vae_book.bounds import Elbo
from vae_book.device import seeded
from vae_book.divergences import gaussian_unit_kl
from vae_book.evaluation import aggregated_kl_bound, unit_statistics
from vae_book.objectives import Objective


def codes(n, d):
    mu, log_var = torch.randn(2, n, d, generator=seeded(0), dtype=torch.float64)
    return 2 * mu, log_var - 1


@pytest.mark.equation("eq-objective", route="torch.distributions", rel=1e-12)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 10.0])
def test_the_loss_is_distortion_plus_beta_times_rate(agree, beta):
    mu, log_var = codes(7, 3)
    distortion = torch.rand(7, generator=seeded(1), dtype=torch.float64) * 100
    rate = kl_divergence(Normal(mu, torch.exp(log_var / 2)), Normal(0.0, 1.0)).sum(-1)
    terms = Elbo(-distortion, gaussian_unit_kl(mu, log_var))
    agree(Objective(beta=beta)(terms, mu, log_var), distortion + beta * rate)


@pytest.mark.equation("eq-active-unit", route="numpy.var", rel=1e-12)
def test_a_unit_is_active_if_its_mean_varies_by_more_than_a_hundredth(agree):
    mu, log_var = codes(50, 5)
    # The second unit says nothing, the third and the fourth lie on both sides of the threshold.
    scale = torch.tensor([1.0, 0.0, 0.098, 0.102, 3.0]).double()
    mu = mu / mu.std(0) * scale + 5
    spread = np.var(mu.numpy(), axis=0, ddof=1)
    units = unit_statistics(mu, log_var)
    agree(units.spread, spread)
    agree(units.active, spread > 0.01)
    assert units.active.tolist() == [True, False, False, True, True]


@pytest.mark.equation("eq-aggregated-moments", route="scipy.integrate.quad", abs=1e-9)
@pytest.mark.parametrize("n", [2, 5])
def test_what_the_moments_leave_out_is_the_divergence_from_the_normal_that_has_them(agree, n):
    mu, log_var = codes(n, 1)
    centers, widths = mu[:, 0].numpy(), np.exp(log_var[:, 0].numpy() / 2)
    mean = centers.mean()
    deviation = math.sqrt((widths**2 + (centers - mean) ** 2).mean())

    def divergence(center, width):
        """KL from the average of the posteriors to a normal."""

        def integrand(z):
            density = norm.pdf(z, centers, widths).mean()
            log_ratio = math.log(density) - norm.logpdf(z, center, width)
            return density * log_ratio

        return quad(integrand, -15, 15, points=sorted(centers), limit=500, epsabs=1e-12)[0]

    rest = divergence(mean, deviation)
    agree(aggregated_kl_bound(mu, log_var) + rest, divergence(0, 1))
    assert rest > 0.01
