"""Checkpoints: whole or not at all, numbers and never code."""

import errno
import math
import os
import pickle
import random

import numpy as np
import pytest
import torch

from vae_book.checkpoints import read_checkpoint, rehearse_checkpoint, write_checkpoint
from vae_book.files import WriteError
from vae_book.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian
from vae_book.models import CVAE, VAE, CompletionVAE, ConvVAE

HISTORY = {"kl": [1.5], "reconstruction": [2.5], "loss": [4.0], "held_out": [], "seconds": [0.1]}
COLUMNS = ("kl", "reconstruction", "loss", "held_out", "seconds")
PARTS = ("architecture", "weights", "optimizer", "history", "settings")
SETTINGS = {"batch_size": 4, "lr": 1e-3, "seed": 0}


def small(seed=0, **options):
    torch.manual_seed(seed)
    return VAE(**{"latent": 2, "hidden": 3, "image_shape": (1, 4, 4), **options})


def conditional(seed=0, **options):
    torch.manual_seed(seed)
    options = {"latent": 2, "hidden": 3, "image_shape": (1, 4, 4), "classes": 4, **options}
    return CVAE(**options)


def parts(made):
    """What the decoder puts out, mean and log-variance of q, and those of the prior."""
    return made.p_x.params, *made.q_z, *made.p_z


