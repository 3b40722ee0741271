"""Checks of chapter 4's exercises.

Each check hands a student's function small inputs and holds what comes back against an
oracle in float64 and against what the likely mistakes would answer. Two look further: 4.6
at the names that come back, 4.7 at who writes what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from attn_course.exercises.framework import (
    Attempt,
    Case,
    Outcome,
    _a,
    describe,
    exercise,
)
from attn_course.exercises.kernels import Words, blank, device_for, guard, look
from attn_course.exercises.launches import watch
from attn_course.exercises.multi_head_cases import (
    _COUNT_CASES,
    _FETCH_CASES,
    _FLASH_CASES,
    _FLOOR_CASES,
    _MASK_CASES,
    _MERGE_CASES,
    _PRUNE_CASES,
    _SPLIT_CASES,
    _STATE_CASES,
    _TILE_CASES,
    _count,
    _fetch_error,
    _flash,
    _floor,
    _from_torch,
    _mask_of,
    _merge,
    _one_row,
    _padded_width,
    _prune,
    _scores,
    _split,
    _unpacked,
)
from attn_course.exercises.multi_head_mistakes import (
    _ADDITIVE,
    _ALL_THREE,
    _BIAS_LOST,
    _COUNT_MISTAKES,
    _FETCH_MISTAKES,
    _FLASH_MISTAKES,
    _FLASH_WORDS,
    _FLOOR_MISTAKES,
    _MASK_MISTAKES,
    _MERGE_MISTAKES,
    _PRUNE_MISTAKES,
    _SPLIT_MISTAKES,
    _STATE_MISTAKES,
    _SWAPPED,
    _TILE_MISTAKES,
    _TILE_WORDS,
)

__all__ = [
    "check_count",
    "check_floor",
    "check_heads",
    "check_kernels",
    "check_load",
    "check_masks",
    "check_prune",
]


# 4.1 ---------------------------------------------------------------------------------


@exercise("4.1")
def check_heads(
    attempt: Attempt, split: Callable[..., Tensor], merge: Callable[..., Tensor]
) -> None:
    """Check 4.1, splitting and merging heads.

    Args:
        attempt: Given by the decorator.
        split: (x ``[batch, len, width]``, num_heads) -> ``[batch, num_heads, len,
            head_dim]``.
        merge: (heads ``[batch, num_heads, len, head_dim]``) -> ``[batch, len, width]``.
    """

    def outcome(case: Case) -> Outcome:
        batch, heads, length, width = (shape := _split(**case.inputs).shape)
        result = attempt.call(split, case.inputs)
        if isinstance(result, Tensor) and result.shape == (batch, length, heads, width) != shape:
            attempt.fail(f"{_SWAPPED}\nSeen with {describe(case.inputs)}.", split)
        return Outcome.of(case, _split, attempt.tensor(split, result, shape, describe(case.inputs)))

    attempt.judge_each(split, _SPLIT_CASES, outcome, _SPLIT_MISTAKES)
    attempt.verify(merge, _MERGE_CASES, _merge, _MERGE_MISTAKES)


# 4.2 ---------------------------------------------------------------------------------


@exercise("4.2")
def check_masks(attempt: Attempt, mask_per_head: Callable[..., Tensor]) -> None:
    """Check 4.2, a mask for heads that were moved into the batch.

    Args:
        attempt: Given by the decorator.
        mask_per_head: (valid_lens ``[batch]``, num_heads, query_len, key_len) -> booleans
            ``[batch * num_heads, query_len, key_len]``.
    """

    def outcome(case: Case) -> Outcome:
        result = attempt.call(mask_per_head, case.inputs)
        if isinstance(result, Tensor):  # 0 and 1 are as good as booleans
            result = result.double()
            if bool((result < 0).any()):
                attempt.fail(f"{_ADDITIVE}\nSeen with {describe(case.inputs)}.", mask_per_head)
        shape = _mask_of(**case.inputs).shape
        got = attempt.tensor(mask_per_head, result, shape, describe(case.inputs))
        return Outcome.of(case, _mask_of, got)

    note = "(1 stands for True.)"
    attempt.judge_each(mask_per_head, _MASK_CASES, outcome, _MASK_MISTAKES, note=note)


# 4.3 ---------------------------------------------------------------------------------


@exercise("4.3")
def check_count(attempt: Attempt, count_parameters: Callable[..., int]) -> None:
    """Check 4.3, how many parameters a layer has.

    Args:
        attempt: Given by the decorator.
        count_parameters: (embed_dim, num_heads, num_kv_heads, query_dim, key_dim,
            value_dim, bias) -> a number.
    """

    def outcome(case: Case) -> Outcome:
        result = attempt.call(count_parameters, case.inputs)
        if isinstance(result, Tensor):  # whole numbers are welcome
            result = result.double()
        got = attempt.tensor(count_parameters, result, [], describe(case.inputs))
        return Outcome.of(case, _count, got)

    attempt.judge_each(count_parameters, _COUNT_CASES, outcome, _COUNT_MISTAKES, rtol=0, atol=0.1)


# 4.4 ---------------------------------------------------------------------------------


@exercise("4.4")
def check_floor(
    attempt: Attempt, fetch_error: Callable[..., Tensor], floor: Callable[..., float]
) -> None:
    """Check 4.4, what one head cannot do.

    Args:
        attempt: Given by the decorator.
        fetch_error: (weights ``[m]``, asked ``[facts]``, variance) -> a number.
        floor: (facts, variance) -> a number.
    """
    attempt.verify(fetch_error, _FETCH_CASES, _fetch_error, _FETCH_MISTAKES)
    attempt.verify(floor, _FLOOR_CASES, _floor, _FLOOR_MISTAKES)


# 4.5 ---------------------------------------------------------------------------------


@exercise("4.5")
def check_prune(attempt: Attempt, pruned: Callable[..., Tensor]) -> None:
    """Check 4.5, heads that say nothing.

    Args:
        attempt: Given by the decorator.
        pruned: (x ``[batch, len, width]``, W_q, W_k, W_v, W_o, all ``[width, width]``,
            num_heads, off) -> ``[batch, len, width]``.
    """
    attempt.verify(pruned, _PRUNE_CASES, _prune, _PRUNE_MISTAKES)


# 4.6 ---------------------------------------------------------------------------------


@exercise("4.6")
def check_load(
    attempt: Attempt, from_torch: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Check 4.6, PyTorch's weights under other names.

    Args:
        attempt: Given by the decorator.
        from_torch: (the state of an ``nn.MultiheadAttention``) -> tensors by name:
            ``W_q.weight``, and so on for k, v and o, and ``.bias`` where there are any.
    """

    def outcome(case: Case) -> Outcome:
        state, right = case.inputs["state"], _from_torch(case.inputs["state"])
        result = attempt.call(from_torch, case.inputs)
        if result is None:
            attempt.fail("it returned None: is the `return` missing?", from_torch)
        if not isinstance(result, dict):
            attempt.fail(f"it returned {_a(result)}; expected a dict of tensors.", from_torch)
        missing = [name for name in right if name not in result]
        if missing and all(name.endswith("bias") for name in missing):
            attempt.fail(_BIAS_LOST.format(", ".join(missing)), from_torch)
        if missing or len(result) > len(right):
            attempt.fail(
                f"it has the names {', '.join(map(str, result)) or 'of nothing'}; for {state} "
                f"expected {', '.join(right)}.",
                from_torch,
            )
        for name, part in right.items():
            whole = 3 * len(part)
            if isinstance(result[name], Tensor) and result[name].shape[:1] == (whole,):
                attempt.fail(_ALL_THREE.format(name, whole), from_torch)
        got = {
            name: attempt.tensor(from_torch, result[name], part.shape, describe(case.inputs), name)
            for name, part in right.items()
        }
        return Outcome.of(case, _unpacked, _one_row(got))

    note = "(All numbers one after another, by name: W_k.bias, W_k.weight, and so on.)"
    attempt.judge_each(
        from_torch, _STATE_CASES, outcome, _STATE_MISTAKES, rtol=0, atol=1e-6, note=note
    )


