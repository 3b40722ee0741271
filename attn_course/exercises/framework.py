"""What all checks share: call an answer, look at what comes back, name the mistake.

A check is a function decorated with ``exercise``. It gets an ``Attempt``, through which it
runs the student's functions on cases and compares them with an oracle. A wrong answer is
held against the answers that known mistakes would give; if one of them explains all that
was seen, the message is that mistake's own. Inputs are fixed by seeds, so that the same
answer always gets the same message.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Concatenate, NamedTuple, NoReturn, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")

#: Columns of a message in a notebook.
COLUMNS = 79

#: Inputs and answers up to this many numbers are printed in full.
FEW = 6


class CheckFailed(AssertionError):
    """An answer is not right yet; the message says what to look at.

    In a notebook the message stands alone, without the path that the check took.

    Example:
        >>> raise CheckFailed("Exercise 1.1: look again.")
        Traceback (most recent call last):
        attn_course.exercises.framework.CheckFailed: Exercise 1.1: look again.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        lines: list[str] = []
        for paragraph in str(self).splitlines():
            lines += textwrap.wrap(paragraph, COLUMNS, break_long_words=False) or [""]
        lines[0] = re.sub(r"^Exercise [\d.]+(, `\S+`)?", "\x1b[1;31m\\g<0>\x1b[0m", lines[0])
        return lines


class Skipped(Exception):
    """A check cannot run here; the reason follows the number of the exercise."""


class Case(NamedTuple):
    """One set of inputs to try an answer on.

    Attributes:
        name: What is special about it, to follow the word "with", e.g. "one far query".
        inputs: The arguments, by name.
    """

    name: str
    inputs: dict[str, Any]


