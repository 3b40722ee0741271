"""Chapter 2's checks: their cases and what else they see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attn_course.exercises import CheckFailed
from attn_course.exercises import scoring as checks
from tests.exercises.common import PAGES, assert_told_in_numbers, told

PAGE = PAGES["scoring"]
ANSWERS, CHECKS = PAGE.answers, PAGE.checks


def test_messages_do_not_depend_on_what_ran_before() -> None:
    assert_told_in_numbers(CHECKS["2.5"], lambda weights, grad: grad)


def test_oracles_agree_with_pytorch() -> None:
    """They are written term by term; here the library and its automatic gradients answer."""
    for case in checks._ATTEND_CASES[:4]:
        scores, value = (x.double() for x in case.inputs.values())
        eye = torch.eye(scores.shape[2], dtype=torch.float64).expand(len(scores), -1, -1)
        expected = F.scaled_dot_product_attention(scores, eye, value, scale=1.0)
        assert torch.allclose(checks._attend(scores, value), expected)
    for case in checks._SHORT_CASES:
        query, key, width = case.inputs["query"], case.inputs["key"], case.inputs["width"]
        right = (-torch.cdist(query, key).square() / (2 * width**2)).softmax(1)
        assert torch.allclose(checks._short_scores(query, key, width).softmax(1), right, atol=1e-5)
    for case in checks._BACKWARD_CASES[:2]:
        weights, grad = case.inputs["weights"], case.inputs["grad"]
        scores = weights.log().requires_grad_()
        (expected,) = torch.autograd.grad(scores.softmax(1), scores, grad)
        assert torch.allclose(checks._backward(weights, grad), expected)
    for case in checks._ROW_CASES:
        scores, grad, lens, block = case.inputs.values()
        answer = checks._row_backward(scores, grad, lens, block)
        for i, length in enumerate(lens.tolist()):
            row = scores[i, :length].clone().requires_grad_()
            (expected,) = torch.autograd.grad(row.softmax(0), row, grad[i, :length])
            assert torch.allclose(answer[i, :length], expected, atol=1e-6)
            assert not answer[i, length:].any()


def test_the_variance_is_what_sampling_shows() -> None:
    for case in checks._SPREAD_CASES:
        dim, query_std, key_std = case.inputs.values()
        query, key = torch.randn(2, 20_000, dim)
        products = (query_std * query * key_std * key).sum(1)
        expected = checks._variance(dim, query_std, key_std).item()
        assert products.var().item() == pytest.approx(expected, rel=0.1)
        scaled = products * checks._unit_scale(dim, query_std, key_std).item()
        assert scaled.var().item() == pytest.approx(1, rel=0.1)


def test_every_message_about_a_mechanism_is_seeded() -> None:
    fragments = [part for rows in ANSWERS.WRONG.values() for _, _, part in rows]
    for message in checks._TRIAL_MESSAGES.values():
        assert any(part in message for part in fragments), message
    assert set(checks._TRIAL_MESSAGES) == {trial.name for trial in checks._TRIALS}


@pytest.mark.parametrize("trial", checks._TRIALS, ids=lambda trial: trial.name)
def test_mechanisms_are_what_they_are_said_to_be(trial: Any) -> None:
    """A fresh query moves them clearly, or in the last digits only."""
    query, key, value = checks._trial_inputs(trial).values()
    for _ in range(5):
        moved = trial.attend(torch.randn_like(query), key, value) - trial.attend(query, key, value)
        largest = moved.abs().max().item()
        assert largest < 1e-5 if trial.ignores else largest > 0.05


def test_the_masked_softmax_cases_are_hard_enough() -> None:
    """Half precision overflows in an exponential, and no case has two right answers."""
    *full, half = checks._MASKED_CASES
    assert all(case.inputs["scores"].dtype == torch.float32 for case in full)
    assert half.inputs["scores"].dtype == torch.float16
    assert half.inputs["scores"].exp().isinf().any()
    assert any(not case.inputs["allowed"].any(1).all() for case in checks._MASKED_CASES)


def test_a_gradient_of_nan_is_found_where_a_hidden_score_is_large() -> None:
    (answer,) = [f for name, f, _ in ANSWERS.WRONG["2.2"] if name == "chosen after the exponential"]
    with pytest.raises(CheckFailed, match="Seen with hidden scores far above the others"):
        CHECKS["2.2"](answer)


@pytest.mark.triton
def test_what_the_kernel_s_check_sees_without_a_record(
    solved: dict[str, Any], without_record: None
) -> None:
    """As on a GPU: the numbers, and what stands around them."""
    checks.check_softmax_backward_kernel(solved["softmax_backward_kernel"])
    for name, function, fragment in ANSWERS.WRONG["2.7"]:
        if name in ("loads without a mask, right numbers", "a constant stride") or (
            "without other=" in name
        ):
            continue  # they show nothing, or something else
        if name == "padding not written":
            fragment = "padding is never written"
        if name == "the whole tile written":
            fragment = "an output that is not its own"  # behind the last row
        with np.errstate(all="ignore"):
            assert fragment in told(checks.check_softmax_backward_kernel, function), name
