"""Chapter 1's checks: their cases and what else they see."""

from __future__ import annotations

from typing import Any

import pytest

from attn_course.exercises import kernel_regression as checks
from tests.exercises.common import PAGES, assert_told_in_numbers, told

PAGE = PAGES["kernel_regression"]
ANSWERS, CHECKS = PAGE.answers, PAGE.checks


def test_messages_do_not_depend_on_what_ran_before() -> None:
    assert_told_in_numbers(CHECKS["1.4"], lambda query, key, value, width: query)


def test_no_boxcar_case_lies_on_the_edge_of_a_window() -> None:
    """So that < and <= both pass."""
    for case in checks._BOXCAR_CASES:
        gap = (case.inputs["query"][:, None] - case.inputs["key"]).abs()
        assert ((gap - case.inputs["width"]).abs() > 1e-3).all(), case.name


@pytest.mark.triton
def test_what_the_kernel_s_check_sees_without_a_record(
    solved: dict[str, Any], without_record: None
) -> None:
    """As on a GPU: the numbers, and what stands around them."""
    checks.check_streaming_kernel(solved["gaussian_stream_kernel"])
    wrong = {name: (function, part) for name, function, part in ANSWERS.WRONG["1.7"]}
    for name, (function, fragment) in wrong.items():
        if name == "loads without a mask, right numbers":
            continue  # nothing to be seen
        if name == "nothing stored":
            fragment = "the answer is NaN"
        assert fragment in told(checks.check_streaming_kernel, function)
