"""Checks of chapter 6's exercises.

Each check hands a student's function small inputs and holds what comes back against an
oracle in float64 and against what the likely mistakes would answer. Four look further: 6.3
at the mode in which a model comes back, 6.5 at what is projected, 6.7 and 6.8 at who writes
what; and 6.8 counts the keys that are loaded.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
from attn_course.exercises.several import each_of, parts_of, verify_parts
from attn_course.exercises.transformer_cases import (
    _BLOCK_CASES,
    _CACHE_CASES,
    _CAUSAL_CASES,
    _CAUSAL_KERNEL_CASES,
    _LAYER_NORM_CASES,
    _LEAK_CASES,
    _LENS_CASES,
    _NORM_BACKWARD_CASES,
    _NORM_ROWS_CASES,
    _REORDER_CASES,
    _SHIFTED_CASE,
    _SMOOTH_CASES,
    _SMOOTH_LOSS_CASES,
    _STACK_CASES,
    Maps,
    _causal,
    _causal_attention,
    _decode,
    _layer_norm,
    _leaks,
    _lens_allowed,
    _needed,
    _norm_backward,
    _norm_rows,
    _position,
    _post_norm,
    _pre_norm,
    _pre_norm_stack,
    _reorder,
    _smooth,
    _smooth_loss,
)
from attn_course.exercises.transformer_mistakes import (
    _CACHE_MISTAKES,
    _CANCELLED,
    _CAUSAL_KERNEL_MISTAKES,
    _CAUSAL_KERNEL_WORDS,
    _CAUSAL_MISTAKES,
    _DGAIN_MISTAKES,
    _DSHIFT_MISTAKES,
    _DX_MISTAKES,
    _FUTURE_LOADED,
    _LAYER_NORM_MISTAKES,
    _LEAK_MISTAKES,
    _LENS_MISTAKES,
    _MODE_CHANGED,
    _NO_LENS,
    _NORM_ROWS_MISTAKES,
    _NORM_ROWS_WORDS,
    _NOT_GROWN,
    _POST_MISTAKES,
    _PRE_MISTAKES,
    _PROJECTED_AGAIN,
    _REORDER_MISTAKES,
    _SMOOTH_LOSS_MISTAKES,
    _SMOOTH_MISTAKES,
    _STACK_MISTAKES,
)

__all__ = [
    "Maps",
    "check_cache",
    "check_causal_kernel",
    "check_causal_mask",
    "check_label_smoothing",
    "check_layer_norm_kernel",
    "check_leaks",
    "check_norm_backward",
    "check_norms",
]


# 6.1 ---------------------------------------------------------------------------------


@exercise("6.1")
def check_causal_mask(attempt: Attempt, causal_mask: Callable[..., Tensor]) -> None:
    """Check 6.1, who may look at whom.

    Args:
        attempt: Given by the decorator.
        causal_mask: (valid_lens ``[batch]``, length) -> booleans ``[batch, length,
            length]``.
    """

    def outcome(case: Case) -> Outcome:
        result = attempt.call(causal_mask, case.inputs)
        if isinstance(result, Tensor) and result.dtype != torch.bool:
            attempt.fail(
                f"it returned {_short(result.dtype)}; expected booleans. Numbers 0 and 1 are "
                "something else to whoever gets them: PyTorch *adds* such a mask to the scores.",
                causal_mask,
            )
        result = result.double() if isinstance(result, Tensor) else result
        shape = _causal(**case.inputs).shape
        got = attempt.tensor(causal_mask, result, shape, describe(case.inputs))
        return Outcome.of(case, _causal, got)

    note = "(1 stands for True.)"
    attempt.judge_each(causal_mask, _CAUSAL_CASES, outcome, _CAUSAL_MISTAKES, note=note)


# 6.2 ---------------------------------------------------------------------------------


@exercise("6.2")
def check_norms(
    attempt: Attempt,
    layer_norm: Callable[..., Tensor],
    post_norm: Callable[..., Tensor],
    pre_norm: Callable[..., Tensor],
    pre_norm_stack: Callable[..., Tensor],
) -> None:
    """Check 6.2, where the norm stands.

    Args:
        attempt: Given by the decorator.
        layer_norm: (x ``[batch, len, dim]``, eps) -> the same shape.
        post_norm: (x ``[batch, len, dim]``, sublayer, norm) -> the same shape.
        pre_norm: Likewise.
        pre_norm_stack: (x ``[batch, len, dim]``, sublayers, norms, one more of these) -> the
            same shape.
    """
    attempt.verify(layer_norm, _LAYER_NORM_CASES, _layer_norm, _LAYER_NORM_MISTAKES)
    attempt.verify(post_norm, _BLOCK_CASES, _post_norm, _POST_MISTAKES)
    attempt.verify(pre_norm, _BLOCK_CASES, _pre_norm, _PRE_MISTAKES)
    attempt.verify(pre_norm_stack, _STACK_CASES, _pre_norm_stack, _STACK_MISTAKES)


# 6.3 ---------------------------------------------------------------------------------


@exercise("6.3")
def check_leaks(
    attempt: Attempt,
    leaks: Callable[..., int | None],
    self_attention_lens: Callable[..., Tensor],
) -> None:
    """Check 6.3, a test that finds a view of the future, and a repair.

    Args:
        attempt: Given by the decorator.
        leaks: (model, x ``[batch, len, dim]``) -> the first position whose output moves
            with later tokens in evaluation mode, or None.
        self_attention_lens: (batch, new, cached, training) -> integers ``[batch, new]``.
    """

    def outcome(case: Case) -> Outcome:
        model = case.inputs["model"]
        model.train(model.came_training)
        with torch.random.fork_rng(devices=[]):  # dropout, the same at every check
            torch.manual_seed(6)
            result = attempt.call(leaks, case.inputs)
        if model.training != model.came_training:
            modes = (
                ("training", "evaluation") if model.came_training else ("evaluation", "training")
            )
            attempt.fail(_MODE_CHANGED.format(*modes), leaks)
        return Outcome.of(case, _leaks, _position(_found(attempt, leaks, result)))

    note = "(-1 stands for None.)"
    attempt.judge_each(leaks, _LEAK_CASES, outcome, _LEAK_MISTAKES, note=note)

    def lens(case: Case) -> Outcome:
        result = attempt.call(self_attention_lens, case.inputs)
        new = case.inputs["new"]
        if result is None and new > 1:
            attempt.fail(_NO_LENS.format(new), self_attention_lens)
        if result is None:
            attempt.fail(
                "it returned None: lengths for every case, please, of one token too. Or is the "
                "`return` missing?",
                self_attention_lens,
            )
        result = result.double() if isinstance(result, Tensor) else result
        shape = [case.inputs["batch"], new]
        got = attempt.tensor(self_attention_lens, result, shape, describe(case.inputs))
        return Outcome.of(case, _lens_allowed, got)

    attempt.judge_each(self_attention_lens, _LENS_CASES, lens, _LENS_MISTAKES)


def _found(attempt: Attempt, function: object, result: Any) -> int | None:
    """The position that a detector returned."""
    one = isinstance(result, Tensor) and result.numel() == 1
    value: Any = result.item() if one else result
    if value is None:
        return None
    try:
        if not isinstance(value, bool) and operator.index(value) >= 0:
            return operator.index(value)
    except (TypeError, ValueError):  # a float, a table, a word
        pass
    shown = value if isinstance(value, bool | int | float | str) else _a(value)
    attempt.fail(
        f"it returned {shown}; expected the first position that sees its future, counted from 0, "
        "or None.",
        function,
    )


# 6.4 ---------------------------------------------------------------------------------


@exercise("6.4")
def check_label_smoothing(
    attempt: Attempt, smooth_labels: Callable[..., Tensor], smoothed_loss: Callable[..., Tensor]
) -> None:
    """Check 6.4, a target that is not quite sure.

    Args:
        attempt: Given by the decorator.
        smooth_labels: (labels ``[batch, len]``, vocab, smoothing, pad) -> ``[batch, len,
            vocab]``.
        smoothed_loss: (logits ``[batch, len, vocab]``, labels ``[batch, len]``, smoothing,
            pad) -> ``[]``.
    """
    attempt.verify(smooth_labels, _SMOOTH_CASES, _smooth, _SMOOTH_MISTAKES)
    attempt.verify(smoothed_loss, _SMOOTH_LOSS_CASES, _smooth_loss, _SMOOTH_LOSS_MISTAKES)
    attempt.gradient(smoothed_loss, _SMOOTH_LOSS_CASES[0].inputs, "logits")


# 6.5 ---------------------------------------------------------------------------------


@exercise("6.5")
def check_cache(
    attempt: Attempt,
    cached_step: Callable[..., tuple[Tensor, Tensor, Tensor]],
    reorder: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    """Check 6.5, decoding with a memory.

    Args:
        attempt: Given by the decorator.
        cached_step: (x ``[batch, dim]``, keys ``[batch, past, dim]``, values ``[batch, past,
            dim]``, maps) -> the output ``[batch, dim]``, keys and values ``[batch, past + 1,
            dim]``.
        reorder: (keys ``[batch, past, dim]``, values ``[batch, past, dim]``, parents
            ``[beams]``) -> keys and values ``[beams, past, dim]``.
    """
    grown: list[str] = []

    def outcome(case: Case) -> Outcome:
        outputs, failure = _write(attempt, cached_step, case)
        grown.extend(filter(None, [failure]))
        return Outcome.of(case, _decode, outputs)

    attempt.judge_each(cached_step, _CACHE_CASES, outcome, _CACHE_MISTAKES)
    if grown:
        attempt.fail(grown[0], cached_step)

    def beams(case: Case) -> Outcome:
        result = attempt.call(reorder, case.inputs)
        names = ("the keys", "the values")
        parts = parts_of(attempt, reorder, result, names)
        _, _, length, dim = (wanted := _reorder(**case.inputs)).shape
        shape, about = [wanted.shape[1], length, dim], describe(case.inputs)
        # As many beams as before, where there are to be fewer: that is a mistake with a name.
        got = [
            attempt.tensor(reorder, _cut(part, case.inputs[key].shape, shape), shape, about, name)
            for part, key, name in zip(parts, ("keys", "values"), names, strict=True)
        ]
        return Outcome.of(case, _reorder, torch.stack(got))

    attempt.judge_each(reorder, _REORDER_CASES, beams, _REORDER_MISTAKES)


def _cut(part: object, given: torch.Size, shape: list[int]) -> object:
    """The first beams of a cache that came back in its old shape, if there are to be fewer."""
    if isinstance(part, Tensor) and part.shape == given and list(given) != shape:
        return part[: shape[0]] if shape[0] < given[0] else part.expand(shape)
    return part


def _write(
    attempt: Attempt, cached_step: Callable[..., Any], case: Case
) -> tuple[Tensor, str | None]:
    """The outputs of all steps, and what is wrong with the cache that went with them."""
    tokens, parents, maps = case.inputs["tokens"], case.inputs["parents"], case.inputs["maps"]
    names = ("the output", "the keys", "the values")
    steps, batch, dim = tokens.shape
    keys = values = tokens.new_zeros(batch, 0, dim)
    outputs, failure = [], None
    maps.rows.clear()
    for t, kept in enumerate(parents):
        inputs = {"x": tokens[t], "keys": keys, "values": values, "maps": maps}
        parts = parts_of(attempt, cached_step, attempt.call(cached_step, inputs), names)
        about = describe(inputs)
        outputs.append(attempt.tensor(cached_step, parts[0], [batch, dim], about, names[0]))
        for name, part in zip(names[1:], parts[1:], strict=True):
            # How long they are is told last: a cache that does not grow has a message of its own.
            if not isinstance(part, Tensor) or part.ndim != 3 or part.shape[::2] != (batch, dim):
                attempt.tensor(cached_step, part, [batch, t + 1, dim], about, name)
            if part.shape[1] != t + 1:
                failure = failure or _NOT_GROWN.format(name, part.shape[1], t + 1)
        keys, values = (part.detach() for part in parts[1:])
        if kept is not None:
            keys, values = keys[kept], values[kept]
    for name, count in maps.rows.items():
        if count > steps * batch:
            failure = failure or _PROJECTED_AGAIN.format(name, count, steps * batch)
    return torch.stack(outputs), failure


# 6.6 ---------------------------------------------------------------------------------


@exercise("6.6")
def check_norm_backward(
    attempt: Attempt, layer_norm_backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
) -> None:
    """Check 6.6, the gradients of layer normalisation.

    Args:
        attempt: Given by the decorator.
        layer_norm_backward: (x ``[n, d]``, weight ``[d]``, grad ``[n, d]``, eps) -> dL/dx
            ``[n, d]``, dL/dweight ``[d]`` and dL/dbias ``[d]``.
    """
    names = ("dx", "dweight", "dbias")
    known = (_DX_MISTAKES, _DGAIN_MISTAKES, _DSHIFT_MISTAKES)
    oracles = each_of(_norm_backward, 3)
    verify_parts(attempt, layer_norm_backward, _NORM_BACKWARD_CASES, names, oracles, known)


# 6.7 ---------------------------------------------------------------------------------


@exercise("6.7")
def check_layer_norm_kernel(attempt: Attempt, kernel: Any) -> None:
    """Check 6.7, two reductions of a row.

    Args:
        attempt: Given by the decorator.
        kernel: A ``@triton.jit`` function (x_ptr, weight_ptr, bias_ptr, output_ptr, DIM,
            BLOCK, EPS); program i writes the i-th row.
    """
    device = device_for(attempt, kernel)

    def outcome(case: Case) -> Outcome:
        inputs = case.inputs
        given = [guard(inputs[name], device) for name in ("x", "weight", "bias")]
        n, dim = inputs["x"].shape
        output = blank([n, dim], device)
        with attempt.watching(kernel, inputs), watch() as accesses:
            kernel[(n,)](
                *(guarded.tensor for guarded in given),
                output.tensor, dim, inputs["block"], inputs["eps"],
            )  # fmt: skip
        got = look(
            attempt,
            kernel,
            accesses,
            given,
            output,
            owner=lambda place: (place // dim, 0, 0),
            words=_NORM_ROWS_WORDS,
            seen=f"Seen with {n} rows of {dim} features, BLOCK = {inputs['block']}.",
        )
        return Outcome.of(case, _norm_rows, got)

    attempt.judge_each(kernel, _NORM_ROWS_CASES, outcome, _NORM_ROWS_MISTAKES)
    shifted = outcome(_SHIFTED_CASE)
    # The mean itself is rounded here, and with it all differences from it.
    if not torch.allclose(shifted.got, shifted.expected, rtol=0.02, atol=0.02):
        attempt.fail(f"{_CANCELLED}\nSeen with {_SHIFTED_CASE.name}.", kernel)


# 6.8 ---------------------------------------------------------------------------------


@exercise("6.8")
def check_causal_kernel(attempt: Attempt, kernel: Any) -> None:
    """Check 6.8, a loop that stops at the diagonal.

    Args:
        attempt: Given by the decorator.
        kernel: A ``@triton.jit`` function (query_ptr, key_ptr, value_ptr, output_ptr, LENGTH,
            DIM, BLOCK_M, BLOCK_N); program i writes the i-th tile of ``BLOCK_M`` queries.
    """
    device = device_for(attempt, kernel)
    wasted: list[str] = []

    def outcome(case: Case) -> Outcome:
        given = {name: guard(case.inputs[name], device) for name in ("query", "key", "value")}
        (n, dim), block_m = case.inputs["query"].shape, case.inputs["block_m"]
        block_n = case.inputs["block_n"]
        output = blank([n, dim], device)
        seen = f"Seen with {n} tokens of {dim} numbers, BLOCK_M = {block_m}, BLOCK_N = {block_n}."
        with attempt.watching(kernel, case.inputs), watch() as accesses:
            kernel[(-(-n // block_m),)](
                *(guarded.tensor for guarded in given.values()),
                output.tensor, n, dim, block_m, block_n,
            )  # fmt: skip
        got = look(
            attempt,
            kernel,
            accesses,
            list(given.values()),
            output,
            owner=lambda place: (place // (block_m * dim), 0, 0),
            words=_CAUSAL_KERNEL_WORDS,
            seen=seen,
        )
        for name in ("key", "value"):
            waste = _wasted(accesses, given[name], name, block_m, block_n)
            wasted.extend([f"{waste}\n{seen}"] if waste else [])
        return Outcome.of(case, _causal_attention, got)

    attempt.judge_each(kernel, _CAUSAL_KERNEL_CASES, outcome, _CAUSAL_KERNEL_MISTAKES)
    if wasted:
        attempt.fail(wasted[0], kernel)


def _wasted(
    accesses: Accesses, given: Guarded, name: str, block_m: int, block_n: int
) -> str | None:
    """What to say of rows of keys or values that were loaded and that nobody may see."""
    length, dim = given.tensor.shape
    first, size = given.tensor.data_ptr(), given.tensor.element_size() * dim
    late: dict[int, list[int]] = {}  # program -> rows, as often as it loads them
    for (tile, *_), addresses in accesses.loads:
        stop = min(_needed(tile, length, block_m, block_n) * block_n, length)
        rows = {(address - first) // size for address in addresses}
        late.setdefault(tile, []).extend(row for row in rows if stop <= row < length)
    if not any(late.values()):
        return None
    program = min(tile for tile, rows in late.items() if rows)
    what = f"there are {sum(map(len, late.values()))} loads of a {name}"
    last = min((program + 1) * block_m, length) - 1
    return _FUTURE_LOADED.format(what, program, max(late[program]), last)
