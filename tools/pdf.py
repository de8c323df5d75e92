"""Print the whole book, in reading order, into one file.

    python tools/pdf.py

`make pdf` calls it, after `make book`: the pages of _build/html become _build/vae-book.pdf. A
Chromium or Chrome of the system does the printing.
"""

# isort: off
import stopping

# isort: on
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import sync_playwright

import chromium
from contents import pages
from vae_book.files import replacing

ROOT = Path(__file__).parents[1]
SITE = ROOT / "_build" / "html"
PDF = ROOT / "_build" / "vae-book.pdf"


def main() -> int:
    stopping.imported()
    if not (SITE / "index.html").exists():
        print(f"there is no site in {SITE}: run `make book` first", file=sys.stderr)
        return 1
    if chromium.find() is None:
        print(chromium.MISSING, file=sys.stderr)
        return 1
    print("printing the book", flush=True)
    print_book(ROOT, SITE, PDF)
    print(f"\nThe book is printed:\n  {PDF.as_uri()}")
    return 0


def print_book(top: Path, site: Path, pdf: Path) -> None:
    """Print the pages of a site that are named in ``top``'s table of contents."""
    names = pages(top)
    # Beside the first page, so that the addresses of pictures lead where they led.
    whole = (site / names[0]).with_name("_whole.html")
    whole.write_text(whole_book(top, site), "utf-8")
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium.find(), args=chromium.FLAGS
            )
            page = browser.new_page(color_scheme="light")
            page.goto(whole.as_uri())
            page.evaluate("window.MathJax?.startup?.promise?.then(() => null)")
            with replacing(pdf) as part:
                page.pdf(path=part, prefer_css_page_size=True, outline=True, tagged=True)
            browser.close()
    finally:
        whole.unlink()


def whole_book(top: Path, site: Path) -> str:
    """One page with the articles of all pages, one behind the other, and a list of contents.

    It has the head of the first page, whose policy lets no script run that stands in another: what
    a reader could play with stays a picture.
    """
    names = pages(top)
    book = parsed(site / f"{names[0]}.html")
    articles = {name: article(parsed(site / f"{name}.html"), name, names) for name in names}
    place = book.select_one("article.bd-article")
    first, *others = articles.values()
    place.replace_with(first)
    first.insert_after(contents(book, top, articles), *others)
    return str(book)


def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


def article(page: BeautifulSoup, name: str, names: list[str]) -> Tag:
    """The article of a page, with anchors and links that are right among those of all pages."""
    found = page.select_one("article.bd-article")
    for tag in found.select("a.image-reference"):  # to the picture by itself, larger on a screen
        tag.unwrap()
    for tag in found.select("[id]"):
        tag["id"] = f"{Path(name).stem}-{tag['id']}"
    for tag in found.select("a[href]"):
        address = urlsplit(tag["href"])
        target = Path(name) if not address.path else Path(name).parent / unquote(address.path)
        if not address.scheme and str(target.with_suffix("")) in names:
            tag["href"] = "#" + "-".join(filter(None, [target.stem, address.fragment]))
    found["id"] = Path(name).stem
    return found


def contents(book: BeautifulSoup, top: Path, articles: dict[str, Tag]) -> Tag:
    """The list of contents, by the parts of the table of contents."""
    toc = yaml.safe_load((top / "_toc.yml").read_text())
    rows = ["<article class='bd-article'><h1>Contents</h1>"]
    for part in toc["parts"]:
        rows.append(f"<p><strong>{part['caption']}</strong></p><ul>")
        for entry in part["chapters"]:
            heading = articles[entry["file"]].h1.find(string=True)
            rows.append(f"<li><a href='#{Path(entry['file']).stem}'>{heading}</a></li>")
        rows.append("</ul>")
    rows.append("</article>")
    return BeautifulSoup("".join(rows), "html.parser").article


if __name__ == "__main__":
    sys.exit(main())
