"""Chapter 10's checks: their cases, their oracles and what else they see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attn_course.exercises import monotonic as checks
from attn_course.exercises import monotonic_cases as cases
from attn_course.exercises import monotonic_mistakes as mistakes
from attn_course.monotonic import (
    MonotonicMultiheadAttention,
    count_paths,
    expected_alignment,
    many_to_many,
    one_to_many,
    posterior,
    serial_backward,
)
from tests.exercises.common import PAGES, exact, told

PAGE = PAGES["monotonic"]
ANSWERS, CHECKS = PAGE.answers, PAGE.checks


# Oracles, and the page's solutions ---------------------------------------------------


def test_counts_are_the_package_s() -> None:
    for case in cases._COUNT_MANY_CASES:
        assert int(cases._count_many(**case.inputs)) == count_paths(**case.inputs)
    for case in cases._COUNT_ONE_CASES:
        expected = count_paths(**case.inputs, model="one_to_many")
        assert int(cases._count_one(**case.inputs)) == expected


@pytest.mark.filterwarnings("ignore:one_to_many has")
def test_visits_are_the_package_s() -> None:
    for table, mine, theirs in (
        (cases._VISIT_MANY_CASES, cases._visit_many, many_to_many),
        (cases._VISIT_ONE_CASES, cases._visit_one, one_to_many),
    ):
        for case in table:
            p = exact(case)["p"]
            torch.testing.assert_close(mine(p), theirs(p.logit(), validate=False))


def test_sums_of_logarithms_are_pytorch_s() -> None:
    for case in cases._LOG_ADD_CASES:
        given = exact(case)
        torch.testing.assert_close(cases._log_add(**given), torch.logaddexp(*given.values()))
    for case in cases._LOG_NOT_CASES:
        x = exact(case)["x"]
        torch.testing.assert_close(cases._log_not(x), (-x.expm1()).log())


def test_log_visits_are_the_package_s() -> None:
    for case in cases._LOG_VISIT_CASES:
        log_p = exact(case)["log_p"]
        logits = log_p - (-log_p.expm1()).log()
        theirs = many_to_many(logits, log=True, validate=False)
        torch.testing.assert_close(cases._log_visit(log_p), theirs, rtol=1e-6, atol=1e-6)


def test_some_visits_are_too_rare_for_any_product_or_floor() -> None:
    lowest = [float(cases._log_visit(**exact(case)).min()) for case in cases._LOG_VISIT_CASES]
    assert lowest[1] < -800 and lowest[2] < -15000


def test_gradients_are_the_package_s_and_autograd_s() -> None:
    for case in cases._GRADIENT_CASES:
        p, _, grad = exact(case).values()
        phi = cases._visit_many(p)
        mine = cases._gradient(p, phi, grad)
        torch.testing.assert_close(mine, serial_backward(p, phi, grad))
        if 0 < p.min() and p.max() < 1:
            x = p.logit().requires_grad_()
            (many_to_many(x, validate=False) * grad).sum().backward()
            torch.testing.assert_close(mine * p * (1 - p), x.grad)


def test_some_gradients_from_outside_are_negative() -> None:
    assert (cases._GRADIENT_CASES[0].inputs["grad"] < 0).any()


@pytest.mark.filterwarnings("ignore:one_to_many has")
def test_weights_are_the_package_s() -> None:
    x = cases._random(3)(5, 4).double()
    for kind, theirs in (
        ("visits", many_to_many),
        ("stops", expected_alignment),
        ("posterior", posterior),
        ("one-to-many", lambda x: posterior(x, model="one_to_many")),
    ):
        torch.testing.assert_close(cases.Weights(kind)(x), theirs(x))
    columns = cases.Weights("columns sum to 1")(x).sum(0)
    torch.testing.assert_close(columns, torch.ones_like(columns))


def test_one_query_ahead_is_the_probability_of_its_stop() -> None:
    """Visits times the share of the paths whose next query stops, by walking all of them."""
    x = cases._random(4)(3, 3).double()
    p = x.sigmoid()
    stop = (cases.Weights("one query ahead")(x) / cases._visit_many(p))[0, 0]
    one = (1 - p[0, 0]) * (1 - p[1].prod())
    two = p[0, 0] * (1 - p[0, 1]) * (1 - p[1, 1:].prod())
    three = p[0, :2].prod() * (1 - p[0, 2]) * (1 - p[1, 2])
    torch.testing.assert_close(stop, one + two + three)


def test_leaks_are_those_of_the_gradients() -> None:
    """And none is so small that a careful test could miss it."""
    for case in cases._LEAK_CASES:
        weigh, logits = exact(case).values()
        moved = torch.zeros(len(logits), len(logits))
        for k in range(len(logits)):
            for j in range(logits.shape[1]):
                ends = torch.stack([logits, logits])
                ends[0, k, j] -= 1e-4
                ends[1, k, j] += 1e-4
                slope = (weigh(ends[1]) - weigh(ends[0])).abs().amax(1) / 2e-4
                moved[:, k] = torch.maximum(moved[:, k], slope)
        table = cases._leaks(weigh, logits)
        torch.testing.assert_close((moved.triu(1) > 1e-3).double(), table, msg=case.name)
        assert not (moved.triu(1) * (1 - table)).any(), case.name


def test_suspects_leak_as_they_are_called() -> None:
    tables = {
        name: cases._leaks(weigh, checks.trial_logits().double()).bool()
        for name, weigh in checks.suspects().items()
    }
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    assert not tables["B"].any()
    assert tables["A"].equal(later & ~later.triu(2))
    assert tables["C"].equal(later) and tables["D"].equal(later)
    sums = checks.suspects()["C"](checks.trial_logits()).sum(0)
    assert not torch.allclose(sums, sums[:1])


def test_stops_are_those_of_the_package_s_layer() -> None:
    """With keys that are unit vectors, so that queries are the logits."""
    for case in cases._WALK_CASES:
        ask, queries, keys = case.inputs.values()
        layer = MonotonicMultiheadAttention(keys, 1, mode="hard_monotonic", bias=False).double()
        for projection in (layer.W_q, layer.W_k):
            torch.nn.init.eye_(projection.weight)
        eye = torch.eye(keys, dtype=torch.float64)[None]
        _, weights = layer(keys**0.5 * ask.logits[None], eye, need_weights=True, hard=True)
        stops = torch.where(weights[0, 0].any(1), weights[0, 0].argmax(1), keys)
        assert stops.tolist() == cases._stops(ask, queries, keys).tolist(), case.name


def test_scans_are_the_recurrence() -> None:
    for case in cases._SCAN_CASES:
        a, b, _ = exact(case).values()
        torch.testing.assert_close(cases._scan(**exact(case)), mistakes._in_turn(a, b))


def test_combine_is_associative(solved: dict[str, Any]) -> None:
    one, two, three = torch.randn(3, 2, 5).double()
    combine = solved["combine"]
    left = combine(*combine(*one, *two), *three)
    right = combine(*one, *combine(*two, *three))
    torch.testing.assert_close(left, right)


@pytest.mark.triton
def test_the_kernel_walks_a_grid_row_by_row(solved: dict[str, Any]) -> None:
    """As the page says: many-to-many, a row of all grids of a batch at a time."""
    p = torch.rand(3, 4, 11)
    phi = torch.zeros_like(p)
    b = torch.zeros(3, 11)
    b[:, 0] = 1
    for i in range(4):
        a = F.pad(p[:, i, :-1], (1, 0)).contiguous()
        row = torch.empty(3, 11)
        solved["scan_kernel"][(3,)](a, b, row, 11, 4)
        phi[:, i] = row
        b = row * (1 - p[:, i])
    torch.testing.assert_close(phi, many_to_many(p.logit(), validate=False))


def test_the_page_s_predictions() -> None:
    assert int(cases._count_many(4, 5)) == 35
    assert (1 - torch.tensor(-3e-8).exp()).log().item() in (
        -torch.inf,
        pytest.approx(-16.6, abs=0.1),
    )
    assert torch.full((150,), 0.5).prod() == 0


# What a check sees besides numbers ---------------------------------------------------


def test_chance_is_the_same_each_time(solved: dict[str, Any]) -> None:
    """A check draws its own numbers, and gives back the generator as it was."""
    before = torch.get_rng_state()
    CHECKS["10.5"](solved["leaks"], solved["diagnosis"])
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_asked_before_does_not_count(solved: dict[str, Any]) -> None:
    """One answer's questions are not the next one's."""
    (greedy,) = [walk for name, walk, _ in ANSWERS.WRONG["10.6"] if name == "all logits first"]
    assert "may not have been heard yet" in told(CHECKS["10.6"], greedy)
    CHECKS["10.6"](solved["walk"])


def test_suspects_do_not_tell() -> None:
    assert {repr(weigh) for weigh in checks.suspects().values()} == {"weights"}


@pytest.mark.triton
def test_what_the_kernel_s_check_sees_without_a_record(
    solved: dict[str, Any], without_record: None
) -> None:
    """As on a GPU: the numbers, and what stands around them."""
    CHECKS["10.7"](solved["combine"], solved["scan_kernel"])
    kernels = {name: (kernel, part) for name, kernel, part in ANSWERS.WRONG["10.7"]}
    for name in ("carry lost", "turned operator", "whole panels", "over b"):
        kernel, fragment = kernels[name]
        with np.errstate(all="ignore"):
            assert fragment in told(CHECKS["10.7"], solved["combine"], kernel), name
