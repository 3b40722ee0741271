"""Measures with answers that are known: scripted clocks, tensors of known size, plain angles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from attn_course import _triton
from attn_course.benchmarks import (
    kept_megabytes,
    kernel_agreement,
    likeness,
    measures,
    median_ms,
    share_right,
)


def test_the_median_leaves_the_first_call_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.004, 0.001, 9.0])
    calls = []
    monkeypatch.setattr(measures, "cpu_timer", lambda call: (call(), next(seconds))[1])
    assert median_ms(lambda: calls.append(1), repeats=3) == pytest.approx(4.0)
    assert len(calls) == 4  # one that is not timed


@pytest.mark.parametrize("repeats", [0, 2.5, True])
def test_repeats_are_counted(repeats: Any) -> None:
    with pytest.raises(ValueError, match="repeats must be an integer of at least 1"):
        median_ms(lambda: None, repeats=repeats)


@pytest.mark.parametrize("measure", [median_ms, kept_megabytes])
def test_a_result_is_no_call(measure: Any) -> None:
    with pytest.raises(TypeError, match=r"call must be a function .* got Tensor\. Put lambda"):
        measure(torch.zeros(3))


def test_megabytes_count_inputs_and_parameters_once() -> None:
    x, layer = torch.rand(500, 250), nn.Linear(250, 100, bias=False)
    x.requires_grad_()
    # The layer keeps x and its weight; softmax what it returns, which square keeps as well.
    expected = 4 * (500 * 250 + 100 * 250 + 500 * 100) / 1e6
    assert kept_megabytes(lambda: layer(x).softmax(-1).square()) == pytest.approx(expected)


def test_megabytes_of_what_is_freed_again_and_of_nothing() -> None:
    x = torch.rand(1000, 250, requires_grad=True)

    def in_turn() -> None:
        for _ in range(3):
            x.exp()  # dropped at once

    assert kept_megabytes(in_turn) == pytest.approx(1.0)
    with torch.no_grad():
        assert kept_megabytes(x.exp) == 0


def test_the_share_of_right_answers() -> None:
    votes = torch.tensor([[1.0, 3, 2], [5, 0, 4], [0, 1, 9], [0, 8, 1]])
    assert share_right(votes, torch.tensor([1, 2, 2, 1])) == 0.75


@pytest.mark.parametrize("votes", [torch.zeros(3), torch.zeros(0, 2), torch.zeros(2, 3, 4)])
def test_votes_are_a_table(votes: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"votes must have shape \[n, classes\]"):
        share_right(votes, torch.zeros(3, dtype=torch.long))


def test_each_row_has_one_label() -> None:
    with pytest.raises(ValueError, match=r"labels must have shape \[3\], got \[3, 1\]"):
        share_right(torch.zeros(3, 2), torch.zeros(3, 1))
    with pytest.raises(TypeError, match=r"labels must be a torch\.Tensor"):
        share_right(torch.zeros(1, 2), [0])  # type: ignore[arg-type]


def test_likeness_is_the_mean_cosine_of_different_tokens() -> None:
    angles = torch.tensor([0.0, 60.0, 180.0]).deg2rad()
    tokens = torch.stack([angles.cos(), angles.sin()], -1) * torch.tensor([[1.0], [5.0], [0.2]])
    cosines = [math.cos(math.radians(a)) for a in (60, 180, 120)]
    assert likeness(tokens) == pytest.approx(sum(cosines) / 3, abs=1e-6)
    both = torch.stack([tokens, torch.ones(3, 2)])  # the mean of two sequences, not of all pairs
    assert likeness(both) == pytest.approx((sum(cosines) / 3 + 1) / 2, abs=1e-6)


def test_likeness_needs_two_tokens() -> None:
    with pytest.raises(ValueError, match=r"at least two in a sequence, got \[1, 4\]"):
        likeness(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"tokens must have shape \[\.\.\., length, dim\]"):
        likeness(torch.zeros(4))
    with pytest.raises(TypeError, match="tokens must hold floating-point numbers"):
        likeness(torch.zeros(2, 2, dtype=torch.long))


WRITTEN = {1e-5: "1e-5", 2.5e-5: "2.5e-5", 1e-4: "1e-4", 1e-3: "1e-3"}


class Twice(torch.autograd.Function):
    """x + y, whose gradient for y is twice what it should be."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return grad, 2 * grad


def two_sums(
    x: torch.Tensor, y: torch.Tensor, *, impl: str, shift: torch.Tensor, fault: str
) -> torch.Tensor:
    assert shift.device == x.device == y.device
    if impl == "reference" or fault == "":
        return x + y + shift
    if fault == "gradient":
        return Twice.apply(x, y) + shift
    return x + y + (torch.nan if fault == "nan" else 2e-4) + shift


@pytest.fixture
def kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "AVAILABLE", True)
    monkeypatch.setattr(_triton, "INTERPRETED", True)


@pytest.mark.parametrize(
    "fault, atol, equal",
    [
        ("", 1e-5, "output True, d x True, d y True"),
        ("gradient", 1e-5, "output True, d x True, d y False"),
        ("nan", 1e-5, "output False, d x False, d y False"),
        ("shift", 1e-4, "output False, d x False, d y False"),
        ("shift", 1e-3, "output True, d x True, d y True"),
        ("", 2.5e-5, "output True, d x True, d y True"),
    ],
)
def test_agreement_says_what_differs(
    kernels_run: None, fault: str, atol: float, equal: str
) -> None:
    leaves = {"x": (2, 3), "y": torch.ones(2, 3)}
    text = kernel_agreement(two_sums, leaves, atol=atol, shift=torch.zeros(3), fault=fault)
    for line, wanted in zip(text.splitlines(), equal.split(", "), strict=True):
        name, _, same = wanted.rpartition(" ")
        assert line == f"{name:6}  equal to {WRITTEN[atol]}: {same}"


def test_agreement_without_kernels_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    monkeypatch.setattr(_triton, "REASON", "it is Tuesday")
    text = kernel_agreement(two_sums, {"x": (1,)})
    assert text == "No kernel runs here: it is Tuesday."


@pytest.mark.parametrize("leaf", [torch.arange(3), [2, 3], 3])
def test_agreement_wants_numbers_or_shapes(leaf: Any) -> None:
    with pytest.raises(TypeError, match=r"leaves\['y'\] must (hold floating|be a torch\.Tensor)"):
        kernel_agreement(two_sums, {"x": (3,), "y": leaf})
    with pytest.raises(ValueError, match="leaves must name at least one tensor"):
        kernel_agreement(two_sums, {})
