"""Make the teaching assistant's sheet: ``python -m tools.assistant``.

The tests of the exercises hold wrong answers as students write them, each with the message
that its check gives. From these come a page for each chapter in ``book/teaching/assistant``:
what the student sees, what the mistake is, and what to ask. Mistakes that can be made in any
exercise stand on one list, ``_any_exercise.md``. A question that the message does not ask
comes from ``tools.assistant_questions``.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from attn_course import CHAPTERS
from tools.assistant_questions import ANY_EXERCISE, FIRST
from tools.course import EXERCISES, ROOT

PAGES = ROOT / "book" / "teaching" / "assistant"
CHECKS = ROOT / "attn_course" / "exercises"
#: Readers who search for softmax want the chapters.
UNSEARCHED = "---\nnosearch: true\n---\n\n"
SHARED = ("framework", "kernels", "launches")
MADE = "<!-- Made by python -m tools.assistant from the wrong answers in tests/exercises. -->\n"


@cache
def said_in_code(path: Path) -> list[str]:
    """The texts in a module; what is filled in when it runs is an ellipsis."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = []
    parts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):  # f-strings before parts
        if isinstance(node, ast.JoinedStr):
            parts |= {id(part) for part in node.values}
            constants = (
                part.value if isinstance(part, ast.Constant) else "…" for part in node.values
            )
            texts.append("".join(map(str, constants)))
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
        ):
            texts.append(re.sub(r"\{[^{} ]*\}", "…", node.value))
    return texts


@cache
def known(mechanism: str) -> dict[str, list[str]]:
    """Number of an exercise -> the messages of its known mistakes and of its kernel."""
    module = import_module(f"attn_course.exercises.{mechanism}_mistakes")
    source = (CHECKS / f"{mechanism}_mistakes.py").read_text(encoding="utf-8")
    messages: dict[str, list[str]] = {}
    number = ""
    for section, name in re.findall(
        r"^# (\d+\.\d+) -+$|^(_\w+_(?:MISTAKES|WORDS))\b", source, re.M
    ):
        number = section or number
        found: Any = getattr(module, name) if name else ()
        if name.endswith("_WORDS"):
            new = [
                found.outside,
                f"a program writes an output that is not its own. {found.foreign}",
                f"the answer is NaN. {found.nan}",
                f"an output is never written. {found.missing}",
            ]
        else:
            new = [mistake.message for mistake in found]
        messages.setdefault(number, []).extend(new)
    return messages


def message_of(mechanism: str, number: str, fragment: str) -> str:
    """The message that holds a fragment; where none is found, the fragment alone."""
    modules = [*SHARED, mechanism, f"{mechanism}_mistakes"]
    places = [said_in_code(CHECKS / f"{name}.py") for name in modules]
    places = [known(mechanism)[number], *places, *known(mechanism).values()]
    found = (text for texts in places for text in texts if fragment in text)
    return re.split(r"\n|Seen with", next(found, f"… {fragment} …"))[0].removesuffix(". …").strip()


def seen_and_asked(message: str) -> tuple[str, str]:
    """A message's statements, and its questions."""
    sentences: list[str] = []
    for part in re.split(r"(?:(?<=[.?])|(?<=[.?]\)))\s+(?=[A-Z`(\"*])", message):
        if sentences and sentences[-1].count("(") > sentences[-1].count(")"):
            sentences[-1] += f" {part}"  # an aside of several sentences stays whole
        else:
            sentences.append(part)
    seen = " ".join(sentence for sentence in sentences if "?" not in sentence)
    asked = " ".join(sentence for sentence in sentences if "?" in sentence)
    if not seen and ": " in asked:  # "the sum is there: where is the mean?"
        seen, asked = asked.split(": ", 1)
    if not seen:
        seen, asked = asked, ""
    return seen, asked[:1].upper() + asked[1:]


def general(message: str) -> str | None:
    """The mistake of any exercise that a message is about, if it is about one."""
    for kind in ANY_EXERCISE:
        rest, found = re.subn(kind, "", message)
        if found:
            return None if "?" in rest else kind
    return None


def wrong_answers(mechanism: str) -> Iterator[tuple[str, str, str]]:
    """The number, name and message of each wrong answer to a chapter's exercises."""
    answers: Any = import_module(f"tests.exercises.{mechanism}_answers")
    for number, rows in answers.WRONG.items():
        for name, _, fragment in rows:
            yield number, name, message_of(mechanism, number, fragment)


def cell(text: str) -> str:
    """A text as a cell of a table: no markup of HTML, no border of a cell."""
    code = re.split(r"(`[^`]*`)", text)
    code[::2] = [re.sub(r"([<$\[\]])", r"\\\1", part) for part in code[::2]]
    return "".join(code).replace("|", r"\|")


def table(rows: list[tuple[str, str, str]]) -> str:
    """Rows of three cells under their heads."""
    lines = ["| The student sees | The mistake | Ask |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)]) + "\n"


def chapter_page(chapter: int) -> str:
    """The sheet of one chapter."""
    mechanism = CHAPTERS[chapter]
    source = (EXERCISES / f"{chapter:02d}_{mechanism}.md").read_text(encoding="utf-8")
    titles = (ROOT / "book" / "_chapters.md").read_text(encoding="utf-8")
    title = re.search(rf"grid-item-card}} ({chapter} .+)", titles)
    assert title is not None
    causes: dict[str, dict[str, list[str]]] = {}
    for number, name, message in wrong_answers(mechanism):
        if general(message) is None:
            causes.setdefault(number, {}).setdefault(message, []).append(name)
    parts = [UNSEARCHED + MADE, f"# {title[1]}: what to ask\n"]
    for number, heading in re.findall(r"^## (\d+\.\d+) (.+)$", source, re.M):
        rows = []
        for message, names in causes[number].items():
            seen, asked = seen_and_asked(message)
            rows.append((seen, "; ".join(dict.fromkeys(names)), asked or "(first question)"))
        parts += [f"## {number} {heading}\n", f"**First question.** {FIRST[number]}\n", table(rows)]
    return "\n".join(parts)


def general_page() -> str:
    """The list of what can go wrong in any exercise."""
    return f"{MADE}\n{table(list(ANY_EXERCISE.values()))}"


def made() -> dict[Path, str]:
    """Every made file and what belongs in it."""
    pages = {PAGES / f"{n:02d}_{name}.md": chapter_page(n) for n, name in CHAPTERS.items()}
    return {PAGES / "_any_exercise.md": general_page(), **pages}


def main() -> int:
    """Write the files; returns the exit status."""
    PAGES.mkdir(exist_ok=True)
    for path, text in made().items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(made())} pages in {PAGES.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
