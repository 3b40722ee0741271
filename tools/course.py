"""Where the course's files are, and what ``_config.yml`` says."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "book" / "chapters"
EXERCISES = ROOT / "book" / "exercises"
SLIDES = ROOT / "book" / "slides"
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "_build"


@cache
def config() -> dict[str, Any]:
    """The book's configuration."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return settings


def repository() -> str:
    """The repository's address; it stands in ``_config.yml`` alone."""
    return str(config()["repository"]["url"]).rstrip("/")


def branch() -> str:
    """The branch that launch buttons open."""
    return str(config()["repository"]["branch"])


def numbered(folder: Path, number: str | None = None, suffix: str = ".md") -> list[Path]:
    """The files ``NN_name`` of a folder, in order; of one chapter where ``number`` is given."""
    pattern = f"{int(number):02d}_*{suffix}" if number else f"[0-9][0-9]_*{suffix}"
    return sorted(path for path in folder.glob(pattern) if not path.stem.endswith("_more"))
