"""An nbgrader assignment: ``python -m tools.nbgrader --chapter 1 --course DIR``.

Writes ``DIR/source/ch01/01_name.ipynb`` out of the chapter's exercises: answers between
nbgrader's markers in cells that students fill in, and each check a locked cell with points,
as many as the exercise has stars. With ``--seed GROUP`` it takes the chapter's variants
instead, with one setting for the group.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from nbformat import NotebookNode

from attn_course import CHAPTERS
from tools.course import EXERCISES, NOTEBOOKS, numbered
from tools.notebooks import derive, save
from tools.variants import KEY, notebook

#: What nbgrader needs to know beyond its defaults.
CONFIG = """\
c = get_config()
c.ClearSolutions.code_stub = {"python": 'raise NotImplementedError("your code here")'}
c.ExecutePreprocessor.timeout = 300   # seconds a cell; some of them train
"""

_HEADING = re.compile(r"^## (?P<number>\d+\.\d+v?)\b", re.MULTILINE)
_STARS = re.compile(r"^(★+) ·", re.MULTILINE)
_CHECK = re.compile(r"^check_\w+\(", re.MULTILINE)


def graded(source: NotebookNode) -> NotebookNode:
    """Tell nbgrader which cells are answers, and which are graded.

    Args:
        source: A notebook with answers between markers; changed in place.

    Returns:
        The same notebook.
    """
    number, points = "", 0
    for place, cell in enumerate(source.cells):
        if cell.cell_type == "markdown":
            heading, stars = _HEADING.search(cell.source), _STARS.search(cell.source)
            if heading and stars:
                number, points = heading["number"].replace(".", "-"), len(stars[1])
            continue
        checks = bool(_CHECK.search(cell.source))
        answers = "### BEGIN SOLUTION" in cell.source
        if not (checks or answers):
            continue
        kind = "check" if checks else "answer"
        cell.metadata["nbgrader"] = {
            "schema_version": 3,
            "grade_id": f"{kind}-{number}-{place:02}",
            "grade": checks,
            "solution": answers,
            "locked": checks,
            "task": False,
            **({"points": points} if checks else {}),
        }
    return source


def main(arguments: list[str]) -> int:
    """Write the assignment, and the configuration where there is none."""
    parser = argparse.ArgumentParser(description="Make an nbgrader assignment of a chapter.")
    parser.add_argument("--chapter", type=int, required=True, choices=list(CHAPTERS), metavar="N")
    parser.add_argument("--course", type=Path, required=True, help="nbgrader's course folder")
    parser.add_argument("--seed", help="a group: take the variants, with this group's setting")
    parser.add_argument("--key", default=os.environ.get(KEY, ""), help="as for tools.variants")
    wanted = parser.parse_args(arguments)
    if wanted.seed and len(wanted.key) < 12:
        parser.error(f"a secret of at least 12 characters is needed: set {KEY}, or give --key.")
    name = f"ch{wanted.chapter:02}"
    if wanted.seed:
        made = notebook(wanted.chapter, wanted.seed, wanted.key, markers=True)
    else:
        (page,) = numbered(EXERCISES, str(wanted.chapter))
        target = NOTEBOOKS / "exercises" / f"{page.stem}.ipynb"
        made = derive(page, target, solved=False, markers=True)
    path = wanted.course / "source" / name / f"{wanted.chapter:02}_{CHAPTERS[wanted.chapter]}.ipynb"
    save(graded(made), path)
    config = wanted.course / "nbgrader_config.py"
    if not config.exists():
        config.write_text(CONFIG, encoding="utf-8")
    print(f"{path}\nnext, in {wanted.course}: nbgrader generate_assignment {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
