"""How the cost of training grows with images, batch, size of z, hidden units and draws of z.

From one setting of the fully connected VAE, one number at a time is made smaller and larger. Each
point is a process of its own, so that its memory is its own; the points take turns, and of each the
fastest epoch counts.

    python benchmarks/growth.py              print seconds of an epoch and peak memory
    python benchmarks/growth.py --write      also keep them, as book/results/benchmark_*.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from contestants import peak_memory
from throughput import digits, keep

from vae_book.device import best_device
from vae_book.images import Images
from vae_book.models import VAE
from vae_book.training import fit

BASE = {"images": 16_000, "batch_size": 128, "latent": 20, "hidden": 400, "n_samples": 1}
VARIED = {
    "images": [4_000, 8_000, 16_000, 32_000, 60_000],
    "batch_size": [32, 64, 128, 256, 512, 1024],
    "latent": [5, 20, 80, 320],
    "hidden": [100, 200, 400, 800, 1600],
    "n_samples": [1, 2, 4, 8, 16],
}
TURNS, EPOCHS = 2, 3


def point(file: Path, **chosen: int) -> dict[str, float]:
    """Seconds of the fastest epoch after the first, and the most memory in MiB."""
    device = best_device()
    torch.manual_seed(0)
    model = VAE(chosen["latent"], chosen["hidden"]).to(device)
    pixels = torch.from_numpy(np.load(file, mmap_mode="r")[: chosen["images"]].copy()).to(device)
    data = Images(pixels, torch.zeros(len(pixels), dtype=torch.long), "digits", "train")
    settings = {name: chosen[name] for name in ("batch_size", "n_samples")}
    history = fit(model, data, epochs=1 + EPOCHS, **settings)
    cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 1024**2 if cuda else peak_memory()
    return {"seconds": min(history.seconds[1:]), "peak_mib": peak}


def measured(images: np.ndarray) -> list[dict]:
    """All points, in turns."""
    points = [(name, value) for name, values in VARIED.items() for value in values]
    found: dict[tuple[str, int], list[dict]] = {each: [] for each in points}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, images)
        for _ in range(TURNS):
            for name, value in points:
                command = [sys.executable, __file__, "--point", json.dumps(BASE | {name: value})]
                said = subprocess.run(
                    [*command, "--data", file], check=True, stdout=subprocess.PIPE, text=True
                )
                found[name, value].append(json.loads(said.stdout))
                print(f"{name:12}{value:7,}  {found[name, value][-1]['seconds']:.3f} s", flush=True)
    return [
        {
            "varied": name,
            "value": value,
            **{unit: round(min(each[unit] for each in turns), 4) for unit in turns[0]},
        }
        for (name, value), turns in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", default="full", help="data set (default full MNIST)")
    parser.add_argument("--write", action="store_true", help="keep the result in book/results")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(point(Path(arguments.data), **json.loads(arguments.point))))
        return
    images, _, name = digits(arguments.source, max(VARIED["images"]))
    rows = measured(images)
    print(f"{'':12}{'value':>7}{'seconds':>10}{'MiB':>8}")
    for row in rows:
        line = f"{row['varied']:12}{row['value']:7,}{row['seconds']:10.3f}{row['peak_mib']:8,.0f}"
        print(line)
    if arguments.write:
        keep("growth", {"source": name, "base": BASE, "points": rows}, best_device())


if __name__ == "__main__":
    main()
