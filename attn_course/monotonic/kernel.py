r"""Visit probabilities on the GPU: a lane as one scan, tiles in waves. Forward.

Both models are one recurrence. A path stands in a *lane* l, at a *place* s of it; one step stays
in the lane and goes on to the next place, the other moves on to the same place of the next lane:

    phi_(l, s) = phi_(l, s-1) stay_(l, s-1) + phi_(l-1, s) move_(l-1, s).                      (*)

Many-to-many: lanes are rows, places columns, stay = p, move = q; or, where there are fewer
columns than rows, the other way round. One-to-many: lanes are columns, and the place is how late
a path is, s = i - j: to stay in a column (p) makes it later by one, to move on (q) does not. In
memory place s of lane l is at k = s, or, slanted, at k = s + l. Nodes with i < j have no place:
no path gets there.

Along a lane (*) is a linear recurrence. Each place is a map of what comes from the left,
x -> a x + b with a = stay_(s-1) and b = what flows in from the lane above. Two such maps one
after the other are again such a map,

    x -> a1 x + b1 -> a2 (a1 x + b1) + b2 = (a1 a2) x + (a2 b1 + b2),

and the order in which neighbours are joined is free: ``tl.associative_scan`` joins all of them
in log2(BLOCK) rounds, within a warp without memory.

Grid. A program owns a tile, a few lanes by BLOCK places of one item. It holds in registers what
flows into its lanes from above, goes down lane by lane, and hands over twice: below, what moves
on from its last lane; to the right, for each lane, what stays on from its last place. Who has
received both may begin: the tiles of an anti-diagonal. They are a *wave*, and each wave is a
launch of its own, so that no program waits for another and none depends on which runs first.
Two sets of buffers take turns: a wave reads what the wave before wrote. The start is a 1 that
flows into the first place from above, and all else at the edges is 0.

Lengths: lanes and places past them are not read, and not written: the output is made of zeros.

Saved for the backward pass: logits and phi. Moved, in numbers: logits read, phi written (twice,
if there are zeros to begin with), and 1 / BLOCK + 1 / HEIGHT more at the edges of tiles. FLOPs a
node: 2 sigmoids and a scan, 3 log2(BLOCK) at most. One after the other: lanes + HEIGHT * (places
/ BLOCK) scans, which is what one waits for where a batch is small.

Precision: float32, whatever the logits come in (float64 for float64). phi underflows to 0 where
it is below 1e-38; all terms are positive, so nothing cancels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_course._precision import wide_dtype
from attn_course._triton import (
    ARCHITECTURES,
    REASON,
    Shipped,
    tl,
    triton,
)

if triton is None:
    raise ImportError(f"attn_course.monotonic.kernel needs triton: {REASON}.")

# Places of a tile at most, and its lanes. Not yet tuned on a GPU.
MAX_BLOCK = 512
HEIGHT = 64

# Places that a thread of a warp holds.
PER_THREAD = 4


@triton.jit
def _then(a1, b1, a2, b2):
    """The map x -> a1 x + b1 and then x -> a2 x + b2: again such a map."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def _my_tile(
    lanes_ptr, lengths_ptr, wave, height, places, SLANT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """My item; my first place; my first lane, and the one after my last; the item's length."""
    b = tl.program_id(0).to(tl.int64)
    row = tl.maximum(wave - places // BLOCK + 1, 0) + tl.program_id(1)  # of tiles
    begin = (wave - row) * BLOCK
    length = tl.load(lengths_ptr + b)
    stop = tl.minimum((row + 1) * height, tl.load(lanes_ptr + b))
    if SLANT:  # later lanes have fewer places, and may have none here
        stop = tl.minimum(stop, length - begin)
    return b, begin, row * height, stop, length


@triton.jit
def _along(row_ptr, k, first, length, stride, OTHER: tl.constexpr, DTYPE: tl.constexpr):
    """Some numbers of a lane: [BLOCK], OTHER before its first place and past the length."""
    inside = (k >= first) & (k < length)
    return tl.load(row_ptr + k.to(tl.int64) * stride, mask=inside, other=OTHER).to(DTYPE)


@triton.jit
def _hand_over(ptr, lane, value, mine):
    """Store the one number of a vector that is ``mine``."""
    tl.store(ptr + lane + tl.zeros_like(value).to(tl.int32), value, mask=mine)


# The teaching path: this kernel, with the helpers above.
@triton.jit(do_not_specialize=["wave"])
def _visit_fwd_kernel(
    x_ptr,  # [batch, lanes, width], any strides
    lanes_ptr,  # [batch], int32, how many lanes count
    lengths_ptr,  # [batch], int32, how much of the width counts
    phi_ptr,  # [batch, lanes, width], contiguous
    top_in_ptr,  # [batch, places], what flows in from above
    left_in_ptr,  # [batch, >= lanes], what flows in from the left
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
    x_ptr += b * stride_xb + start.to(tl.int64) * stride_xl
    phi_ptr += (b * lanes + start) * width
    left_in_ptr += b * stride_left
    left_out_ptr += b * stride_left

    above = tl.load(top_in_ptr + b * places + s)  # [BLOCK]
    for lane in range(start, stop):
        first = SLANT * lane
        k = first + s
        x = _along(x_ptr, k, first, length, stride_xk, 0.0, DTYPE)  # [BLOCK]
        x_before = _along(x_ptr, k - 1, first, length, stride_xk, 0.0, DTYPE)
        left = tl.load(left_in_ptr + lane)
        flows_in = above + tl.where(s == begin, left, 0.0)
        _, phi = tl.associative_scan((tl.sigmoid(x_before), flows_in), 0, _then)
        tl.store(phi_ptr + k, phi, mask=k < length)
        _hand_over(left_out_ptr, lane, phi * tl.sigmoid(x), s == begin + BLOCK - 1)
        above = phi * tl.sigmoid(-x)
        x_ptr += stride_xl
        phi_ptr += width
    tl.store(top_out_ptr + b * places + s, above)


class Tiling(NamedTuple):
    """A batch of grids cut into tiles."""

    batch: int
    lanes: int
    width: int  # of a lane in memory
    height: int  # lanes of a tile
    BLOCK: int  # places of a tile

    @property
    def rows(self) -> int:
        """Of tiles."""
        return -(-self.lanes // self.height)

    @property
    def columns(self) -> int:
        """Of tiles."""
        return -(-self.width // self.BLOCK)

    def waves(self) -> list[tuple[int, int]]:
        """The number of each wave, and how many tiles of an item are in it."""
        rows, columns = self.rows, self.columns
        return [
            (wave, min(wave, rows - 1) - max(wave - columns + 1, 0) + 1)
            for wave in range(rows + columns - 1)
        ]


def tiling(x: Tensor) -> Tiling:
    """The tiles of ``[batch, lanes, width]``."""
    batch, lanes, width = x.shape
    block = min(MAX_BLOCK, triton.next_power_of_2(max(16, width)))
    # Where tiles lie one below the other no two of them can be taken together: one will do.
    height = lanes if width <= block else min(HEIGHT, lanes)
    return Tiling(batch, lanes, width, height, block)


class Buffers(NamedTuple):
    """What tiles hand over, in two sets that take turns."""

    top: Tensor  # [2, numbers, batch, places]
    left: Tensor  # [2, numbers, batch, lanes]


def buffers(tiles: Tiling, numbers: int, like: Tensor) -> Buffers:
    """Zeros, in places for so many numbers at each step across an edge."""
    lanes = -(-tiles.lanes // 16) * 16  # the compiler asks whether pointers are multiples of 16
    return Buffers(
        like.new_zeros(2, numbers, tiles.batch, tiles.columns * tiles.BLOCK),
        like.new_zeros(2, numbers, tiles.batch, lanes),
    )


def launch(
    kernel: Any, tiles: Tiling, tensors: tuple[Tensor, ...], strides: tuple[int, ...],
    edges: Buffers, *, reverse: bool = False, **meta: Any,
) -> None:  # fmt: skip
    """Launch the waves one after the other.

    Args:
        kernel: Whose arguments begin with ``tensors`` and the four buffers, and end with the
            sizes and strides given here.
        tiles: The tiles.
        tensors: The first arguments.
        strides: The last arguments, less that of ``left``.
        edges: With what the first wave is to read in set 0.
        reverse: Begin with the last wave.
        meta: The constants, less ``BLOCK``.
    """
    if not tiles.batch:
        return
    top, left = edges
    options = {"BLOCK": tiles.BLOCK, "num_warps": warps(tiles.BLOCK), **meta}
    waves = tiles.waves()
    for turn, (wave, count) in enumerate(reversed(waves) if reverse else waves):
        now, next_ = turn % 2, 1 - turn % 2
        kernel[(tiles.batch, count)](
            *tensors, top[now], left[now], top[next_], left[next_],
            wave, tiles.height, tiles.lanes, tiles.width, top.shape[-1],
            *strides, left.shape[-1], **options,
        )  # fmt: skip


def warps(block: int) -> int:
    """So many that a thread holds ``PER_THREAD`` places."""
    return max(1, block // (32 * PER_THREAD))


def forward(x: Tensor, lanes: Tensor, lengths: Tensor, slant: int) -> Tensor:
    """Launch the forward kernel.

    Args:
        x: How much staying is preferred, logits, ``[batch, lanes, width]``.
        lanes: How many lanes of each item count, ``[batch]``, int32.
        lengths: How much of the width, likewise.
        slant: 1: place s of lane l is at s + l.

    Returns:
        phi, ``[batch, lanes, width]``, float32 or float64.
    """
    tiles = tiling(x)
    phi = torch.zeros(x.shape, dtype=wide_dtype(x.dtype), device=x.device)
    edges = buffers(tiles, 1, phi)
    edges.top[0, ..., 0] = 1
    launch(
        _visit_fwd_kernel, tiles, (x, lanes, lengths, phi), x.stride(), edges,
        SLANT=slant, DTYPE=number(x),
    )  # fmt: skip
    return phi


def number(x: Tensor) -> Any:
    """The same, as triton calls it."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def compilations(kernel: Any, constants: tuple[dict[str, Any], ...] = ({},)) -> Iterator[Shipped]:
    """A kernel as ``launch`` calls it, for each architecture."""
    for arch in ARCHITECTURES:
        for size, half in ((MAX_BLOCK, "fp32"), (32, "fp16")):
            for slant, more in zip((0, 1), constants * 2, strict=False):
                constexprs = {"SLANT": slant, "DTYPE": tl.float32, "BLOCK": size, **more}
                types: dict[str, str] = dict.fromkeys(constexprs, "constexpr")
                types |= {"lanes_ptr": "*i32", "lengths_ptr": "*i32"}
                for name in ("x_ptr", "dx_ptr"):
                    types[name] = f"*{half}"
                for name in kernel.arg_names:
                    types.setdefault(name, "*fp32" if name.endswith("_ptr") else "i32")
                signature = {name: types[name] for name in kernel.arg_names}
                yield Shipped(kernel, arch, signature, constexprs, {"num_warps": warps(size)})


def shipped() -> Iterator[Shipped]:
    """The forward kernel as the launcher calls it, for each architecture."""
    yield from compilations(_visit_fwd_kernel)
