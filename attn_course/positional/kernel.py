r"""Sinusoids on the GPU: computed where they are needed instead of read from a table.

Pair j of the columns turns by the angle i w_j at position i, with w_j = base^(-2j / dim):

    add a sinusoid   y_2j  = x_2j + sin(i w_j)     y_2j+1 = x_2j+1 + cos(i w_j)

    rotate           y_a = x_a cos(i w_j) - x_b sin(i w_j)
                     y_b = x_a sin(i w_j) + x_b cos(i w_j)

where (a, b) is (2j, 2j+1), or (j, j + dim/2): that is two strides and nothing else.

Backward: the first is x plus a constant, so dL/dx = dL/dy and there is nothing to launch.
The second is a rotation, whose transpose turns back: the same kernel, with -sin.

**The angle.** At position 65,536 a float32 angle has steps of 0.004, and that is its error.
But whole turns do not matter, and integers forget whole turns by themselves. Measure angles
in units of 2 pi / 2^64. The frequency of a pair is then an integer, f_j = w_j / 2 pi * 2^64,
and i * f_j in 64-bit arithmetic overflows: what is left is the angle modulo one turn, with
nothing rounded but f_j. Its top two bits say in which quarter turn it lies, up to a half;
the rest is an angle x in [-pi/4, pi/4], small enough that a few terms of the Taylor series
give full precision, here in nested form:

    sin x = x (1 - x^2/(2 3) (1 - x^2/(4 5) (1 - ...)))
    cos x =    1 - x^2/(1 2) (1 - x^2/(3 4) (1 - ...))

A quarter turn more makes (s, c) into (c, -s). There is no branch, where the sine of a
mathematics library has one, for large arguments, with a table of the digits of 2/pi.

Grid: a program for each tile of positions and pairs and for GROUP of the sequences (batch
items, heads) that share them; it computes its sines once and uses them GROUP times.

Saved for backward: nothing. Moved, in numbers an element: 1 read and 1 written, and dim/2
frequencies, which stay in cache. A table would add len * dim numbers, read again by each
sequence, in float32 while x may be in half precision. FLOPs: about 40 a pair and group,
3 a number of x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from attn_course._triton import ARCHITECTURES, REASON, Shipped, tl, triton

if triton is None:
    raise ImportError(f"attn_course.positional.kernel needs triton: {REASON}.")

# Positions times pairs of a tile: 8 angles a thread at 4 warps.
TILE = 1024

# Pairs of a tile at most: with them 128 columns lie side by side.
MAX_PAIRS = 64

# Sequences that share the sines of one program.
GROUP = 8


# The teaching path: this function, the next one and the rotation.
@triton.jit
def _sin_cos(position, frequency, DTYPE: tl.constexpr, TERMS: tl.constexpr):
    """Sine and cosine of position * frequency * 2 pi / 2^64, both [BLOCK_M, BLOCK_P]."""
    phase = position[:, None] * frequency[None, :]  # int64: whole turns overflow
    quarter = (phase + (1 << 61)) >> 62  # the nearest quarter turn, modulo 4
    x = (phase - (quarter << 62)).to(DTYPE) * 3.4061215800865545e-19  # 2 pi / 2^64
    square = x * x
    sin = tl.full(x.shape, 1.0, DTYPE)
    cos = tl.full(x.shape, 1.0, DTYPE)
    for k in tl.static_range(TERMS, 0, -1):
        sin = 1 - square * (1 / (2 * k * (2 * k + 1))) * sin
        cos = 1 - square * (1 / (2 * k * (2 * k - 1))) * cos
    sin *= x
    odd = (quarter & 1) == 1
    sin, cos = tl.where(odd, cos, sin), tl.where(odd, -sin, cos)
    half = (quarter & 2) == 2
    return tl.where(half, -sin, sin), tl.where(half, -cos, cos)


@triton.jit
def _place(n, inner, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr):
    """My rows and pairs, my outer sequence, and the first of my inner ones; int64."""
    tiles, groups = tl.cdiv(n, BLOCK_M), tl.cdiv(inner, GROUP)
    program = tl.program_id(0).to(tl.int64)
    rows = (program % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    pairs = tl.program_id(1).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    sequence = program // tiles
    return rows, pairs, sequence // groups, (sequence % groups) * GROUP


@triton.jit
def _rotate_kernel(
    x_ptr,  # [outer, inner, n, dim], any strides
    frequency_ptr,  # [num_pairs], turns a position, times 2^64
    y_ptr,  # [outer, inner, n, dim], contiguous
    offset,  # of the first position
    inner,
    n,
    num_pairs,
    stride_xo,
    stride_xi,
    stride_xm,
    stride_xd,
    STEP: tl.constexpr,  # columns from one pair to the next
    GAP: tl.constexpr,  # columns between the two of a pair
    INVERSE: tl.constexpr,
    DTYPE: tl.constexpr,
    TERMS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    rows, pairs, o, first = _place(n, inner, GROUP, BLOCK_M, BLOCK_P)
    frequency = tl.load(frequency_ptr + pairs, mask=pairs < num_pairs, other=0)  # [BLOCK_P]
    sin, cos = _sin_cos(offset + rows, frequency, DTYPE, TERMS)
    if INVERSE:
        sin = -sin

    inside = (rows < n)[:, None] & (pairs < num_pairs)[None, :]
    a = pairs * STEP
    b = a + GAP
    for i in range(first, first + GROUP):
        mine = inside & (i < inner)
        x = x_ptr + o * stride_xo + i * stride_xi + rows[:, None] * stride_xm
        x_a = tl.load(x + a[None, :] * stride_xd, mask=mine, other=0.0)  # [BLOCK_M, BLOCK_P]
        x_b = tl.load(x + b[None, :] * stride_xd, mask=mine, other=0.0)  # [BLOCK_M, BLOCK_P]
        x_a, x_b = x_a.to(DTYPE), x_b.to(DTYPE)
        y = y_ptr + ((o * inner + i) * n + rows[:, None]) * (2 * num_pairs)
        tl.store(y + a[None, :], x_a * cos - x_b * sin, mask=mine)
        tl.store(y + b[None, :], x_a * sin + x_b * cos, mask=mine)


@triton.jit
def _add_sinusoid_kernel(
    x_ptr,  # [outer, inner, n, dim], any strides
    frequency_ptr,  # [ceil(dim / 2)], turns a position, times 2^64
    y_ptr,  # [outer, inner, n, dim], contiguous
    offset,  # of the first position
    inner,
    n,
    dim,
    stride_xo,
    stride_xi,
    stride_xm,
    stride_xd,
    DTYPE: tl.constexpr,
    TERMS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    rows, pairs, o, first = _place(n, inner, GROUP, BLOCK_M, BLOCK_P)
    even, odd = 2 * pairs, 2 * pairs + 1
    frequency = tl.load(frequency_ptr + pairs, mask=even < dim, other=0)  # [BLOCK_P]
    sin, cos = _sin_cos(offset + rows, frequency, DTYPE, TERMS)

    for i in range(first, first + GROUP):
        mine = (rows < n)[:, None] & (i < inner)
        x = x_ptr + o * stride_xo + i * stride_xi + rows[:, None] * stride_xm
        y = y_ptr + ((o * inner + i) * n + rows[:, None]) * dim
        here = mine & (even < dim)[None, :]
        x_even = tl.load(x + even[None, :] * stride_xd, mask=here, other=0.0)  # [BLOCK_M, BLOCK_P]
        tl.store(y + even[None, :], x_even.to(DTYPE) + sin, mask=here)
        here = mine & (odd < dim)[None, :]
        x_odd = tl.load(x + odd[None, :] * stride_xd, mask=here, other=0.0)  # [BLOCK_M, BLOCK_P]
        tl.store(y + odd[None, :], x_odd.to(DTYPE) + cos, mask=here)


def rotate(x: Tensor, *, offset: int, base: float, pairs: str) -> Tensor:
    """Turn pairs of columns by their angles; differentiable as often as you like.

    Args:
        x: ``[..., len, dim]``, any strides; half precision is computed in float32.
        offset: The position of the first row.
        base: How much slower the last pairs turn than the first.
        pairs: ``"adjacent"`` or ``"halves"``.

    Returns:
        A tensor of the shape and type of ``x``.
    """
    rotated: Tensor = _Rotate.apply(x, offset, base, pairs, False)
    return rotated


def add_sinusoid(x: Tensor, *, offset: int, base: float) -> Tensor:
    """Add sines and cosines of the positions; arguments as in ``rotate``."""
    added: Tensor = _AddSinusoid.apply(x, offset, base)
    return added


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, offset, base, pairs, inverse):
        ctx.how = offset, base, pairs, inverse
        count = x.shape[-1] // 2
        step, gap = (2, 1) if pairs == "adjacent" else (1, count)
        return _launch(_rotate_kernel, x, offset, base, count, STEP=step, GAP=gap, INVERSE=inverse)

    @staticmethod
    def backward(ctx, grad):
        offset, base, pairs, inverse = ctx.how
        return _Rotate.apply(grad, offset, base, pairs, not inverse), None, None, None, None


class _AddSinusoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, offset, base):
        return _launch(_add_sinusoid_kernel, x, offset, base, x.shape[-1])

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


def _launch(kernel, x, offset, base, columns, **how):
    """Run a kernel over ``[outer, inner, n, dim]``; ``columns`` is how it counts the width."""
    four = x[(None,) * (4 - x.ndim)].flatten(0, -4)  # a view, up to two leading dimensions
    outer, inner, n, dim = four.shape
    y = x.new_empty(x.shape)
    if y.numel():
        pairs = triton.cdiv(dim, 2)
        meta = _meta(x.dtype, n, pairs, inner)
        tiles = triton.cdiv(n, meta["BLOCK_M"]) * outer * triton.cdiv(inner, meta["GROUP"])
        kernel[(tiles, triton.cdiv(pairs, meta["BLOCK_P"]))](
            four, _frequencies(dim, base, x.device), y, offset, inner, n, columns,
            *four.stride(), **how, **meta,
        )  # fmt: skip
    return y


def _meta(dtype, n, pairs, inner):
    """Tiles of TILE angles, or of as many as there are."""
    block_p = min(MAX_PAIRS, triton.next_power_of_2(pairs))
    double = dtype == torch.float64
    return {
        "DTYPE": tl.float64 if double else tl.float32,
        # The first term left out is below half a rounding at pi/4.
        "TERMS": 8 if double else 5,
        "GROUP": min(GROUP, triton.next_power_of_2(inner)),
        "BLOCK_M": min(max(1, TILE // block_p), triton.next_power_of_2(n)),
        "BLOCK_P": block_p,
        "num_warps": 4,
    }


@lru_cache(maxsize=64)
def _frequencies(dim, base, device):
    """Of each pair, turns a position times 2^64: [ceil(dim / 2)], int64."""
    column = torch.arange(0, dim, 2, dtype=torch.float64)  # 2j
    turns = base ** (-column / dim) / (2 * math.pi)  # at most 0.16, so that int64 holds it
    return (turns * 2.0**64).round().to(torch.int64).to(device)


def shipped() -> Iterator[Shipped]:
    """Each kernel as the launchers call it, for each architecture.

    Heads of 64 columns, a model of 512, and a single new token of each; what suits these
    suits them on every architecture.
    """
    integers = dict.fromkeys(
        ("offset", "inner", "n", "stride_xo", "stride_xi", "stride_xm", "stride_xd"), "i32"
    )
    for arch in ARCHITECTURES:
        for number, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
            pointers = {"x_ptr": f"*{number}", "frequency_ptr": "*i64", "y_ptr": f"*{number}"}
            for n in (1024, 1):
                meta = _meta(dtype, n, 256, 64)
                options = {"num_warps": meta.pop("num_warps")}
                signature = pointers | integers | {"dim": "i32"} | dict.fromkeys(meta, "constexpr")
                yield Shipped(_add_sinusoid_kernel, arch, signature, meta, options)
                for step, gap in ((2, 1), (1, 32)):
                    for inverse in (False, True):
                        meta = _meta(dtype, n, 32, 8)
                        meta |= {"STEP": step, "GAP": gap, "INVERSE": inverse}
                        options = {"num_warps": meta.pop("num_warps")}
                        signature = pointers | integers | {"num_pairs": "i32"}
                        signature |= dict.fromkeys(meta, "constexpr")
                        yield Shipped(_rotate_kernel, arch, signature, meta, options)
