"""Make the teaching assistant's sheet: ``python -m tools.assistant``.

The tests of the exercises hold wrong answers as students write them, each with a part of the
message that its check gives. From these come a page for each chapter in
``book/teaching/assistant``: for each function what the check says, what the mistake is, and
from ``tools.assistant_questions`` what to ask where the message's own question is none, or
does not help. Mistakes that can be made in any exercise stand on one list,
``_any_exercise.md``.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from itertools import combinations, product
from pathlib import Path
from typing import Any

from attn_course import CHAPTERS
from tools.assistant_questions import ANY_EXERCISE, ASK
from tools.course import EXERCISES, ROOT

PAGES = ROOT / "book" / "teaching" / "assistant"
CHECKS = ROOT / "attn_course" / "exercises"
#: Readers who search for softmax want the chapters.
UNSEARCHED = "---\nnosearch: true\n---\n\n"
SHARED = ("framework", "kernels", "launches")
#: A fragment has at least so many characters beside what is filled in.
SAID = 14
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
    texts = [text for place in places for text in place]
    found = [text for text in texts if fragment in text]
    if not found and general(fragment) is None:
        found = [text for text in texts if "…" in text and fits(fragment, text)]
    message = re.split(r"\n|Seen with", (found or [f"… {fragment} …"])[0])[0]
    return message.removesuffix(". …").strip()


def fits(fragment: str, template: str) -> bool:
    """Whether a fragment can be part of a text, once something stands for each ellipsis.

    Example:
        >>> fits("was called 14 times", "`rnn` was called … times for … steps")
        True
        >>> fits("was called too often", "`rnn` was called … times for … steps")
        False
    """
    parts = template.split("…")
    for first, last in combinations(range(len(parts)), 2):
        inside = parts[first + 1 : last]
        starts = (parts[first][at:] for at in range(len(parts[first]) + 1))
        stops = [parts[last][:at] for at in range(len(parts[last]) + 1)]
        stops = [stop for stop in stops if fragment.endswith(stop)]
        for start, stop in product(filter(fragment.startswith, starts), stops):
            if len("".join([start, *inside, stop])) < SAID:
                continue
            if re.fullmatch(".+?".join(map(re.escape, [start, *inside, stop])), fragment):
                return True
    return False


def general(message: str) -> str | None:
    """The mistake of any exercise that a message is about, if it is about one."""
    for kind in ANY_EXERCISE:
        rest, found = re.subn(kind, "", message)
        if found:
            return None if "?" in rest else kind
    return None


def wrong_answers(mechanism: str) -> Iterator[tuple[str, str, str, str]]:
    """Of each wrong answer to a chapter's exercises: number, function, name, message."""
    answers: Any = import_module(f"tests.exercises.{mechanism}_answers")
    for number, rows in answers.WRONG.items():
        for name, answer, fragment in rows:
            named = answer.fn if hasattr(answer, "fn") else answer
            function = getattr(answer, "stands_for", named.__name__)
            yield number, function, name, message_of(mechanism, number, fragment)


def cell(text: str) -> str:
    """A text as a cell of a table: no markup of HTML, no border of a cell."""
    code = re.split(r"(`[^`]*`)", text)
    code[::2] = [re.sub(r"([<$\[\]])", r"\\\1", part) for part in code[::2]]
    return "".join(code).replace("|", r"\|")


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Rows of cells under their heads."""
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    lines += [" | ".join(map(cell, row)) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def chapter_page(chapter: int) -> str:
    """The sheet of one chapter."""
    mechanism = CHAPTERS[chapter]
    source = (EXERCISES / f"{chapter:02d}_{mechanism}.md").read_text(encoding="utf-8")
    titles = (ROOT / "book" / "_chapters.md").read_text(encoding="utf-8")
    title = re.search(rf"grid-item-card}} ({chapter} .+)", titles)
    assert title is not None
    causes: dict[str, dict[str, dict[str, list[str]]]] = {}
    for number, function, name, message in wrong_answers(mechanism):
        if general(message) is None:
            of_function = causes.setdefault(number, {}).setdefault(function, {})
            of_function.setdefault(message, []).append(name)
    parts = [UNSEARCHED + MADE, f"# {title[1]}: what to ask\n"]
    for number, heading in re.findall(r"^## (\d+\.\d+) (.+)$", source, re.M):
        parts.append(f"## {number} {heading}\n")
        for function, question in ASK[number].items():
            rows = (
                (message, "; ".join(dict.fromkeys(names)))
                for message, names in causes[number][function].items()
            )
            parts += [
                f"**`{function}`.** Ask: *{question}*\n",
                table(("The check says", "The mistake"), rows),
            ]
    return "\n".join(parts)


def general_page() -> str:
    """The list of what can go wrong in any exercise."""
    heads = ("The check says", "The mistake", "Ask")
    return f"{MADE}\n{table(heads, ANY_EXERCISE.values())}"


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
