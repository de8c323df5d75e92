"""Recorded steps train the model that steps from Python train.

There need be no GPU for it: `Recorder` stands in for a CUDA graph. It notes each operation of a
step with the tensors and numbers that it got, undoes what the step has done, and repeats the
operations on the same tensors, whatever Python's variables have become since.
"""

import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vae_book import capture, parallel, training
from vae_book.capture import WAITS, WARM_UP, CapturedStep, CudaGraph, captured_step
from vae_book.checkpoints import read_checkpoint
from vae_book.images import Images, quadrants
from vae_book.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian
from vae_book.models import CVAE, VAE, CompletionVAE, ConvVAE
from vae_book.objectives import Objective
from vae_book.training import Settings, batches, fit, train_epoch

pytestmark = pytest.mark.usefixtures("one_thread")
N, FULL = 18, 4  # images; steps of four of them in an epoch, before one of two
SETTINGS = {"batch_size": 4, "lr": 3e-3, "seed": 5}
WAITING = {"_local_scalar_dense", "nonzero", "equal", "_unique2", "masked_select", "lift_fresh"}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def gray(n=N, dtype=torch.float32):
    """Random images."""
    images = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return Images(images, (7 * torch.arange(n) + 3) % 10, "random", "train")


def tiny(kind=VAE, **options):
    torch.manual_seed(0)
    return kind(**{"latent": 3, "hidden": 6, **options})


# A recording without a GPU ------------------------------------------------------------------------


def tensors(value):
    return [each for each in tree_leaves(value) if isinstance(each, torch.Tensor)]


def waits(operation, args):
    """Whether a GPU would have to be read, or to be sent what Python has, for an operation."""
    by_mask = "index" in operation.__name__ and any(
        each.dtype in (torch.bool, torch.uint8) for each in tensors(args[1:])
    )
    return by_mask or operation._schema.name.removeprefix("aten::") in WAITING


