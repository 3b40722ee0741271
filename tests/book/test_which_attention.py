"""The closing page: its numbers are those of the chapters and of the stored trainings."""

import re
from pathlib import Path
from statistics import mean
from typing import Any

import nbformat
import pytest

from attn_course import CHAPTERS
from attn_course.benchmarks.trainings import find_training
from tools.course import CHAPTERS as SOURCES
from tools.course import NOTEBOOKS, ROOT

PAGE = ROOT / "book" / "which_attention.md"

#: Row of the page -> the chapter whose summary prints it last, and what it is called there.
ROWS = {
    "chapter 3, last state only": (3, "last state only"),
    "chapter 3, uniform weights": (3, "uniform weights"),
    "chapter 3, additive attention": (6, "chapter 3, recurrent, additive attention"),
    "chapter 4, one head": (4, "one head, dot products (batches of 128)"),
    "chapter 4, four heads": (6, "chapter 4, recurrent, four heads"),
    "chapter 6, Transformer": (6, "Transformer, two layers"),
    "chapter 3, GRU encoder": (5, "chapter 3, GRU encoder"),
    "chapter 5, no position": (5, "self-attention, no position"),
    "chapter 5, sinusoids": (5, "self-attention, sinusoids"),
    "chapter 5, rotary, states marked": (5, "self-attention, rotary, states marked"),
    "chapter 1, kernel classifier": (7, "chapter 1, kernel classifier"),
    "chapter 2, learned dot product": (7, "chapter 2, learned dot product"),
    "chapter 7, ViT": (7, "ViT"),
    "chapter 7, CNN, for comparison": (7, "CNN, for comparison"),
    "chapter 8, line reader, no attention": (8, "line reader, no attention"),
    "chapter 8, line reader, full attention": (8, "line reader, full attention"),
    "chapter 8, line reader, window of 32": (8, "line reader, window of 32"),
}

#: Column of the page -> the column of a chapter's card.
COLUMNS = {
    "one digit": "all 1,347",
    "learnt from 100": "100",
    "a line of 40, wrong": "a line of 40, wrong characters",
}

#: Row of the page -> the stored training behind it.
TRAININGS = {
    "chapter 3, last state only": "bottleneck",
    "chapter 3, uniform weights": "uniform",
    "chapter 3, additive attention": "attention",
    "chapter 4, one head": "heads_1",
    "chapter 4, four heads": "heads_4",
    "chapter 6, Transformer": "transformer",
    "chapter 3, GRU encoder": "short_additive",
    "chapter 5, no position": "position_none",
    "chapter 5, sinusoids": "position_sinusoidal",
    "chapter 5, rotary, states marked": "position_marked",
    "chapter 8, line reader, no attention": "lines_none",
    "chapter 8, line reader, full attention": "lines_full",
    "chapter 8, line reader, window of 32": "lines_sliding",
    "full attention": "recall_full",
    "Linformer, 16 slots, learned": "recall_k16_n128_facts8",
    "window of 16 to each side, one layer": "recall_window",
}

FORBIDDEN = "chapter 10, chapter 3 forbidden to look back"


def tables(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Heading of the first column -> row -> column -> cell, without emphasis."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE):
        lines = [
            [cell.strip().strip("*") for cell in line.strip("|\n").split("|")]
            for line in block.replace("**", "").splitlines()
        ]
        head = lines[0]
        found[head[0]] = {line[0]: dict(zip(head, line, strict=False)) for line in lines[2:]}
    return found


def summary(number: int, row: str) -> dict[str, str]:
    """A row of the cards that a chapter's source holds."""
    source = SOURCES / f"{number:02d}_{CHAPTERS[number]}.md"
    rows: dict[str, str] = {}
    for name, table in tables(source).items():
        if name.startswith("score card") and row in table:
            rows |= table[row]
    assert rows, f"chapter {number} has no row {row!r}"
    return rows


def numbers(card: str) -> list[tuple[str, str, str]]:
    """(row, column, cell) of every number in the page's cards whose heading begins so."""
    return [
        (row, column, cell)
        for name, table in tables(PAGE).items()
        if name.startswith(card)
        for row, cells in table.items()
        for column, cell in list(cells.items())[1:]
        if cell
    ]


@pytest.mark.parametrize(("row", "column", "cell"), numbers("score card"))
def test_a_card_says_what_its_chapter_says(row: str, column: str, cell: str) -> None:
    if row == FORBIDDEN:
        pytest.skip("no chapter has a card with this row; see the test of chapter 10's output")
    number, there = ROWS[row]
    if column == "with 1,024 noise coordinates":
        number = 2
    if column == "a line of 40, wrong" and cell == "cannot" and number == 7:
        assert row.startswith(("chapter 1", "chapter 2", "chapter 7"))
        return
    assert summary(number, there)[COLUMNS.get(column, column)] == cell


def stored(name: str, column: str) -> float:
    """The mean over seeds of what a column shows."""

    def one(run: dict[str, Any]) -> float:
        if "error_rate" in run:
            return float(run["error_rate"][run["widths"].index(800)])
        if column in ("all", "right"):
            return float(run["all" if column == "all" else "accuracy"])
        return float(run["by_slice"][column])

    return mean(one(run) for run in find_training(name)["runs"])


@pytest.mark.parametrize(
    ("row", "column", "cell"),
    [
        entry
        for card in ("score card", "recall")
        for entry in numbers(card)
        if entry[0] in TRAININGS
    ],
)
def test_a_card_says_what_was_stored(row: str, column: str, cell: str) -> None:
    digits = len(cell.partition(".")[2])
    exact = stored(TRAININGS[row], column)
    # 0.5 in the last place, and what rounding to four digits before it can add
    assert abs(float(cell) - exact) <= 0.5 * 10**-digits + 1e-4


def test_what_a_translator_loses_that_may_not_look_back() -> None:
    path = NOTEBOOKS / "10_monotonic.ipynb"
    cells = nbformat.read(path, as_version=4).cells if path.exists() else []
    text = "".join(o.get("text", "") for c in cells for o in c.get("outputs", []))
    found = re.search(r"^two-way, forward\s+(.*)$", text, re.MULTILINE)
    if found is None:
        pytest.skip("chapter 10's notebook holds no outputs yet: make notebooks CH=10")
    kinds = ("all", "straight", "long", "crossing", "reversible")
    printed = dict(zip(kinds, map(float, found[1].split()), strict=True))
    for row, column, cell in numbers("score card"):
        if row == FORBIDDEN:
            digits = len(cell.partition(".")[2])
            assert abs(float(cell) - printed[column]) <= 0.5 * 10**-digits + 1e-9, column


def test_the_page_has_all_ten_rows_and_leads_to_every_chapter() -> None:
    rows = list(tables(PAGE)["Chapter"])
    assert len(rows) == len(CHAPTERS)
    for row, (number, name) in zip(rows, CHAPTERS.items(), strict=True):
        assert row.startswith(f"[{number} ") and f"{number:02d}_{name}.ipynb" in row
    guide = PAGE.read_text(encoding="utf-8").split("## The questions")[1].split("## The cards")[0]
    for number, name in CHAPTERS.items():
        assert f"{number:02d}_{name}.ipynb" in guide, f"no question leads to chapter {number}"
