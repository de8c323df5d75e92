"""The linear-Gaussian model, in which everything has a closed form (chapters 1, 3, 4 and 6).

It is the VAE with a linear decoder: the ground truth beside which every estimate of the book is
measured before it meets images.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vae_book.checks import (
    as_floats,
    cholesky,
    enough_draws,
    last_axis,
    numeric,
    real_tensor,
    same_shape,
    whole_number,
)
from vae_book.device import standard_normal
from vae_book.distributions import FullGaussian
from vae_book.divergences import gaussian_kl, gaussian_kl_full


class LinearGaussian:
    r"""The model z ~ N(0, I), x | z ~ N(W z + b, sigma^2 I), in which everything is exact.

    It is a VAE with a linear decoder, also known as probabilistic PCA (Tipping and Bishop, 1999).
    All is computed in float64, in nats, and differentiable with respect to each argument.

    Args:
        W: the decoder's matrix, shape (D, d).
        b: its bias, shape (D,).
        sigma: the standard deviation of the noise, a positive number.

    Raises:
        ValueError: the shapes do not match, or sigma is not positive.
    """

    def __init__(
        self,
        W: Float[Tensor, "D d"],
        b: Float[Tensor, " D"],
        sigma: float | int | Float[Tensor, ""],
    ):
        self.W = real_tensor("W", W, torch.float64)
        self.b = real_tensor("b", b, torch.float64, self.W.device)
        self.sigma = real_tensor("sigma", sigma, torch.float64, self.W.device)
        if self.W.ndim != 2 or self.W.numel() == 0:
            raise ValueError(f"W: expected shape (D, d), got {tuple(self.W.shape)}")
        if self.b.shape != self.W.shape[:1]:
            raise ValueError(
                f"b: expected shape ({len(self.W)},) to fit W, got {tuple(self.b.shape)}"
            )
        if self.sigma.ndim or not 0 < self.sigma.item() < math.inf:
            raise ValueError(f"sigma: expected a positive number, got {sigma}")

    @property
    def latent(self) -> int:
        """The size d of z."""
        return self.W.shape[1]

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n D"]]:
        """Draws of z, and of the x that they cause."""
        n, (D, d) = whole_number("n", n, least=0), self.W.shape
        noise = standard_normal((n, d + D), generator, self.W.device).double()
        z, noise = noise.split([d, D], dim=-1)
        return z, z @ self.W.T + self.b + self.sigma * noise

    @numeric
    def log_likelihood(
        self, x: Float[Tensor, "*x D"], z: Float[Tensor, "*z d"]
    ) -> Float[Tensor, "..."]:
        """log p(x | z); the leading axes of x and z broadcast."""
        x, z = self._observed(x), self._latent("z", z)
        squares = ((x - z @ self.W.T - self.b) / self.sigma).square().sum(-1)
        log_var = 2 * self.sigma.log()  # sigma squared may be too small for a float
        return -0.5 * (squares + self.W.shape[0] * (math.log(2 * math.pi) + log_var))

    @numeric
    def log_evidence(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """log p(x), where p(x) = N(b, W W^T + sigma^2 I).

        Equation ``eq-linear-gaussian-evidence`` (chapter 1); Tipping and Bishop (1999), section 3.
        Its gradient in W, b or sigma is that of log p(x, z), averaged over the posterior,
        ``eq-evidence-gradient`` (chapter 3).
        """
        x = self._observed(x)
        D = self.W.shape[0]
        cov = self.W @ self.W.T + self.sigma.square() * torch.eye(D).to(self.W)
        factor = cholesky("W and sigma", cov, D)
        whitened = torch.linalg.solve_triangular(factor, (x - self.b).unsqueeze(-1), upper=False)
        log_det = 2 * factor.diagonal().log().sum()
        return -0.5 * (whitened.square().sum((-2, -1)) + log_det + D * math.log(2 * math.pi))

    @numeric
    def posterior(self, x: Float[Tensor, "*batch D"]) -> FullGaussian:
        """p(z | x), whose covariance is the same for all x.

        Equation ``eq-linear-gaussian-posterior`` (chapter 1); Tipping and Bishop (1999), section 3.
        Averaged over the x of the model it is the prior, ``eq-aggregated`` (chapter 3).
        """
        x = self._observed(x)
        factor = cholesky("W and sigma", self._precision(), self.latent)
        cov = torch.cholesky_inverse(factor)
        return FullGaussian((x - self.b) @ self.W @ cov / self.sigma.square(), cov)

    @numeric
    def elbo(
        self,
        x: Float[Tensor, "*x D"],
        mu: Float[Tensor, "*q d"],
        log_var: Float[Tensor, "*q d"],
    ) -> Float[Tensor, "..."]:
        """The bound on log p(x) for q(z) = N(mu, diag exp(log_var)), without sampling.

        Equations ``eq-elbo-kl``, ``eq-elbo-entropy`` and ``eq-linear-gaussian-elbo`` (chapter 3).
        Leading axes of x and q broadcast.

        Raises:
            ValueError: the shapes do not fit the model or each other.
        """
        same_shape(mu=mu, log_var=log_var)
        x, mu, log_var = self._observed(x), self._latent("mu", mu), self._latent("log_var", log_var)
        spread = (self.W.square().sum(0) * log_var.exp()).sum(-1)
        return self._reconstruction(x, mu, spread) - gaussian_kl(mu, log_var)

    @numeric
    def elbo_full(
        self,
        x: Float[Tensor, "*x D"],
        mu: Float[Tensor, "*q d"],
        cov: Float[Tensor, "*p d d"],
    ) -> Float[Tensor, "..."]:
        """The bound on log p(x) for q(z) = N(mu, cov), without sampling; see `elbo`.

        Raises:
            ValueError: the shapes do not fit, or cov is not positive definite.
        """
        x, mu, cov = self._observed(x), self._latent("mu", mu), cov.to(self.W)
        cholesky("cov", cov, self.latent)
        prior = torch.zeros(self.latent).to(self.W), torch.eye(self.latent).to(self.W)
        kl = gaussian_kl_full(mu, cov, *prior)
        spread = ((self.W.T @ self.W) * cov).sum((-2, -1))
        return self._reconstruction(x, mu, spread) - kl

    @numeric
    def elbo_gradient(
        self,
        x: Float[Tensor, "*x D"],
        mu: Float[Tensor, "*q d"],
        log_var: Float[Tensor, "*q d"],
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """The derivatives of `elbo` with respect to mu and log_var, in closed form.

        Equation ``eq-linear-gaussian-gradient`` (chapter 3).

        Raises:
            ValueError: as `elbo`.
        """
        same_shape(mu=mu, log_var=log_var)
        x, mu, log_var = self._observed(x), self._latent("mu", mu), self._latent("log_var", log_var)
        residual = x - mu @ self.W.T - self.b
        by_mu = residual @ self.W / self.sigma.square() - mu
        by_log_var = 0.5 * (1 - log_var.exp() * self._precision().diagonal())
        return by_mu, by_log_var.expand_as(by_mu)

    @numeric
    def mean_field(
        self, x: Float[Tensor, "*batch D"]
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
        """The mu and log_var that make `elbo` largest.

        Equation ``eq-mean-field`` (chapter 3); Bishop (2006), section 10.1.2. The mean is the
        posterior's. The variance of each latent dimension is the posterior's for all others known,
        which is never larger than the posterior's own, and smaller if they are correlated.
        """
        mu = self.posterior(x).mu
        return mu, -self._precision().diagonal().log().expand_as(mu)

    def _reconstruction(self, x: Tensor, mu: Tensor, spread: Tensor) -> Tensor:
        """E_q[log p(x | z)]: the likelihood at the mean, less what the spread of q costs."""
        return self.log_likelihood(x, mu) - 0.5 * spread / self.sigma.square()

    def _precision(self) -> Tensor:
        """The inverse of the posterior's covariance."""
        return torch.eye(self.latent).to(self.W) + self.W.T @ self.W / self.sigma.square()

    def _observed(self, x: Tensor) -> Tensor:
        return self._fitting("x", x, self.W.shape[0])

    def _latent(self, name: str, z: Tensor) -> Tensor:
        return self._fitting(name, z, self.latent)

    def _fitting(self, name: str, value: Tensor, size: int) -> Tensor:
        value = torch.as_tensor(value).to(self.W)
        last_axis(size, **{name: value})
        return value


