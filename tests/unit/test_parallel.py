"""Several processes, started by ``torchrun`` or ``--processes``, do what one process does.

Most are forks (tests/forks.py). From fresh interpreters are those that train what one process
trains, and for each launcher those of which one is killed.
"""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import forks
from tests.rank import train
from vae_book import parallel
from vae_book.__main__ import main
from vae_book.checkpoints import read_checkpoint

# 36 training images in steps of 7, shared 4 to 3, and a last one of 1: a process is left without.
TRAIN = ["train", "--epochs", "4", "--batch-size", "7", "--hidden", "16", "--latent", "2"]
# The name of this machine need not resolve.
TORCHRUN = ["torch.distributed.run", "--standalone", "--local-addr=localhost", "--nproc-per-node=2"]
CPU = {"VAE_BOOK_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}


def launch(*arguments, how=forks.run, **environment):
    """Run a module to its end: in forks, or from fresh interpreters if ``how`` is `fresh`."""
    return how("-m", *map(str, arguments), env={**os.environ, **CPU, **environment})


def fresh(*arguments, env):
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 random images, of which 36 are for training."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    (root / "all").mkdir()
    for i, pixels in enumerate(rng.integers(0, 256, (40, 28, 28), dtype=np.uint8)):
        Image.fromarray(pixels).save(root / "all" / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    """The same run by one process, and by two of either launcher; their folder, what they print."""
    out = tmp_path_factory.mktemp("runs")
    options = [*TRAIN, "--binary", "--source", str(folder), "--out"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("VAE_BOOK_DEVICE", "cpu")
        main([*options, str(out / "one")])
    two = launch(*TORCHRUN, "-m", "vae_book", *options, out / "two", how=fresh)
    also_two = launch("vae_book", *options, out / "also two", "--processes", "2")
    for each in (two, also_two):
        assert each.returncode == 0, each.stderr
    return out, printed.getvalue(), two.stdout, also_two.stdout


def same_averages(one, two):
    """Whether the states of Adam in two checkpoints are those of the same gradients."""
    for i, state in one.optimizer["state"].items():
        for name, value in state.items():
            scale = value.abs().max().item()
            torch.testing.assert_close(
                two.optimizer["state"][i][name], value, rtol=1e-4, atol=1e-5 * scale
            )


@pytest.mark.parametrize("name", ["two", "also two"])
def test_two_processes_train_the_model_that_one_trains(runs, name):
    out, *_ = runs
    one, two = (read_checkpoint(out / each / "checkpoint.pt") for each in ("one", name))
    assert one.settings == two.settings
    assert one.weights.keys() == two.weights.keys()
    for name, weight in one.weights.items():
        torch.testing.assert_close(two.weights[name], weight, rtol=1e-5, atol=1e-6)
    # Adam forgives a gradient of the wrong scale; its running averages of the gradients tell.
    same_averages(one, two)
    for term in ("reconstruction", "kl", "held_out"):
        assert len(one.history[term]) == 4
        assert two.history[term] == pytest.approx(one.history[term], rel=1e-6)


def test_one_process_writes_and_prints_for_both(runs):
    out, one, *others = runs
    names = sorted(path.name for path in (out / "one").iterdir())
    assert len(names) == 2 + 2 * 4
    assert one.count("\n") == 1
    for name, printed in zip(("two", "also two"), others, strict=True):
        assert sorted(path.name for path in (out / name).iterdir()) == names
        assert printed == one.replace(f"{out / 'one'}", f"{out / name}")


def test_settings_that_all_refuse_are_told_once(runs, folder):
    out, *_ = runs
    options = [*TRAIN, "--source", folder, "--out", out / "two", "--resume", "--lr", "5"]
    failed = launch(*TORCHRUN, "-m", "vae_book", *options)
    assert failed.returncode != 0
    assert failed.stderr.count("vae_book: error: ") == 1
    assert "lr was 0.001 and is now 5.0" in failed.stderr


def test_when_one_process_fails_the_other_does_not_wait_for_it(folder, tmp_path):
    """Only the main process writes; the other one is in the next epoch when that fails."""
    (tmp_path / "sample_0002.png").mkdir()
    options = [*TRAIN, "--source", folder, "--out", tmp_path]
    failed = launch(*TORCHRUN, "-m", "vae_book", *options)
    assert failed.returncode != 0
    assert failed.stderr.count("vae_book: error: ") == 1
    assert "sample_0002.png" in failed.stderr
    assert "gloo" not in failed.stderr  # nor does it bury the message
    assert len(read_checkpoint(tmp_path / "checkpoint.pt").history["kl"]) == 1


def workers_of(process):
    """The processes that torchrun has started, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid:  # a fork has the environment of before, but a name
                told = (path / "comm").read_text() + (path / "environ").read_text()
                found[int(re.search(r"(?:^rank |\0RANK=)(\d+)", told)[1])] = int(path.name)
    return found


LAUNCHERS = {
    "one process": ["vae_book", *TRAIN],
    "torchrun": [*TORCHRUN, "-m", "vae_book", *TRAIN],
    "--processes": ["vae_book", *TRAIN, "--processes", "2"],
}
AGAIN = "; the same command with --resume goes on after the last whole epoch"
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="needs /proc to find a rank"
)


@pytest.fixture
def started(folder, tmp_path):
    """Start a run that goes on until it is ended; its process, once there is a checkpoint."""
    with (tmp_path / "said").open("w") as said, contextlib.ExitStack() as stack:

        def start(launcher, how=forks.start):
            command = [*launcher, "--epochs", "100000", "--source", folder, "--out"]
            scratch = tmp_path / "scratch"
            scratch.mkdir()
            environment = {**os.environ, **CPU, "TMPDIR": str(scratch)}
            options = {"env": environment, "stdout": said, "stderr": said}
            running = how("-m", *map(str, command), str(tmp_path / "run"), **options)
            stack.callback(running.kill)
            for _ in range(4800):
                if (tmp_path / "run" / "checkpoint.pt").exists() or running.poll() is not None:
                    break
                time.sleep(0.05)
            return running

        yield start


def start_fresh(*arguments, **options):
    return subprocess.Popen([sys.executable, *arguments], **options)


def lines(text):
    """All that was said but the progress bar."""
    said = [each for each in text.splitlines() if each.strip()]
    return [each for each in said if not re.search("epoch/s|s/epoch", each)]


@needs_proc
@pytest.mark.parametrize(("launcher", "rank"), [("torchrun", 0), ("--processes", 1)])
def test_a_killed_process_is_named_once_with_how_to_go_on(
    started, folder, tmp_path, launcher, rank
):
    how = start_fresh if launcher == "torchrun" else forks.start
    running, out = started(LAUNCHERS[launcher], how), tmp_path / "run"
    os.kill(workers_of(running)[rank], signal.SIGKILL)
    assert running.wait(timeout=120) != 0
    said = lines((tmp_path / "said").read_text())
    expected = f"vae_book: error: the process of rank {rank} was killed or crashed{AGAIN}"
    assert [line for line in said if line.startswith("vae_book: ")] == [expected]
    assert not [line for line in said if "[rank" in line or "gloo" in line]
    if launcher == "--processes":  # torchrun has something to say, too
        assert said == [expected]
    done = len(read_checkpoint(out / "checkpoint.pt").history["kl"])
    assert done >= 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAE_BOOK_DEVICE", "cpu")
        more = ["--epochs", str(done + 1), *TRAIN[3:], "--source", str(folder), "--out", str(out)]
        main(["train", *more, "--resume"])
    assert len(read_checkpoint(out / "checkpoint.pt").history["kl"]) == done + 1


@needs_proc
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_somebody_ends_stops_all_with_one_line(started, tmp_path, rank):
    running = started(LAUNCHERS["--processes"])
    os.kill(workers_of(running)[rank], signal.SIGTERM)
    assert running.wait(timeout=120) == 128 + signal.SIGTERM
    assert lines((tmp_path / "said").read_text()) == [f"vae_book: stopped{AGAIN}"]


@needs_proc
def test_where_all_processes_are_killed_the_launcher_tells(started, tmp_path):
    running = started(LAUNCHERS["--processes"])
    workers = workers_of(running)
    os.kill(running.pid, signal.SIGSTOP)  # it finds both gone at once
    for process in workers.values():
        os.kill(process, signal.SIGKILL)
    os.kill(running.pid, signal.SIGCONT)
    assert running.wait(timeout=120) == 1
    both = "the process of rank 0 and the process of rank 1"
    said = lines((tmp_path / "said").read_text())
    assert said == [f"vae_book: error: {both} was killed or crashed{AGAIN}"]


@needs_proc
def test_processes_do_not_stay_behind_without_their_launcher(started, tmp_path):
    running = started(LAUNCHERS["--processes"])
    workers = workers_of(running)
    running.kill()
    running.wait(timeout=120)
    for _ in range(1200):
        if not any(Path(f"/proc/{process}").exists() for process in workers.values()):
            break
        time.sleep(0.05)
    else:
        pytest.fail("a process goes on")
    said = lines((tmp_path / "said").read_text())
    assert said == [f"vae_book: error: the launcher of the processes was killed or crashed{AGAIN}"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("launcher", ["one process", "--processes"])
def test_a_run_stops_with_one_line(started, tmp_path, launcher, number):
    running = started(LAUNCHERS[launcher])
    running.send_signal(number)
    assert running.wait(timeout=120) == 128 + number
    assert lines((tmp_path / "said").read_text()) == [f"vae_book: stopped{AGAIN}"]
    read_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert not [*(tmp_path / "scratch").glob("torchelastic*")]  # nor is a folder of logs left


@pytest.mark.parametrize(
    ("limit", "more", "message"),
    [
        (40_000, [], r"checkpoint\.pt could not be written: File too large .*--resume goes on"),
        (-1, ["--lr", "1e6"], r"lr: the loss of epoch \d+ is infinite or NaN.* smaller steps than"),
    ],
)
def test_what_stops_several_processes_is_one_line(folder, tmp_path, limit, more, message):
    out = tmp_path / "run"
    program = (
        "import resource, runpy\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "runpy.run_module('vae_book', run_name='__main__', alter_sys=True)\n"
    )
    options = [*LAUNCHERS["--processes"][1:], *more, "--epochs", "30", "--source", folder]
    # Or modules would be compiled into files that the limit cuts off.
    environment = {**os.environ, **CPU, "PYTHONDONTWRITEBYTECODE": "1"}
    failed = forks.run("-c", program, *options, "--out", out, env=environment)
    assert failed.returncode == 2
    assert len(lines(failed.stderr)) == 1, failed.stderr
    assert re.search(f"^vae_book: error: .*{message}", lines(failed.stderr)[0])
    assert not failed.stdout
    if (out / "checkpoint.pt").exists():
        read_checkpoint(out / "checkpoint.pt")


def test_torchrun_and_processes_do_not_go_together(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # as torchrun sets it
    options = [*TRAIN, "--processes", "2", "--source", folder, "--out", tmp_path / "run"]
    with pytest.raises(SystemExit):
        main(list(map(str, options)))
    assert "vae_book: error: processes: expected 1 under torchrun" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes have left behind, in a folder and in two dictionaries."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    done = launch(*TORCHRUN, "-m", "tests.rank", folder, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The checkpoints that one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    train(folder)
    return folder


@pytest.mark.parametrize("name", ["labels", "parts", "convolutions", "free nats", "weights"])
def test_each_kind_of_model_is_trained_as_by_one_process(alone, ranks, name):
    one, two = (read_checkpoint(run / f"{name}.pt") for run in (alone, ranks[0]))
    # Adam makes full steps of 1e-3 out of gradients of any size: roundings in the smallest show.
    torch.testing.assert_close(one.weights, two.weights, rtol=1e-5, atol=1e-5)
    for part, weight in one.weights.items():
        assert weight.any(-1).all() or not part.startswith("prior")
    # And it forgives a gradient of the wrong scale; its running averages of the gradients tell.
    assert len(one.optimizer["state"]) == len(one.weights)
    same_averages(one, two)
    for term in ("reconstruction", "kl", "held_out"):
        assert two.history[term] == pytest.approx(one.history[term], rel=1e-6)


def test_processes_that_see_different_things_refuse_to_go_on_together(ranks):
    expected = {
        "one sees none": r"checkpoint: .* same .* got one of 1 epochs, weights of SHA-256 \w+ in "
        "the process of rank 0 and none in the process of rank 1; all machines",
        "one is behind": r"checkpoint: .* got one of 2 epochs, .* and one of 1 epochs, .* rank 1;",
        "both see the same": "3 epochs$",
        "other epochs": "epochs: expected the same in all processes, got 3 in .* and 4 in",
        "other images": "images: expected the same .* got 8 images of SHA-256",
        "fewer images": "images: expected the same .* and 7 images of SHA-256",
    }
    for each in ranks[1]:
        assert each["said"].keys() == expected.keys()
        for case, message in expected.items():
            assert re.match(message, each["said"][case]), case


def test_a_mistake_in_one_process_keeps_its_traceback(folder, tmp_path):
    (tmp_path / "mistaken.py").write_text(
        "from vae_book import commands, parallel\n"
        "from vae_book.__main__ import main\n"
        "def fit(*arguments, **options):\n"
        "    assert parallel.rank() == 0, 'a bug in one'\n"
        "    parallel._wait_for_all()\n"
        "commands.fit = fit\n"
        "main()\n"
    )
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    options = [*TRAIN, "--source", folder, "--out", tmp_path]
    failed = launch(*TORCHRUN, tmp_path / "mistaken.py", *options, PYTHONPATH=path)
    assert failed.returncode != 0
    assert "[rank1]: AssertionError: a bug in one" in failed.stderr
    assert "[rank0]" not in failed.stderr
    assert "vae_book: " not in failed.stderr


def test_what_the_processes_share(ranks):
    seen = [dict(each["seen"]) for each in ranks[1]]
    assert [each.pop("is_main") for each in seen] == [True, False]
    assert sorted(each.pop("fails_first") for each in seen) == [False, True]
    torch.manual_seed(0)
    first = torch.nn.Linear(2, 1).weight.tolist()
    for each in seen:
        assert each == {
            "world_size": 2,
            "sum": [3.0, 10.0],
            "cache": True,
            "error": "all meet it",
            "left": 1,
            "weights": first,
            "gradients": [[[1.5, 5.0]], [1.5]],
            "compiler": False,  # which would take a second in each process
        }


def test_without_torchrun_there_is_one_process():
    with parallel.process_group(), parallel.main_first():
        assert not torch.distributed.is_initialized()
        assert (parallel.rank(), parallel.world_size(), parallel.is_main()) == (0, 1, True)
        totals = torch.tensor([1.0, 2.0])
        assert parallel.summed(totals).tolist() == [1.0, 2.0]
        assert parallel.fails_first()
        assert parallel.fails_first()  # a process of its own always tells
