"""Pages that are light, safe and accessible: what the theme leaves undone.

An extension of Sphinx. Each page passes through `finished` as it is written (`Pages` is the
template bridge that _config.yml names), and `lighten` goes over the files beside them at the end.
"""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from fontTools.subset import Subsetter
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx
from sphinx.jinja2glue import BuiltinTemplateLoader

# Scripts are files of the site, or stood in the page when it was built. MathJax and the theme set
# styles at run time.
POLICY = (
    "default-src 'none'; base-uri 'none'; connect-src 'self'; font-src 'self'; form-action 'self';"
    " img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self'"
)
INLINE_SCRIPT = re.compile(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
FORMULA = r'<span class="math [^"]*">\\\([^<]*\\\)</span>'
OPENS, CLOSES = r"[(\[\u201c]", r"[,.;:!?)\]\u201d\u2019]"
REPAIRS = [
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        # Icons are letters of a small font instead (see `subset_icons`).
        (r"<script[^>]*/fontawesome\.js[^>]*></script>\s*", ""),
        (r'<(i|span) class="(fa[^"]*)"([^>]*)></\1>', r'<\1 class="\2"\3 aria-hidden="true"></\1>'),
        # A policy that allows one handler in an attribute allows all; book.js has these two.
        (r'\sonclick="[^"]*"', ""),
        # What a button says is its name.
        (r'(class="btn search-button-field[^>]*) aria-label="Search"', r"\1"),
        (r'<summary aria-label="Toggle hidden content">', "<summary>"),
        # All that is on a page belongs to one of its landmarks.
        (r'<div id="pst-primary-sidebar"', r'\g<0> role="complementary" aria-label="Book"'),
        # ARIA has withdrawn docutils' role of an entry, and a list has to have items.
        (r'role="doc-biblioentry"', 'role="listitem"'),
        # The corner of a table heads nothing if it is empty.
        (r'<th class="head([^"]*)"><p></p></th>', r'<td class="head\1"></td>'),
        # A line does not break between a formula and what belongs to it.
        (
            rf"{OPENS}+{FORMULA}{CLOSES}*|{FORMULA}{CLOSES}+",
            r'<span class="unbroken">\g<0></span>',
        ),
        # The space before a link is not a part of it, nor underlined.
        (r"(Solution to)(<a [^>]*>) ", r"\1 \2"),
        # A notebook is to be kept, not read as text.
        (
            r'(<a href="[^"]*\.ipynb") target="_blank"(\s+class="[^"]*btn-download-)',
            r"\1 download\2",
        ),
    )
]
NAME = re.compile(r'<span class="pre">[^<>]+</span>')
PART = re.compile(r"(?:(?<=\w[_./(=])(?!py\b|ipynb\b)|(?<=[a-z])(?=[A-Z]))(?=[\w&])")
SEARCH_TOOLS = re.compile(
    r'<script src="[^"]*(?:searchtools|language_data|searchindex)\.js"></script>\s*'
)
EXCERPTS = """\
// Sphinx would fetch each page that it has found, which a page opened as a file must not do.
const EXCERPTS = {};
window.fetch = async (page) => new Response(EXCERPTS[page.replace("./", "")]);
"""
ICON = re.compile(r'((?:,?\.fa-[\w-]+:before)+)\{content:"\\?([^"]+)"\}')
ICON_FONT = re.compile(
    r'url\(([^)]+)\.woff2\) format\("woff2"\),url\(\1\.ttf\) format\("truetype"\)'
)
SOURCE_MAP = re.compile(r"\s*/[/*]# sourceMappingURL=\S+(?: ?\*/)?")


