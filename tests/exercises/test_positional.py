"""Chapter 5's checks: their cases, their mistakes, their oracles and what else they see."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch

from attn_course.dot_product import dot_product_attention
from attn_course.exercises import Accesses, CheckFailed
from attn_course.exercises import positional as checks
from attn_course.exercises import positional_cases as cases
from attn_course.exercises import positional_mistakes as mistakes
from attn_course.exercises.framework import _exact
from attn_course.positional import rotate, rotation_matrix, sinusoid
from tests.exercises.common import PAGES, assert_formulas_are_wrong

PAGE = PAGES["positional"]
ANSWERS, CHECKS = PAGE.answers, PAGE.checks


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return PAGE.run_cells(tmp_path_factory.mktemp("solved"), solved=True)


TABLES = [
    # The last two are for what no other explains.
    (cases._EQUIVARIANCE_CASES, cases._is_equivariant, mistakes._TEST_MISTAKES[:-2]),
    (cases._SINUSOID_CASES, cases._sinusoids, mistakes._SINUSOID_MISTAKES),
    (cases._SHIFT_CASES, cases._moved, mistakes._SHIFT_MISTAKES),
    (cases._TURN_CASES, cases._turn, mistakes._TURN_MISTAKES),
    (cases._ROTARY_CASES, cases._rotary, mistakes._ROTARY_MISTAKES),
    (cases._PATH_CASES, cases._path_length, mistakes._PATH_MISTAKES),
    (cases._STRIDED_CASES, cases._rotate_strided, mistakes._STRIDED_MISTAKES),
    (
        cases._STRIDED_BACKWARD_CASES,
        cases._rotate_strided_backward,
        mistakes._STRIDED_BACKWARD_MISTAKES,
    ),
]


@pytest.mark.parametrize("table, oracle, known", TABLES)
def test_mistakes_do_not_answer_correctly(table: Any, oracle: Any, known: Any) -> None:
    assert_formulas_are_wrong(table, oracle, known)


@pytest.mark.parametrize("table, oracle, known", TABLES)
def test_each_formula_of_a_mistake_gets_its_message(table: Any, oracle: Any, known: Any) -> None:
    """One that does not say what is made of all cases answers the others rightly."""
    attempt = checks.Attempt("5.0")
    for mistake in known:
        for answer in mistake.answers:
            outcomes = []
            for case in table:
                inputs = {name: _exact(value) for name, value in case.inputs.items()}
                expected = oracle(**inputs).double()
                try:
                    got = answer(**inputs).double()
                except (RuntimeError, IndexError):
                    got = expected
                if got.shape == expected.shape:
                    outcomes.append(checks.Outcome.of(case, oracle, got))
            with pytest.raises(CheckFailed) as failure:
                attempt.judge(answer, outcomes, known)
            assert mistake.message in str(failure.value), str(failure.value)


# 5.1 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases._EQUIVARIANCE_CASES, ids=lambda c: c.inputs["attend"].name)
def test_mechanisms_are_what_they_are_said_to_be(case: Any) -> None:
    """By a dozen permutations; where order matters, outputs move by more than any tolerance."""
    attend, x = case.inputs["attend"].attend, case.inputs["x"]
    before, largest = attend(x, x, x), 0.0
    for _ in range(12):
        order = torch.randperm(len(x))
        moved = attend(x[order], x[order], x[order]) - before[order]
        largest = max(largest, moved.abs().max().item())
    assert largest < 1e-5 if case.inputs["attend"].equivariant else largest > 0.05


def test_hardly_a_random_order_misleads_a_right_test() -> None:
    """Right tests bring seeds of their own."""
    for seed in range(300):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        for case in cases._EQUIVARIANCE_CASES:
            expected = cases._is_equivariant(**case.inputs)
            assert mistakes._with_order(order.tolist())(**case.inputs) == expected, seed


def test_the_order_of_the_mistakes_has_no_symmetry() -> None:
    order = mistakes._ORDER
    assert not (order == torch.arange(10)).any()
    assert not (order[order] == torch.arange(10)).any()
    for case in cases._EQUIVARIANCE_CASES:
        says = mistakes._with_order(order.tolist())(**case.inputs)
        assert says == cases._is_equivariant(**case.inputs)


def test_random_orders_get_the_same_message_each_time(solved: dict[str, Any]) -> None:
    state = torch.get_rng_state()
    messages = set()
    (function,) = [f for name, f, _ in ANSWERS.WRONG["5.1"] if name == "two different orders"]
    for _ in range(3):
        with pytest.raises(CheckFailed) as failure:
            CHECKS["5.1"](function)
        messages.add(str(failure.value))
    CHECKS["5.1"](solved["is_equivariant"])
    assert len(messages) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_mechanism_forgets_earlier_attempts(solved: dict[str, Any]) -> None:
    for name in ("values unpermuted", "never asked"):
        (row,) = [row for row in ANSWERS.WRONG["5.1"] if row[0] == name]
        with pytest.raises(CheckFailed) as failure:
            CHECKS["5.1"](row[1])
        assert row[2] in str(failure.value)


# Oracles -----------------------------------------------------------------------------


def test_sinusoids_are_the_package_s() -> None:
    for case in cases._SINUSOID_CASES:
        length, dim, base = case.inputs.values()
        theirs = sinusoid(length, dim, base=base, dtype=torch.float64)
        torch.testing.assert_close(cases._sinusoids(length, dim, base), theirs)


def test_the_shift_is_the_package_s() -> None:
    for case in cases._SHIFT_CASES:
        delta, dim, base = case.inputs.values()
        matrix = rotation_matrix(delta, dim, base=base, dtype=torch.float64)
        theirs = cases._encodings(dim, base) @ matrix.T
        torch.testing.assert_close(cases._moved(delta, dim, base), theirs)


def test_the_positions_leave_one_matrix() -> None:
    """Eight encodings span the space, so that no second matrix moves them all."""
    for case in cases._SHIFT_CASES:
        _, dim, base = case.inputs.values()
        assert torch.linalg.matrix_rank(cases._encodings(dim, base)) == dim


def test_turning_is_the_package_s() -> None:
    for case in cases._TURN_CASES:
        x, base = case.inputs["x"].double(), case.inputs["base"]
        torch.testing.assert_close(cases._turn(x, base), rotate(x, base=base))


def test_rotary_attention_is_the_package_s() -> None:
    for case in cases._ROTARY_CASES:
        given = {name: _exact(value) for name, value in case.inputs.items()}
        base = given["base"]
        q, k = (rotate(given[name], base=base, offset=5)[None] for name in ("query", "key"))
        theirs = dot_product_attention(q, k, given["value"][None], impl="reference")[0]
        torch.testing.assert_close(cases._rotary(**given), theirs)


def test_strided_rotations_are_the_package_s() -> None:
    for case in (*cases._STRIDED_CASES, *cases._STRIDED_BACKWARD_CASES):
        inputs = {name: _exact(value) for name, value in case.inputs.items()}
        x = cases._heads(inputs["memory"], inputs["shape"], inputs["strides"])
        assert not x.isnan().any()
        theirs = rotate(x, pairs="halves")
        torch.testing.assert_close(cases._rotate_strided(**inputs), theirs)
        leaf = torch.zeros_like(x).requires_grad_()
        (gradient,) = torch.autograd.grad(rotate(leaf, pairs="halves"), leaf, x)
        torch.testing.assert_close(cases._rotate_strided_backward(**inputs), gradient)


def test_what_is_not_the_tensor_s_is_nan() -> None:
    memory = cases._strided((2, 9, 4), (7, 20, 1), 4, 0)["memory"]
    assert memory.numel() == 8 * 20 + 7 + 4 and int((~memory.isnan()).sum()) == 2 * 9 * 4


def test_paths_have_closed_forms() -> None:
    for case in cases._PATH_CASES:
        kind, n, k = case.inputs.values()
        window = -(-(n - 1) // (k - 1))
        expected = {
            "self-attention": 1,
            "recurrent": n - 1,
            "convolution": window,
            "dilated convolution": math.ceil(math.log(n, k) - 1e-9),
            "restricted attention": window,
        }[kind]
        assert cases._path_length(kind, n, k).item() == expected


# What a check sees besides numbers ---------------------------------------------------


def test_a_message_about_a_matrix_says_what_its_rows_are() -> None:
    with pytest.raises(CheckFailed, match=r"Row r of these numbers is M @ P\[i\]"):
        CHECKS["5.3"](lambda delta, dim, base: torch.ones(dim, dim))


@pytest.mark.triton
def test_what_the_kernel_s_check_sees_without_a_record(
    solved: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the numbers, and what stands around them."""
    monkeypatch.setattr(checks, "watch", lambda: contextlib.nullcontext(Accesses()))
    kernels = {name: solved[name] for name in PAGE.arguments("5.6")}
    CHECKS["5.6"](*kernels.values())
    unseen = ("reads past the end", "an output that is not its own", "is never written")
    for name, kernel, fragment in ANSWERS.WRONG["5.6"]:
        if fragment not in unseen:
            with pytest.raises(CheckFailed) as failure:
                CHECKS["5.6"](*(kernels | {kernel.__name__: kernel}).values())
            assert fragment in str(failure.value), name
