"""The front door, and the search."""

from __future__ import annotations

import pytest

from tests.browser import reader
from tests.browser.reader import Visit, as_lines, each

if reason := reader.lacking():
    pytest.skip(reason, allow_module_level=True)

START = ["book/preface.html"]
each_edition = pytest.mark.parametrize(
    "opened", each("site", START) + each("zip", START), indirect=True
)


@each_edition
def test_the_front_door_leads_in(visit: Visit) -> None:
    visit.page.goto((visit.root / "index.html").as_uri())
    within = visit.root / "book" / "index.html"
    visit.page.wait_for_url(within.as_uri(), wait_until="load")
    visit.settle()


@each_edition
def test_search_finds_softmax(visit: Visit) -> None:
    visit.open("book/preface.html")
    visit.page.keyboard.press("Control+k")
    visit.page.keyboard.type("softmax")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url("**/search.html?q=softmax")
    results = visit.page.locator("ul.search li a")
    results.first.wait_for()
    visit.page.get_by_text("Search finished").wait_for()
    titles = results.all_inner_texts()
    assert any(title.startswith("Scoring functions") for title in titles), as_lines(titles)
    assert visit.broken_links() == []
    results.first.click()
    visit.page.wait_for_load_state()
    visit.settle()
    assert visit.page.get_by_text("softmax").count()
    assert not visit.complaints, as_lines(visit.complaints)
