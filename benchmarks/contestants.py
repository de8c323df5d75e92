"""The loops that `throughput.py` compares, each started in a process of its own.

    python benchmarks/contestants.py NAME IMAGES.npy LABELS.npy EPOCHS

A contestant is a function of the data that calls ``turn()`` when it is ready and after each epoch.
There it writes how long the epoch took and how much memory the process has had at most, and waits
for a line before it goes on: so all take turns, an epoch each, and a busy machine slows all alike.

Of the package the classic script, the peer and the floor import nothing.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, PIXELS, HIDDEN, LATENT = 128, 784, 400, 20


class Data(NamedTuple):
    images: Tensor  # (n, 1, 28, 28), on the device
    labels: Tensor
    epochs: int
    turn: Callable[[], None]

    @property
    def device(self) -> torch.device:
        return self.images.device


class Classic(nn.Module):
    """784-400-20, as in most tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(PIXELS, HIDDEN)
        self.fc21 = nn.Linear(HIDDEN, LATENT)
        self.fc22 = nn.Linear(HIDDEN, LATENT)
        self.fc3 = nn.Linear(LATENT, HIDDEN)
        self.fc4 = nn.Linear(HIDDEN, PIXELS)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.fc1(x.flatten(1)))
        return self.fc21(h), self.fc22(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.fc4(F.relu(self.fc3(z)))


def classic(data: Data) -> None:
    """The script: DataLoader, PIL, ToTensor, sigmoid, cross-entropy of probabilities, .item()."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import ToTensor

    class Pictures(Dataset):
        """What torchvision.datasets.MNIST does for each item."""

        pixels = (data.images * 255).round().byte().cpu()[:, 0]

        def __len__(self) -> int:
            return len(self.pixels)

        def __getitem__(self, index: int) -> Tensor:
            return ToTensor()(Image.fromarray(self.pixels[index].numpy()))

    model = Classic().to(data.device)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(Pictures(), batch_size=BATCH, shuffle=True)
    data.turn()
    for _ in range(data.epochs):
        total = 0.0
        for batch in loader:
            x = batch.to(data.device)
            adam.zero_grad()
            mu, log_var = model.encode(x)
            z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)
            p = torch.sigmoid(model.decode(z))
            reconstruction = F.binary_cross_entropy(p, x.view(-1, PIXELS), reduction="sum")
            loss = reconstruction - 0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp())
            loss.backward()
            total += loss.item()
            adam.step()
        data.turn()


def pythae(data: Data) -> None:
    """The library, with its own trainer and default settings but for network and batch size."""
    import logging

    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(PIXELS, HIDDEN)
            self.fc21, self.fc22 = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)

        def forward(self, x: Tensor) -> ModelOutput:
            h = F.relu(self.fc1(x.flatten(1)))
            return ModelOutput(embedding=self.fc21(h), log_covariance=self.fc22(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.fc3, self.fc4 = nn.Linear(LATENT, HIDDEN), nn.Linear(HIDDEN, PIXELS)

        def forward(self, z: Tensor) -> ModelOutput:
            pixels = torch.sigmoid(self.fc4(F.relu(self.fc3(z))))
            return ModelOutput(reconstruction=pixels.unflatten(1, (1, 28, 28)))

    class Turns(TrainingCallback):
        def on_epoch_end(self, *args: object, **options: object) -> None:
            data.turn()

    logging.disable()
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
    with tempfile.TemporaryDirectory() as folder:
        trainer = BaseTrainer(
            VAE(config, Encoder(), Decoder()),
            BaseDataset(data.images.cpu(), data.labels.cpu()),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                num_epochs=data.epochs,
                learning_rate=1e-3,
                per_device_train_batch_size=BATCH,
                no_cuda=data.device.type != "cuda",
            ),
            callbacks=[Turns()],
        )
        data.turn()
        trainer.train()


def floor(data: Data) -> None:
    """The matrix products of the network's steps alone, forwards and backwards."""
    sizes = [(PIXELS, HIDDEN), (HIDDEN, LATENT), (HIDDEN, LATENT), (LATENT, HIDDEN)]
    sizes += [(HIDDEN, PIXELS)]
    layers = [
        [torch.rand(shape, device=data.device) for shape in ((BATCH, a), (a, b), (BATCH, b))]
        for a, b in sizes
    ]
    data.turn()
    for _ in range(data.epochs):
        for _ in range(-(-len(data.images) // BATCH)):
            for number, (x, weight, gradient) in enumerate(layers):
                x @ weight
                x.T @ gradient
                if number:  # nobody asks for the gradient of the pixels
                    gradient @ weight.T
        data.turn()


def _bare(data: Data, model: nn.Module, bfloat16: bool, told: Tensor | None = None) -> None:
    """A loop of twenty lines over the layers of a model of the package, and nothing else."""
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    images = data.images
    data.turn()
    for _ in range(data.epochs):
        for rows in torch.randperm(len(images)).to(data.device).split(BATCH):
            x = images[rows]
            with torch.autocast(data.device.type, torch.bfloat16, enabled=bfloat16):
                if told is None:
                    h = model.encoder(x)
                else:
                    h = model.encoder(torch.cat([x.flatten(1), told[rows]], 1))
                mu, log_var = model.to_mu(h), model.to_log_var(h)
                z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)
                logits = model.decoder(z if told is None else torch.cat([z, told[rows]], 1))
            mu, log_var, logits = mu.float(), log_var.float(), logits.float()
            cross = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            loss = (cross - 0.5 * (1 + log_var - mu.square() - log_var.exp()).sum()) / len(x)
            adam.zero_grad()
            loss.backward()
            adam.step()
        data.turn()


def _package(name: str) -> nn.Module:
    from vae_book import models

    torch.manual_seed(0)
    plain_cvae = partial(models.CVAE, learned_prior=False, own_weights=False)
    return {"mlp": models.VAE, "conv": models.ConvVAE, "cvae": plain_cvae}[name]()


def _fit(data: Data, name: str, precision: str) -> None:
    from vae_book.images import Images
    from vae_book.training import fit

    images = Images(data.images, data.labels, "digits", "train")
    model = _package(name).to(data.device)
    data.turn()
    fit(model, images, epochs=data.epochs, precision=precision, on_epoch=lambda _: data.turn())


def _loop(name: str, *, bfloat16: bool = False) -> Callable[[Data], None]:
    def contestant(data: Data) -> None:
        model = _package(name).to(data.device)
        told = F.one_hot(data.labels, 10).float() if name == "cvae" else None
        _bare(data, model, bfloat16, told)

    return contestant


def _ours(name: str, precision: str = "float32") -> Callable[[Data], None]:
    return lambda data: _fit(data, name, precision)


CONTESTANTS = {
    "mlp": {
        "classic": classic,
        "pythae": pythae,
        "fit": _ours("mlp"),
        "fit-bfloat16": _ours("mlp", "bfloat16"),
        "bare": _loop("mlp"),
        "bare-bfloat16": _loop("mlp", bfloat16=True),
        "floor": floor,
    },
    "conv": {
        "fit": _ours("conv"),
        "fit-bfloat16": _ours("conv", "bfloat16"),
        "bare": _loop("conv"),
        "bare-bfloat16": _loop("conv", bfloat16=True),
    },
    "cvae": {"fit": _ours("cvae"), "bare": _loop("cvae")},
}


def peak_memory() -> float:
    """The most memory that this process has had, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where ru_maxrss starts from that of the process that started this
        (line,) = [each for each in status.read_text().splitlines() if each.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main(network: str, name: str, images: str, labels: str, epochs: str, device: str) -> None:
    """Run one contestant, in turns."""
    replies, sys.stdout = sys.stdout, sys.stderr  # what others print is not an answer
    cuda = device.startswith("cuda")
    start = time.perf_counter()

    def turn() -> None:
        nonlocal start
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() / 1024**2 if cuda else peak_memory()
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), file=replies, flush=True)
        if not sys.stdin.readline():
            sys.exit()
        start = time.perf_counter()

    if not name.startswith(("classic", "pythae")):  # their authors do not set it
        torch.set_flush_denormal(True)
    data = Data(
        torch.from_numpy(np.load(images)).to(device),
        torch.from_numpy(np.load(labels)).to(device),
        int(epochs),
        turn,
    )
    CONTESTANTS[network][name](data)


if __name__ == "__main__":
    main(*sys.argv[1:])