def stepped(model):
    """Adam after one step, so that it has a state."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.step()
    return optimizer


@pytest.fixture
def written(tmp_path):
    model = small()
    optimizer = stepped(model)
    path = tmp_path / "run" / "checkpoint.pt"  # in a folder that does not exist yet
    write_checkpoint(path, model, optimizer, HISTORY, SETTINGS)
    return path, model, optimizer


@pytest.mark.parametrize(
    "likelihood",
    [
        Bernoulli(),
        Bernoulli(relaxed=True),
        ContinuousBernoulli(),
        Gaussian(0.3),
        Gaussian(0.3, "shared", min_sigma=0.0),
        Gaussian(0.4, "pixel", min_sigma=0.1),
        Gaussian(np.float64(0.3), "shared", min_sigma=np.float64(0.1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 2, 5)])
def test_the_model_comes_back(tmp_path, likelihood, shape):
    model = small(likelihood=likelihood, image_shape=shape)
    write_checkpoint(tmp_path / "a.pt", model, stepped(model), HISTORY, SETTINGS)
    found = read_checkpoint(tmp_path / "a.pt").model("cpu")
    x, eps = torch.rand(7, *shape), torch.randn(7, 2)
    for before, after in zip(parts(model(x, eps)), parts(found(x, eps)), strict=True):
        assert torch.equal(before, after)
    assert type(found.likelihood) is type(likelihood)
    assert str(found.likelihood) == str(likelihood)  # which shows its arguments
    binary = x.round()
    before, after = (each(binary, eps).p_x.log_prob(binary) for each in (model, found))
    assert torch.equal(before, after)  # with the variance that was learned


@pytest.mark.parametrize("learned_prior", [False, True])
@pytest.mark.parametrize(
    "likelihood",
    [Bernoulli(), ContinuousBernoulli(), Gaussian(0.3, "shared"), Gaussian(0.3, "pixel")],
    ids=str,
)
def test_a_model_of_labels_comes_back(tmp_path, likelihood, learned_prior):
    model = conditional(likelihood=likelihood, learned_prior=learned_prior)
    if learned_prior:
        torch.nn.init.normal_(model.prior_network.weight)
    write_checkpoint(tmp_path / "a.pt", model, stepped(model), HISTORY, SETTINGS)
    found = read_checkpoint(tmp_path / "a.pt").model("cpu")
    assert type(found) is CVAE
    assert (found.classes, found.learned_prior) == (4, learned_prior)
    assert str(found.likelihood) == str(likelihood)
    x, eps, y = torch.rand(7, 1, 4, 4), torch.randn(7, 2), torch.arange(7) % 4
    for before, after in zip(parts(model(x, eps, y)), parts(found(x, eps, y)), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    "likelihood",
    [Bernoulli(), Bernoulli(relaxed=True), Gaussian(0.3, "shared"), Gaussian(0.3, "pixel")],
    ids=str,
)
@pytest.mark.parametrize("kind", [ConvVAE, CompletionVAE])
def test_a_model_of_convolutions_or_of_parts_comes_back(tmp_path, likelihood, kind):
    torch.manual_seed(0)
    sizes = {"latent": 2, "hidden": 3, "image_shape": (3, 4, 8), "likelihood": likelihood}
    given = {"seen_shape": (2, 4, 1)} if kind is CompletionVAE else {}
    model = kind(**sizes, **given)
    write_checkpoint(tmp_path / "a.pt", model, stepped(model), HISTORY, SETTINGS)
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    arguments = {"latent": 2, "hidden": 3, "image_shape": [3, 4, 8], **given}
    if given:
        arguments["seen_shape"] = [2, 4, 1]
    described = {k: v for k, v in checkpoint.architecture.items() if k != "likelihood"}
    assert described == {"kind": kind.__name__, **arguments}
    found = checkpoint.model("cpu")
    assert type(found) is kind
    assert str(found) == str(model)
    for name in (*sizes, *given):
        if name != "likelihood":
            assert getattr(found, name) == getattr(model, name)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, found.state_dict()[name])
        assert weight.stride() == found.state_dict()[name].stride()  # nor do convolutions slow down
    x, eps, told = torch.rand(7, 3, 4, 8), torch.randn(7, 2), [torch.rand(7, 2, 4, 1)][: len(given)]
    for before, after in zip(parts(model(x, eps, *told)), parts(found(x, eps, *told)), strict=True):
        assert torch.equal(before, after)
    other, its_optimizer = kind(**sizes, **given), stepped(kind(**sizes, **given))
    assert checkpoint.restore(other, its_optimizer, SETTINGS) == HISTORY
    for before, after in zip(parts(model(x, eps, *told)), parts(other(x, eps, *told)), strict=True):
        assert torch.equal(before, after)


def test_a_run_of_other_parts_is_not_gone_on_with(tmp_path):
    sizes = {"latent": 2, "hidden": 3, "image_shape": (3, 4, 4)}
    model, other = CompletionVAE(**sizes), CompletionVAE(**sizes, seen_shape=(1, 4, 4))
    write_checkpoint(tmp_path / "a.pt", model, stepped(model), HISTORY, SETTINGS)
    with pytest.raises(
        ValueError, match=r"^resume: .*\(seen_shape was \[1, 14, 14\] and is now \["
    ):
        read_checkpoint(tmp_path / "a.pt").restore(other, stepped(other), SETTINGS)


@pytest.mark.usefixtures("shapes_unchecked")
def test_arguments_of_numpy_do_not_spoil_the_checkpoint(tmp_path):
    model = conditional(classes=np.int64(4), learned_prior=np.bool_(True))
    write_checkpoint(tmp_path / "a.pt", model, stepped(model), HISTORY, SETTINGS)
    assert read_checkpoint(tmp_path / "a.pt").model("cpu").classes == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [VAE, ConvVAE])
def test_the_weights_come_back_in_their_own_type(tmp_path, dtype, kind):
    model = kind(2, 3, (1, 4, 4), likelihood=Gaussian(0.3, "shared")).to(dtype)
    write_checkpoint(tmp_path / "a.pt", model, torch.optim.Adam(model.parameters()), {}, {})
    found = read_checkpoint(tmp_path / "a.pt").model("cpu")
    for name, weight in model.state_dict().items():
        again = found.state_dict()[name]
        assert again.dtype == dtype
        assert torch.equal(weight, again)
        assert weight.stride() == again.stride()
    x, eps = torch.rand(7, 1, 4, 4), torch.randn(7, 2)
    assert torch.equal(model(x, eps).p_x.log_prob(x), found(x, eps).p_x.log_prob(x))


def test_a_folder_in_the_place_of_a_checkpoint_is_called_one(tmp_path):
    with pytest.raises(IsADirectoryError, match=f"^{tmp_path} is a folder, no checkpoint; "):
        read_checkpoint(tmp_path)


def test_the_model_goes_where_it_is_asked_to(written):
    path, *_ = written
    assert next(read_checkpoint(path).model("meta").parameters()).device.type == "meta"


def test_restore_puts_model_and_optimizer_back(written):
    path, model, optimizer = written
    other = small(seed=1)
    its_optimizer = torch.optim.Adam(other.parameters(), lr=1e-3)
    assert read_checkpoint(path).restore(other, its_optimizer, SETTINGS) == HISTORY
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    state, its_state = optimizer.state_dict()["state"], its_optimizer.state_dict()["state"]
    assert state.keys() == its_state.keys() == set(range(len(list(model.parameters()))))
    for i in state:
        assert state[i].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(value, its_state[i][name]) for name, value in state[i].items())


def test_restore_names_all_that_differs_and_touches_nothing(written):
    path, *_ = written
    other = small(seed=1, hidden=5)
    before = [p.clone() for p in other.parameters()]
    its_optimizer = torch.optim.Adam(other.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match=r"^resume: ") as error:
        read_checkpoint(path).restore(other, its_optimizer, {**SETTINGS, "seed": 3})
    assert "(hidden was 3 and is now 5; seed was 0 and is now 3)" in str(error.value)
    assert all(map(torch.equal, before, other.parameters()))
    assert its_optimizer.state_dict()["state"] == {}


def test_the_file_holds_numbers_and_no_code(written):
    path, model, _ = written
    content = torch.load(path, weights_only=True)
    assert content["history"] == HISTORY
    assert content["settings"] == SETTINGS
    assert content["architecture"] == {
        "kind": "VAE",
        "latent": 2,
        "hidden": 3,
        "image_shape": [1, 4, 4],
        "likelihood": {"kind": "Bernoulli", "relaxed": True},
    }
    assert content["weights"].keys() == model.state_dict().keys()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(written, monkeypatch, step):
    path, _, optimizer = written
    before = path.read_bytes()

    def full_disk(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(WriteError, match=r"checkpoint\.pt could not be written: No space left .*"):
        write_checkpoint(path, small(seed=1), optimizer, HISTORY, SETTINGS)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_rehearsal_changes_nothing_and_needs_the_room_of_a_checkpoint(written, monkeypatch):
    path, model, _ = written
    before, rehearsed = path.read_bytes(), []
    monkeypatch.setattr(os, "fsync", lambda number: rehearsed.append(os.fstat(number).st_size))
    rehearse_checkpoint(path, model)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    assert len(rehearsed) == 1
    assert len(before) <= rehearsed[0]
    model.to_mu.bias.data[0] = math.nan
    with pytest.raises(ValueError, match=r"^weights: to_mu.bias: expected finite"):
        rehearse_checkpoint(path, model)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("unexpected pos 64 vs 0")])
def test_a_checkpoint_that_does_not_fit_into_memory_says_so(written, monkeypatch, error):
    """The second is what torch makes of the first."""
    path, model, optimizer = written
    before = path.read_bytes()

    def full(*_):
        raise error

    monkeypatch.setattr(torch, "save", full)
    for write in (
        lambda: write_checkpoint(path, model, optimizer, {}, {}),
        lambda: rehearse_checkpoint(path, model),
    ):
        with pytest.raises(torch.OutOfMemoryError, match=r"^model: .* checkpoint that fits"):
            write()
    assert path.read_bytes() == before


def test_a_checkpoint_has_the_permissions_of_other_files(written):
    path, *_ = written
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("it_ran",)


def damaged(content):
    return {
        "empty": b"",
        "cut short": content[: len(content) // 2],
        "without its end": content[:-1],
        "noise": bytes(range(256)) * 8,
        "code": pickle.dumps(Harmful()),
    }


@pytest.mark.parametrize("damage", damaged(b""))
def test_a_damaged_file_is_named_and_runs_nothing(written, monkeypatch, damage):
    path, *_ = written
    monkeypatch.chdir(path.parent)
    path.write_bytes(damaged(path.read_bytes())[damage])
    with pytest.raises(ValueError, match=r"^path: .*checkpoint\.pt is damaged or not a checkpoint"):
        read_checkpoint(path)
    assert os.listdir() == [path.name]


def same(a, b):
    """Whether two contents agree to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def test_a_single_flipped_bit_is_refused_unless_nothing_reads_it(written):
    path, *_ = written
    content, whole = path.read_bytes(), vars(read_checkpoint(path))
    draw, refused = random.Random(0), []
    for place in (draw.randrange(8 * len(content)) for _ in range(200)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert same(vars(read_checkpoint(path)), whole), place
        except ValueError as error:
            refused.append(str(error))
    assert all(each.startswith(f"path: {path} is damaged") for each in refused)
    assert len(refused) > 50  # the rest is padding


def test_a_single_flipped_bit_of_a_number_is_always_refused(written):
    path, model, _ = written
    content = path.read_bytes()
    for weight in model.state_dict().values():
        number = weight.numpy().tobytes()[:4]
        assert number in content
        for bit in range(32):
            flipped = bytes(x ^ y for x, y in zip(number, (1 << bit).to_bytes(4), strict=True))
            path.write_bytes(content.replace(number, flipped))
            with pytest.raises(ValueError, match=r"^path: .*checkpoint\.pt is damaged"):
                read_checkpoint(path)


def put(content, value, *keys):
    """The content with another value in one place; without it if the value is `GONE`."""
    *outer, last = keys
    for key in outer:
        content = content[key]
    if value is GONE:
        del content[last]
    else:
        content[last] = value


GONE, WEIGHT, BIAS = object(), ("weights", "to_mu.weight"), ("weights", "to_mu.bias")
STATE = ("optimizer", "state")
WRONG = [  # value, where it is put, what the message names
    *((value, (part,), part) for value in (None, 3, [1, 2], torch.ones(2)) for part in PARTS),
    *((GONE, (part,), "TypeError") for part in PARTS),
    *(({}, (part,), "") for part in PARTS if part != "settings"),
    (1, ("more",), "TypeError"),
    (None, ("architecture", "likelihood"), "TypeError"),
    (GONE, ("architecture", "hidden"), "weights: .*400"),
    (1, ("architecture", "depth"), "TypeError"),
    (0, ("architecture", "hidden"), ""),
    (4, ("architecture", "hidden"), "weights: .*3"),
    (10**12, ("architecture", "hidden"), "weights"),  # for which no machine has the memory
    ("3", ("architecture", "hidden"), ""),
    ({"kind": "VAE"}, ("architecture", "likelihood"), "likelihood: .*got VAE"),
    (["kind"], ("architecture", "kind"), "TypeError"),
    (GONE, WEIGHT, "weights"),
    (torch.zeros(2), ("weights", "more"), "weights: .*'more'"),
    (None, WEIGHT, "weights: to_mu.weight: .*NoneType"),
    (torch.zeros(3, 2), WEIGHT, r"weights: to_mu.weight: .*\(2, 3\), got .*\(3, 2\)"),
    (torch.zeros(2, 3).int(), WEIGHT, "weights: to_mu.weight: .*int32"),
    (torch.tensor([0, math.nan]), BIAS, "weights: to_mu.bias: .*finite"),
    (torch.tensor([math.inf, 0]), BIAS, "weights: to_mu.bias: .*finite"),
    (GONE, STATE, "KeyError"),
    (None, STATE, "AttributeError"),
    ({}, STATE, "optimizer: expected 0, 1, .*, got nothing"),
    (GONE, (*STATE, 0), "optimizer"),
    (None, (*STATE, 0), "optimizer: 0"),
    (GONE, (*STATE, 0, "exp_avg"), "optimizer: 0: .*'exp_avg', .*got 'exp_avg_sq', 'step'"),
    (torch.zeros(4), (*STATE, 0, "exp_avg"), "optimizer: 0: exp_avg"),
    (torch.full((3,), math.nan), (*STATE, 1, "exp_avg_sq"), "optimizer: 1: exp_avg_sq: .*finite"),
    (torch.tensor(math.inf), (*STATE, 1, "step"), "optimizer: 1: step: .*finite"),
    (1.0, (*STATE, 1, "step"), "optimizer: 1: step"),
    *((GONE, ("history", name), f"history: {name} missing") for name in COLUMNS),
    *((None, ("history", name), "") for name in COLUMNS),
    *(([1.0, 2.0], ("history", name), "history: expected") for name in COLUMNS),
    *(([math.nan], ("history", name), "history: expected finite") for name in COLUMNS),
    *((["1"], ("history", name), "") for name in COLUMNS),
    ([], ("history", "loss"), "history: expected 1 numbers as loss"),
    ([1.0], ("history", "more"), "TypeError"),
]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("value", "keys", "message"), WRONG)
def test_a_file_of_the_right_form_with_a_wrong_part_is_refused(written, value, keys, message):
    path, *_ = written
    content = torch.load(path, weights_only=True)
    put(content, value, *keys)
    torch.save(content, path)
    named = rf"(?s)^path: .*checkpoint\.pt is damaged .*{message}.*; train again"
    with pytest.raises(ValueError, match=named):
        read_checkpoint(path)


