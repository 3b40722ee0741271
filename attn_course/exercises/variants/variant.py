"""What a variant is: an exercise of the book with something else asked in it.

A variant has parameters, each with a few values to choose from. From the values drawn come
the text, the stub, the worked answer and the check, so that the four agree. Templates hold
``<<name>>`` where a parameter stands, or a phrase that ``words`` makes of the parameters.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_course.exercises.framework import Attempt, Case, Mistake, Outcome, _short

#: What was drawn: parameter -> value.
Parameters = Mapping[str, Any]

#: An answer to a variant: the parameters, then a case's inputs by name -> a tensor.
Answer = Callable[..., Tensor]

_PLACE = re.compile(r"(?P<indent>(?:^[ \t]*)?)<<(?P<name>\w+)>>", re.MULTILINE)

#: What is said to the solution of the exercise that a variant varies.
AS_IN_THE_BOOK = (
    "this is the answer to exercise {number} of the book. What is asked for here, and not there?"
)


class Slip(NamedTuple):
    """A known mistake.

    Attributes:
        message: What is said of it, a template.
        answer: What it would answer.
    """

    message: str
    answer: Answer


def _no_words(p: Parameters) -> Mapping[str, object]:
    return {}


@dataclass(frozen=True, eq=False, kw_only=True)
class Variant:
    """An exercise whose setting is drawn.

    Attributes:
        varies: The number of the book's exercise, e.g. ``"1.1"``.
        title: A template, as are the next six.
        shapes: What goes in and what comes out.
        task: The text.
        stub: Signature and docstring of the one function that the student writes.
        answer: Its body, not indented.
        why: The reason, for the instructor.
        stars: Difficulty, 1 to 3.
        minutes: How long it takes.
        choices: Parameter -> the values that may be drawn.
        cases: What an answer is tried on.
        oracle: The right answer.
        book: The answer of the book's exercise, which is wrong here.
        slips: Other wrong answers, the likeliest first.
        words: The phrases that templates need besides the parameters.
        excluded: Whether these values may not be drawn together.
        booleans: Whether the answer is a table of booleans.
    """

    varies: str
    title: str
    shapes: str
    task: str
    stub: str
    answer: str
    why: str
    stars: int
    minutes: int
    choices: Mapping[str, tuple[Any, ...]]
    cases: Iterable[Case]
    oracle: Answer
    book: Callable[..., Tensor]
    slips: tuple[Slip, ...]
    words: Callable[[Parameters], Mapping[str, object]] = _no_words
    excluded: Callable[[Parameters], bool] = lambda p: False
    booleans: bool = False

    @property
    def label(self) -> str:
        """What it is called, e.g. ``"1.1v"``."""
        return f"{self.varies}v"

    @property
    def function(self) -> str:
        """The name of the student's function, which is that of the book's."""
        return self.stub.split("(")[0].strip().removeprefix("def ")

    def settings(self) -> list[dict[str, Any]]:
        """All values that may be drawn together."""
        values = itertools.product(*self.choices.values())
        found = [dict(zip(self.choices, row, strict=True)) for row in values]
        return [p for p in found if not self.excluded(p)]

    def draw(self, student: str, key: str) -> dict[str, Any]:
        """The setting of a student, the same whenever it is asked for.

        Args:
            student: Whose it is.
            key: The class's secret. Without it nobody can tell what will be drawn.
        """
        text = f"{self.label}\n{student}".encode()
        number = int.from_bytes(hmac.new(key.encode(), text, hashlib.sha256).digest())
        settings = self.settings()
        return settings[number % len(settings)]

    def fill(self, template: str, p: Parameters) -> str:
        """A template with the parameters in it; lines that stand indented stay so."""
        words = {**p, **self.words(p)}

        def phrase(match: re.Match[str]) -> str:
            return textwrap.indent(str(words[match["name"]]), match["indent"])

        # Twice: a phrase may hold a parameter.
        return _PLACE.sub(phrase, _PLACE.sub(phrase, template))

    def code(self, p: Parameters) -> str:
        """Stub and answer, the answer between the markers that the course's tools know."""
        body = f"### BEGIN SOLUTION\n{self.fill(self.answer, p).strip()}\n### END SOLUTION"
        return f"{self.fill(self.stub, p).strip()}\n{textwrap.indent(body, '    ')}"

    def call(self, p: Parameters) -> str:
        """The lines that check an answer."""
        values = ", ".join(f"{name}={json.dumps(value)}" for name, value in p.items())
        return f'check_variant(\n    "{self.label}", {self.function},\n    {values},\n)'

    def check(self, attempt: Attempt, p: Parameters, function: Callable[..., Any]) -> None:
        """Hold an answer against the right one.

        Args:
            attempt: Of this variant.
            p: What was drawn.
            function: What the student wrote.

        Raises:
            CheckFailed: It is wrong, or still open.
        """
        mistakes = [Mistake(self.fill(s.message, p), (partial(s.answer, p),)) for s in self.slips]
        mistakes.append(Mistake(AS_IN_THE_BOOK.format(number=self.varies), (self.book,)))
        oracle = partial(self.oracle, p)

        def outcome(case: Case) -> Outcome:
            result = attempt.call(function, case.inputs)
            if self.booleans and isinstance(result, Tensor):
                if result.dtype != torch.bool:
                    attempt.fail(
                        f"it returned {_short(result.dtype)}; expected booleans.", function
                    )
                result = result.double()
            expected = Outcome.of(case, oracle, torch.empty(0)).expected
            got = attempt.tensor(function, result, expected.shape, case.name)
            return Outcome.of(case, oracle, got)

        attempt.judge_each(function, list(self.cases), outcome, mistakes)


def random(seed: int, *shape: int) -> Tensor:
    """Normal numbers, the same for a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def changed(answer: Answer, **others: Any) -> Answer:
    """An answer for other values of some parameters: what a student gives who missed them."""

    def missed(p: Parameters, /, **inputs: Any) -> Tensor:
        return answer({**p, **others}, **inputs)

    return missed
