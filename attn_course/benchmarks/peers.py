"""Peers that many cases have: why one cannot run, what one needs, and our own kernel."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch

from attn_course import _triton
from attn_course.benchmarks.cases import FORWARD, Function, Peer


def kernel_peer(make: Callable[[torch.device], Function]) -> Peer:
    """Our GPU kernel; where it is interpreted it is checked, but not timed."""
    return Peer("triton", make, ours=True, why_not=no_triton, why_untimed=interpreted)


def no_triton(device: torch.device) -> str:
    """Why the kernel cannot run on a device."""
    try:
        _triton.require(device)
    except RuntimeError as error:
        return str(error)
    return ""


def interpreted(device: torch.device) -> str:
    """Why the kernel's time would say nothing."""
    return "interpreted, so its time says nothing" if _triton.INTERPRETED else ""


def not_compiled(device: torch.device) -> str:
    """Why the kernel cannot run, where even to check it interpreted would take minutes."""
    return no_triton(device) or interpreted(device)


def no_tensor_cores(device: torch.device) -> str:
    """Why a backend for bfloat16 cannot run."""
    older = torch.cuda.get_device_capability(device) < (8, 0)
    return "needs bfloat16 on tensor cores, sm_80 or newer" if older else ""


def no_d2l(device: torch.device) -> str:
    """Why d2l cannot run."""
    return "" if find_spec("d2l") else "not installed"


def matrices(count: int, count_backward: int, size: int, direction: str) -> int:
    """Bytes of as many float32 matrices of n x n."""
    return 4 * size * size * (count if direction == FORWARD else count_backward)
