"""Chapter 5's checks: their cases, their mistakes, their oracles and what else they see."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from attn_course.dot_product import dot_product_attention
from attn_course.exercises import CheckFailed
from attn_course.exercises import positional_cases as cases
from attn_course.exercises import positional_mistakes as mistakes
from attn_course.positional import rotate, rotation_matrix, sinusoid
from tests.exercises.common import PAGES, exact, told

PAGE = PAGES["positional"]
ANSWERS, CHECKS = PAGE.answers, PAGE.checks


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
        messages.add(told(CHECKS["5.1"], function))
    CHECKS["5.1"](solved["is_equivariant"])
    assert len(messages) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_mechanism_forgets_earlier_attempts(solved: dict[str, Any]) -> None:
    for name in ("values unpermuted", "never asked"):
        (row,) = [row for row in ANSWERS.WRONG["5.1"] if row[0] == name]
        assert row[2] in told(CHECKS["5.1"], row[1])


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
        given = exact(case)
        base = given["base"]
        q, k = (rotate(given[name], base=base, offset=5)[None] for name in ("query", "key"))
        theirs = dot_product_attention(q, k, given["value"][None], impl="reference")[0]
        torch.testing.assert_close(cases._rotary(**given), theirs)


def test_strided_rotations_are_the_package_s() -> None:
    for case in (*cases._STRIDED_CASES, *cases._STRIDED_BACKWARD_CASES):
        inputs = exact(case)
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
    solved: dict[str, Any], without_record: None
) -> None:
    """As on a GPU: the numbers, and what stands around them."""
    kernels = {name: solved[name] for name in PAGE.arguments("5.6")}
    CHECKS["5.6"](*kernels.values())
    unseen = ("reads past the end", "an output that is not its own", "is never written")
    for name, kernel, fragment in ANSWERS.WRONG["5.6"]:
        if fragment not in unseen:
            functions = kernels | {kernel.__name__: kernel}
            assert fragment in told(CHECKS["5.6"], *functions.values()), name
