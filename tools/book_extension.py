"""Sphinx extension of the book: what depends on the repository's address, and the reference."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes

from tools.api import Api
from tools.course import repository


def _substitute(app: Any, config: Any) -> None:
    config.myst_substitutions = {**config.myst_substitutions, "repository": repository()}


def _mark_captions(app: Any, doctree: Any) -> None:
    """Give the class ``figure-text`` to paragraphs that begin with a bold "Figure 1."."""
    for paragraph in doctree.findall(nodes.paragraph):
        first = next((child for child in paragraph.children if child.astext()), None)
        if isinstance(first, nodes.strong) and re.match(r"Figure \d+", first.astext()):
            paragraph["classes"].append("figure-text")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("api", Api)
    app.connect("config-inited", _substitute)
    app.connect("doctree-read", _mark_captions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