class NoFetching(TorchFunctionMode):
    """Refuses the methods that bring numbers to Python; on a CPU some of them are no operation."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in ("cpu", "numpy", "tolist", "item", "__array__", "__bool__"):
            raise RuntimeError(f"{function.__name__} waits for the device")
        return function(*args, **(kwargs or {}))


class NoWaiting(TorchDispatchMode):
    """Refuses what waits for the device, or notes it."""

    def __init__(self, found=None):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if waits(operation, args):
            if self.found is None:
                raise RuntimeError(f"{operation} waits for the device")
            self.found.append(str(operation))
        return operation(*args, **(kwargs or {}))


class Recording(NoWaiting):
    """The operations of a block, with their tensors and numbers; what they write is undone."""

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.known = [], {}, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for place, value in zip(operation._schema.arguments, args, strict=False):
            if place.alias_info is not None and place.alias_info.is_write:
                for each in tensors(value):
                    storage = each.untyped_storage()
                    self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        self.known |= {each.untyped_storage().data_ptr() for each in tensors((args, kwargs))}
        result = super().__torch_dispatch__(operation, types, args, kwargs)
        made = [
            each
            for each in tensors(result)
            if each.untyped_storage().data_ptr() not in self.known and each.is_floating_point()
        ]
        self.known |= {each.untyped_storage().data_ptr() for each in made}
        self.calls.append((operation, args, kwargs, result, made))
        return result

    def __exit__(self, *error):
        super().__exit__(*error)
        for storage, content in self.before.values():
            storage.copy_(content)
        with torch.no_grad():
            for *_, made in self.calls:
                for each in made:
                    each.fill_(torch.nan)  # it has not been computed yet

    @torch.no_grad()
    def replay(self):
        for operation, args, kwargs, result, _ in self.calls:
            again = operation(*args, **kwargs)
            for place, new in zip(tensors(result), tensors(again), strict=True):
                if place.data_ptr() != new.data_ptr():  # neither a view nor in place
                    place.copy_(new)


class Recorder(CudaGraph):
    """Stands in for a CUDA graph; it may be told how to fail."""

    def __init__(self, failure=None):
        self.captures = self.replays = 0
        self.failure = failure

    @contextmanager
    def beside(self):
        yield

    @contextmanager
    def watched(self):
        found = []
        with NoWaiting(found):
            yield found

    def capture(self, work):
        recording = Recording()
        with recording:
            work()
            if self.failure:
                raise self.failure
        self.recording, self.captures = recording, self.captures + 1

    def replay(self):
        self.replays += 1
        self.recording.replay()


@pytest.fixture
def recorder(monkeypatch):
    """The stand-in, for every device."""
    graph = Recorder()
    monkeypatch.setattr(capture, "graph_on", lambda device: graph)
    return graph


def test_the_stand_in_does_nothing_at_first_and_then_what_was_recorded():
    """A CUDA graph keeps numbers and places, and runs no kernel while it records."""
    graph, number, x, y = Recorder(), 2.0, torch.ones(2), torch.zeros(2)
    graph.capture(lambda: y.add_(number * x.clone()).mul_(1.0))
    assert y.tolist() == [0, 0]
    number = 3.0
    graph.replay()
    assert y.tolist() == [2, 2]
    x.fill_(10.0)
    y, old = torch.zeros(2), y
    graph.replay()
    assert (old.tolist(), y.tolist()) == ([22, 22], [0, 0])


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: x + torch.tensor(2.0),
        lambda x: x.new_tensor(2.0),
    ],
)
def test_what_waits_for_a_device_is_noticed(work):
    with pytest.raises(RuntimeError, match="waits for the device"), NoWaiting():
        work(torch.ones(3))
    with Recorder().watched() as found:
        work(torch.ones(3))
    assert found


# The same training --------------------------------------------------------------------------------


@dataclass
class Case:
    """A run: of what model, by what settings, and how many recordings it takes."""

    kind: type = VAE
    settings: object = None
    captures: int = 1
    model: object = None
    dtype: torch.dtype = torch.float32

    def run(self, device="cpu", **options):
        """What is trained, and its history."""
        model, data = self.start(device)
        settings = {**SETTINGS, **(self.settings or {})}
        held_out = None if settings.get("resample") else data[:6]
        return model, fit(model, data, **{"epochs": 5, "held_out": held_out, **settings, **options})

    def untrained(self):
        """The model; a likelihood is made anew, as it may have weights of its own."""
        options = {**(self.model or {})}
        if "likelihood" in options:
            options["likelihood"] = options["likelihood"]()
        return tiny(self.kind, **options)

    def start(self, device):
        """The model, and images for it."""
        model = self.untrained().to(device, self.dtype)
        data = gray(dtype=self.dtype)
        data = quadrants(data) if self.kind is CompletionVAE else data
        told = None if data.told is None else data.told.to(device)
        images, labels = data.images.to(device), data.labels.to(device)
        return model, Images(images, labels, data.source, data.split, told=told)


def assert_same_state(a, b):
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def timeless(history):
    return {name: value for name, value in asdict(history).items() if name != "seconds"}


class Reading(Bernoulli):
    """A likelihood that looks at its numbers in each step."""

    def pixel_log_prob(self, x, params):
        if not params.isfinite().all():
            raise ValueError("params: expected finite numbers")
        return super().pixel_log_prob(x, params)


class Made(Bernoulli):
    """A likelihood that sends a number to the device in each step."""

    def pixel_log_prob(self, x, params):
        return super().pixel_log_prob(x, params) * params.new_tensor([1.0])


class Fetched(Bernoulli):
    """A likelihood that computes on the CPU."""

    def pixel_log_prob(self, x, params):
        return super().pixel_log_prob(x, params).cpu().to(params.device)


class Rising(Objective):
    """An objective of one's own, which uses the epoch in its own way."""

    def __call__(self, terms, q_z, epoch=0):
        return (1 + epoch) * terms.kl - terms.log_likelihood


