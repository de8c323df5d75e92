"""What can be told from the HTML alone: the build itself misses all of this."""

import copy
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pybtex.database import parse_file

ROOT = Path(__file__).parents[2]
REMOTE = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
# What a browser loads without being asked; a link that a reader may follow is not among it.
LOADS = {
    "audio": ["src"],
    "embed": ["src"],
    "iframe": ["src"],
    "img": ["src", "srcset"],
    "link": ["href"],
    "object": ["data"],
    "script": ["src"],
    "source": ["src", "srcset"],
    "video": ["src", "poster"],
}
CSS_LOAD = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s;]+)""", re.IGNORECASE)
# Formulas, TeX, roles, fences, headings, bold type and tables that nothing has rendered.
MARKUP = re.compile(
    r"\$[^$\n]+\$|\\[a-zA-Z(\[]+|\{[\w:]+\}`|:::|^#+ |\*\*|\|[ :]*[-\u2013\u2014]+[ :]*\|",
    re.MULTILINE,
)


def test_site_builds_without_a_warning(build):
    run, _ = build
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr


def test_page_has_one_title_and_one_search_field(page, article):
    assert len(article.select("h1")) == 1
    assert len(page.select("input[type=search]")) == 1


def test_images_say_what_they_show(article):
    for image in article.select("img"):
        alt = image.get("alt", "").strip()
        # Without an alt text of its own an image gets its path.
        assert " " in alt, f"{image.get('src')}: alt text {alt!r}"
        assert not re.search(r"\.(png|jpe?g|gif|svg|webp)\b", alt), f"alt text {alt!r}"


def test_images_are_figures_with_captions(article):
    for image in article.select("img"):
        caption = image.find_parent("figure") and image.find_parent("figure").select_one(
            "figcaption .caption-text"
        )
        assert caption, f"no caption: {image.get('src')}"
        assert caption.get_text(strip=True), f"empty caption: {image.get('src')}"


def test_no_cell_shows_an_error(article):
    wrong = article.select(".output.stderr, .output.traceback, .output.error")
    assert not [output.get_text() for output in wrong]


def test_no_markup_is_left_in_the_prose(article):
    prose = copy.copy(article)
    for element in prose.select("pre, code, script, style, .math"):
        element.decompose()
    assert not MARKUP.findall(prose.get_text())


def test_chapter_can_be_launched_and_downloaded(page, docname):
    if not (ROOT / f"{docname}.ipynb").exists():
        assert not page.select(".dropdown-launch-buttons")
        return
    links = [link["href"] for link in page.select(".dropdown-launch-buttons a")]
    repository = "vae-book/vae-book"
    assert links == [
        f"https://mybinder.org/v2/gh/{repository}/main?urlpath=lab/tree/{docname}.ipynb",
        f"https://colab.research.google.com/github/{repository}/blob/main/{docname}.ipynb",
    ]
    assert page.select_one(f".dropdown-download-buttons a[href$='{docname}.ipynb']")


def test_nothing_is_loaded_from_elsewhere(site, html_files, parsed):
    remote = []
    for path in html_files:
        tags = parsed(path).find_all(LOADS)
        addresses = [tag.get(name, "") for tag in tags for name in LOADS[tag.name]]
        styles = [tag["style"] for tag in parsed(path).select("[style]")]
        styles += [tag.get_text() for tag in parsed(path).select("style")]
        remote += [(path.name, address) for address in addresses if REMOTE.match(address)]
        remote += [(path.name, address) for address in CSS_LOAD.findall(" ".join(styles))]
    for path in site.rglob("*.css"):
        remote += [(path.name, address) for address in CSS_LOAD.findall(path.read_text("utf-8"))]
    assert not remote


def test_internal_links_lead_somewhere(html_files, parsed):
    broken = []
    for path in html_files:
        for tag in parsed(path).select("[href], [src]"):
            address = tag.get("href", tag.get("src"))
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            fragment = unquote(parts.fragment)
            if not target.is_file() or (
                fragment and not parsed(target).find(attrs={"id": fragment})
            ):
                broken.append((path.name, address))
    assert not broken


def test_each_reference_leads_to_its_source(site, parsed):
    entries = parse_file(str(ROOT / "book/references.bib"), "bibtex").entries.values()
    starts = {"doi": "https://doi.org/", "eprint": "https://arxiv.org/abs/", "url": ""}
    addresses = [
        [start + entry.fields[name] for name, start in starts.items() if name in entry.fields]
        for entry in entries
    ]
    shown = parsed(site / "book/references.html").select("article .citation")
    linked = [[link["href"] for link in item.select("a.external")] for item in shown]
    assert sorted(map(sorted, linked)) == sorted(map(sorted, addresses))
    assert all(linked)


def test_front_page_leads_to_the_first_page(site):
    target = re.search(r'url=([^"]+)"', (site / "index.html").read_text("utf-8"))[1]
    assert (site / target).is_file()
