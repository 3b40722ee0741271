"""Make the notebooks from their Markdown sources, and execute them.

``python -m tools.notebooks [NN]`` writes, for every source,

    book/chapters/NN_name.md  -> notebooks/NN_name.ipynb             executed
    book/exercises/NN_name.md -> notebooks/solutions/NN_name.ipynb   executed
                                 notebooks/exercises/NN_name.ipynb   stubs, not executed

and executes those whose code has changed; with a chapter's number, all of that chapter's.
Where only the text has changed, the outputs stay. A notebook is written aside, checked and
then moved into place.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from pybtex.database import parse_file
from pybtex.richtext import Text

from attn_course import CHAPTERS as CHAPTER_MAP
from tools.course import CHAPTERS, EXERCISES, NOTEBOOKS, ROOT, branch, numbered, repository

SETUP = """\
# Set-up: installs the course where it is missing, as in Colab.
import importlib.util

if importlib.util.find_spec("attn_course") is None:
    %pip install -q "git+{repository}"

from attn_course.heatmaps import use_style

use_style()"""

CITATION = re.compile(r"\{cite:(t|p|alp)\}`([^`]+)`")
CODE_SOLUTION = re.compile(
    r"^(?P<indent>[ \t]*)### BEGIN SOLUTION\n.*?### END SOLUTION$", re.DOTALL | re.MULTILINE
)
TEXT_SOLUTION = re.compile(
    r"<!-- BEGIN SOLUTION -->\n.*?<!-- END SOLUTION -->\n?", re.DOTALL | re.MULTILINE
)
MARKERS = re.compile(
    r"^[ \t]*(### (BEGIN|END) SOLUTION|<!-- (BEGIN|END) SOLUTION -->)\n?", re.MULTILINE
)
#: What an exercise page says about working on it, and what a page of solutions says instead.
HOW_TO_WORK = re.compile(
    r"^\*\*How to work\.\*\*.*?\[a notebook of their own\]\([^)]*\)\.$", re.DOTALL | re.MULTILINE
)
SOLVED = (
    "**These are worked solutions.** Each stands where the exercise has a stub, its check passes "
    "below it, and what follows says why. The exercises are in "
    "[their own notebook](../exercises/{name})."
)


def derive(
    source: Path, target: Path, *, solved: bool = True, markers: bool = False
) -> NotebookNode:
    """The notebook that ``source`` describes, not executed.

    Args:
        source: A MyST Markdown file.
        target: Where the notebook will stand; its Colab link needs that.
        solved: Keep the solutions, or put stubs in their place.
        markers: If not solved: keep code between its markers, for nbgrader, which puts stubs
            there itself.
    """
    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="md:myst")
    course = notebook.metadata.get("course", {})
    if "reading" not in course or "running" not in course:
        raise ValueError(f"{source}: the header must give course: reading and running.")
    kept = []
    for cell in notebook.cells:
        text = cell.source
        if not solved:
            text = TEXT_SOLUTION.sub("", text)
            text = text if markers else stubbed(text)
        text = (text if markers else MARKERS.sub("", text)).strip("\n")
        if not text:
            continue
        if cell.cell_type == "markdown":
            if solved:
                text = re.sub("^# Exercises: ", "# Solutions: ", text, flags=re.MULTILINE)
                text = HOW_TO_WORK.sub(SOLVED.format(name=target.name), text)
            text = text.replace("<!-- generated: badges -->", _badges(target, course))
            cell.source = CITATION.sub(_cite, text)
        else:
            if "setup" in cell.metadata.get("tags", []):
                text = SETUP.format(repository=repository())
            cell.source = text
            alt = cell.metadata.pop("alt", None)
            if alt:
                cell.metadata["mystnb"] = {"image": {"alt": " ".join(alt.split())}}
            cell.outputs, cell.execution_count = [], None
        cell.id = f"{source.stem}-{len(kept):03d}".replace("_", "-")[-64:]
        kept.append(cell)
    notebook.cells = kept
    if not solved:
        course["stubs"] = sum(cell.source.count("raise NotImplementedError") for cell in kept)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        course=dict(course),
    )
    return notebook


def stubbed(code: str) -> str:
    """Code with a stub in place of each solution."""
    return CODE_SOLUTION.sub(r'\g<indent>raise NotImplementedError("your code here")', code)


def _badges(target: Path, course: dict[str, Any]) -> str:
    path = target.relative_to(ROOT).as_posix()
    owner = repository().removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{owner}/blob/{branch()}/{path}"
    line = (
        f"[Open this page in Colab]({link}) · about {course['reading']} minutes to read · "
        f"runs in under {course['running']} seconds on two CPU cores"
    )
    number = int(target.stem[:2])
    package = CHAPTER_MAP.get(number)
    if package and target.parent == NOTEBOOKS:
        line = f"Chapter {number} · {line}"
        line += f" · the package: [attn_course.{package}](../book/api/{package}.md)"
    return line


def _cite(match: re.Match[str]) -> str:
    """A citation as a link, which a page, Jupyter and Colab all show."""
    texts = []
    for key in match[2].split(","):
        entry = _bibliography()[key.strip()]
        people = [" ".join(p.prelast_names + p.last_names) for p in entry.persons["author"]]
        if len(people) > 2:
            names = f"{people[0]} et al."
        else:
            names = " and ".join(people)
        names = str(Text.from_latex(names))
        year = entry.fields["year"]
        label = f"{names} ({year})" if match[1] == "t" else f"{names}, {year}"
        doi = entry.fields.get("doi")
        link = f"https://doi.org/{doi}" if doi else entry.fields.get("url")
        texts.append(f"[{label}]({link})" if link else label)
    joined = "; ".join(texts)
    return f"({joined})" if match[1] == "p" else joined


def _bibliography() -> Any:
    return parse_file(str(ROOT / "book" / "references.bib")).entries


def targets(number: str | None = None) -> list[tuple[Path, Path, bool]]:
    """Every (source, notebook, solved) of the course, or of one chapter."""
    rows = [(path, NOTEBOOKS / f"{path.stem}.ipynb", True) for path in numbered(CHAPTERS, number)]
    for path in numbered(EXERCISES, number):
        rows.append((path, NOTEBOOKS / "solutions" / f"{path.stem}.ipynb", True))
        rows.append((path, NOTEBOOKS / "exercises" / f"{path.stem}.ipynb", False))
    return rows


def same_cells(one: NotebookNode, other: NotebookNode) -> bool:
    """Whether two notebooks differ in nothing but outputs and the time they took."""

    def essence(notebook: NotebookNode) -> Any:
        course = {k: v for k, v in notebook.metadata.get("course", {}).items() if k != "seconds"}
        return course, [(c.cell_type, c.source, c.metadata, c.id) for c in notebook.cells]

    return bool(essence(one) == essence(other))


def keep_outputs(notebook: NotebookNode, stored: NotebookNode) -> bool:
    """Take over the stored outputs if every code cell is what it was.

    Args:
        notebook: Derived anew; its code cells get outputs.
        stored: The one that was executed.

    Returns:
        Whether that was possible.
    """
    ours, theirs = (
        [cell for cell in nb.cells if cell.cell_type == "code"] for nb in (notebook, stored)
    )
    if [(c.source, c.metadata) for c in ours] != [(c.source, c.metadata) for c in theirs]:
        return False
    for cell, old in zip(ours, theirs, strict=True):
        cell.outputs, cell.execution_count = old.outputs, old.execution_count
    notebook.metadata["course"]["seconds"] = stored.metadata["course"]["seconds"]
    return True


def holds_work(notebook: NotebookNode) -> bool:
    """Whether somebody has run or answered an exercise notebook."""
    stubs = sum(cell.source.count("raise NotImplementedError") for cell in notebook.cells)
    ran = any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    return ran or stubs < notebook.metadata.get("course", {}).get("stubs", 0)


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells in place, and refuse outputs that do not belong in a book.

    Raises:
        ValueError: A cell wrote to stderr.
    """
    start = time.perf_counter()
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["course"]["seconds"] = round(time.perf_counter() - start, 1)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise ValueError(f"{cell.id} wrote to stderr:\n{output['text']}\n{cell.source}")


