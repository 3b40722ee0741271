r"""Additive attention on the GPU, without ever storing what lies between scores and tanh.

Bahdanau, Cho and Bengio (2015). With queries and keys already projected to the hidden
units h,

    forward    s_ij = sum_h w_h tanh(q_ih + k_jh)       p_ij = exp(s_ij) / sum_j exp(s_ij)
               o_i  = sum_j p_ij v_j

    backward   e_ij = p_ij (g_i . v_j - g_i . o_i)      (g = dL/do; e = dL/ds)
               dL/dv_j  = sum_i p_ij g_i
               dL/dq_ih = w_h sum_j e_ij tanh'(q_ih + k_jh)
               dL/dk_jh = w_h sum_i e_ij tanh'(q_ih + k_jh)
               dL/dw_h  = sum_ij e_ij tanh(q_ih + k_jh)

PyTorch stores tanh(q_ih + k_jh) for its backward pass: n m hidden numbers. Here a tile of
pairs goes through the hidden units one after the other and only the sum stays; the
backward pass computes tanh again. A number from memory costs more than a tanh.

One function serves all: r(x) = 1 / (1 + exp(2x)), since tanh(x) = 1 - 2 r and
tanh'(x) = 4 r (1 - r). It makes the score sum_h w_h - 2 sum_h w_h r(q_ih + k_jh), and the
softmax does not see the first sum, so it is left out. Nor does dL/dw see the 1 of
tanh = 1 - 2 r, since sum_j e_ij = 0.

exp(2 (a + b)) = exp(2a) exp(2b): the exponentials are per query and per key, computed once
before a launch, and a pair costs one product and one division. The factors must not
overflow, and their rounding errors grow with |a| and |b|, though the sum a + b may be
small. So where the largest |a| and the largest |b| of a tile add up to more than
NEAR_LIMIT, each pair takes its own exp(-2 |a + b|), which cannot overflow. Up to the limit
float32 gets tanh to 8e-7, at its worst where a and b cancel; pair by pair, to 2e-7.

The softmax runs along: a running maximum M_i of the scores is kept, sums are of
exp(s_ij - M_i), and whenever M_i grows they are multiplied by exp(M_old - M_new).
exp(x) is computed as 2^(x log2 e), which the scores already carry.

Grid: a program of the forward and of the dq kernel owns a tile of queries and streams all
keys past them; a program of the dk/dv kernel owns a tile of keys and streams queries. dw
needs all pairs: each program of the dq kernel writes its part, and these are summed
afterwards, in a fixed order. Each slot has one owner: no atomics, runs repeat bit for bit.
A program keeps the whole width of its output, up to MAX_COLUMNS, in registers, fewer rows
the wider it is; only beyond that does a second grid axis split the columns, and each part
computes the scores again.

Saved for backward: the output, and per query M_i + log2 sum_j exp(s_ij - M_i), which
normalises its weights.

Moved, in numbers of 4 bytes: n (hidden + v) + m (hidden + v) (n / BLOCK_M) read, most of it
from cache, and n (v + 1) written; the plain form writes and reads n m hidden several
times. FLOPs a pair: 5 hidden + 2 v forward, of which hidden are divisions, the slowest;
about three times that with the backward pass. Queries and keys lie transposed,
[batch, hidden, rows], since they are read unit by unit; values as they come, since they
are read row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

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
    raise ImportError(f"attn_course.scoring.additive_kernel needs triton: {REASON}.")

# Columns of an output that one program keeps.
MAX_COLUMNS = 512

# Up to this many rows, a program owns no more.
FEW_ROWS = 16


class Config(NamedTuple):
    """How many rows a program owns at most, pairs it sees at once, and numbers it keeps.

    Where rows are wide, it owns fewer, and more pass by at a time.
    """

    own: int
    pairs: int
    keep: int
    num_warps: int


# By architecture: they fit its registers, and are not yet tuned on a GPU. The interpreter's small
# tiles make small tests cross them.
CONFIGS = {
    75: Config(own=32, pairs=1024, keep=4096, num_warps=4),
    80: Config(own=32, pairs=1024, keep=4096, num_warps=4),
    90: Config(own=32, pairs=1024, keep=4096, num_warps=4),
}
INTERPRETED_CONFIG = Config(own=16, pairs=128, keep=4096, num_warps=4)

LOG2_E = tl.constexpr(1.4426950408889634)

# See the derivation above; exp(2 * 20) is far from overflow, accuracy sets the limit.
NEAR_LIMIT = tl.constexpr(20.0)


@triton.jit
def _tile_and_batch(length, BLOCK: tl.constexpr):
    """Which tile of which batch item is mine: both in grid axis 0, the only long one."""
    program = tl.program_id(0)
    tiles = tl.cdiv(length, BLOCK)
    return program % tiles, (program // tiles).to(tl.int64)


@triton.jit
def _unit(ptr, batch, h, rows, length, HIDDEN: tl.constexpr):
    """Numbers ``rows`` of one unit of a [batch, HIDDEN, length] matrix; 0 outside it."""
    start = (batch * HIDDEN + h) * length  # int64, as batch is
    return tl.load(ptr + start + rows, mask=(rows < length) & (h < HIDDEN), other=0.0)


@triton.jit
def _column(ptr, batch, c, rows, length, COLUMNS: tl.constexpr):
    """Numbers ``rows`` of one column of a [batch, length, COLUMNS] matrix; 0 outside it."""
    where = (batch * length + rows) * COLUMNS + c
    return tl.load(ptr + where, mask=rows < length, other=0.0)


@triton.jit
def _row(ptr, batch, row, columns, length, COLUMNS: tl.constexpr):
    """Numbers ``columns`` of one row of a [batch, length, COLUMNS] matrix; 0 outside it."""
    start = (batch * length + row) * COLUMNS
    return tl.load(ptr + start + columns, mask=(columns < COLUMNS) & (row < length), other=0.0)


@triton.jit
def _allowed(
    lens_ptr, mask_ptr, batch, offs_m, offs_n, n,
    stride_lb, stride_lm, stride_mb, stride_mm, stride_mn, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Which pairs of the tile count: inside the matrix, the valid lengths and the mask."""
    lens = tl.load(
        lens_ptr + batch * stride_lb + offs_m.to(tl.int64) * stride_lm, mask=offs_m < n, other=0
    )  # [BLOCK_M]
    allowed = offs_n[None, :] < lens[:, None]  # [BLOCK_M, BLOCK_N]; lens <= m
    if HAS_MASK:
        where = offs_m[:, None].to(tl.int64) * stride_mm
        where += offs_n[None, :].to(tl.int64) * stride_mn
        mask = tl.load(mask_ptr + batch * stride_mb + where, mask=allowed, other=0)
        allowed = allowed & (mask != 0)  # [BLOCK_M, BLOCK_N]
    return allowed


