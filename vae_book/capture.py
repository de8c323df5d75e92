"""Training steps that a GPU repeats without Python: a step as a CUDA graph (chapter 14).

A step of a small model consists of many short kernels, the programs of a GPU, and Python may take
longer to start one than the GPU to run it. A CUDA graph is a recording of them, started as a whole.

A recording holds the kernels with the addresses and the numbers that they were started with. So
each batch is copied to where that of the recording was, and a step is recorded anew after a change
of what else is fixed: Python's numbers, such as the step size, and the places of the weights. While
a step is recorded no kernel runs.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vae_book import parallel
from vae_book.checks import trusted

Step = Callable[[Iterator[Any]], Tensor]  # takes the steps of some batches, gives sums
WARM_UP = 3  # steps before a recording, in which libraries and the optimizer get their memory
WAITS = "called a synchronizing CUDA operation"


class CudaGraph:
    """A recording on a CUDA device, after "whole-network capture" in PyTorch's notes on CUDA.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.graph: Any = None  # a torch.cuda.CUDAGraph, once there is a recording

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Use another stream than the default one in the block, as recordings demand."""
        before = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(before)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            before.wait_stream(self.stream)

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Collect what waits for the device in the block, which a recording could not hold.

        A recording that fails leaves torch's generators of that device in disorder.
        """
        waits: list[str] = []
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield waits
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits += [WAITS for each in caught if WAITS in str(each.message)]

    def capture(self, work: Callable[[], object]) -> None:
        """Record the kernels that ``work`` starts, in place of running them."""
        self.graph = None  # frees the memory of the one before
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            work()
        self.graph = graph

    def replay(self) -> None:
        """Run them."""
        self.graph.replay()


def graph_on(device: torch.device) -> CudaGraph | None:
    """What records on a device; None where nothing does."""
    return CudaGraph(device) if device.type == "cuda" else None


def captured_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> "CapturedStep | None":
    """What records a model's steps; None where nothing does, with a note if it is a GPU."""
    graph = graph_on(next(model.parameters()).device)
    if graph is None:
        return None
    reasons = {
        "several processes train together": parallel.world_size() > 1,
        "the model has hooks, which a recording would not call": _has_hooks(model),
    }
    for reason, holds in reasons.items():
        if holds:
            _note(reason)
            return None
    return CapturedStep(model, optimizer, graph)


class CapturedStep:
    """Takes training steps by recordings, and from Python what cannot be recorded.

    The first steps of a kind are taken from Python, as a warm-up; so are batches of another size
    than the first of an epoch. What a step reads from Python, but for what `epoch` is told and the
    options of the optimizer, stays in a recording as it was. Where recording fails, a warning says
    why, and the run goes on from Python.

    Args:
        model: its weights, their places and which are trained are watched.
        optimizer: one of torch's with an option ``capturable``; fused, as its state lies on the
            device then.
        graph: records and replays.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, graph: CudaGraph
    ) -> None:
        self.model, self.optimizer, self.graph = model, optimizer, graph
        self.fixed: object = None  # what the recording, or the warm-up for it, holds fixed
        self.steps = 0  # of that kind
        self.recorded = self.refused = False
        self.given: Any = ()  # the batch of the recording
        self.sums = torch.empty(0)  # its result

    def epoch(self, step: Step, batches: Iterable[Any], numbers: object) -> Tensor:
        """Take a step for each batch; the sum of what the steps give.

        Nothing is read back from the device.

        Args:
            step: takes the steps of some batches, and gives a tensor of sums.
            batches: tuples of tensors on the device and numbers.
            numbers: those of Python that a step depends on.
        """
        fixed, first = (numbers, self._state()), None
        totals = torch.zeros((), device=next(self.model.parameters()).device)
        with trusted(), self.graph.beside():
            for batch in batches:
                kind = [_outline(each) for each in batch]
                first = first or kind
                if kind == first:
                    sums = self._repeat(step, batch, (fixed, kind))
                else:
                    sums = step(iter([batch]))
                totals = totals + sums
        return totals

    def _state(self) -> object:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        groups = self.optimizer.param_groups
        return (
            [(each.data_ptr(), each.requires_grad) for each in tensors],
            [each.training for each in self.model.modules()],
            [[value for name, value in group.items() if name != "params"] for group in groups],
        )

    def _repeat(self, step: Step, batch: Any, fixed: object) -> Tensor:
        if fixed != self.fixed:
            self.fixed, self.steps, self.recorded = fixed, 0, False
        self.steps += 1
        if self.recorded:
            for place, new in zip(self.given, batch, strict=True):
                if isinstance(new, Tensor):
                    place.copy_(new)
            self.graph.replay()
            return self.sums
        if self.refused or self.steps < WARM_UP:
            return step(iter([batch]))
        with self.graph.watched() as waits:
            sums = step(iter([batch]))
        if waits:
            self._refuse(f"a step {waits[0]}")
        else:
            self._record(step, batch, torch.empty_like(sums))
        return sums

    def _record(self, step: Step, batch: Any, sums: Tensor) -> None:
        copies = (each.clone() if isinstance(each, Tensor) else each for each in batch)
        self.given, self.sums = type(batch)(*copies), sums
        groups = self.optimizer.param_groups
        try:
            for group in groups:  # only here: outside of a recording it makes the optimizer warn
                group["capturable"] = True
            self.graph.capture(lambda: self.sums.copy_(step(iter([self.given]))))
            self.recorded = True
        except Exception as error:  # of any kind: the step itself has worked before
            self._refuse(str(error.__context__ or error).split("\n")[0])
        finally:
            for group in groups:
                group["capturable"] = False

    def _refuse(self, reason: str) -> None:
        self.refused = True
        _note(reason)


def _outline(value: object) -> object:
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value


def _has_hooks(model: nn.Module) -> bool:
    before = ("_forward_pre_hooks", "_backward_pre_hooks")
    after = ("_forward_hooks", "_backward_hooks", "_post_accumulate_grad_hooks")
    parts = [*model.modules(), *model.parameters()]
    return any(getattr(part, name, None) for part in parts for name in before + after)


def _note(reason: str) -> None:
    """Say why there is no recording, once for all processes."""
    if parallel.is_main():
        message = f"steps are started from Python one by one, not by a CUDA graph: {reason}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
