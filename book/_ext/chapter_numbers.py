"""Numbers by chapter: Fig. 8.1, equation (8.1) and exercise 8.1 are the first of chapter 8.

An extension of Sphinx, which itself numbers through the whole book.
"""

import re

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

CHAPTER = re.compile(r".*/(\d+)_")


def setup(app: Sphinx) -> dict[str, bool]:
    """Numbers are changed once Sphinx has given its own."""
    app.connect("env-get-updated", number_by_chapter, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def number_by_chapter(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Count each kind of thing from 1 in each page, after the number of its chapter if it has one.

    Returns the pages, for each of which has to be written.
    """
    for page, kinds in env.toc_fignumbers.items():
        found = CHAPTER.match(page)
        chapter = (int(found[1]),) if found else ()
        for numbers in kinds.values():
            for count, name in enumerate(numbers, 1):
                numbers[name] = (*chapter, count)
    return list(env.toc_fignumbers)
