"""The command line: ``python -m vae_book`` train, sample, evaluate, reproduce and doctor."""

import argparse
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

LAUNCHED = "--launched"  # an option for processes that `_launch` has started
NO_MEMORY = (
    "the memory of this machine does not suffice; take fewer or smaller images, or a smaller "
    "model, or end what else uses it"
)
PATIENCE = 2  # seconds in which torchrun notices that a process is gone; it looks ten times each


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; what the user can put right ends in one line and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    options = vars(_parser().parse_args(argv))
    command = options.pop("command")
    processes, launched = options.pop("processes", 1), options.pop("launched", False)
    again = "; the same command with --resume goes on after the last whole epoch"
    again = again if command == "train" else ""
    if command == "reproduce":
        again = "; the same command goes on where it was"
    if __name__ == "__main__" and not launched:
        _until_imported(again)
    if processes > 1 and not launched:
        _launch(processes, [*argv, LAUNCHED], again)
        return
    try:
        # Imported here, so that --help need not wait for torch.
        from torch import OutOfMemoryError

        from vae_book import commands, parallel
        from vae_book.checks import is_out_of_memory
        from vae_book.files import WriteError
        from vae_book.images import DataError
    except KeyboardInterrupt as interrupt:
        if not launched:
            print(f"vae_book: stopped{again}", file=sys.stderr)
        sys.exit(128 + _signal(interrupt))
    except ImportError as error:
        if "map segment" not in str(error) and "allocate memory" not in str(error):
            raise
        print(f"vae_book: error: {NO_MEMORY}", file=sys.stderr)
        sys.exit(2)

    def say_who_is_gone(gone: list[str]) -> None:
        if gone or not launched:
            _say_who_is_gone(gone, again)

    if __name__ == "__main__":
        warnings.showwarning = _warn
        signal.signal(signal.SIGINT, _interrupt)
        # Of several processes `parallel` listens for it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if parallel.launched() else _interrupt)
    with parallel.process_group():
        parallel.when_ended(say_who_is_gone)
        try:
            getattr(commands, command)(**options)
            if sys.stdout is not None:  # it may have been closed
                sys.stdout.flush()  # or a full disk would be found out when it is too late to tell
        except KeyboardInterrupt as interrupt:
            _stop("" if launched else f"stopped{again}", 128 + _signal(interrupt))
        except WriteError as error:
            _stop(f"error: {error}{again}", 2)
        except (ValueError, OSError, DataError, OutOfMemoryError) as error:
            if isinstance(error, OSError):
                _give_up_printing()
            _stop(f"error: {error}", 2)
        except Exception as error:
            if is_out_of_memory(error):
                _stop(f"error: {NO_MEMORY}", 2)
            # A mistake in the program: with its traceback, but only once.
            if parallel.world_size() > 1:
                time.sleep(PATIENCE)  # or another process is gone, and this one will be ended
            if parallel.fails_first():
                raise
            sys.exit(1)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    _warn_once(str(message))  # of a folder that is read for both splits


@cache
def _warn_once(message: str) -> None:
    """One line, above a progress bar; of several processes the main one tells."""
    from tqdm import tqdm

    from vae_book import parallel

    if parallel.is_main():
        tqdm.write(f"vae_book: warning: {message}", file=sys.stderr)


def _until_imported(again: str) -> None:
    """Let signals end this process at once: an import may swallow what they raise."""

    def end(number: int, frame: FrameType | None) -> None:
        print(f"vae_book: stopped{again}", file=sys.stderr, flush=True)
        os._exit(128 + number)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, end)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """What SIGTERM does, too: all that Ctrl-C does, so that half a file is not left behind."""
    raise KeyboardInterrupt(number)


def _signal(interrupt: KeyboardInterrupt) -> int:
    return interrupt.args[0] if interrupt.args else signal.SIGINT


