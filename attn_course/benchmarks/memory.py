"""The most memory that a call has in use, beside what was in use before it.

On a GPU the allocator of torch counts. On a CPU each call runs in a process of its own, as
``python -m attn_course.benchmarks.memory CASE PEER SIZE DIRECTION``: memory that one peer
has freed could otherwise hide what the next one takes. There the peak of the resident set
counts, as the kernel of Linux keeps it for the program (``VmHWM``), less the resident set
before the call. ``getrusage`` would not do: its ``ru_maxrss`` begins at the peak of the
process that started the program, which has just measured larger things.
"""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

from attn_course.benchmarks.cases import Case, Peer, all_cases
from attn_course.benchmarks.trial import Trial

TIMEOUT_S = 300


def peak_bytes(
    case: Case, peer: Peer, size: int, direction: str, device: torch.device
) -> int | None:
    """Measure one call of a peer.

    Args:
        case: A registered one, if the device is a CPU.
        peer: One of its peers.
        size: How large.
        direction: ``forward`` or ``forward+backward``.
        device: Where.

    Returns:
        Bytes, or ``None`` where this system does not say.

    Raises:
        RuntimeError: The process that measures failed.
    """
    if device.type == "cuda":
        return _on_cuda(case, peer, size, direction, device)
    if not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, "-m", __name__, case.name, peer.name, str(size), direction]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if run.returncode:
        raise RuntimeError(f"measuring memory of {peer.name} at {size}: {run.stderr[-500:]}")
    return int(run.stdout.split()[-1])


def _on_cuda(case: Case, peer: Peer, size: int, direction: str, device: torch.device) -> int:
    trial, function = Trial(case, size, direction, device), peer.make(device)
    trial.run(function)  # compiles, and makes the gradient that comes in
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    trial.run(function)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(case: Case, peer: Peer, size: int, direction: str) -> int:
    device = torch.device("cpu")
    Trial(case, case.tiny, direction, device).run(peer.make(device))  # loads what is loaded lazily
    trial, function = Trial(case, size, direction, device), peer.make(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = process_status("VmRSS")
    trial.run(function)
    return max(process_status("VmHWM") - before, 0)


def process_status(field: str) -> int:
    """A number of bytes that Linux tells of this process, such as ``VmRSS`` or ``VmHWM``.

    Raises:
        RuntimeError: It does not.
    """
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if not found:
        raise RuntimeError(f"/proc/self/status does not tell {field}.")
    return int(found[1]) * 1024


def main(arguments: list[str]) -> None:
    """Print the bytes of one call."""
    name, peer_name, size, direction = arguments
    case = all_cases()[name]
    peer = next(peer for peer in case.peers if peer.name == peer_name)
    print(_on_cpu(case, peer, int(size), direction))


if __name__ == "__main__":
    main(sys.argv[1:])
