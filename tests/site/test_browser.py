"""What a reader sees: every page in a browser, opened as a file and without a network."""

import os
import re
import shutil
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",
]

# Elements of the article that stick out of the window and that nothing around them scrolls.
STICKING_OUT = """() => {
  const scrolls = element => {
    for (let e = element.parentElement; e && e.tagName !== 'ARTICLE'; e = e.parentElement)
      if (['auto', 'scroll'].includes(getComputedStyle(e).overflowX)) return true;
    return false;
  };
  return [...document.querySelectorAll('article *:not(mjx-assistive-mml, mjx-assistive-mml *)')]
    .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)
    .filter(e => !scrolls(e)).map(e => e.outerHTML.slice(0, 100));
}"""

# Text whose contrast with what is behind it is below 4.5 to 1 (WCAG 2, level AA). A canvas of one
# pixel mixes transparent colors, and understands every notation of a color.
HARD_TO_READ = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const luminance = colors => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of ['white', ...colors]) {
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
    }
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(
      c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => e ? [...behind(e.parentElement), getComputedStyle(e).backgroundColor] : [];
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


class Opened(NamedTuple):
    """A page in the browser, and what went wrong there."""

    page: Page
    problems: list[str]


def _open(browser: Browser, address: str) -> Opened:
    page, problems = browser.new_page(reduced_motion="reduce"), []
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
    page.goto(address)
    page.evaluate("window.MathJax?.startup?.promise?.then(() => null)")
    return Opened(page, problems)


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("VAE_BOOK_BROWSER") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(
            "no browser: install one (Debian: apt install chromium), or set VAE_BOOK_BROWSER to "
            "the path of a Chromium or Chrome"
        )
    # Not for the whole session: the event loop of playwright would get in the way of other tests.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser, site, docname):
    opened = _open(browser, (site / f"{docname}.html").as_uri())
    yield opened
    opened.page.close()


@pytest.fixture
def view(opened):
    """The opened page on a desktop, in light mode, with its solutions folded."""
    page = opened.page
    page.set_viewport_size(DESKTOP)
    page.emulate_media(color_scheme="light")
    page.eval_on_selector_all(
        ".toggle:not(.toggle-hidden) > * > button", "all => all.forEach(b => b.click())"
    )
    return page


def _unfold(page: Page) -> None:
    page.eval_on_selector_all(".toggle-hidden > * > button", "all => all.forEach(b => b.click())")
    page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")


def test_page_loads_without_a_problem_or_a_request(opened):
    assert opened.problems == []


def test_mathematics_is_typeset(view):
    errors = "all => all.map(e => e.dataset.mjxError ?? e.textContent)"
    raw = "all => all.filter(e => !e.querySelector('mjx-container')).map(e => e.textContent)"
    assert view.eval_on_selector_all("mjx-merror, [data-mjx-error]", errors) == []
    assert view.eval_on_selector_all(".math", raw) == []


def test_images_are_shown(view):
    broken = "all => all.filter(e => !e.naturalWidth).map(e => e.src)"
    assert view.eval_on_selector_all("img", broken) == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_is_no_wider_than_the_window(view, size):
    view.set_viewport_size(size)
    _unfold(view)
    assert view.evaluate("document.documentElement.scrollWidth") <= size["width"] + 1
    assert view.evaluate(STICKING_OUT) == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_one_search_box_is_in_sight(view, size):
    view.set_viewport_size(size)
    boxes = ".search-button__button, input[type=search]"
    in_sight = "all => all.filter(e => e.checkVisibility({checkVisibilityCSS: true})).length"
    assert view.eval_on_selector_all(boxes, in_sight) == 1


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_is_easy_to_read(view, mode):
    view.emulate_media(color_scheme=mode)
    _unfold(view)
    view.wait_for_function(
        f"document.documentElement.dataset.theme === '{mode}' && !document.getAnimations().length",
        timeout=5000,
    )
    assert view.evaluate(HARD_TO_READ) == []


def test_solutions_unfold_at_a_click(view):
    for solution in view.locator(".solution").all():
        content = solution.locator("> section")
        assert not content.is_visible()
        solution.locator(".toggle-button").click()
        assert content.is_visible()


def test_search_finds_a_page(browser, site):
    search = _open(browser, f"{(site / 'search.html').as_uri()}?q=notation")
    search.page.wait_for_selector("#search-results a[href*='book/notation.html']", timeout=5000)
    # A page opened as a file may not read the other pages, so here results come without excerpts.
    assert [p for p in search.problems if not re.search("fetch|ERR_FAILED|not loaded", p)] == []
    search.page.close()
