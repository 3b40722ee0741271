"""Time, with its spread: peers take turns in one run, so that all meet the same conditions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Call = Callable[[], object]
Timer = Callable[[Call], float]

#: How long the calls of one peer at one size may take in all, and their number.
BUDGET_S = 2.0
LEAST, MOST = 5, 100


def cpu_timer(call: Call) -> float:
    """The seconds a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class CudaTimer:
    """The seconds a call takes on a GPU, between two events, starting from a cold cache."""

    def __init__(self, device: torch.device) -> None:
        self.flush = torch.empty(1 << 26, dtype=torch.int32, device=device)  # 256 MiB

    def __call__(self, call: Call) -> float:
        """Time one call and wait for it."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(self.flush.device)
        return start.elapsed_time(end) / 1e3


def timer_for(device: torch.device) -> Timer:
    """The timer that suits a device."""
    return CudaTimer(device) if device.type == "cuda" else cpu_timer


def measure(
    calls: Mapping[str, Call],
    timer: Timer,
    *,
    budget_s: float = BUDGET_S,
    least: int = LEAST,
    most: int = MOST,
) -> dict[str, list[float] | Exception]:
    """Time calls, in rounds in which each has its turn.

    The first call of each is not counted; the second says how often it fits the budget.
    A slow one sits out some rounds, evenly spread.

    Args:
        calls: By name.
        timer: Takes a call and returns its seconds.
        budget_s: Seconds for each.
        least: The fewest counted calls of each.
        most: The most.

    Returns:
        By name, the seconds of each counted call, or what was raised instead.

    Example:
        >>> measure({"a": lambda: None}, lambda call: 1.0, budget_s=0, least=3)
        {'a': [1.0, 1.0, 1.0]}
    """
    samples: dict[str, list[float] | Exception] = {}
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        try:
            timer(call)
            estimate = timer(call)
        except Exception as error:
            samples[name] = error
        else:
            samples[name] = []
            repeats[name] = int(min(max(budget_s / max(estimate, 1e-9), least), most))
    rounds = max(repeats.values(), default=0)
    for turn in range(rounds):
        for name, count in repeats.items():
            taken = samples[name]
            due = (turn + 1) * count // rounds > turn * count // rounds
            if due and isinstance(taken, list):
                try:
                    taken.append(timer(calls[name]))
                except Exception as error:
                    samples[name] = error
    return samples


def summarise(samples: list[float]) -> dict[str, float]:
    """Median and the tenths at both ends, in seconds.

    Example:
        >>> summarise([float(i) for i in range(11)])
        {'median_s': 5.0, 'p10_s': 1.0, 'p90_s': 9.0}
    """
    if len(samples) == 1:
        samples = samples * 2
    tenths = statistics.quantiles(samples, n=10, method="inclusive")
    return {"median_s": statistics.median(samples), "p10_s": tenths[0], "p90_s": tenths[-1]}
