"""A whole run: check all, then measure, then store."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attn_course.benchmarks import environment, memory
from attn_course.benchmarks.cases import Case, Peer
from attn_course.benchmarks.clock import BUDGET_S, Timer, measure, summarise, timer_for
from attn_course.benchmarks.plot import as_bytes, as_seconds
from attn_course.benchmarks.results import SCHEMA, Record, check_record, store
from attn_course.benchmarks.trial import Trial
from attn_course.benchmarks.verify import FAILED, MEASURED, READY, CheckFailed, Result, verify

Log = Callable[[str], None]
Memory = Callable[[Case, Peer, int, str, torch.device], int | None]

QUICK_BUDGET_S = 0.1

#: How often memory is measured on a CPU; the largest counts. How the allocator of the
#: system happens to lay things out can change it much from process to process.
PEAKS = 3


def run(
    cases: Iterable[Case],
    device: torch.device,
    *,
    quick: bool = False,
    output: Path | None = None,
    log: Log = print,
    timer: Timer | None = None,
    peak: Memory = memory.peak_bytes,
) -> list[Record]:
    """Check every peer of every case; then measure, and store each case's record.

    Args:
        cases: What to run.
        device: Where.
        quick: Small sizes and few repeats.
        output: The folder to store in; ``None`` stores nothing.
        log: Gets lines of progress and the tables.
        timer: Takes a call and returns its seconds; the one for the device by default.
        peak: Measures memory.

    Returns:
        The records.

    Raises:
        CheckFailed: A function of ours is wrong. Nothing was timed or stored.
    """
    cases = list(cases)
    failures: list[str] = []
    checked: list[tuple[Case, list[Result]]] = []
    for case in cases:
        log(f"{case.name}: checking on {device}")
        try:
            checked.append((case, verify(case, device, quick=quick, log=log)))
        except CheckFailed as error:
            failures.append(str(error))
    if failures:
        raise CheckFailed(
            "\n".join([*failures, "Nothing is timed or stored until they are right."])
        )

    records = []
    for case, results in checked:
        log(f"{case.name}: measuring on {device}")
        start = environment.describe(device)
        _measure_all(case, results, device, quick, log, timer or timer_for(device), peak)
        record = _record(case, results, start, quick)
        check_record(record)
        log(table(record))
        if output is not None:
            log(f"stored: {store(record, output)}")
        records.append(record)
    return records


def _measure_all(
    case: Case,
    results: list[Result],
    device: torch.device,
    quick: bool,
    log: Log,
    timer: Timer,
    peak: Memory,
) -> None:
    peers = {peer.name: peer for peer in case.peers}
    times = 1 if quick or device.type == "cuda" else PEAKS
    for direction, size in case.work(device, quick):
        here = [r for r in results if (r.direction, r.size, r.status) == (direction, size, READY)]
        if not here:
            continue
        log(f"  {direction}, {size:,}: {', '.join(r.peer for r in here)}")
        for result in here:  # before the timing: its memory is given back by then
            held = partial(peak, case, peers[result.peer], size, direction, device)
            result.peak_bytes = _largest(held, times)
        trial = Trial(case, size, direction, device)
        calls = {r.peer: trial.call(peers[r.peer].make(device)) for r in here}
        samples = measure(
            calls, timer, budget_s=QUICK_BUDGET_S if quick else BUDGET_S, least=3 if quick else 5
        )
        for result in here:
            taken = samples[result.peer]
            if isinstance(taken, Exception):
                if result.ours:
                    raise taken
                result.status, result.reason = FAILED, f"{type(taken).__name__} while timing"
            else:
                result.status, result.repeats = MEASURED, len(taken)
                for key, value in summarise(taken).items():
                    setattr(result, key, value)


def _largest(peak: Callable[[], int | None], times: int) -> int | None:
    """The largest of several measurements of memory."""
    return max((held for held in (peak() for _ in range(times)) if held is not None), default=None)


def _record(case: Case, results: list[Result], start: dict[str, Any], quick: bool) -> Record:
    return {
        "schema": SCHEMA,
        "case": case.name,
        "title": case.title,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        **start,
        "load_at_end": environment.load(),
        "tolerance": case.tolerance,
        "results": [
            asdict(r)
            | {
                "flops": case.flops(r.size, r.direction),
                "bytes_moved": case.bytes_moved(r.size, r.direction),
            }
            for r in results
        ],
    }


def table(record: Record) -> str:
    """A record as text: peers side by side, times as multiples of our first peer's."""
    head = f"{'':16} {'n':>9}  {'peer':24} {'median':>9} {'p10 - p90':>19} {'ratio':>7} "
    lines = [f"{record['title']}\n{record['device']['name']}", head + f"{'memory':>9} {'error':>8}"]
    measured = [row for row in record["results"] if row["status"] == MEASURED]
    for row in measured:
        rivals = [r for r in measured if (r["direction"], r["size"]) == _key(row)]
        base = next((r["median_s"] for r in rivals if r["ours"]), math.nan)
        spread = f"{as_seconds(row['p10_s'])} - {as_seconds(row['p90_s'])}"
        held = "" if row["peak_bytes"] is None else as_bytes(row["peak_bytes"])
        lines.append(
            f"{row['direction']:16} {row['size']:>9,}  {row['peer']:24} "
            f"{as_seconds(row['median_s']):>9} {spread:>19} {row['median_s'] / base:>7.2f} "
            f"{held:>9} {row['max_error']:>8.0e}"
        )
    for row in record["results"]:
        if row["status"] != MEASURED:
            lines.append(
                f"{row['direction']:16} {row['size']:>9,}  {row['peer']:24} "
                f"{row['status']}: {row['reason']}"
            )
    return "\n".join(lines)


def _key(row: Record) -> tuple[str, int]:
    return row["direction"], row["size"]
