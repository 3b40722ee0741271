"""Variants of exercises: every chapter. For graded work, with a setting drawn for each student.

One module a chapter, named as the mechanism is, holds a table ``VARIANTS``. The command
``python -m tools.variants`` draws the settings and writes notebooks of them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from attn_course import CHAPTERS
from attn_course.exercises.framework import Attempt, exercise
from attn_course.exercises.variants.variant import Variant

__all__ = ["Variant", "check_variant", "variants"]


def variants(chapter: int) -> tuple[Variant, ...]:
    """A chapter's variants.

    Raises:
        ValueError: There is no such chapter.
    """
    if chapter not in CHAPTERS:
        raise ValueError(f"chapter: expected a number from 1 to {len(CHAPTERS)}, got {chapter}.")
    module = import_module(f"{__name__}.{CHAPTERS[chapter]}")
    table: tuple[Variant, ...] = module.VARIANTS
    return table


def check_variant(label: str, function: Callable[..., Any], **parameters: Any) -> None:
    """Check an answer to a variant, as the last line of its cell in a notebook does.

    Args:
        label: Which variant, e.g. ``"1.1v"``.
        function: What the student wrote.
        parameters: What was drawn.

    Raises:
        CheckFailed: The answer is wrong, or still open.
        ValueError: There is no such variant, or it does not have these parameters.
    """
    number = label.split(".")[0]
    found = [v for v in variants(int(number)) if v.label == label] if number.isdigit() else []
    if not found:
        raise ValueError(f"label: expected that of a variant, such as '1.1v', got {label!r}.")
    variant = found[0]
    if parameters not in variant.settings():
        choices = ", ".join(f"{name} of {values}" for name, values in variant.choices.items())
        raise ValueError(f"parameters of {label}: expected {choices}; got {parameters}.")

    def body(attempt: Attempt) -> None:
        variant.check(attempt, parameters, function)

    exercise(label)(body)()