def setup(app: Sphinx) -> dict[str, bool]:
    """All files but the pages are gone over at the end."""
    app.connect("build-finished", lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Pages(BuiltinTemplateLoader):
    """Sphinx's templates, with each page finished."""

    def render(self, template: str, context: dict[str, Any]) -> str:
        """The text of a page."""
        return finished(super().render(template, context), search=template == "search.html")


def finished(page: str, search: bool = False) -> str:
    """A page with its repairs, with the scripts it needs and with its policy.

    Args:
        page: the text of a page.
        search: whether it is the one that shows what was found; no other needs the tools for it.
    """
    for pattern, replacement in REPAIRS:
        page = pattern.sub(replacement, page)
    # A name in code may break between its parts, where the style sheet lets it.
    page = NAME.sub(lambda name: PART.sub("<wbr>", name[0]), page)
    if search:
        page = SEARCH_TOOLS.sub(
            r'<script src="_static/excerpts.js"></script>\n\g<0>', page, count=1
        )
    else:
        page = SEARCH_TOOLS.sub("", page)
    digests = [hashlib.sha256(text.encode()).digest() for text in INLINE_SCRIPT.findall(page)]
    hashes = sorted({f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in digests})
    policy = POLICY + "".join(hashes)
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}" />'
    return re.sub(r'<meta charset="utf-8" ?/?>', rf"\g<0>\n    {meta}", page, count=1)


def lighten(app: Sphinx, error: Exception | None) -> None:
    """Leave out what no reader needs, and add what a search needs on a page opened as a file."""
    if error or app.builder.format != "html":
        return
    site = Path(app.outdir)
    static = site / "_static"
    pages = {
        path.relative_to(site).as_posix(): path.read_text("utf-8")
        for path in sorted(site.rglob("*.html"))
        if static not in path.parents
    }
    subset_icons(static, "".join(pages.values()))
    for path in [*static.rglob("*.map"), static / "scripts" / "fontawesome.js"]:
        path.unlink(missing_ok=True)
    for path in [*static.rglob("*.js"), *static.rglob("*.css")]:
        path.write_text(SOURCE_MAP.sub("", path.read_text("utf-8")), "utf-8")
    excerpts = json.dumps({name: excerpt(page) for name, page in pages.items()}, ensure_ascii=False)
    (static / "excerpts.js").write_text(EXCERPTS.replace("{}", excerpts, 1), "utf-8")


def excerpt(page: str) -> str:
    """The words of a page's article, in sections that search can point to."""
    article = re.search(r"<article.*?</article>", page, re.DOTALL)
    text = re.sub(
        r"<(script|style|button).*?</\1>|<a class=\"headerlink.*?</a>",
        "",
        article[0] if article else "",
        flags=re.DOTALL,
    )
    text = re.sub(r"<(?!/?section\b)[^>]*>|\\\\[()\[\]]", "", text)
    return f'<div role="main">{text}</div>'


def subset_icons(static: Path, pages: str) -> None:
    """Keep those of the theme's icons that a page or its script shows, in style sheet and fonts."""
    sheet = static / "styles" / "pydata-sphinx-theme.css"
    script = (static / "scripts" / "pydata-sphinx-theme.js").read_text("utf-8")
    used, letters = set(re.findall(r"\bfa-[a-z0-9-]+", pages + script)), set()

    def kept(rule: re.Match) -> str:
        if used.isdisjoint(re.findall(r"fa-[\w-]+", rule[1])):
            return ""
        letters.add(int(rule[2], 16) if len(rule[2]) > 1 else ord(rule[2]))
        return rule[0]

    text = ICON.sub(kept, sheet.read_text("utf-8"))
    sheet.write_text(ICON_FONT.sub(r'url(\1.woff) format("woff")', text), "utf-8")
    for path in (static / "vendor" / "fontawesome" / "webfonts").glob("*.ttf"):
        font, subsetter = TTFont(path), Subsetter()
        subsetter.populate(unicodes=letters)
        subsetter.subset(font)
        font.flavor = "woff"
        font.save(path.with_suffix(".woff"))
        path.unlink()
        path.with_suffix(".woff2").unlink()
