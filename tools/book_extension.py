"""Sphinx extension of the book: makes what depends on the repository's address."""

from __future__ import annotations

from typing import Any

from tools.course import repository


def _substitute(app: Any, config: Any) -> None:
    config.myst_substitutions = {**config.myst_substitutions, "repository": repository()}


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("config-inited", _substitute)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