def save(notebook: NotebookNode, target: Path) -> None:
    """Write a notebook aside, check it, move it into place."""
    nbformat.validate(notebook)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_suffix(".ipynb.part")
    nbformat.write(notebook, aside)
    nbformat.read(aside, as_version=4)
    os.replace(aside, target)


def main() -> int:
    """Make what is out of date; returns the number of notebooks that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("number", nargs="?", default="", help="a chapter's number, to make it anew")
    number = parser.parse_args().number or None
    rows = targets(number)
    if not rows:
        print(f"There is no chapter {number}.", file=sys.stderr)
        return 1
    failures = 0
    for source, target, solved in rows:
        name = target.relative_to(ROOT)
        notebook = derive(source, target, solved=solved)
        current = nbformat.read(target, as_version=4) if target.exists() else None
        if current is not None and same_cells(current, notebook) and not number:
            print(f"{name}: up to date")
            continue
        if not solved:
            if current is not None and holds_work(current):
                print(f"{name}: kept, since it holds your answers; move it away to make it anew")
                continue
            save(notebook, target)
            print(f"{name}: written")
            continue
        if current is not None and not number and keep_outputs(notebook, current):
            save(notebook, target)
            print(f"{name}: new text, same outputs")
            continue
        print(f"{name}: running ...", flush=True)
        try:
            execute(notebook, target.parent)
        except (CellExecutionError, ValueError) as error:
            failures += 1
            print(f"{name}: FAILED\n{error}", file=sys.stderr)
            continue
        save(notebook, target)
        print(f"{name}: {notebook.metadata['course']['seconds']} s")
    return failures


if __name__ == "__main__":
    sys.exit(main())