@pytest.mark.parametrize("part", ["weights", "optimizer", "history"])
def test_what_could_not_be_read_back_is_not_written(written, part):
    path, model, optimizer = written
    before, history = path.read_bytes(), HISTORY
    if part == "weights":
        model.to_mu.bias.data[0] = math.nan
    elif part == "optimizer":
        optimizer.state[model.to_mu.bias]["exp_avg"][0] = math.inf
    else:
        history = {**HISTORY, "kl": [math.nan]}
    with pytest.raises(ValueError, match=f"^{part}: .*finite"):
        write_checkpoint(path, model, optimizer, history, SETTINGS)
    assert path.read_bytes() == before


def test_a_parameter_without_a_gradient_so_far_is_no_damage(tmp_path):
    model = small()
    model.to_log_var.requires_grad_(False)
    optimizer, path = stepped(model), tmp_path / "a.pt"
    write_checkpoint(path, model, optimizer, HISTORY, SETTINGS)
    other = small(seed=1)
    its_optimizer = torch.optim.Adam(other.parameters(), lr=1e-3)
    read_checkpoint(path).restore(other, its_optimizer, SETTINGS)
    moved = [any(its_optimizer.state[each]) for each in other.parameters()]
    assert moved == [each.requires_grad for each in model.parameters()]
    sum(p.square().sum() for p in other.parameters()).backward()
    its_optimizer.step()


