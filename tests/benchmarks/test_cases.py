"""The registry, and what every registered case must keep."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch

from attn_course.benchmarks import cases
from attn_course.benchmarks.cases import BOTH, FORWARD, Case, all_cases
from attn_course.benchmarks.trial import Trial
from tests.benchmarks.fakes import CPU, fake_case, peer, right, wrong, wrong_gradient

CASES = list(all_cases().values())

#: By a backend that no CPU has.
GPU_ONLY = ("SDPA, cuDNN", "full, cuDNN", "full, FlashAttention")


def test_every_module_has_a_case_of_its_name() -> None:
    for name in cases.MODULES:
        first, *more = all_cases([name])
        assert first == name
        assert all(other.startswith(f"{name}_") for other in more)
    assert len(all_cases()) == sum(len(all_cases([name])) for name in cases.MODULES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases_are_complete(case: Case) -> None:
    assert any(peer.ours for peer in case.peers)
    assert any(not peer.ours for peer in case.peers), "compared with nothing"
    assert len({peer.name for peer in case.peers}) == len(case.peers)
    for sizes in (*case.sizes.values(), case.quick_sizes):
        for direction, some in sizes.items():
            assert direction in (FORWARD, BOTH)
            assert all(case.flops(n, direction) > 0 < case.bytes_moved(n, direction) for n in some)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("direction", [FORWARD, BOTH])
def test_plain_peers_are_right(case: Case, direction: str) -> None:
    """What runs on a GPU alone is tried uncompiled, where it is plain PyTorch."""
    if direction not in case.quick_sizes:
        pytest.skip(f"{case.name} has no {direction}")
    trial = Trial(case, case.tiny, direction, CPU)
    for entry in case.peers:
        if direction not in entry.directions or entry.name in ("triton", "KeOps", *GPU_ONLY):
            continue
        if "compile" not in entry.name:
            assert trial.error(entry.make(CPU)) < case.tolerance, entry.name


@pytest.mark.parametrize("name", ["kernel_regression", "additive_attention"])
def test_the_form_to_compile_is_right(name: str) -> None:
    module = import_module(f"attn_course.benchmarks.{name}")
    case = module.CASE
    assert Trial(case, case.tiny, BOTH, CPU).error(module.fusible) < case.tolerance


@pytest.mark.parametrize("mask", ["all", "causal", "windowed"])
def test_the_two_passes_are_right(monkeypatch: pytest.MonkeyPatch, mask: str) -> None:
    from attn_course.benchmarks import heatmaps

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(heatmaps, "CHUNK", 16)
    pooled = heatmaps.two_pass(CPU, mask)
    case = dict(zip(("all", "causal", "windowed"), (heatmaps.CASE, *heatmaps.MORE), strict=True))[
        mask
    ]
    assert Trial(case, case.tiny, FORWARD, CPU).error(pooled) < case.tolerance


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_inputs_repeat(case: Case) -> None:
    for first, second in zip(case.inputs(case.tiny, CPU), case.inputs(case.tiny, CPU), strict=True):
        assert torch.equal(first, second)
        assert first.dtype == torch.float32


def test_errors_are_seen() -> None:
    case = fake_case(peer("right", right))
    forward, both = (Trial(case, 100, direction, CPU) for direction in (FORWARD, BOTH))
    assert forward.error(right) < 1e-6
    assert both.error(right) < 1e-6
    assert 1e-3 < forward.error(wrong) < 1e-2
    assert forward.error(wrong_gradient) < 1e-6
    assert both.error(wrong_gradient) == pytest.approx(1.0)


def test_rows_that_nobody_compares_must_be_finite() -> None:
    case = fake_case(peer("right", right), max_rows=2)

    def unwritten(x: torch.Tensor) -> torch.Tensor:
        output = right(x)
        output[50] = torch.nan
        return output

    assert math.isinf(Trial(case, 100, FORWARD, CPU).error(unwritten))


def test_a_gradient_that_leaks_into_other_rows_is_seen() -> None:
    case = fake_case(peer("right", right), max_rows=2)

    def leaky(x: torch.Tensor) -> torch.Tensor:
        return right(x) + 0.5 * (right(x).roll(1, 0) - right(x).roll(1, 0).detach())

    assert Trial(case, 100, BOTH, CPU).error(leaky) > 0.1


def test_a_wrong_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="shape"):
        Trial(fake_case(peer("right", right)), 100, FORWARD, CPU).error(lambda x: x)
