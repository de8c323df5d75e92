"""Break the package on purpose, one way at a time, and show that the tests notice.

    python tools/mutants.py                 every mutant
    python tools/mutants.py KL precision    those with one of these words in their names

Each mutant is a copy of the repository with one line changed. It has to fail the unit tests of the
module that it changes, and again the chapter whose formula it breaks. To add one, name the chapter
and the mutant, then the module, the text to replace (it stands there once) and what replaces it.
`make mutants` runs all; it takes half an hour to an hour and changes nothing here.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MUTANTS = {
    ("01", "joint in place of posterior"): (
        "bayes.py",
        "Posterior(log_joint - log_evidence.unsqueeze(-1),",
        "Posterior(log_joint,",
    ),
    ("01", "sigma for sigma^2 in the evidence"): (
        "linear_gaussian.py",
        "self.sigma.square() * torch.eye(D)",
        "self.sigma * torch.eye(D)",
    ),
    ("01", "half the log-determinant"): (
        "linear_gaussian.py",
        "2 * factor.diagonal()",
        "factor.diagonal()",
    ),
    ("01", "precision for covariance"): (
        "linear_gaussian.py",
        "torch.cholesky_inverse(factor)",
        "self._precision()",
    ),
    ("01", "average of logs for log of average"): (
        "monte_carlo.py",
        "mean.log() + largest",
        "log_weights.mean(0)",
    ),
    ("01", "sample size from unsquared sum"): (
        "monte_carlo.py",
        "weights.sum(0).square() / squares",
        "weights.sum(0) / squares",
    ),
    ("02", "KL arguments swapped"): (
        "divergences.py",
        'log_q: Float[Tensor, "... k"], log_p: Float[Tensor, "*prior k"]',
        'log_p: Float[Tensor, "... k"], log_q: Float[Tensor, "*prior k"]',
    ),
    ("02", "cells counted at their left ends"): ("divergences.py", "float64) + 0.5)", "float64))"),
    ("02", "log ratio without weight q"): (
        "divergences.py",
        "return density * torch",
        "return torch",
    ),
    ("02", "standard error without sqrt(n)"): (
        "monte_carlo.py",
        "draws.std(0) / math.sqrt(len(draws))",
        "draws.std(0)",
    ),
    ("03", "bound without the spread of q"): (
        "linear_gaussian.py",
        " - 0.5 * spread / self.sigma.square()",
        "",
    ),
    ("03", "gradient away from the prior"): (
        "linear_gaussian.py",
        "self.sigma.square() - mu",
        "self.sigma.square() + mu",
    ),
    ("03", "mean field with the posterior's variances"): (
        "linear_gaussian.py",
        "-self._precision().diagonal().log()",
        "self.posterior(x).cov.diagonal().log()",
    ),
    ("04", "joint without noise"): ("linear_gaussian.py", "across @ A.mT + noise", "across @ A.mT"),
    ("04", "mean of log weights for log of mean"): (
        "bounds.py",
        "log_weights.logsumexp(0) - math.log(len(log_weights))",
        "log_weights.mean(0)",
    ),
    ("04", "sum of weights, not over K"): ("bounds.py", " - math.log(len(log_weights))", ""),
    ("05", "KL halved"): ("divergences.py", "return 0.5 * (squared", "return 0.25 * (squared"),
    ("05", "prior's variance inverted"): (
        "divergences.py",
        "torch.exp(-prior_log_var)",
        "torch.exp(prior_log_var)",
    ),
    ("05", "KL without log-determinant"): (
        "divergences.py",
        "torch.expm1(log_squares) - log_squares",
        "torch.expm1(log_squares)",
    ),
    ("05", "KL without part of the trace"): ("divergences.py", "off_diagonal + (", "("),
    ("05", "naive regularizer not squared"): (
        "divergences.py",
        "mu.square() + log_var.square()",
        "mu + log_var",
    ),
    ("06", "cross-entropy not divided by its integral"): (
        "likelihoods.py",
        "(_cross_entropy(x, params) + log_cross_entropy_integral(params))",
        "_cross_entropy(x, params)",
    ),
    ("06", "multiplied by the integral, not divided"): (
        "likelihoods.py",
        " + log_cross_entropy_integral(params)",
        " - log_cross_entropy_integral(params)",
    ),
    ("06", "sigmoid for the continuous mean"): (
        "likelihoods.py",
        "torch.where(near, series, torch.where(params > 0, direct, 1 - direct))",
        "torch.sigmoid(params)",
    ),
    ("06", "Gaussian without log 2 pi"): ("likelihoods.py", " + log_var + LOG_2PI", " + log_var"),
    ("06", "Gaussian without the half"): ("likelihoods.py", "-0.5 * (squares", "-1.0 * (squares"),
    ("06", "sigma as the variance"): (
        "likelihoods.py",
        "log_unit = 2 * math.log(",
        "log_unit = math.log(",
    ),
    ("06", "no floor under the variance"): (
        "likelihoods.py",
        "torch.logaddexp(log_unit + raw, floor)",
        "log_unit + raw",
    ),
    ("06", "sum of squares for the optimal variance"): (
        "likelihoods.py",
        "(x - mean).square().mean()",
        "(x - mean).square().sum()",
    ),
    ("06", "nats called bits"): (
        "likelihoods.py",
        "(dimensions * math.log(2))",
        "dimensions",
    ),
    ("06", "noise left in PCA's variances"): (
        "linear_gaussian.py",
        "(variances - sigma**2)",
        "variances",
    ),
    ("07", "sample cut from its parameters"): (
        "gradient_estimators.py",
        " z = reparameterize(mu, log_var, eps)",
        " z = reparameterize(mu, log_var, eps).detach()",
    ),
    ("07", "factor of the covariance transposed"): (
        "reparameterization.py",
        "(scale @ eps",
        "(scale.mT @ eps",
    ),
    ("07", "score of the log-variance halved"): (
        "gradient_estimators.py",
        "0.5 * (eps.square() - 1)",
        "0.25 * (eps.square() - 1)",
    ),
    ("07", "score of the mean not divided by sigma"): (
        "gradient_estimators.py",
        "eps * torch.exp(-0.5 * log_var)",
        "eps",
    ),
    ("07", "baseline with the draw itself"): (
        "gradient_estimators.py",
        "(values.sum(0) - values) / (len(values) - 1)",
        "values.mean(0)",
    ),
    ("07", "average of the others over n"): (
        "gradient_estimators.py",
        "(values.sum(0) - values) / (len(values) - 1)",
        "(values.sum(0) - values) / len(values)",
    ),
    ("07", "sixth moment of the noise"): (
        "gradient_estimators.py",
        "15 * b2.square()",
        "9 * b2.square()",
    ),
    ("07", "noise of the other directions left out"): (
        "gradient_estimators.py",
        " + rest_noise) / var",
        ") / var",
    ),
    ("07", "curvature not squared"): (
        "gradient_estimators.py",
        "GaussianGradient(self.a.square() * var,",
        "GaussianGradient(self.a * var,",
    ),
    ("07", "sum over draws"): ("bounds.py", "flatten(0, -2).mean(0)", "flatten(0, -2).sum(0)"),
    ("07", "one draw a step, whatever is asked"): (
        "training.py",
        "standard_normal((n_samples, len(data)",
        "standard_normal((1, len(data)",
    ),
    ("08", "KL dropped"): (
        "bounds.py",
        "Elbo(log_likelihood, gaussian_unit_kl(",
        "Elbo(log_likelihood, 0 * gaussian_unit_kl(",
    ),
    ("08", "KL sign reversed"): (
        "bounds.py",
        "self.log_likelihood - self.kl",
        "self.log_likelihood + self.kl",
    ),
    ("08", "exp(log_var) as standard deviation"): (
        "reparameterization.py",
        "torch.exp(0.5 * log_var) * eps",
        "torch.exp(log_var) * eps",
    ),
    ("08", "no noise"): ("reparameterization.py", "torch.exp(0.5 * log_var) * eps", "0 * eps"),
    ("08", "mean over pixels"): (
        "likelihoods.py",
        "return -_cross_entropy(x, params).sum(",
        "return -_cross_entropy(x, params).mean(",
    ),
    ("08", "gradient of the mean cut"): (
        "models.py",
        "reparameterize(mu, log_var, eps)), mu",
        "reparameterize(mu.detach(), log_var, eps)), mu",
    ),
    ("08", "prior samples too wide"): (
        "models.py",
        "z = standard_normal(",
        "z = 2 * standard_normal(",
    ),
    ("10", "warm-up from full weight"): (
        "objectives.py",
        "return self.beta * min(1.0, epoch / self.warm_up) if self.warm_up else self.beta",
        "return self.beta",
    ),
    ("10", "free nats for all units together"): (
        "objectives.py",
        "terms.unit_kl.clamp(min=self.free_nats).sum(-1)",
        "terms.unit_kl.sum(-1).clamp(min=self.free_nats)",
    ),
    ("10", "aggregated posterior without its widths"): (
        "evaluation.py",
        " + variance.diag()",
        "",
    ),
    ("10", "fault left switched on"): (
        "clinic.py",
        "        _replace(chosen, broken, intact)",
        "        pass",
    ),
}


def main(words: list[str]) -> int:
    chosen = {
        (chapter, name): change
        for (chapter, name), change in MUTANTS.items()
        if not words or any(word in name for word in words)
    }
    if not chosen:
        raise SystemExit(f"no mutant has any of these in its name: {', '.join(words)}")
    needed = {
        tests for (chapter, _), (file, *_) in chosen.items() for tests in judges(chapter, file)
    }
    for tests in sorted(needed):
        if fails(ROOT, tests):
            raise SystemExit(f"{tests} fails before anything is broken")
    survivors = 0
    print(f"{'chapter':8} {'mutant':44} {'unit tests':>12} {'the chapter':>12}")
    for (chapter, name), (file, old, new) in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "book"
            ignored = shutil.ignore_patterns(".venv", ".git", "_build", "runs", "__pycache__")
            shutil.copytree(ROOT, copy, ignore=ignored)
            source = copy / "vae_book" / file
            text = source.read_text()
            if text.count(old) != 1:
                raise SystemExit(f"{name}: {file} should hold {old!r} once; update this list")
            source.write_text(text.replace(old, new))
            caught = [fails(copy, tests) for tests in judges(chapter, file)]
        survivors += caught.count(False)
        verdicts = [f"{'caught' if c else 'SURVIVED':>12}" for c in caught]
        print(f"{chapter:8} {name:44}", *verdicts, flush=True)
    return 1 if survivors else 0


def judges(chapter: str, file: str) -> list[str]:
    """What a mutant of the file has to fail: the module's unit tests, and the chapter."""
    (notebook,) = (ROOT / "book").glob(f"{chapter}_*.ipynb")
    return [f"tests/unit/test_{file}", f"book/{notebook.name}"]


def fails(copy: Path, tests: str) -> bool:
    """Whether at least one of the tests fails on the mutant; a broken test run is an error."""
    # First on the path, so that the mutant is imported and not the installed package.
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    status = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", tests],
        cwd=copy,
        env=environment,
        capture_output=True,
        check=False,
    ).returncode
    if status not in (0, 1):
        raise SystemExit(f"pytest could not run {tests}: it ended with status {status}")
    return status == 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
