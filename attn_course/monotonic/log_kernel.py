r"""Log visit probabilities on the GPU: the scan of ``kernel`` in numbers with a long exponent.

A path of thousands of steps has a probability of 2^-5000, and a float32 ends at 2^-149. The way
out in the chapter's text is to add up logarithms. It costs an exp and a log for each sum, in each
round of the scan; and it costs digits: where log phi is -3000, float32 has steps of 0.0002, so
phi itself, and the shares that gradients are made of, are known to three or four digits. (``ops``
adds up in float64 therefore, which a GPU does at a half to a 64th of the speed.)

What a float32 lacks is not digits, though, but exponent. So a probability is here a pair,

    m 2^e,    1 <= m < 2,    e an integer, stored as a float; nothing at all is e = -inf,

    product:  (m1 m2) 2^(e1 + e2),
    sum:      (m1 2^(e1 - e) + m2 2^(e2 - e)) 2^e,    e = max(e1, e2),

where m is halved if it has reached 2. Powers of two round nothing: phi is as exact as in float32
without underflow, to 2^-24 or so for each product and sum on the way. Only at the end is the
logarithm taken, e log 2 + log m, and rounded once. Measured against float64 on 1,024 x 4,096
standard normal logits, log phi down to -3,300: pairs know phi to 1e-5 and log phi to half of its
last digit; sums of float32 logarithms know phi to 1.3e-4. With logits ten times as large and log
phi down to -17,000 it is 1.3e-5 and 1e-3. (That was these formulas, in PyTorch, one time after the
other.) Near 0, log phi is exact to what phi is. e counts exactly to 2^24, which is log phi =
-1.1e7; beyond, it is as coarse as float32 is there.

Tiles, waves and lengths are those of ``kernel``. Pairs are handed over, m in the first half of a
buffer, e in the second.

For the backward pass a node v must know which share of its paths came from the left, and which
from above (see ``reference``: w). Both lie in [0, 1], one may be tiny, and they add up to 1; the
*odds* say both without losing either:

    odds = log(from the left / from above),    w_left = sigmoid(odds), w_above = sigmoid(-odds).

They are all that is saved besides the logits; NaN where no path leads. To part what came from the
left again from what came from above, a program needs phi of the place before, which another
thread holds. It does not ask for it, but computes it a second time: it scans not phi_(l, s), but
*before*_(l, s) = phi_(l, s-1), by the same recurrence one place further left, and then

    left = before stay_(s-1),    phi = left + above.

Moved, in numbers: logits read, log phi and odds written (log phi twice, for the nodes without a
path). Work: some 30 operations in each round of the scan.

Precision: float32 (float64 for float64).
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from attn_course._precision import wide_dtype
from attn_course._triton import Shipped, tl, triton
from attn_course.monotonic.kernel import (
    _along,
    _hand_over,
    _my_tile,
    buffers,
    compilations,
    launch,
    number,
    tiling,
)

LOG2_E = tl.constexpr(math.log2(math.e))
# log 2 in two parts, of which the first has so few digits that products with e are exact.
LOG_2 = tl.constexpr(355 / 512)
LOG_2_REST = tl.constexpr(math.log(2) - 355 / 512)
NOTHING = tl.constexpr(-math.inf)


@triton.jit
def _normal(m, e):
    """The same number with 1 <= m < 2, if m was in [0.5, 4)."""
    half = m >= 2
    m, e = tl.where(half, 0.5 * m, m), tl.where(half, e + 1, e)
    double = m < 1
    return tl.where(double, 2 * m, m), tl.where(double, e - 1, e)


@triton.jit
def _times(m1, e1, m2, e2):
    return _normal(m1 * m2, e1 + e2)


@triton.jit
def _plus(m1, e1, m2, e2):
    e = tl.maximum(e1, e2)
    down1 = tl.where(e1 == e, 0.0, e1 - e)  # not -inf - (-inf)
    down2 = tl.where(e2 == e, 0.0, e2 - e)
    return _normal(m1 * tl.exp2(down1) + m2 * tl.exp2(down2), e)


@triton.jit
def _then(am1, ae1, bm1, be1, am2, ae2, bm2, be2):
    """The map x -> a1 x + b1 and then x -> a2 x + b2: again such a map."""
    am, ae = _times(am1, ae1, am2, ae2)
    m, e = _times(bm1, be1, am2, ae2)
    bm, be = _plus(m, e, bm2, be2)
    return am, ae, bm, be


@triton.jit
def _log(m, e):
    """The logarithm: near 1 from m alone, and e log 2 without rounding."""
    half = m > 1.5
    m, e = tl.where(half, 0.5 * m, m), tl.where(half, e + 1, e)
    far = e * LOG_2 + (e * LOG_2_REST + tl.log(m))
    return tl.where(e == NOTHING, NOTHING, far)


@triton.jit
def _coin(x):
    """sigmoid(x) and sigmoid(-x): with z = exp(-|x|), the rarer is z / (1 + z)."""
    size = tl.abs(x)
    e = tl.floor(size * -LOG2_E)
    rest = -size - e * LOG_2 - e * LOG_2_REST  # z = exp(rest) 2^e
    rest = tl.where((rest > -0.5) & (rest < 1), rest, 0.0)  # of 1e30 or infinity nothing is left
    total = 1 + tl.exp(-size)
    rare_m, rare_e = _normal(tl.exp(rest) / total, e)
    often_m, often_e = _normal(1 / total, tl.zeros_like(e))
    flipped = x < 0
    return (
        tl.where(flipped, rare_m, often_m),
        tl.where(flipped, rare_e, often_e),
        tl.where(flipped, often_m, rare_m),
        tl.where(flipped, often_e, rare_e),
    )


@triton.jit(do_not_specialize=["wave"])
def _log_visit_fwd_kernel(
    x_ptr,  # [batch, lanes, width], any strides
    lanes_ptr,  # [batch], int32, how many lanes count
    lengths_ptr,  # [batch], int32, how much of the width counts
    log_phi_ptr,  # [batch, lanes, width], contiguous
    odds_ptr,  # [batch, lanes, width], contiguous
    top_in_ptr,  # [2, batch, places], what flows in from above
    left_in_ptr,  # [2, batch, >= lanes], phi at the last place of the tile on the left
    top_out_ptr,  # as top_in, for the wave to come
    left_out_ptr,  # as left_in, for the wave to come
    wave, height, lanes, width, places,
    stride_xb, stride_xl, stride_xk, stride_left,
    SLANT: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, begin, start, stop, length = _my_tile(
        lanes_ptr, lengths_ptr, wave, height, places, SLANT, BLOCK
    )
    s = begin + tl.arange(0, BLOCK)
    at_edge = s == begin
    x_ptr += b * stride_xb + start.to(tl.int64) * stride_xl
    log_phi_ptr += (b * lanes + start) * width
    odds_ptr += (b * lanes + start) * width
    left_in_ptr += b * stride_left
    left_out_ptr += b * stride_left
    items = tl.num_programs(0).to(tl.int64)
    to_left_e, to_top_e = items * stride_left, items * places  # from each m

    # What flows in from above at s and, for the places after the first, at s - 1: [BLOCK]
    top_in_ptr += b * places + s
    above_m, above_e = tl.load(top_in_ptr), tl.load(top_in_ptr + to_top_e)
    early_m = tl.load(top_in_ptr - 1, mask=s > begin, other=1.0)
    early_e = tl.load(top_in_ptr - 1 + to_top_e, mask=s > begin, other=NOTHING)
    for lane in range(start, stop):
        first = SLANT * lane
        k = first + s
        _, _, move_m, move_e = _coin(_along(x_ptr, k, first, length, stride_xk, 0.0, DTYPE))
        stay1_m, stay1_e, move1_m, move1_e = _coin(
            _along(x_ptr, k - 1, first, length, stride_xk, 0.0, DTYPE)
        )
        stay2_m, stay2_e, _, _ = _coin(_along(x_ptr, k - 2, first, length, stride_xk, 0.0, DTYPE))

        # Before the first place is the last one of the tile on the left, whatever is further left.
        left_m, left_e = tl.load(left_in_ptr + lane), tl.load(left_in_ptr + lane + to_left_e)
        _, _, before_m, before_e = tl.associative_scan(
            (
                stay2_m,
                stay2_e,  # the first map's a meets nothing
                tl.where(at_edge, left_m, early_m),
                tl.where(at_edge, left_e, early_e),
            ),
            0,
            _then,
        )
        from_left_m, from_left_e = _times(before_m, before_e, stay1_m, stay1_e)
        m, e = _plus(from_left_m, from_left_e, above_m, above_e)

        # inf - inf, NaN, where there are neither
        odds = (from_left_e - above_e) / LOG2_E + tl.log(from_left_m / above_m)
        tl.store(odds_ptr + k, odds, mask=k < length)
        tl.store(log_phi_ptr + k, _log(m, e), mask=k < length)

        last = s == begin + BLOCK - 1
        _hand_over(left_out_ptr, lane, m, last)
        _hand_over(left_out_ptr + to_left_e, lane, e, last)
        above_m, above_e = _times(m, e, move_m, move_e)
        early_m, early_e = _times(before_m, before_e, move1_m, move1_e)
        x_ptr += stride_xl
        log_phi_ptr += width
        odds_ptr += width
    top_out_ptr += b * places + s
    tl.store(top_out_ptr, above_m)
    tl.store(top_out_ptr + to_top_e, above_e)


def log_forward(x: Tensor, lanes: Tensor, lengths: Tensor, slant: int) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel.

    Args:
        x: How much staying is preferred, logits, ``[batch, lanes, width]``.
        lanes: How many lanes of each item count, ``[batch]``, int32.
        lengths: How much of the width, likewise.
        slant: 1: place s of lane l is at s + l.

    Returns:
        log phi, and the log of the odds that a path came by staying, both
        ``[batch, lanes, width]``, float32 or float64. Odds past the lengths have no meaning.
    """
    tiles = tiling(x)
    log_phi = torch.full(x.shape, -math.inf, dtype=wide_dtype(x.dtype), device=x.device)
    odds = torch.empty_like(log_phi)
    edges = buffers(tiles, 2, log_phi)
    for edge in edges:  # nothing
        edge[:, 0], edge[:, 1] = 1, -math.inf
    edges.top[0, 1, :, 0] = 0  # but for the start
    launch(
        _log_visit_fwd_kernel, tiles, (x, lanes, lengths, log_phi, odds), x.stride(), edges,
        SLANT=slant, DTYPE=number(x),
    )  # fmt: skip
    return log_phi, odds


def shipped() -> Iterator[Shipped]:
    """The forward kernel as the launcher calls it, for each architecture."""
    yield from compilations(_log_visit_fwd_kernel)
