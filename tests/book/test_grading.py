"""Graded work: notebooks for a class, marks for what comes back, and nbgrader."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode

from attn_course import CHAPTERS
from attn_course.exercises.variants import variants
from tests.exercises.common import PAGES
from tools import nbgrader
from tools import variants as command
from tools.course import EXERCISES, NOTEBOOKS, numbered
from tools.notebooks import MARKERS, derive

ROOT = Path(__file__).resolve().parents[2]
KEY = "a key for tests alone"
STUB = "raise NotImplementedError"


def code(notebook: NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def written(folder: Path, *arguments: str) -> list[str]:
    assert command.main(["--output", str(folder), "--key", KEY, *arguments]) == 0
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.ipynb"))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_student_gets_stubs_and_the_instructor_answers(chapter: int) -> None:
    issued = command.notebook(chapter, "17", KEY)
    solved = command.notebook(chapter, "17", KEY, solved=True)
    for notebook in (issued, solved):
        nbformat.validate(notebook)
    table = variants(chapter)
    assert code(issued).count(STUB) == len(table)
    assert STUB not in code(solved) and "SOLUTION" not in code(solved)
    for variant in table:
        setting = variant.draw("17", KEY)
        body = variant.fill(variant.answer, setting).strip().splitlines()[-1]
        assert variant.call(setting) in code(issued) and variant.call(setting) in code(solved)
        assert body in code(solved) and body not in code(issued)
        why = variant.fill(variant.why, setting).strip()
        texts = ["".join(c.source for c in nb.cells) for nb in (issued, solved)]
        assert [why in text for text in texts] == [False, True]


def test_one_student(tmp_path: Path) -> None:
    assert written(tmp_path, "--chapter", "3", "--seed", "17") == ["students/17/03_seq2seq.ipynb"]


def test_a_roster(tmp_path: Path) -> None:
    table = tmp_path / "class.csv"
    table.write_text("name,student\nAda,17\nBo,b.o-2@x\n", encoding="utf-8-sig")
    folder = tmp_path / "out"
    found = written(folder, "--chapter", "10", "--roster", str(table), "--answers")
    name = "10_monotonic.ipynb"
    assert found == [
        f"{kind}/{who}/{name}" for kind in ("answers", "students") for who in ("17", "b.o-2@x")
    ]
    first = (folder / "students/17" / name).read_text(encoding="utf-8")
    written(folder, "--chapter", "10", "--seed", "17")
    assert (folder / "students/17" / name).read_text(encoding="utf-8") == first


@pytest.mark.parametrize(
    "text, message",
    [
        ("name\nAda\n", "expected a column `student`"),
        ("", "expected a column `student`"),
        ("student\n17\n17\n", "twice: 17"),
        ("student\n../17\n", "expected letters, digits"),
        ("student\n\n ,\n", "expected letters, digits"),
    ],
)
def test_a_roster_that_cannot_be_used(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "class.csv"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit):
        written(tmp_path / "out", "--chapter", "1", "--roster", str(table))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("main", [command.main, nbgrader.main])
def test_nothing_is_drawn_without_a_secret(
    main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(command.KEY, raising=False)
    where = ["--output" if main is command.main else "--course", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(["--chapter", "1", "--seed", "17", "--key", "short", *where])
    assert "a secret of at least 12 characters is needed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def solve(notebook: NotebookNode, chapter: int, student: str, *numbers: int) -> NotebookNode:
    """Put the worked answers of some variants in."""
    for number in numbers:
        variant = variants(chapter)[number]
        answer = MARKERS.sub("", variant.code(variant.draw(student, KEY)))
        for cell in notebook.cells:
            if STUB in cell.source and f"def {variant.function}(" in cell.source:
                cell.source = answer
    return notebook


def test_marks(tmp_path: Path) -> None:
    table, handed_in = tmp_path / "class.csv", tmp_path / "in"
    students = ("all", "half", "cheat", "late")
    table.write_text("student\n" + "\n".join(students), encoding="utf-8")
    name = "10_monotonic.ipynb"
    for student in students[:3]:
        notebook = command.notebook(10, student, KEY)
        solve(notebook, 10, student, *{"all": (0, 1), "half": (1,), "cheat": ()}[student])
        if student == "cheat":
            for cell in notebook.cells:
                if cell.source.startswith("check_variant("):
                    cell.source = "print('Exercise 10.1v passed.')"
            forged = "def check_variant(*args, **kwargs):\n    print('passed')"
            notebook.cells.append(nbformat.v4.new_code_cell(forged))
        (handed_in / student).mkdir(parents=True)
        nbformat.write(notebook, handed_in / student / name)
    missing = command.main(
        ["--chapter", "10", "--roster", str(table), "--key", KEY]
        + ["--mark", str(handed_in), "--output", str(tmp_path / "out")]
    )
    assert missing == 1
    with (tmp_path / "out" / "marks.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    passed = {(row["student"], row["variant"]): row["passed"] for row in rows}
    assert [passed[s, v] for s in students for v in ("10.1v", "10.2v")] == list("11010000")
    said = {row["student"]: row["message"] for row in rows if row["variant"] == "10.1v"}
    assert said["all"] == "" and said["late"] == "nothing handed in"
    assert said["half"].startswith("Exercise 10.1v is still open")
    assert said["cheat"].startswith("Exercise 10.1v is still open")


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_an_nbgrader_assignment_has_points_for_each_exercise(page: Any) -> None:
    (source,) = numbered(EXERCISES, str(page.chapter))
    target = NOTEBOOKS / "exercises" / f"{source.stem}.ipynb"
    notebook = nbgrader.graded(derive(source, target, solved=False, markers=True))
    nbformat.validate(notebook)
    marked = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    checks = [cell for cell in marked if cell.metadata["nbgrader"]["grade"]]
    answers = [cell for cell in marked if cell.metadata["nbgrader"]["solution"]]
    assert len({cell.metadata["nbgrader"]["grade_id"] for cell in marked}) == len(marked)
    ids = [cell.metadata["nbgrader"]["grade_id"] for cell in checks]
    assert [re.findall(r"\d+-\d+", i)[0].replace("-", ".") for i in ids] == list(page.checks)
    stars = [len(found) for found in re.findall(r"^(★+) ·", page.text, re.M)]
    assert [cell.metadata["nbgrader"]["points"] for cell in checks] == stars
    assert len(marked) == len(checks) + len(answers)
    assert sum(cell.source.count("BEGIN SOLUTION") for cell in answers) == page.text.count(
        "### BEGIN SOLUTION"
    )
    assert "<!-- BEGIN" not in "".join(cell.source for cell in notebook.cells)


def run(course: Path, *arguments: str) -> None:
    """One of nbgrader's commands, in the course's folder."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # alembic's
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments],
        cwd=course,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("nbgrader") is None,
    reason="nbgrader is not installed; it is not among the course's requirements",
)
@pytest.mark.parametrize(
    "seed", [(), ("--seed", "group A", "--key", KEY)], ids=["book", "variants"]
)
def test_nbgrader_end_to_end(seed: tuple[str, ...], tmp_path: Path) -> None:
    assert nbgrader.main(["--chapter", "1", "--course", str(tmp_path), *seed]) == 0
    run(tmp_path, "generate_assignment", "ch01")
    name = "01_kernel_regression.ipynb"
    source = nbformat.read(tmp_path / "source/ch01" / name, as_version=4)
    answers = {
        c.metadata["nbgrader"]["grade_id"]: c.source
        for c in source.cells
        if "nbgrader" in c.metadata
    }
    points = sum(c.metadata.get("nbgrader", {}).get("points", 0) for c in source.cells)
    for student in ("right", "wrong"):
        released = nbformat.read(tmp_path / "release/ch01" / name, as_version=4)
        assert "SOLUTION" not in code(released) and STUB in code(released)
        for cell in released.cells:
            about = cell.metadata.get("nbgrader", {})
            if about.get("solution"):
                answer = MARKERS.sub("", answers[about["grade_id"]])
                if student == "right" or "def width_slope" in answer:
                    cell.source = answer
                elif "def boxcar_regression" in answer:
                    cell.source += "\n    # nothing yet"
            elif student == "wrong" and about.get("grade"):
                cell.source = "print('passed')"  # nbgrader puts the check back
        path = tmp_path / "submitted" / student / "ch01" / name
        path.parent.mkdir(parents=True)
        nbformat.write(released, path)
    run(tmp_path, "autograde", "ch01")
    run(tmp_path, "generate_feedback", "ch01")
    run(tmp_path, "export")
    with (tmp_path / "grades.csv").open(encoding="utf-8", newline="") as file:
        scores = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert scores == {"right": points, "wrong": 2}  # the two stars of 1.4
    page = (tmp_path / "feedback/wrong/ch01" / name).with_suffix(".html")
    text = re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))
    assert re.search(r"Exercise 1\.1v? is still open", text)
