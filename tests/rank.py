"""What each of two processes does in the tests of several, which ``torchrun`` starts.

    torchrun ... -m tests.rank FOLDER

writes what each process has seen into the folder.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

from vae_book import parallel
from vae_book.device import seeded
from vae_book.images import Images, quadrants
from vae_book.models import CVAE, VAE, CompletionVAE, ConvVAE
from vae_book.objectives import Objective
from vae_book.training import fit


def train(folder):
    """Each kind of model, into a checkpoint of its name.

    The last batch of an epoch has one image, which leaves the second process without any.
    """
    images = torch.rand(15, 1, 28, 28, generator=seeded(0))
    labelled = Images(images, (7 * torch.arange(15) + 3) % 10, "random", "train")
    free = Objective(beta=2.0, warm_up=2, free_nats=0.055)
    torch.manual_seed(0)
    for name, model, data, objective in [
        ("labels", CVAE(latent=2, hidden=8), labelled, None),
        ("parts", CompletionVAE(latent=2, hidden=8), quadrants(labelled), None),
        ("convolutions", ConvVAE(latent=2, hidden=8), labelled, None),
        ("free nats", CVAE(latent=2, hidden=8, own_weights=False), labelled, free),
        ("weights", VAE(latent=2, hidden=8), labelled, Objective(bound="iwae-dreg")),
    ]:
        options = {"held_out": data, "checkpoint": folder / f"{name}.pt"}
        fit(model, data, epochs=3, batch_size=7, objective=objective, **options)


def run(place, epochs=1, resume=False, seed=0, n=8):
    """A short run whose checkpoint stands on the disk of one machine."""
    images = torch.rand(n, 1, 2, 2, generator=seeded(seed))
    data = Images(images, torch.zeros(n).long(), "made", "train")
    torch.manual_seed(0)
    options = {"checkpoint": place / "checkpoint.pt", "resume": resume}
    return fit(VAE(2, 3, (1, 2, 2)), data, epochs=epochs, batch_size=4, **options)


def prepare(folder):
    """What two machines, each with a disk of its own, have left of runs of before."""
    run(folder / "one sees none" / "0")
    run(folder / "one is behind" / "0", epochs=2)
    run(folder / "one is behind" / "1")
    for machine in "01":
        run(folder / "both see the same" / machine, epochs=2)


def go_on(folder):
    """Resume these runs, and start some with other things than the other process; what is said."""
    rank, said = parallel.rank(), {}
    cases = {
        "one sees none": {},
        "one is behind": {},
        "both see the same": {},
        "other epochs": {"epochs": 3 + rank},
        "other images": {"seed": rank},
        "fewer images": {"n": 8 - rank},
    }
    for case, options in cases.items():
        try:
            place = folder / case / str(rank)
            history = run(place, **{"epochs": 3, "resume": True, **options})
            said[case] = f"{history.epochs} epochs"
        except ValueError as error:
            said[case] = str(error)
    return said


def share(folder):
    """What a process knows of the others."""
    rank = parallel.rank()
    seen = {"world_size": parallel.world_size(), "is_main": parallel.is_main()}
    seen["sum"] = parallel.summed(torch.tensor([1.0 + rank, 10.0 * rank])).tolist()
    with parallel.main_first():
        if rank == 0:
            time.sleep(0.5)  # the others would be here by now
            (folder / "cache").write_text("whole")
        seen["cache"] = (folder / "cache").exists()
    try:
        with parallel.main_first():
            raise ValueError("all meet it")
    except ValueError as error:
        seen["error"] = str(error)
    seen["fails_first"] = parallel.fails_first()
    torch.manual_seed(rank)
    layer = torch.nn.Linear(2, 1)
    parallel.share_weights(layer)
    seen["weights"] = layer.weight.tolist()
    layer.weight.grad = torch.tensor([[1.0 + rank, 10.0 * rank]])
    layer.bias.grad = torch.tensor([3.0]) if rank == 0 else None
    parallel.average_gradients(layer)
    seen["gradients"] = [layer.weight.grad.tolist(), layer.bias.grad.tolist()]
    seen["compiler"] = "torch._dynamo" in sys.modules
    return seen


def main():
    """Do all of it."""
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    if rank == "0":
        prepare(folder)
    with parallel.process_group():
        train(folder)
        parallel.summed(torch.zeros(1))  # rank 0 has prepared what the others look at
        said, seen = go_on(folder), share(folder)
    seen["left"] = parallel.world_size()
    (folder / f"rank{rank}.json").write_text(json.dumps({"said": said, "seen": seen}))


if __name__ == "__main__":
    main()
