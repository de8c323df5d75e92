"""What a reader sees: every page in a browser, opened as a file and without a network."""

import pytest
from playwright.sync_api import Page

from vae_book.figures import WIDTH

SMALLEST = 10  # points
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
# Rules of axe that look at the colors of all there is, which takes longer than the others together.
COLORS = ["color-contrast", "link-in-text-block"]

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

# Solutions that do not unfold when what lies in the middle of their button is clicked.
STAY_FOLDED = """all => all.filter(solution => {
  const button = solution.querySelector('.toggle-button');
  const content = solution.querySelector(':scope > section');
  const shown = () => content.checkVisibility({checkVisibilityCSS: true});
  const folded = !shown();
  button.scrollIntoView({block: 'center', behavior: 'instant'});
  const {x, y, width, height} = button.getBoundingClientRect();
  const hit = document.elementFromPoint(x + width / 2, y + height / 2);
  if (button.contains(hit)) hit.dispatchEvent(new MouseEvent('click', {bubbles: true}));
  return !folded || !shown();
}).map(solution => solution.innerText)"""
# The frame after the next one: what watches the sizes of elements has run.
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture(scope="module")
def window(new_window):
    window = new_window(viewport=DESKTOP)
    yield window
    window.page.close()


@pytest.fixture(scope="module")
def opened(window, site, docname):
    window.page.goto("about:blank")  # ends the page before, else what follows lays it out anew
    window.page.set_viewport_size(DESKTOP)
    window.page.emulate_media(color_scheme="light")
    return window.visit((site / f"{docname}.html").as_uri())


# Of one window, so that tests of the same size follow each other and a page is laid out twice only.
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"], scope="module")


def seen(page: Page, size: dict[str, int], mode: str = "light", unfolded: bool = True) -> Page:
    """The page at a size, in light or dark mode, with its solutions folded or not.

    What is so already stays: the browser would look at all styles again.
    """
    if page.viewport_size != size:
        page.set_viewport_size(size)
    if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") != (mode == "dark"):
        page.emulate_media(color_scheme=mode)
        page.locator(f"html[data-theme={mode}]").wait_for(state="attached", timeout=5000)
    state = ".toggle-hidden" if unfolded else ".toggle:not(.toggle-hidden)"
    page.eval_on_selector_all(f"{state} > * > button", "all => all.forEach(b => b.click())")
    if unfolded:
        page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
    return page


def test_page_loads_without_a_problem_or_a_request(opened):
    assert opened.problems == []


def test_mathematics_is_typeset(opened):
    view = opened.page
    errors = "all => all.map(e => e.dataset.mjxError ?? e.textContent)"
    raw = "all => all.filter(e => !e.querySelector('mjx-container')).map(e => e.textContent)"
    assert view.eval_on_selector_all("mjx-merror, [data-mjx-error]", errors) == []
    assert view.eval_on_selector_all(".math", raw) == []


def test_images_are_shown(opened):
    broken = "all => all.filter(e => !e.naturalWidth).map(e => e.src)"
    assert opened.page.eval_on_selector_all("img", broken) == []


def test_solutions_unfold_at_a_click(opened):
    """In the middle of the window, where nothing of the theme lies above."""
    page = seen(opened.page, DESKTOP, unfolded=False)
    assert page.eval_on_selector_all(".solution", STAY_FOLDED) == []


def test_equations_fit_the_column_of_a_desktop(opened):
    view = seen(opened.page, DESKTOP)
    view.evaluate(DRAWN)  # book.js looks at a formula when its size has changed
    too_wide = "all => all.map(e => e.textContent.slice(0, 60))"
    assert view.eval_on_selector_all("mjx-container.more-right, .math.more-right", too_wide) == []


def test_sentences_and_tables_of_a_cell_keep_their_distance_from_what_is_above(opened):
    view = seen(opened.page, DESKTOP)
    near = view.evaluate("""() => [
      ...document.querySelectorAll('.cell_output > * + :is(p, .pst-scrollable-table-container)')
    ].filter(e =>
      e.getBoundingClientRect().top - e.previousElementSibling.getBoundingClientRect().bottom < 12
    ).map(e => e.textContent.slice(0, 60))""")
    assert near == []


def test_figures_have_two_pixels_for_each_of_a_desktop(opened):
    ratios = seen(opened.page, DESKTOP).eval_on_selector_all(
        "article figure img", "all => all.map(e => e.naturalWidth / e.clientWidth)"
    )
    assert all(ratio >= 2 for ratio in ratios), min(ratios)


@SIZES
def test_one_search_box_is_in_sight(opened, size):
    boxes = ".search-button__button, input[type=search]"
    in_sight = "all => all.filter(e => e.checkVisibility({checkVisibilityCSS: true})).length"
    assert seen(opened.page, size).eval_on_selector_all(boxes, in_sight) == 1


@SIZES
def test_no_line_starts_with_what_closes_a_formula_or_ends_with_what_opens_one(opened, size):
    torn = seen(opened.page, size).evaluate("""() => {
      const range = document.createRange();
      const line = (text, at) => {
        range.setStart(text, at);
        range.setEnd(text, at + 1);
        return range.getBoundingClientRect();
      };
      return [...document.querySelectorAll('article span.math')].filter(e => {
        if (!e.checkVisibility()) return false;
        const [before, next] = [e.previousSibling, e.nextSibling], text = 3;
        const drawn = [...e.querySelector('mjx-math').getClientRects()];
        const opens = before?.nodeType === text && /[(\\[“]$/.test(before.data);
        const closes = next?.nodeType === text && /^[,.;:!?)\\]”’]/.test(next.data);
        return closes && line(next, 0).top > drawn.at(-1).bottom
          || opens && line(before, before.length - 1).bottom < drawn[0].top;
      }).map(e => e.parentElement.textContent.slice(0, 60));
    }""")
    assert torn == []


