"""Correct first: every peer is held against the exact answer before anything is timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from attn_course.benchmarks.cases import Case, Peer
from attn_course.benchmarks.trial import Trial

#: A single call that is expected to take longer than this is left out.
MAX_CALL_S = 10.0

#: How much of the free memory a peer may need.
MEMORY_SHARE = 0.8

READY = "ready"
MEASURED = "measured"
CHECKED = "checked only"
FAILED = "failed"


class CheckFailed(RuntimeError):
    """A function of this package is wrong: nothing may be reported."""


@dataclass
class Result:
    """What is known about one peer at one size, in one direction.

    Attributes:
        peer: Its name.
        ours: Whether the package holds it.
        direction: ``forward`` or ``forward+backward``.
        size: How large.
        status: ``measured``; or ``checked only``, ``unavailable``, ``does not fit``,
            ``too slow`` or ``failed``, each with a reason.
        reason: Empty for ``measured``.
        max_error: Of its answer, as ``Case.tolerance`` counts it.
        median_s: Of the seconds a call takes.
        p10_s: A tenth of the calls took less.
        p90_s: A tenth of the calls took more.
        repeats: How many calls were timed.
        peak_bytes: The most memory in use during a call, beside what was in use before; on a
            CPU the largest of several calls, each in a process of its own.
    """

    peer: str
    ours: bool
    direction: str
    size: int
    status: str = READY
    reason: str = ""
    max_error: float | None = None
    median_s: float | None = None
    p10_s: float | None = None
    p90_s: float | None = None
    repeats: int = 0
    peak_bytes: int | None = None


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for later can be had too
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def verify(
    case: Case, device: torch.device, *, quick: bool = False, log: Callable[[str], None] = print
) -> list[Result]:
    """Check every peer of a case at every size that it will be measured at.

    Args:
        case: What to check.
        device: Where.
        quick: Whether for the sizes of a quick run.
        log: Gets a line for each check.

    Returns:
        One result for each peer, size and direction, ``ready`` where it can be timed.

    Raises:
        CheckFailed: A peer of ours is wrong; says which ones and by how much.
    """
    results = list(_check_all(case, device, quick, log))
    wrong = [r for r in results if r.ours and r.status == FAILED]
    if wrong:
        lines = [f"  {r.peer}, {r.direction}, size {r.size:,}: {r.reason}" for r in wrong]
        raise CheckFailed("\n".join([f"{case.name}: our own answers are wrong:", *lines]))
    return results


def _check_all(
    case: Case, device: torch.device, quick: bool, log: Callable[[str], None]
) -> Iterator[Result]:
    work = case.work(device, quick)
    directions = list(dict.fromkeys(direction for direction, _ in work))
    alive: dict[str, list[Peer]] = {direction: [] for direction in directions}
    for direction in directions:
        trial = Trial(case, case.tiny, direction, device)
        for peer in case.peers_on(device):
            result = Result(peer.name, peer.ours, direction, case.tiny)
            if direction not in peer.directions:
                continue
            if reason := peer.why_not(device):
                result.status, result.reason = "unavailable", reason
            else:
                _check(result, peer, trial, device)
                if result.status == READY:
                    if reason := peer.why_untimed(device):
                        result.status, result.reason = CHECKED, reason
                    else:
                        alive[direction].append(peer)
            _log(result, log)
            if result.status != READY:
                yield result

    seconds: dict[tuple[str, str], tuple[int, float]] = {}
    for direction, size in work:
        trial = Trial(case, size, direction, device)
        for peer in list(alive[direction]):
            result = Result(peer.name, peer.ours, direction, size)
            need, free = peer.need(size, direction), MEMORY_SHARE * free_memory(device)
            before, before_s = seconds.get((peer.name, direction), (size, 0.0))
            guess = before_s * case.flops(size, direction) / case.flops(before, direction)
            if need > free:
                result.status = "does not fit"
                result.reason = f"needs about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB may be used"
            elif guess > MAX_CALL_S:
                result.status, result.reason = "too slow", f"about {guess:.0f} s a call expected"
            else:
                seconds[peer.name, direction] = size, _check(result, peer, trial, device)
            _log(result, log)
            yield result


def _check(result: Result, peer: Peer, trial: Trial, device: torch.device) -> float:
    """Fill in the error, and the status if it failed; return the seconds of a warm call."""
    try:
        function = peer.make(device)
        result.max_error = trial.error(function)
        if result.max_error > trial.case.tolerance:
            result.reason = f"error {result.max_error:.2g}, allowed {trial.case.tolerance:.2g}"
            result.status, result.max_error = FAILED, None
            return 0.0
        start = time.perf_counter()
        trial.run(function)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start
    except Exception as error:
        result.reason = (
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
        result.status, result.max_error = FAILED, None
        return 0.0


def _log(result: Result, log: Callable[[str], None]) -> None:
    notes = [] if result.max_error is None else [f"right, error {result.max_error:.1e}"]
    if result.status != READY:
        notes.append(f"{result.status}: {result.reason}")
    log(f"  {result.direction:16} {result.size:>9,}  {result.peer:24} {'; '.join(notes)}")
