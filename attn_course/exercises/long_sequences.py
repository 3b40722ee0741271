"""Checks of chapter 8's exercises.

Each check hands a student's function small inputs and holds what comes back against an
oracle in float64 and against what the likely mistakes would answer. 8.3's oracle is the
ledger itself. 8.2 looks further, at what still goes step by step, and 8.6 at the tiles that
a kernel says it visits, and at the keys that it loads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attn_course.exercises.framework import (
    Attempt,
    Case,
    Outcome,
    _a,
    _short,
    describe,
    exercise,
)
from attn_course.exercises.kernels import Guarded, blank, device_for, guard, look
from attn_course.exercises.launches import Accesses, watch
from attn_course.exercises.long_sequences_cases import (
    _ATTEND_CASES,
    _BLOCK_CASES,
    _COLLAPSE_CASES,
    _LEDGER_CASES,
    _LONG,
    _PROBABILITY_CASES,
    _REACH_CASES,
    _SHORT,
    _SLIDING_CASES,
    _STACK_CASES,
    _UNLOOP_CASES,
    _WINDOW_CASES,
    TENSORS,
    _attend,
    _attention_bytes,
    _blocks,
    _collapse,
    _labels,
    _loop,
    _probability,
    _reached,
    _sliding,
    _span,
    _stack_bytes,
    _window_attention,
    _window_tiles,
)
from attn_course.exercises.long_sequences_mistakes import (
    _ATTEND_MISTAKES,
    _BATCH_FIRST,
    _BLOCK_MISTAKES,
    _CALLED_AGAIN,
    _COLLAPSE_MISTAKES,
    _COUNT_FOREIGN,
    _COUNT_LIES,
    _COUNT_MISTAKES,
    _COUNTED,
    _LEDGER_MISTAKES,
    _NO_LIST,
    _NOT_BOOLEAN,
    _NOT_NAMED,
    _PROBABILITY_MISTAKES,
    _REACH_MISTAKES,
    _SLIDING_MISTAKES,
    _STACK_MISTAKES,
    _STILL_LOOPS,
    _UNLOOP_MISTAKES,
    _WINDOW_MISTAKES,
    _WINDOW_WORDS,
)

__all__ = [
    "check_attend",
    "check_ctc",
    "check_ledger",
    "check_unloop",
    "check_window_kernel",
    "check_windows",
]


def _sequences_first(
    attempt: Attempt, function: Callable[..., Tensor], case: Case, oracle: Callable[..., Tensor]
) -> Outcome:
    """The outcome of a case whose answer is ``[len, batch, ...]``; the batch first is told."""
    result = attempt.call(function, case.inputs)
    shape = oracle(**case.inputs).shape
    steps, batch, width = shape
    if steps != batch and isinstance(result, Tensor) and result.shape == (batch, steps, width):
        attempt.fail(_BATCH_FIRST.format(list(result.shape)), function)
    return Outcome.of(case, oracle, attempt.tensor(function, result, shape, describe(case.inputs)))


# 8.1 ---------------------------------------------------------------------------------


@exercise("8.1")
def check_attend(attempt: Attempt, attend: Callable[..., Tensor]) -> None:
    """Check 8.1, approach 2.1 repaired.

    Args:
        attempt: Given by the decorator.
        attend: (x ``[len, batch, width]``, states ``[len, batch, hidden]``, weight ``[width,
            width]``, bias ``[width]``) -> ``[len, batch, hidden]``.
    """

    def outcome(case: Case) -> Outcome:
        return _sequences_first(attempt, attend, case, _attend)

    attempt.judge_each(attend, _ATTEND_CASES, outcome, _ATTEND_MISTAKES)
    attempt.gradient(attend, _ATTEND_CASES[0].inputs, "bias")


# 8.2 ---------------------------------------------------------------------------------


class _Calls(TorchFunctionMode):
    """How many functions of PyTorch are called meanwhile."""

    count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _operations(attempt: Attempt, function: Callable[..., Tensor], case: Case) -> int:
    with _Calls() as calls:
        attempt.call(function, case.inputs)
    return calls.count


@exercise("8.2")
def check_unloop(attempt: Attempt, unlooped: Callable[..., Tensor]) -> None:
    """Check 8.2, approach 1 without its loop.

    Args:
        attempt: Given by the decorator.
        unlooped: (memory ``[len, batch, width]``, rnn2, weight ``[width, 2 * width]``) ->
            ``[len, batch, width]``.
    """

    def outcome(case: Case) -> Outcome:
        return _sequences_first(attempt, unlooped, case, _loop)

    attempt.judge_each(unlooped, _UNLOOP_CASES, outcome, _UNLOOP_MISTAKES)
    attempt.gradient(unlooped, _UNLOOP_CASES[0].inputs, "memory")
    rnn2 = _LONG.inputs["rnn2"]
    rnn2.calls = 0
    short, long = (_operations(attempt, unlooped, case) for case in (_SHORT, _LONG))
    steps, more = len(_SHORT.inputs["memory"]), len(_LONG.inputs["memory"])
    if rnn2.calls >= more:
        attempt.fail(_CALLED_AGAIN.format(rnn2.calls, more), unlooped)
    if long > short:
        attempt.fail(_STILL_LOOPS.format(steps, short, more, long), unlooped)


# 8.3 ---------------------------------------------------------------------------------


@exercise("8.3")
def check_ledger(
    attempt: Attempt,
    attention_bytes: Callable[..., dict[str, int]],
    stack_bytes: Callable[..., int],
) -> None:
    """Check 8.3, what autograd keeps, on paper.

    Args:
        attempt: Given by the decorator.
        attention_bytes: (batch, queries, keys, width, size) -> the bytes that are kept of H,
            M, scores, weights and output, by these names.
        stack_bytes: (batch, steps, width, layers, size) -> the bytes that are kept of what a
            stack of layers makes.
    """

    def outcome(case: Case) -> Outcome:
        result = attempt.call(attention_bytes, case.inputs)
        if result is None:
            attempt.fail("it returned None: is the `return` missing?", attention_bytes)
        if not isinstance(result, dict) or set(result) != set(TENSORS):
            said = (
                f"a dict with the keys {', '.join(map(str, result))}"
                if (isinstance(result, dict) and result)
                else _a(result)
            )
            attempt.fail(_NOT_NAMED.format(said, ", ".join(TENSORS)), attention_bytes)
        about = describe(case.inputs)
        each = [
            attempt.tensor(attention_bytes, _number(result[name]), [], about, f'"{name}"')
            for name in TENSORS
        ]
        return Outcome.of(case, _attention_bytes, torch.stack(each))

    note = f"(In the order {', '.join(TENSORS)}.)"
    attempt.judge_each(
        attention_bytes, _LEDGER_CASES, outcome, _LEDGER_MISTAKES, note=note, rtol=1e-6
    )

    def total(case: Case) -> Outcome:
        result = _number(attempt.call(stack_bytes, case.inputs))
        got = attempt.tensor(stack_bytes, result, [], describe(case.inputs))
        return Outcome.of(case, _stack_bytes, got)

    attempt.judge_each(stack_bytes, _STACK_CASES, total, _STACK_MISTAKES, rtol=1e-6)


def _number(result: Any) -> Any:
    """Bytes may come as a tensor of integers, too."""
    return result.double() if isinstance(result, Tensor) else result


# 8.4 ---------------------------------------------------------------------------------


@exercise("8.4")
def check_ctc(
    attempt: Attempt,
    collapse: Callable[[list[int]], list[int]],
    probability: Callable[..., Tensor],
) -> None:
    """Check 8.4, what a path says, and how probable a text is.

    Args:
        attempt: Given by the decorator.
        collapse: (path) -> the labels that it says; class 0 is the blank.
        probability: (probs ``[steps, classes]``, label) -> a number.
    """

    def outcome(case: Case) -> Outcome:
        result = attempt.call(collapse, case.inputs)
        if result is None:
            attempt.fail("it returned None: is the `return` missing?", collapse)
        said = result.tolist() if isinstance(result, Tensor) else result
        if not isinstance(said, list | tuple) or not all(
            isinstance(label, int) and not isinstance(label, bool) for label in said
        ):
            attempt.fail(_NO_LIST.format(repr(result)), collapse)
        room = len(case.inputs["path"])
        if len(said) > room:
            attempt.fail(
                f"a path of {room} steps says {len(said)} labels: where do they come from?",
                collapse,
            )
        return Outcome.of(case, _collapse, _labels(said, room))

    note = "(-1 stands where there are no more labels.)"
    attempt.judge_each(collapse, _COLLAPSE_CASES, outcome, _COLLAPSE_MISTAKES, note=note)
    tolerance = {"rtol": 1e-4, "atol": 1e-6}
    attempt.verify(
        probability, _PROBABILITY_CASES, _probability, _PROBABILITY_MISTAKES, **tolerance
    )
    attempt.gradient(probability, _PROBABILITY_CASES[0].inputs, "probs")


# 8.5 ---------------------------------------------------------------------------------


@exercise("8.5")
def check_windows(
    attempt: Attempt,
    sliding: Callable[..., Tensor],
    blocks: Callable[..., Tensor],
    reached: Callable[..., Tensor],
) -> None:
    """Check 8.5, who sees whom, and who hears of whom.

    Args:
        attempt: Given by the decorator.
        sliding: (n, window, dilation) -> booleans ``[n, n]``.
        blocks: (n, size) -> booleans ``[n, n]``.
        reached: (mask ``[n, n]``, layers) -> booleans ``[n, n]``.
    """

    def compare(
        function: Callable[..., Tensor], oracle: Callable[..., Tensor], otherwise: str
    ) -> Callable[[Case], Outcome]:
        def outcome(case: Case) -> Outcome:
            result = attempt.call(function, case.inputs)
            if isinstance(result, Tensor) and result.dtype != torch.bool:
                attempt.fail(otherwise.format(_short(result.dtype)), function)
            result = result.double() if isinstance(result, Tensor) else result
            shape = oracle(**case.inputs).shape
            got = attempt.tensor(function, result, shape, describe(case.inputs))
            return Outcome.of(case, oracle, got)

        return outcome

    note = "(1 stands for True.)"
    for function, cases, oracle, mistakes, otherwise in (
        (sliding, _SLIDING_CASES, _sliding, _SLIDING_MISTAKES, _NOT_BOOLEAN),
        (blocks, _BLOCK_CASES, _blocks, _BLOCK_MISTAKES, _NOT_BOOLEAN),
        (reached, _REACH_CASES, _reached, _REACH_MISTAKES, _COUNTED),
    ):
        outcome = compare(function, oracle, otherwise)
        attempt.judge_each(function, cases, outcome, mistakes, note=note)


# 8.6 ---------------------------------------------------------------------------------


@exercise("8.6")
def check_window_kernel(attempt: Attempt, kernel: Any) -> None:
    """Check 8.6, a loop that begins and ends with its window.

    Args:
        attempt: Given by the decorator.
        kernel: A ``@triton.jit`` function (query_ptr, key_ptr, value_ptr, output_ptr,
            count_ptr, LENGTH, DIM, LEFT, RIGHT, BLOCK_M, BLOCK_N); program i writes the i-th
            tile of ``BLOCK_M`` queries, and how many tiles of keys it visited.
    """
    device = device_for(attempt, kernel)
    counted: list[Outcome] = []
    lies: list[str] = []

    def outcome(case: Case) -> Outcome:
        given = [guard(case.inputs[name], device) for name in ("query", "key", "value")]
        n, dim = case.inputs["query"].shape
        left, right, block_m, block_n = (
            case.inputs[name] for name in ("left", "right", "block_m", "block_n")
        )
        programs = -(-n // block_m)
        output = blank([n, dim], device)
        count = guard(torch.zeros(programs, dtype=torch.int32), device)
        seen = (
            f"Seen with {case.name}: LENGTH = {n}, DIM = {dim}, LEFT = {left}, RIGHT = {right}, "
            f"BLOCK_M = {block_m}, BLOCK_N = {block_n}."
        )
        with attempt.watching(kernel, case.inputs), watch() as accesses:
            kernel[(programs,)](
                *(guarded.tensor for guarded in given), output.tensor, count.tensor,
                n, dim, left, right, block_m, block_n,
            )  # fmt: skip
        got = look(
            attempt,
            kernel,
            accesses,
            # A count may be read as well, by whoever adds to it in memory.
            [*given, count._replace(source=count.tensor.clone())],
            output,
            owner=lambda place: (place // (block_m * dim), 0, 0),
            words=_WINDOW_WORDS,
            seen=seen,
        )
        writers = accesses.writers(count.memory)
        behind = count.memory[programs:]
        if bool((behind != behind[-1]).any()) or any(
            program != (place, 0, 0) for place, all_ in enumerate(writers) for program in all_
        ):
            attempt.fail(f"{_COUNT_FOREIGN}\n{seen}", kernel)
        said = count.tensor.cpu().double()
        counted.append(Outcome.of(case, _window_tiles, said))
        for guarded in given[1:]:
            lie = _lie(accesses, guarded, said, (left, right, block_m, block_n))
            lies.extend([f"{lie}\n{seen}"] if lie else [])
        return Outcome.of(case, _window_attention, got)

    attempt.judge_each(kernel, _WINDOW_CASES, outcome, _WINDOW_MISTAKES)
    attempt.judge(kernel, counted, _COUNT_MISTAKES, note="(Counts, program by program.)")
    if lies:
        attempt.fail(lies[0], kernel)


def _lie(accesses: Accesses, given: Guarded, said: Tensor, window: Sequence[int]) -> str | None:
    """What to say of rows that were loaded from tiles that no query of the program needs."""
    length, dim = given.tensor.shape
    first, size = given.tensor.data_ptr(), given.tensor.element_size() * dim
    left, right, block_m, block_n = window
    for (tile, *_), addresses in accesses.loads:
        rows = {(address - first) // size for address in addresses}
        rows = {row for row in rows if 0 <= row < length}
        start, stop = _span(tile, length, left, right, block_m, block_n)
        if any(not start <= row // block_n < stop for row in rows):
            return _COUNT_LIES.format(tile, int(said[tile]), min(rows), max(rows))
    return None
