"""Check a student's own exercise notebook: ``python -m tools.check NN [path]``.

Runs the notebook through nbval and lists which exercises are done and which are not,
with what their checks said.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tools.course import NOTEBOOKS, numbered

CHECK = re.compile(r"^check_\w+\(", re.MULTILINE)
EXERCISE = re.compile(r"^#+\s+(Exercise )?(?P<title>\d+\.\d+.*)$", re.MULTILINE)


def exercises(path: Path) -> dict[int, str]:
    """Index of each check's cell among the code cells -> the title of its exercise."""
    found, title, code = {}, "?", -1
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for match in EXERCISE.finditer(cell.source):
                title = match["title"].strip()
        elif cell.cell_type == "code":
            code += 1
            if CHECK.search(cell.source):
                found[code] = title
    return found


class _Results:
    """A pytest plugin that notes how each cell of the notebook went."""

    def __init__(self) -> None:
        self.failed: dict[int, str] = {}
        self.ran: set[int] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        match = re.search(r"Cell (\d+)$", report.nodeid)
        if match and report.when == "call":
            self.ran.add(int(match[1]))
            if report.failed:
                self.failed[int(match[1])] = str(report.longrepr)


def _reason(text: str) -> str:
    """What is wrong, from nbval's report: the check's own words, else the error's line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip() for line in text.splitlines()]
    said = [i for i, line in enumerate(lines) if re.match(r"Exercise \d+\.\d+", line)]
    if said:
        paragraph = itertools.takewhile(bool, lines[said[-1] :])
        return " ".join(paragraph)
    errors = [line for line in lines if re.match(r"\w*(Error|Exception|Interrupt)\b", line)]
    return (errors or [line for line in lines if line] or ["it failed"])[-1]


def main(arguments: list[str]) -> int:
    """Print the list; returns how many exercises are not done."""
    number = arguments[0] if arguments else ""
    if not number.isdigit():
        print("Say which chapter: make check CH=01")
        return 2
    paths = numbered(NOTEBOOKS / "exercises", number, ".ipynb")
    if len(arguments) > 1:
        paths = [Path(arguments[1])]
    if not paths or not paths[0].exists():
        print(f"There is no exercise notebook for chapter {number}.")
        return 2
    path = paths[0].resolve()
    titles, results = exercises(path), _Results()
    print(f"Running {path.name}; this takes a minute.", flush=True)
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        pytest.main(["--nbval-lax", "-p", "no:cacheprovider", str(path)], [results])
    if not results.ran:
        print(report.getvalue())
    for cell, title in titles.items():
        if cell in results.failed:
            print(f"  not yet  {title}")
            print(textwrap.indent(textwrap.fill(_reason(results.failed[cell]), 88), " " * 11))
        elif cell in results.ran:
            print(f"  done     {title}")
        else:
            print(f"  not run  {title}")
    for cell, text in results.failed.items():
        if cell not in titles:
            print(f"  A cell that is no check failed as well: {_reason(text)}")
    done = sum(cell in results.ran and cell not in results.failed for cell in titles)
    print(f"{done} of {len(titles)} exercises done.")
    return len(titles) - done


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
