"""One browser a worker, the book in both its editions, and a line of figures at the end."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import reader
from tools import offline, slides

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext


@pytest.fixture(scope="session")
def context() -> Iterator[BrowserContext]:
    """A window of a browser that finds no host."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=slides.browser(),
            args=["--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"],
        )
        context = browser.new_context(viewport=reader.WIDE)
        context.set_default_timeout(reader.PATIENCE * 1000)
        yield context
        browser.close()


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book of the offline zip, in a folder of a name that readers give."""
    folder = tmp_path_factory.mktemp("übungen & more ")
    archive = offline.pack(folder / "course.zip")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    archive.unlink()
    return folder / offline.top() / "book"


@pytest.fixture(scope="module")
def opened(request: pytest.FixtureRequest, context: BrowserContext) -> Iterator[reader.Visit]:
    """A page of an edition, for all tests of it."""
    edition, path = request.param
    root = reader.SITE if edition == "site" else request.getfixturevalue("unpacked")
    with reader.visit(context, root, path) as visit:
        yield visit


@pytest.fixture
def visit(opened: reader.Visit) -> Iterator[reader.Visit]:
    """The opened page; what a test does with it must not give rise to complaints."""
    before = len(opened.complaints)
    yield opened
    opened.page.evaluate("0")  # all that the browser had to say is here now
    assert not opened.complaints[before:]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add up what the tests counted."""
    counts: dict[str, int] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, number in report.user_properties:
                    counts[name] = counts.get(name, 0) + number
    if counts:
        line = ", ".join(f"{number} {name}" for name, number in counts.items())
        terminalreporter.write_line(f"In the browser: {line}")