CASES = {
    "VAE": Case(),
    "ConvVAE": Case(ConvVAE),
    "CVAE": Case(CVAE),
    "CVAE, N(0, I)": Case(CVAE, model={"learned_prior": False, "own_weights": False}),
    "CompletionVAE": Case(CompletionVAE),
    "float64": Case(dtype=torch.float64),
    "bfloat16": Case(settings={"precision": "bfloat16"}),
    "bfloat16, CVAE": Case(CVAE, {"precision": "bfloat16"}),
    "draws": Case(settings={"n_samples": 3}),
    "iwae": Case(settings={"n_samples": 3, "objective": Objective(bound="iwae")}),
    "iwae-dreg": Case(settings={"n_samples": 3, "objective": Objective(bound="iwae-dreg")}),
    "resample": Case(settings={"resample": True}, model={"likelihood": Bernoulli}),
    "resample, CVAE": Case(CVAE, {"resample": True}, model={"likelihood": Bernoulli}),
    "later_lr": Case(settings={"later_lr": ((2, 1e-3), (4, 1e-4))}, captures=3),
    "warm_up": Case(settings={"objective": Objective(beta=2.0, warm_up=3)}, captures=4),
    "one's own": Case(settings={"objective": Rising()}, captures=5),
    "free nats": Case(settings={"objective": Objective(free_nats=0.055)}),
    "naive": Case(settings={"objective": Objective(penalty="naive")}),
    "ContinuousBernoulli": Case(model={"likelihood": ContinuousBernoulli}),
    "Gaussian": Case(model={"likelihood": partial(Gaussian, 0.5)}),
    "Gaussian, shared": Case(model={"likelihood": partial(Gaussian, 0.5, "shared")}),
    "Gaussian, pixel": Case(model={"likelihood": partial(Gaussian, 0.5, "pixel")}),
    "one batch": Case(settings={"batch_size": 100}),
}


@pytest.mark.parametrize("name", CASES)
def test_recorded_steps_give_the_same_weights_and_history(name, recorder):
    case = CASES[name]
    plain, expected = case.run(capture=False)
    assert recorder.captures == 0
    model, history = case.run()
    assert_same_state(model, plain)
    assert timeless(history) == timeless(expected)
    full = FULL if name != "one batch" else 1
    assert recorder.captures == case.captures
    assert recorder.replays == 5 * full - case.captures * WARM_UP > 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a run trains in one go, its history and its checkpoint."""
    checkpoint = tmp_path_factory.mktemp("whole") / "whole.pt"
    return *CASES["CVAE"].run(capture=False, checkpoint=checkpoint), read_checkpoint(checkpoint)


@pytest.mark.parametrize("recorded", [(False, True), (True, False), (True, True)])
def test_a_run_goes_on_from_a_checkpoint_whichever_way_it_was_trained(
    recorded, uninterrupted, recorder, tmp_path
):
    plain, expected, whole = uninterrupted
    options = {"checkpoint": tmp_path / "parts.pt", "resume": True}
    CASES["CVAE"].run(epochs=2, capture=recorded[0], **options)
    model, history = CASES["CVAE"].run(capture=recorded[1], **options)
    assert recorder.captures == sum(recorded)
    assert_same_state(model, plain)
    assert timeless(history) == timeless(expected)
    parts = read_checkpoint(tmp_path / "parts.pt")
    torch.testing.assert_close(parts.optimizer, whole.optimizer, rtol=0, atol=0)


def new_places(model):
    for each in model.parameters():
        each.data = each.data.clone()


def other_values(model):
    for each in model.parameters():
        each.data.mul_(0.9)


def one_part(model):
    model.decoder.requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "captures"), [(new_places, 2), (other_values, 1), (one_part, 2)]
)
def test_what_a_callback_does_to_the_model_is_respected(change, captures, recorder):
    found = []
    for recorded in (False, True):
        model = tiny()

        def on_epoch(history, model=model):
            if history.epochs == 2:
                change(model)

        fit(model, gray(), epochs=4, capture=recorded, on_epoch=on_epoch, **SETTINGS)
        found.append(model)
    assert_same_state(*found)
    assert recorder.captures == captures


def test_losses_are_infinite_in_both_ways(recorder):
    for recorded in (False, True):
        with pytest.raises(ValueError, match=r"^lr: the loss of epoch \d "):
            fit(tiny(), gray(), epochs=2, capture=recorded, **{**SETTINGS, "lr": 1e20})
    assert recorder.replays


# No waiting ---------------------------------------------------------------------------------------


def second_epoch(case, device):
    """A model and its optimizer, what takes the steps of batches, and what makes the batches."""
    model, data = case.start(device)
    settings = Settings(**{**SETTINGS, **(case.settings or {})})
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    step = partial(train_epoch, model, optimizer=optimizer, settings=settings, epoch=1)
    return model, optimizer, step, partial(batches, model, data, settings, 1)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_read_back_within_an_epoch(name, recorded):
    """Not for a whole epoch from its first batch on: neither in the loop nor by a recording."""
    model, optimizer, step, parts_of_an_epoch = second_epoch(CASES[name], "cpu")
    graph = Recorder()
    captured = CapturedStep(model, optimizer, graph)
    # A recording is made in the first epoch, or in a later one if each has one batch only.
    epochs = (WARM_UP if name == "one batch" else 2) if recorded else 1
    for _ in range(epochs):
        parts = parts_of_an_epoch()
        with NoWaiting(), NoFetching():
            totals = captured.epoch(step, parts, 1) if recorded else step(parts)
    assert totals.isfinite().all()
    assert graph.captures == recorded


class NoCrossing(TorchDispatchMode):
    """Refuses copies from one device to another."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        devices = {each.device.type for each in tensors((args, result))}
        if len(devices) > 1 and "copy" in operation.__name__:
            raise RuntimeError(f"{operation} copies to another device")
        return result


