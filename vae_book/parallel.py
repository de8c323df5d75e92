"""Several processes that train one model together, started by ``torchrun``.

Without ``torchrun`` everything here is a no-op: one process, rank 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that ``torchrun`` started; leave them at the end of the block.

    Uses NCCL between GPUs and gloo between CPUs.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process prints and writes files for all."""
    return rank() == 0


def summed(totals: torch.Tensor) -> torch.Tensor:
    """The sum of ``totals`` over all processes, on each of them."""
    if dist.is_initialized():
        dist.all_reduce(totals)
    return totals
