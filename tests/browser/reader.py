"""A reader at a page: what the tests of this folder open, and what they ask of it.

Pages are opened from files, without a network, as in the offline bundle.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import url2pathname

import pytest

from tools import slides
from tools.course import BUILD

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet
    from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request, ViewportSize

SITE = BUILD / "html"
WIDE: ViewportSize = {"width": slides.WIDTH, "height": slides.HEIGHT}
NARROW: ViewportSize = {"width": 360, "height": 740}
#: No figure is higher, so that bars at the top and the bottom hide nothing of it.
TALL: ViewportSize = {"width": slides.WIDTH, "height": 2000}

#: Seconds that anything on a page may take; Playwright's own limit is not kept by evaluate.
PATIENCE = 120

#: What pytest's fixture record_property is.
Count = Callable[[str, object], None]

#: The package brings axe-core with it, so that nothing is fetched.
AXE_PACKAGE = "axe_playwright_python"


def lacking() -> str | None:
    """Why a reader cannot be played here, or None."""
    for package in ("playwright", AXE_PACKAGE):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; it is in the test group"
    if slides.browser() is None:
        return "neither Chromium nor Chrome is on the PATH"
    if not (SITE / "slides" / "index.html").exists():
        return f"no built book in {SITE}: run make book first"
    return None


def pages() -> list[str]:
    """The built pages, redirections and decks aside, as paths from the book's folder."""
    found = (path.relative_to(SITE) for path in sorted(SITE.rglob("*.html")))
    # index.html at the top only leads to book/index.html, and has a test of its own
    aside = {"_static", "slides", "index.html"}
    return [path.as_posix() for path in found if path.parts[0] not in aside]


def decks() -> list[str]:
    """The built decks, with the page that lists them."""
    return [path.relative_to(SITE).as_posix() for path in sorted(SITE.glob("slides/*.html"))]


def each(edition: str, paths: Sequence[str]) -> list[ParameterSet]:
    """Parameters for pages, as an edition of the book and a path in it."""
    return [pytest.param((edition, path), id=f"{edition}:{path}") for path in paths]


def path_of(address: str) -> Path:
    """The file that a file: address names."""
    return Path(url2pathname(urlsplit(address).path)).resolve()


@dataclass
class Visit:
    """One page in the browser, and what has gone wrong on it.

    Attributes:
        page: The page.
        root: The folder of the book, which no request may leave.
        requests: How many files were asked for.
        complaints: Failed requests, errors of the console and of the page's own scripts.
    """

    page: Page
    root: Path
    requests: int = 0
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Listen."""
        self.page.on("request", self._asked)
        self.page.on("requestfailed", lambda r: self.complaints.append(f"failed: {r.url[:200]}"))
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))

    def _asked(self, request: Request) -> None:
        self.requests += 1
        scheme = urlsplit(request.url).scheme
        if scheme not in ("file", "data", "blob"):
            self.complaints.append(f"needs the network: {request.url}")
        elif scheme == "file" and not path_of(request.url).is_relative_to(self.root):
            self.complaints.append(f"outside the book: {request.url}")

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(f"console: {message.text}")

    def open(self, path: str) -> None:
        """Go to a page of the book, and wait for its formulas and fonts."""
        self.page.goto((self.root / path).as_uri())
        self.settle()

    def settle(self) -> None:
        """Wait until formulas and fonts are there; from now on nothing moves or fades."""
        self.ask(
            """async () => {
              if (window.MathJax?.startup) await MathJax.startup.promise;
              await document.fonts.ready;
            }"""
        )
        # Colours that fade in a folded part stop half-way, and are measured as they stand.
        still = "transition: none !important; animation: none !important"
        self.page.add_style_tag(content=f"*, ::before, ::after {{ {still} }}")

    def ask(self, script: str, argument: object = None) -> Any:
        """What a function of the page returns, which may make us wait, but not for ever."""
        late = f"no answer in {PATIENCE} s"
        return self.page.evaluate(
            f"""argument => Promise.race([
              ({script})(argument),
              new Promise((_, fail) => setTimeout(() => fail(Error("{late}")), {PATIENCE} * 1000)),
            ])""",
            argument,
        )

    def broken_links(self) -> list[str]:
        """Links to files of the book, or to places in them, that are not there."""
        links: list[str] = self.page.evaluate(
            "[...new Set([...document.links].map(link => link.href))]"
        )
        wrong = []
        for link in links:
            address, fragment = urldefrag(link)
            if urlsplit(address).scheme != "file":
                continue
            path = path_of(address)
            if not (path.is_relative_to(self.root) and path.is_file()):
                wrong.append(link)
            # a deck's fragment is the number of a slide
            elif fragment and path.suffix == ".html" and not fragment.startswith("/"):
                wrong += [] if unquote(fragment) in places(path) else [link]
        return wrong

    @contextmanager
    def narrow(self) -> Iterator[None]:
        """As on a small phone, with everything folded out."""
        self.page.set_viewport_size(NARROW)
        try:
            with self.unfolded():
                yield
        finally:
            self.page.set_viewport_size(WIDE)

    @contextmanager
    def dark(self) -> Iterator[None]:
        """As on a system set to dark, which the theme follows, and on a high screen."""
        self.page.set_viewport_size(TALL)
        self._scheme("dark")
        try:
            yield
        finally:
            self._scheme("light")
            self.page.set_viewport_size(WIDE)

    def _scheme(self, name: str) -> None:
        self.page.emulate_media(color_scheme=name)  # type: ignore[arg-type]
        self.page.wait_for_function(
            "name => document.documentElement.dataset.theme === name", arg=name
        )

    @contextmanager
    def unfolded(self) -> Iterator[None]:
        """With all answers and hints open."""
        self.page.evaluate(
            """() => {
              window.folded = [...document.querySelectorAll("details:not([open])")];
              for (const part of folded) part.open = true;
            }"""
        )
        try:
            yield
        finally:
            self.page.evaluate("() => { for (const part of folded) part.open = false; }")


@cache
def places(path: Path) -> frozenset[str]:
    """The ids of a page, which fragments of links name."""
    return frozenset(re.findall(r'\bid="([^"]+)"', path.read_text(encoding="utf-8")))


@contextmanager
def visit(context: BrowserContext, root: Path, path: str) -> Iterator[Visit]:
    """Open a page of the book, and close it afterwards."""
    page = context.new_page()
    try:
        found = Visit(page, root.resolve())
        found.open(path)
        yield found
    finally:
        page.close()


def as_lines(found: list[Any]) -> str:
    """One finding a line, for the message of an assertion."""
    return "\n" + "\n".join(map(str, found))