class Mistake(NamedTuple):
    """A way to be wrong that the check knows.

    Attributes:
        message: What it is, and a question or a nudge; never the solution.
        answers: What it would answer: functions of a case's inputs, tensors in float64.
            One that raises has no opinion on that case.
    """

    message: str
    answers: tuple[Callable[..., Tensor], ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a case.

    Attributes:
        case: The case.
        inputs: Its inputs, numbers in float64.
        got: The student's answer, in float64.
        expected: The oracle's.
    """

    case: Case
    inputs: dict[str, Any]
    got: Tensor
    expected: Tensor

    @classmethod
    def of(cls, case: Case, oracle: Callable[..., Tensor], got: Tensor) -> Outcome:
        """The outcome of an answer that is there already."""
        inputs = {name: _exact(value) for name, value in case.inputs.items()}
        return cls(case, inputs, got, oracle(**inputs).double())


@dataclass(frozen=True)
class Attempt:
    """One run of one exercise's check.

    Attributes:
        number: The exercise's, e.g. ``"1.1"``.
    """

    number: str

    def fail(self, message: str, function: object = None) -> NoReturn:
        """Raise ``CheckFailed``.

        Args:
            message: What is wrong.
            function: The student's function that it is about, if one.
        """
        where = f", `{_name(function)}`" if function is not None else ""
        raise CheckFailed(f"Exercise {self.number}{where}: {message}") from None

    def call(self, function: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
        """Run the student's function on copies of the inputs.

        Args:
            function: What the student wrote.
            inputs: Its arguments, by name and in order.

        Returns:
            Whatever it returns.

        Raises:
            CheckFailed: It is not a function, is still a stub, raises, or changes an
                argument.
        """
        if not callable(function):
            self.fail(
                "the check wants the function itself, without parentheses or arguments; "
                f"it got {_a(function)}."
            )
        copies = {name: _copy(value) for name, value in inputs.items()}
        with self.watching(function, inputs):
            result = function(*copies.values())  # by position: names may differ
        for name, value in inputs.items():
            if not _same(copies[name], value):
                what = "tensor" if isinstance(value, Tensor) else type(value).__name__
                self.fail(
                    f"it changes its argument `{name}`. A caller's {what} is the caller's: "
                    "which of your operations works in place?",
                    function,
                )
        return result

    def watching(self, function: object, inputs: Mapping[str, Any]) -> _Watching:
        """A context in which exceptions are the student's, and are told as such.

        Args:
            function: What the student wrote.
            inputs: What it gets, by name.
        """
        return _Watching(self, function, inputs)

    def gradient(
        self, function: Callable[..., Tensor], inputs: Mapping[str, Any], name: str
    ) -> Tensor:
        """Differentiate the sum of the squares of an answer that is right.

        Args:
            function: What the student wrote.
            inputs: Its arguments, by name and in order.
            name: The one to differentiate by.

        Returns:
            The gradient.

        Raises:
            CheckFailed: The answer has no gradient.
        """
        leaf = inputs[name].clone().requires_grad_()
        with torch.enable_grad():
            answer = self.call(function, {**inputs, name: leaf})
            if not isinstance(answer, Tensor) or not answer.requires_grad:
                self.fail(
                    f"the numbers are right, but they have no gradient by `{name}`, and so nothing "
                    "could be learned through them. Which operation leaves the graph: `detach`, "
                    "`item`, `no_grad`, a new tensor made of numbers?",
                    function,
                )
            with self.watching(function, inputs):
                (gradient,) = torch.autograd.grad(answer.float().square().sum(), leaf)
        return gradient

    def tensor(
        self,
        function: object,
        result: object,
        shape: Sequence[int],
        about: str,
        part: str = "",
    ) -> Tensor:
        """Look at the type and the shape of an answer, before its numbers.

        Args:
            function: What the student wrote.
            result: What it returned.
            shape: What its shape must be; ``[]`` allows a plain number.
            about: The inputs, described.
            part: Which part of the answer this is, if it has several.

        Returns:
            The answer in float64.

        Raises:
            CheckFailed: It is not a tensor of floating-point numbers of this shape.
        """
        shape = list(shape)
        said = f"as {part} it returned" if part else "it returned"
        if result is None:
            self.fail(f"{said} None{'.' if part else ': is the `return` missing?'}", function)
        if not shape and isinstance(result, Real) and not isinstance(result, bool):
            return torch.tensor(float(result), dtype=torch.float64)
        if not isinstance(result, Tensor):
            wanted = f"a tensor of shape {shape}" if shape else "a number"
            hint = " `torch.stack` or `torch.tensor` makes one." if _listlike(result) else ""
            self.fail(f"{said} {_a(result)}; expected {wanted}.{hint if shape else ''}", function)
        if list(result.shape) != shape and not (not shape and result.numel() == 1):
            order = " Are the parts in the right order?" if part else ""
            self.fail(
                f"{said} shape {list(result.shape)}; expected {shape}, for {about}.{order} "
                "Which axis was summed over, or kept?",
                function,
            )
        if not result.is_floating_point():
            self.fail(
                f"{said} {_short(result.dtype)}; expected floating-point numbers.",
                function,
            )
        return result.detach().cpu().double().reshape(shape)

    def verify(
        self,
        function: Callable[..., Any],
        cases: Sequence[Case],
        oracle: Callable[..., Tensor],
        mistakes: Sequence[Mistake] = (),
        *,
        rtol: float = 1e-3,
        atol: float = 1e-4,
    ) -> None:
        """Hold an answer against the oracle on every case; say what is wrong.

        Args:
            function: What the student wrote.
            cases: What to try it on, the most telling first.
            oracle: The right answer, from the same arguments in float64.
            mistakes: Wrong ones, the likeliest first.
            rtol: Relative error allowed.
            atol: Absolute error allowed.

        Raises:
            CheckFailed: Something is wrong.
        """

        def outcome(case: Case) -> Outcome:
            shape = oracle(**{k: _exact(v) for k, v in case.inputs.items()}).shape
            result = self.call(function, case.inputs)
            got = self.tensor(function, result, shape, describe(case.inputs))
            return Outcome.of(case, oracle, got)

        self.judge_each(function, cases, outcome, mistakes, rtol=rtol, atol=atol)

    def judge_each(
        self,
        function: object,
        cases: Sequence[Case],
        outcome: Callable[[Case], Outcome],
        mistakes: Sequence[Mistake],
        *,
        rtol: float = 1e-3,
        atol: float = 1e-4,
        note: str = "",
    ) -> None:
        """Judge what comes of the cases; only then tell what stopped the last of them.

        Args:
            function: What the student wrote.
            cases: What to try it on, the most telling first.
            outcome: Tries it on a case, and may fail.
            mistakes: Wrong answers, the likeliest first.
            rtol: Relative error allowed.
            atol: Absolute error allowed.
            note: What one has to know to read the numbers of a message.

        Raises:
            CheckFailed: Something is wrong.
        """
        outcomes: list[Outcome] = []
        stopped: CheckFailed | None = None
        for case in cases:
            try:
                outcomes.append(outcome(case))
            except CheckFailed as failure:
                stopped = failure
                break
        self.judge(function, outcomes, mistakes, rtol=rtol, atol=atol, note=note)
        if stopped is not None:
            raise stopped

    def judge(
        self,
        function: object,
        outcomes: Sequence[Outcome],
        mistakes: Sequence[Mistake],
        *,
        rtol: float = 1e-3,
        atol: float = 1e-4,
        note: str = "",
    ) -> None:
        """Compare answers that are there already; ``verify`` does so last.

        A mistake is named if it explains all of them, right ones included.
        """

        def close(one: Tensor, other: Tensor) -> bool:
            return torch.allclose(one, other, rtol=rtol, atol=atol, equal_nan=True)

        wrong = [outcome for outcome in outcomes if not close(outcome.got, outcome.expected)]
        if not wrong:
            return
        seen = " ".join(filter(None, [_difference(wrong[0], rtol, atol), note]))

        def explained(answer: Callable[..., Tensor]) -> bool:
            tells = False
            for outcome in outcomes:
                predicted = _opinion(answer, outcome)
                if predicted is not None:
                    if not close(outcome.got, predicted):
                        return False
                    tells |= any(outcome is other for other in wrong)
            return tells

        for mistake in mistakes:
            if any(explained(answer) for answer in mistake.answers):
                self.fail(f"{mistake.message}\n{seen}", function)
        self.fail(f"the numbers differ, in a way that this check does not know.\n{seen}", function)


class _Watching:
    """Turns the student's exceptions into ``CheckFailed``; see ``Attempt.watching``."""

    def __init__(self, attempt: Attempt, function: object, inputs: Mapping[str, Any]) -> None:
        self.attempt, self.function, self.inputs = attempt, function, inputs

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, CheckFailed):
            return
        number, name = self.attempt.number, _name(self.function)
        if any(_is_stub(link) for link in _chain(error)) or _is_stub_kernel(self.function):
            raise CheckFailed(
                f"Exercise {number} is still open: replace the `raise NotImplementedError` in "
                f"`{name}`, run its cell, then this one."
            ) from None
        deepest = list(_chain(error))[-1]
        text = " ".join(str(deepest).split())
        if len(text) > 200:
            text = text[:200] + " ..."
        line = _line_of(self.function, error)
        at = f" at the line `{line}`" if line else ""
        raise CheckFailed(
            f"Exercise {number}, `{name}`: your code raised {type(deepest).__name__}{at}: {text}\n"
            f"It was called with {describe(self.inputs)}."
        ) from error


