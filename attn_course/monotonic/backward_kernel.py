r"""Visit probabilities on the GPU: the backward pass, and both passes as one operation.

Lanes and places are those of ``kernel``. A node passes on ``by_stay`` of itself to the next place,
and ``by_move`` to the next lane. With g what comes in and G = ``dL/dphi``, all that a node leads to
included,

    G_(l, s) = g_(l, s) + by_stay_(l, s) G_(l, s+1) + by_move_(l, s) G_(l+1, s),

the recurrence of the forward pass against its steps: lanes from the last to the first, tiles from
the last wave to the first, places from right to left. (A scan cannot run from right to left on
all GPUs; the program holds its places in reverse.) For probabilities

    by_stay = p, by_move = q,    dL/dx = phi p q (G_(l, s+1) - G_(l+1, s)),

p staying's; for logarithms the shares of the two nodes that the steps lead to, from the odds that
the forward pass left there (see ``log_kernel``), and H in place of G,

    by_stay_(l, s) = w_left(l, s+1), by_move_(l, s) = w_above(l+1, s),
    dL/dx = q by_stay H_(l, s+1) - p by_move H_(l+1, s).

dL/dx needs G of the next place, which another thread holds. As in ``log_kernel`` that is what the
scan computes: *after*_(l, s) = G_(l, s+1), by the recurrence one place further right, and G follows
from it. The program carries both from lane to lane, since G_(l+1, s) and G_(l+1, s+1) are needed.

Nodes past the lengths, or with log phi = -inf, take nothing of what comes in, be it infinite; each
gradient has one owner, and no atomics are used: runs repeat bit for bit.

Moved, in numbers: logits, g and phi or odds read, once from memory and up to four times from
cache; dL/dx written (twice, if there are nodes without a place).

Precision: float32 (float64 for float64); dL/dx is rounded to the type of the logits.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attn_course._triton import Shipped, tl, triton
from attn_course.monotonic.kernel import (
    _along,
    _hand_over,
    _my_tile,
    buffers,
    compilations,
    forward,
    launch,
    number,
    tiling,
)
from attn_course.monotonic.log_kernel import log_forward


@triton.jit
def _odds(odds_ptr, k, length):
    """Of a lane: [BLOCK]; NaN where no path leads, and outside the length."""
    return _along(odds_ptr, k, 0, length, 1, float("nan"), odds_ptr.dtype.element_ty)


@triton.jit
def _share(odds):
    """The share w from its log odds; 0 if there is nothing to share."""
    return tl.where(odds == odds, tl.sigmoid(odds), 0.0)


@triton.jit
def _weights(
    x_ptr, saved_ptr, grad_ptr, k, length, below, width, stride_xk, stride_gk,
    LOG: tl.constexpr, SLANT: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """What comes in to the nodes of a lane, and by_stay and by_move: each [BLOCK].

    ``below`` is the length of the next lane, 0 if there is none.
    """
    g = _along(grad_ptr, k, 0, length, stride_gk, 0.0, DTYPE)
    if LOG:
        here = _odds(saved_ptr, k, length)
        g = tl.where(here == here, g, 0.0)
        by_stay = _share(_odds(saved_ptr, k + 1, length))
        by_move = _share(-_odds(saved_ptr + width, k + SLANT, below))
    else:
        x = _along(x_ptr, k, 0, length, stride_xk, 0.0, DTYPE)
        by_stay, by_move = tl.sigmoid(x), tl.sigmoid(-x)
    return g, by_stay, by_move


@triton.jit
def _then(a1, b1, a2, b2):
    """The map x -> a1 x + b1 and then x -> a2 x + b2: again such a map."""
    return a1 * a2, a2 * b1 + b2


@triton.jit(do_not_specialize=["wave"])
def _visit_bwd_kernel(
    x_ptr,  # [batch, lanes, width], any strides
    lanes_ptr,  # [batch], int32, how many lanes count
    lengths_ptr,  # [batch], int32, how much of the width counts
    saved_ptr,  # [batch, lanes, width], contiguous: phi, or the odds of log phi
    grad_ptr,  # [batch, lanes, width], dL/dphi or dL/dlog phi, any strides
    dx_ptr,  # [batch, lanes, width], contiguous
    bottom_in_ptr,  # [batch, places], G of the first lane of the tile below
    right_in_ptr,  # [batch, >= lanes], G of the first place of the tile on the right
    bottom_out_ptr,  # as bottom_in, for the wave to come
    right_out_ptr,  # as right_in, for the wave to come
    wave, height, lanes, width, places,
    stride_xb, stride_xl, stride_xk, stride_gb, stride_gl, stride_gk, stride_right,
    LOG: tl.constexpr, SLANT: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, begin, start, stop, length = _my_tile(
        lanes_ptr, lengths_ptr, wave, height, places, SLANT, BLOCK
    )
    count = tl.load(lanes_ptr + b)
    s = begin + BLOCK - 1 - tl.arange(0, BLOCK)  # in reverse
    last = s == begin + BLOCK - 1
    end = (stop - 1).to(tl.int64)  # the lane to begin with
    x_ptr += b * stride_xb + end * stride_xl
    grad_ptr += b * stride_gb + end * stride_gl
    saved_ptr += (b * lanes + end) * width
    dx_ptr += (b * lanes + end) * width
    right_in_ptr += b * stride_right
    right_out_ptr += b * stride_right

    # G of the next lane at s and, but for the last place, at s + 1: [BLOCK]
    bottom_in_ptr += b * places + s
    below = tl.load(bottom_in_ptr)
    below_after = tl.load(bottom_in_ptr + 1, mask=s < begin + BLOCK - 1, other=0.0)
    for step in range(0, stop - start):
        lane = stop - 1 - step
        k = s + SLANT * lane
        next_length = tl.where(lane + 1 < count, length, 0)
        g1, stay1, move1 = _weights(
            x_ptr, saved_ptr, grad_ptr, k + 1, length, next_length, width,
            stride_xk, stride_gk, LOG, SLANT, DTYPE,
        )  # fmt: skip
        # After the last place is the first one of the tile on the right, whatever is further right.
        right = tl.load(right_in_ptr + lane)
        _, after = tl.associative_scan(
            (
                stay1,  # the first map's a meets nothing
                tl.where(last, right, g1 + move1 * below_after),
            ),
            0,
            _then,
        )
        g, by_stay, by_move = _weights(
            x_ptr, saved_ptr, grad_ptr, k, length, next_length, width,
            stride_xk, stride_gk, LOG, SLANT, DTYPE,
        )  # fmt: skip
        total = g + by_stay * after + by_move * below

        x = _along(x_ptr, k, 0, length, stride_xk, 0.0, DTYPE)
        p, q = tl.sigmoid(x), tl.sigmoid(-x)
        if LOG:
            dx = q * by_stay * after - p * by_move * below
        else:
            phi = _along(saved_ptr, k, 0, length, 1, 0.0, DTYPE)
            dx = phi * p * q * (after - below)
        tl.store(dx_ptr + k, dx.to(dx_ptr.dtype.element_ty), mask=k < length)
        _hand_over(right_out_ptr, lane, total, s == begin)
        below, below_after = total, after
        x_ptr -= stride_xl
        grad_ptr -= stride_gl
        saved_ptr -= width
        dx_ptr -= width
    tl.store(bottom_out_ptr + b * places + s, below)


def backward(
    x: Tensor, lanes: Tensor, lengths: Tensor, saved: Tensor, grad: Tensor, slant: int, log: bool
) -> Tensor:
    """Launch the backward kernel.

    Args:
        x: As in the forward pass, ``[batch, lanes, width]``.
        lanes: As there.
        lengths: As there.
        saved: phi, or the odds, as they were returned.
        grad: What comes in, the same shape.
        slant: As there.
        log: Whether it comes in to log phi.

    Returns:
        dL/dx, ``[batch, lanes, width]``, of the type of x.
    """
    tiles = tiling(x)
    dx = torch.zeros_like(x, memory_format=torch.contiguous_format)
    launch(
        _visit_bwd_kernel, tiles, (x, lanes, lengths, saved, grad, dx),
        (*x.stride(), *grad.stride()), buffers(tiles, 1, saved), reverse=True,
        LOG=log, SLANT=slant, DTYPE=number(x),
    )  # fmt: skip
    return dx


def visits(
    logits: Tensor, row_lens: Tensor, column_lens: Tensor, *, model: str, log: bool
) -> Tensor:
    """Visit probabilities, differentiable once.

    Args:
        logits: ``[batch, I, J]``, any strides; half precision is computed in float32.
        row_lens: How many rows of each item count, ``[batch]``.
        column_lens: How many columns.
        model: ``"many_to_many"`` or ``"one_to_many"``.
        log: Return log phi.

    Returns:
        phi or log phi, ``[batch, I, J]``, float32 or float64; 0 or -inf outside the lengths.
    """
    rows, columns = logits.shape[1:]
    row_lens, column_lens = row_lens.to(torch.int32), column_lens.to(torch.int32)
    if model == "one_to_many":
        return _Visits.apply(logits.mT, column_lens, row_lens, 1, log).mT
    if rows > columns:  # columns as lanes: p and q change roles
        return _Visits.apply(-logits.mT, column_lens, row_lens, 0, log).mT
    return _Visits.apply(logits, row_lens, column_lens, 0, log)


class _Visits(torch.autograd.Function):
    """Launches the kernels on ``[batch, lanes, width]``."""

    @staticmethod
    def forward(ctx, x, lanes, lengths, slant, log):
        """Keep what the gradient needs: phi, or the odds."""
        if log:
            output, saved = log_forward(x, lanes, lengths, slant)
        else:
            output = saved = forward(x, lanes, lengths, slant)
        ctx.save_for_backward(x, lanes, lengths, saved)
        ctx.options = slant, log
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return backward(*ctx.saved_tensors, grad, *ctx.options), None, None, None, None


def shipped() -> Iterator[Shipped]:
    """The backward kernel as the launcher calls it, for each architecture."""
    yield from compilations(_visit_bwd_kernel, ({"LOG": False}, {"LOG": True}))
