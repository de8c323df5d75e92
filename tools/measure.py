"""Measure the full-size results that chapters print, and write them with their protocol.

    python tools/measure.py [chapter_07 chapter_08 ...]

writes book/results/*, all of them or those that are named. Chapters 8 and 11 train on full MNIST
(VAE_BOOK_DATA says where it is). It takes an hour or two; `make measure` runs it. A chapter reads
these files and never trains for that long itself. Leave the machine to it: it measures seconds.
"""

import json
import sys
from collections.abc import Callable

from measurements.chapter_07 import chapter_07
from measurements.chapter_08 import chapter_08, chapter_08_seeds
from measurements.chapter_09 import chapter_09
from measurements.chapter_10 import chapter_10
from measurements.chapter_11 import chapter_11
from measurements.chapter_13 import chapter_13
from measurements.chapter_14 import chapter_14, chapter_14_loading, chapter_14_precision
from measurements.common import RESULTS
from vae_book.data import load_images
from vae_book.device import best_device, describe
from vae_book.files import replacing
from vae_book.images import DataError

MEASUREMENTS = (
    chapter_07,
    chapter_08,
    chapter_08_seeds,
    chapter_09,
    chapter_10,
    chapter_11,
    chapter_13,
    chapter_14,
    chapter_14_loading,
    chapter_14_precision,
)
NEEDS_MNIST = {"chapter_08", "chapter_11", "chapter_14_precision"}  # all of it


def main() -> None:
    by_name = {each.__name__: each for each in MEASUREMENTS}
    asked = sys.argv[1:] or list(by_name)
    if unknown := set(asked) - set(by_name):
        raise SystemExit(f"expected some of {', '.join(by_name)}, got {', '.join(unknown)}")
    print(f"measuring on {describe(best_device())}")
    RESULTS.mkdir(exist_ok=True)
    try:
        if NEEDS_MNIST & set(asked):  # or it would be missed only after others have been measured
            load_images("test", "full", "cpu")
        for name in asked:
            measure(name, by_name[name])
    except DataError as error:
        raise SystemExit(str(error)) from error


def measure(name: str, measurement: Callable[[], list[dict]]) -> None:
    rows = measurement()
    with replacing(RESULTS / f"{name}.json") as part:
        part.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")
    for row in rows:
        print(name, *(f"{key}={value}" for key, value in row.items() if value), sep="\n  ")


if __name__ == "__main__":
    main()