def exercise(number: str) -> Callable[[Callable[Concatenate[Attempt, P], None]], Callable[P, None]]:
    """Make a check of a function that does the checking.

    The check prints one line when it is done: that the exercise is passed, or why it
    cannot be checked here.

    Args:
        number: The exercise's, e.g. ``"1.1"``.

    Returns:
        A decorator. The function gets an ``Attempt`` before its other arguments, raises
        ``CheckFailed`` through it, or ``Skipped``.

    Example:
        >>> @exercise("0.1")
        ... def check_double(attempt, double):
        ...     case = Case("a half", {"x": torch.tensor([0.5])})
        ...     attempt.verify(double, [case], lambda x: 2 * x)
        >>> check_double(lambda x: x + x)
        Exercise 0.1 passed.
    """

    def decorate(body: Callable[Concatenate[Attempt, P], None]) -> Callable[P, None]:
        @functools.wraps(body)
        def check(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                body(Attempt(number), *args, **kwargs)
            except Skipped as reason:
                print(f"Exercise {number} {reason}")
            else:
                print(f"Exercise {number} passed.")

        check.number = number  # type: ignore[attr-defined]
        return check

    return decorate


def describe(inputs: Mapping[str, Any]) -> str:
    """The arguments in a few words.

    Example:
        >>> describe({"query": torch.zeros(3), "key": torch.zeros(9, 2), "width": 0.5})
        'query [3] = [0, 0, 0], key [9, 2], width = 0.5'
    """
    parts = []
    for name, value in inputs.items():
        if callable(value):
            parts.append(f"{name} = {_name(value)}")
        elif not isinstance(value, Tensor):
            parts.append(f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}")
        elif value.ndim == 1 and value.numel() <= FEW:
            parts.append(f"{name} {list(value.shape)} = {_numbers(value)}")
        else:
            parts.append(f"{name} {list(value.shape)}")
    return ", ".join(parts)


def _difference(outcome: Outcome, rtol: float, atol: float) -> str:
    """Where an answer is wrong: expected, got, for which input."""
    got, expected = outcome.got, outcome.expected
    off = ~torch.isclose(got, expected, rtol=rtol, atol=atol)
    seen = f"Seen with {outcome.case.name} ({describe(outcome.case.inputs)}): "
    if expected.ndim == 0:
        return seen + f"expected {expected:.4g}, got {got:.4g}."
    if expected.ndim == 1 and expected.numel() <= FEW:
        return seen + f"expected {_numbers(expected)}, got {_numbers(got)}."
    index = tuple(off.nonzero()[0].tolist())
    return seen + (
        f"at {list(index)} expected {expected[index]:.4g}, got {got[index]:.4g}; "
        f"{int(off.sum())} of {off.numel()} numbers differ."
    )


def _numbers(tensor: Tensor) -> str:
    return "[" + ", ".join(f"{x:.4g}" for x in tensor.detach().tolist()) + "]"


def _exact(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floating else value


def _opinion(answer: Callable[..., Tensor], outcome: Outcome) -> Tensor | None:
    """What a mistake would answer; None where it does not apply."""
    try:
        predicted = answer(**outcome.inputs).double()
    except Exception:  # whatever it meets with in inputs that are not its own
        return None
    return predicted if predicted.shape == outcome.expected.shape else None


def _copy(value: Any) -> Any:
    """A tensor keeps its graph; a function may keep a record, and stays the same one."""
    if isinstance(value, Tensor):
        return value.clone()
    return value if callable(value) else copy.deepcopy(value)


def _same(one: Any, other: Any) -> bool:
    """Whether a copy is still what it was; what holds no tensors, as far as a message shows it."""
    if isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in other)
    if not isinstance(other, Tensor):
        return repr(one) == repr(other)
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _listlike(result: object) -> bool:
    return isinstance(result, list) or type(result).__name__ == "ndarray"


def _a(result: object) -> str:
    """What kind of thing it is, with its article; PyTorch has tuples of many names."""
    name = "tuple" if isinstance(result, tuple) else type(result).__name__
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(function: object) -> Any:
    """The Python function that a kernel was made of, or the function itself."""
    return getattr(function, "fn", function)


def _name(function: object) -> str:
    return str(getattr(_plain(function), "__name__", function))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, and those that it was raised from."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _is_stub(error: BaseException) -> bool:
    """Whether this is a stub's own exception, rather than one of a library's."""
    if not isinstance(error, NotImplementedError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    line = frames[-1].line if frames else ""
    return not line or "NotImplementedError" in line


def _is_stub_kernel(function: object) -> bool:
    """Whether a kernel still holds the stub's line: compiling knows no ``raise``."""
    if not hasattr(function, "fn"):
        return False
    try:
        return "raise NotImplementedError" in inspect.getsource(_plain(function))
    except (OSError, TypeError):
        return False


def _line_of(function: object, error: BaseException) -> str:
    """The deepest line of the student's own code that led to the exception."""
    code = getattr(_plain(function), "__code__", None)
    line = ""
    for link in _chain(error):
        for frame in traceback.extract_tb(link.__traceback__):
            if code is not None and frame.filename == code.co_filename and frame.line:
                line = frame.line
    return line
