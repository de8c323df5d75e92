"""Install the pinned packages into the virtual environment that runs this.

    python tools/install.py requirements.lock    all packages, with their hashes
    python tools/install.py --package .          the package of this repository

`make setup` calls it. With uv, which the lock pins like all else and which comes first; with pip
where uv has no build for the machine or does not succeed. Only the standard library is needed.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-user"]
# What would have packages go elsewhere, or be others: images of containers set constraints. Against
# `user = true` in a file of settings stands --no-user.
ELSEWHERE = {f"PIP_{name}" for name in ("USER", "TARGET", "PREFIX", "ROOT", "CONSTRAINT")}
UV = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--python", sys.executable]


def main(arguments: list[str]) -> int:
    """Install; returns an exit status."""
    try:
        if arguments[0] == "--package":
            return package(arguments[1])
        return locked(Path(arguments[0]))
    except KeyboardInterrupt:
        print("\nstopped; the next make goes on with it", file=sys.stderr)
        return 130


def locked(lock: Path) -> int:
    """All packages of the lock."""
    print("Installing the pinned packages: a minute, some 6 GB with CUDA", flush=True)
    hashed = ["--require-hashes", "-r"]
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "uv.txt"
        first.write_text(of_uv(lock.read_text()))
        ready = run([*PIP, "--quiet", "--no-deps", "--only-binary", ":all:", *hashed, str(first)])
    if ready and run([*UV, *hashed, str(lock)]):
        return 0
    print("uv cannot be used here; installing with pip, which takes some minutes", flush=True)
    # The lock holds all there is to install. To look for what it needs is what old versions of pip
    # fail at: for `name[extra]` they take the latest release, of which the lock has no hash.
    return 0 if run([*PIP, "--no-deps", *hashed, str(lock)]) else 1


def package(place: str) -> int:
    """The package of this repository, so that changes take effect at once."""
    return 0 if run([*PIP, "--quiet", "--no-deps", "--no-build-isolation", "-e", place]) else 1


def of_uv(lock: str) -> str:
    """The lines of the lock that pin uv."""
    found = re.search(r"^uv==.*?(?=^\S|\Z)", lock, re.MULTILINE | re.DOTALL)
    return found[0] if found else ""


def run(command: list[str]) -> bool:
    """Whether the command could be run and succeeded."""
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    try:
        return subprocess.run(command, env=environment, check=False).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
