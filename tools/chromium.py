"""The Chromium or Chrome of this system, for printing and for the tests of the pages."""

import os
import shutil
import tempfile

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",
]
MISSING = (
    "no browser: install one (Debian: apt install chromium), or set VAE_BOOK_BROWSER to the path "
    "of a Chromium or Chrome"
)
os.environ["TMPDIR"] = tempfile.gettempdir()  # which is there; playwright would not look elsewhere


def find() -> str | None:
    """Its path, None where there is none."""
    named = os.environ.get("VAE_BOOK_BROWSER")
    return next(filter(None, map(shutil.which, [named] if named else NAMES)), None)
