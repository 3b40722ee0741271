"""Sphinx extension of the book: the address, captions, the reference, and mended pages."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

from docutils import nodes
from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.alpha import Style
from pybtex.style.sorting.author_year_title import SortingStyle

from tools.api import Api
from tools.course import repository

#: What the theme and its extensions write, and what the pages need instead. The tests in
#: tests/browser fail where one of these is missing.
MENDED = [
    # A page opened from a file may not preload fonts, and the style sheet loads them anyway.
    (r'<link rel="preload" as="font"[^>]*>\s*', ""),
    # Thebe runs cells through a server, which the book does not use; its set-up comes twice.
    (r"<script>const THEBE_JS_URL.*?</script>\s*", ""),
    (r'<script[^>]*src="[^"]*sphinx-thebe\.js[^>]*></script>\s*', ""),
    # For those who hear the page: what the side bar is, and what its arrows open.
    (
        r'<div class="bd-sidebar-primary bd-sidebar([^"]*)">',
        r'<div class="bd-sidebar-primary bd-sidebar\1" role="navigation" aria-label="Book">',
    ),
    (
        r">([^<>]*)</a>(<details[^>]*>)<summary>",
        r'>\1</a>\2<summary aria-label="Pages of: \1">',
    ),
    # What scrolls by itself must do so by keyboard.
    (
        r'<div class="pst-scrollable-table-container">',
        '<div class="pst-scrollable-table-container" tabindex="0">',
    ),
    # An entry of the bibliography is an item of its list: the role docutils gives is withdrawn.
    (r'(<div class="citation"[^>]*) role="doc-biblioentry"', r'\1 role="listitem"'),
    # Sphinx sets a long signature as a list of descriptions that describe nothing.
    (r'<dd>(<em class="sig-param">.*?)</dd>', r'<span class="sig-line">\1</span>'),
    (r'<dl>(\s*<span class="sig-line">.*?)</dl>', r'<span class="sig-lines">\1</span>'),
    # A table's empty corner heads nothing.
    (r'<th class="head( [^"]*)?">(?:<p>\s*</p>)?</th>', r'<td class="head\1"></td>'),
]


def _substitute(app: Any, config: Any) -> None:
    config.myst_substitutions = {**config.myst_substitutions, "repository": repository()}


def _mark_captions(app: Any, doctree: Any) -> None:
    """Give the class ``figure-text`` to paragraphs that begin with a bold "Figure 1."."""
    for paragraph in doctree.findall(nodes.paragraph):
        first = next((child for child in paragraph.children if child.astext()), None)
        if isinstance(first, nodes.strong) and re.match(r"Figure \d+", first.astext()):
            paragraph["classes"].append("figure-text")


def keep_together(app: Any, doctree: Any) -> None:
    """Let no line begin with the comma behind a formula, nor end with a bracket before one."""
    for formula in list(doctree.findall(nodes.math)):
        parent = formula.parent
        if isinstance(parent, nodes.title):
            continue
        at = parent.index(formula)
        whole = nodes.inline("", "", classes=["unbroken"])
        if at and isinstance(parent[at - 1], nodes.Text):
            text = parent[at - 1].rstrip("([\N{LEFT DOUBLE QUOTATION MARK}")
            whole += nodes.Text(parent[at - 1][len(text) :])
            parent[at - 1] = nodes.Text(text)
        parent[at] = whole
        whole += formula
        if at + 1 < len(parent) and isinstance(parent[at + 1], nodes.Text):
            text = parent[at + 1].lstrip(")].,;:!?%\N{RIGHT DOUBLE QUOTATION MARK}")
            whole += nodes.Text(parent[at + 1][: len(parent[at + 1]) - len(text)])
            parent[at + 1] = nodes.Text(text)


def mark_long_code(app: Any, doctree: Any) -> None:
    """Give the class ``long`` to code in tables that may break at its spaces."""
    for entry in doctree.findall(nodes.entry):
        for code in entry.findall(nodes.literal):
            if len(code.astext()) > 24:
                code["classes"].append("long")


def mend(page: str) -> str:
    """Put right what the theme writes into a page.

    Args:
        page: HTML.

    Returns:
        The page with each pattern of ``MENDED`` replaced; mending twice changes nothing.

    Example:
        >>> mend('<table><th class="head"><p></p></th>')
        '<table><td class="head"></td>'
    """
    for pattern, instead in MENDED:
        page = re.sub(pattern, instead, page, flags=re.DOTALL)
    return page


def _mend_pages(app: Any, exception: Exception | None) -> None:
    if exception or app.builder.name != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        if (mended := mend(page)) != page:
            path.write_text(mended, encoding="utf-8")


class ReferenceStyle(Style):
    """The bibliography's usual style, with the course's order."""

    default_sorting_style = "by_name"


class ByName(SortingStyle):
    """By name, year and title; an accent and the braces round a firm do not move a name."""

    def sorting_key(self, entry: Any) -> tuple[str, ...]:
        """What an entry of the bibliography is sorted by."""
        key: tuple[str, ...] = super().sorting_key(entry)
        plain = unicodedata.normalize("NFKD", str(Text.from_latex(key[0])))
        return "".join(c for c in plain if not unicodedata.combining(c)).lower(), *key[1:]


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx, and with the bibliography."""
    register_plugin("pybtex.style.sorting", "by_name", ByName)
    register_plugin("pybtex.style.formatting", "by_name", ReferenceStyle)
    app.add_directive("api", Api)
    app.connect("config-inited", _substitute)
    for change in (_mark_captions, keep_together, mark_long_code):
        app.connect("doctree-read", change)
    app.connect("build-finished", _mend_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
