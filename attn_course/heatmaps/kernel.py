r"""Pictures of attention matrices on the GPU, without ever storing the matrix.

With s_ij = q_i.k_j, -||q_i - k_j||^2 / 2 (the scale and the width come folded into q and k)
or ``w . tanh(q_i + k_j)``, and exp(x) computed as 2^(x log2 e),

    pass 1    M_i  = max_j s_ij      l_i = sum_j exp(s_ij - M_i)      saved: M_i, 1/l_i
    pass 2    P_bc = 1/|Q_b| sum_{i in Q_b} sum_{j in K_c} exp(s_ij - M_i) / l_i

as in the backward pass of FlashAttention (Dao et al., 2022), which also recomputes its
weights instead of keeping them. Pass 1 meets M_i only on its way: sums so far are
multiplied by exp(M_old - M_new) whenever it grows, so nothing overflows and the nearest
key never vanishes. M_i and l_i are kept apart instead of as one log-sum-exp M_i + log l_i:
scores in the thousands would round log l_i away, and rows would not sum to one.

Grid: a program of pass 1 owns BLOCK_M queries and streams all keys past them. A program
of pass 2 owns one bin of the picture, a rectangle of the matrix, and walks it tile by
tile; where the picture has few bins several programs share one, by queries, and their
sums are added afterwards in a fixed order. Each slot has one owner: no atomics, and runs
repeat bit for bit.

Query i may see keys begin_i, ..., end_i - 1, which says valid lengths, causal masks and
windows alike. A tile of queries walks from the least of its begin_i to the greatest end_i
only: a causal picture takes half the time, a window w of m keys about w / m of it.

Moved, in numbers of 4 bytes: about d n m (1 / BLOCK_M + 1 / BLOCK_N) read a pass, most of
it from cache, 2 n written by pass 1 and the picture by pass 2. FLOPs a pair and a pass: 2 d
(3 d for the Gaussian) and one exponential; the additive score takes d exponentials and
divisions more. Queries and keys lie transposed,
[batch, columns, rows], so that a tile's load is one contiguous run.

No backward: it is a picture.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attn_course._triton import (
    ARCHITECTURES,
    INTERPRETED,
    REASON,
    Shipped,
    architecture,
    tl,
    triton,
)

if triton is None:
    raise ImportError(f"attn_course.heatmaps.kernel needs triton: {REASON}.")

# BLOCK_M and BLOCK_N, by architecture.
CONFIGS = {
    75: {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4},
    80: {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4},
    90: {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4},
}

# For bins that would leave a large tile mostly empty, and for the interpreter, whose
# small tests cross tiles this way.
SMALL = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 1}

# Programs that pass 2 should have at least: a few for each multiprocessor of a large GPU.
ENOUGH_PROGRAMS = 1024

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _column(ptr, batch, f, rows, length, DIM: tl.constexpr):
    """Numbers ``rows`` of column f of a [batch, DIM, length] matrix; 0 outside it."""
    start = (batch * DIM + f) * length  # int64, as batch is
    # [BLOCK_M] or [BLOCK_N], as rows
    return tl.load(ptr + start + rows, mask=rows < length, other=0.0)


@triton.jit
def _in_sight(
    begin_ptr, end_ptr, where, mine, start, stop, HAS_SPANS: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """begin_i and end_i of some queries, and what of ``start`` to ``stop`` one of them sees."""
    begin, end = where, where  # nobody reads these without spans
    if HAS_SPANS:
        begin = tl.load(begin_ptr + where, mask=mine, other=0)  # [BLOCK_M]
        end = tl.load(end_ptr + where, mask=mine, other=0)  # [BLOCK_M]
        least = tl.min(tl.where(mine, begin, stop), 0)
        start += tl.maximum(least - start, 0) // BLOCK_N * BLOCK_N
        stop = tl.minimum(stop, tl.max(end, 0))
    return begin, end, start, stop


@triton.jit
def _scores(
    query_ptr, key_ptr, weight_ptr, slopes_ptr, batch, offs_m, offs_n, begin, end, n, m,
    DIM: tl.constexpr, SCORE: tl.constexpr, HAS_SPANS: tl.constexpr, HAS_SLOPES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """s_ij of a tile, -inf where query i may not see key j: [BLOCK_M, BLOCK_N]."""
    total = tl.zeros([BLOCK_M, BLOCK_N], query_ptr.dtype.element_ty)
    for f in range(DIM):
        q = _column(query_ptr, batch, f, offs_m, n, DIM)  # [BLOCK_M]
        k = _column(key_ptr, batch, f, offs_n, m, DIM)  # [BLOCK_N]
        if SCORE == "dot":
            total += q[:, None] * k[None, :]
        elif SCORE == "additive":
            x = q[:, None] + k[None, :]
            z = tl.exp2(tl.abs(x) * (-2 * LOG2_E))  # in [0, 1]: nothing overflows
            # tanh x = 1 - 2 / (1 + exp(2x)); the softmax does not see the sum of w * 1
            total -= 2 * tl.load(weight_ptr + f) * (tl.where(x > 0, z, 1.0) / (1.0 + z))
        else:
            difference = q[:, None] - k[None, :]
            total += difference * difference
    if SCORE == "gaussian":
        total *= -0.5
    if HAS_SLOPES:
        distance = tl.abs(offs_m[:, None] - offs_n[None, :])
        total -= tl.load(slopes_ptr + batch) * distance.to(total.dtype)
    if HAS_SPANS:
        seen = (offs_n[None, :] >= begin[:, None]) & (offs_n[None, :] < end[:, None])
    else:
        seen = (offs_n < m)[None, :]
    return tl.where(seen, total, float("-inf"))


@triton.jit
def _pool_norm_kernel(
    query_ptr,  # [batch, DIM, n]
    key_ptr,  # [batch, DIM, m]
    weight_ptr,  # [DIM], of the additive score
    begin_ptr,  # [batch, n], the first key that each query may see
    end_ptr,  # [batch, n], the one after the last
    slopes_ptr,  # [batch], of the bias by distance
    largest_ptr,  # [batch, n], M_i
    inverse_ptr,  # [batch, n], 1 / l_i
    n,
    m,
    DIM: tl.constexpr,
    SCORE: tl.constexpr,
    HAS_SPANS: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Pass 1: what normalises each query's weights."""
    tiles = tl.cdiv(n, BLOCK_M)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    offs_m = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)  # my queries
    largest = tl.full([BLOCK_M], float("-inf"), largest_ptr.dtype.element_ty)  # M_i
    total = tl.zeros([BLOCK_M], largest_ptr.dtype.element_ty)  # l_i

    begin, end, start, stop = _in_sight(
        begin_ptr, end_ptr, batch * n + offs_m, offs_m < n, 0, m, HAS_SPANS, BLOCK_N
    )
    for key_start in range(start, stop, BLOCK_N):
        offs_n = key_start + tl.arange(0, BLOCK_N)
        s = _scores(
            query_ptr, key_ptr, weight_ptr, slopes_ptr, batch, offs_m, offs_n, begin, end, n, m,
            DIM, SCORE, HAS_SPANS, HAS_SLOPES, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        grown = tl.maximum(largest, tl.max(s, 1))
        safe = tl.where(grown == float("-inf"), 0.0, grown)  # -inf - -inf would be NaN
        total = total * tl.exp2((largest - safe) * LOG2_E)
        total += tl.sum(tl.exp2((s - safe[:, None]) * LOG2_E), 1)
        largest = grown

    some = total > 0  # else a query that may see nothing: all its weights are zero
    largest = tl.where(some, largest, 0.0)
    inverse = tl.where(some, 1.0 / tl.where(some, total, 1.0), 0.0)
    tl.store(largest_ptr + batch * n + offs_m, largest, mask=offs_m < n)
    tl.store(inverse_ptr + batch * n + offs_m, inverse, mask=offs_m < n)


@triton.jit
def _pool_bins_kernel(
    query_ptr,  # [batch, DIM, n]
    key_ptr,  # [batch, DIM, m]
    weight_ptr,  # [DIM], of the additive score
    begin_ptr,  # [batch, n]
    end_ptr,  # [batch, n]
    slopes_ptr,  # [batch]
    largest_ptr,  # [batch, n]
    inverse_ptr,  # [batch, n]
    picture_ptr,  # [batch, splits, q_bins, k_bins]
    n,
    m,
    splits,
    q_bins,
    k_bins,
    rows,  # queries of a bin that one program takes, at most
    DIM: tl.constexpr,
    SCORE: tl.constexpr,
    HAS_SPANS: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Pass 2: the sum of the weights in one bin, or in one program's share of it."""
    slot = tl.program_id(0).to(tl.int64)
    k_bin = slot % k_bins
    q_bin = slot // k_bins % q_bins
    split = slot // k_bins // q_bins % splits
    batch = slot // k_bins // q_bins // splits

    first = (q_bin * n // q_bins + split * rows).to(tl.int32)
    last = tl.minimum(first + rows, (q_bin + 1) * n // q_bins).to(tl.int32)
    key_first = (k_bin * m // k_bins).to(tl.int32)
    key_last = ((k_bin + 1) * m // k_bins).to(tl.int32)

    total = tl.zeros([BLOCK_M, BLOCK_N], largest_ptr.dtype.element_ty)
    for start in range(0, rows, BLOCK_M):
        offs_m = first + start + tl.arange(0, BLOCK_M)  # my queries
        mine = offs_m < last
        # [BLOCK_M]
        largest = tl.load(largest_ptr + batch * n + offs_m, mask=mine, other=0.0)
        # [BLOCK_M]
        inverse = tl.load(inverse_ptr + batch * n + offs_m, mask=mine, other=0.0)
        begin, end, key_start, key_stop = _in_sight(
            begin_ptr, end_ptr, batch * n + offs_m, mine, key_first, key_last, HAS_SPANS, BLOCK_N
        )
        for tile in range(key_start, key_stop, BLOCK_N):
            offs_n = tile + tl.arange(0, BLOCK_N)
            s = _scores(
                query_ptr, key_ptr, weight_ptr, slopes_ptr, batch, offs_m, offs_n, begin, end, n, m,
                DIM, SCORE, HAS_SPANS, HAS_SLOPES, BLOCK_M, BLOCK_N,
            )  # fmt: skip
            inside = mine[:, None] & (offs_n < key_last)[None, :]
            s = tl.where(inside, s - largest[:, None], float("-inf"))
            total += tl.exp2(s * LOG2_E) * inverse[:, None]
    tl.store(picture_ptr + slot, tl.sum(tl.sum(total, 1), 0))


def pool(
    query: Tensor,
    key: Tensor,
    *,
    bins: tuple[int, int],
    score: str,
    weight: Tensor | None = None,
    spans: tuple[Tensor, Tensor] | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """The picture of the attention matrix, in two passes over it.

    Args:
        query: ``[..., n, d]``, float32 or float64, already multiplied by the scale or
            divided by the width.
        key: ``[..., m, d]``, divided by the width likewise.
        bins: Of the queries and of the keys, at most n and m.
        score: ``"dot"``, ``"gaussian"`` or ``"additive"``.
        weight: ``[d]``, of the additive score.
        spans: The first key that each query may see and the one after the last; both
            broadcast to ``[..., n]``. ``None``: all.
        slopes: ``[heads]``, of the bias -slope * distance.

    Returns:
        ``[..., q_bins, k_bins]``.
    """
    (n, dim), m, (q_bins, k_bins) = query.shape[-2:], key.shape[-2], bins
    batch_shape = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    batch = batch_shape.numel()
    if batch == 0:
        return query.new_zeros(*batch_shape, *bins)
    # [batch, d, n] and [batch, d, m]
    query = query.mT.expand(*batch_shape, dim, n).reshape(batch, dim, n).contiguous()
    key = key.mT.expand(*batch_shape, dim, m).reshape(batch, dim, m).contiguous()
    begin = end = bias = query  # something to point at
    if spans is not None:
        begin, end = (
            x.to(torch.int32).expand(*batch_shape, n).reshape(batch, n).contiguous() for x in spans
        )
    if slopes is not None:
        bias = slopes.expand(batch_shape).reshape(batch).contiguous()
    inputs = (query, key, query if weight is None else weight.contiguous(), begin, end, bias)
    flags = {"HAS_SPANS": spans is not None, "HAS_SLOPES": slopes is not None}
    meta = {"DIM": dim, "SCORE": score, **flags}

    saved = (query.new_empty(batch, n), query.new_empty(batch, n))
    config = _config(n, m, query.device)
    grid = (triton.cdiv(n, config["BLOCK_M"]) * batch,)
    _pool_norm_kernel[grid](*inputs, *saved, n, m, **meta, **config)

    rows, columns = triton.cdiv(n, q_bins), triton.cdiv(m, k_bins)
    config = _config(rows, columns, query.device)
    rows, splits = _share(rows, config["BLOCK_M"], batch * q_bins * k_bins)
    sums = query.new_empty(batch, splits, q_bins, k_bins)
    grid = (sums.numel(),)
    _pool_bins_kernel[grid](
        *inputs, *saved, sums, n, m, splits, q_bins, k_bins, rows, **meta, **config
    )
    edges = torch.arange(q_bins + 1, device=query.device) * n // q_bins
    picture = sums.sum(1) / edges.diff().unsqueeze(-1)
    return picture.reshape(*batch_shape, q_bins, k_bins)


def _config(rows: int, columns: int, device: torch.device) -> dict[str, int]:
    """The tile for a rectangle of the matrix."""
    config = CONFIGS[architecture(device)]
    small = rows <= SMALL["BLOCK_M"] or columns <= SMALL["BLOCK_N"]
    return SMALL if small or INTERPRETED else config


def _share(rows: int, block: int, slots: int) -> tuple[int, int]:
    """How many queries of a bin a program takes, and how many programs share a bin."""
    tiles = triton.cdiv(rows, block)
    wanted = min(tiles, triton.cdiv(ENOUGH_PROGRAMS, slots))
    tiles_each = triton.cdiv(tiles, wanted)
    return tiles_each * block, triton.cdiv(tiles, tiles_each)


def shipped() -> Iterator[Shipped]:
    """Each kernel as the launcher calls it, for each architecture.

    Points in the plane under a Gaussian, heads of 64 coordinates under a dot product with
    everything that may be asked of it, and 64 hidden units.
    """
    shapes = [("gaussian", 2, False), ("dot", 64, True), ("additive", 64, False)]
    for arch in ARCHITECTURES:
        for tile in (CONFIGS[arch], SMALL):
            blocks = {name: size for name, size in tile.items() if name != "num_warps"}
            for score, dim, all_options in shapes:
                spans = "*i32" if all_options else "*fp32"
                types = dict.fromkeys(("begin_ptr", "end_ptr"), spans)
                constexprs = {"DIM": dim, "SCORE": score, **blocks}
                constexprs |= dict.fromkeys(("HAS_SPANS", "HAS_SLOPES"), all_options)
                types |= dict.fromkeys(constexprs, "constexpr")
                for function in (_pool_norm_kernel, _pool_bins_kernel):
                    signature = {
                        name: types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
                        for name in function.arg_names
                    }
                    options = {"num_warps": tile["num_warps"]}
                    yield Shipped(function, arch, signature, constexprs, options)