@triton.jit
def _are_near(query_size_ptr, key_size_ptr, batch, offs_m, offs_n, n, m):
    """Whether the tile's |q| + |k| stay below the limit; NaN and infinity do not."""
    q = tl.load(query_size_ptr + batch * n + offs_m, mask=offs_m < n, other=0.0)  # [BLOCK_M]
    k = tl.load(key_size_ptr + batch * m + offs_n, mask=offs_n < m, other=0.0)  # [BLOCK_N]
    return tl.max(q, 0) + tl.max(k, 0) <= NEAR_LIMIT


# The teaching path: these two functions and the forward kernel.
@triton.jit
def _r(
    query_ptr, key_ptr, query_exp_ptr, key_exp_ptr, near, batch, h, offs_m, offs_n, n, m,
    HIDDEN: tl.constexpr,
):  # fmt: skip
    """Compute r(q_ih + k_jh) of all pairs of the tile, for one hidden unit: [BLOCK_M, BLOCK_N]."""
    if near:
        q = _unit(query_exp_ptr, batch, h, offs_m, n, HIDDEN)  # [BLOCK_M], exp(2 q)
        k = _unit(key_exp_ptr, batch, h, offs_n, m, HIDDEN)  # [BLOCK_N], exp(2 k)
        r = 1.0 / (1.0 + q[:, None] * k[None, :])
    else:
        q = _unit(query_ptr, batch, h, offs_m, n, HIDDEN)  # [BLOCK_M]
        k = _unit(key_ptr, batch, h, offs_n, m, HIDDEN)  # [BLOCK_N]
        x = q[:, None] + k[None, :]
        z = tl.exp2(tl.abs(x) * (-2 * LOG2_E))  # exp(-2 |x|), in [0, 1]
        r = tl.where(x > 0, z, 1.0) / (1.0 + z)
    return r


