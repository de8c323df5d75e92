"""The bibliography: whole entries that a reader can find, and each of them cited."""

import re
from pathlib import Path

import pytest
from pybtex.database import Entry, parse_file

from contents import chapters, prose

ROOT = Path(__file__).parents[2]
ENTRIES = dict(parse_file(str(ROOT / "book/references.bib"), "bibtex").entries)
# What BibTeX asks of each type that the book uses.
REQUIRED = {
    "article": {"author", "title", "journal", "year", "volume"},
    "book": {"author", "title", "publisher", "year"},
    "incollection": {"author", "title", "booktitle", "publisher", "year", "editor"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "misc": {"author", "title", "year"},
    "techreport": {"author", "title", "institution", "number", "year"},
}
IDENTIFIERS = {
    "doi": re.compile(r"10\.\d{4,9}/\S+"),
    "eprint": re.compile(r"\d{4}\.\d{4,5}"),
    "url": re.compile(r"https?://\S+"),
}
ROLE = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")
# "Burda et al. (2016)", "Kong, Liu and Wong (1994)": the name next to the year is an author's.
SOURCE = re.compile(r"([A-Z][\w-]+)(?:\s+et\s+al\.)?\s+\((1[89]\d\d|20\d\d)\)")


def _cited() -> set[str]:
    """The keys that the chapters and the other pages cite."""
    pages = [prose(path) for path in chapters(ROOT)]
    pages += [path.read_text("utf-8") for path in (ROOT / "book").glob("*.md")]
    lists = [keys for page in pages for keys in ROLE.findall(page)]
    return {key.strip() for keys in lists for key in keys.split(",")}


def _authors() -> set[tuple[str, str]]:
    """Each author's last word of the last name, with the year of the entry."""
    return {
        (person.last_names[-1], entry.fields["year"])
        for entry in ENTRIES.values()
        for person in entry.persons["author"]
    }


def _docstring_sources() -> list[tuple[str, str, str]]:
    """Module, author and year of each source that the package names."""
    return [
        (path.name, *found)
        for path in sorted((ROOT / "vae_book").glob("*.py"))
        for found in SOURCE.findall(path.read_text("utf-8"))
    ]


def test_what_is_cited_has_an_entry_and_what_has_an_entry_is_cited():
    assert _cited() == set(ENTRIES)


@pytest.mark.parametrize("key", ENTRIES)
def test_an_entry_has_the_fields_of_its_type(key):
    entry: Entry = ENTRIES[key]
    assert entry.type in REQUIRED, f"@{entry.type}: expected one of {', '.join(REQUIRED)}"
    present = {name for name, value in entry.fields.items() if value} | set(entry.persons)
    assert not REQUIRED[entry.type] - present


@pytest.mark.parametrize("key", ENTRIES)
def test_an_entry_can_be_found_by_an_identifier(key):
    fields = ENTRIES[key].fields
    present = {name: fields[name] for name in IDENTIFIERS if name in fields}
    assert present, f"{key}: give its doi, its arXiv number as eprint, or an address as url"
    for name, value in present.items():
        assert IDENTIFIERS[name].fullmatch(value), f"{key}: {name} = {value!r}"


@pytest.mark.parametrize("key", ENTRIES)
def test_pages_are_a_range_that_rises(key):
    pages = ENTRIES[key].fields.get("pages", "1")
    assert re.fullmatch(r"\d+(--\d+)?", pages), f"{key}: pages = {pages!r}"
    first, *last = map(int, pages.split("--"))
    assert not last or first < last[0]


@pytest.mark.parametrize("key", ENTRIES)
def test_capitals_that_matter_are_in_braces(key):
    """The style makes small letters of all others: an unprotected VAE is printed as vae."""
    open_text = re.sub(r"\{[^{}]*\}", "", ENTRIES[key].fields["title"])
    if ENTRIES[key].type != "book":
        assert not re.search(r"\w[A-Z]", open_text), f"{key}: {open_text!r}"


@pytest.mark.parametrize(("module", "author", "year"), _docstring_sources())
def test_a_source_that_the_package_names_is_in_the_bibliography(module, author, year):
    assert (author, year) in _authors(), f"{module}: no entry by {author} of {year}"
