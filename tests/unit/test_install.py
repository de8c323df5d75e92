"""The set-up: uv where it can be used, else pip; nothing but what the lock pins."""

import subprocess
import sys
from pathlib import Path

import pytest

import install

LOCK = Path(__file__).parents[2] / "requirements.lock"


@pytest.mark.parametrize("uv_succeeds", [True, False])
def test_pip_is_asked_where_uv_does_not_succeed(monkeypatch, capsys, uv_succeeds):
    commands = []

    def run(command):
        commands.append(command)
        return uv_succeeds or command[0] != install.UV[0]

    monkeypatch.setattr(install, "run", run)
    assert install.locked(LOCK) == 0
    assert len(commands) == (2 if uv_succeeds else 3)
    assert all("--require-hashes" in command for command in commands)
    assert ("uv cannot be used here" in capsys.readouterr().out) is not uv_succeeds
    # An old pip takes the latest release for `name[extra]`, whatever the lock pins.
    assert all("--no-deps" in each for each in commands if each[0] == sys.executable)


@pytest.mark.parametrize("uv_succeeds", [True, False])
def test_torch_may_come_from_another_registry(monkeypatch, capsys, uv_succeeds):
    """Which has a build without CUDA, of other hashes."""
    commands, left_out = [], []

    def run(command):
        commands.append(command)
        if "-r" in command and not command[-1].endswith("uv.txt"):
            left_out.append(Path(command[-1]).read_text("utf-8"))
        return uv_succeeds or command[0] != install.UV[0]

    monkeypatch.setattr(install, "run", run)
    monkeypatch.setenv("TORCH_INDEX", "file:///builds")
    assert install.locked(LOCK) == 0
    assert "torch from file:///builds" in capsys.readouterr().out
    tool = install.UV if uv_succeeds else install.PIP
    last = commands[-1]
    assert last[: len(tool)] == tool
    assert last[len(tool) : -2] == ["--no-deps", "--index-url", "file:///builds"]
    pins = [line.split()[0] for line in LOCK.read_text("utf-8").splitlines() if "==" in line]
    assert last[-2:] == [pin for pin in pins if pin.startswith("torch")]
    rest = [line.split()[0] for line in left_out[-1].splitlines() if "==" in line]
    gone = [pin for pin in pins if pin not in rest]
    assert rest == [pin for pin in pins if pin not in gone]
    families = {pin.split("==")[0].split("-")[0] for pin in gone}
    assert families == {"torch", "torchvision", "triton", "nvidia", "cuda"}
    assert "--hash=sha256:" in left_out[-1]


def test_packages_that_cannot_be_had_are_told(monkeypatch, capsys):
    monkeypatch.setattr(install, "run", lambda command: False)
    assert install.locked(LOCK) == 1
    assert "is there a network" in capsys.readouterr().err


def test_uv_comes_first_with_all_of_its_hashes():
    pinned = install.of_uv(LOCK.read_text("utf-8")).splitlines()
    assert pinned[0].startswith("uv==")
    assert len(pinned) > 10
    assert all("--hash=sha256:" in line for line in pinned[1:])
    assert install.of_uv("other==1 \\\n    --hash=sha256:0\n") == ""


def test_the_lock_holds_all_that_its_packages_need():
    """So that pip need not look for it."""
    check = [sys.executable, "-m", "pip", "check", "--disable-pip-version-check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
