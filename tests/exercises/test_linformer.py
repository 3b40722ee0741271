"""Chapter 9's checks: their cases, their oracles and what else they see."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from attn_course.exercises import CheckFailed
from attn_course.exercises import linformer as checks
from attn_course.exercises import linformer_cases as cases
from attn_course.heatmaps import influence_map
from attn_course.linformer import (
    causal_linformer_attention,
    linformer_attention,
    project_sequence,
)
from tests.exercises.common import PAGES, exact, told

PAGE = PAGES["linformer"]
ANSWERS, CHECKS = PAGE.answers, PAGE.checks


# Oracles, and the page's solutions ---------------------------------------------------


def test_slots_are_the_package_s(solved: dict[str, Any]) -> None:
    for case in cases._LINFORMER_CASES:
        q, k, v, E, F_ = exact(case).values()
        theirs = linformer_attention(q[None], k[None], v[None], E, F_)[0]
        torch.testing.assert_close(cases._linformer(q, k, v, E, F_), theirs)
    same = next(case for case in cases._LINFORMER_CASES if "identity" in case.name)
    q, k, v, *_ = exact(same).values()
    torch.testing.assert_close(cases._linformer(**exact(same)), solved["full"](q, k, v))


def test_padding_is_the_package_s() -> None:
    for case in cases._PADDED_CASES:
        given = exact(case)
        lens = given.pop("lens")
        theirs = linformer_attention(*given.values(), valid_lens=lens)
        torch.testing.assert_close(cases._padded(**exact(case)), theirs)


def test_leaks_are_those_of_the_gradients() -> None:
    for case in cases._LEAK_CASES:
        layer, x = exact(case).values()
        mode = layer.training
        moved = influence_map(layer.eval(), x) > 0
        layer.train(mode)
        torch.testing.assert_close(cases._leaks(layer, x), moved.triu(1).double())


def test_layers_leak_as_they_are_called() -> None:
    tables = {
        name: cases._leaks(layer, checks.tokens()).bool()
        for name, layer in checks.suspects().items()
    }
    later = torch.ones(8, 8, dtype=torch.bool).triu(1)
    block = torch.arange(8) // 4
    assert not tables["D"].any()
    assert tables["B"].equal(later)
    assert tables["A"].equal(later & (block == block[:, None]))
    assert tables["C"].equal(later & ~later.triu(2))


def test_blocks_are_the_package_s() -> None:
    layer = cases.Suspect("blocks", 10, seed=3)
    x = cases._draw(10, 4).double()
    q, k, v = ((x @ W)[None] for W in layer.maps)
    theirs = causal_linformer_attention(q, k, v, layer.e, layer.e)[0]
    torch.testing.assert_close(layer(x), theirs)


def test_inputs_have_no_rounding_errors() -> None:
    """So that what adds the same to all columns changes nothing behind a mean."""
    layer = cases.Suspect("causal", 5, seed=3, centred=True)
    x = cases._draw(5, 4)
    assert torch.equal(layer(x + 1), layer(x)) and torch.equal(layer(x + 100), layer(x))


def test_spreads_and_bounds_are_the_derived_ones() -> None:
    for case in cases._SPREAD_CASES:
        k = case.inputs["k"]
        assert cases._spread(**case.inputs).item() == pytest.approx(math.sqrt(2 / k), rel=1e-5)
    for case in cases._NEEDED_CASES:
        points, _, error, failure = case.inputs.values()
        k = int(cases._slots_needed(**case.inputs))
        bound = [
            points * (points - 1) * math.exp(-(error**2 - error**3) * slots / 4)
            for slots in (k - 1, k)
        ]
        assert bound[0] > failure >= bound[1]


def test_energies_are_those_of_singular_values() -> None:
    for case in cases._ENERGY_CASES:
        squares = torch.linalg.svdvals(cases._weights(**exact(case))) ** 2
        held = (squares.cumsum(-1) / squares.sum(-1, keepdim=True)).mean(0)
        torch.testing.assert_close(cases._energy(**exact(case)), held)
    copying = next(case for case in cases._ENERGY_CASES if "copies" in case.name)
    torch.testing.assert_close(cases._energy(**exact(copying)), torch.arange(1.0, 6).double() / 5)


def test_projections_are_the_package_s() -> None:
    for case in cases._SPLIT_CASES:
        matrix, x, *_ = exact(case).values()
        if len(matrix) <= len(x):
            theirs = project_sequence(x[None], matrix)[0]
            torch.testing.assert_close(cases._project(**exact(case)), theirs)


def test_the_half_precision_case_cancels() -> None:
    """So that parts are much larger than their sum."""
    (case,) = [case for case in cases._SPLIT_CASES if "cancel" in case.name]
    matrix, x, *_ = exact(case).values()
    part, whole = (matrix[:, :10] @ x[:10]).abs(), (matrix @ x).abs()
    assert part.min() > 5 * whole.max()


# What a check sees besides numbers ---------------------------------------------------


def test_layers_are_left_as_they_were(solved: dict[str, Any]) -> None:
    """Whatever an answer does to them, and whether it raises."""
    modes = [case.inputs["layer"].training for case in cases._LEAK_CASES]
    for _, function, _ in ANSWERS.WRONG["9.3"]:
        if function.__name__ == "leaks":
            with pytest.raises(CheckFailed):
                CHECKS["9.3"](function, solved["diagnosis"])
            assert [case.inputs["layer"].training for case in cases._LEAK_CASES] == modes


def test_chance_is_the_same_each_time(solved: dict[str, Any]) -> None:
    """A check draws its own numbers, and gives back the generator as it was."""
    before = torch.get_rng_state()
    CHECKS["9.4"](solved["spread"], solved["slots_needed"], solved["measured"])
    CHECKS["9.3"](solved["leaks"], solved["diagnosis"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.triton
def test_what_the_kernel_s_check_sees_without_a_record(
    solved: dict[str, Any], without_record: None
) -> None:
    """As on a GPU: the numbers, and what PyTorch did."""
    CHECKS["9.6"](solved["split_kernel"], solved["project"])
    launchers = {name: (project, part) for name, project, part in ANSWERS.WRONG["9.6"]}
    for name in (
        "rounded down", "reaches over", "parts in half precision", "PyTorch's product",
        "empty ones say nothing",
    ):  # fmt: skip
        project, fragment = launchers[name]
        with np.errstate(all="ignore"):
            assert fragment in told(CHECKS["9.6"], solved["split_kernel"], project), name


@pytest.mark.triton
def test_a_race_names_the_programs(solved: dict[str, Any]) -> None:
    (project,) = [project for name, project, _ in ANSWERS.WRONG["9.6"] if name == "a race"]
    message = told(CHECKS["9.6"], solved["split_kernel"], project)
    assert "program (0, 0) and program (0, 1)" in message
