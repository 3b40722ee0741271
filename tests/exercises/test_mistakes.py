"""Every chapter's known mistakes: the formulas that make them, tried on the checks' cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attn_course.exercises import Attempt, CheckFailed, Outcome
from tests.exercises.common import PAGES, exact

#: What formulas raise where a case does not suit them.
MISFITS = (RuntimeError, IndexError, ZeroDivisionError)

TABLES = [
    pytest.param(*table, id=f"{page.chapter} {table[1].__name__}")
    for page in PAGES.values()
    for table in page.answers.TABLES
]
EACH_TABLE = pytest.mark.parametrize("cases, oracle, mistakes", TABLES)


@EACH_TABLE
def test_mistakes_do_not_answer_correctly(cases: Any, oracle: Any, mistakes: Any) -> None:
    """Every formula of a known mistake differs from the oracle on some case."""
    for mistake in mistakes:
        for answer in mistake.answers:
            differs = False
            for case in cases:
                inputs = exact(case)
                expected = oracle(**inputs).double()
                assert not expected.isnan().any()
                try:
                    got = answer(**inputs).double()
                except MISFITS:
                    continue
                if got.shape == expected.shape:
                    differs |= not torch.allclose(got, expected, rtol=1e-2, atol=1e-2)
            assert differs, (oracle, mistake.message)


@EACH_TABLE
def test_each_formula_gets_its_message(cases: Any, oracle: Any, mistakes: Any) -> None:
    """Each formula of a known mistake is judged to be that mistake and no other."""
    attempt = Attempt("0.0")
    for mistake in mistakes:
        for answer in mistake.answers:
            outcomes = []
            for case in cases:
                inputs = exact(case)
                expected = oracle(**inputs).double()
                try:
                    got = answer(**inputs).double()
                except IndexError:
                    got = expected  # of what it says nothing of, it is no mistake
                except MISFITS:
                    continue
                if got.shape == expected.shape:
                    outcomes.append(Outcome.of(case, oracle, got))
            with pytest.raises(CheckFailed) as failure:
                attempt.judge(answer, outcomes, mistakes)
            assert mistake.message in str(failure.value)


@pytest.mark.parametrize(
    "cases, oracle, mistakes",
    # Formulas of path lengths speak of one kind of layer each.
    [table for table in TABLES if table.values[1].__name__ != "_path_length"],
)
def test_each_formula_speaks_of_the_first_case(cases: Any, oracle: Any, mistakes: Any) -> None:
    """So that no mistake goes unnamed because a later case stops the answer that makes it."""
    inputs = exact(cases[0])
    for mistake in mistakes:
        for answer in mistake.answers:
            assert answer(**inputs).shape == oracle(**inputs).shape, mistake.message
