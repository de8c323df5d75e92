"""Chapters on a reader's own pictures and on a device that is neither CPU nor CUDA, as on a Mac."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.other_machine import DEVICE, Marked, OnTheDevice

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of a few color pictures, none of them square: spots on the left and right."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :48]
    for name, center in {"left": 12, "right": 36}.items():
        (root / name).mkdir()
        for number in range(20):  # of 40 pictures, 4 are held out
            at = (center, 20) + 2 * rng.standard_normal(2)
            spot = 255 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (20 + 60 * rng.random()))
            color = spot[..., None] * (1, 0.8, rng.random())
            Image.fromarray(color.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def outcomes(pictures):
    """How each chapter that takes images ended, and what it said before."""
    chapters = [
        str(path)
        for path in sorted((ROOT / "book").glob("*.ipynb"))
        if "load_images" in path.read_text("utf-8")
    ]
    command = [sys.executable, "-m", "tests.other_machine", str(pictures), *chapters]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    ends = re.split(r"^(\w+): exit status (-?\d+)\n", ended.stderr, flags=re.MULTILINE)
    return {
        name: (int(status), said)
        for said, name, status in zip(ends[::3], ends[1::3], ends[2::3], strict=False)
    }


def test_runs_on_two_classes_of_pictures_and_on_a_device_without_float64(notebook_path, outcomes):
    if "load_images" not in notebook_path.read_text("utf-8"):
        pytest.skip("the chapter takes no images")
    status, said = outcomes[notebook_path.stem]
    assert status == 0, said[-3000:]


@pytest.mark.parametrize(
    "mistake",
    [
        lambda there: there.double(),
        lambda there: there.to(torch.float64),
        lambda there: (there > 0).double().mean(),
        lambda there: torch.zeros(3, dtype=torch.float64, device=there.device),
        lambda there: torch.zeros(3).double().to(there.device),
        lambda there: there.numpy(),
        lambda there: there + torch.zeros(3),
        lambda there: torch.nn.Linear(3, 1)(there),
    ],
)
def test_the_device_refuses_what_a_mac_refuses(mistake):
    with OnTheDevice():
        there = torch.ones(3).to(DEVICE)
        assert isinstance(there, Marked)
        with pytest.raises((TypeError, RuntimeError), match="device"):
            mistake(there)


def test_the_device_lets_through_what_is_right():
    with OnTheDevice():
        there, layer = torch.ones(3, device=DEVICE), torch.nn.Linear(3, 1).to(DEVICE)
        layer(2 * there).sum().backward()
        assert isinstance(layer.weight.grad, Marked)
        assert there.cpu().double().sum().item() == 3
        assert type((there * 2).detach().to("cpu").numpy()) is np.ndarray
