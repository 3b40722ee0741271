"""Graded exercises: ``python -m tools.variants --chapter 3 --seed 17 --output DIR``.

Each student gets variants of the book's exercises, with a setting drawn from the student's
number and a secret key of the class. The command writes

    DIR/students/<student>/NN_name.ipynb   text and stubs, to hand out
    DIR/answers/<student>/NN_name.ipynb    the same with worked answers, with ``--answers``
    DIR/marks.csv                          what passes of what was handed in, with ``--mark``
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from attn_course import CHAPTERS
from attn_course.exercises.variants import Variant, variants
from tools.course import ROOT, repository
from tools.notebooks import MARKERS, SETUP, save, stubbed

#: The environment variable that holds the key, where ``--key`` does not.
KEY = "ATTN_COURSE_KEY"

#: Seconds that a cell of a submission may take.
TIMEOUT = 60

IMPORTS = """\
import itertools
import math
from collections import Counter

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.exercises.variants import check_variant"""

HOW_TO = """\
# Chapter {chapter}: graded exercises

For **{student}**: the settings below were drawn for you, and others have others.

Write over the lines that raise `NotImplementedError`, run the cell, then run the check below it.
The check tries your function on several inputs and names the likely mistake. It takes any answer
whose numbers are right. Derivations and sentences it does not read: a person marks those. You
may add cells; leave the names of the functions as they are."""

_CHECK = re.compile(r"^check_variant\(", re.MULTILINE)


def notebook(
    chapter: int, student: str, key: str, *, solved: bool = False, markers: bool = False
) -> NotebookNode:
    """A student's graded exercises.

    Args:
        chapter: Its number.
        student: Whose they are.
        key: The class's secret.
        solved: Put the worked answers in, and the reasons.
        markers: Put the answers in between nbgrader's markers, and no reasons.
    """
    cells = [
        new_markdown_cell(HOW_TO.format(chapter=chapter, student=student)),
        new_code_cell(SETUP.format(repository=repository())),
        new_code_cell(IMPORTS),
    ]
    for variant in variants(chapter):
        cells += _cells(variant, variant.draw(student, key), solved=solved, markers=markers)
    for number, cell in enumerate(cells):
        cell.id = f"variant-{chapter:02}-{number:02}"
    return new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
    )


def _cells(
    variant: Variant, setting: dict[str, Any], *, solved: bool, markers: bool
) -> list[NotebookNode]:
    """Text, stub or answer, check, and the reason."""
    title, shapes, task, why = (
        variant.fill(part, setting).strip()
        for part in (variant.title, variant.shapes, variant.task, variant.why)
    )
    head = f"{'★' * variant.stars} · {variant.minutes} minutes · {shapes}"
    code = variant.code(setting)
    if solved:
        code = MARKERS.sub("", code).strip()
    elif not markers:
        code = stubbed(code)
    cells = [
        new_markdown_cell(f"## {variant.label} {title}\n\n{head}\n\n{task}"),
        new_code_cell(code),
        new_code_cell(variant.call(setting)),
    ]
    return cells + [new_markdown_cell(f"**Why.** {why}")] * solved


def mark(submission: NotebookNode, issued: NotebookNode, folder: Path) -> dict[str, str]:
    """Run what a student handed in against the checks that were issued.

    The student's own check cells are left out: they might have been changed. This runs the
    student's code, with the rights of whoever calls it.

    Args:
        submission: What was handed in.
        issued: What the student got.
        folder: Where to run it.

    Returns:
        Variant -> what is wrong; empty where the check passes.
    """
    checks = [cell.source for cell in issued.cells if _CHECK.search(cell.source)]
    own = [cell.source for cell in submission.cells if cell.cell_type == "code"]
    own = [code for code in own if not _CHECK.search(code)]
    # Each check imports what it needs: the submission might have given the name to another.
    last = [f"{IMPORTS}\n\n{check}" for check in checks]
    run = new_notebook(cells=[new_code_cell(code) for code in (IMPORTS, *own, *last)])
    client = NotebookClient(
        run,
        timeout=TIMEOUT,
        interrupt_on_timeout=True,
        allow_errors=True,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    except DeadKernelError:
        return {_label(check): "the kernel died" for check in checks}
    results = {}
    for check, cell in zip(checks, run.cells[-len(checks) :], strict=True):
        errors = [out for out in cell.outputs if out.output_type == "error"]
        results[_label(check)] = errors[0].evalue if errors else ""
    return results


def _label(check: str) -> str:
    return check.split('"')[1]


def roster(path: Path) -> list[str]:
    """The column ``student`` of a CSV file.

    Raises:
        ValueError: There is none, or a name in it cannot name a folder, or stands twice.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "student" not in rows[0]:
        raise ValueError(f"{path}: expected a column `student`, and a row for each of them.")
    students = [(row["student"] or "").strip() for row in rows]
    twice = sorted({student for student in students if students.count(student) > 1})
    if twice:
        raise ValueError(f"{path}: these stand in it twice: {', '.join(twice)}.")
    return [named(student) for student in students]


def named(student: str) -> str:
    """A student's number or name, if it can name a folder.

    Raises:
        ValueError: It cannot.
    """
    if not re.fullmatch(r"\w[\w.@-]*", student):
        raise ValueError(
            f"student: expected letters, digits and any of . @ - _ after the first, got "
            f"{student!r}."
        )
    return student


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write or mark a class's graded exercises.")
    parser.add_argument("--chapter", type=int, required=True, choices=list(CHAPTERS), metavar="N")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--seed", help="a student's number")
    who.add_argument("--roster", type=Path, help="a CSV file with a column `student`")
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    parser.add_argument("--answers", action="store_true", help="write the worked answers as well")
    parser.add_argument(
        "--mark",
        type=Path,
        metavar="DIR",
        help="mark DIR/<student>/NN_name.ipynb, write nothing else",
    )
    parser.add_argument(
        "--key",
        default=os.environ.get(KEY, ""),
        help=f"the class's secret, at least 12 characters (default: the variable {KEY})",
    )
    parsed = parser.parse_args(arguments)
    if len(parsed.key) < 12:
        parser.error(f"a secret of at least 12 characters is needed: set {KEY}, or give --key.")
    try:
        parsed.students = roster(parsed.roster) if parsed.roster else [named(parsed.seed)]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return parsed


def main(arguments: list[str]) -> int:
    """Write the notebooks, or mark them; returns how many could not be marked."""
    wanted = _arguments(arguments)
    chapter, key, output = wanted.chapter, wanted.key, wanted.output
    name = f"{chapter:02}_{CHAPTERS[chapter]}.ipynb"
    if wanted.mark is None:
        for student in wanted.students:
            save(notebook(chapter, student, key), output / "students" / student / name)
            if wanted.answers:
                solved = notebook(chapter, student, key, solved=True)
                save(solved, output / "answers" / student / name)
        print(f"{len(wanted.students)} notebooks in {output / 'students'}")
        return 0
    missing = 0
    output.mkdir(parents=True, exist_ok=True)
    with (output / "marks.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["student", "variant", "passed", "message"])
        for student in wanted.students:
            path = wanted.mark / student / name
            issued = notebook(chapter, student, key)
            if path.exists():
                results = mark(nbformat.read(path, as_version=4), issued, path.parent)
            else:
                missing += 1
                results = {v.label: "nothing handed in" for v in variants(chapter)}
            table.writerows([student, v, int(not said), said] for v, said in results.items())
            print(f"{student}: {sum(not said for said in results.values())} of {len(results)}")
    print(f"Marks in {output / 'marks.csv'}")
    return missing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
