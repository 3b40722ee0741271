"""Checks of chapter 2's exercises.

Each check hands a student's function small inputs and holds what comes back against an
oracle in float64 and against what the likely mistakes would answer. Three look further:
2.2 at the gradient, 2.6 at what a perturbation test perturbs, 2.7 at who writes what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attn_course.exercises.framework import Attempt, Case, Outcome, _a, _short, exercise
from attn_course.exercises.kernels import blank, device_for, guard, look
from attn_course.exercises.launches import watch
from attn_course.exercises.scoring_cases import (
    _ACTIVATED_CASES,
    _ATTEND_CASES,
    _BACKWARD_CASES,
    _COST_CASES,
    _MASKED_CASES,
    _ROW_CASES,
    _SHORT_CASES,
    _SPREAD_CASES,
    _TRIALS,
    _activated,
    _attend,
    _backward,
    _cost,
    _masked,
    _row_backward,
    _short_scores,
    _Trial,
    _trial_inputs,
    _unit_scale,
    _variance,
)
from attn_course.exercises.scoring_mistakes import (
    _ACTIVATED_MISTAKES,
    _ATTEND_MISTAKES,
    _BACKWARD_MISTAKES,
    _COST_MISTAKES,
    _MASKED_MISTAKES,
    _ROW_MISTAKES,
    _ROW_WORDS,
    _SCALE_MISTAKES,
    _SHORT_MISTAKES,
    _TRIAL_MESSAGES,
    _VARIANCE_MISTAKES,
)

__all__ = [
    "check_attend",
    "check_linear_score",
    "check_masked_softmax",
    "check_short_scores",
    "check_softmax_backward",
    "check_softmax_backward_kernel",
    "check_spread",
]


# 2.1 ---------------------------------------------------------------------------------


@exercise("2.1")
def check_attend(attempt: Attempt, attend: Callable[..., Tensor]) -> None:
    """Check 2.1, which axis.

    Args:
        attempt: Given by the decorator.
        attend: (scores ``[batch, n, m]``, value ``[batch, m, v]``) -> ``[batch, n, v]``.
    """
    attempt.verify(attend, _ATTEND_CASES, _attend, _ATTEND_MISTAKES)


# 2.2 ---------------------------------------------------------------------------------


@exercise("2.2")
def check_masked_softmax(attempt: Attempt, softmax_allowed: Callable[..., Tensor]) -> None:
    """Check 2.2, keys that must not count.

    Args:
        attempt: Given by the decorator.
        softmax_allowed: (scores ``[n, m]``, allowed ``[n, m]`` boolean) -> ``[n, m]`` in
            the precision of the scores.
    """
    # A number in half precision is right to three digits, and so are sums of few of them. What
    # it makes of a mistake no formula knows: it comes last, and is judged by itself.
    for cases in (_MASKED_CASES[:-1], _MASKED_CASES[-1:]):
        attempt.verify(softmax_allowed, cases, _masked, _MASKED_MISTAKES, rtol=4e-3, atol=1e-3)
    for case in _MASKED_CASES:
        given = case.inputs["scores"].dtype
        got = attempt.call(softmax_allowed, case.inputs).dtype
        if got != given:
            attempt.fail(
                f"the scores came in {_short(given)}, and the weights are {_short(got)}. Whoever "
                "calls you wants back the precision that they gave: where did it change?",
                softmax_allowed,
            )
    for case in _MASKED_CASES:
        _judge_gradient(attempt, softmax_allowed, case)


def _judge_gradient(attempt: Attempt, function: Callable[..., Tensor], case: Case) -> None:
    """Fail if right weights have no gradient, or NaN: autograd saw what was chosen away."""
    if bool(attempt.gradient(function, case.inputs, "scores").isnan().any()):
        attempt.fail(
            "the weights are right, and their gradient is NaN. Something infinite or NaN was "
            "computed on the way and chosen away afterwards; but the gradient passes through "
            "what was not chosen too, and 0 times infinity is NaN. What could be replaced "
            "*before* it is computed with?\n"
            f"Seen with {case.name}, where `weights.square().sum()` was differentiated by the "
            "scores.",
            function,
        )


# 2.3 ---------------------------------------------------------------------------------


@exercise("2.3")
def check_short_scores(
    attempt: Attempt, short_scores: Callable[..., Tensor], cost_of_dropping: Callable[..., Tensor]
) -> None:
    """Check 2.3, from distance to dot product.

    Args:
        attempt: Given by the decorator.
        short_scores: (query ``[n, d]``, key ``[m, d]``, width) -> ``[n, m]``.
        cost_of_dropping: Likewise -> ``[]``.
    """
    attempt.verify(short_scores, _SHORT_CASES, _short_scores, _SHORT_MISTAKES)
    attempt.verify(cost_of_dropping, _COST_CASES, _cost, _COST_MISTAKES)


# 2.4 ---------------------------------------------------------------------------------


@exercise("2.4")
def check_spread(
    attempt: Attempt, score_variance: Callable[..., float], unit_scale: Callable[..., float]
) -> None:
    """Check 2.4, how large a dot product is.

    Args:
        attempt: Given by the decorator.
        score_variance: (dim, query_std, key_std) -> a number.
        unit_scale: Likewise.
    """
    attempt.verify(score_variance, _SPREAD_CASES, _variance, _VARIANCE_MISTAKES)
    attempt.verify(unit_scale, _SPREAD_CASES, _unit_scale, _SCALE_MISTAKES)


# 2.5 ---------------------------------------------------------------------------------


@exercise("2.5")
def check_softmax_backward(attempt: Attempt, softmax_backward: Callable[..., Tensor]) -> None:
    """Check 2.5, backwards through a softmax.

    Args:
        attempt: Given by the decorator.
        softmax_backward: (weights ``[n, m]``, grad ``[n, m]``) -> ``[n, m]``.
    """
    attempt.verify(softmax_backward, _BACKWARD_CASES, _backward, _BACKWARD_MISTAKES)


# 2.6 ---------------------------------------------------------------------------------


@exercise("2.6")
def check_linear_score(
    attempt: Attempt,
    activated_scores: Callable[..., Tensor],
    ignores_query: Callable[..., bool],
) -> None:
    """Check 2.6, the query that cancels.

    Args:
        attempt: Given by the decorator.
        activated_scores: (query ``[n, hidden]``, key ``[m, hidden]``, weight ``[hidden]``,
            activation) -> ``[n, m]``.
        ignores_query: (attend, query ``[n, d]``, key ``[m, d]``, value ``[m, v]``) -> bool.
    """
    attempt.verify(activated_scores, _ACTIVATED_CASES, _activated, _ACTIVATED_MISTAKES)
    answers = [_try(attempt, ignores_query, trial) for trial in _TRIALS]
    rights = [trial.ignores for trial in _TRIALS]
    wrong = [
        trial for trial, answer in zip(_TRIALS, answers, strict=True) if answer != trial.ignores
    ]
    if not wrong:
        return
    if len(wrong) == len(_TRIALS):
        message = "the other way round: True means that the query makes *no* difference."
    elif all(answers) or not any(answers):
        message = (
            f"it says {answers[0]} of every mechanism, and {rights.count(not answers[0])} of "
            f"{len(rights)} are otherwise. What does it compare, and how large is the change?"
        )
    else:
        message = _TRIAL_MESSAGES[wrong[0].name]
    name, ignores = wrong[0].name, wrong[0].ignores
    attempt.fail(f"{message}\nSeen with {name}: expected {ignores}.", ignores_query)


def _try(attempt: Attempt, function: Callable[..., bool], trial: _Trial) -> bool:
    """What a perturbation test says of a mechanism; fail if it is no such test."""
    inputs = _trial_inputs(trial)
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        calls.append((query.detach().clone(), key.detach().clone(), value.detach().clone()))
        return trial.attend(query, key, value)

    result = attempt.call(function, {"attend": attend} | inputs)
    seen = f"Seen with {trial.name}."
    if result is None:
        attempt.fail("it returned None: is the `return` missing?", function)
    one = isinstance(result, Tensor) and result.numel() == 1
    if not isinstance(result, bool | np.bool_) and not one:
        attempt.fail(
            f"it returned {_a(result)}; expected True or False: one answer for all outputs "
            "together.",
            function,
        )
    if not calls:
        attempt.fail(
            f"`attend` is never called. Without asking it, what can you know of it?\n{seen}",
            function,
        )
    for place, name in ((1, "keys"), (2, "values")):
        if any(not _equal(call[place], calls[0][place]) for call in calls):
            attempt.fail(
                f"the {name} change from call to call, and outputs move with them whatever "
                f"the query does. What must stay as it was?\n{seen}",
                function,
            )
    if len(calls) > 1 and all(_equal(call[0], calls[0][0]) for call in calls):
        attempt.fail(
            "every call of `attend` gets the same query. What will the outputs show? (With one "
            f"query, changing places changes nothing.)\n{seen}",
            function,
        )
    return bool(result)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


# 2.7 ---------------------------------------------------------------------------------


def _row_owner(m: int) -> Callable[[int], tuple[int, int, int]]:
    return lambda place: (place // m, 0, 0)


@exercise("2.7")
def check_softmax_backward_kernel(attempt: Attempt, kernel: Any) -> None:
    """Check 2.7, a row in registers, backwards.

    Args:
        attempt: Given by the decorator.
        kernel: A ``@triton.jit`` function (scores_ptr, grad_ptr, valid_lens_ptr,
            output_ptr, KEY_LEN, BLOCK); program i writes the i-th row.
    """
    device = device_for(attempt, kernel)

    def outcome(case: Case) -> Outcome:
        inputs = case.inputs
        given = [guard(inputs[name], device) for name in ("scores", "grad", "valid_lens")]
        n, m = inputs["scores"].shape
        output = blank([n, m], device)
        with attempt.watching(kernel, inputs), watch() as accesses:
            kernel[(n,)](*(guarded.tensor for guarded in given), output.tensor, m, inputs["block"])
        got = look(
            attempt,
            kernel,
            accesses,
            given,
            output,
            owner=_row_owner(m),
            words=_ROW_WORDS,
            seen=f"Seen with {n} rows of {m} keys, valid_lens = {inputs['valid_lens'].tolist()}, "
            f"BLOCK = {inputs['block']}.",
        )
        return Outcome.of(case, _row_backward, got)

    attempt.judge_each(kernel, _ROW_CASES, outcome, _ROW_MISTAKES)
