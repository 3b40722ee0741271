"""Checks of answers that are more than one tensor: of several, or of a diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from attn_course.exercises.framework import (
    Attempt,
    Case,
    CheckFailed,
    Mistake,
    Outcome,
    _a,
    _exact,
    describe,
)

_WORDS = {2: "two", 3: "three"}

#: The right answer, or one tensor of it, from a case's inputs.
Oracle = Callable[..., Any]


def each_of(oracle: Oracle, count: int) -> tuple[Oracle, ...]:
    """An oracle of ``count`` tensors as one oracle for each."""

    def part(k: int) -> Oracle:
        return lambda **inputs: oracle(**inputs)[k]

    return tuple(part(k) for k in range(count))


def parts_of(
    attempt: Attempt, function: object, result: object, names: Sequence[str]
) -> list[Tensor]:
    """The tensors that a function is to return, by what they are; not looked at yet.

    Raises:
        CheckFailed: It returned anything else.
    """
    if result is None:
        attempt.fail("it returned None: is the `return` missing?", function)
    if not isinstance(result, tuple | list) or len(result) != len(names):
        many = f" of {len(result)}" if isinstance(result, tuple | list) else ""
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        attempt.fail(
            f"it returned {_a(result)}{many}; expected {_WORDS[len(names)]} tensors, {listed}.",
            function,
        )
    return list(result)


def verify_parts(
    attempt: Attempt,
    function: Callable[..., Any],
    cases: Sequence[Case],
    names: Sequence[str],
    oracles: Sequence[Oracle],
    mistakes: Sequence[Sequence[Mistake]],
    order: Sequence[int] | None = None,
) -> None:
    """``Attempt.verify`` for a function that returns several tensors.

    Args:
        attempt: Whose it is.
        function: What the student wrote.
        cases: What to try it on, the most telling first.
        names: What each tensor is.
        oracles: Of each tensor, from the same arguments in float64.
        mistakes: In each, the likeliest first.
        order: In which they are judged, if it is not their own.

    Raises:
        CheckFailed: Something is wrong.
    """
    outcomes: list[list[Outcome]] = [[] for _ in names]
    stopped: CheckFailed | None = None
    for case in cases:
        about = describe(case.inputs)
        try:
            parts = parts_of(attempt, function, attempt.call(function, case.inputs), names)
            exact = {name: _exact(value) for name, value in case.inputs.items()}
            for k, oracle in enumerate(oracles):
                expected = oracle(**exact).double()
                got = attempt.tensor(function, parts[k], expected.shape, about, names[k])
                outcomes[k].append(Outcome(case, exact, got, expected))
        except CheckFailed as failure:
            stopped = failure
            break
    for k in order or range(len(names)):
        attempt.judge(function, outcomes[k], mistakes[k])
    if stopped is not None:
        raise stopped


def verify_diagnosis(
    attempt: Attempt,
    diagnosis: Callable[[], Any],
    suspects: Mapping[str, str],
    clues: Mapping[str, str],
) -> None:
    """Hold what is said of some suspects against what is wrong with them.

    Args:
        attempt: Whose it is.
        diagnosis: What the student wrote: () -> suspect -> what is said of it.
        suspects: The same as it should be.
        clues: What may be said -> where to look again if it is what should have been said.

    Raises:
        CheckFailed: Something is wrong.
    """
    said = attempt.call(diagnosis, {})
    if not isinstance(said, dict) or set(said) != set(suspects):
        listed = ", ".join(suspects)
        attempt.fail(f"it returned {said!r}; expected a dict with the keys {listed}.", diagnosis)
    for name, fault in suspects.items():
        if said[name] not in list(clues):
            listed = ", ".join(f'"{clue}"' for clue in clues)
            attempt.fail(f"it says {said[name]!r} of {name}; expected one of {listed}.", diagnosis)
        if said[name] != fault:
            attempt.fail(
                f'"{said[name]}" is not what is to be said of {name}. {clues[fault]}', diagnosis
            )