def _launch(processes: int, argv: Sequence[str], again: str) -> None:
    """Run a command in several processes; what they cannot tell themselves is told here."""
    gone: list[str] = []
    try:
        from torch.distributed import get_node_local_rank

        from vae_book import parallel

        signal.signal(signal.SIGINT, signal.default_int_handler)  # torchrun sets its own later
        code, gone = parallel.launch(processes, argv)
    except KeyboardInterrupt as interrupt:
        code = 128 + _signal(interrupt)
    except (ValueError, OSError) as error:
        if get_node_local_rank(fallback_rank=0) == 0:
            print(f"vae_book: error: {error}", file=sys.stderr)
        else:
            time.sleep(PATIENCE)  # torchrun would end the one that tells
        sys.exit(2)
    if gone or code > 128:
        _say_who_is_gone(gone, again)
    if code:
        sys.exit(code)


def _say_who_is_gone(gone: list[str], again: str) -> None:
    said = f"error: {' and '.join(gone)} was killed or crashed" if gone else "stopped"
    print(f"\nvae_book: {said}{again}", file=sys.stderr, flush=True)


def _give_up_printing() -> None:
    """Let Python's end not try again to print where it is not possible."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = None  # as under pythonw


def _stop(message: str, code: int) -> None:
    from vae_book import parallel

    if parallel.fails_first() and message:
        # Another process may have its progress bar on this line.
        start = "\n" if parallel.launched() else ""
        print(f"{start}vae_book: {message}", file=sys.stderr)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vae_book",
        description="Train a variational autoencoder, look at what it makes, and measure it.",
        epilog="VAE_BOOK_DEVICE chooses where it runs, for example cpu or cuda:1; by default the "
        "fastest device of this machine.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a model and keep pictures, history and checkpoint of each epoch",
        description="Train a VAE with one hidden layer by maximizing the ELBO with Adam. After "
        "each epoch the folder --out holds reconstruction_0001.png (held-out images above their "
        "reconstructions), sample_0001.png (images from the prior, always from the same z), "
        "history.json and checkpoint.pt. Processes on several machines train one model with "
        "'torchrun ... -m vae_book train ...'; add --local-addr localhost before -m if that hangs "
        "because the machine's name does not resolve.",
    )
    train.add_argument(
        "--source",
        type=_named,
        help="bundled, full, fashion, kmnist, or a folder with one subfolder of images for each "
        "class (default: VAE_BOOK_DATASET, else bundled)",
    )
    train.add_argument(
        "--size",
        type=_size,
        metavar="N",
        help="resize images to N x N pixels, or HEIGHTxWIDTH, with their aspect kept and the rest "
        "black (default: as they are)",
    )
    train.add_argument(
        "--gray", action="store_true", help="make images gray (default: gray if all of them are)"
    )
    _number(train, "--epochs", 10, "passes over the data, those of a resumed run included")
    _number(train, "--batch-size", 128, "images in a step, over all processes")
    train.add_argument(
        "--lr", type=float, default=1e-3, help="Adam's step size (default: %(default)s)"
    )
    _seed(train, "of the first weights, the order of the images and all noise")
    _number(train, "--latent", 20, "size of the latent z")
    _number(train, "--hidden", 400, "units in the hidden layer of encoder and decoder")
    what = train.add_mutually_exclusive_group()
    what.add_argument(
        "--likelihood",
        choices=("cross-entropy", "bernoulli", "gaussian", "continuous-bernoulli"),
        default="cross-entropy",
        metavar="NAME",
        help="what the decoder's output means: cross-entropy of gray levels, which is no density "
        "of them; bernoulli, of binary images drawn afresh in each step; gaussian, which learns "
        "one spread of all levels; or continuous-bernoulli (default: cross-entropy)",
    )
    what.add_argument(
        "--binary",
        action="store_const",
        dest="likelihood",
        const="bernoulli",
        help="the likelihood bernoulli, for short",
    )
    train.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the matrix products of encoder and decoder; bfloat16 is faster where the "
        "processor has such products (default: %(default)s)",
    )
    train.add_argument(
        "--out", type=_path, default="runs/vae", help="folder to write to (default: %(default)s)"
    )
    _number(train, "--processes", 1, "how many train the model together, each on its own GPU")
    train.add_argument(LAUNCHED, action="store_true", help=argparse.SUPPRESS)
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on after the last whole epoch in --out, to the same weights as a run that never "
        "stopped; where there is no checkpoint yet, start (default: refuse a folder that holds a "
        "checkpoint)",
    )

    sample = commands.add_parser(
        "sample",
        help="draw images from the prior of a trained model",
        description="Draw z from N(0, I), decode it, and write the images as one PNG.",
    )
    _checkpoint(sample)
    _number(sample, "--n", 64, "how many images")
    _seed(sample, "of z")
    sample.add_argument(
        "--out", type=_path, default="runs/samples.png", help="file to write (default: %(default)s)"
    )

    evaluate = commands.add_parser(
        "evaluate",
        help="measure the negative ELBO of a trained model",
        description="Print the negative ELBO in nats for one image, lower is better, its two "
        "terms, and the protocol: what was measured on which data and how.",
    )
    _checkpoint(evaluate)
    evaluate.add_argument(
        "--source", type=_named, help="as for train (default: what the model was trained on)"
    )
    evaluate.add_argument(
        "--split",
        choices=("train", "test"),
        default="test",
        help="which images (default: %(default)s)",
    )
    _number(evaluate, "--samples", 1, "draws of z for each image")
    _seed(evaluate, "of those draws, and of binary pixels for a model of binary images")
    evaluate.add_argument("--json", action="store_true", help="print JSON for other programs")

    reproduce = commands.add_parser(
        "reproduce",
        help="train and measure a row of the ledger, beside a published number",
        description="Train the model of one row of the ledger from scratch with fixed seeds, "
        "measure it on MNIST's test digits and write --results/NAME.json: value, standard error, "
        "seeds, protocol, version, minutes, device. The same command goes on with a run that was "
        "stopped or killed, to the same numbers.",
    )
    reproduce.add_argument("name", nargs="?", metavar="NAME", help="the row; --list names them all")
    reproduce.add_argument("--list", action="store_true", help="list the rows and end")
    reproduce.add_argument(
        "--full",
        action="store_true",
        help="train as long as those who published (default: the shorter schedule of --list)",
    )
    reproduce.add_argument(
        "--results",
        type=_path,
        default="book/results/ledger",
        help="folder to write to (default: %(default)s)",
    )
    reproduce.add_argument(
        "--runs",
        type=_path,
        default="runs/ledger",
        help="folder of checkpoints (default: %(default)s)",
    )

    doctor = commands.add_parser(
        "doctor",
        help="look for mistakes in a VAE of your own",
        description="Print what vae_book.doctor.diagnose finds in a VAE of your own; exit code 1 "
        "if it finds a fault. MAKE_VAE is called without arguments and returns a dictionary of "
        "diagnose's arguments: encode, decode, and as far as there are any images, loss, "
        "likelihood, labels, prior, draw, spread, beta, seed. Without images it gets 64 of the "
        "bundled digits, shape (64, 1, 28, 28).",
    )
    doctor.add_argument(
        "make_vae", metavar="MODULE:MAKE_VAE", help="where it is, such as my_module:make_vae"
    )
    return parser


def _number(parser: argparse.ArgumentParser, name: str, default: int, text: str) -> None:
    parser.add_argument(
        name, type=_positive, default=default, metavar="N", help=f"{text} (default: %(default)s)"
    )


def _seed(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--seed", type=int, default=0, help=f"seed {text} (default: %(default)s)")


def _checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=_path,
        default="runs/vae/checkpoint.pt",
        help="what train wrote (default: %(default)s)",
    )


def _named(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a name, got an empty one")
    return text


def _path(text: str) -> Path:
    _named(text)
    return Path(os.path.expanduser(text))  # of --out=~/runs a shell leaves ~ as it is


def _size(text: str) -> tuple[int, int]:
    sides = [int(side) if side.isdecimal() else 0 for side in text.split("x")]
    if len(sides) > 2 or 0 in sides:
        raise argparse.ArgumentTypeError(f"expected N or HEIGHTxWIDTH in pixels, got {text!r}")
    return sides[0], sides[-1]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
