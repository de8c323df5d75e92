"""Devices are chosen as documented, and a seed means the same numbers everywhere."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.numbers import refused
from vae_book.bounds import elbo
from vae_book.device import (
    best_device,
    describe,
    lacks_bfloat16,
    processor,
    seeded,
    standard_normal,
)
from vae_book.distributions import DiagonalGaussian, Mixture
from vae_book.images import binarize
from vae_book.likelihoods import Bernoulli, Gaussian
from vae_book.models import VAE

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def machine(monkeypatch):
    """Make this machine look as if it had these accelerators and no wish of its user."""

    def pretend(cuda=False, mps=False, local_rank=None, gpus=4):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus if cuda else 0)
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.delenv("VAE_BOOK_DEVICE", raising=False)
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if local_rank is not None:
            monkeypatch.setenv("LOCAL_RANK", local_rank)

    return pretend


@pytest.mark.parametrize(
    ("can", "expected"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "arm64"}, False),  # what it can is not known
    ],
)
def test_a_processor_without_bfloat16_is_known(monkeypatch, can, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
    assert lacks_bfloat16(torch.device("cpu")) is expected
    assert not lacks_bfloat16(torch.device("cuda"))


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({}, "cpu"),
        ({"mps": True}, "mps"),
        ({"cuda": True, "mps": True}, "cuda:0"),
        ({"cuda": True, "local_rank": "3"}, "cuda:3"),
        ({"local_rank": "3"}, "cpu"),
    ],
)
def test_best_device_is_the_fastest_there_is(machine, has, expected):
    machine(**has)
    assert best_device() == torch.device(expected)


def test_each_process_needs_a_gpu_of_its_own(machine):
    machine(cuda=True, local_rank="1", gpus=1)
    with pytest.raises(ValueError, match=r"process 2 has no GPU of its own.* VAE_BOOK_DEVICE=cpu"):
        best_device()


def test_the_processes_of_a_mac_meet_on_the_cpu(machine, monkeypatch):
    machine(mps=True, local_rank="0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    assert best_device() == torch.device("cpu")


def test_the_environment_overrides_the_choice(machine, monkeypatch):
    machine(cuda=True)
    monkeypatch.setenv("VAE_BOOK_DEVICE", "cpu")
    assert best_device() == torch.device("cpu")
    monkeypatch.setenv("VAE_BOOK_DEVICE", "")  # the same as unset
    assert best_device() == torch.device("cuda:0")


@pytest.mark.parametrize("name", ["bogus", "3", "cuda:99", "vulkan", "hpu", "meta"])
def test_a_device_that_cannot_compute_is_refused_in_one_sentence(monkeypatch, name):
    monkeypatch.setenv("VAE_BOOK_DEVICE", name)
    with pytest.raises(ValueError, match=f"^VAE_BOOK_DEVICE='{name}' cannot .* to 'cpu'$") as error:
        best_device()
    assert len(str(error.value)) < 400


def test_describe_names_the_device(monkeypatch):
    for threads, name in {1: "CPU (1 thread)", 2: "CPU (2 threads)"}.items():
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert describe(torch.device("cpu")) == name
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"H100, {device}")
    assert describe(torch.device("cuda:1")) == "GPU (H100, cuda:1)"
    assert describe(torch.device("mps")) == "MPS"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc to compare with")
def test_the_processor_is_named_as_the_system_names_it():
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line]
    assert any(line.endswith(f": {processor()}") for line in names)


def test_one_seed_is_the_seed_of_torch():
    expected = torch.rand(5, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.rand(5, generator=seeded(7)), expected)
    assert seeded(7).device == torch.device("cpu")


def test_several_seeds_are_reproducible_streams_that_share_nothing():
    grid = [(seed, epoch) for seed in range(40) for epoch in range(40)]
    assert len({seeded(*pair).initial_seed() for pair in grid}) == len(grid)
    assert torch.equal(torch.rand(5, generator=seeded(3, 4)), torch.rand(5, generator=seeded(3, 4)))
    n = 10_000
    streams = torch.stack([standard_normal([n], seeded(0, epoch)) for epoch in range(20)])
    correlations = torch.corrcoef(streams) - torch.eye(20)
    assert correlations.abs().max() < 5 / n**0.5  # 190 correlations, each with s.e. 1/sqrt(n)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("seed", [(), (-1,), (0, -1), (0.5,), (None,), ("0",)])
def test_bad_seeds_are_refused(seed):
    with refused("seed: expected "):
        seeded(*seed)


def test_seeds_of_any_size_have_streams_of_their_own():
    seeds = [0, 2**32, 2**63, 2**64 - 1, 2**64, 2**64 + 1, 10**40]
    first = [torch.rand(3, generator=seeded(seed)) for seed in seeds]
    for seed, draws in zip(seeds, first, strict=True):
        assert torch.equal(torch.rand(3, generator=seeded(seed)), draws)
    assert len({tuple(draws.tolist()) for draws in first}) == len(seeds)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("shape", [(-1,), (2, -3), (1.5,), ("2",)])
def test_sizes_of_noise_are_whole_and_not_negative(shape):
    with refused("shape: expected a whole number of at least 0"):
        standard_normal(shape)


def test_standard_normal_is_torchs_own():
    before = torch.get_rng_state()
    expected = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(standard_normal((3, 4), seeded(1)), expected)
    assert torch.equal(torch.get_rng_state(), before)  # the global stream was left alone
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert torch.equal(standard_normal((3, 4)), expected)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("generator", [0, True, "cpu", torch.Generator])
def test_a_seed_in_the_place_of_a_generator_is_refused(generator):
    gray = torch.rand(2, 1, 4, 4)
    prior = DiagonalGaussian(torch.zeros(3, 2), torch.zeros(3, 2))
    for draw in (
        lambda: standard_normal((2,), generator),
        lambda: binarize(gray, generator),
        lambda: VAE(2, 8, (1, 4, 4)).sample(3, generator),
        lambda: elbo(VAE(2, 8, (1, 4, 4)), gray, generator=generator),
        lambda: Mixture(prior).sample((2,), generator),
        *(lambda p_x=p_x: p_x.sample(gray, generator) for p_x in (Bernoulli(), Gaussian(0.1))),
    ):
        with refused("generator: expected a torch.Generator of the CPU or None, got"):
            draw()


def test_standard_normal_goes_where_it_is_wanted():
    assert standard_normal((3,), seeded(1), "meta").device.type == "meta"


@needs_cuda
def test_the_gpu_gets_the_numbers_of_the_cpu():
    on_gpu = standard_normal((1000,), seeded(1), "cuda")
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), standard_normal((1000,), seeded(1)))


def test_denormal_numbers_count_as_zero_in_every_thread():
    # In a process of its own, where the package is imported before torch starts its threads.
    script = (
        "import torch, vae_book.device\n"
        "tiny = torch.full((1 << 20,), 1e-38) / 100\n"
        "print(torch.set_flush_denormal(True), bool((tiny == 0).all()))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    supported, flushed = ran.stdout.split()
    if supported == "False":
        pytest.skip("this processor cannot treat denormal numbers as zero")
    assert flushed == "True"
