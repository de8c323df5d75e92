"""Training speed: `vae_book.training.fit` beside the classic VAE script, in one interleaved run.

The classic script is the shape of loop that most tutorials use: a DataLoader over a torchvision
data set, ToTensor for each image, a sigmoid at the end of the decoder, binary_cross_entropy on
probabilities, and Adam. Both train the same 784-400-20 network with batches of 128. The two take
turns, an epoch each, so that a busy machine slows both; the medians and their ratio are printed.

Run with `make benchmark`. No result is written.
"""

import argparse
import statistics
import time

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from vae_book.data import load_images
from vae_book.device import best_device, describe
from vae_book.images import DataError, Images
from vae_book.models import VAE
from vae_book.training import History, fit


class PictureDataset(Dataset):
    """What torchvision.datasets.MNIST does for each item: array, PIL image, transform, label."""

    def __init__(self, data: Images) -> None:
        self.data = (data.images * 255).round().byte().cpu()[:, 0]
        self.targets = data.labels.cpu()
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = Image.fromarray(self.data[index].numpy())
        return self.transform(picture), int(self.targets[index])


class ClassicVAE(nn.Module):
    """The same network, written with probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 400)
        self.fc21 = nn.Linear(400, 20)
        self.fc22 = nn.Linear(400, 20)
        self.fc3 = nn.Linear(20, 400)
        self.fc4 = nn.Linear(400, 784)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h = F.relu(self.fc1(x.view(-1, 784)))
        mu, log_var = self.fc21(h), self.fc22(h)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, log_var


def classic_epoch(model: nn.Module, loader: DataLoader, optimizer, device: torch.device) -> None:
    """One epoch of the classic loop."""
    total = 0.0
    for batch, _ in loader:
        x = batch.to(device)
        optimizer.zero_grad()
        probabilities, mu, log_var = model(x)
        reconstruction = F.binary_cross_entropy(probabilities, x.view(-1, 784), reduction="sum")
        loss = reconstruction - 0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp())
        loss.backward()
        total += loss.item()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each (default 10)")
    parser.add_argument("--source", default="full", help="data set (default full MNIST)")
    arguments = parser.parse_args()
    device = best_device()
    try:
        data = load_images("train", arguments.source, device, size=28, channels=1)
    except DataError as error:
        print(f"{error}\nUsing the bundled digits, repeated to 60,000 images.")
        small = load_images("train", "bundled", device)
        repeat = torch.arange(60_000, device=device) % len(small)
        data = Images(small.images[repeat], small.labels[repeat], "bundled", "train")

    classic = ClassicVAE().to(device)
    classic_adam = torch.optim.Adam(classic.parameters(), lr=1e-3)
    loader = DataLoader(PictureDataset(data), batch_size=128, shuffle=True)
    ours = VAE().to(device)
    classic_seconds: list[float] = []
    print(f"{len(data)} images an epoch ({data.source}), {describe(device)}, seconds an epoch:")

    def classic_turn(history: History) -> None:
        start = time.perf_counter()
        classic_epoch(classic, loader, classic_adam, device)
        classic_seconds.append(time.perf_counter() - start)
        turn = f"vae_book {history.seconds[-1]:.2f}, classic {classic_seconds[-1]:.2f}"
        print(f"  epoch {history.epochs}: {turn}", flush=True)

    history = fit(ours, data, epochs=arguments.epochs, on_epoch=classic_turn)
    seconds = {"classic": classic_seconds, "vae_book": history.seconds}
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"{name:>9}: {len(data) / value:8,.0f} images/s (median)")
    print(f"ratio of images per second: {median['classic'] / median['vae_book']:.2f}")
    half = len(history.seconds) // 2
    early, late = (
        statistics.median(part) for part in (history.seconds[:half], history.seconds[half:])
    )
    print(f"vae_book, median of the later epochs over that of the earlier ones: {late / early:.2f}")


if __name__ == "__main__":
    main()
