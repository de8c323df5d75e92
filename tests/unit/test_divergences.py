"""Divergences are the integrals that define them, and behave as divergences should."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import rel_entr
from scipy.stats import multivariate_normal, norm
from torch.distributions import (
    Beta,
    Categorical,
    Cauchy,
    Exponential,
    Gamma,
    Gumbel,
    Independent,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from tests.numbers import double, refused, repeatable
from vae_book.device import seeded
from vae_book.divergences import (
    discrete_kl,
    gaussian_kl,
    gaussian_kl_full,
    gaussian_unit_kl,
    kl_monte_carlo,
    kl_quadrature,
    kl_riemann,
    naive_regularizer,
)

# The package has the processor treat subnormal numbers as zero (see vae_book.device).
floats = partial(st.floats, allow_subnormal=False)
moderate = floats(-4, 4)
# One row a dimension: mu, log_var, prior_mu, prior_log_var.
rows = st.lists(st.tuples(moderate, moderate, moderate, moderate), min_size=1, max_size=5)


# Unnormalized probabilities of two distributions over the same outcomes.
pairs = st.lists(st.tuples(floats(0, 1), floats(0.01, 1)), min_size=2, max_size=6)
STANDARD = Normal(0.0, 1.0)


def columns(rows):
    return double(rows).unbind(-1)


def torchs_own(mu, log_var, prior_mu, prior_log_var):
    q, p = (
        Independent(Normal(mean, (log_variance / 2).exp()), 1)
        for mean, log_variance in ((mu, log_var), (prior_mu, prior_log_var))
    )
    return kl_divergence(q, p)


def integral(mu, log_var, prior_mu, prior_log_var):
    q = norm(mu, math.exp(log_var / 2))
    p = norm(prior_mu, math.exp(prior_log_var / 2))
    reach = 12 * q.std()
    value, _ = quad(
        lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), mu - reach, mu + reach, epsabs=1e-12
    )
    return value


def integral_of(q, p, reach=40):
    """The divergence by a fine sum over cells."""
    z = torch.linspace(-reach, reach, 400_001, dtype=torch.float64)
    log_q = q.log_prob(z)
    return (log_q.exp() * (log_q - p.log_prob(z))).sum().item() * reach / 200_000


def probabilities(pairs):
    """Two distributions from pairs of numbers."""
    q, p = columns(pairs)
    assume(q.sum() > 0.1)
    return q / q.sum(), p / p.sum()


@pytest.mark.equation("eq-kl-discrete", route="scipy.special.rel_entr", rel=1e-12, abs=1e-12)
@repeatable
@given(pairs)
def test_the_discrete_divergence_is_scipys(agree, pairs):
    q, p = probabilities(pairs)
    agree(discrete_kl(q.log(), p.log()), rel_entr(q.numpy(), p.numpy()).sum())


@pytest.mark.equation("eq-kl-discrete", route="by hand", rel=1e-12)
def test_the_discrete_divergence_is_taken_over_the_last_axis_and_broadcasts(agree):
    q, p = double([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]), double([0.5, 0.5])
    by_hand = double([0.0, math.log(2), math.log(2) - 0.25 * math.log(4) + 0.75 * math.log(0.75)])
    agree(discrete_kl(q.log(), p.log()), by_hand)


@pytest.mark.equation(
    "eq-maximum-likelihood", route="torch.distributions, datum by datum", rel=1e-12
)
def test_minus_the_average_log_likelihood_is_entropy_plus_divergence(agree):
    data = torch.randint(4, (300,), generator=seeded(3)).square() % 5  # 0, 1 and 4, not evenly
    shares = torch.bincount(data, minlength=5).double() / len(data)
    model = Categorical(double([0.3, 0.4, 0.1, 0.05, 0.15]))
    entropy = Categorical(shares).entropy()
    agree(-model.log_prob(data).mean(), entropy + discrete_kl(shares.log(), model.probs.log()))


@pytest.mark.equation("eq-kl-nonnegative", route="Pinsker's inequality", abs=1e-12)
@repeatable
@given(pairs)
def test_the_discrete_divergence_is_at_least_twice_the_squared_variation(agree, pairs):
    q, p = probabilities(pairs)
    variation = 0.5 * (q - p).abs().sum()
    kl = discrete_kl(q.log(), p.log())
    agree(kl.clamp(min=2 * variation.square().item()), kl)


@pytest.mark.equation("eq-kl-nonnegative", route="the case of equality", abs=0)
@repeatable
@given(pairs)
def test_the_discrete_divergence_is_zero_at_equality(agree, pairs):
    for log_q in (probability.log() for probability in probabilities(pairs)):
        agree(discrete_kl(log_q, log_q), double(0))


@pytest.mark.parametrize("shapes", [((2, 3), (3,)), ((3,), (2, 3)), ((), (2, 3)), ((2, 1), (1, 3))])
def test_leading_axes_of_the_discrete_divergence_broadcast(shapes):
    q, p = (
        torch.randn(*shape, 4, dtype=torch.float64, generator=seeded(seed)).softmax(-1)
        for seed, shape in enumerate(shapes)
    )
    kl = discrete_kl(q.log(), p.log())
    np.testing.assert_allclose(kl, rel_entr(q.numpy(), p.numpy()).sum(-1), rtol=1e-12)


def test_an_outcome_that_only_p_allows_adds_nothing_and_one_that_only_q_allows_infinity():
    certain, fair = double([0.0, -math.inf]), double([0.5, 0.5]).log()
    assert discrete_kl(certain, fair).item() == pytest.approx(math.log(2), rel=1e-12)
    assert discrete_kl(fair, certain) == math.inf
    assert discrete_kl(double([0.0, -1000.0]), certain) == math.inf  # where e^-1000 is 0
    assert discrete_kl(certain, certain) == 0


def test_the_gradient_ignores_outcomes_that_q_rules_out():
    log_q = double([math.log(0.5), math.log(0.5), -math.inf]).requires_grad_()
    (gradient,) = torch.autograd.grad(discrete_kl(log_q, double([0.2, 0.8, 0.0]).log()), log_q)
    # d/dl of e^l (l - log p) is e^l (l - log p + 1).
    expected = [0.5 * (math.log(0.5 / p) + 1) for p in (0.2, 0.8)]
    assert gradient.tolist() == pytest.approx([*expected, 0.0], rel=1e-12)


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_are_no_probabilities_is_refused():
    fair = double([0.5, 0.5]).log()
    discrete_kl(fair + 5e-4, fair - 5e-4)  # nearly 1 is near enough
    for wrong in (fair + 0.0015, fair - 0.0015, fair.exp()):
        with refused("log_q: expected logarithms of probabilities that sum to 1"):
            discrete_kl(wrong, fair)
        with refused("log_p: expected logarithms of probabilities that sum to 1"):
            discrete_kl(fair, torch.stack([fair, wrong]))
    with refused("log_q: expected logarithms of probabilities that sum to 1"):
        discrete_kl(double([-math.inf, -math.inf]), fair)
    with refused("log_p: expected logarithms of probabilities that sum to 1"):
        discrete_kl(fair, double([0.0, math.nan]))
    with refused("log_p: expected shape (..., 2), got (1,)"):
        discrete_kl(fair, double([0.0]))


PAIRS = [
    # q, p, lower, upper
    (Normal(*double([0.3, 0.5])), Normal(*double([-1.0, 2.0])), -math.inf, math.inf),
    (Gamma(*double([3.0, 2.0])), Gamma(*double([2.0, 0.7])), 0, math.inf),
    (Exponential(double(1.3)), Gamma(*double([2.5, 0.8])), 0, math.inf),
    (Exponential(double(3.0)), Exponential(double(0.4)), 0, math.inf),
    (Laplace(*double([0.4, 0.8])), Normal(*double([-0.5, 1.5])), -math.inf, math.inf),
    (Laplace(*double([0.4, 0.8])), Laplace(*double([1.0, 2.0])), -math.inf, math.inf),
    (Gumbel(*double([0.2, 0.7])), Normal(*double([1.0, 1.5])), -5, 60),
    (Beta(*double([2.0, 3.5])), Beta(*double([4.0, 1.5])), 0, 1),
]
names = [f"{type(q).__name__}-{type(p).__name__}" for q, p, *_ in PAIRS]


@pytest.mark.equation("eq-kl", route="closed forms of torch.distributions", rel=1e-8)
@pytest.mark.parametrize(("q", "p", "lower", "upper"), PAIRS, ids=names)
def test_quadrature_agrees_with_torch_distributions(agree, q, p, lower, upper):
    integral = kl_quadrature(q.log_prob, p.log_prob, lower, upper)
    agree(double(integral.value), kl_divergence(q, p))
    assert abs(integral.value - kl_divergence(q, p).item()) <= max(integral.error, 1e-12)
    assert integral.error <= max(1e-12, 1e-10 * integral.value)


@pytest.mark.equation("eq-kl-invariance", route="e^z in place of z", rel=1e-8)
@pytest.mark.parametrize("parameters", [(0.0, 1.0, 0.5, 0.7), (0.3, 0.4, -0.2, 1.1)])
def test_the_divergence_of_log_normals_is_that_of_the_normals(agree, parameters):
    values = []
    for family, lower in ((Normal, -math.inf), (LogNormal, 0)):
        q, p = family(*double(parameters[:2])), family(*double(parameters[2:]))
        values.append(double(kl_quadrature(q.log_prob, p.log_prob, lower).value))
    agree(*values, kl_divergence(q.base_dist, p.base_dist))


def test_quadrature_sees_a_narrow_peak_or_says_that_it_did_not():
    narrow = Normal(*double([3.0, 1e-5]))
    with refused("log_q: expected a density of mass 1 between -inf and inf, found "):
        kl_quadrature(narrow.log_prob, STANDARD.log_prob)
    found = kl_quadrature(narrow.log_prob, STANDARD.log_prob, 3 - 12e-5, 3 + 12e-5)
    assert found.value == pytest.approx(kl_divergence(narrow, STANDARD).item(), rel=1e-9)


def test_quadrature_keeps_the_digits_of_a_small_divergence():
    nearby = Normal(*double([1e-4, 1.0]))  # KL 5e-9
    integral = kl_quadrature(nearby.log_prob, Normal(*double([0.0, 1.0])).log_prob)
    assert integral.value == pytest.approx(1e-4**2 / 2, rel=1e-7)


def test_quadrature_follows_a_density_with_many_peaks():
    def waves(z):
        return torch.log1p(0.8 * torch.sin(2 * math.pi * 60 * z))

    # The mean of (1 + a sin t) log(1 + a sin t) is 1 - s + log((1 + s) / 2), s^2 = 1 - a^2.
    expected = 1 - 0.6 + math.log(0.8)
    integral = kl_quadrature(waves, torch.zeros_like, 0, 1)
    assert integral.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("lower", "upper"), [(-1, 1), (0, math.inf)])
def test_a_range_that_cuts_off_a_part_of_q_is_refused(lower, upper):
    with refused(f"log_q: expected a density of mass 1 between {lower} and {upper}, found "):
        kl_quadrature(STANDARD.log_prob, STANDARD.log_prob, lower, upper)


def test_mass_is_asked_to_the_sixth_digit():
    def heavier(mass):
        return lambda z: STANDARD.log_prob(z) + math.log(mass)

    kl_quadrature(heavier(1 + 5e-7), STANDARD.log_prob)
    for mass in (1 + 2e-6, 1 - 2e-6, 2.0):
        with refused("log_q: expected a density of mass 1"):
            kl_quadrature(heavier(mass), STANDARD.log_prob)
    kl_quadrature(STANDARD.log_prob, heavier(2.0))  # p may be a part of a density


def test_an_interval_that_only_p_allows_adds_nothing_and_one_that_only_q_allows_infinity():
    def uniform(z):
        return torch.where(z.abs() < 1, -math.log(2), -math.inf)

    # E_q[-log p] of the uniform density: (1/3 + log 2 pi) / 2.
    expected = -math.log(2) + (1 / 3 + math.log(2 * math.pi)) / 2
    assert kl_quadrature(uniform, STANDARD.log_prob, -1, 1).value == pytest.approx(expected)
    assert kl_riemann(uniform, STANDARD.log_prob, -2, 2).item() == pytest.approx(expected, rel=1e-5)
    assert kl_riemann(STANDARD.log_prob, uniform, -60, 60) == math.inf
    for reach in (12, 60, math.inf):
        assert kl_quadrature(STANDARD.log_prob, uniform, -reach, reach).value == math.inf


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_an_infinite_divergence_of_heavy_tails_is_not_given_a_number(scale):
    # E_q[z^2] of a Cauchy density is infinite; scipy extrapolates to -2.4 for scale 1.
    cauchy = Cauchy(*double([0.0, scale]))
    with refused("log_q and log_p: expected a divergence that quadrature finds, got "):
        kl_quadrature(cauchy.log_prob, STANDARD.log_prob)
    finite = kl_quadrature(STANDARD.log_prob, cauchy.log_prob).value
    assert finite == pytest.approx(integral_of(STANDARD, cauchy), rel=1e-8)


@pytest.mark.filterwarnings("error")
def test_log_densities_in_single_precision_have_a_divergence():
    value, error = kl_quadrature(
        lambda z: STANDARD.log_prob(z.float()), Normal(*double([1.0, 1.0])).log_prob
    )
    assert value == pytest.approx(0.5, abs=1e-6)
    assert error < 1e-6


@pytest.mark.equation("eq-kl-riemann", route="closed forms of torch.distributions", rel=1e-4)
@pytest.mark.parametrize(("q", "p", "lower", "upper"), PAIRS, ids=names)
def test_the_sum_over_cells_tends_to_the_closed_form(agree, q, p, lower, upper):
    lower, upper = max(lower, -20), min(upper, 25)
    agree(kl_riemann(q.log_prob, p.log_prob, lower, upper, n=400_000), kl_divergence(q, p))


@pytest.mark.equation("eq-kl-riemann", route="a loop over the middles of the cells", rel=1e-12)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_each_cell_counts_with_the_values_in_its_middle(agree, n):
    q, p = norm(0.2, 0.6), norm(-0.5, 1.3)
    total = 0.0
    for cell in range(n):
        middle = -1 + (cell + 0.5) * 4 / n
        total += q.pdf(middle) * (q.logpdf(middle) - p.logpdf(middle)) * 4 / n
    ours = [Normal(*double([d.mean(), d.std()])).log_prob for d in (q, p)]
    agree(kl_riemann(*ours, -1, 3, n), double(total))


def test_there_are_a_thousand_cells_unless_told():
    densities = Laplace(0.3, 0.5).log_prob, STANDARD.log_prob
    assert kl_riemann(*densities, -9, 9) == kl_riemann(*densities, -9, 9, n=1000)


@pytest.mark.parametrize(
    ("lower", "upper", "n"),
    [
        (1, 1, 10),
        (2, 1, 10),
        (0, math.inf, 10),
        (-math.inf, 0, 10),
        (math.nan, 1, 10),
        (0, math.nan, 10),
    ],
)
def test_an_empty_or_infinite_range_has_no_cells(lower, upper, n):
    with refused(f"lower and upper: expected finite lower < upper, got {lower}, {upper}"):
        kl_riemann(STANDARD.log_prob, STANDARD.log_prob, lower, upper, n)
    with refused("n: expected a whole number of at least 1, got 0"):
        kl_riemann(STANDARD.log_prob, STANDARD.log_prob, 0, 1, 0)


@pytest.mark.parametrize(("lower", "upper"), [(1, 1), (12, -12), (math.nan, 1), (0, math.nan)])
def test_quadrature_refuses_an_empty_range(lower, upper):
    with refused(f"lower and upper: expected lower < upper, got {lower} and {upper}"):
        kl_quadrature(STANDARD.log_prob, STANDARD.log_prob, lower, upper)


def far_left(z):
    """NaN for a few points alone."""
    return torch.where(z < -5.9, math.nan, STANDARD.log_prob(z))


DIVERGENCES = [
    partial(kl_riemann, lower=-6, upper=6),
    partial(kl_quadrature, lower=-6, upper=6),
    partial(kl_monte_carlo, z=torch.linspace(-6, 6, 50)),
]


@pytest.mark.parametrize("divergence", [DIVERGENCES[0], DIVERGENCES[2]])
def test_a_log_density_that_is_nan_somewhere_does_not_get_lost(divergence):
    found = divergence(STANDARD.log_prob, far_left)
    assert torch.as_tensor(found[0] if isinstance(found, tuple) else found).isnan()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_log_density_gives_one_number_for_each_point(divergence):
    def column(z):
        return STANDARD.log_prob(z).unsqueeze(-1)

    with refused("log_q: expected one number for each point, shape "):
        divergence(column, STANDARD.log_prob)
    with refused("log_p: expected one number for each point, shape "):
        divergence(STANDARD.log_prob, column)


def test_a_constant_is_not_taken_for_a_log_density():
    # Summed over cells, it would count once.
    with refused("log_q: expected one number for each point, shape (1000,), got ()"):
        kl_riemann(lambda z: 0.0, lambda z: -math.log(2), 0, 1)


@pytest.mark.equation(
    "eq-kl-monte-carlo", route="closed forms of torch.distributions", standard_errors=4
)
@pytest.mark.parametrize(("q", "p", "lower", "upper"), PAIRS, ids=names)
def test_an_average_over_draws_agrees_with_torch_distributions(agree, q, p, lower, upper):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z = q.sample((4000,))
    estimate = kl_monte_carlo(q.log_prob, p.log_prob, z)
    agree(estimate, kl_divergence(q, p))
    assert estimate.standard_error < 0.05


@pytest.mark.equation("eq-kl-monte-carlo", route="spread over 400 repeats", rel=0.1)
def test_the_standard_error_of_the_average_is_honest(agree):
    q, p = Normal(*double([0.5, 0.8])), Normal(*double([0.0, 1.2]))
    draw = seeded(0)
    scores = []
    for _ in range(400):
        z = 0.5 + 0.8 * torch.randn(200, dtype=torch.float64, generator=draw)
        estimate = kl_monte_carlo(q.log_prob, p.log_prob, z)
        scores.append((estimate.value - kl_divergence(q, p)) / estimate.standard_error)
    agree(torch.stack(scores).square().mean().sqrt(), double(1))


def test_draws_from_the_other_distribution_estimate_the_other_divergence():
    q, p = Normal(*double([0.5, 0.8])), Normal(*double([0.0, 1.2]))
    z = 1.2 * torch.randn(4000, dtype=torch.float64, generator=seeded(0))
    value, error = kl_monte_carlo(q.log_prob, p.log_prob, z)
    assert abs(value + kl_divergence(p, q)) < 4 * error


def test_a_draw_that_p_rules_out_makes_the_average_infinite_and_one_that_q_rules_out_is_refused():
    def uniform(z):
        return torch.where(z.abs() < 1, -math.log(2), -math.inf)

    estimate = kl_monte_carlo(STANDARD.log_prob, uniform, double([0.5, -0.3, 2.0]))
    assert estimate.value == math.inf
    assert estimate.standard_error == math.inf
    assert kl_monte_carlo(STANDARD.log_prob, uniform, double([0.5, -0.3])).value.isfinite()
    for p in (STANDARD.log_prob, uniform):
        with refused("z: expected draws from q, got one that q rules out"):
            kl_monte_carlo(uniform, p, double([0.5, -0.3, 2.0]))


def test_too_few_draws_are_refused():
    for z in (torch.zeros(1), torch.zeros(0, 3)):
        with refused(f"z: expected shape (n, ...) with n >= 2, got {tuple(z.shape)}"):
            kl_monte_carlo(STANDARD.log_prob, STANDARD.log_prob, z)


@pytest.mark.equation("eq-gaussian-kl-univariate", route="scipy.integrate.quad", rel=1e-9)
@pytest.mark.parametrize(
    "parameters",
    [(0.7, -1.2, 0.0, 0.0), (-2.0, 0.5, 1.0, 1.5), (0.1, 0.0, 0.1, -0.7), (3.0, -9.0, 0.5, 6.0)],
)
def test_the_divergence_of_two_gaussians_is_the_integral(agree, parameters):
    agree(gaussian_kl(*columns([parameters])), double(integral(*parameters)))


@pytest.mark.equation("eq-gaussian-kl-univariate", route="scipy.integrate.quad", rel=1e-9)
def test_the_divergence_of_each_unit_is_its_own_integral(agree):
    units = [(0.7, -1.2, 0.0, 0.0), (-2.0, 0.5, 1.0, 1.5), (0.1, 0.0, 0.1, -0.7)]
    expected = [integral(*unit) for unit in units]
    agree(gaussian_unit_kl(*columns(units)), double(expected))
    mu, log_var, *_ = columns(units)
    agree(gaussian_unit_kl(mu[:1], log_var[:1]), double(expected[:1]))  # the prior is N(0, I)


@repeatable
@given(rows)
def test_the_divergence_of_each_unit_agrees_with_torch_distributions(rows):
    mu, log_var, prior_mu, prior_log_var = columns(rows)
    q, p = Normal(mu, log_var.exp().sqrt()), Normal(prior_mu, prior_log_var.exp().sqrt())
    units = gaussian_unit_kl(mu, log_var, prior_mu, prior_log_var)
    torch.testing.assert_close(units, kl_divergence(q, p), rtol=1e-12, atol=1e-12)
    total = gaussian_kl(mu, log_var, prior_mu, prior_log_var)
    torch.testing.assert_close(units.sum(), total, rtol=1e-12, atol=0)


@pytest.mark.equation("eq-gaussian-kl-diagonal", route="scipy.integrate.quad", rel=1e-9)
def test_each_dimension_adds_the_integral_of_its_log_ratio(agree):
    dimensions = [(0.7, -1.2, 0.0, 0.0), (-2.0, 0.5, 1.0, 1.5), (0.1, 0.0, 0.1, -0.7)]
    expected = sum(integral(*dimension) for dimension in dimensions)
    agree(gaussian_kl(*columns(dimensions)), double(expected))


@pytest.mark.equation("eq-gaussian-kl-diagonal", route="torch.distributions", rel=1e-12, abs=1e-12)
@repeatable
@given(rows)
def test_agrees_with_torch_distributions(agree, rows):
    agree(gaussian_kl(*columns(rows)), torchs_own(*columns(rows)))


@pytest.mark.equation("eq-gaussian-kl", route="torch.distributions", rel=1e-12)
def test_the_prior_is_standard_normal_unless_it_is_given(agree):
    mu, log_var = double([[0.5, -1.0], [2.0, 0.0]]), double([[0.3, -2.0], [0.0, 1.0]])
    zero = torch.zeros(2, 2)
    agree(gaussian_kl(mu, log_var), torchs_own(mu, log_var, zero, zero))


@pytest.mark.equation("eq-gaussian-kl", route="draws and torch.distributions", standard_errors=4)
def test_the_divergence_from_the_standard_prior_is_an_average_over_draws(agree):
    mu, log_var = double([0.5, -1.0, 2.0]), double([0.3, -2.0, 1.0])
    q, p = MultivariateNormal(mu, log_var.exp().diag()), MultivariateNormal(0 * mu, torch.eye(3))
    eps = torch.randn(4000, 3, dtype=torch.float64, generator=seeded(0))
    z = mu + (log_var / 2).exp() * eps
    agree(kl_monte_carlo(q.log_prob, p.log_prob, z), gaussian_kl(mu, log_var))


@repeatable
@given(rows, rows)
def test_independent_numbers_add_up(rows, others):
    both, one, other = (gaussian_kl(*columns(part)) for part in (rows + others, rows, others))
    torch.testing.assert_close(both, one + other, rtol=1e-12, atol=1e-12)


@repeatable
@given(rows)
def test_is_never_negative_and_zero_at_equality(rows):
    mu, log_var, *prior = columns(rows)
    assert gaussian_kl(mu, log_var, *prior) >= 0
    assert gaussian_kl(mu, log_var, mu, log_var) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_zero_only_at_equality(dtype):
    # In nats, a mean that is off by s standard deviations costs s^2 / 2, a log-variance r^2 / 4.
    small = torch.logspace(-12, 0, 25, dtype=dtype).unsqueeze(-1)
    zero = torch.zeros_like(small)
    assert (gaussian_kl(small, zero) >= 0.49 * small.square().squeeze()).all()
    apart = small[small.squeeze() > 100 * torch.finfo(dtype).eps]
    for sign in (1, -1):
        kl = gaussian_kl(torch.zeros_like(apart), sign * apart)
        assert (kl >= 0.15 * apart.square().squeeze()).all()
        assert (gaussian_kl(zero, sign * small) >= 0).all()


@repeatable
@given(rows, floats(-5, 5), floats(0.1, 10), st.booleans())
def test_does_not_change_when_both_are_shifted_and_scaled(rows, shift, scale, mirrored):
    mu, log_var, prior_mu, prior_log_var = columns(rows)
    factor, widened = (-scale if mirrored else scale), 2 * math.log(scale)
    moved = gaussian_kl(
        factor * mu + shift, log_var + widened, factor * prior_mu + shift, prior_log_var + widened
    )
    torch.testing.assert_close(
        moved, gaussian_kl(mu, log_var, prior_mu, prior_log_var), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 1), (4, 3), (5, 1, 3)])
def test_the_prior_broadcasts(shape):
    draw = torch.Generator().manual_seed(0)
    mu, log_var = torch.randn(2, 4, 3, generator=draw)
    prior_mu, prior_log_var = torch.randn(2, *shape, generator=draw)
    full = torch.broadcast_shapes(shape, (4, 3))
    expected = torchs_own(*(x.expand(full) for x in (mu, log_var, prior_mu, prior_log_var)))
    torch.testing.assert_close(gaussian_kl(mu, log_var, prior_mu, prior_log_var), expected)


@repeatable
@given(floats(-1e4, 1e4, width=32), floats(-40, 40, width=32))
def test_single_precision_stays_within_a_few_roundings_of_double(mu, log_var):
    # The terms are mu^2, exp(log_var) - 1 and log_var; each may be off by a rounding or two.
    single = gaussian_kl(torch.tensor([mu]), torch.tensor([log_var])).item()
    double = gaussian_kl(*torch.tensor([[mu], [log_var]], dtype=torch.float64)).item()
    size = mu**2 + abs(math.expm1(log_var)) + abs(log_var)
    tiny = torch.finfo(torch.float32).tiny
    assert math.isfinite(single)
    assert abs(single - double) <= 2 * torch.finfo(torch.float32).eps * size + tiny


def test_keeps_its_digits_where_the_gaussians_almost_agree():
    # exp(r) - 1 - r = r^2 / 2 + r^3 / 6 + ...: without expm1, single precision would leave nothing.
    log_var = torch.tensor([1e-3, -1e-3])
    expected = (log_var.double() ** 2 / 4 + log_var.double() ** 3 / 12).sum().float()
    torch.testing.assert_close(gaussian_kl(torch.zeros(2), log_var), expected, rtol=1e-4, atol=0)


@pytest.mark.equation(
    "eq-gaussian-kl-gradient", route="differentiation by hand", rel=1e-10, abs=1e-10
)
@repeatable
@given(rows)
def test_gradients_are_those_of_the_closed_form(agree, rows):
    inputs = [column.requires_grad_() for column in columns(rows)]
    gradients = torch.autograd.grad(gaussian_kl(*inputs), inputs)
    mu, log_var, prior_mu, prior_log_var = (column.detach() for column in inputs)
    prior_var = prior_log_var.exp()
    ratio, distance = log_var.exp() / prior_var, mu - prior_mu
    expected = [
        distance / prior_var,
        (ratio - 1) / 2,
        -distance / prior_var,
        (1 - ratio - distance**2 / prior_var) / 2,
    ]
    agree(torch.stack(gradients), torch.stack(expected))


@pytest.mark.equation("eq-gaussian-kl-gradient", route="central differences", rel=1e-7, abs=1e-8)
def test_gradients_agree_with_finite_differences(agree):
    inputs = torch.randn(4, 2, 3, dtype=torch.float64, generator=seeded(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(gaussian_kl(*inputs).sum(), inputs)
    for index in np.ndindex(*inputs.shape):
        step = torch.zeros_like(inputs)
        step[index] = 1e-5
        up, down = (gaussian_kl(*(inputs + side * step)).sum() for side in (1, -1))
        agree(gradient[index], (up - down) / 2e-5)
    assert torch.autograd.gradcheck(gaussian_kl, inputs.unbind())


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        (((4, 3), (4, 2)), "mu and log_var"),
        (((4, 3), (3,)), "mu and log_var"),
        (((4, 3), (4, 3), (4,)), "prior_mu"),
        (((4, 1), (4, 1), (3,)), "prior_mu"),  # would broadcast, and count one dimension thrice
        (((4, 3), (4, 3), (), (2,)), "prior_log_var"),
    ],
)
def test_shapes_that_do_not_match_are_refused(shapes, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        gaussian_kl(*map(torch.zeros, shapes))


@pytest.mark.parametrize("position", range(4))
def test_a_nan_that_goes_in_comes_out(position):
    inputs = [torch.zeros(2, 3) for _ in range(4)]
    inputs[position][1, 2] = math.nan
    assert gaussian_kl(*inputs).isnan().tolist() == [False, True]


def gaussians(d, seed=0):
    """Means and covariances of two Gaussians that are correlated, and not alike."""
    draw = partial(torch.randn, dtype=torch.float64, generator=seeded(seed))
    (mu0, mu1), (A, B) = draw(2, d), draw(2, d, 2 * d)
    return mu0, A @ A.mT / d, mu1, B @ B.mT / d


@pytest.mark.equation("eq-gaussian-kl-full", route="torch.distributions", rel=1e-10)
@pytest.mark.parametrize("d", [1, 2, 5, 20])
def test_the_full_divergence_agrees_with_torch_distributions(agree, d):
    mu0, cov0, mu1, cov1 = gaussians(d)
    q, p = MultivariateNormal(mu0, cov0), MultivariateNormal(mu1, cov1)
    agree(gaussian_kl_full(mu0, cov0, mu1, cov1), kl_divergence(q, p))
    agree(gaussian_kl_full(mu1, cov1, mu0, cov0), kl_divergence(p, q))


@pytest.mark.equation(
    "eq-gaussian-kl-full", route="20,000 draws scored by scipy", standard_errors=4
)
def test_the_full_divergence_is_an_average_over_draws(agree):
    d = 20
    mu0, cov0, mu1, cov1 = gaussians(d)
    q, p = (multivariate_normal(mu.numpy(), cov.numpy()) for mu, cov in ((mu0, cov0), (mu1, cov1)))
    z = torch.from_numpy(q.rvs(20_000, random_state=0))
    estimate = kl_monte_carlo(
        lambda z: torch.from_numpy(q.logpdf(z.numpy())),
        lambda z: torch.from_numpy(p.logpdf(z.numpy())),
        z,
    )
    agree(estimate, gaussian_kl_full(mu0, cov0, mu1, cov1))


@pytest.mark.equation("eq-gaussian-kl-full", route="scipy's entropy and log density", rel=1e-10)
def test_the_full_divergence_is_cross_entropy_less_entropy(agree):
    mu0, cov0, mu1, cov1 = gaussians(4)
    p = multivariate_normal(mu1.numpy(), cov1.numpy())
    # E_q[log p] is log p at the mean of q, less half the trace of cov1^-1 cov0.
    trace = np.trace(np.linalg.inv(cov1.numpy()) @ cov0.numpy())
    cross = -p.logpdf(mu0.numpy()) + trace / 2
    entropy = multivariate_normal(mu0.numpy(), cov0.numpy()).entropy()
    agree(gaussian_kl_full(mu0, cov0, mu1, cov1), cross - entropy)


@pytest.mark.equation(
    "eq-gaussian-kl-full", route="gaussian_kl, where covariances are diagonal", rel=1e-10, abs=1e-12
)
@repeatable
@given(rows)
def test_diagonal_covariances_give_the_diagonal_divergence(agree, rows):
    mu0, log_var0, mu1, log_var1 = columns(rows)
    full = gaussian_kl_full(mu0, log_var0.exp().diag(), mu1, log_var1.exp().diag())
    agree(full, gaussian_kl(mu0, log_var0, mu1, log_var1))


@repeatable
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_the_full_divergence_is_positive_and_zero_at_equality(d, seed):
    mu0, cov0, mu1, cov1 = gaussians(d, seed)
    assert gaussian_kl_full(mu0, cov0, mu1, cov1) > 0
    assert gaussian_kl_full(mu0, cov0, mu0, cov0).item() == pytest.approx(0, abs=1e-12)
    assert gaussian_kl_full(mu0, cov0, mu1, cov0) > 1e-9
    assert gaussian_kl_full(mu0, cov0, mu0, cov1) > 1e-9


@repeatable
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_the_full_divergence_does_not_change_under_an_invertible_map(d, seed):
    mu0, cov0, mu1, cov1 = gaussians(d, seed)
    A = torch.randn(d, d, dtype=torch.float64, generator=seeded(seed, 1))
    A = A + 3 * torch.eye(d)
    assume(torch.linalg.cond(A) < 100)
    shift = torch.arange(d).double()
    moved = (A @ mu0 + shift, A @ cov0 @ A.mT, A @ mu1 + shift, A @ cov1 @ A.mT)
    expected = gaussian_kl_full(mu0, cov0, mu1, cov1)
    torch.testing.assert_close(gaussian_kl_full(*moved), expected, rtol=1e-7, atol=0)


def test_independent_blocks_add_up():
    one, other = gaussians(2), gaussians(3, seed=1)
    both = [
        torch.cat(parts) if parts[0].ndim == 1 else torch.block_diag(*parts)
        for parts in zip(one, other, strict=True)
    ]
    expected = gaussian_kl_full(*one) + gaussian_kl_full(*other)
    torch.testing.assert_close(gaussian_kl_full(*both), expected, rtol=1e-12, atol=0)


@pytest.mark.equation("eq-gaussian-kl-full", route="closed form for c cov against cov", rel=1e-7)
@pytest.mark.parametrize("c", [0.5, 2.0, 50.0])
def test_the_full_divergence_bears_ill_conditioned_covariances(agree, c):
    n = torch.arange(1.0, 9.0, dtype=torch.float64)
    hilbert = 1 / (n[:, None] + n - 1)  # its condition number is 1.5e10
    scales = torch.logspace(-8, 8, 8, dtype=torch.float64)
    for cov in (hilbert, scales[:, None] * (torch.eye(8) + 0.5) * scales):
        # All eigenvalues of cov^-1 (c cov) are c, however cov is conditioned.
        expected = double(8 / 2 * (c - 1 - math.log(c)))
        agree(gaussian_kl_full(0 * n, c * cov, 0 * n, cov), expected)
        step = (
            cov[0] / cov[0, 0].sqrt()
        )  # cov^-1 step is e_0 / sqrt(cov_00): one standard deviation
        agree(gaussian_kl_full(step, c * cov, 0 * n, cov), expected + 0.5)


def test_the_full_divergence_in_single_precision_keeps_four_digits():
    inputs = gaussians(5)
    single = gaussian_kl_full(*(x.float() for x in inputs))
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(gaussian_kl_full(*inputs).item(), rel=1e-4)


@pytest.mark.parametrize(
    "shapes",
    [
        ((), (), (), ()),
        ((4,), (), (), ()),
        ((), (4,), (), ()),
        ((), (), (4,), ()),
        ((), (), (), (4,)),
        ((4, 1), (3,), (1,), (4, 1)),
        ((5, 1, 1), (4, 1), (), (3,)),
    ],
)
def test_leading_axes_of_the_full_divergence_broadcast(shapes):
    sources = [gaussians(2, seed) for seed in range(60)]
    inputs = []
    for position, shape in enumerate(shapes):
        parts = torch.stack([sources[n][position] for n in range(math.prod(shape))])
        inputs.append(parts.reshape(*shape, *parts.shape[1:]))
    full = torch.broadcast_shapes(*shapes)
    kl = gaussian_kl_full(*inputs)
    assert kl.shape == full
    expanded = [x.expand(*full, *x.shape[len(s) :]) for x, s in zip(inputs, shapes, strict=True)]
    for index in np.ndindex(*full):
        one = gaussian_kl_full(*(x[index] for x in expanded))
        torch.testing.assert_close(kl[index], one)


def test_the_full_divergence_is_differentiable():
    mu0, cov0, mu1, cov1 = gaussians(3)
    inputs = [x.requires_grad_() for x in (mu0, torch.linalg.cholesky(cov0).detach(), mu1)]
    inputs.append(torch.linalg.cholesky(cov1).detach().requires_grad_())

    def by_factors(mu0, A, mu1, B):
        return gaussian_kl_full(mu0, A @ A.mT, mu1, B @ B.mT)

    assert torch.autograd.gradcheck(by_factors, inputs)


def eyes(shape):
    return torch.eye(shape[-1]).expand(shape) if len(shape) > 1 else torch.ones(shape)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2,), (2, 2), (3,), (3, 3)), "mu1: expected shape (..., 2), got (3,)"),
        (((2,), (3, 3), (2,), (2, 2)), "cov0: expected shape (..., 2, 2), got (3, 3)"),
        (((2,), (2, 2), (2,), (3, 3)), "cov1: expected shape (..., 2, 2), got (3, 3)"),
        (((2,), (2,), (2,), (2, 2)), "cov0: expected shape (..., 2, 2), got (2,)"),
    ],
)
def test_the_full_divergence_refuses_shapes_that_do_not_match(shapes, message):
    mu0, cov0, mu1, cov1 = shapes
    with refused(message):
        gaussian_kl_full(torch.zeros(mu0), eyes(cov0), torch.zeros(mu1), eyes(cov1))


@pytest.mark.parametrize("position", [1, 3])
def test_the_full_divergence_refuses_what_is_no_gaussian(position):
    name = ("mu0", "cov0", "mu1", "cov1")[position]
    inputs = list(gaussians(2))
    whole, inputs[position] = inputs[position], torch.full_like(inputs[position], math.nan)
    with refused(f"{name}: expected finite numbers"):
        gaussian_kl_full(*inputs)
    inputs[position] = -whole
    with refused(f"{name}: expected a positive definite matrix"):
        gaussian_kl_full(*inputs)
    inputs[position] = whole + double([[0.0, 1.0], [0.0, 0.0]])
    with refused(f"{name}: expected a symmetric matrix"):
        gaussian_kl_full(*inputs)


@pytest.mark.equation("eq-naive-regularizer", route="a loop over the numbers", rel=1e-12)
def test_the_naive_penalty_is_a_sum_of_squares(agree):
    mu, log_var = [[0.5, -1.0, 3.0], [0.0, 2.0, 1.0]], [[0.3, -2.0, 0.1], [5.0, 0.0, -1.5]]
    by_hand = [
        sum(m**2 for m in means) + sum(r**2 for r in logarithms)
        for means, logarithms in zip(mu, log_var, strict=True)
    ]
    agree(naive_regularizer(double(mu), double(log_var)), double(by_hand))


@pytest.mark.equation("eq-naive-regularizer", route="Taylor's theorem and gaussian_kl", abs=1e-12)
@repeatable
@given(st.lists(st.tuples(moderate, moderate), min_size=1, max_size=4))
def test_near_zero_the_divergence_is_half_and_a_quarter_of_the_naive_terms(agree, rows):
    mu, log_var = columns(rows)
    near = naive_regularizer(mu / math.sqrt(2), log_var / 2)
    # Half of e^r - 1 - r - r^2/2 remains, which is at most |r|^3/6 e^|r|.
    bound = (log_var.abs() ** 3 * log_var.abs().exp() / 12).sum().item()
    remainder = gaussian_kl(mu, log_var) - near
    agree(remainder.clamp(-bound, bound), remainder)


@pytest.mark.usefixtures("shapes_unchecked")
def test_the_naive_penalty_refuses_what_does_not_match():
    with refused("mu and log_var: expected the same shape, got (4, 3) and (3,)"):
        naive_regularizer(torch.zeros(4, 3), torch.zeros(3))
