"""What the benchmarks share that are no ``Case``: a table of calls, a record, a command.

A ``Case`` is a function of tensors. A training step has an optimiser and a search has a loop,
so each of those is a module of its own, started by its name:

``python -m attn_course.benchmarks.NAME [--quick] [--output DIR] [--device D]``
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attn_course.benchmarks import environment
from attn_course.benchmarks.clock import Call, measure, summarise, timer_for
from attn_course.benchmarks.results import RESULTS, SCHEMA, Record, check_record, store
from attn_course.benchmarks.run import QUICK_BUDGET_S, table
from attn_course.benchmarks.verify import MEASURED, CheckFailed, Result

#: Seconds for the calls of each peer, at each size and in each direction.
BUDGET_S = 20.0

#: The most calls of one peer that are timed.
MOST = 50


def largest_error(actual: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """The largest difference in any of several tensors, over that tensor's largest number.

    Args:
        actual: On any device.
        exact: As many, with as many numbers each, on the CPU.

    Returns:
        Infinity where a number is NaN.

    Example:
        >>> largest_error([torch.tensor([1.0, 3.0])], [torch.tensor([1.0, 4.0])])
        0.25
    """
    return max(
        ((ours.detach().cpu().view_as(theirs) - theirs).abs().max() / theirs.abs().max())
        .nan_to_num(nan=torch.inf)
        .item()
        for ours, theirs in zip(actual, exact, strict=True)
    )


def refuse_above(tolerance: float, error: float, what: str) -> None:
    """Raise unless an error is small enough.

    Raises:
        CheckFailed: It is not; says ``what`` is wrong.
    """
    if not error <= tolerance:
        raise CheckFailed(f"{what}: error {error:.2g}.")


def time_calls(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    ours: Iterable[str],
    errors: Mapping[str, float],
    direction: str,
    size: int,
    flops: int,
    bytes_moved: int,
    budget_s: float,
) -> list[Record]:
    """Time calls that have been found right, taking turns.

    Args:
        calls: By name.
        device: Where they compute.
        ours: The names of those that the package holds.
        errors: The largest error of each.
        direction: What is computed.
        size: How large.
        flops: The fewest operations that it takes.
        bytes_moved: The fewest bytes.
        budget_s: Seconds for each.

    Returns:
        An entry for each, as they stand in a record's ``results``.
    """
    entries = []
    taken_by = measure(calls, timer_for(device), budget_s=budget_s, most=MOST)
    for name, taken in taken_by.items():
        if isinstance(taken, Exception):
            raise taken
        result = Result(name, name in ours, direction, size, status=MEASURED)
        result.max_error, result.repeats = errors[name], len(taken)
        for key, value in summarise(taken).items():
            setattr(result, key, value)
        entries.append(asdict(result) | {"flops": flops, "bytes_moved": bytes_moved})
    return entries


def make_record(
    name: str,
    title: str,
    start: dict[str, Any],
    results: list[Record],
    *,
    quick: bool,
    tolerance: float,
    sizes: Any,
) -> Record:
    """A record as ``python -m attn_course.benchmarks`` stores them.

    Args:
        name: Of the benchmark.
        title: What is computed.
        start: What ``environment.describe`` said before the first call was timed.
        results: From ``time_calls``.
        quick: Whether it was a quick run.
        tolerance: The largest error allowed.
        sizes: A dataclass of numbers.

    Raises:
        ValueError: The record is not in order.
    """
    record = {
        "schema": SCHEMA,
        "case": name,
        "title": title,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        **start,
        "load_at_end": environment.load(),
        "tolerance": tolerance,
        "sizes": json.loads(json.dumps(asdict(sizes))),  # tuples become lists, as in a file
        "results": results,
    }
    check_record(record)
    return record


def main(
    name: str,
    description: str | None,
    run: Callable[[bool, torch.device, float], Record],
    arguments: list[str] | None = None,
) -> int:
    """Run a benchmark's command; return its exit status.

    Args:
        name: Of the benchmark.
        description: For ``--help``.
        run: From whether to be quick, the device and the seconds for each call to a record.
        arguments: Of the command; those of this process by default.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m attn_course.benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small, few repeats, stores nothing")
    parser.add_argument("--output", type=Path, help="folder for the record; the package's own")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    try:
        budget_s = QUICK_BUDGET_S if options.quick else BUDGET_S
        record = run(options.quick, torch.device(options.device), budget_s)
    except CheckFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(table(record))
    if not options.quick:
        print(f"stored: {store(record, options.output or RESULTS)}")
    return 0