# 4.7 ---------------------------------------------------------------------------------


@exercise("4.7")
def check_kernels(attempt: Attempt, score_kernel: Any, flash_kernel: Any) -> None:
    """Check 4.7, a tile of scores and the running maximum.

    Args:
        attempt: Given by the decorator.
        score_kernel: A ``@triton.jit`` function (query_ptr, key_ptr, scores_ptr, scale,
            QUERY_LEN, KEY_LEN, DIM, BLOCK, BLOCK_D); program (r, c) writes a tile.
        flash_kernel: Likewise (query_ptr, key_ptr, value_ptr, output_ptr, and the same
            from scale on); program r writes the outputs of a tile of queries.
    """
    device = device_for(attempt, score_kernel)
    device_for(attempt, flash_kernel)

    def outcome_of(
        kernel: Any, oracle: Callable[..., Tensor], two: bool, words: Words
    ) -> Callable[[Case], Outcome]:
        """Launch a kernel on a case; with ``two`` axes of programs, one a tile of keys."""

        def outcome(case: Case) -> Outcome:
            inputs = case.inputs
            names = [name for name, value in inputs.items() if isinstance(value, Tensor)]
            given = [guard(inputs[name], device) for name in names]
            (n, dim), m, block = inputs["query"].shape, len(inputs["key"]), inputs["block"]
            output = blank([n, m if two else dim], device)
            tiles = [-(-length // block) for length in ((n, m) if two else (n,))]
            pointers = (*(guarded.tensor for guarded in given), output.tensor)
            sizes = (inputs["scale"], n, m, dim, block, _padded_width(dim))
            with attempt.watching(kernel, inputs), watch() as accesses:
                kernel[tuple(tiles)](*pointers, *sizes)
            columns = output.tensor.shape[1]

            def owner(place: int) -> tuple[int, int, int]:
                row, column = divmod(place, columns)
                return row // block, column // block if two else 0, 0

            got = look(
                attempt,
                kernel,
                accesses,
                given,
                output,
                owner=owner,
                words=words,
                seen=f"Seen with {n} queries and {m} keys of {dim} numbers, BLOCK = {block}, "
                f"BLOCK_D = {_padded_width(dim)}.",
            )
            return Outcome.of(case, oracle, got)

        return outcome

    attempt.judge_each(
        score_kernel,
        _TILE_CASES,
        outcome_of(score_kernel, _scores, True, _TILE_WORDS),
        _TILE_MISTAKES,
    )
    attempt.judge_each(
        flash_kernel,
        _FLASH_CASES,
        outcome_of(flash_kernel, _flash, False, _FLASH_WORDS),
        _FLASH_MISTAKES,
    )
