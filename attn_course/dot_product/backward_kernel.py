r"""Dot-product attention on the GPU: the backward pass, and both passes as one operation.

FlashAttention-2 (Dao, 2023). With g = dL/do, and h_i = dL/dL_i where the log-sum-exp is asked
for (0 elsewhere),

    p_ij     = 2^(s_ij - L_i), from what the forward pass saved (see kernel.py)
    D_i      = g_i . o_i - h_i
    e_ij     = p_ij (g_i . v_j - D_i)           (e = dL/ds)
    dL/dv_j  =   sum_i p_ij g_i
    dL/dq_i  = c sum_j e_ij k_j
    dL/dk_j  = c sum_i e_ij q_i.

The softmax alone gives e_ij = p_ij (a_ij - sum_k p_ik a_ik) with a_ij = g_i . v_j, and that sum
is g_i . o_i: one number a query, computed before anything else. So a tile of e needs nothing
from other tiles, and p is computed again rather than kept. With dropout, z_ij is 1 / (1 - p) or
0; then o_i = sum_j z_ij p_ij v_j, hence p z in dL/dv, and a_ij = z_ij g_i . v_j. D_i stays.

Three kernels. The first writes D. In the second a program owns BLOCK_M queries and lets the
keys pass by, which gives dq. In the third it owns BLOCK_N keys and lets the queries pass by,
which gives dk and dv; where heads share their keys, the queries of all of them, one head after
the other. Scores are computed twice, and in return each output has one owner: no atomics, runs
repeat bit for bit. The third works on transposed tiles, keys down and queries across, so that
p and e are first factors of the products they enter.

FLOPs a pair: 4 d + 4 v for scores and g . v, each twice, 4 d + 2 v for the three sums, and two
exponentials.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from attn_course._precision import wide_dtype
from attn_course._triton import ARCHITECTURES, INTERPRETED, Shipped, tl, triton
from attn_course.dot_product.kernel import (
    MAX_DIM,
    Config,
    Configs,
    Options,
    _allowed,
    _clear,
    _in_sight,
    _kept,
    _key_len,
    _my_tile,
    _rows,
    _scores,
    attend,
    block,
    common,
    compilations,
    tiles,
)

LOG2_E = math.log2(math.e)

# As in kernel.py, of the kernel that owns queries and of the one that owns keys.
_SMALL = {(2, 256): Config(16, 16, 4, 1), (4, 128): Config(16, 16, 4, 1)}
_DQ_SINGLE = {
    (4, 64): Config(32, 32, 4, 2),
    (4, 128): Config(32, 32, 8, 2),
    (4, 256): Config(16, 16, 4, 1),
}
_DKV_SINGLE = {
    (4, 64): Config(32, 32, 4, 2),
    (4, 128): Config(32, 32, 8, 1),
    (4, 256): Config(16, 16, 8, 1),
}
DQ_CONFIGS: Configs = {
    75: _SMALL,
    80: {
        (2, 64): Config(128, 64, 8, 2),
        (2, 128): Config(64, 64, 8, 2),
        (2, 256): Config(32, 32, 8, 1),
        **_DQ_SINGLE,
    },
    90: {
        (2, 64): Config(128, 64, 8, 3),
        (2, 128): Config(128, 64, 8, 2),
        (2, 256): Config(64, 32, 8, 2),
        **_DQ_SINGLE,
    },
}
DKV_CONFIGS: Configs = {
    75: _SMALL,
    80: {
        (2, 64): Config(32, 128, 8, 2),
        (2, 128): Config(32, 64, 8, 2),
        (2, 256): Config(32, 32, 8, 1),
        **_DKV_SINGLE,
    },
    90: {
        (2, 64): Config(64, 128, 8, 2),
        (2, 128): Config(32, 128, 8, 3),
        (2, 256): Config(32, 32, 8, 1),
        **_DKV_SINGLE,
    },
}

# Rows of a program of the first kernel, which only adds up.
DELTA_ROWS = 32


@triton.jit
def _flash_bwd_delta_kernel(
    output_ptr,  # [rows, VALUE_DIM], all heads of all batch items
    grad_ptr,  # [rows, VALUE_DIM]
    delta_ptr,  # [rows], D_i
    n,
    VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    dtype = delta_ptr.dtype.element_ty
    output = _rows(output_ptr, rows, VALUE_DIM, 0, n, VALUE_DIM, BLOCK_V, True)
    grad = _rows(grad_ptr, rows, VALUE_DIM, 0, n, VALUE_DIM, BLOCK_V, True)
    delta = tl.sum(output.to(dtype) * grad.to(dtype), 1)
    tl.store(delta_ptr + rows, delta, mask=rows < n)


@triton.jit
def _numbers(ptr, rows, n, EDGE: tl.constexpr):
    """One number for each row; past an edge, 0."""
    if EDGE:
        numbers = tl.load(ptr + rows, mask=rows < n, other=0.0)
    else:
        numbers = tl.load(ptr + rows)
    return numbers


@triton.jit
def _weights_and_slopes(
    s, dp, i, j, norm, delta, allowed, item, seed, threshold, inflate,
    DROPOUT: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """From s log2 e and g . v: the weights after dropout, z p, and e. Three tiles of one shape."""
    p = tl.exp2(s - norm)
    weights = p
    if DROPOUT:
        kept = _kept(i, j, item, seed, threshold)
        weights = tl.where(kept, p * inflate, 0.0)
        dp = tl.where(kept, dp * inflate, 0.0)
    e = p * (dp - delta)
    if EDGE:  # a choice, not a product: what is hidden may be NaN
        weights, e = tl.where(allowed, weights, 0.0), tl.where(allowed, e, 0.0)
    return weights, e


@triton.jit
def _gather_dq(
    dquery, q, g, rows, norm, delta, key_ptr, value_ptr, lens, mask_ptr, slope,
    begin, end, start, stop, n, key_len, low, high, offset, scale, item, seed, threshold, inflate,
    stride_kn, stride_vn, stride_mm, stride_mn,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, LENS: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_LOW: tl.constexpr, HAS_HIGH: tl.constexpr, HAS_SLOPES: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Let the keys from ``begin`` to ``end`` pass by: dq / c."""
    i, lens = rows[:, None], lens[:, None]  # [BLOCK_M, 1]
    for first in range(begin, end, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        j = keys[None, :]  # [1, BLOCK_N]
        k = _rows(key_ptr, keys, stride_kn, start, stop, DIM, BLOCK_D, EDGE)  # [BLOCK_N, BLOCK_D]
        v = _rows(value_ptr, keys, stride_vn, start, stop, VALUE_DIM, BLOCK_V, EDGE)
        s = _scores(q, k, i, j, scale, slope, offset, HAS_SLOPES, PRECISION)  # [BLOCK_M, BLOCK_N]
        dp = tl.dot(g, tl.trans(v), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        allowed = i >= 0
        if EDGE:
            allowed = _allowed(
                i, j, n, key_len, lens, mask_ptr, low, high, stride_mm, stride_mn,
                LENS, HAS_MASK, HAS_LOW, HAS_HIGH,
            )  # fmt: skip
            if HAS_MASK or LENS == "query":
                k = _clear(k, allowed)
        _, e = _weights_and_slopes(
            s, dp, i, j, norm[:, None], delta[:, None], allowed, item, seed, threshold, inflate,
            DROPOUT, EDGE,
        )  # fmt: skip
        dquery += tl.dot(e.to(k.dtype), k, input_precision=PRECISION)
    return dquery


@triton.jit(do_not_specialize=["seed", "threshold"])
def _flash_bwd_dq_kernel(
    query_ptr,  # [batch, heads, n, DIM]
    key_ptr,  # [batch, heads / group, m, DIM]
    value_ptr,  # [batch, heads / group, m, VALUE_DIM]
    lens_ptr,  # [batch, heads, 1 or n]
    mask_ptr,  # [batch, heads, n, m]
    slopes_ptr,  # [heads], times log2 e
    grad_ptr,  # [batch, heads, n, VALUE_DIM], dL/do
    norm_ptr,  # [batch, heads, n], L_i
    delta_ptr,  # [batch, heads, n], D_i
    dquery_ptr,  # [batch, heads, n, DIM]
    n, m, heads, group, low, high, offset, scale, seed, threshold, inflate,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_lb, stride_lh, stride_lm,
    stride_mb, stride_mh, stride_mm, stride_mn,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, LENS: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_LOW: tl.constexpr, HAS_HIGH: tl.constexpr, HAS_SLOPES: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The forward kernel's walk, over the same keys."""
    first, batch, head = _my_tile(n, heads, BLOCK_M, HAS_HIGH)
    item = batch * heads + head
    rows = first + tl.arange(0, BLOCK_M)  # my queries
    key_ptr += batch * stride_kb + head // group * stride_kh
    value_ptr += batch * stride_vb + head // group * stride_vh
    mask_ptr += batch * stride_mb + head * stride_mh
    query_ptr += batch * stride_qb + head * stride_qh
    grad_ptr += item * n * VALUE_DIM
    q = _rows(query_ptr, rows, stride_qm, 0, n, DIM, BLOCK_D, True)  # [BLOCK_M, BLOCK_D]
    g = _rows(grad_ptr, rows, VALUE_DIM, 0, n, VALUE_DIM, BLOCK_V, True)  # [BLOCK_M, BLOCK_V]
    norm = tl.load(norm_ptr + item * n + rows, mask=rows < n, other=float("inf"))  # [BLOCK_M]
    delta = tl.load(delta_ptr + item * n + rows, mask=rows < n, other=0.0)  # [BLOCK_M]
    slope = tl.load(slopes_ptr + head) if HAS_SLOPES else 0.0

    key_len = _key_len(lens_ptr, batch, head, m, stride_lb, stride_lh, LENS)
    stop, whole_stop = key_len, key_len
    lens = rows
    if LENS == "query":
        lens_ptr += batch * stride_lb + head * stride_lh + rows.to(tl.int64) * stride_lm
        lens = tl.load(lens_ptr, mask=rows < n, other=0)  # [BLOCK_M]
        stop = tl.minimum(stop, tl.max(lens, 0))
        whole_stop = tl.minimum(stop, tl.min(tl.where(rows < n, lens, m), 0))
    last = tl.minimum(first + BLOCK_M, n) - 1
    start, whole_start, whole_stop, stop = _in_sight(
        first, last, stop, whole_stop, low, high, BLOCK_N, HAS_LOW, HAS_HIGH
    )
    if HAS_MASK:
        whole_stop = whole_start

    dquery = tl.zeros([BLOCK_M, BLOCK_D], norm_ptr.dtype.element_ty)
    for part in tl.static_range(3):
        if (part == 0 and HAS_LOW) or (part == 1 and not HAS_MASK) or part == 2:
            begin, end = whole_start, whole_stop
            if part == 0:
                begin, end = start // BLOCK_N * BLOCK_N, tl.minimum(whole_start, stop)
            if part == 2:
                begin, end = whole_stop, stop
            dquery = _gather_dq(
                dquery, q, g, rows, norm, delta, key_ptr, value_ptr, lens, mask_ptr, slope,
                begin, end, start, stop, n, key_len, low, high, offset, scale, item, seed,
                threshold, inflate, stride_kn, stride_vn, stride_mm, stride_mn,
                DIM, VALUE_DIM, LENS, HAS_MASK, HAS_LOW, HAS_HIGH, HAS_SLOPES, DROPOUT, PRECISION,
                BLOCK_N, BLOCK_D, BLOCK_V, part != 1,
            )  # fmt: skip

    columns = tl.arange(0, BLOCK_D)
    where = (item * n + rows[:, None]) * DIM + columns[None, :]
    inside = (rows < n)[:, None] & (columns < DIM)[None, :]
    tl.store(dquery_ptr + where, (dquery * scale).to(dquery_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gather_dkv(
    dkey, dvalue, k, v, keys, query_ptr, grad_ptr, norm_ptr, delta_ptr, lens_ptr, mask_ptr, slope,
    begin, end, start, stop, n, key_len, low, high, offset, scale, item, seed, threshold, inflate,
    stride_qm, stride_lm, stride_mm, stride_mn,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, LENS: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_LOW: tl.constexpr, HAS_HIGH: tl.constexpr, HAS_SLOPES: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Let the queries from ``begin`` to ``end`` pass by: dk / c and dv."""
    j = keys[:, None]  # [BLOCK_N, 1]
    for first in range(begin, end, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        i = rows[None, :]  # [1, BLOCK_M]
        q = _rows(query_ptr, rows, stride_qm, start, stop, DIM, BLOCK_D, EDGE)
        g = _rows(grad_ptr, rows, VALUE_DIM, start, stop, VALUE_DIM, BLOCK_V, EDGE)
        norm = _numbers(norm_ptr, rows, n, EDGE)  # [BLOCK_M]
        delta = _numbers(delta_ptr, rows, n, EDGE)  # [BLOCK_M]
        s = _scores(k, q, i, j, scale, slope, offset, HAS_SLOPES, PRECISION)  # [BLOCK_N, BLOCK_M]
        allowed = j >= 0
        if EDGE:
            lens = i
            if LENS == "query":
                lens = tl.load(lens_ptr + i.to(tl.int64) * stride_lm, mask=i < n, other=0)
            allowed = _allowed(
                i, j, n, key_len, lens, mask_ptr, low, high, stride_mm, stride_mn,
                LENS, HAS_MASK, HAS_LOW, HAS_HIGH,
            )  # fmt: skip
            if HAS_MASK or LENS == "query":
                q, g = _clear(q, allowed), _clear(g, allowed)
        dp = tl.dot(v, tl.trans(g), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
        weights, e = _weights_and_slopes(
            s, dp, i, j, norm[None, :], delta[None, :], allowed, item, seed, threshold, inflate,
            DROPOUT, EDGE,
        )  # fmt: skip
        dvalue += tl.dot(weights.to(g.dtype), g, input_precision=PRECISION)
        dkey += tl.dot(e.to(q.dtype), q, input_precision=PRECISION)
    return dkey, dvalue


@triton.jit(do_not_specialize=["seed", "threshold"])
def _flash_bwd_dkv_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    lens_ptr,
    mask_ptr,
    slopes_ptr,
    grad_ptr,
    norm_ptr,
    delta_ptr,
    dkey_ptr,  # [batch, heads / group, m, DIM]
    dvalue_ptr,  # [batch, heads / group, m, VALUE_DIM]
    n, m, heads, group, low, high, offset, scale, seed, threshold, inflate,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_lb, stride_lh, stride_lm,
    stride_mb, stride_mh, stride_mm, stride_mn,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, LENS: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_LOW: tl.constexpr, HAS_HIGH: tl.constexpr, HAS_SLOPES: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The roles exchanged: i + low <= j <= i + high is j - high <= i <= j - low."""
    first, batch, kv_head = _my_tile(m, heads // group, BLOCK_N, False)
    keys = first + tl.arange(0, BLOCK_N)  # mine
    dtype = norm_ptr.dtype.element_ty
    dkey = tl.zeros([BLOCK_N, BLOCK_D], dtype)
    dvalue = tl.zeros([BLOCK_N, BLOCK_V], dtype)
    key_ptr += batch * stride_kb + kv_head * stride_kh
    value_ptr += batch * stride_vb + kv_head * stride_vh
    k = _rows(key_ptr, keys, stride_kn, 0, m, DIM, BLOCK_D, True)  # [BLOCK_N, BLOCK_D]
    v = _rows(value_ptr, keys, stride_vn, 0, m, VALUE_DIM, BLOCK_V, True)  # [BLOCK_N, BLOCK_V]

    key_len = _key_len(lens_ptr, batch, kv_head * group, m, stride_lb, stride_lh, LENS)
    last = tl.minimum(first + BLOCK_N, key_len) - 1
    some = tl.where(first < key_len, n, 0)
    start, whole_start, whole_stop, stop = _in_sight(
        first, last, some, some, -high, -low, BLOCK_M, HAS_HIGH, HAS_LOW
    )
    if HAS_MASK or LENS == "query":
        whole_stop = whole_start
    for member in range(group):  # each head that shares these keys
        head = kv_head * group + member
        item = batch * heads + head
        slope = tl.load(slopes_ptr + head) if HAS_SLOPES else 0.0
        for part in tl.static_range(3):
            if (
                (part == 0 and HAS_HIGH)
                or (part == 1 and not (HAS_MASK or LENS == "query"))
                or part == 2
            ):
                begin, end = whole_start, whole_stop
                if part == 0:
                    begin, end = start // BLOCK_M * BLOCK_M, tl.minimum(whole_start, stop)
                if part == 2:
                    begin, end = whole_stop, stop
                dkey, dvalue = _gather_dkv(
                    dkey, dvalue, k, v, keys,
                    query_ptr + batch * stride_qb + head * stride_qh,
                    grad_ptr + item * n * VALUE_DIM, norm_ptr + item * n, delta_ptr + item * n,
                    lens_ptr + batch * stride_lb + head * stride_lh,
                    mask_ptr + batch * stride_mb + head * stride_mh, slope,
                    begin, end, start, stop, n, key_len, low, high, offset, scale, item, seed,
                    threshold, inflate, stride_qm, stride_lm, stride_mm, stride_mn,
                    DIM, VALUE_DIM, LENS, HAS_MASK, HAS_LOW, HAS_HIGH, HAS_SLOPES, DROPOUT,
                    PRECISION, BLOCK_M, BLOCK_D, BLOCK_V, part != 1,
                )  # fmt: skip

    kv_item = batch * (heads // group) + kv_head
    columns = tl.arange(0, BLOCK_D)
    where = (kv_item * m + keys[:, None]) * DIM + columns[None, :]
    inside = (keys < m)[:, None] & (columns < DIM)[None, :]
    # At keys past the valid length, which a whole tile of queries does not mask, stands what
    # nobody may see.
    counts = (keys < key_len)[:, None]
    dkey = tl.where(counts, dkey * scale, 0.0)
    tl.store(dkey_ptr + where, dkey.to(dkey_ptr.dtype.element_ty), mask=inside)
    columns = tl.arange(0, BLOCK_V)
    where = (kv_item * m + keys[:, None]) * VALUE_DIM + columns[None, :]
    inside = (keys < m)[:, None] & (columns < VALUE_DIM)[None, :]
    dvalue = tl.where(counts, dvalue, 0.0)
    tl.store(dvalue_ptr + where, dvalue.to(dvalue_ptr.dtype.element_ty), mask=inside)


def differentiate(query, key, value, options, grad, norm, delta, needed):
    """Launch the two large kernels of the backward pass.

    Args:
        query: As in ``attend``, and so the next three.
        key: ``[batch, heads / group, m, dim]``.
        value: ``[batch, heads / group, m, value_dim]``.
        options: What was attended to.
        grad: dL/do, contiguous, ``[batch, heads, n, value_dim]``.
        norm: L_i, ``[batch, heads, n]``.
        delta: D_i, likewise.
        needed: Whether each of the three gradients is.

    Returns:
        dL/dq, dL/dk and dL/dv, contiguous; ``None`` where not needed.
    """
    (batch, heads, n, _), (_, kv_heads, m, _) = query.shape, value.shape
    pointers, sizes, meta = common(query, key, value, options)
    pointers = (*pointers, grad, norm, delta)
    dquery = dkey = dvalue = None
    if needed[0]:
        dquery = query.new_empty(query.shape)
        config = tiles(DQ_CONFIGS, query, value)
        grid = (triton.cdiv(n, config.BLOCK_M) * batch * heads,)
        if dquery.numel():
            _flash_bwd_dq_kernel[grid](*pointers, dquery, *sizes, **meta, **config._asdict())
    if needed[1] or needed[2]:
        dkey, dvalue = key.new_empty(key.shape), value.new_empty(value.shape)
        config = tiles(DKV_CONFIGS, query, value)
        grid = (triton.cdiv(m, config.BLOCK_N) * batch * kv_heads,)
        if dkey.numel():
            _flash_bwd_dkv_kernel[grid](*pointers, dkey, dvalue, *sizes, **meta, **config._asdict())
    return dquery, dkey, dvalue


class _FlashAttention(torch.autograd.Function):
    """Both passes on ``[batch, heads, rows, columns]``; gives the output and L_i."""

    @staticmethod
    def forward(ctx, query, key, value, options):
        output, norm = attend(query, key, value, options)
        ctx.save_for_backward(query, key, value, output, norm)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return output, norm

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_norm):
        query, key, value, output, norm = ctx.saved_tensors
        grad = torch.zeros_like(output) if grad is None else grad.contiguous()
        delta = torch.empty_like(norm)
        meta = {"VALUE_DIM": output.shape[3], "BLOCK_V": block(output.shape[3])}
        grid = (triton.cdiv(norm.numel(), DELTA_ROWS),)
        if norm.numel():
            _flash_bwd_delta_kernel[grid](
                output, grad, delta, norm.numel(), **meta, BLOCK_M=DELTA_ROWS
            )
        if grad_norm is not None:
            delta -= grad_norm * LOG2_E  # L_i is in units of log 2
        gradients = differentiate(
            query, key, value, ctx.options, grad, norm, delta, ctx.needs_input_grad
        )
        return *gradients, None


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch_shape: tuple[int, ...],
    *,
    scale: float,
    group: int = 1,
    lens: Tensor | None = None,
    mask: Tensor | None = None,
    low: int | None = None,
    high: int | None = None,
    offset: int = 0,
    slopes: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    need_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Dot-product attention, differentiable, without storing the weights.

    Args:
        query: ``[..., query_len, dim]``; float32, float16 or bfloat16, and interpreted
            float64 as well.
        key: ``[..., key_len, dim]``.
        value: ``[..., key_len, value_dim]``.
        batch_shape: What the leading dimensions broadcast to; of keys and values, the last
            one divided by ``group``.
        scale: What the dot products are multiplied by.
        group: How many heads share their keys.
        lens: How many leading keys count; broadcasts to ``[..., query_len]``.
        mask: ``True`` = may attend; broadcasts to ``[..., query_len, key_len]``.
        low: Query i sees keys from i + low on; ``None``: from the first.
        high: And up to i + high; ``None``: up to the last.
        offset: The position of query 0, for ``slopes``.
        slopes: Of the bias -slope |i + offset - j|, one for each head.
        dropout_p: Probability with which a weight is dropped.
        seed: Decides which, below 2^31; see ``reference.dropout_kept``.
        need_lse: Whether to return the log-sum-exp.

    Returns:
        The output ``[..., query_len, value_dim]``, and the log-sum-exp of each query's
        scores, ``[..., query_len]``, -inf where there are none, or ``None``.
    """
    n, m, dtype = query.shape[-2], key.shape[-2], query.dtype
    if INTERPRETED and dtype == torch.bfloat16:  # NumPy has none
        query, key, value = query.float(), key.float(), value.float()
    wide = wide_dtype(dtype)

    def four(tensor: Tensor, shape: tuple[int, ...] = batch_shape) -> Tensor:
        full = tensor.expand(*shape, *tensor.shape[-2:])
        full = full[(None,) * (2 - len(shape))].flatten(0, -4)
        # [batch, heads, rows, columns]
        return full if full.stride(3) == 1 else full.contiguous()

    shared = (*batch_shape[:-1], batch_shape[-1] // group) if group > 1 else batch_shape
    if lens is not None:
        lens = four(lens.to(torch.int32).unsqueeze(-1)).squeeze(-1)
    if mask is not None:
        mask = mask.expand(*batch_shape, n, m)[(None,) * (2 - len(batch_shape))]
        mask = mask.flatten(0, -4).view(torch.uint8)
    if slopes is not None:
        slopes = slopes.to(wide).contiguous() * LOG2_E
    options = Options(float(scale), lens, mask, low, high, offset, slopes, dropout_p, seed)
    output, norm = _FlashAttention.apply(
        four(query), four(key, shared), four(value, shared), options
    )
    output = output.reshape(*batch_shape, n, value.shape[-1]).to(dtype)
    if not need_lse:
        return output, None
    lse = norm.masked_fill(norm == torch.inf, -torch.inf) / LOG2_E
    return output, lse.reshape(*batch_shape, n)


def shipped() -> Iterator[Shipped]:
    """Each kernel of the backward pass as its launcher calls it, for each architecture."""
    one = dict.fromkeys(((2, MAX_DIM), (4, MAX_DIM)), Config(DELTA_ROWS, 16, 4, 1))
    yield from chain(
        compilations(_flash_bwd_delta_kernel, dict.fromkeys(ARCHITECTURES, one)),
        compilations(_flash_bwd_dq_kernel, DQ_CONFIGS),
        compilations(_flash_bwd_dkv_kernel, DKV_CONFIGS),
    )
