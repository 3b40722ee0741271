"""Checks of chapter 5's exercises.

Each check hands a student's function small inputs and holds what comes back against an
oracle in float64 and against what the likely mistakes would answer. Three look further:
5.1 sees what a test asks for, 5.3 what a matrix does to encodings, 5.6 who writes what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attn_course.exercises.framework import (
    Attempt,
    Case,
    Outcome,
    _a,
    describe,
    exercise,
)
from attn_course.exercises.kernels import Guarded, device_for, guard, look
from attn_course.exercises.launches import watch
from attn_course.exercises.positional_cases import (
    _EQUIVARIANCE_CASES,
    _PATH_CASES,
    _ROTARY_CASES,
    _SHIFT_CASES,
    _SINUSOID_CASES,
    _STRIDED_BACKWARD_CASES,
    _STRIDED_CASES,
    _TURN_CASES,
    Mechanism,
    _encodings,
    _is_equivariant,
    _moved,
    _path_length,
    _rotary,
    _rotate_strided,
    _rotate_strided_backward,
    _sinusoids,
    _turn,
)
from attn_course.exercises.positional_mistakes import (
    _APART,
    _NOT_CALLED,
    _OTHER_TOKENS,
    _PATH_MISTAKES,
    _ROTARY_MISTAKES,
    _SAME_ORDER,
    _SHIFT_MISTAKES,
    _SHIFT_NOTE,
    _SINUSOID_MISTAKES,
    _STRIDED_BACKWARD_MISTAKES,
    _STRIDED_MISTAKES,
    _STRIDED_WORDS,
    _TEST_MISTAKES,
    _TURN_MISTAKES,
    _VALUES_STAY,
)

__all__ = [
    "check_equivariance",
    "check_path_length",
    "check_rotary",
    "check_rotary_kernel",
    "check_shift_matrix",
    "check_sinusoids",
]


# 5.1 ---------------------------------------------------------------------------------


@exercise("5.1")
def check_equivariance(attempt: Attempt, is_equivariant: Callable[..., bool]) -> None:
    """Check 5.1, does it see the order?

    Args:
        attempt: Given by the decorator.
        is_equivariant: (attend, x ``[n, d]``) -> bool; ``attend`` maps query, key and
            value, ``[n, d]`` each, to ``[n, d]``.
    """

    def outcome(case: Case) -> Outcome:
        case.inputs["attend"].calls.clear()
        with torch.random.fork_rng(devices=[]):  # so that random orders are the same each time
            torch.manual_seed(5)
            result = attempt.call(is_equivariant, case.inputs)
        return Outcome.of(case, _is_equivariant, _said(attempt, is_equivariant, result))

    outcomes = [outcome(case) for case in _EQUIVARIANCE_CASES]
    for seen in outcomes:
        mechanism = seen.case.inputs["attend"]
        if seen.got != seen.expected and (fault := _fault(mechanism)):
            attempt.fail(f"{fault}\nSeen with {mechanism.name}.", is_equivariant)
    note = "(1 is True, and 0 is False.)"
    attempt.judge(is_equivariant, outcomes, _TEST_MISTAKES, note=note)


def _said(attempt: Attempt, function: object, result: object) -> Tensor:
    """True or False, as 1 or 0."""
    if result is None:
        attempt.fail("it returned None: is the `return` missing?", function)
    one = isinstance(result, Tensor) and result.numel() == 1 and result.dtype == torch.bool
    if not isinstance(result, bool | np.bool_) and not one:
        attempt.fail(
            f"it returned {_a(result)}; expected True or False: one answer for all outputs "
            "together.",
            function,
        )
    return torch.tensor(float(bool(result)), dtype=torch.float64)


def _fault(mechanism: Mechanism) -> str:
    """What was wrong with the calls that a wrong test made, if anything was."""
    if not mechanism.calls:
        return _NOT_CALLED
    for query, key, value in mechanism.calls:
        if _equal(query, key) and not _equal(key, value):
            return _VALUES_STAY
        if not _equal(query, key):
            return _APART
    first, *others = [query for query, _, _ in mechanism.calls]
    if all(_equal(first, other) for other in others):
        return _SAME_ORDER
    if any(_rows(other) != _rows(first) for other in others):
        return _OTHER_TOKENS
    return ""


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.double(), other.double())


def _rows(x: Tensor) -> list[Any]:
    return sorted(x.tolist())


# 5.2 ---------------------------------------------------------------------------------


@exercise("5.2")
def check_sinusoids(attempt: Attempt, sinusoids: Callable[..., Tensor]) -> None:
    """Check 5.2, a table of waves.

    Args:
        attempt: Given by the decorator.
        sinusoids: (length, dim, base) -> ``[length, dim]``.
    """
    attempt.verify(sinusoids, _SINUSOID_CASES, _sinusoids, _SINUSOID_MISTAKES)


# 5.3 ---------------------------------------------------------------------------------


@exercise("5.3")
def check_shift_matrix(attempt: Attempt, shift_matrix: Callable[..., Tensor]) -> None:
    """Check 5.3, moving along by a matrix.

    Args:
        attempt: Given by the decorator.
        shift_matrix: (delta, dim, base) -> M ``[dim, dim]``.
    """

    def outcome(case: Case) -> Outcome:
        dim, base = case.inputs["dim"], case.inputs["base"]
        result = attempt.call(shift_matrix, case.inputs)
        matrix = attempt.tensor(shift_matrix, result, [dim, dim], describe(case.inputs))
        return Outcome.of(case, _moved, _encodings(dim, base) @ matrix.T)

    attempt.judge_each(shift_matrix, _SHIFT_CASES, outcome, _SHIFT_MISTAKES, note=_SHIFT_NOTE)


# 5.4 ---------------------------------------------------------------------------------


@exercise("5.4")
def check_rotary(
    attempt: Attempt, turn: Callable[..., Tensor], rotary_attention: Callable[..., Tensor]
) -> None:
    """Check 5.4, rotary attention.

    Args:
        attempt: Given by the decorator.
        turn: (x ``[n, d]``, base) -> ``[n, d]``.
        rotary_attention: (query ``[n, d]``, key ``[m, d]``, value ``[m, v]``, base) ->
            ``[n, v]``.
    """
    attempt.verify(turn, _TURN_CASES, _turn, _TURN_MISTAKES)
    attempt.gradient(turn, _TURN_CASES[0].inputs, "x")
    attempt.verify(rotary_attention, _ROTARY_CASES, _rotary, _ROTARY_MISTAKES)


# 5.5 ---------------------------------------------------------------------------------


@exercise("5.5")
def check_path_length(attempt: Attempt, path_length: Callable[..., int]) -> None:
    """Check 5.5, how far the first word is from the last.

    Args:
        attempt: Given by the decorator.
        path_length: (kind, n, k) -> a number of moves.
    """

    def outcome(case: Case) -> Outcome:
        result = attempt.call(path_length, case.inputs)
        if isinstance(result, Tensor):  # whole numbers are welcome
            result = result.double()
        got = attempt.tensor(path_length, result, [], describe(case.inputs))
        return Outcome.of(case, _path_length, got)

    attempt.judge_each(path_length, _PATH_CASES, outcome, _PATH_MISTAKES, rtol=1e-6)


# 5.6 ---------------------------------------------------------------------------------


def _tile_owner(n: int, dim: int, block: int) -> Callable[[int], tuple[int, int, int]]:
    return lambda place: (place // dim % n // block, place // (n * dim), 0)


@exercise("5.6")
def check_rotary_kernel(attempt: Attempt, kernel: Any, backward: Any) -> None:
    """Check 5.6, a rotation in strides.

    Args:
        attempt: Given by the decorator.
        kernel: A ``@triton.jit`` function (x_ptr, output_ptr, stride_h, stride_m,
            stride_d, LEN, HALF, BLOCK, BLOCK_P); program (t, h) writes BLOCK rows of head
            h, from row t BLOCK on.
        backward: Likewise, of the gradient.
    """
    for function, cases, oracle, mistakes in (
        (kernel, _STRIDED_CASES, _rotate_strided, _STRIDED_MISTAKES),
        (backward, _STRIDED_BACKWARD_CASES, _rotate_strided_backward, _STRIDED_BACKWARD_MISTAKES),
    ):
        device = device_for(attempt, function)

        def outcome(
            case: Case,
            function: Any = function,
            oracle: Callable[..., Tensor] = oracle,
            device: str = device,
        ) -> Outcome:
            return _launched(attempt, function, case, oracle, device)

        attempt.judge_each(function, cases, outcome, mistakes)


def _roomy(tensor: Tensor, room: int, device: str) -> Guarded:
    """Guarded by so many numbers: wrong strides lead far behind the end, and not elsewhere."""
    wide = guard(torch.cat([tensor.flatten(), tensor.new_full((room,), torch.nan)]), device)
    return Guarded(wide.memory[: tensor.numel()].view(tensor.shape), wide.memory, tensor)


def _launched(
    attempt: Attempt, kernel: Any, case: Case, oracle: Callable[..., Tensor], device: str
) -> Outcome:
    """What a kernel makes of heads that lie in memory as the case says."""
    shape, strides, block = (case.inputs[name] for name in ("shape", "strides", "block"))
    (heads, n, dim), half = shape, shape[2] // 2
    memory = case.inputs["memory"]
    room = memory.numel() + heads * n * dim
    given = _roomy(memory, room, device)
    output = _roomy(torch.full(shape, torch.nan), room, device)
    x = given.tensor.as_strided(shape, strides)
    lanes = 1 << (half - 1).bit_length()  # the power of two from `half` on
    with attempt.watching(kernel, case.inputs), watch() as accesses:
        kernel[(-(-n // block), heads)](x, output.tensor, *strides, n, half, block, lanes)
    seen = f"Seen with {case.name}: shape {list(shape)}, strides {list(strides)}, BLOCK = {block}."
    got = look(
        attempt,
        kernel,
        accesses,
        [given],
        output,
        owner=_tile_owner(n, dim, block),
        words=_STRIDED_WORDS,
        seen=seen,
    )
    return Outcome.of(case, oracle, got)
