"""The site as its readers get it: built once, from the committed notebooks, outside the tree."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from bs4 import BeautifulSoup
from filelock import FileLock
from playwright.sync_api import Page, sync_playwright

import chromium
from contents import pages

ROOT = Path(__file__).parents[2]

# Text whose contrast with what is behind it is below 4.5 to 1 (WCAG 2, level AA). A canvas of one
# pixel mixes transparent colors, and understands every notation of a color.
HARD_TO_READ = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const known = {};
  const luminance = colors => known[colors] ??= mixed(colors);
  const mixed = colors => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of ['white', ...colors]) {
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
    }
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(
      c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = new Map([[null, []]]);
  const behind = e => {
    if (!found.has(e))
      found.set(e, [...behind(e.parentElement), getComputedStyle(e).backgroundColor]);
    return found.get(e);
  };
  const contrast = e => {
    const [low, high] = [behind(e), [...behind(e), getComputedStyle(e).color]]
      .map(luminance).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  const shown = e => e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true});
  return [...document.querySelectorAll('article *:not(mjx-assistive-mml *)')]
    .filter(e => (own(e) || e.tagName === 'MJX-CONTAINER') && shown(e) && contrast(e) < 4.5)
    .map(e => `${contrast(e).toFixed(2)}: ${e.outerHTML.slice(0, 100)}`);
}"""


def pytest_generate_tests(metafunc):
    if "docname" in metafunc.fixturenames:
        # Module scope keeps the tests of a page together, so that a browser opens it once.
        metafunc.parametrize("docname", pages(ROOT), scope="module")
    if "notebook_path" in metafunc.fixturenames:
        paths = sorted((ROOT / "book").glob("*.ipynb"))
        metafunc.parametrize("notebook_path", paths, ids=lambda path: path.stem, scope="module")


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """A run of Jupyter Book that warns of all it can warn of, and where it put the site.

    Processes that test side by side share one run: the first that asks for it.
    """
    top = tmp_path_factory.getbasetemp()
    top = top.parent if "PYTEST_XDIST_WORKER" in os.environ else top
    folder, result = top / "site", top / "site.json"
    with FileLock(top / "site.lock"):
        if not result.exists():
            start = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
            options = ["-W", "-n", "--keep-going", "--quiet", "--path-output", str(folder)]
            command = [sys.executable, "-c", start, "build", str(ROOT), *options]
            run = subprocess.run(command, capture_output=True, text=True)
            result.write_text(json.dumps(vars(run) | {"args": None}))
    return SimpleNamespace(**json.loads(result.read_text())), folder / "_build" / "html"


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


@pytest.fixture(scope="module")
def browser():
    if chromium.find() is None:
        pytest.skip(chromium.MISSING)
    # Not for the whole session: the event loop of playwright would get in the way of other tests.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.find(), args=chromium.FLAGS)
        yield browser
        browser.close()


class Window(NamedTuple):
    """A page in the browser, and what went wrong there."""

    page: Page
    problems: list[str]

    def visit(self, address: str) -> "Window":
        """Go from an empty page to this one, whose problems are not those of pages before."""
        self.problems.clear()
        self.page.goto(address)
        self.page.evaluate("window.MathJax?.startup?.promise?.then(() => null)")
        return self


@pytest.fixture(scope="module")
def new_window(browser):
    """Open a window, with playwright's options for that.

    One that goes from page to page keeps what it has compiled of their scripts, which takes a
    quarter off a page. It forgets what pages store: each visit is the first.
    """

    def open_it(**options) -> Window:
        page, problems = browser.new_page(reduced_motion="reduce", **options), []
        page.add_init_script(
            "if (location.protocol === 'file:') localStorage.clear(), sessionStorage.clear()"
        )
        page.on("console", lambda m: m.type in ("error", "warning") and problems.append(m.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(f"not loaded: {request.url}"))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:", "blob:"))
                or problems.append(f"from elsewhere: {request.url}")
            ),
        )
        return Window(page, problems)

    return open_it


@pytest.fixture(scope="module")
def open_page(new_window):
    """Open an address in a window of its own, with playwright's options for that."""
    return lambda address, **options: new_window(**options).visit(address)


@pytest.fixture(scope="session")
def axe():
    """What axe-core finds on a page that shuts people out: rule, why, element."""
    script = (Path(__file__).parent / "axe" / "axe.min.js").read_text("utf-8")
    run = """async options => (await axe.run({...options, resultTypes: ["violations"]})).violations
      .flatMap(({id, help, nodes}) =>
        nodes.map(node => `${id}: ${help}: ${node.html.slice(0, 150)}`))"""

    def violations(page: Page, **options: object) -> list[str]:
        page.evaluate(script)
        return page.evaluate(run, options)

    return violations


@pytest.fixture(scope="session")
def hard_to_read():
    """The text of a page whose contrast is too low."""
    return lambda page: page.evaluate(HARD_TO_READ)
