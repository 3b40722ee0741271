"""A case small enough to see through: each row of the output is the sum of its input row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attn_course.benchmarks.cases import BOTH, FORWARD, Case, Peer, random_inputs

CPU = torch.device("cpu")


def right(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True)


def wrong(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True) + 0.01


def wrong_gradient(x: Tensor) -> Tensor:
    return right(x.detach()) + 2 * right(x) - 2 * right(x).detach()


def peer(name: str, function: Callable[[Tensor], Tensor], **options: Any) -> Peer:
    return Peer(name, lambda device: function, **options)


def fake_case(*peers: Peer, **options: Any) -> Case:
    arguments: dict[str, Any] = {
        "name": "sums",
        "title": "Sums of rows",
        "inputs": lambda size, device: random_inputs([(size, 3)], device, seed=size),
        "expected": lambda inputs, rows: inputs[0][rows].sum(-1, keepdim=True),
        "peers": peers,
        "sizes": {"cpu": {FORWARD: (100, 200), BOTH: (100,)}},
        "quick_sizes": {FORWARD: (100,)},
        "flops": lambda size, direction: 3 * size,
        "bytes_moved": lambda size, direction: 16 * size,
    }
    return Case(**(arguments | options))


def record(
    date: str = "2026-01-02T03:04:05+00:00", kind: str = "cuda", name: str = "Fake GPU"
) -> dict[str, Any]:
    """A complete record, of two peers at two sizes and a third that could not run."""
    row = {"ours": True, "direction": FORWARD, "status": "measured", "reason": "", "repeats": 3}
    row |= {"max_error": 1e-6, "peak_bytes": 1 << 20, "flops": 1, "bytes_moved": 1}
    times = {"p10_s": 1e-3, "median_s": 2e-3, "p90_s": 3e-3}
    measured = [
        row | times | {"peer": peer, "size": size}
        for size in (1024, 4096)
        for peer in ("triton", "naive")
    ]
    no_times = dict.fromkeys((*times, "max_error", "peak_bytes"))
    absent = row | no_times | {"peer": "KeOps", "size": 64, "repeats": 0, "ours": False}
    absent |= {"status": "unavailable", "reason": "not installed"}
    return {
        "schema": 1,
        "case": "sums",
        "title": "Sums of rows",
        "date": date,
        "device": {"type": kind, "name": name, "capability": "9.0", "slug": "fake-gpu"},
        "cpu": {"model": "fake", "cores": 2, "threads": 2},
        "versions": {"torch": "1.2.3", "triton": "4.5.6"},
        "commit": None,
        "results": [*measured, absent],
    }
