"""Several processes that train one model together, started by ``torchrun`` or by `launch`.

Without either everything here is a no-op: one process, rank 0.
"""

import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import nn

_store: dist.Store | None = None  # what the processes write down for each other


def launch(processes: int, arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Run ``python -m vae_book`` with these arguments in several processes of this machine.

    It is ``torchrun --standalone`` without the traceback and the table that torchrun prints after
    what the processes have told themselves.

    Returns:
        An exit code, above 128 if a signal came from outside; and who was killed, if that left no
        process to tell of it.

    Raises:
        ValueError: torchrun has started this process.
    """
    from torch.distributed import run  # here, because few need it
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if launched():
        raise ValueError("processes: expected 1 under torchrun, which starts the processes itself")
    options = ["--standalone", "--local-addr=localhost", f"--nproc-per-node={processes}"]
    logging.disable()
    try:
        with TemporaryDirectory() as logs:  # torchrun would leave a folder of its own behind
            run.main([*options, f"--log-dir={logs}", "-m", "vae_book", *arguments])
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        # Torchrun itself ends those that are left by SIGTERM.
        killed = [_name(each) for each in sorted(codes) if codes[each] != -signal.SIGTERM]
        silent = all(code < 0 for code in codes.values())
        return max(1, *codes.values()), killed if silent else []
    except SignalException as error:
        return 128 + int(error.sigval), []
    finally:
        logging.disable(logging.NOTSET)
    return 0, []


def _name(other: int) -> str:
    return f"the process of rank {other}"


def launched() -> bool:
    """Whether torchrun or `launch` has started this process, as one of several."""
    return dist.is_torchelastic_launched()


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that ``torchrun`` started; leave them at the end of the block.

    Tensors on GPUs travel by NCCL, those on CPUs by gloo.
    """
    global _store
    if not launched():
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


def when_ended(tell: Callable[[list[str]], None]) -> None:
    """Have ``tell`` called with the names of those that are gone when torchrun ends this process.

    It does so once another process is gone, within a fraction of a second. A thread of its own
    listens, as the main one may be waiting for that process; only one process tells. Nor does a
    process stay behind when torchrun itself is gone.
    """
    if _store is None:
        return
    _store.set(f"process {rank()}", f"{os.getpid()} {socket.gethostname()}")
    launcher = os.getppid()
    heard, written = os.pipe()
    os.set_blocking(written, False)
    signal.signal(signal.SIGTERM, lambda *_: None)  # each signal also writes its number to the pipe
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)

    def listen() -> None:
        code = 1
        try:
            while os.getppid() == launcher:
                ready, *_ = select.select([heard], [], [], 1)
                if ready and os.read(heard, 1) == bytes([signal.SIGTERM]):
                    break
            # Without torchrun there may be nobody left who keeps what the processes write down.
            if os.getppid() != launcher:
                if is_main():
                    tell(["the launcher of the processes"])
                return
            gone = _gone()
            if fails_first():
                tell(gone)
                # Nobody is gone: somebody else ended this process, of which its launcher tells.
                code = 1 if gone else 128 + signal.SIGTERM
        finally:
            os._exit(code)

    threading.Thread(target=listen, daemon=True).start()


def _gone() -> list[str]:
    """The processes of this machine that no longer run."""
    found = []
    for other in range(world_size()):
        if _store is not None and _store.check([f"process {other}"]):
            pid, host = _store.get(f"process {other}").decode().split()
            try:
                os.kill(int(pid) if host == socket.gethostname() else os.getpid(), 0)
            except ProcessLookupError:
                found.append(_name(other))
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


def share_weights(model: nn.Module) -> None:
    """Give each process the weights and buffers that the main process has."""
    if dist.is_initialized():
        for each in (*model.parameters(), *model.buffers()):
            dist.broadcast(each.data, src=0)


def average_gradients(model: nn.Module) -> None:
    """Make each gradient the mean over the processes, as if one had seen the whole batch.

    A weight without a gradient here counts with zeros. Torch's ``DistributedDataParallel`` does it
    beside the backward pass, and imports all of ``torch.compile``: a second at the start.
    """
    if world_size() == 1:
        return
    weights = [each for each in model.parameters() if each.requires_grad]
    parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in weights]
    mean = torch.cat([each.flatten() for each in parts]) / world_size()
    dist.all_reduce(mean)
    shares = mean.split([each.numel() for each in parts])
    for weight, part, share in zip(weights, parts, shares, strict=True):
        weight.grad = part.copy_(share.view_as(part))  # in place: fused Adam wants its strides


def check_agreed(**facts: object) -> None:
    """Raise ValueError, in each process, unless all of them say the same of each of these facts."""
    if not dist.is_initialized():
        return
    mine = {name: str(fact) for name, fact in facts.items()}
    said: list[dict[str, str]] = [{}] * world_size()
    dist.all_gather_object(said, mine)
    for name, first in said[0].items():
        for other, theirs in enumerate(said):
            if theirs.get(name) != first:
                raise ValueError(
                    f"{name}: expected the same in all processes, got {first} in {_name(0)} and "
                    f"{theirs.get(name)} in {_name(other)}; all machines need the same command, "
                    "the same data and, to resume, the same folder of checkpoints"
                )


def _wait_for_all() -> None:
    summed(torch.zeros(1))