@numeric
def linear_joint(
    prior: FullGaussian,
    A: Float[Tensor, "m k"],
    c: Float[Tensor, " m"],
    noise: Float[Tensor, "m m"],
) -> FullGaussian:
    """The joint Gaussian of y1 ~ prior and y2 | y1 ~ N(A y1 + c, noise), with y1 before y2.

    Equations ``eq-linear-joint`` and ``eq-elbo-joint`` (chapter 4). With y1 = z, y2 = x it is
    a linear-Gaussian model; with y1 = x, y2 = z it is data with a linear encoder.

    Args:
        prior: the Gaussian of y1, of size k.
        A, c: the mean of y2 as a function of y1, shapes (m, k) and (m,).
        noise: the covariance of y2 given y1, shape (m, m).

    Raises:
        ValueError: the shapes do not match, or a covariance is not positive definite.
    """
    mu, cov, A, c, noise = as_floats(mu=prior.mu, cov=prior.cov, A=A, c=c, noise=noise)
    if c.ndim != 1:
        raise ValueError(f"c: expected shape (m,), got {tuple(c.shape)}")
    k, m = mu.shape[-1], len(c)
    if A.shape != (m, k):
        raise ValueError(f"A: expected shape ({m}, {k}) to fit c and prior, got {tuple(A.shape)}")
    cholesky("prior", cov, k)
    cholesky("noise", noise, m)
    across = A @ cov
    upper = torch.cat([cov, across.mT], -1)
    lower = torch.cat([across, across @ A.mT + noise], -1)
    return FullGaussian(torch.cat([mu, mu @ A.mT + c], -1), torch.cat([upper, lower], -2))


@numeric
def ppca(x: Float[Tensor, "n D"], latent: int, sigma: float) -> LinearGaussian:
    r"""The linear-Gaussian model under which data are most probable, for a given sigma.

    Probabilistic principal component analysis. Equations ``eq-ppca`` and ``eq-ppca-rate``
    (chapter 6); Tipping and Bishop (1999), equation 7. Its latent variables are the directions
    in which the data vary most, and only those whose variance exceeds sigma squared.

    Args:
        x: n data points of D numbers.
        latent: the size d of z, at most D.
        sigma: the standard deviation of the noise.

    Raises:
        ValueError: there are fewer than two data points, or latent or sigma is out of range.
    """
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (n, D), got {tuple(x.shape)}")
    enough_draws(x=x)
    if not 1 <= (latent := whole_number("latent", latent, least=0)) <= x.shape[1]:
        raise ValueError(f"latent: expected 1 to {x.shape[1]}, the size of x, got {latent}")
    covariance = torch.cov(x.T, correction=0).reshape(x.shape[1], x.shape[1])
    variances, directions = torch.linalg.eigh(covariance)
    variances, directions = variances.flip(0)[:latent], directions.flip(1)[:, :latent]
    explained = (variances - sigma**2).clamp(min=0)
    return LinearGaussian(directions * explained.sqrt(), x.mean(0), sigma)