def pretended_step(case, monkeypatch):
    """A forward pass on tensors without numbers that say that they are on a GPU.

    They refuse to tell a number, and to be mixed with tensors of the CPU. The engine that goes
    backwards would look for the GPU.
    """
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, **memory_format: model)
    settings = Settings(**{**SETTINGS, **(case.settings or {})})
    with FakeTensorMode(), torch.device("cuda"):
        model = case.untrained()
        x = torch.empty(4, *model.image_shape)
        eps = torch.empty(*[3] * (settings.n_samples == 3), 4, 3)
        y = torch.zeros(4, dtype=torch.int64) if case.kind is CVAE else None
        y = torch.empty(4, *model.seen_shape) if case.kind is CompletionVAE else y
        batch = training.Batch(x, y, eps, 0.25)
        optimizer = torch.optim.Adam(model.parameters())  # without gradients it does nothing
        with NoCrossing():
            return train_epoch(model, iter([batch]), optimizer, settings, 1)


@pytest.mark.parametrize("name", [name for name in CASES if "float" not in name])
def test_a_step_stays_on_its_device(name, monkeypatch):
    assert pretended_step(CASES[name], monkeypatch).device.type == "cuda"


@pytest.mark.parametrize(
    ("kind", "message"), [(Reading, "_local_scalar"), (Made, "copies"), (Fetched, "copies")]
)
def test_the_pretended_gpu_notices_a_step_that_leaves_it(kind, message, monkeypatch):
    case = Case(model={"likelihood": partial(kind, relaxed=True)})
    with pytest.raises(RuntimeError, match=message):
        pretended_step(case, monkeypatch)


# Falling back -------------------------------------------------------------------------------------


@pytest.fixture
def plain():
    """A run without recordings."""
    return CASES["VAE"].run(capture=False)


NOTE = "^steps are started from Python one by one, not by a CUDA graph: "


def same_as(plain, found):
    assert_same_state(plain[0], found[0])
    assert timeless(plain[1]) == timeless(found[1])


def test_a_recording_that_fails_is_told_once_and_nothing_is_lost(plain, recorder):
    recorder.failure = RuntimeError("operation not permitted when stream is capturing\nmore")
    with pytest.warns(RuntimeWarning, match=NOTE + "operation not .* capturing$") as told:
        same_as(plain, CASES["VAE"].run())
    assert (len(told), recorder.captures, recorder.replays) == (1, 0, 0)


def test_the_first_of_two_errors_is_the_reason(plain, recorder):
    recorder.failure = RuntimeError("the capture is invalid")
    recorder.failure.__context__ = ValueError("what the step has said")
    with pytest.warns(RuntimeWarning, match=NOTE + "what the step has said$"):
        same_as(plain, CASES["VAE"].run())