def test_a_model_without_a_run_is_read_to_be_used_and_not_to_be_gone_on_with(tmp_path):
    model, path = small(), tmp_path / "a.pt"
    unused = torch.optim.Adam(model.parameters(), lr=1e-3)
    write_checkpoint(path, model, unused, {}, {})
    found = read_checkpoint(path)
    assert same(dict(found.model("cpu").state_dict()), dict(model.state_dict()))
    with pytest.raises(ValueError, match=r"^resume: the checkpoint comes from another run"):
        found.restore(model, unused, SETTINGS)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(2), Harmful()])
def test_a_file_that_something_else_saved_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "foreign.pt")
    with pytest.raises(ValueError, match=r"^path: foreign\.pt is damaged or not a checkpoint"):
        read_checkpoint("foreign.pt")
    assert os.listdir() == ["foreign.pt"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.pt"):
        read_checkpoint(tmp_path / "none.pt")


class Offset(Bernoulli):
    """A likelihood of one's own, with an argument."""

    def __init__(self, relaxed=False, offset=0.0):
        super().__init__(relaxed)
        object.__setattr__(self, "offset", offset)

    def pixel_log_prob(self, x, params):
        return super().pixel_log_prob(x, params + self.offset)


class Wider(CVAE):
    """A model of one's own, with an argument."""

    def __init__(self, factor=2, likelihood=None):
        super().__init__(2, 3 * factor, (1, 4, 4), likelihood)
        self.factor = factor


def test_a_model_and_a_likelihood_of_ones_own_come_back(tmp_path):
    model = Wider(3, Offset(True, 0.5))
    write_checkpoint(tmp_path / "run.pt", model, stepped(model), HISTORY, SETTINGS)
    again = read_checkpoint(tmp_path / "run.pt").model("cpu")
    assert type(again) is Wider
    assert type(again.likelihood) is Offset
    assert again.likelihood.offset == 0.5
    x, y, eps = torch.rand(5, 1, 4, 4), torch.arange(5), torch.randn(5, 2)
    expected = model(x, eps, y).p_x.log_prob(x)
    assert torch.equal(again(x, eps, y).p_x.log_prob(x), expected)


def test_what_would_be_read_back_as_another_is_refused(tmp_path):
    class Forgetful(VAE):
        def __init__(self, depth):
            super().__init__(latent=2, hidden=3)

    class Twin(VAE):
        pass

    first = Twin(latent=2, hidden=3)

    class Twin(VAE):
        pass

    class Halved(Bernoulli):
        def __init__(self, factor):
            super().__init__(relaxed=True)

    for model, message in [
        (Forgetful(3), "a model that .* got Forgetful, which has no attribute depth"),
        (first, "a model that .* got Twin, which shares its name with another"),
        (VAE(2, 3, likelihood=Halved(2)), "a likelihood that .* got Halved, .* attribute factor"),
    ]:
        with pytest.raises(ValueError, match=f"^checkpoint: expected {message}"):
            write_checkpoint(tmp_path / "run.pt", model, stepped(model), {}, SETTINGS)
    assert not list(tmp_path.iterdir())
    assert Twin is not type(first)


@pytest.mark.parametrize("kind", [None, "HierarchicalVAE"])
@pytest.mark.parametrize("part", ["model", "likelihood"])
def test_a_checkpoint_of_another_version_is_refused_with_what_to_do(written, part, kind):
    path, *_ = written
    content = torch.load(path, weights_only=True)
    described = content["architecture"] if part == "model" else content["architecture"][part]
    del described["kind"]
    if kind:
        described["kind"] = kind
    torch.save(content, path)
    message = f"^path: .*checkpoint.pt .*VAE, ConvVAE.* got {kind}; import .* train"
    message = message if part == "model" else message.replace("VAE, ConvVAE", "Bernoulli, ")
    with pytest.raises(ValueError, match=message) as got:
        read_checkpoint(path)
    assert "another version" in str(got.value)


def test_a_run_of_one_model_is_not_gone_on_with_by_another(written):
    path, *_ = written
    model = conditional()
    with pytest.raises(ValueError, match=r"^resume: ") as error:
        read_checkpoint(path).restore(model, torch.optim.Adam(model.parameters()), SETTINGS)
    assert (
        "(classes was None and is now 4; kind was 'VAE' and is now 'CVAE'; "
        "learned_prior was None and is now True; own_weights was None and is now True)"
        in str(error.value)
    )
