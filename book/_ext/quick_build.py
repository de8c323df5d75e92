"""The site in two thirds of the time.

An extension of Sphinx, to be named first: it changes how a build is run, and nothing of what it
makes.
"""

import gc

from pybtex.plugin import find_plugin, register_plugin
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    """Look for garbage seldom, and for a plug-in of the bibliography once."""
    # A build makes millions of objects that stay to its end.
    gc.set_threshold(100_000, 50, 100)
    # For each citation this one is looked for among all packages that are installed.
    plain = "pybtex.backends", "plaintext"
    register_plugin(*plain, find_plugin(*plain), force=True)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
