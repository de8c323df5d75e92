"""Install the pinned packages into the virtual environment that runs this.

    python tools/install.py requirements.lock    all packages, with their hashes
    python tools/install.py --package .          the package of this repository

`make setup` calls it. With uv, which the lock pins like all else and which comes first; with pip
where uv has no build for the machine or does not succeed. Only the standard library is needed.

TORCH_INDEX names a registry of torch's CPU build: torch and torchvision come from there, in the
versions of the lock but without its hashes, and CUDA's libraries are left out.
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
TORCH = re.compile(r"torch(vision)?==\S+")
CUDA = re.compile(r"(nvidia|cuda)-|triton==")
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
    index = os.environ.get("TORCH_INDEX")
    size = f"torch from {index}" if index else "some 6 GB with CUDA"
    print(f"Installing the pinned packages: a minute, {size}", flush=True)
    hashed = ["--require-hashes", "-r"]
    text = lock.read_text()
    pins, rest = apart(text)
    with tempfile.TemporaryDirectory() as folder:
        first, without = Path(folder) / "uv.txt", Path(folder) / "without-torch.txt"
        first.write_text(of_uv(text))
        without.write_text(rest)
        steps = [[*hashed, str(without if index else lock)]]
        if index:
            steps.append(["--index-url", index, *pins])
        ready = run([*PIP, "--quiet", "--no-deps", "--only-binary", ":all:", *hashed, str(first)])
        if ready and all(run([*UV, "--no-deps", *step]) for step in steps):
            return 0
        print("uv cannot be used here; installing with pip, which takes some minutes", flush=True)
        # The lock holds all there is to install. To look for what it needs is what old versions of
        # pip fail at: for `name[extra]` they take the latest release, which the lock does not pin.
        if all(run([*PIP, "--no-deps", *step]) for step in steps):
            return 0
    print(
        "The packages could not be installed; is there a network, and is it let through? The next "
        "make goes on with it.",
        file=sys.stderr,
    )
    return 1


def package(place: str) -> int:
    """The package of this repository, so that changes take effect at once."""
    return 0 if run([*PIP, "--quiet", "--no-deps", "--no-build-isolation", "-e", place]) else 1


def apart(lock: str) -> tuple[list[str], str]:
    """The pins of torch and torchvision, and the lock without them and CUDA's libraries."""
    blocks = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    pins = [found[0] for block in blocks if (found := TORCH.match(block))]
    return pins, "".join(each for each in blocks if not (TORCH.match(each) or CUDA.match(each)))


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
