"""Checks of exercises: every chapter. They say what is wrong, and ask the next question.

One module a chapter, named as the mechanism is, holds its ``check_*`` functions; beside it
``<mechanism>_cases`` holds the inputs and the right answers, ``<mechanism>_mistakes`` the
wrong ones and what is said of them. All share ``framework``: an attempt, its cases, a known
mistake; ``several`` is for answers of more than one tensor, ``kernels`` and ``launches`` for
kernels. Where triton is missing, ``triton`` and ``tl`` are stand-ins, so that a cell which
defines a kernel still runs; the check of that kernel then says what is missing.
"""

from attn_course.exercises.framework import (
    Attempt,
    Case,
    CheckFailed,
    Mistake,
    Outcome,
    Skipped,
    exercise,
)
from attn_course.exercises.launches import Accesses, watch
from attn_course.exercises.stand_ins import tl, triton

__all__ = [
    "Accesses",
    "Attempt",
    "Case",
    "CheckFailed",
    "Mistake",
    "Outcome",
    "Skipped",
    "exercise",
    "tl",
    "triton",
    "watch",
]
