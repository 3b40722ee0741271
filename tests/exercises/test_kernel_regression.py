"""Chapter 1's checks: their cases, their mistakes and what else they see."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from attn_course.exercises import Accesses, CheckFailed
from attn_course.exercises import kernel_regression as checks
from tests.exercises.common import PAGES, assert_formulas_are_wrong

PAGE = PAGES["kernel_regression"]
ANSWERS, CHECKS = PAGE.answers, PAGE.checks


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return PAGE.run_cells(tmp_path_factory.mktemp("solved"), solved=True)


def test_messages_do_not_depend_on_what_ran_before(solved: dict[str, Any]) -> None:
    def message() -> str:
        with pytest.raises(CheckFailed) as failure:
            CHECKS["1.4"](lambda query, key, value, width: query)
        return str(failure.value)

    torch.manual_seed(1)
    first = message()
    torch.randn(5)
    assert message() == first
    assert "does not know" in first and "expected [" in first and "got [" in first


def test_no_boxcar_case_lies_on_the_edge_of_a_window() -> None:
    """So that < and <= both pass."""
    for case in checks._BOXCAR_CASES:
        gap = (case.inputs["query"][:, None] - case.inputs["key"]).abs()
        assert ((gap - case.inputs["width"]).abs() > 1e-3).all(), case.name


def test_mistakes_do_not_answer_correctly() -> None:
    """Every formula of a known mistake differs from the oracle on some case."""
    tables = [
        (checks._BOXCAR_CASES, checks._boxcar, checks._BOXCAR_MISTAKES),
        (checks._WEIGHT_CASES, checks._gaussian, checks._WEIGHT_MISTAKES),
        (checks._LIMIT_CASES, checks._nearest, checks._NARROW_MISTAKES),
        (checks._LIMIT_CASES, checks._everything, checks._WIDE_MISTAKES),
        (checks._HELD_OUT_CASES, checks._held_out, checks._HELD_OUT_MISTAKES),
        (checks._SLOPE_CASES, checks._slope, checks._SLOPE_MISTAKES),
        (checks._SCALED_CASES, checks._scaled, checks._SCALED_MISTAKES),
        (checks._TOP_K_CASES, checks._top_k, checks._TOP_K_MISTAKES),
        (checks._STREAM_CASES, checks._stream, checks._STREAM_MISTAKES),
    ]
    for cases, oracle, mistakes in tables:
        assert_formulas_are_wrong(cases, oracle, mistakes)


@pytest.mark.triton
def test_what_the_kernel_s_check_sees_without_a_record(
    solved: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the numbers, and what stands around them."""
    monkeypatch.setattr(checks, "watch", lambda: contextlib.nullcontext(Accesses()))
    checks.check_streaming_kernel(solved["gaussian_stream_kernel"])
    wrong = {name: (function, part) for name, function, part in ANSWERS.WRONG["1.7"]}
    for name, (function, fragment) in wrong.items():
        if name == "loads without a mask, right numbers":
            continue  # nothing to be seen
        if name == "nothing stored":
            fragment = "the answer is NaN"
        with pytest.raises(CheckFailed) as failure:
            checks.check_streaming_kernel(function)
        assert fragment in str(failure.value)