@triton.jit
def _scores(
    query_ptr, key_ptr, weight_ptr, query_exp_ptr, key_exp_ptr, allowed, near,
    batch, offs_m, offs_n, n, m, HIDDEN: tl.constexpr,
):  # fmt: skip
    """(s_ij - sum_h w_h) log2 e, and -inf where not allowed: [BLOCK_M, BLOCK_N]."""
    total = tl.zeros(allowed.shape, query_ptr.dtype.element_ty)
    for h in range(HIDDEN):
        total += tl.load(weight_ptr + h) * _r(
            query_ptr, key_ptr, query_exp_ptr, key_exp_ptr, near, batch, h, offs_m, offs_n, n, m,
            HIDDEN,
        )  # fmt: skip
    return tl.where(allowed, total * (-2 * LOG2_E), float("-inf"))


@triton.jit
def _additive_fwd_kernel(
    query_ptr,  # [batch, HIDDEN, n]
    key_ptr,  # [batch, HIDDEN, m]
    value_ptr,  # [batch, m, VALUE_DIM]
    weight_ptr,  # [HIDDEN]
    query_exp_ptr,  # [batch, HIDDEN, n], exp(2 q)
    key_exp_ptr,  # [batch, HIDDEN, m], exp(2 k)
    query_size_ptr,  # [batch, n], the largest |q_ih| of each query
    key_size_ptr,  # [batch, m], likewise
    lens_ptr,  # [batch, n], how many leading keys each query may see
    mask_ptr,  # [batch, n, m]
    output_ptr,  # [batch, n, VALUE_DIM]
    norm_ptr,  # [batch, n]
    n,
    m,
    stride_lb,
    stride_lm,
    stride_mb,
    stride_mm,
    stride_mn,
    HIDDEN: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    tile, batch = _tile_and_batch(n, BLOCK_M)
    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # my queries
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)  # my columns of the values

    dtype = norm_ptr.dtype.element_ty
    numerator = tl.zeros([BLOCK_M, BLOCK_V], dtype)
    denominator = tl.zeros([BLOCK_M], dtype)
    largest = tl.full([BLOCK_M], float("-inf"), dtype)

    lens_ptrs = lens_ptr + batch * stride_lb + offs_m.to(tl.int64) * stride_lm
    stop = tl.max(tl.load(lens_ptrs, mask=offs_m < n, other=0), 0)
    for start in range(0, stop, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)  # the keys that pass by
        allowed = _allowed(
            lens_ptr, mask_ptr, batch, offs_m, offs_n, n,
            stride_lb, stride_lm, stride_mb, stride_mm, stride_mn, HAS_MASK,
        )  # fmt: skip
        near = _are_near(query_size_ptr, key_size_ptr, batch, offs_m, offs_n, n, m)
        score = _scores(
            query_ptr, key_ptr, weight_ptr, query_exp_ptr, key_exp_ptr, allowed, near,
            batch, offs_m, offs_n, n, m, HIDDEN,
        )  # fmt: skip
        new = tl.maximum(largest, tl.max(score, 1))
        anchor = tl.where(new == float("-inf"), 0.0, new)  # nothing seen yet: no inf - inf
        rescale = tl.exp2(largest - anchor)
        p = tl.exp2(score - anchor[:, None])  # [BLOCK_M, BLOCK_N], 0 where not allowed
        denominator = denominator * rescale + tl.sum(p, 1)
        numerator = numerator * rescale[:, None]
        for j in range(BLOCK_N):
            p_j = tl.sum(tl.where(offs_n[None, :] == start + j, p, 0.0), 1)  # [BLOCK_M]
            v_j = _row(value_ptr, batch, start + j, columns, m, VALUE_DIM)  # [BLOCK_V]
            numerator += p_j[:, None] * v_j[None, :]
        largest = new

    some = denominator > 0
    denominator = tl.where(some, denominator, 1.0)
    output = numerator / denominator[:, None]  # nothing to attend to: 0 / 1
    where = (batch * n + offs_m[:, None]) * VALUE_DIM + columns[None, :]
    inside = (offs_m < n)[:, None] & (columns < VALUE_DIM)[None, :]
    tl.store(output_ptr + where, output, mask=inside)
    norm = tl.where(some, largest + tl.log2(denominator), float("inf"))
    # Programs that differ in their columns alone know the same norm: one of them writes it.
    tl.store(norm_ptr + batch * n + offs_m, norm, mask=(offs_m < n) & (tl.program_id(1) == 0))


