r"""Sequence projection on the GPU: the backward pass, and both passes as one operation.

Forward (see ``kernel``), y_b = E x_b over the l_b leading positions of item b. With g = dL/dy,

    dL/dx_bi = sum_k E_ki g_bk if i < l_b, else 0
    dL/dE_ki = sum_{b, i < l_b} g_bk . x_bi,

the last sum over all items that share E: those of a batch, and heads unless each has its own.

Two kernels; each is launched only if what it gives is needed. In the first a program owns
BLOCK_N positions of an item, with all columns, and sums over k; past the length it reads nothing
and writes zeros. In the second it owns a tile of dL/dE and sums over items and, within a
product, over columns. Where there are many items and few tiles, as in short sequences, the items
are split into parts, in slots of their own, and a second sum adds the slots. Both serve keys and
values at once where these share E: the first loads each tile of E once for both, and what the
second adds up is the gradient of the one matrix. No atomics: runs repeat bit for bit.

Moved, in numbers, with B items: the first writes what the forward pass reads of x, and reads B k
d and E; the second reads B n d for every BLOCK_K rows of E and writes k n. FLOPs: 2 B k n d each.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attn_course._triton import INTERPRETED, Shipped, tl, triton
from attn_course.linformer.kernel import (
    MAX_DIM,
    SINGLE,
    SMALL,
    Config,
    Configs,
    _length,
    _load,
    _store,
    add_up,
    common,
    compilations,
    matrix_strides,
    project_forward,
    rows_contiguous,
    slots,
    split,
    tiles,
)

# As in ``kernel``, and likewise not yet tuned.
X_CONFIGS: Configs = {
    75: SMALL,
    80: {(2, 64): Config(32, 128, 8, 3), (2, MAX_DIM): Config(32, 128, 8, 3), **SINGLE},
    90: {(2, 64): Config(64, 128, 8, 3), (2, MAX_DIM): Config(64, 128, 8, 2), **SINGLE},
}
WEIGHT_CONFIGS: Configs = {
    75: SMALL,
    80: {(2, 64): Config(128, 128, 8, 2), (2, MAX_DIM): Config(64, 64, 8, 2), **SINGLE},
    90: {(2, 64): Config(128, 128, 8, 2), (2, MAX_DIM): Config(128, 64, 8, 2), **SINGLE},
}


@triton.jit
def _project_bwd_x_kernel(
    matrix_ptr,
    lens_ptr,
    gkey_ptr,  # [batch, heads, k, DIM], dL/dy of the keys
    gvalue_ptr,  # [batch, heads, k, VALUE_DIM]
    dkey_ptr,  # [batch, heads, n, DIM], dL/dx of the keys
    dvalue_ptr,  # [batch, heads, n, VALUE_DIM]
    n, k, heads,
    stride_eh, stride_ek, stride_gb, stride_gh, stride_gk, stride_fb, stride_fh, stride_fk,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PAIR: tl.constexpr, HAS_LENS: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(n, BLOCK_N)
    item = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head = item // heads, item % heads
    first = tl.program_id(0) % tiles * BLOCK_N
    i = first + tl.arange(0, BLOCK_N)  # my positions
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    matrix_ptr += head * stride_eh
    gkey_ptr += batch * stride_gb + head * stride_gh
    gvalue_ptr += batch * stride_fb + head * stride_fh
    length = _length(lens_ptr, batch, n, HAS_LENS)

    keys = tl.zeros([BLOCK_N, BLOCK_D], DTYPE)
    values = tl.zeros([BLOCK_N, BLOCK_V], DTYPE)
    for start in range(0, tl.where(first < length, k, 0), BLOCK_K):
        rows = start + tl.arange(0, BLOCK_K)
        e = tl.trans(_load(matrix_ptr, rows, i, stride_ek, k, length))  # [BLOCK_N, BLOCK_K]
        g = _load(gkey_ptr, rows, d, stride_gk, k, DIM)  # [BLOCK_K, BLOCK_D]
        keys += tl.dot(e, g, input_precision=PRECISION)
        if PAIR:
            f = _load(gvalue_ptr, rows, v, stride_fk, k, VALUE_DIM)  # [BLOCK_K, BLOCK_V]
            values += tl.dot(e, f, input_precision=PRECISION)

    counts = (i < length)[:, None]  # a choice, not a product: g may be inf
    _store(dkey_ptr + item * n * DIM, tl.where(counts, keys, 0.0), i, d, DIM, n, DIM)
    if PAIR:
        values = tl.where(counts, values, 0.0)
        _store(dvalue_ptr + item * n * VALUE_DIM, values, i, v, VALUE_DIM, n, VALUE_DIM)


@triton.jit
def _project_bwd_weight_kernel(
    lens_ptr,
    key_ptr,
    value_ptr,
    gkey_ptr,
    gvalue_ptr,
    part_ptr,  # [parts, 1 or heads, k, columns], of dE
    n, k, heads, columns, items, steps,  # how many share E, and how many of them each part has
    stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gk, stride_fb, stride_fh, stride_fk,
    SHARED: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PAIR: tl.constexpr,
    HAS_LENS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(columns, BLOCK_N)
    tiles = tl.cdiv(k, BLOCK_K) * tiles_n
    matrix, tile, part = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.program_id(1)
    rows = tile // tiles_n * BLOCK_K + tl.arange(0, BLOCK_K)
    i = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)

    de = tl.zeros([BLOCK_K, BLOCK_N], DTYPE)
    start = part.to(tl.int64) * steps
    for step in range(0, tl.minimum(steps, items - start)):
        batch, head = (start + step) // heads, (start + step) % heads
        if not SHARED:
            batch, head = start + step, matrix.to(tl.int64)
        length = _length(lens_ptr, batch, n, HAS_LENS)
        keys = key_ptr + batch * stride_kb + head * stride_kh
        x = _load(keys, i, d, stride_kn, length, DIM)  # [BLOCK_N, BLOCK_D]
        gkeys = gkey_ptr + batch * stride_gb + head * stride_gh
        g = _load(gkeys, rows, d, stride_gk, k, DIM)  # [BLOCK_K, BLOCK_D]
        de += tl.dot(g, tl.trans(x), input_precision=PRECISION)
        if PAIR:
            values = value_ptr + batch * stride_vb + head * stride_vh
            y = _load(values, i, v, stride_vn, length, VALUE_DIM)  # [BLOCK_N, BLOCK_V]
            gvalues = gvalue_ptr + batch * stride_fb + head * stride_fh
            f = _load(gvalues, rows, v, stride_fk, k, VALUE_DIM)  # [BLOCK_K, BLOCK_V]
            de += tl.dot(f, tl.trans(y), input_precision=PRECISION)

    slot = (part.to(tl.int64) * (tl.num_programs(0) // tiles) + matrix) * k * columns
    _store(part_ptr + slot, de, rows, i, columns, k, columns)


def sequence_gradients(
    matrix: Tensor, lens: Tensor | None, sequences: tuple[Tensor, ...], grads: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """dL/dx for each sequence, contiguous.

    Args:
        matrix: As in ``project_forward``, and so the next two.
        lens: ``[batch]`` or ``None``.
        sequences: ``[batch, heads, n, dim]`` each.
        grads: dL/dy, ``[batch, heads, k, dim]`` each.
    """
    batch, heads, n, _ = sequences[0].shape
    config = tiles(X_CONFIGS, *sequences)
    found = tuple(x.new_empty(x.shape) for x in sequences)
    programs = triton.cdiv(n, config.BLOCK_N) * batch * heads
    if programs:
        _project_bwd_x_kernel[(programs,)](
            matrix, matrix if lens is None else lens, grads[0], grads[-1], found[0], found[-1],
            n, matrix.shape[1], heads,
            *matrix_strides(matrix), *grads[0].stride()[:3], *grads[-1].stride()[:3],
            **common(matrix, sequences, lens), **config._asdict(),
        )  # fmt: skip
    return found


def matrix_gradient(
    matrix: Tensor, lens: Tensor | None, sequences: tuple[Tensor, ...], grads: tuple[Tensor, ...]
) -> Tensor:
    """dL/dE, of the shape and type of ``matrix``; arguments as in ``sequence_gradients``."""
    batch, heads, n, _ = sequences[0].shape
    matrices, k, columns = matrix.shape
    config = tiles(WEIGHT_CONFIGS, *sequences)
    items = batch * heads if matrices == 1 else batch
    programs = triton.cdiv(k, config.BLOCK_K) * triton.cdiv(columns, config.BLOCK_N) * matrices
    parts, steps = split(items, programs)
    partial = slots(matrix, parts, *matrix.shape)
    if programs:
        _project_bwd_weight_kernel[(programs, parts)](
            matrix if lens is None else lens, sequences[0], sequences[-1], grads[0], grads[-1],
            partial, n, k, heads, columns, items, steps,
            *(step for x in (sequences[0], sequences[-1]) for step in x.stride()[:3]),
            *(step for g in (grads[0], grads[-1]) for step in g.stride()[:3]),
            SHARED=matrices == 1, **common(matrix, sequences, lens), **config._asdict(),
        )  # fmt: skip
    return add_up(partial, matrix.dtype)


class _Projection(torch.autograd.Function):
    """Both passes, of keys or of keys and values that share their matrix."""

    @staticmethod
    def forward(ctx, matrix, lens, *sequences):
        ctx.save_for_backward(matrix, lens, *sequences)
        return project_forward(matrix, lens, *sequences)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        matrix, lens, *sequences = ctx.saved_tensors
        arguments = matrix, lens, tuple(sequences), tuple(map(rows_contiguous, grads))
        dmatrix = matrix_gradient(*arguments) if ctx.needs_input_grad[0] else None
        dsequences = (None,) * len(sequences)
        if any(ctx.needs_input_grad[2:]):
            dsequences = sequence_gradients(*arguments)
        return dmatrix, None, *dsequences


def _apply(projection, lens, *sequences):
    """From any strides; a matrix for each head, or one for all."""
    dtype, heads = projection.dtype, sequences[0].shape[1]
    if INTERPRETED and dtype == torch.bfloat16:  # NumPy has none
        projection, *sequences = (tensor.float() for tensor in (projection, *sequences))
    matrix = projection if projection.ndim == 3 else projection.unsqueeze(0)
    if len(matrix) not in (1, heads):
        raise ValueError(f"projection must have {heads} heads, got {list(projection.shape)}.")
    lens = None if lens is None else lens.to(torch.int32).contiguous()
    found = _Projection.apply(rows_contiguous(matrix), lens, *map(rows_contiguous, sequences))
    return tuple(y.to(dtype) for y in found)


def project(x: Tensor, projection: Tensor, lens: Tensor | None = None) -> Tensor:
    """Project a sequence, differentiable once.

    Args:
        x: ``[batch, heads, n, dim]``, any strides; float32, float16 or bfloat16, and
            interpreted float64 as well.
        projection: ``[k, columns]`` or ``[heads, k, columns]``, of the same type, of which the
            first n columns are used.
        lens: How many leading positions count, ``[batch]``, or ``None`` for all.

    Returns:
        ``[batch, heads, k, dim]``.
    """
    (y,) = _apply(projection, lens, x)
    return y


def project_pair(
    key: Tensor,
    value: Tensor,
    key_projection: Tensor,
    value_projection: Tensor,
    lens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Project keys and values; where they share their projection, in one pass over it.

    Args:
        key: ``[batch, heads, n, dim]``, and otherwise as ``x`` in ``project``.
        value: ``[batch, heads, n, value_dim]``.
        key_projection: As ``projection`` there.
        value_projection: Likewise; shared if it is the same object.
        lens: As there.

    Returns:
        ``[batch, heads, k, dim]`` and ``[batch, heads, k, value_dim]``.
    """
    if key_projection is value_projection:
        keys, values = _apply(key_projection, lens, key, value)
        return keys, values
    return project(key, key_projection, lens), project(value, value_projection, lens)


def shipped() -> Iterator[Shipped]:
    """Each kernel of the backward pass as its launcher calls it, for each architecture."""
    yield from compilations(_project_bwd_x_kernel, X_CONFIGS)
    yield from compilations(_project_bwd_weight_kernel, WEIGHT_CONFIGS)
