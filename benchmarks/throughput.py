"""Training speed: `vae_book.training.fit` beside other loops of the same network, interleaved.

The loops are those of `contestants.py`: the classic script of most tutorials, the library pythae, a
bare loop without checks or histories, and the floor, the network's matrix products alone. Each runs
in a process of its own; they take turns, an epoch each. The first epoch of each is left out. Epochs
are short, so that what else the machine does weighs on all loops of a turn alike; where the floor
takes longer than elsewhere, the turn was disturbed. On a CUDA device `fit` replays its steps as a
CUDA graph, the others start theirs from Python; this has not been measured on a GPU.

    make benchmark                                    the fully connected VAE
    python benchmarks/throughput.py --network cvae    another: conv (with --images 4000) or cvae
    python benchmarks/throughput.py --write           also keep it, as book/results/benchmark_*.json

A ratio belongs to a processor, so its name is printed and kept with it. pythae is installed at the
first run, into an environment of its own under _build; without a network it is left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from contestants import BATCH, CONTESTANTS

from vae_book.data import load_images
from vae_book.device import best_device, describe, processor
from vae_book.files import replacing
from vae_book.images import DataError

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "_build" / "peers"
# pythae and what it needs beside the packages of the book, which it shares.
PYTHAE = ["pythae==0.1.2", "cloudpickle", "imageio", "pydantic", "pydantic-core"]
PYTHAE += ["annotated-types", "typing-inspection"]


def peers() -> Path | None:
    """The Python of an environment that has pythae; None where it cannot be made."""
    python = PEERS / "bin" / "python"
    made = PEERS / ".ready"
    if not made.exists():
        uv = [sys.executable, "-m", "uv"]
        for command in (
            [*uv, "venv", "-q", "--clear", "-p", sys.executable, str(PEERS)],
            [*uv, "pip", "install", "-q", "--no-deps", "-p", str(python), *PYTHAE],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"pythae cannot be installed, so it is left out: {done.stderr[-300:]}")
                return None
        own = next(path for path in sys.path if path.endswith("site-packages"))
        (site,) = PEERS.glob("lib/python*/site-packages")
        (site / "of_the_book.pth").write_text(own + "\n")
        made.touch()
    return python


class Contestant:
    """A loop in a process of its own."""

    def __init__(self, python: Path | str, *arguments: str) -> None:
        self.complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives with the process
        self.process = subprocess.Popen(
            [python, Path(__file__).with_name("contestants.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            text=True,
        )
        self.seconds: list[float] = []
        self.peak = 0.0
        self.answer()  # it is ready

    def answer(self) -> dict[str, float]:
        """What it says at the end of its turn."""
        line = self.process.stdout.readline()
        if not line:
            self.complaints.seek(0)
            said = self.complaints.read()[-2000:]
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended early:\n{said}")
        return json.loads(line)

    def epoch(self) -> None:
        """Its turn."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        said = self.answer()
        self.seconds.append(said["seconds"])
        self.peak = said["peak_mib"]

    def end(self) -> None:
        """No more turns."""
        self.process.stdin.close()
        self.process.wait()


