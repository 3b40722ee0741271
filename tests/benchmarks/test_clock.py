"""Statistics, with a timer that follows a script."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from attn_course.benchmarks.clock import cpu_timer, measure, summarise


def scripted(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def play(call: Callable[[], object]) -> float:
    result = call()
    assert isinstance(result, float)
    return result


def test_median_and_tenths() -> None:
    samples = [float(i) for i in range(101)]
    assert summarise(samples[::-1]) == {"median_s": 50.0, "p10_s": 10.0, "p90_s": 90.0}


def test_one_sample_is_its_own_summary() -> None:
    assert summarise([2.0]) == {"median_s": 2.0, "p10_s": 2.0, "p90_s": 2.0}


def test_repeats_follow_the_budget() -> None:
    calls = {"slow": scripted(9.0), "middling": scripted(0.1), "quick": scripted(1e-6)}
    samples = measure(calls, play, budget_s=1.0, least=2, most=20)
    counts = {name: len(taken) for name, taken in samples.items() if isinstance(taken, list)}
    assert counts == {"slow": 2, "middling": 10, "quick": 20}


def test_peers_take_turns() -> None:
    order: list[str] = []

    def named(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or 1.0

    measure({"a": named("a"), "b": named("b")}, play, budget_s=3.0, least=1)
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * 3


def test_a_slow_peer_is_spread_over_the_run() -> None:
    order: list[str] = []

    def named(name: str, seconds: float) -> Callable[[], float]:
        return lambda: order.append(name) or seconds

    measure({"a": named("a", 1.0), "b": named("b", 0.25)}, play, budget_s=2.0, least=1)
    assert "".join(order[4:]) == "bbbabbbbab"[:10]


def test_warm_up_is_not_counted() -> None:
    seconds = iter([100.0, 1.0, 2.0, 3.0, 4.0])
    samples = measure({"a": lambda: next(seconds)}, play, budget_s=0.0, least=3)
    assert samples == {"a": [2.0, 3.0, 4.0]}


@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_peer_that_raises_stops_alone(good: int) -> None:
    left = iter([1.0] * good)

    def failing() -> float:
        for seconds in left:
            return seconds
        raise MemoryError("none left")

    samples = measure({"bad": failing, "good": scripted(1.0)}, play, budget_s=0.0, least=4)
    assert isinstance(samples["bad"], MemoryError)
    assert samples["good"] == [1.0] * 4


def test_the_timer_of_a_cpu_calls_once() -> None:
    calls: list[None] = []
    assert cpu_timer(lambda: calls.append(None)) >= 0
    assert len(calls) == 1


@pytest.mark.gpu
def test_the_timer_of_a_gpu_waits() -> None:
    from attn_course.benchmarks.clock import timer_for

    timer = timer_for(torch.device("cuda"))
    assert timer(lambda: torch.cuda._sleep(10_000_000)) > 1e-3  # type: ignore[no-untyped-call]
