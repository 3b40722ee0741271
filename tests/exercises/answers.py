"""What the modules with answers to a chapter's exercises begin with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

#: Number of an exercise -> (name, function, fragment): what a mistake is called, a function
#: that makes it, and a part of the message that only this mistake gets. A function's
#: ``__name__`` is that of the function in the exercise which it stands for; a kernel that is
#: called otherwise has a ``stands_for``.
Wrong: TypeAlias = dict[str, list[tuple[str, Any, str]]]

#: Number -> (name, functions): correct, and written differently from the solution.
Right: TypeAlias = dict[str, list[tuple[str, list[Any]]]]

#: (cases, oracle, mistakes): the formulas of the mistakes, what they are tried on, and what is
#: right.
Table: TypeAlias = tuple[Any, Any, Any]

#: (number, stands_for) -> (name, fragment) -> a decorator that adds a wrong answer.
Adder: TypeAlias = Callable[[str, str], Callable[[str, str], Callable[[Any], Any]]]


def new_answers() -> tuple[Wrong, Right, Adder]:
    """Two tables, both empty, and what fills the first."""
    table: Wrong = {}

    def wrong(number: str, stands_for: str) -> Callable[[str, str], Callable[[Any], Any]]:
        def named(name: str, fragment: str) -> Callable[[Any], Any]:
            def add(function: Any) -> Any:
                if hasattr(function, "fn"):  # a kernel keeps its name
                    function.stands_for = stands_for
                else:
                    function.__name__ = stands_for
                table.setdefault(number, []).append((name, function, fragment))
                return function

            return add

        return named

    return table, {}, wrong