def digits(source: str, n: int | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Images and labels; the bundled digits, repeated, where there are no others."""
    try:
        data = load_images("train", source, torch.device("cpu"), size=28, channels=1)
        images, labels, name = data.images.numpy(), data.labels.numpy(), data.source
    except DataError as error:
        print(f"{error}\nUsing the bundled digits, repeated to 60,000 images.")
        small = load_images("train", "bundled", torch.device("cpu"))
        repeat = np.arange(60_000) % len(small)
        images, labels = small.images.numpy()[repeat], small.labels.numpy()[repeat]
        name = "bundled, repeated"
    return images[:n], labels[:n], name


def measured(network: str, epochs: int, images: np.ndarray, labels: np.ndarray) -> dict[str, dict]:
    """Seconds an epoch and memory of each contestant."""
    device = best_device()
    pythons: dict[str, Path | str | None] = dict.fromkeys(CONTESTANTS[network], sys.executable)
    if "pythae" in pythons:
        pythons["pythae"] = peers()
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("images.npy", "labels.npy")]
        np.save(files[0], images)
        np.save(files[1], labels)
        running = {
            name: Contestant(python, network, name, *files, str(epochs + 1), str(device))
            for name, python in pythons.items()
            if python
        }
        for epoch in range(epochs + 1):
            for contestant in running.values():
                contestant.epoch()
            turn = ", ".join(f"{name} {each.seconds[-1]:.2f}" for name, each in running.items())
            print(f"  epoch {epoch}{'' if epoch else ' (left out)'}: {turn}", flush=True)
        for contestant in running.values():
            contestant.end()
    return {
        name: {"seconds": [round(s, 4) for s in each.seconds[1:]], "peak_mib": round(each.peak)}
        for name, each in running.items()
    }


def undisturbed(found: dict[str, dict]) -> list[int]:
    """The turns in which the floor took at most a tenth longer than at its fastest; or all."""
    if "floor" not in found:
        return list(range(len(found["fit"]["seconds"])))
    seconds = found["floor"]["seconds"]
    return [turn for turn, took in enumerate(seconds) if took <= 1.1 * min(seconds)]


def ratio(one: dict, other: dict, turns: list[int]) -> float:
    """How many times as long one contestant takes as another: the median of their turns."""
    return statistics.median(one["seconds"][i] / other["seconds"][i] for i in turns)


def table(found: dict[str, dict], n: int) -> list[str]:
    """Medians, ranges, ratios to `fit` turn by turn, and memory."""
    head = f"{'':14}{'seconds':>9}{'range':>16}{'images/s':>10}{'times fit':>11}{'undisturbed':>13}"
    seconds = found["fit"]["seconds"]
    every, quiet = list(range(len(seconds))), undisturbed(found)
    lines = [f"{head}{'peak MiB':>10}"]
    for name, each in found.items():
        low, high = min(each["seconds"]), max(each["seconds"])
        middle = statistics.median(each["seconds"])
        all_turns, some = (ratio(each, found["fit"], turns) for turns in (every, quiet))
        lines.append(
            f"{name:14}{middle:9.3f}{f'{low:.3f} to {high:.3f}':>16}{n / middle:10,.0f}"
            f"{all_turns:11.2f}{some:13.2f}{each['peak_mib']:10,}"
        )
    lines.append(f"undisturbed turns: {len(quiet)} of {len(every)}")
    half = len(seconds) // 2
    if half:
        late, early = statistics.median(seconds[-half:]), statistics.median(seconds[:half])
        lines.append(f"fit, later epochs over earlier ones: {late / early:.3f}")
    return lines


def keep(name: str, found: dict, device: torch.device) -> None:
    """Keep what was found under a name, with the machine on which it was found."""
    path = ROOT / "book" / "results" / f"benchmark_{device.type}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    machine = {"processor": processor(), "device": describe(device), "torch": torch.__version__}
    kept[name] = {**machine, **found, "undisturbed": undisturbed(found["contestants"])}
    with replacing(path) as part:
        part.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=CONTESTANTS, default="mlp", help="default: mlp")
    parser.add_argument("--epochs", type=int, default=32, help="epochs of each (default 32)")
    parser.add_argument("--source", default="full", help="data set (default full MNIST)")
    parser.add_argument("--images", type=int, default=12_000, help="of an epoch (default 12000)")
    parser.add_argument("--write", action="store_true", help="keep the result in book/results")
    arguments = parser.parse_args()
    images, labels, name = digits(arguments.source, arguments.images)
    device = best_device()
    print(f"{arguments.network}: {len(images)} images an epoch ({name}), batches of {BATCH},")
    print(f"{describe(device)}, {processor()}, torch {torch.__version__}; seconds an epoch:")
    found = measured(arguments.network, arguments.epochs, images, labels)
    print(*table(found, len(images)), sep="\n")
    if arguments.write:
        facts = {"images": len(images), "source": name, "batch": BATCH, "epochs": arguments.epochs}
        keep(arguments.network, {**facts, "contestants": found}, device)


if __name__ == "__main__":
    main()
