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
# Where this folder is not there, Python looks for another one, and playwright does not. A browser
# has sockets in it, whose paths may have some hundred characters.
TEMPORARY = tempfile.gettempdir()
os.environ["TMPDIR"] = TEMPORARY if len(TEMPORARY) < 60 else "/tmp"


def find() -> str | None:
    """Its path, None where there is none."""
    named = os.environ.get("VAE_BOOK_BROWSER")
    return next(filter(None, map(shutil.which, [named] if named else NAMES)), None)
