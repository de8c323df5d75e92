"""What can be told from the HTML alone: the build itself misses all of this."""

import base64
import copy
import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup
from pybtex.database import parse_file

from vae_book.display import MINUS

ROOT = Path(__file__).parents[2]
# What MathJax's start loads for itself.
MATHJAX = ["core.js", "input/tex-full.js", "output/chtml.js", "a11y/assistive-mml.js"]
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
    r"\$[^$\n]+\$|\\[a-zA-Z(\[]+|\{[\w:-]+\}|[`~]{3}|:::|^#+ |\*\*|\|[ :]*[-\u2013\u2014]+[ :]*\|",
    re.MULTILINE,
)


def test_site_builds_without_a_warning(build):
    run, _ = build
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr


def test_page_has_one_title_and_one_search_field(page, article):
    assert len(article.select("h1")) == 1
    assert len(page.select("input[type=search]")) == 1


def test_links_start_and_end_with_a_word(article):
    """A space in a link is underlined."""
    texts = [link.get_text() for link in article.select("a")]
    assert [text for text in texts if text.strip("\n") != text.strip()] == []


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
    for figure in article.select("figure"):
        assert len(figure.select("img, svg")) == 1, f"not one picture: {figure.get_text()}"


def test_no_cell_shows_an_error(article):
    wrong = article.select(".output.stderr, .output.traceback, .output.error")
    assert not [output.get_text() for output in wrong]


def _prose(article) -> str:
    """The text of a page with an x for each formula and piece of code."""
    prose = copy.copy(article)
    for element in prose.select("pre, code, script, style, .math"):
        element.replace_with("x")
    return prose.get_text()


def test_no_markup_is_left_in_the_prose(article):
    assert not MARKUP.findall(_prose(article))


def test_no_hyphen_stands_for_a_minus_in_the_prose(article):
    prose = _prose(article)
    assert [prose[at.start() - 30 : at.end() + 30] for at in MINUS.finditer(prose)] == []


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


def test_a_page_can_be_edited_where_it_came_from(page, docname):
    (link,) = page.select("a.btn-source-edit-button")
    (source,) = (
        ROOT / f"{docname}{ending}"
        for ending in (".ipynb", ".md")
        if (ROOT / f"{docname}{ending}").exists()
    )
    assert link["href"].endswith(f"/edit/main/{source.relative_to(ROOT).as_posix()}")


def test_exercises_have_the_numbers_of_the_notebook(article, docname):
    path = ROOT / f"{docname}.ipynb"
    cells = json.loads(path.read_text("utf-8"))["cells"] if path.exists() else []
    text = "\n".join("".join(cell["source"]) for cell in cells)
    stored = re.findall(r"^### (Exercise [\d.]+): (.+)$", text, re.MULTILINE)
    shown = [tag.get_text() for tag in article.select(".exercise > .admonition-title")]
    assert [re.match(r"(Exercise [\d.]+)\s+\((.+)\)", words).groups() for words in shown] == stored


def test_equations_have_the_numbers_of_the_notebook(article, docname):
    path = ROOT / f"{docname}.ipynb"
    if path.exists():
        tags = re.findall(r"\\\\tag\{([\d.]+)\}", path.read_text("utf-8"))
        assert [tag.get_text().strip("()#¶") for tag in article.select(".eqno")] == tags


def test_an_edition_without_solutions_builds(book, tmp_path):
    """Neither its pages nor the notebooks beside them have any."""
    name = "book/05_gaussian_kl"
    shutil.copytree(ROOT / "book", tmp_path / "book")
    settings = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    (tmp_path / "_config.yml").write_text(yaml.safe_dump(settings), "utf-8")
    book.hide_solutions(tmp_path / "_config.yml")
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\n"
        f"chapters: [{{file: {name}}}, {{file: book/references}}]"
    )
    start = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "build", str(tmp_path), "--quiet"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    html = tmp_path / "_build" / "html"
    article = BeautifulSoup((html / f"{name}.html").read_text("utf-8"), "html.parser").article
    assert len(article.select(".exercise")) > 3
    assert not article.select(".solution")
    assert not re.search(r"^Solution", article.get_text(), re.MULTILINE)
    cells = json.loads((html / "_sources" / f"{name}.ipynb").read_text("utf-8"))["cells"]
    assert len(cells) > 20
    assert "#### Solution" not in ["".join(cell["source"]) for cell in cells]


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
    @functools.cache
    def places(page):
        return {tag["id"] for tag in parsed(page).select("[id]")}

    broken = []
    for path in html_files:
        for tag in parsed(path).select("[href], [src]"):
            address = tag.get("href", tag.get("src"))
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            fragment = unquote(parts.fragment)
            if not target.is_file() or (fragment and fragment not in places(target)):
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


def test_a_page_has_a_policy_that_allows_its_own_scripts_alone(html_files):
    for path in html_files:
        text = path.read_text("utf-8")
        if 'http-equiv="Refresh"' in text:  # index.html, which leads to the introduction
            continue
        policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)"', text)
        assert policy, path
        for part in ("default-src 'none'", "connect-src 'self'", "base-uri 'none'"):
            assert part in policy[1], path
        scripts = policy[1].partition("script-src ")[2]
        assert "unsafe" not in scripts, path
        inline = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", text, re.DOTALL)
        for script in inline:
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in scripts, f"{path}: {script[:60]}"
        assert not re.search(r"<[^>]+\son\w+=\"", text), path


def test_numbers_of_figures_and_equations_name_their_chapter(article, docname):
    chapter = re.match(r"book/0*(\d+)_", docname)
    numbers = [tag.get_text() for tag in article.select("figcaption .caption-number")]
    numbers += [tag.get_text() for tag in article.select("div.math > .eqno, span.eqno")]
    assert numbers or not chapter
    for kind in ("Fig", "("):
        found = [text for text in numbers if text.strip().startswith(kind)]
        counted = [re.search(r"(\d+)\.(\d+)", text) for text in found]
        if chapter:
            assert all(counted), found
            assert [match.groups() for match in counted] == [
                (chapter[1], str(count)) for count in range(1, len(found) + 1)
            ]


def test_a_page_weighs_under_two_megabytes_before_its_pictures(site, page, docname):
    folder = (site / docname).parent
    sources = [tag["src"] for tag in page.select("script[src]")]
    sources += [tag["href"] for tag in page.select("link[rel=stylesheet], link[rel=preload]")]
    files = {(folder / unquote(urlsplit(source).path)).resolve() for source in sources}
    scripts = [site / "_static/mathjax" / name for name in MATHJAX]
    weight = sum(path.stat().st_size for path in [*files, *scripts, site / f"{docname}.html"])
    assert weight - embedded(page) < 2_000_000


def embedded(page) -> int:
    """The bytes of the pictures and models that stand in the page itself."""
    addresses = [tag["src"] for tag in page.select("[src^='data:']")]
    return sum(map(len, addresses)) + sum(
        len(tag.get_text()) for tag in page.select("article script")
    )


def test_no_file_is_there_that_no_page_needs(site):
    assert list(site.rglob("*.map")) == []
