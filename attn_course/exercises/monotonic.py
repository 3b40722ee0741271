"""Checks of chapter 10's exercises.

Each check hands a student's function small inputs and holds what comes back against an
oracle, which walks every path, and against what the likely mistakes would answer. 10.5's
inputs are functions, and 10.6's tell logits only when they are asked: the check looks at
which were. 10.7 looks further, at which program reads and writes what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import (
    Attempt,
    Case,
    CheckFailed,
    Outcome,
    _a,
    _short,
    describe,
    exercise,
)
from attn_course.exercises.kernels import blank, device_for, guard, look
from attn_course.exercises.launches import Accesses, watch
from attn_course.exercises.monotonic_cases import (
    _COMBINE_CASES,
    _COUNT_MANY_CASES,
    _COUNT_ONE_CASES,
    _GRADIENT_CASES,
    _LEAK_CASES,
    _LOG_ADD_CASES,
    _LOG_NOT_CASES,
    _LOG_VISIT_CASES,
    _SCAN_CASES,
    _SUSPECTS,
    _VISIT_MANY_CASES,
    _VISIT_ONE_CASES,
    _WALK_CASES,
    Asked,
    Weights,
    _combine,
    _count_many,
    _count_one,
    _gradient,
    _leaks,
    _log_add,
    _log_not,
    _log_visit,
    _random,
    _scan,
    _stops,
    _visit_many,
    _visit_one,
)
from attn_course.exercises.monotonic_mistakes import (
    _CLUES,
    _COMBINE_MISTAKES,
    _COUNT_MANY_MISTAKES,
    _COUNT_ONE_MISTAKES,
    _GRADIENT_MISTAKES,
    _KEYS_FOR_QUERIES,
    _LEAK_MISTAKES,
    _LOG_ADD_MISTAKES,
    _LOG_NOT_MISTAKES,
    _LOG_VISIT_MISTAKES,
    _LOOKS_AHEAD,
    _LOOKS_BACK,
    _MISSED,
    _NO_SCAN,
    _NO_STOPS,
    _NOT_A_TABLE,
    _ONE_ANSWER,
    _OUT_OF_ORDER,
    _READS_BACK,
    _SCAN_MISTAKES,
    _SCAN_WORDS,
    _SERIAL,
    _VISIT_MANY_MISTAKES,
    _VISIT_ONE_MISTAKES,
    _WALK_MISTAKES,
)
from attn_course.exercises.several import parts_of, verify_diagnosis

__all__ = [
    "Asked",
    "Weights",
    "check_count",
    "check_gradient",
    "check_leaks",
    "check_log_space",
    "check_scan",
    "check_visits",
    "check_walk",
    "suspects",
    "trial_logits",
]


def _number(result: Any) -> Any:
    """A count may come as a tensor of integers, too."""
    return result.double() if isinstance(result, Tensor) else result


# 10.1 --------------------------------------------------------------------------------


@exercise("10.1")
def check_count(
    attempt: Attempt, count_many: Callable[..., int], count_one: Callable[..., int]
) -> None:
    """Check 10.1, how many paths there are.

    Args:
        attempt: Given by the decorator.
        count_many: (rows, columns) -> many-to-many paths to the far corner.
        count_one: (rows, columns) -> one-to-many paths to it.
    """
    for function, cases, oracle, mistakes in (
        (count_many, _COUNT_MANY_CASES, _count_many, _COUNT_MANY_MISTAKES),
        (count_one, _COUNT_ONE_CASES, _count_one, _COUNT_ONE_MISTAKES),
    ):

        def outcome(
            case: Case,
            function: Callable[..., int] = function,
            oracle: Callable[..., Tensor] = oracle,
        ) -> Outcome:
            result = _number(attempt.call(function, case.inputs))
            got = attempt.tensor(function, result, [], describe(case.inputs))
            return Outcome.of(case, oracle, got)

        attempt.judge_each(function, cases, outcome, mistakes, rtol=1e-6)


# 10.2 --------------------------------------------------------------------------------


@exercise("10.2")
def check_visits(
    attempt: Attempt, visit_many: Callable[[Tensor], Tensor], visit_one: Callable[[Tensor], Tensor]
) -> None:
    """Check 10.2, how likely a path is to come by.

    Args:
        attempt: Given by the decorator.
        visit_many: p ``[I, J]`` -> phi of the many-to-many model, ``[I, J]``.
        visit_one: p ``[I, J]`` -> phi of the one-to-many model, ``[I, J]``.
    """
    attempt.verify(visit_many, _VISIT_MANY_CASES, _visit_many, _VISIT_MANY_MISTAKES)
    attempt.verify(visit_one, _VISIT_ONE_CASES, _visit_one, _VISIT_ONE_MISTAKES)


# 10.3 --------------------------------------------------------------------------------


@exercise("10.3")
def check_log_space(
    attempt: Attempt,
    log_not: Callable[[Tensor], Tensor],
    log_add: Callable[[Tensor, Tensor], Tensor],
    log_visit: Callable[[Tensor], Tensor],
) -> None:
    """Check 10.3, the recurrence among logarithms.

    Args:
        attempt: Given by the decorator.
        log_not: log p ``[n]`` -> log(1 - p) ``[n]``.
        log_add: (log a ``[n]``, log b ``[n]``) -> log(a + b) ``[n]``.
        log_visit: log p ``[I, J]`` -> log phi of the many-to-many model, ``[I, J]``.
    """
    attempt.verify(log_not, _LOG_NOT_CASES, _log_not, _LOG_NOT_MISTAKES)
    attempt.verify(log_add, _LOG_ADD_CASES, _log_add, _LOG_ADD_MISTAKES)
    attempt.verify(log_visit, _LOG_VISIT_CASES, _log_visit, _LOG_VISIT_MISTAKES)


# 10.4 --------------------------------------------------------------------------------


@exercise("10.4")
def check_gradient(attempt: Attempt, gradient: Callable[..., Tensor]) -> None:
    """Check 10.4, the recurrence backwards.

    Args:
        attempt: Given by the decorator.
        gradient: (p ``[I, J]``, phi ``[I, J]``, dL/dphi ``[I, J]``) -> dL/dp ``[I, J]``.
    """
    attempt.verify(gradient, _GRADIENT_CASES, _gradient, _GRADIENT_MISTAKES)


# 10.5 --------------------------------------------------------------------------------


def suspects() -> dict[str, Weights]:
    """Four kinds of weights for exercise 10.5, of which one is causal.

    Returns:
        Name -> a function of logits ``[queries, keys]`` that returns weights of their shape.

    Example:
        >>> suspects()["A"](trial_logits()).shape
        torch.Size([6, 5])
    """
    return {name: Weights(fault.replace("causal", "visits")) for name, fault in _SUSPECTS.items()}


def trial_logits() -> Tensor:
    """What to try the ``suspects`` on: six queries, five keys.

    Example:
        >>> trial_logits().shape
        torch.Size([6, 5])
    """
    return _random(7)(6, 5)


@exercise("10.5")
def check_leaks(
    attempt: Attempt, leaks: Callable[..., Tensor], diagnosis: Callable[[], dict[str, str]]
) -> None:
    """Check 10.5, a test that finds weights which know later queries.

    Args:
        attempt: Given by the decorator.
        leaks: (a function of logits, logits ``[queries, keys]``) -> booleans ``[queries,
            queries]``.
        diagnosis: () -> for each of ``suspects()`` the name of its fault, or ``"causal"``.
    """

    def outcome(case: Case) -> Outcome:
        n, keys = case.inputs["logits"].shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            result = attempt.call(leaks, case.inputs)
        if isinstance(result, bool) or (isinstance(result, Tensor) and result.ndim == 0 and n > 1):
            attempt.fail(_ONE_ANSWER.format(bool(result), n, n, n), leaks)
        if isinstance(result, Tensor):
            if n != keys and result.shape in ((n, keys), (keys, n), (keys, keys)):
                attempt.fail(_KEYS_FOR_QUERIES.format(list(result.shape)), leaks)
            if result.dtype != torch.bool and not bool(((result == 0) | (result == 1)).all()):
                attempt.fail(_NOT_A_TABLE.format(_short(result.dtype)), leaks)
            result = result.double()  # 0 and 1 are as good as booleans
        got = attempt.tensor(leaks, result, [n, n], describe(case.inputs))
        return Outcome.of(case, _leaks, got)

    found: list[Outcome] = []

    def outcome_kept(case: Case) -> Outcome:
        found.append(outcome(case))
        return found[-1]

    note = "(1 stands for True.)"
    try:
        attempt.judge_each(leaks, _LEAK_CASES, outcome_kept, _LEAK_MISTAKES, note=note)
    except CheckFailed as failure:
        first, *rest = str(failure).splitlines()
        missed = all(bool((each.got <= each.expected).all()) for each in found)
        if missed and "does not know" in first:
            attempt.fail("\n".join([_MISSED, *rest]), leaks)
        raise
    verify_diagnosis(attempt, diagnosis, _SUSPECTS, _CLUES)


# 10.6 --------------------------------------------------------------------------------


@exercise("10.6")
def check_walk(attempt: Attempt, walk: Callable[..., list[int]]) -> None:
    """Check 10.6, one path, walked as the queries come.

    Args:
        attempt: Given by the decorator.
        walk: (ask, queries, keys) -> where each query stops; ``ask(i, j)`` is a logit.
    """
    astray: list[str] = []

    def outcome(case: Case) -> Outcome:
        ask, queries, _ = case.inputs.values()
        ask.pairs.clear()
        result = attempt.call(walk, case.inputs)
        if result is None:
            attempt.fail("it returned None: is the `return` missing?", walk)
        stops = result.tolist() if isinstance(result, Tensor) else result
        if not isinstance(stops, list | tuple):
            attempt.fail(_NO_STOPS.format(_a(result), queries), walk)
        stops = [stop.item() if isinstance(stop, Tensor) else stop for stop in stops]
        if len(stops) != queries or not all(
            isinstance(stop, int) and not isinstance(stop, bool) for stop in stops
        ):
            attempt.fail(_NO_STOPS.format(repr(stops), queries), walk)
        got = torch.tensor(stops, dtype=torch.float64)
        found = Outcome.of(case, _stops, got)
        astray.extend(_strays(ask, found.expected))
        return found

    attempt.judge_each(walk, _WALK_CASES, outcome, _WALK_MISTAKES)
    if astray:
        attempt.fail(astray[0], walk)


def _strays(ask: Asked, stops: Tensor) -> list[str]:
    """What to say of logits that a path does not need, or not yet."""
    starts = [0, *map(int, stops.tolist())]
    latest = 0
    for i, j in ask.pairs:
        if i < latest:
            return [_OUT_OF_ORDER.format(i, latest)]
        latest = i
        if j < starts[i]:
            return [_LOOKS_BACK.format(i, j, starts[i])]
        if j > starts[i + 1]:
            return [_LOOKS_AHEAD.format(i, j, starts[i + 1])]
    return []


# 10.7 --------------------------------------------------------------------------------


@exercise("10.7")
def check_scan(attempt: Attempt, combine: Callable[..., Any], kernel: Any) -> None:
    """Check 10.7, a recurrence as a scan.

    Args:
        attempt: Given by the decorator.
        combine: (a1, b1, a2, b2) -> factor and summand of the second map after the first.
        kernel: A ``@triton.jit`` function (a_ptr, b_ptr, h_ptr, LENGTH, BLOCK); program i
            writes row i of h.
    """
    device = device_for(attempt, kernel)

    def joined(case: Case) -> Outcome:
        result = attempt.call(combine, case.inputs)
        names = ("the factor", "the summand of the joined map")
        parts = parts_of(attempt, combine, result, names)
        size, about = case.inputs["a1"].shape, describe(case.inputs)
        parts = [
            attempt.tensor(combine, part, size, about, name)
            for part, name in zip(parts, ("the factor", "the summand"), strict=True)
        ]
        return Outcome.of(case, _combine, torch.stack(parts))

    note = "(First the factors, then the summands.)"
    attempt.judge_each(combine, _COMBINE_CASES, joined, _COMBINE_MISTAKES, note=note)
    afterwards: list[str] = []

    def outcome(case: Case) -> Outcome:
        given = [guard(case.inputs[name], device) for name in ("a", "b")]
        rows, n = case.inputs["a"].shape
        block = case.inputs["block"]
        output = blank([rows, n], device)
        seen = f"Seen with {case.name}: {rows} rows, LENGTH = {n}, BLOCK = {block}."
        with attempt.watching(kernel, case.inputs), watch() as accesses:
            kernel[(rows,)](*(guarded.tensor for guarded in given), output.tensor, n, block)
        got = look(
            attempt,
            kernel,
            accesses,
            given,
            output,
            owner=lambda place: (place // n, 0, 0),
            words=_SCAN_WORDS,
            seen=seen,
        )
        said = _unlike_a_scan(accesses, output.memory, n, block)
        afterwards.extend([f"{said}\n{seen}"] if said else [])
        return Outcome.of(case, _scan, got)

    attempt.judge_each(kernel, _SCAN_CASES, outcome, _SCAN_MISTAKES)
    if afterwards:
        attempt.fail(afterwards[0], kernel)


def _unlike_a_scan(accesses: Accesses, output: Tensor, n: int, block: int) -> str:
    """What to say of a launch that gets its numbers in another way; nothing of the others."""
    first = output.data_ptr()
    stop = first + output.numel() * output.element_size()
    if any(first <= address < stop for _, addresses in accesses.loads for address in addresses):
        return _READS_BACK
    most = max((len(addresses) for _, addresses in accesses.loads), default=0)
    if most == 1 < min(n, block):
        return _SERIAL
    return _NO_SCAN if accesses.scans == 0 and min(n, block) > 1 else ""
