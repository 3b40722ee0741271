r"""Kernel regression on the GPU, without ever storing the weights.

Nadaraya (1964), Watson (1964). With u_ij = ||q_i - k_j||^2 (queries and keys come
divided by the width) and a kernel phi of u,

    forward    s_ij = phi(u_ij)      l_i = sum_j s_ij      o_i = sum_j s_ij v_j / l_i

    backward   w_ij = s_ij / l_i     e_ij = g_i . v_j - g_i . o_i       (g = dL/do)
               dL/dv_j  = sum_i w_ij g_i
               dL/du_ij = e_ij phi'(u_ij) / l_i
               dL/dq_i  =  2 sum_j dL/du_ij (q_i - k_j)
               dL/dk_j  = -2 sum_i dL/du_ij (q_i - k_j)

The Gaussian's phi(u) = exp(-u/2) vanishes in floating point where every key is far
away, and 0/0 is no answer. So a running maximum M_i of log2 s_ij is kept, sums are of
exp2(log2 s_ij - M_i), and whenever M_i grows they are multiplied by
exp2(M_old - M_new). The kernels with a window need none of this; an empty window has
l_i = 0 and gives zeros.

Grid: a program of the forward and of the dq kernel owns BLOCK_M queries and streams
all keys past them, BLOCK_N at a time; a program of the dk/dv kernel owns BLOCK_N keys
and streams queries. Each output has one owner: no atomics, runs repeat bit for bit.
The second grid axis splits wide rows: TILE columns of the output a program.

Saved for backward: the output, and per query one number that normalises: M + log2 l for
the Gaussian (its logarithm, since l alone would underflow), 1/l for the others.

Moved, in numbers of 4 bytes: n (d + v) + m (d + v) (n / BLOCK_M) read, most of it from
cache, and n (v + 1) written; the naive form writes and reads n m several times. FLOPs a
pair: 3 d + 2 v, and one exponential. Matrices lie transposed, [batch, columns, rows], so
that a tile's load is one contiguous run.
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
    raise ImportError(f"attn_course.kernel_regression.kernel needs triton: {REASON}.")

# Columns one program writes: more would not fit its registers.
MAX_TILE = 32

# Up to this many coordinates the loop over them is unrolled.
MAX_UNROLLED = 8

# BLOCK_M and BLOCK_N, by architecture: they fit, and are not yet tuned on a GPU. The
# interpreter's small ones make small tests cross tiles.
CONFIGS = {
    75: {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4},
    80: {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4},
    90: {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4},
}
INTERPRETED_CONFIG = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4}

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tile_and_batch(length, BLOCK: tl.constexpr):
    """Which tile of which batch item is mine: both in grid axis 0, the only long one."""
    program = tl.program_id(0)
    tiles = tl.cdiv(length, BLOCK)
    return program % tiles, (program // tiles).to(tl.int64)


@triton.jit
def _column(ptr, batch, column, rows, length, COLUMNS: tl.constexpr):
    """Numbers ``rows`` of one column of a [batch, COLUMNS, length] matrix; 0 outside it."""
    start = (batch * COLUMNS + column) * length  # int64, as batch is
    return tl.load(ptr + start + rows, mask=(rows < length) & (column < COLUMNS), other=0.0)


@triton.jit
def _add_difference(u, query_ptr, key_ptr, batch, f, offs_m, offs_n, n, m, DIM: tl.constexpr):
    q = _column(query_ptr, batch, f, offs_m, n, DIM)  # [BLOCK_M]
    k = _column(key_ptr, batch, f, offs_n, m, DIM)  # [BLOCK_N]
    difference = q[:, None] - k[None, :]  # [BLOCK_M, BLOCK_N]
    return u + difference * difference


@triton.jit
def _squared_distance(
    u, query_ptr, key_ptr, batch, offs_m, offs_n, n, m, DIM: tl.constexpr, UNROLL: tl.constexpr
):
    """Add ||q - k||^2 of every pair of the tile to ``u``: [BLOCK_M, BLOCK_N]."""
    if UNROLL:
        for f in tl.static_range(DIM):
            u = _add_difference(u, query_ptr, key_ptr, batch, f, offs_m, offs_n, n, m, DIM)
    else:
        for f in range(DIM):
            u = _add_difference(u, query_ptr, key_ptr, batch, f, offs_m, offs_n, n, m, DIM)
    return u


@triton.jit
def _allowed(
    lens_ptr,
    mask_ptr,
    batch,
    offs_m,
    offs_n,
    n,
    m,
    stride_lb,
    stride_lm,
    stride_mb,
    stride_mm,
    stride_mn,
    HAS_MASK: tl.constexpr,
):
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
def _window(u, KERNEL: tl.constexpr):
    """phi(u) of the kernels with a window."""
    if KERNEL == "boxcar":
        s = tl.where(u < 1, 1.0, 0.0)
    elif KERNEL == "constant":
        s = tl.where(u < 0, 0.0, 1.0)
    elif KERNEL == "triangular":
        s = tl.maximum(1 - tl.sqrt(u), 0.0)
    else:
        s = 0.75 * tl.maximum(1 - u, 0.0)
    return s.to(u.dtype)


@triton.jit
def _weight_and_slope(u, allowed, norm, KERNEL: tl.constexpr):
    """w_ij = phi(u_ij) / l_i and phi'(u_ij) / l_i of a tile, from the saved norm."""
    if KERNEL == "gaussian":
        w = tl.where(allowed, tl.exp2(u * (-0.5 * LOG2_E) - norm[:, None]), 0.0)
        slope = -0.5 * w
    else:
        w = tl.where(allowed, _window(u, KERNEL) * norm[:, None], 0.0)
        if KERNEL == "epanechnikov":
            slope = tl.where(allowed & (u < 1), -0.75 * norm[:, None], 0.0)
        elif KERNEL == "triangular":
            inside = allowed & (u < 1) & (u > 0)  # no slope at the kink, u = 0
            root = tl.sqrt(tl.where(inside, u, 1.0))
            slope = tl.where(inside, -0.5 * norm[:, None] / root, 0.0)
        else:
            slope = tl.zeros_like(w)
    return w, slope