def test_a_step_that_reads_from_the_device_is_not_recorded(recorder):
    case = Case(model={"likelihood": partial(Reading, relaxed=True)})
    plain = case.run(capture=False)
    with pytest.warns(RuntimeWarning, match=NOTE + "a step aten._local_scalar_dense") as told:
        same_as(plain, case.run())
    assert (len(told), recorder.captures) == (1, 0)


def test_hooks_are_called(recorder):
    model, calls = tiny(), []
    model.to_mu.register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(RuntimeWarning, match=NOTE + "the model has hooks"):
        fit(model, gray(), epochs=2, **SETTINGS)
    assert len(calls) == 1 + 2 * (FULL + 1)  # the first by check_fit
    assert recorder.captures == 0


def test_several_processes_take_their_steps_from_python(recorder, monkeypatch):
    model = tiny()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    with pytest.warns(RuntimeWarning, match=NOTE + "several processes train together$"):
        assert captured_step(model, optimizer) is None
    monkeypatch.setattr(parallel, "rank", lambda: 1)  # who says nothing
    assert captured_step(model, optimizer) is None


def test_a_device_without_graphs_is_no_news():
    model = tiny()
    assert captured_step(model, torch.optim.Adam(model.parameters())) is None


def test_what_torch_says_about_waiting_is_collected(monkeypatch):
    modes = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    graph = CudaGraph.__new__(CudaGraph)
    with graph.watched() as waits:
        warnings.warn(f"{WAITS} (Triggered internally)", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
        assert modes[-1] == "warn"
    assert (waits, modes) == ([WAITS], [0, "warn", 0])


def test_a_recording_that_failed_is_not_kept(monkeypatch):
    """Nor is the one before, which was of something else."""
    graph, streams = CudaGraph.__new__(CudaGraph), []
    graph.stream, graph.graph = "a stream", None

    @contextmanager
    def recording(into, stream, capture_error_mode):
        streams.append(stream)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    graph.capture(lambda: None)
    assert graph.graph is not None
    with pytest.raises(ZeroDivisionError):
        graph.capture(lambda: 1 / 0)
    assert graph.graph is None
    assert streams == ["a stream"] * 2


# On a GPU -----------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_records_the_steps_and_ends_where_python_does(name, monkeypatch):
    graphs = []

    class Counting(CudaGraph):
        def replay(self):
            graphs.append(self)
            super().replay()

    monkeypatch.setattr(capture, "graph_on", Counting)
    plain, expected = CASES[name].run("cuda", capture=False)
    model, history = CASES[name].run("cuda")
    assert graphs
    tolerance = {"rtol": 1e-3, "atol": 1e-4}  # Adam makes full steps of the roundings of zero
    for weight, same in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(weight, same, **tolerance)
    assert history.loss == pytest.approx(expected.loss, rel=1e-4)
    assert history.held_out == pytest.approx(expected.held_out, rel=1e-4)


@needs_cuda
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_is_not_waited_for_within_an_epoch(name, recorded):
    model, optimizer, step, parts_of_an_epoch = second_epoch(CASES[name], "cuda")
    captured = CapturedStep(model, optimizer, CudaGraph(torch.device("cuda", 0)))
    for epoch in range(WARM_UP + 1):
        parts = parts_of_an_epoch()
        torch.cuda.set_sync_debug_mode("error" if epoch == WARM_UP else "default")
        try:
            totals = captured.epoch(step, parts, 1) if recorded else step(parts)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert totals.isfinite().all()


@needs_cuda
def test_a_step_that_reads_from_a_gpu_is_told_and_taken_from_python():
    case = Case(model={"likelihood": partial(Reading, relaxed=True)})
    with pytest.warns(RuntimeWarning, match=NOTE + "a step called a synchronizing"):
        model, _ = case.run("cuda")
    plain, _ = case.run("cuda", capture=False)
    for weight, same in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(weight, same, rtol=1e-3, atol=1e-4)
