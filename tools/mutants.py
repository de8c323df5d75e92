"""Break the package on purpose, one way at a time, and show that the tests notice.

    python tools/mutants.py

Each mutant is a copy of the repository with one line changed. It has to fail the unit tests, and
again the chapters alone. `make mutants` runs it; it takes several minutes and changes nothing here.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MUTANTS = {
    "KL halved": ("divergences.py", "return 0.5 * (squared", "return 0.25 * (squared"),
    "KL dropped": ("bounds.py", "gaussian_kl(mu, log_var))", "0 * gaussian_kl(mu, log_var))"),
    "KL sign reversed": (
        "bounds.py",
        "self.log_likelihood - self.kl",
        "self.log_likelihood + self.kl",
    ),
    "exp(log_var) as standard deviation": (
        "reparameterization.py",
        "torch.exp(0.5 * log_var) * eps",
        "torch.exp(log_var) * eps",
    ),
    "no noise": ("reparameterization.py", "torch.exp(0.5 * log_var) * eps", "0 * eps"),
    "mean over pixels": ("likelihoods.py", "cross_entropy.sum(", "cross_entropy.mean("),
    "gradient of the mean cut": (
        "models.py",
        "reparameterize(mu, log_var, eps)",
        "reparameterize(mu.detach(), log_var, eps)",
    ),
    "prior samples too wide": (
        "models.py",
        "z = standard_normal(",
        "z = 2 * standard_normal(",
    ),
}


def main() -> int:
    if fails(ROOT, "tests/unit") or fails(ROOT, "book"):
        raise SystemExit("the tests fail before anything is broken")
    survivors = 0
    print(f"{'mutant':36} {'unit tests':>12} {'chapters':>12}")
    for name, (file, old, new) in MUTANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "book"
            ignored = shutil.ignore_patterns(".venv", ".git", "_build", "runs", "__pycache__")
            shutil.copytree(ROOT, copy, ignore=ignored)
            source = copy / "vae_book" / file
            text = source.read_text()
            if text.count(old) != 1:
                raise SystemExit(f"{name}: {file} should hold {old!r} once; update this list")
            source.write_text(text.replace(old, new))
            caught = [fails(copy, "tests/unit"), fails(copy, "book")]
        survivors += caught.count(False)
        print(f"{name:36}", *(f"{'caught' if c else 'SURVIVED':>12}" for c in caught), flush=True)
    return 1 if survivors else 0


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
    sys.exit(main())