# The teaching path starts here: read this kernel first, then the helpers above.
@triton.jit
def _regress_fwd_kernel(
    query_ptr,  # [batch, DIM, n]
    key_ptr,  # [batch, DIM, m]
    value_ptr,  # [batch, VALUE_DIM, m]
    lens_ptr,  # [batch, n], how many leading keys each query may see
    mask_ptr,  # [batch, n, m]
    output_ptr,  # [batch, VALUE_DIM, n]
    norm_ptr,  # [batch, n]
    n,
    m,
    stride_lb,
    stride_lm,
    stride_mb,
    stride_mm,
    stride_mn,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_V: tl.constexpr,
    KERNEL: tl.constexpr,
    UNROLL: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tile, batch = _tile_and_batch(n, BLOCK_M)
    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # my queries
    first = tl.program_id(1) * TILE  # my columns of the values: first .. first + TILE
    columns = tl.arange(0, BLOCK_V)

    dtype = norm_ptr.dtype.element_ty
    numerator = tl.zeros([BLOCK_M, BLOCK_V], dtype)
    denominator = tl.zeros([BLOCK_M], dtype)
    largest = tl.full([BLOCK_M], float("-inf"), dtype)

    lens_ptrs = lens_ptr + batch * stride_lb + offs_m.to(tl.int64) * stride_lm
    stop = tl.max(tl.load(lens_ptrs, mask=offs_m < n, other=0), 0)
    for start in range(0, stop, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)  # the keys that pass by
        u = tl.zeros([BLOCK_M, BLOCK_N], dtype)
        u = _squared_distance(u, query_ptr, key_ptr, batch, offs_m, offs_n, n, m, DIM, UNROLL)
        allowed = _allowed(
            lens_ptr, mask_ptr, batch, offs_m, offs_n, n, m,
            stride_lb, stride_lm, stride_mb, stride_mm, stride_mn, HAS_MASK,
        )  # fmt: skip
        if KERNEL == "gaussian":
            score = tl.where(allowed, u * (-0.5 * LOG2_E), float("-inf"))
            new = tl.maximum(largest, tl.max(score, 1))
            anchor = tl.where(new == float("-inf"), 0.0, new)  # nothing seen yet: no inf - inf
            rescale = tl.exp2(largest - anchor)
            numerator = numerator * rescale[:, None]
            denominator = denominator * rescale
            largest = new
            s = tl.exp2(score - anchor[:, None])  # [BLOCK_M, BLOCK_N], 0 where not allowed
        else:
            s = tl.where(allowed, _window(u, KERNEL), 0.0)
        denominator += tl.sum(s, 1)
        for c in range(TILE):
            v = _column(value_ptr, batch, first + c, offs_n, m, VALUE_DIM)  # [BLOCK_N]
            total = tl.sum(s * v[None, :], 1)
            numerator = tl.where(columns[None, :] == c, numerator + total[:, None], numerator)

    some = denominator > 0
    output = numerator / tl.where(some, denominator, 1.0)[:, None]  # an empty window gives 0
    where = (batch * VALUE_DIM + first + columns[None, :]) * n + offs_m[:, None]
    inside = (offs_m < n)[:, None] & (columns < TILE)[None, :]
    inside &= (first + columns < VALUE_DIM)[None, :]
    tl.store(output_ptr + where, output, mask=inside)
    if KERNEL == "gaussian":
        norm = tl.where(some, largest + tl.log2(tl.where(some, denominator, 1.0)), float("inf"))
    else:
        norm = tl.where(some, 1.0 / tl.where(some, denominator, 1.0), 0.0)
    # Programs that differ in their columns alone know the same norm: one of them writes it.
    mine = (offs_m < n) & (first == 0)
    tl.store(norm_ptr + batch * n + offs_m, norm, mask=mine)


@triton.jit
def _tile_gradient(
    query_ptr,
    key_ptr,
    value_ptr,
    lens_ptr,
    mask_ptr,
    grad_ptr,
    norm_ptr,
    delta_ptr,
    batch,
    offs_m,
    offs_n,
    n,
    m,
    stride_lb,
    stride_lm,
    stride_mb,
    stride_mm,
    stride_mn,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    KERNEL: tl.constexpr,
    UNROLL: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The weights w_ij of a tile, and 2 dL/du_ij: both [BLOCK_M, BLOCK_N]."""
    dtype = norm_ptr.dtype.element_ty
    zeros = tl.zeros([BLOCK_M, BLOCK_N], dtype)
    u = _squared_distance(zeros, query_ptr, key_ptr, batch, offs_m, offs_n, n, m, DIM, UNROLL)
    allowed = _allowed(
        lens_ptr, mask_ptr, batch, offs_m, offs_n, n, m,
        stride_lb, stride_lm, stride_mb, stride_mm, stride_mn, HAS_MASK,
    )  # fmt: skip
    norm = tl.load(norm_ptr + batch * n + offs_m, mask=offs_m < n, other=0.0)  # [BLOCK_M]
    delta = tl.load(delta_ptr + batch * n + offs_m, mask=offs_m < n, other=0.0)  # [BLOCK_M]
    w, slope = _weight_and_slope(u, allowed, norm, KERNEL)
    e = zeros - delta[:, None]
    for c in range(VALUE_DIM):
        g = _column(grad_ptr, batch, c, offs_m, n, VALUE_DIM)  # [BLOCK_M]
        v = _column(value_ptr, batch, c, offs_n, m, VALUE_DIM)  # [BLOCK_N]
        e += g[:, None] * v[None, :]
    return w, 2 * e * slope


@triton.jit
def _regress_bwd_dq_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    lens_ptr,
    mask_ptr,
    grad_ptr,  # [batch, VALUE_DIM, n], dL/do
    norm_ptr,
    delta_ptr,  # [batch, n], g . o
    dquery_ptr,  # [batch, DIM, n]
    n,
    m,
    stride_lb,
    stride_lm,
    stride_mb,
    stride_mm,
    stride_mn,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KERNEL: tl.constexpr,
    UNROLL: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tile, batch = _tile_and_batch(n, BLOCK_M)
    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # my queries
    first = tl.program_id(1) * TILE  # my coordinates
    columns = tl.arange(0, BLOCK_D)
    dquery = tl.zeros([BLOCK_M, BLOCK_D], norm_ptr.dtype.element_ty)

    lens_ptrs = lens_ptr + batch * stride_lb + offs_m.to(tl.int64) * stride_lm
    stop = tl.max(tl.load(lens_ptrs, mask=offs_m < n, other=0), 0)
    for start in range(0, stop, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        _, du = _tile_gradient(
            query_ptr, key_ptr, value_ptr, lens_ptr, mask_ptr, grad_ptr, norm_ptr, delta_ptr,
            batch, offs_m, offs_n, n, m, stride_lb, stride_lm, stride_mb, stride_mm, stride_mn,
            DIM, VALUE_DIM, KERNEL, UNROLL, HAS_MASK, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        for f in range(TILE):
            q = _column(query_ptr, batch, first + f, offs_m, n, DIM)  # [BLOCK_M]
            k = _column(key_ptr, batch, first + f, offs_n, m, DIM)  # [BLOCK_N]
            total = tl.sum(du * (q[:, None] - k[None, :]), 1)
            dquery = tl.where(columns[None, :] == f, dquery + total[:, None], dquery)

    where = (batch * DIM + first + columns[None, :]) * n + offs_m[:, None]
    inside = (offs_m < n)[:, None] & (columns < TILE)[None, :]
    inside &= (first + columns < DIM)[None, :]
    tl.store(dquery_ptr + where, dquery, mask=inside)


@triton.jit
def _regress_bwd_dkv_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    lens_ptr,
    mask_ptr,
    grad_ptr,
    norm_ptr,
    delta_ptr,
    dkey_ptr,  # [batch, DIM, m]
    dvalue_ptr,  # [batch, VALUE_DIM, m]
    n,
    m,
    stride_lb,
    stride_lm,
    stride_mb,
    stride_mm,
    stride_mn,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_V: tl.constexpr,
    BLOCK_V: tl.constexpr,
    KERNEL: tl.constexpr,
    UNROLL: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tile, batch = _tile_and_batch(m, BLOCK_N)
    offs_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)  # my keys
    first = tl.program_id(1) * TILE  # my coordinates
    first_v = tl.program_id(1) * TILE_V  # my columns of the values
    columns = tl.arange(0, BLOCK_D)
    columns_v = tl.arange(0, BLOCK_V)
    dkey = tl.zeros([BLOCK_D, BLOCK_N], norm_ptr.dtype.element_ty)
    dvalue = tl.zeros([BLOCK_V, BLOCK_N], norm_ptr.dtype.element_ty)

    for start in range(0, n, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        w, du = _tile_gradient(
            query_ptr, key_ptr, value_ptr, lens_ptr, mask_ptr, grad_ptr, norm_ptr, delta_ptr,
            batch, offs_m, offs_n, n, m, stride_lb, stride_lm, stride_mb, stride_mm, stride_mn,
            DIM, VALUE_DIM, KERNEL, UNROLL, HAS_MASK, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        for f in range(TILE):
            q = _column(query_ptr, batch, first + f, offs_m, n, DIM)  # [BLOCK_M]
            k = _column(key_ptr, batch, first + f, offs_n, m, DIM)  # [BLOCK_N]
            total = tl.sum(du * (k[None, :] - q[:, None]), 0)
            dkey = tl.where(columns[:, None] == f, dkey + total[None, :], dkey)
        for c in range(TILE_V):
            g = _column(grad_ptr, batch, first_v + c, offs_m, n, VALUE_DIM)  # [BLOCK_M]
            total = tl.sum(w * g[:, None], 0)
            dvalue = tl.where(columns_v[:, None] == c, dvalue + total[None, :], dvalue)

    where = (batch * DIM + first + columns[:, None]) * m + offs_n[None, :]
    inside = (offs_n < m)[None, :] & (columns < TILE)[:, None]
    inside &= (first + columns < DIM)[:, None]
    tl.store(dkey_ptr + where, dkey, mask=inside)
    where = (batch * VALUE_DIM + first_v + columns_v[:, None]) * m + offs_n[None, :]
    inside = (offs_n < m)[None, :] & (columns_v < TILE_V)[:, None]
    inside &= (first_v + columns_v < VALUE_DIM)[:, None]
    tl.store(dvalue_ptr + where, dvalue, mask=inside)


def nadaraya_watson(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel: str,
    lens: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Kernel regression, differentiable, without storing the weights.

    Args:
        query: ``[..., query_len, dim]``, float32 or float64, divided by the width.
        key: ``[..., key_len, dim]``, likewise.
        value: ``[..., key_len, value_dim]``.
        kernel: One of ``reference.KERNELS``.
        lens: How many leading keys count; broadcasts to ``[..., query_len]``.
        mask: ``True`` = may attend; broadcasts to ``[..., query_len, key_len]``.

    Returns:
        ``[..., query_len, value_dim]``.
    """
    batch_shape = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    batch, n, m = batch_shape.numel(), query.shape[-2], key.shape[-2]

    def columns_first(tensor: Tensor) -> Tensor:  # [batch, columns, rows]
        full = tensor.expand(*batch_shape, *tensor.shape[-2:])
        return full.reshape(batch, *full.shape[-2:]).mT.contiguous()

    if lens is None:
        lens = torch.full((), m, device=query.device)
    lens = lens.to(torch.int32).expand(*batch_shape, n).reshape(batch, n)  # [batch, n]
    if mask is not None:
        mask = mask.expand(*batch_shape, n, m).reshape(batch, n, m).view(torch.uint8)
    output: Tensor = _KernelRegression.apply(
        columns_first(query), columns_first(key), columns_first(value), lens, mask, kernel
    )
    return output.mT.reshape(*batch_shape, n, value.shape[-1])


class _KernelRegression(torch.autograd.Function):
    """Launches the kernels on ``[batch, columns, rows]`` matrices."""

    @staticmethod
    def forward(ctx, query, key, value, lens, mask, kernel):
        (batch, _, n), value_dim = query.shape, value.shape[1]
        output = query.new_empty(batch, value_dim, n)
        norm = query.new_empty(batch, n)
        arguments, meta = _common(query, key, value, lens, mask, kernel)
        tile = min(value_dim, MAX_TILE)
        meta |= {"TILE": tile, "BLOCK_V": triton.next_power_of_2(tile)}
        grid = (triton.cdiv(n, meta["BLOCK_M"]) * batch, triton.cdiv(value_dim, tile))
        if output.numel():
            _regress_fwd_kernel[grid](
                *arguments["inputs"], output, norm, *arguments["sizes"], **meta
            )
        ctx.save_for_backward(query, key, value, lens, mask, output, norm)
        ctx.kernel = kernel
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        query, key, value, lens, mask, output, norm = ctx.saved_tensors
        (batch, dim, n), (_, value_dim, m) = query.shape, value.shape
        grad = grad.contiguous()
        delta = (grad * output).sum(1)  # [batch, n]
        arguments, meta = _common(query, key, value, lens, mask, ctx.kernel)
        inputs = (*arguments["inputs"], grad, norm, delta)
        tile, tile_v = min(dim, MAX_TILE), min(value_dim, MAX_TILE)
        meta |= {"TILE": tile, "BLOCK_D": triton.next_power_of_2(tile)}
        dquery = dkey = dvalue = None
        if ctx.needs_input_grad[0]:
            dquery = torch.empty_like(query)
            grid = (triton.cdiv(n, meta["BLOCK_M"]) * batch, triton.cdiv(dim, tile))
            if dquery.numel():
                _regress_bwd_dq_kernel[grid](*inputs, dquery, *arguments["sizes"], **meta)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dkey, dvalue = torch.empty_like(key), torch.empty_like(value)
            tiles = max(triton.cdiv(dim, tile), triton.cdiv(value_dim, tile_v))
            grid = (triton.cdiv(m, meta["BLOCK_N"]) * batch, tiles)
            meta |= {"TILE_V": tile_v, "BLOCK_V": triton.next_power_of_2(tile_v)}
            if dkey.numel():
                _regress_bwd_dkv_kernel[grid](*inputs, dkey, dvalue, *arguments["sizes"], **meta)
        return dquery, dkey, dvalue, None, None, None


def _common(query, key, value, lens, mask, kernel):
    """What the three launches share: arguments by position, and options by name."""
    config = INTERPRETED_CONFIG if INTERPRETED else CONFIGS[architecture(query.device)]
    strides = (0, 0, 0) if mask is None else mask.stride()
    inputs = (query, key, value, lens, query if mask is None else mask)
    sizes = (query.shape[2], key.shape[2], *lens.stride(), *strides)
    meta = {
        "DIM": query.shape[1],
        "VALUE_DIM": value.shape[1],
        "KERNEL": kernel,
        "UNROLL": query.shape[1] <= MAX_UNROLLED,
        "HAS_MASK": mask is not None,
        **config,
    }
    return {"inputs": inputs, "sizes": sizes}, meta


def shipped() -> Iterator[Shipped]:
    """Each kernel as the launchers call it, for each architecture.

    The shapes are chapter 1's: points in space, a curve (one coordinate, one value) and
    digits (64 coordinates, 10 classes).
    """
    shapes = [
        ("gaussian", 3, 1, False),
        ("triangular", 1, 1, True),
        ("boxcar", 1, 1, False),
        ("constant", 1, 1, False),
        ("epanechnikov", 2, 3, True),
        ("gaussian", 64, 10, False),
    ]
    strides = ("stride_lb", "stride_lm", "stride_mb", "stride_mm", "stride_mn")
    integers = dict.fromkeys(("n", "m", *strides), "i32")
    for arch in ARCHITECTURES:
        config = dict(CONFIGS[arch])
        options = {"num_warps": config.pop("num_warps")}
        for kernel, dim, value_dim, has_mask in shapes:
            pointers = dict.fromkeys(("query_ptr", "key_ptr", "value_ptr"), "*fp32")
            pointers |= {"lens_ptr": "*i32", "mask_ptr": "*u8" if has_mask else "*fp32"}
            saved = dict.fromkeys(("grad_ptr", "norm_ptr", "delta_ptr"), "*fp32")
            tile, tile_v = min(dim, MAX_TILE), min(value_dim, MAX_TILE)
            meta = {
                "DIM": dim,
                "VALUE_DIM": value_dim,
                "KERNEL": kernel,
                "UNROLL": dim <= MAX_UNROLLED,
                "HAS_MASK": has_mask,
                **config,
            }
            block_d, block_v = triton.next_power_of_2(tile), triton.next_power_of_2(tile_v)
            forward = {"TILE": tile_v, "BLOCK_V": block_v}
            backward = {"TILE": tile, "BLOCK_D": block_d}
            both = backward | {"TILE_V": tile_v, "BLOCK_V": block_v}
            for function, written, extra in (
                (_regress_fwd_kernel, ("output_ptr", "norm_ptr"), forward),
                (_regress_bwd_dq_kernel, ("dquery_ptr",), backward),
                (_regress_bwd_dkv_kernel, ("dkey_ptr", "dvalue_ptr"), both),
            ):
                read = {} if function is _regress_fwd_kernel else saved
                constexprs = meta | extra
                signature = (
                    pointers
                    | read
                    | dict.fromkeys(written, "*fp32")
                    | integers
                    | dict.fromkeys(constexprs, "constexpr")
                )
                yield Shipped(function, arch, signature, constexprs, options)
