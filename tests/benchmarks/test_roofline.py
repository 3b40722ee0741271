"""The shared roofline: counted by the cases, bounded by the device, measured where stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from attn_course import CHAPTERS
from attn_course.benchmarks.cases import FORWARD, MODULES, all_cases
from attn_course.benchmarks.results import store
from attn_course.benchmarks.roofline import DEVICES, KERNELS, dots, plot_roofline
from tests.benchmarks.fakes import record


@pytest.fixture(autouse=True)
def close_figures() -> Any:
    plt.switch_backend("agg")
    yield
    plt.close("all")


def run(name: str, size: int, seconds: float) -> dict[str, Any]:
    """A stored run in which our kernel took so long."""
    made = record(name=name) | {"case": "rotary"}
    row = made["results"][0] | {"size": size, "p10_s": seconds, "median_s": seconds}
    made["results"] = [row | {"p90_s": seconds}]
    return made


def test_every_chapter_has_a_dot_and_every_kernel_a_case() -> None:
    assert list(KERNELS) == [0, *CHAPTERS]
    assert {case for _, case in KERNELS.values()} == set(MODULES) - {"multi_head"}  # no kernel


def test_bytes_and_flops_are_those_of_the_case() -> None:
    cases = all_cases()
    for dot in dots("A100"):
        case = cases[KERNELS[dot.chapter][1]]
        assert dot.flops == case.flops(dot.size, FORWARD)
        assert dot.bytes_moved == case.bytes_moved(dot.size, FORWARD)
        assert dot.size in case.sizes["cuda"][FORWARD]


def test_the_bound_is_the_lower_of_two_limits() -> None:
    gpu = DEVICES["A100"]
    assert gpu.ridge == pytest.approx(12.54, abs=0.01)
    assert gpu.bound(1) == gpu.bandwidth and gpu.bound(1e6) == gpu.flops
    assert gpu.bound(gpu.ridge) == pytest.approx(gpu.flops)


def test_a_stored_run_counts_on_its_device_only(tmp_path: Path) -> None:
    size = max(all_cases()["rotary"].sizes["cuda"][FORWARD])
    store(run("NVIDIA H200", size, 2e-3), tmp_path)
    assert {dot.name: dot.seconds for dot in dots("H200", tmp_path)}["rotary positions"] == 2e-3
    assert all(dot.seconds is None for dot in dots("H100", tmp_path))


def test_measured_dots_are_full_and_stand_at_their_rate(tmp_path: Path) -> None:
    size = max(all_cases()["rotary"].sizes["cuda"][FORWARD])
    store(run("NVIDIA A100-SXM4-40GB", size, 2e-3), tmp_path)
    (axes,) = plot_roofline("A100", tmp_path).axes
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert len(points) == len(KERNELS)
    (full,) = [line for line in points if line.get_markerfacecolor() != "white"]
    rotary = next(dot for dot in dots("A100", tmp_path) if dot.seconds)
    assert full.get_xdata()[0] == pytest.approx(rotary.intensity)
    assert full.get_ydata()[0] == pytest.approx(rotary.flops / 2e-3 / 1e12)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device must be one of A100, H100, H200; got 'T4'"):
        dots("T4")