@triton.jit
def _weights_and_slopes(
    query_ptr, key_ptr, value_ptr, weight_ptr, query_exp_ptr, key_exp_ptr, lens_ptr, mask_ptr,
    grad_ptr, norm_ptr, delta_ptr, near, batch, offs_m, offs_n, n, m,
    stride_lb, stride_lm, stride_mb, stride_mm, stride_mn,
    HIDDEN: tl.constexpr, VALUE_DIM: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """The weights p_ij of a tile, and e_ij = dL/ds_ij: both [BLOCK_M, BLOCK_N]."""
    allowed = _allowed(
        lens_ptr, mask_ptr, batch, offs_m, offs_n, n,
        stride_lb, stride_lm, stride_mb, stride_mm, stride_mn, HAS_MASK,
    )  # fmt: skip
    score = _scores(
        query_ptr, key_ptr, weight_ptr, query_exp_ptr, key_exp_ptr, allowed, near,
        batch, offs_m, offs_n, n, m, HIDDEN,
    )  # fmt: skip
    norm = tl.load(norm_ptr + batch * n + offs_m, mask=offs_m < n, other=0.0)  # [BLOCK_M]
    delta = tl.load(delta_ptr + batch * n + offs_m, mask=offs_m < n, other=0.0)  # [BLOCK_M]
    p = tl.exp2(score - norm[:, None])
    difference = tl.zeros_like(p) - delta[:, None]
    for c in range(VALUE_DIM):
        g = _column(grad_ptr, batch, c, offs_m, n, VALUE_DIM)  # [BLOCK_M]
        v = _column(value_ptr, batch, c, offs_n, m, VALUE_DIM)  # [BLOCK_N]
        difference += g[:, None] * v[None, :]
    return p, p * difference


@triton.jit
def _additive_bwd_dq_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    weight_ptr,
    query_exp_ptr,
    key_exp_ptr,
    query_size_ptr,
    key_size_ptr,
    lens_ptr,
    mask_ptr,
    grad_ptr,  # [batch, n, VALUE_DIM], dL/do
    norm_ptr,
    delta_ptr,  # [batch, n], g . o
    dquery_ptr,  # [batch, HIDDEN, n]
    dweight_ptr,  # [batch * tiles, HIDDEN], one row a program
    n,
    m,
    stride_lb,
    stride_lm,
    stride_mb,
    stride_mm,
    stride_mn,
    HIDDEN: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNITS: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    tile, batch = _tile_and_batch(n, BLOCK_M)
    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # my queries
    first = tl.program_id(1) * UNITS  # my units: first .. first + UNITS
    units = tl.arange(0, BLOCK_H)
    dquery = tl.zeros([BLOCK_M, BLOCK_H], norm_ptr.dtype.element_ty)
    dweight = tl.zeros([BLOCK_H], norm_ptr.dtype.element_ty)

    lens_ptrs = lens_ptr + batch * stride_lb + offs_m.to(tl.int64) * stride_lm
    stop = tl.max(tl.load(lens_ptrs, mask=offs_m < n, other=0), 0)
    for start in range(0, stop, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        near = _are_near(query_size_ptr, key_size_ptr, batch, offs_m, offs_n, n, m)
        _, e = _weights_and_slopes(
            query_ptr, key_ptr, value_ptr, weight_ptr, query_exp_ptr, key_exp_ptr, lens_ptr,
            mask_ptr, grad_ptr, norm_ptr, delta_ptr, near, batch, offs_m, offs_n, n, m,
            stride_lb, stride_lm, stride_mb, stride_mm, stride_mn, HIDDEN, VALUE_DIM, HAS_MASK,
        )  # fmt: skip
        for h in range(UNITS):
            r = _r(
                query_ptr, key_ptr, query_exp_ptr, key_exp_ptr, near, batch, first + h,
                offs_m, offs_n, n, m, HIDDEN,
            )  # fmt: skip
            er = e * r
            total = tl.sum(er * (1 - r), 1)  # [BLOCK_M]
            dquery = tl.where(units[None, :] == h, dquery + total[:, None], dquery)
            dweight = tl.where(units == h, dweight + tl.sum(tl.sum(er, 1), 0), dweight)

    mine = (units < UNITS) & (first + units < HIDDEN)
    weight = tl.load(weight_ptr + first + units, mask=mine, other=0.0)  # [BLOCK_H]
    where = (batch * HIDDEN + first + units[None, :]) * n + offs_m[:, None]
    inside = (offs_m < n)[:, None] & mine[None, :]
    tl.store(dquery_ptr + where, 4 * weight[None, :] * dquery, mask=inside)
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    tl.store(dweight_ptr + row + first + units, -2 * dweight, mask=mine)


@triton.jit
def _additive_bwd_dkv_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    weight_ptr,
    query_exp_ptr,
    key_exp_ptr,
    query_size_ptr,
    key_size_ptr,
    lens_ptr,
    mask_ptr,
    grad_ptr,
    norm_ptr,
    delta_ptr,
    dkey_ptr,  # [batch, HIDDEN, m]
    dvalue_ptr,  # [batch, m, VALUE_DIM]
    n,
    m,
    stride_lb,
    stride_lm,
    stride_mb,
    stride_mm,
    stride_mn,
    HIDDEN: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNITS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    tile, batch = _tile_and_batch(m, BLOCK_N)
    offs_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)  # my keys
    first = tl.program_id(1) * UNITS  # my units
    units = tl.arange(0, BLOCK_H)
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)  # my columns of the values
    dkey = tl.zeros([BLOCK_H, BLOCK_N], norm_ptr.dtype.element_ty)
    dvalue = tl.zeros([BLOCK_N, BLOCK_V], norm_ptr.dtype.element_ty)

    for start in range(0, n, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)  # the queries that pass by
        near = _are_near(query_size_ptr, key_size_ptr, batch, offs_m, offs_n, n, m)
        p, e = _weights_and_slopes(
            query_ptr, key_ptr, value_ptr, weight_ptr, query_exp_ptr, key_exp_ptr, lens_ptr,
            mask_ptr, grad_ptr, norm_ptr, delta_ptr, near, batch, offs_m, offs_n, n, m,
            stride_lb, stride_lm, stride_mb, stride_mm, stride_mn, HIDDEN, VALUE_DIM, HAS_MASK,
        )  # fmt: skip
        for h in range(UNITS):
            r = _r(
                query_ptr, key_ptr, query_exp_ptr, key_exp_ptr, near, batch, first + h,
                offs_m, offs_n, n, m, HIDDEN,
            )  # fmt: skip
            total = tl.sum(e * r * (1 - r), 0)  # [BLOCK_N]
            dkey = tl.where(units[:, None] == h, dkey + total[None, :], dkey)
        for i in range(BLOCK_M):
            p_i = tl.sum(tl.where(offs_m[:, None] == start + i, p, 0.0), 0)  # [BLOCK_N]
            g_i = _row(grad_ptr, batch, start + i, columns, n, VALUE_DIM)  # [BLOCK_V]
            dvalue += p_i[:, None] * g_i[None, :]

    mine = (units < UNITS) & (first + units < HIDDEN)
    weight = tl.load(weight_ptr + first + units, mask=mine, other=0.0)  # [BLOCK_H]
    where = (batch * HIDDEN + first + units[:, None]) * m + offs_n[None, :]
    inside = mine[:, None] & (offs_n < m)[None, :]
    tl.store(dkey_ptr + where, 4 * weight[:, None] * dkey, mask=inside)
    where = (batch * m + offs_n[:, None]) * VALUE_DIM + columns[None, :]
    inside = (offs_n < m)[:, None] & (columns < VALUE_DIM)[None, :]
    tl.store(dvalue_ptr + where, dvalue, mask=inside)


