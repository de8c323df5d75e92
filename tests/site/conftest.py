"""The site as its readers get it: built once, from the committed notebooks, outside the tree."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[2]


def _pages(entry: dict) -> list[str]:
    """The pages below an entry of _toc.yml, in reading order."""
    pages = [entry[key] for key in ("root", "file") if key in entry]
    children = [child for key in ("parts", "chapters", "sections") for child in entry.get(key, ())]
    return pages + [page for child in children for page in _pages(child)]


def pytest_generate_tests(metafunc):
    if "docname" in metafunc.fixturenames:
        pages = _pages(yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8")))
        # Module scope keeps the tests of a page together, so that a browser opens it once.
        metafunc.parametrize("docname", pages, scope="module")
    if "notebook_path" in metafunc.fixturenames:
        paths = sorted((ROOT / "book").glob("*.ipynb"))
        metafunc.parametrize("notebook_path", paths, ids=lambda path: path.stem, scope="module")


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """A run of Jupyter Book that warns of all it can warn of, and where it put the site."""
    folder = tmp_path_factory.mktemp("site")
    start = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    options = ["-W", "-n", "--keep-going", "--quiet", "--path-output", str(folder)]
    run = subprocess.run(
        [sys.executable, "-c", start, "build", str(ROOT), *options], capture_output=True, text=True
    )
    return run, folder / "_build" / "html"


@pytest.fixture(scope="session")
def site(build):
    """The folder of the built site. A warning is the matter of one test, not of all."""
    _, folder = build
    if not (folder / "index.html").exists():
        pytest.fail("there is no site: see test_site_builds_without_a_warning")
    return folder


@pytest.fixture(scope="session")
def html_files(site):
    """Every page of the site, the search page and its like included."""
    return [path for path in site.rglob("*.html") if site / "_static" not in path.parents]


@pytest.fixture(scope="session")
def parsed():
    """Parse a page, once however many tests ask for it."""

    @functools.cache
    def parse(path: Path) -> BeautifulSoup:
        return BeautifulSoup(path.read_text("utf-8"), "html.parser")

    return parse


@pytest.fixture
def page(site, parsed, docname):
    return parsed(site / f"{docname}.html")


@pytest.fixture
def article(page):
    """What the author wrote, without the theme's frame."""
    return page.select_one("article.bd-article")
