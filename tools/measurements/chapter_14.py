"""Drawn shapes: what each choice does to the bound, and ways of loading (chapter 14)."""

import statistics
import tempfile
import time

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from measurements.common import FIVE, SEEDS, protocol
from vae_book.data import load_images
from vae_book.device import describe, processor
from vae_book.evaluation import active_units, average_elbo
from vae_book.images import Images
from vae_book.likelihoods import Gaussian
from vae_book.models import VAE
from vae_book.toy_images import draw_shapes, write_pictures
from vae_book.training import PRECISIONS, Settings, batches, fit, stream, train_epoch

TURNS = 15  # of the ways of loading, after one that is left out


def chapter_14() -> list[dict]:
    """Drawn shapes: the bound against d, width, step size and number of images."""
    data, valid = draw_shapes(2000), draw_shapes(1000, seed=1)
    swept = {
        "latent": [1, 2, 4, 8, 16, 32, 64],
        "hidden": [50, 100, 200, 400],
        "lr": [3e-4, 1e-3, 3e-3, 1e-2],
        "images": [250, 500, 1000, 2000],
    }
    known: dict[tuple, dict] = {}
    rows = []
    for name, values in swept.items():
        for value in values:
            chosen = {"latent": 8, "hidden": 200, "lr": 3e-3, "images": 2000} | {name: value}
            found = known.get(tuple(chosen.values())) or of_shapes(data, valid, **chosen)
            known[tuple(chosen.values())] = found
            rows.append({"varied": name, "value": value, **found})
            print(name, value, found["held_out"], flush=True)
    return rows


def chapter_14_precision() -> list[dict]:
    """The VAE of chapter 8 on full MNIST in each precision, over all seeds."""
    train, test = load_images("train", "full"), load_images("test", "full")
    rows = []
    for precision in PRECISIONS:
        bounds = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            model = VAE().to(train.images.device)
            fit(model, train, epochs=10, seed=seed, precision=precision)
            bounds.append(average_elbo(model, test, seed=seed))
            print(precision, seed, bounds[-1].negative_elbo, flush=True)
        values = [bound.negative_elbo for bound in bounds]
        rows.append(
            {
                **protocol("VAE 784-400-20", train, bounds[0]),
                "precision": precision,
                "epochs": 10,
                "held_out": statistics.mean(values),
                "spread_over_seeds": statistics.stdev(values),
                "each": values,
            }
        )
    return rows


def of_shapes(
    data: Images, valid: Images, latent: int, hidden: int, lr: float, images: int
) -> dict:
    """A VAE of some drawn shapes: its bound in training and on others, over five seeds.

    All take as many steps, however few images they see; the last quarter of them a tenth as large.
    """
    train, epochs = data[:images], 40 * 2000 // images
    smaller = [(3 * epochs // 4, lr / 10)]
    bounds, trained, active = [], [], []
    for seed in FIVE:
        torch.manual_seed(seed)
        model = VAE(latent, hidden, train.shape, Gaussian(0.1, variance="shared"))
        fit(model, train, epochs=epochs, lr=lr, later_lr=smaller, batch_size=32, seed=seed)
        bounds.append(average_elbo(model, valid, seed=seed))
        trained.append(average_elbo(model, train, seed=seed).negative_elbo)
        active.append(active_units(model, valid))
    network = f"VAE 768-{hidden}-{latent}, Gaussian with a shared variance"
    each = [bound.negative_elbo for bound in bounds]
    return {
        **protocol(network, train, bounds[0], f"{lr:g}, later {lr / 10:g}", 32, FIVE),
        "tested_on": f"other drawn shapes, {len(valid):,} images",
        "epochs": epochs,
        "held_out": statistics.mean(each),
        "spread_over_seeds": statistics.stdev(each),
        "each": each,
        "train": statistics.mean(trained),
        "active_units": active,
    }


def chapter_14_loading() -> list[dict]:
    """Seconds of epochs with the images in memory and with a DataLoader that reads the files.

    The ways take turns, an epoch each, so that what else the machine does weighs on all alike.
    """
    data, settings = draw_shapes(2000), Settings(lr=3e-3, batch_size=32)
    as_levels = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    ways = {"in memory": None, "0 workers": 0, "2 workers": 2}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(data, folder)
        files = ImageFolder(folder, as_levels)
        model = VAE(8, 200, data.shape, Gaussian(0.1, variance="shared"))
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
        for epoch in range(1 + TURNS):
            for name, workers in ways.items():
                start = time.perf_counter()
                if workers is None:
                    parts = batches(model, data, settings, epoch)
                else:
                    loader = DataLoader(files, settings.batch_size, True, num_workers=workers)
                    parts = stream(model, loader, settings, epoch)
                train_epoch(model, parts, optimizer, settings, epoch)
                seconds[name].append(time.perf_counter() - start)
    shared = {
        "trained_on": f"{len(data):,} PNG files of 16 x 16 pixels",
        "turns": TURNS,
        "processor": processor(),
        "device": describe(torch.device("cpu")),
    }
    return [{"way": name, "seconds": each[1:], **shared} for name, each in seconds.items()]