def additive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    lens: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Additive attention, differentiable, without storing scores or hidden units.

    Args:
        query: ``[..., query_len, hidden]``, float32 or float64, projected.
        key: ``[..., key_len, hidden]``, likewise.
        value: ``[..., key_len, value_dim]``.
        weight: What each hidden unit counts in the score, ``[hidden]``.
        lens: How many leading keys count; broadcasts to ``[..., query_len]``.
        mask: ``True`` = may attend; broadcasts to ``[..., query_len, key_len]``.

    Returns:
        ``[..., query_len, value_dim]``.

    Reference:
        Bahdanau, Cho and Bengio (2015), appendix A.1.2.
    """
    batch_shape = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    batch, n, m = batch_shape.numel(), query.shape[-2], key.shape[-2]

    def flat(tensor: Tensor) -> Tensor:  # [batch, rows, columns]
        full = tensor.expand(*batch_shape, *tensor.shape[-2:])
        return full.reshape(batch, *full.shape[-2:])

    if lens is None:
        lens = torch.full((), m, device=query.device)
    lens = lens.to(torch.int32).expand(*batch_shape, n).reshape(batch, n)  # [batch, n]
    if mask is not None:
        mask = mask.expand(*batch_shape, n, m).reshape(batch, n, m).view(torch.uint8)
    output: Tensor = _AdditiveAttention.apply(
        flat(query).mT.contiguous(),
        flat(key).mT.contiguous(),
        flat(value).contiguous(),
        weight.contiguous(),
        lens,
        mask,
    )
    return output.reshape(*batch_shape, n, value.shape[-1])


class _AdditiveAttention(torch.autograd.Function):
    """Launches the kernels on ``[batch, hidden, rows]`` and ``[batch, rows, value_dim]``."""

    @staticmethod
    def forward(ctx, query, key, value, weight, lens, mask):
        (batch, _, n), value_dim = query.shape, value.shape[2]
        output = query.new_empty(batch, n, value_dim)
        norm = query.new_empty(batch, n)
        inputs, sizes, meta = _common(query, key, value, weight, lens, mask)
        blocks, grid = _forward_launch(_config(query.device), batch, n, value_dim)
        if output.numel():
            _additive_fwd_kernel[grid](*inputs, output, norm, *sizes, **meta, **blocks)
        ctx.save_for_backward(query, key, value, weight, lens, mask, output, norm)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        query, key, value, weight, lens, mask, output, norm = ctx.saved_tensors
        (batch, hidden, n), (_, m, value_dim) = query.shape, value.shape
        grad = grad.contiguous()
        delta = (grad * output).sum(2)  # [batch, n]
        inputs, sizes, meta = _common(query, key, value, weight, lens, mask)
        inputs = (*inputs, grad, norm, delta)
        dquery = dkey = dvalue = dweight = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[3]:
            blocks, grid = _dq_launch(_config(query.device), batch, n, hidden)
            dquery, parts = torch.empty_like(query), query.new_empty(grid[0], hidden)
            if dquery.numel():
                _additive_bwd_dq_kernel[grid](*inputs, dquery, parts, *sizes, **meta, **blocks)
            dweight = parts.sum(0)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            blocks, grid = _dkv_launch(_config(query.device), batch, m, hidden, value_dim)
            dkey, dvalue = torch.empty_like(key), torch.empty_like(value)
            if dkey.numel():
                _additive_bwd_dkv_kernel[grid](*inputs, dkey, dvalue, *sizes, **meta, **blocks)
        return dquery, dkey, dvalue, dweight, None, None


def _common(query, key, value, weight, lens, mask):
    """What the three launches share: tensors, sizes, and options by name."""
    strides = (0, 0, 0) if mask is None else mask.stride()
    exponentials = ((2 * x).exp() for x in (query, key))  # [batch, hidden, rows]
    largest = (torch.linalg.vector_norm(x, torch.inf, dim=1) for x in (query, key))  # [batch, rows]
    no_mask = query  # something to point at
    inputs = (
        *(query, key, value, weight, *exponentials, *largest, lens),
        no_mask if mask is None else mask,
    )
    sizes = (query.shape[2], key.shape[2], *lens.stride(), *strides)
    meta = {
        "HIDDEN": query.shape[1],
        "VALUE_DIM": value.shape[2],
        "HAS_MASK": mask is not None,
    }
    return inputs, sizes, meta


def _config(device):
    return INTERPRETED_CONFIG if INTERPRETED else CONFIGS[architecture(device)]


def _rows(config, rows, *columns):
    """How many rows a program owns that keeps so many columns of each, and how many pass by."""
    most = FEW_ROWS if rows <= FEW_ROWS else config.own
    own = min(most, *(config.keep // c for c in columns))
    return own, config.pairs // own


def _columns(width):
    """How many columns a program keeps, and the power of two that they fit in."""
    columns = min(width, MAX_COLUMNS)
    return columns, triton.next_power_of_2(columns)


def _forward_launch(config, batch, n, value_dim):
    """Tiles and grid of the forward kernel."""
    columns, block_v = _columns(value_dim)
    block_m, block_n = _rows(config, n, block_v)
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_V": block_v}
    grid = (triton.cdiv(n, block_m) * batch, triton.cdiv(value_dim, columns))
    return blocks | {"num_warps": config.num_warps}, grid


def _dq_launch(config, batch, n, hidden):
    """Tiles and grid of the dq kernel."""
    units, block_h = _columns(hidden)
    block_m, block_n = _rows(config, n, block_h)
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "UNITS": units, "BLOCK_H": block_h}
    grid = (triton.cdiv(n, block_m) * batch, triton.cdiv(hidden, units))
    return blocks | {"num_warps": config.num_warps}, grid


def _dkv_launch(config, batch, m, hidden, value_dim):
    """Tiles and grid of the dk/dv kernel."""
    (units, block_h), (columns, block_v) = _columns(hidden), _columns(value_dim)
    block_n, block_m = _rows(config, m, block_h, block_v)
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "UNITS": units, "BLOCK_H": block_h}
    parts = max(triton.cdiv(hidden, units), triton.cdiv(value_dim, columns))
    grid = (triton.cdiv(m, block_n) * batch, parts)
    return blocks | {"BLOCK_V": block_v, "num_warps": config.num_warps}, grid


def shipped() -> Iterator[Shipped]:
    """Each kernel as the launchers call it, for each architecture.

    A decoder that asks one question at a time of a sentence, and many questions at once.
    """
    shapes = [(1, 20, 64, 128, False), (256, 256, 128, 128, True), (256, 256, 512, 512, False)]
    strides = ("stride_lb", "stride_lm", "stride_mb", "stride_mm", "stride_mn")
    integers = dict.fromkeys(("n", "m", *strides), "i32")
    names = ["query_ptr", "key_ptr", "value_ptr", "weight_ptr"]
    names += ["query_exp_ptr", "key_exp_ptr", "query_size_ptr", "key_size_ptr"]
    for arch in ARCHITECTURES:
        config = CONFIGS[arch]
        for n, m, hidden, value_dim, has_mask in shapes:
            read = dict.fromkeys(names, "*fp32")
            read |= {"lens_ptr": "*i32", "mask_ptr": "*u8" if has_mask else "*fp32"}
            saved = dict.fromkeys(("grad_ptr", "norm_ptr", "delta_ptr"), "*fp32")
            meta = {"HIDDEN": hidden, "VALUE_DIM": value_dim, "HAS_MASK": has_mask}
            for function, pointers, written, (blocks, _) in (
                (
                    _additive_fwd_kernel,
                    read,
                    ("output_ptr", "norm_ptr"),
                    _forward_launch(config, 1, n, value_dim),
                ),
                (
                    _additive_bwd_dq_kernel,
                    read | saved,
                    ("dquery_ptr", "dweight_ptr"),
                    _dq_launch(config, 1, n, hidden),
                ),
                (
                    _additive_bwd_dkv_kernel,
                    read | saved,
                    ("dkey_ptr", "dvalue_ptr"),
                    _dkv_launch(config, 1, m, hidden, value_dim),
                ),
            ):
                options = {"num_warps": blocks.pop("num_warps")}
                constexprs = meta | blocks
                signature = (
                    pointers
                    | dict.fromkeys(written, "*fp32")
                    | integers
                    | dict.fromkeys(constexprs, "constexpr")
                )
                yield Shipped(function, arch, signature, constexprs, options)
