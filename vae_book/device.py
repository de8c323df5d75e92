"""Where tensors live and where noise comes from (explained in chapter 8).

Noise is always drawn on the CPU and then moved, because a GPU's generator gives other numbers for
the same seed: drawn on the CPU, the same seed means the same experiment everywhere.
"""

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vae_book import parallel
from vae_book.checks import whole_number, whole_numbers

# Treat numbers below 1e-38 (denormals) as zero: Adam's running averages decay into that range for
# pixels that seldom fire, and many processors then take tens of times the usual cycles. A thread
# inherits the setting from the thread that starts it, so it has to come before torch starts its
# own threads; set at the start of training it would reach one thread of many.
torch.set_flush_denormal(True)


def best_device() -> torch.device:
    """The fastest device of this machine: CUDA, else Apple's MPS, else the CPU.

    ``VAE_BOOK_DEVICE`` overrides the choice (``cpu``, ``cuda``, ``cuda:1``, ...). Where no number
    is given, each process under ``torchrun`` gets the GPU of its local rank.

    Raises:
        ValueError: ``VAE_BOOK_DEVICE`` names a device that torch does not know or that is not here,
            or there are more processes than GPUs.
    """
    chosen = os.environ.get("VAE_BOOK_DEVICE")
    if chosen:
        return _checked_device(chosen)
    if torch.cuda.is_available():
        return _own_gpu()
    # Under torchrun the processes of a Mac meet on the CPU: their gloo knows no MPS tensors.
    if torch.backends.mps.is_available() and not parallel.launched():
        return torch.device("mps")
    return torch.device("cpu")


def lacks_bfloat16(device: torch.device) -> bool:
    """Whether the processor is known to have no bfloat16 products, which torch then makes up."""
    can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    has = can.get("avx512_bf16") or can.get("amx_bf16")
    return device.type == "cpu" and can.get("architecture") == "x86_64" and not has


def _own_gpu() -> torch.device:
    rank, gpus = dist.get_node_local_rank(fallback_rank=0), torch.cuda.device_count()
    if rank >= max(gpus, 1):
        raise ValueError(
            f"process {rank + 1} has no GPU of its own, this machine has {gpus}; start fewer "
            "processes, or set VAE_BOOK_DEVICE=cpu"
        )
    return torch.device("cuda", rank)


def _checked_device(name: str) -> torch.device:
    try:
        device = _own_gpu() if name == "cuda" else torch.device(name)
        torch.zeros((), device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"VAE_BOOK_DEVICE={name!r} cannot be used on this machine ({first_sentence(error)}); "
            "unset it to take the best device, or set it to 'cpu'"
        ) from error
    return device


def first_sentence(error: Exception) -> str:
    """What torch says of a device; some of its messages go on for a page."""
    return str(error).splitlines()[0].split(". ")[0]


def describe(device: torch.device) -> str:
    """A short name for a device, such as ``CPU (2 threads)`` or ``GPU (NVIDIA H100)``."""
    if device.type == "cuda":
        return f"GPU ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU ({threads} thread{'s' if threads > 1 else ''})"
    return device.type.upper()


def processor() -> str:
    """The name of this machine's processor; a ratio of two times belongs to one."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def seeded(*seed: int) -> torch.Generator:
    """A CPU generator that always gives the same numbers for the same seed.

    Several integers make one seed: ``seeded(seed, epoch)`` is a stream of its own for each epoch.

    Raises:
        ValueError: no seed was given, or one is negative or not whole.
    """
    if not seed:
        raise ValueError("seed: expected one or more whole numbers, got none")
    whole = [whole_number("seed", each, least=0) for each in seed]
    if len(whole) == 1 and whole[0] < 2**32:  # torch drops the bits above these
        return torch.Generator().manual_seed(whole[0])
    mixed = np.random.SeedSequence(whole).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def standard_normal(
    shape: Sequence[int],
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws from N(0, 1), made on the CPU and moved to ``device``.

    Args:
        shape: the shape of the result.
        generator: a CPU generator (see `seeded`); None takes torch's global one.
        device: where the result lives.

    Raises:
        ValueError: a size is negative or not whole, or generator is something else.
    """
    shape = whole_numbers("shape", shape, least=0)
    check_generator(generator)
    return sent(torch.randn(*shape, generator=generator, device="cpu"), device)


def check_generator(generator: object) -> None:
    """Raise ValueError unless noise can be drawn from this on the CPU."""
    kind = type(generator).__name__
    if isinstance(generator, torch.Generator):
        kind = f"one of {generator.device.type}"
    if generator is not None and kind != "one of cpu":
        raise ValueError(
            f"generator: expected a torch.Generator of the CPU or None, got {kind}; make one by "
            "vae_book.device.seeded(0)"
        )


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """Numbers of the CPU on ``device``; a CUDA device fetches them while the CPU goes on.

    It can do so from pinned memory, which the operating system leaves where it is.
    """
    if torch.device(device).type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
