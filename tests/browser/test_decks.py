"""The decks as an instructor opens them: from the built site, and from the offline zip."""

from __future__ import annotations

import pytest

from tests.browser import reader
from tests.browser.reader import Count, Visit, as_lines, each
from tools import slides

if reason := reader.lacking():
    pytest.skip(reason, allow_module_level=True)

DECKS = reader.decks()
each_deck = pytest.mark.parametrize(
    "opened", each("site", DECKS) + each("zip", DECKS), indirect=True
)


@each_deck
def test_a_deck_runs_to_its_end(visit: Visit, record_property: Count) -> None:
    page = visit.page
    page.wait_for_function("window.Reveal?.isReady()")
    total = page.evaluate("Reveal.getTotalSlides()")
    page.keyboard.press("Home")
    for number in range(1, total):
        page.keyboard.press("Space")
        assert page.evaluate("Reveal.getSlidePastCount()") == number
    assert not visit.complaints, as_lines(visit.complaints)
    broken = visit.broken_links()
    assert not broken, as_lines(broken)
    record_property("slides", total)
    record_property("requests", visit.requests)


@each_deck
def test_each_slide_is_whole(visit: Visit) -> None:
    visit.page.wait_for_function("window.Reveal?.isReady()")
    faults = slides.faults(visit.page.evaluate(slides.MEASURE))
    assert not faults, as_lines(faults)
    wrong = visit.page.evaluate(
        """() => [...document.querySelectorAll("mjx-merror, img:not([alt]), img[alt='']"),
                  ...[...document.querySelectorAll(".math")].filter(
                    formula => !formula.querySelector("mjx-container"))]
          .map(part => part.outerHTML.slice(0, 200))"""
    )
    assert not wrong, as_lines(wrong)
