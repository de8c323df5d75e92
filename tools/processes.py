"""Work in as many processes as there are cores, with one thread each.

Two threads that share their cores with other work wait for each other: on a busy machine that takes
several times as long. Import this before torch, which reads the number of threads once; processes
that are started later inherit it.
"""

import asyncio
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

for _library in ("OMP", "MKL", "OPENBLAS", "VECLIB_MAXIMUM", "NUMEXPR"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"
# Clusters bind threads to cores. Each process would bind its only one to the same, the first.
for _name in ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"):
    os.environ.pop(_name, None)

MINUTE = 60
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of all cores, in how many


def workers(device_type: str) -> int:
    """How many processes work at once: one a core, but on a GPU they take turns."""
    if device_type != "cpu":
        return 1
    # Of the cores of a machine a process may be given a few, and a container a part of their time.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = map(int, QUOTA.read_text().split())
    except (OSError, ValueError):  # there is none, or it is "max"
        return cores
    return min(cores, math.ceil(quota / period))


def seconds(path: Path) -> float:
    """How long a chapter took when it was last run in place; a minute where nobody knows."""
    return nbformat.read(path, as_version=4).metadata.get("vae_book", {}).get("seconds", MINUTE)


class Kernels:
    """Runs notebooks side by side, each in a kernel of its own.

    The kernels are in sessions of their own: a Ctrl-C at the terminal reaches this process alone,
    which then ends them.
    """

    def __init__(self) -> None:
        self.clients: list[NotebookClient] = []

    def execute(self, notebook: NotebookNode, folder: Path) -> None:
        """Run one notebook from a fresh kernel."""
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],  # a kernel warns that it talks unencrypted
            resources={"metadata": {"path": str(folder)}},
        )
        self.clients.append(client)
        asyncio.run(client.async_execute())

    def side_by_side(
        self, task: Callable[[Path], str], items: Sequence[Path], workers: int
    ) -> Iterator[str]:
        """The results of a task for each item, as they end; an error ends it all."""
        pool = ThreadPoolExecutor(workers)
        futures = [pool.submit(task, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):
                self.end()  # again and again: one may just be starting
                time.sleep(0.1)
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def end(self) -> None:
        """End the kernels that are still at work."""
        for client in self.clients:
            process = getattr(getattr(client.km, "provisioner", None), "process", None)
            if process is not None and process.poll() is None:
                process.kill()