@SIZES
def test_names_and_headings_break_between_their_parts(opened, size):
    torn = seen(opened.page, size).evaluate("""() => {
      const torn = [], range = document.createRange();
      for (const e of document.querySelectorAll('article :is(code, h1, h2, h3):not(pre *)')) {
        const texts = document.createTreeWalker(e, NodeFilter.SHOW_TEXT);
        for (let node; (node = texts.nextNode()); ) {
          range.selectNodeContents(node);
          if (range.getClientRects().length < 2) continue;  // on one line
          for (let i = 1; i < node.data.length; i++) {
            if (!/[a-z0-9]{2}|[A-Z]\\w/.test(node.data.slice(i - 1, i + 1))) continue;
            range.setStart(node, i - 1);
            range.setEnd(node, i + 1);
            const [first, ...others] = range.getClientRects();
            if (others.some(rect => rect.top > first.bottom - 2)) torn.push(e.textContent);
          }
        }
      }
      return torn;
    }""")
    assert torn == []


@SIZES
def test_what_scrolls_shows_it_and_can_be_focused(opened, size):
    view = seen(opened.page, size)
    view.evaluate(DRAWN)
    plain = view.evaluate("""() => [...document.querySelectorAll('article *')].filter(e => {
      const scrolls = getComputedStyle(e).overflowX === 'auto' && e.checkVisibility();
      const drawn = e.querySelector('mjx-math')?.getBoundingClientRect().width ?? e.scrollWidth;
      return scrolls && drawn > e.clientWidth + 1 && !e.closest('.more-right[tabindex="0"]');
    }).map(e => e.outerHTML.slice(0, 100))""")
    assert plain == []


@SIZES
def test_page_is_no_wider_than_the_window(opened, size):
    view = seen(opened.page, size)
    assert view.evaluate("document.documentElement.scrollWidth") <= size["width"] + 1
    assert view.evaluate(STICKING_OUT) == []


@SIZES
def test_type_in_figures_is_large_enough(opened, size):
    """The smallest has SMALLEST points in a figure that is WIDTH inches wide."""
    view = seen(opened.page, size)
    widths = view.eval_on_selector_all("article figure img", "all => all.map(e => e.clientWidth)")
    assert all(SMALLEST / 72 * width / WIDTH >= 8 for width in widths), min(widths)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_is_easy_to_read(opened, hard_to_read, mode):
    view = seen(opened.page, PHONE, mode)
    view.evaluate("() => Promise.all(document.getAnimations().map(change => change.finished))")
    assert hard_to_read(view) == []


def test_axe_finds_no_barrier(opened, axe):
    """On a phone, where most has to scroll; a desktop's view of one page is looked at below.

    Without the strokes of formulas, up to a third of a page: they are hidden from whoever has them
    read aloud, and what scrolls is looked at above. As they are gone then, it comes last.
    """
    view = seen(opened.page, PHONE, "dark")
    view.eval_on_selector_all("mjx-math", "all => all.forEach(e => e.replaceChildren())")
    assert axe(view, rules={rule: {"enabled": False} for rule in COLORS}) == []


@pytest.fixture(scope="module")
def page_of_all_kinds(open_page, site):
    page = open_page((site / "book/08_vae_on_mnist.html").as_uri(), viewport=DESKTOP).page
    yield page
    page.close()


@pytest.mark.parametrize(("mode", "rules"), [("light", {}), ("dark", {"runOnly": COLORS})])
def test_axe_finds_no_barrier_on_a_desktop_or_in_colors(page_of_all_kinds, axe, mode, rules):
    """In a page with all kinds of things; the text of all pages is looked at above."""
    view = seen(page_of_all_kinds, DESKTOP, mode)
    view.evaluate("() => Promise.all(document.getAnimations().map(change => change.finished))")
    assert axe(view, **rules) == []


def test_what_has_the_focus_shows_it(open_page, site):
    """From one tab stop to the next, through a whole page."""
    page = open_page((site / "book/05_gaussian_kl.html").as_uri(), viewport=DESKTOP).page
    focused = """() => {
      const e = document.activeElement, style = getComputedStyle(e), seen = e.seen;
      e.seen = true;
      const outline = style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
      return e === document.body || seen ? null : [e.outerHTML.slice(0, 120), outline];
    }"""
    outlines = []
    page.keyboard.press("Tab")
    while stop := page.evaluate(focused):
        outlines.append(stop)
        page.keyboard.press("Tab")
    assert len(outlines) > 60
    assert [element for element, outline in outlines if outline < 2] == []
    page.close()


def test_search_finds_a_page_and_shows_the_words_around(open_page, site):
    search = open_page(f"{(site / 'search.html').as_uri()}?q=notation")
    found = "#search-results li:has(a[href*='book/notation.html'])"
    context = search.page.wait_for_selector(f"{found} p.context", timeout=5000)
    assert "meaning" in context.text_content()
    assert search.problems == []
    search.page.close()
