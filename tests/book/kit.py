"""What the pages of the instructor's kit say, and what the sources say of the same things."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from attn_course import CHAPTERS
from tools.course import CHAPTERS as SOURCES
from tools.course import EXERCISES, ROOT

BOOK = ROOT / "book"
TEACHING = BOOK / "teaching"
STEMS = {n: f"{n:02d}_{name}" for n, name in CHAPTERS.items()}

each_chapter = pytest.mark.parametrize("number", CHAPTERS)


@cache
def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def tables(text: str) -> list[list[list[str]]]:
    """Every table of a page: rows of cells, heads first."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        found.append([[cell.strip() for cell in row] for row in rows if "---" not in row[0]])
    return found


def table(text: str, *heads: str) -> list[list[str]]:
    """The rows of the one table that begins with these heads."""
    (rows,) = (rows for rows in tables(text) if rows[0][: len(heads)] == list(heads))
    return rows[1:]


def exercises(number: int) -> dict[str, tuple[str, int]]:
    """Number -> title and minutes, from the exercise page's own table."""
    rows = table(read(EXERCISES / f"{STEMS[number]}.md"), "", "Exercise", "Difficulty", "Minutes")
    return {row[0]: (row[1], int(row[3])) for row in rows}


def minutes(numbers: str) -> int:
    """What exercises take together."""
    found = re.findall(r"(\d+)(\.\d)\b", numbers)
    return sum(exercises(int(n))[n + i][1] for n, i in found)


def time(stem: str) -> tuple[int, int]:
    """Minutes to read a chapter or primer, and to run it, rounded up."""
    course = yaml.safe_load(read(SOURCES / f"{stem}.md").split("---\n")[1])["course"]
    return course["reading"], math.ceil(course["running"] / 60)


def plans() -> str:
    return read(TEACHING / "plans.md")
