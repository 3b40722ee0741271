"""A loop over time on the GPU, to compare scans with: what the source's kernel does.

A program walks through one grid, all lanes side by side, one unit of time after the other: rows
of the one-to-many grid, and likewise anti-diagonals of the many-to-many grid, which the source
left out. The neighbour of a lane belongs to another thread, so it goes through memory, with a
barrier in every step. As there, a lane is a number of a block: so many lanes fit at most.

Unlike there, logits come in and phi goes out, without logarithms; nothing lies outside the block;
and what comes in is not changed. Backward is the loop of ``scan``.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attn_course._triton import ARCHITECTURES, REASON, Shipped, tl, triton

if triton is None:
    raise ImportError(f"attn_course.benchmarks.time_steps_kernel needs triton: {REASON}.")

#: The most lanes.
MAX_BLOCK = 8192


@triton.jit
def _at(t, lane, rows, columns, SLANT: tl.constexpr):
    """Where a node is in its grid, and whether it is in it. SLANT: node (lane, t - lane)."""
    if SLANT:
        inside = (lane < rows) & (t >= lane) & (t - lane < columns)
        place = lane.to(tl.int64) * (columns - 1) + t
    else:
        inside = (lane < columns) & (t < rows)
        place = lane.to(tl.int64) + t * columns
    return place, inside & (lane >= 0)


@triton.jit
def _steps_fwd_kernel(
    x_ptr, phi_ptr, rows, columns, times, SLANT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * rows * columns
    lane = tl.arange(0, BLOCK)
    now = tl.where(lane == 0, 1.0, 0.0)
    place, inside = _at(0, lane, rows, columns, SLANT)
    tl.store(phi_ptr + start + place, now, mask=inside)
    for t in range(1, times):
        tl.debug_barrier()  # the neighbour's number is there
        mine, was_inside = _at(t - 1, lane, rows, columns, SLANT)
        other, was_there = _at(t - 1, lane - 1, rows, columns, SLANT)
        x = tl.load(x_ptr + start + mine, mask=was_inside, other=0.0)  # [BLOCK]
        y = tl.load(x_ptr + start + other, mask=was_there, other=0.0)  # [BLOCK]
        before = tl.load(phi_ptr + start + other, mask=was_there, other=0.0)  # [BLOCK]
        place, inside = _at(t, lane, rows, columns, SLANT)
        now = tl.where(inside, now * tl.sigmoid(x) + before * tl.sigmoid(-y), 0.0)
        tl.store(phi_ptr + start + place, now, mask=inside)


@triton.jit
def _steps_bwd_kernel(
    x_ptr, phi_ptr, total_ptr, dx_ptr, rows, columns, times,
    SLANT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``total`` holds what comes in, and becomes G."""
    start = tl.program_id(0).to(tl.int64) * rows * columns
    lane = tl.arange(0, BLOCK)
    stays = tl.zeros([BLOCK], dtype=tl.float32)
    for back in range(0, times):
        tl.debug_barrier()
        t = times - 1 - back
        place, inside = _at(t, lane, rows, columns, SLANT)
        other, is_there = _at(t + 1, lane + 1, rows, columns, SLANT)
        x = tl.load(x_ptr + start + place, mask=inside, other=0.0)  # [BLOCK]
        phi = tl.load(phi_ptr + start + place, mask=inside, other=0.0)  # [BLOCK]
        comes = tl.load(total_ptr + start + place, mask=inside, other=0.0)  # [BLOCK]
        moves = tl.load(total_ptr + start + other, mask=is_there, other=0.0)  # [BLOCK]
        p, q = tl.sigmoid(x), tl.sigmoid(-x)
        tl.store(dx_ptr + start + place, phi * p * q * (stays - moves), mask=inside)
        stays = tl.where(inside, comes + p * stays + q * moves, 0.0)
        tl.store(total_ptr + start + place, stays, mask=inside)


class TimeSteps(torch.autograd.Function):
    """phi from logits, ``[batch, I, J]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: str) -> Tensor:
        """Launch a program for each grid."""
        x = x.contiguous()
        phi = torch.zeros_like(x)
        ctx.save_for_backward(x, phi)
        ctx.arguments = arguments(x.shape[1], x.shape[2], model)
        _steps_fwd_kernel[(len(x),)](x, phi, **ctx.arguments)
        return phi

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_phi: Tensor) -> tuple[Tensor, None]:
        """dL/dx from ``dL/dphi``."""
        x, phi = ctx.saved_tensors
        total = grad_phi.clone(memory_format=torch.contiguous_format)
        dx = torch.empty_like(x)
        _steps_bwd_kernel[(len(x),)](x, phi, total, dx, **ctx.arguments)
        return dx, None


def arguments(rows: int, columns: int, model: str) -> dict[str, Any]:
    """What a launch needs.

    Raises:
        ValueError: There are more lanes than a block holds.
    """
    slant = model == "many_to_many"
    lanes = rows if slant else columns
    if lanes > MAX_BLOCK:
        raise ValueError(f"a block holds {MAX_BLOCK} lanes, got {lanes}.")
    block = max(16, triton.next_power_of_2(lanes))
    return {
        "rows": rows,
        "columns": columns,
        "times": rows + columns - 1 if slant else rows,
        "SLANT": slant,
        "BLOCK": block,
        "num_warps": min(32, max(1, block // 128)),
    }


def shipped() -> Iterator[Shipped]:
    """Both kernels, for a few lanes and for the most that are measured."""
    for arch in ARCHITECTURES:
        for kernel in (_steps_fwd_kernel, _steps_bwd_kernel):
            for model in ("many_to_many", "one_to_many"):
                for size in (256, 2048):
                    given = arguments(size, size, model)
                    options = {"num_warps": given["num_warps"]}
                    constexprs = {name: given[name] for name in ("SLANT", "BLOCK")}
                    signature = {
                        name: "constexpr"
                        if name in constexprs
                        else ("*fp32" if name.endswith("_ptr") else "i32")
                        for name in kernel.arg_names
                    }
                    yield Shipped(kernel, arch, signature, constexprs, options)
