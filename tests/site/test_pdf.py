"""The book on paper: one page of all pages, before a browser prints it."""

from pathlib import Path

import pytest
from bs4 import BeautifulSoup

import pdf
from contents import pages

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def book(site):
    return BeautifulSoup(pdf.whole_book(ROOT, site), "html.parser")


def test_the_printed_book_holds_every_page_once_in_reading_order(book):
    titles = [page.name for page in map(Path, pages(ROOT))]
    articles = [article["id"] for article in book.select("article[id]")]
    assert articles == titles


def test_links_inside_the_printed_book_lead_somewhere(book):
    places = [tag["id"] for tag in book.select("article [id], article[id]")]
    links = {tag["href"][1:] for tag in book.select("article a[href^='#']")}
    assert len(links) > len(pages(ROOT))
    assert {link: places.count(link) for link in links if places.count(link) != 1} == {}


def test_no_link_of_the_printed_book_leads_to_a_file_of_the_site(book):
    targets = [tag["href"] for tag in book.select("article a[href]")]
    assert [href for href in targets if not href.startswith(("#", "http"))] == []
