"""Several processes that train one model together, started by ``torchrun``.

Without ``torchrun`` everything here is a no-op: one process, rank 0.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

_store: dist.Store | None = None  # what the processes write down for each other


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that ``torchrun`` started; leave them at the end of the block.

    Tensors on GPUs travel by NCCL, those on CPUs by gloo.
    """
    global _store
    if not dist.is_torchelastic_launched():
        yield
        return
    _store, rank, world_size = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=_store, rank=rank, world_size=world_size)
    yield
    # Not in a finally clause: to leave may be to wait for the others, and after an error they may
    # be waiting for this process. Its end tells them.
    dist.destroy_process_group()
    _store = None


@contextmanager
def main_first() -> Iterator[None]:
    """Have the main process run the block before the others, so that it alone fills a cache."""
    if not is_main():
        _wait_for_all()
    try:
        yield
    finally:  # also after an error, which the others then meet themselves
        if is_main():
            _wait_for_all()


def fails_first() -> bool:
    """Whether no other process has asked this before: the first one tells what went wrong.

    The others mostly fail in the same way, or because that one is gone.
    """
    return _store is None or _store.add("failures", 1) == 1


def when_ended(tell: Callable[[list[int]], None]) -> None:
    """Have ``tell`` called with the ranks that are gone when torchrun ends this process.

    It does so once another process is gone, within a fraction of a second. A thread of its own
    listens, as the main one may be waiting for that process; only one process tells.
    """
    if _store is None:
        return
    _store.set(f"process {rank()}", f"{os.getpid()} {socket.gethostname()}")
    heard, written = os.pipe()
    os.set_blocking(written, False)
    signal.signal(signal.SIGTERM, lambda *_: None)  # each signal also writes its number to the pipe
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)

    def listen() -> None:
        try:
            while os.read(heard, 1) != bytes([signal.SIGTERM]):
                pass
            gone = _gone()
            if fails_first():
                tell(gone)
        finally:
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()


def _gone() -> list[int]:
    """The ranks of the processes of this machine that no longer run."""
    found = []
    for other in range(world_size()):
        if _store is not None and _store.check([f"process {other}"]):
            pid, host = _store.get(f"process {other}").decode().split()
            try:
                os.kill(int(pid) if host == socket.gethostname() else os.getpid(), 0)
            except ProcessLookupError:
                found.append(other)
    return found


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


def _wait_for_all() -> None:
    summed(torch.zeros(1))
