"""Break the package on purpose, one way at a time, and show that the tests notice.

    python tools/mutants.py                 every mutant
    python tools/mutants.py KL precision    those with one of these words in their names

Each mutant is a copy of the repository with one line changed. It has to fail the unit tests of the
module that it changes, and again the chapter whose formula it breaks. To add one, name the chapter
(or none, "", where no chapter runs that line) and the mutant, then the function, the text to
replace (it stands there once) and what replaces it.
In which module the function is does not matter; a mutant whose text is gone is reported as stale.
`make mutants` runs all; it takes half an hour to an hour and changes nothing here.
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from equations import definitions

ROOT = Path(__file__).parents[1]
DOCTORS = {"exam.py", "loss_terms.py", "patient.py", "prior_density.py", "report.py", "traces.py"}
MUTANTS = {
    ("01", "joint in place of posterior"): (
        "enumerate_posterior",
        "Posterior(log_joint.log_softmax(-1),",
        "Posterior(log_joint,",
    ),
    ("01", "sigma for sigma^2 in the evidence"): (
        "LinearGaussian.log_evidence",
        "self.sigma.square() * torch.eye(D)",
        "self.sigma * torch.eye(D)",
    ),
    ("01", "half the log-determinant"): (
        "LinearGaussian.log_evidence",
        "2 * factor.diagonal()",
        "factor.diagonal()",
    ),
    ("01", "precision for covariance"): (
        "LinearGaussian.posterior",
        "torch.cholesky_inverse(factor)",
        "self._precision()",
    ),
    ("01", "average of logs for log of average"): (
        "log_average",
        "mean.log() + largest",
        "log_weights.mean(0)",
    ),
    ("01", "sample size from unsquared sum"): (
        "effective_sample_size",
        "weights.sum(0).square() / squares",
        "weights.sum(0) / squares",
    ),
    ("02", "KL arguments swapped"): (
        "discrete_kl",
        'log_q: Float[Tensor, "... k"], log_p: Float[Tensor, "*prior k"]',
        'log_p: Float[Tensor, "... k"], log_q: Float[Tensor, "*prior k"]',
    ),
    ("02", "cells counted at their left ends"): ("kl_riemann", "float64) + 0.5)", "float64))"),
    ("02", "log ratio without weight q"): (
        "_contribution",
        "return density * torch",
        "return torch",
    ),
    ("02", "standard error without sqrt(n)"): (
        "average",
        "draws.std(0) / math.sqrt(len(draws))",
        "draws.std(0)",
    ),
    ("03", "bound without the spread of q"): (
        "LinearGaussian._reconstruction",
        " - 0.5 * spread / self.sigma.square()",
        "",
    ),
    ("03", "gradient away from the prior"): (
        "LinearGaussian.elbo_gradient",
        "self.sigma.square() - mu",
        "self.sigma.square() + mu",
    ),
    ("03", "mean field with the posterior's variances"): (
        "LinearGaussian.mean_field",
        "-self._precision().diagonal().log()",
        "self.posterior(x).cov.diagonal().log()",
    ),
    ("04", "joint without noise"): ("linear_joint", "across @ A.mT + noise", "across @ A.mT"),
    ("04", "mean of log weights for log of mean"): (
        "importance_weighted_bound",
        "log_weights.logsumexp(0) - math.log(len(log_weights))",
        "log_weights.mean(0)",
    ),
    ("04", "sum of weights, not over K"): (
        "importance_weighted_bound",
        " - math.log(len(log_weights))",
        "",
    ),
    ("05", "KL halved"): ("gaussian_unit_kl", "return 0.5 * (squared", "return 0.25 * (squared"),
    ("05", "prior's variance inverted"): (
        "gaussian_unit_kl",
        "torch.exp(-prior_log_var)",
        "torch.exp(prior_log_var)",
    ),
    ("05", "KL without log-determinant"): (
        "gaussian_kl_full",
        "torch.expm1(log_squares) - log_squares",
        "torch.expm1(log_squares)",
    ),
    ("05", "KL without part of the trace"): ("gaussian_kl_full", "off_diagonal + (", "("),
    ("05", "naive regularizer not squared"): (
        "naive_regularizer",
        "mu.square() + log_var.square()",
        "mu + log_var",
    ),
    ("06", "multiplied by the integral, not divided"): (
        "ContinuousBernoulli.pixel_log_prob",
        " + log_cross_entropy_integral(params)",
        " - log_cross_entropy_integral(params)",
    ),
    ("06", "sigmoid for the continuous mean"): (
        "ContinuousBernoulli.mean",
        "torch.where(near, series, torch.where(params > 0, direct, 1 - direct))",
        "torch.sigmoid(params)",
    ),
    ("06", "Gaussian without log 2 pi"): (
        "Gaussian.pixel_log_prob",
        " + log_var + LOG_2PI",
        " + log_var",
    ),
    ("06", "Gaussian without the half"): (
        "Gaussian.pixel_log_prob",
        "-0.5 * (squares",
        "-1.0 * (squares",
    ),
    ("06", "sigma as the variance"): (
        "Gaussian.log_var",
        "log_unit = 2 * math.log(",
        "log_unit = math.log(",
    ),
    ("06", "no floor under the variance"): (
        "Gaussian.log_var",
        "torch.logaddexp(log_unit + raw, floor)",
        "log_unit + raw",
    ),
    ("06", "sum of squares for the optimal variance"): (
        "optimal_variance",
        "(x - mean).square().mean()",
        "(x - mean).square().sum()",
    ),
    ("06", "nats called bits"): ("bits_per_dimension", "(dimensions * math.log(2))", "dimensions"),
    ("06", "256 steps between 256 levels"): ("bits_per_dimension", "least=2) - 1", "least=2)"),
    ("06", "noise left in PCA's variances"): ("ppca", "(variances - sigma**2)", "variances"),
    ("06", "cross-entropy not divided by its integral"): (
        "ContinuousBernoulli.pixel_log_prob",
        "(cross_entropy(x, params) + log_cross_entropy_integral(params))",
        "cross_entropy(x, params)",
    ),
    ("06", "slope of the cross-entropy from the wrong side"): (
        "_CrossEntropy.backward",
        "(torch.sigmoid(logits) - x)",
        "(torch.sigmoid(logits) + x)",
    ),
    ("07", "sample cut from its parameters"): (
        "pathwise_gradient",
        " z = reparameterize(mu, log_var, eps)",
        " z = reparameterize(mu, log_var, eps).detach()",
    ),
    ("07", "factor of the covariance transposed"): (
        "reparameterize_full",
        "(scale @ eps",
        "(scale.mT @ eps",
    ),
    ("07", "score of the log-variance halved"): (
        "score_function_gradient",
        "0.5 * (eps.square() - 1)",
        "0.25 * (eps.square() - 1)",
    ),
    ("07", "score of the mean not divided by sigma"): (
        "score_function_gradient",
        "eps * torch.exp(-0.5 * log_var)",
        "eps",
    ),
    ("07", "baseline with the draw itself"): (
        "score_function_gradient",
        "(values.sum(0) - values) / (len(values) - 1)",
        "values.mean(0)",
    ),
    ("07", "average of the others over n"): (
        "score_function_gradient",
        "(values.sum(0) - values) / (len(values) - 1)",
        "(values.sum(0) - values) / len(values)",
    ),
    ("07", "sixth moment of the noise"): (
        "Quadratic.score_function_variance",
        "15 * g2.square()",
        "9 * g2.square()",
    ),
    ("07", "noise of the other directions left out"): (
        "Quadratic.score_function_variance",
        " + rest_noise) / var",
        ") / var",
    ),
    ("07", "curvature not squared"): (
        "Quadratic.pathwise_variance",
        "GaussianGradient(self.a.square() * var,",
        "GaussianGradient(self.a * var,",
    ),
    ("07", "half of Price's identity lost"): (
        "bonnet_price_gradient",
        "by_var = 0.5 * (",
        "by_var = (",
    ),
    ("07", "average of f as the best baseline"): (
        "Quadratic.best_baseline",
        "mean + bend, mean + 2 * bend",
        "mean, mean",
    ),
    ("07", "noise of the draws left in that of the images"): (
        "split_variance",
        "draws.mean(1).var(0) - z / draws.shape[1]",
        "draws.mean(1).var(0)",
    ),
    ("09", "sum over draws"): ("_over_samples", ".mean(0)", ".sum(0)"),
    ("", "one draw a step, whatever is asked"): (  # no chapter trains with several
        "batches",
        "standard_normal((settings.n_samples, len(data)",
        "standard_normal((1, len(data)",
    ),
    ("08", "KL sign reversed"): (
        "Elbo.value",
        "self.log_likelihood - self.kl",
        "self.log_likelihood + self.kl",
    ),
    ("08", "exp(log_var) as standard deviation"): (
        "reparameterize",
        "torch.exp(0.5 * log_var) * eps",
        "torch.exp(log_var) * eps",
    ),
    ("08", "no noise"): ("reparameterize", "torch.exp(0.5 * log_var) * eps", "0 * eps"),
    ("08", "KL dropped"): (
        "elbo_terms",
        "_over_samples(unit_kl, 2))",
        "0 * _over_samples(unit_kl, 2))",
    ),
    ("08", "mean over pixels"): (
        "Likelihood.image_log_prob",
        ".sum(PIXEL_AXES)",
        ".mean(PIXEL_AXES)",
    ),
    ("08", "gradient of the encoder cut"): (
        "VAE.forward",
        "q_z.rsample(eps)",
        "q_z.rsample(eps).detach()",
    ),
    ("08", "prior samples too wide"): (
        "VAE.sample",
        "p_z.sample((n,), generator)",
        "2 * p_z.sample((n,), generator)",
    ),
    ("08", "density of z without its log-variance"): (
        "gaussian_log_prob",
        "(squares + log_var + LOG_2PI)",
        "(squares + LOG_2PI)",
    ),
    ("10", "warm-up from full weight"): (
        "Objective.weight",
        "return self.beta * min(1.0, epoch / self.warm_up) if self.warm_up else self.beta",
        "return self.beta",
    ),
    ("10", "aggregated posterior without its widths"): (
        "aggregated_kl_bound",
        " + variance.diag()",
        "",
    ),
    ("12", "fault left switched on"): (
        "fault",
        "        _replace(chosen, broken, intact)",
        "        pass",
    ),
    ("10", "free nats for all units together"): (
        "Objective.__call__",
        "(unit_kl.clamp(min=self.free_nats) if self.free_nats else unit_kl).sum(-1)",
        "unit_kl.sum(-1).clamp(min=self.free_nats)",
    ),
    ("12", "noise of any kind is normal"): ("noise", "> 3:", "> 300:"),
    ("12", "readings of the spread not compared"): (
        "deviation",
        "if len(set(readings.values())) > 1:",
        "if len(set(readings.values())) > 9:",
    ),
    ("12", "cut gradients taken for whole ones"): ("reparameterized", "if not g.any()", "if False"),
    ("12", "second sigmoid not seen"): ("output", "high <= 1", "high <= 0"),
    ("12", "mass of a likelihood not looked at"): ("normalized", "abs(off) < 0.01", "True"),
    ("12", "average over images not seen"): (
        "weights",
        "log_w.flatten().softmax(0).view_as(log_w)",
        "log_w.softmax(0)",
    ),
    ("12", "nats of a weight with the wrong sign"): (
        "scale",
        "abs(kl.weight / exam.beta - 1)",
        "abs(kl.weight / exam.beta + 1)",
    ),
    ("12", "mean over units under another name"): (
        "_mistakes",
        '("kl-mean", 1, units, kl)',
        '("kl-mean", units, 1, kl)',
    ),
    ("12", "log-likelihood left in the rest"): (
        "_rest",
        "by_loss - by_likelihood",
        "by_loss + by_likelihood",
    ),
    ("12", "noise in evaluation allowed"): ("modes", "> 1e-3 * size", "> 1e3 * size"),
    ("12", "mean at test allowed"): ("measuring", "if not _constant(exam.measured)", "if True"),
    ("12", "labels compared with themselves"): (
        "labels_used",
        "other = y.roll(1, 0)",
        "other = y.roll(0, 0)",
    ),
}


def main(words: list[str]) -> int:
    chosen = {
        (chapter, name): place(*change)
        for (chapter, name), change in MUTANTS.items()
        if not words or any(word in name for word in words)
    }
    if not chosen:
        raise SystemExit(f"no mutant has any of these in its name: {', '.join(words)}")
    stale = [name for (_, name), found in chosen.items() if found is None]
    fresh = {names: found for names, found in chosen.items() if found}
    for tests in sorted({t for (c, _), (file, *_) in fresh.items() for t in judges(c, file)}):
        if fails(ROOT, tests):
            raise SystemExit(f"{tests} fails before anything is broken")
    survivors = 0
    print(f"{'chapter':8} {'mutant':44} {'unit tests':>12} {'the chapter':>12}")
    for (chapter, name), (file, text) in fresh.items():
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "book"
            ignored = shutil.ignore_patterns(".venv", ".git", "_build", "runs", "__pycache__")
            shutil.copytree(ROOT, copy, ignore=ignored)
            (copy / "vae_book" / file).write_text(text)
            caught = [fails(copy, tests) for tests in judges(chapter, file)]
        survivors += caught.count(False)
        verdicts = [f"{'caught' if c else 'SURVIVED':>12}" for c in caught]
        print(f"{chapter:8} {name:44}", *verdicts, flush=True)
    for name in stale:
        print(f"stale: {name}; the function or the text that it replaces is gone")
    return 1 if survivors or stale else 0


def place(function: str, old: str, new: str) -> tuple[str, str] | None:
    """The module that holds the function, and its text with the change; None if there is none."""
    for file, lines, name, body in functions():
        if name == function and "".join(lines[body]).count(old) == 1:
            changed = "".join(lines[body]).replace(old, new)
            return file, "".join([*lines[: body.start], changed, *lines[body.stop :]])
    return None


@cache
def functions() -> list[tuple[str, list[str], str, slice]]:
    """Of each function of the package: its file, the lines of that, its name, and which are its."""
    found = []
    for path in sorted((ROOT / "vae_book").glob("*.py")):
        lines = path.read_text().splitlines(keepends=True)
        for name, node in definitions(ast.parse("".join(lines))):
            found.append((path.name, lines, name, slice(node.lineno - 1, node.end_lineno)))
    return found


def judges(chapter: str, file: str) -> list[str]:
    """What a mutant of the file has to fail: the module's unit tests, and the chapter."""
    tests = "doctor.py" if file in DOCTORS else file
    chapters = (ROOT / "book").glob(f"{chapter}_*.ipynb")
    return [f"tests/unit/test_{tests}", *(f"book/{each.name}" for each in chapters)]


def fails(copy: Path, tests: str) -> bool:
    """Whether at least one of the tests fails on the mutant; a broken test run is an error."""
    # First on the path, so that the mutant is imported and not the installed package.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
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
