r"""Attention to a few keys on the GPU: the softmax of a query fits the registers.

Linformer (Wang et al., 2020), equation 7, after the projection. Queries q_i of a head, n of
them, attend to m <= MAX_KEYS projected keys and values, with a scale c:

    s_ij = c q_i . k_j       p_ij = exp(s_ij) / sum_j exp(s_ij)       o_i = sum_j p_ij v_j.

FlashAttention (``attn_course.dot_product.kernel``) lets keys pass by in tiles and corrects
what it has added up whenever a larger score comes. Here a program owns BLOCK_M queries and
holds their scores with all keys at once, BLOCK_M x BLOCK_N numbers, BLOCK_N being the next
power of two: maximum, exponentials and sum are each taken once, of complete rows. What loops
is the width of the head, BLOCK_D columns at a time, so that keys of any width fit beside the
scores. exp(x) is computed as 2^(x log2 e), which is what a GPU has.

Backward. With g = dL/do,

    a_ij = g_i . v_j       e_ij = p_ij (a_ij - sum_j p_ij a_ij)                (e = dL/ds)
    dL/dq_i = c sum_j e_ij k_j       dL/dk_j = c sum_i e_ij q_i       dL/dv_j = sum_i p_ij g_i.

``_short_bwd_dq_kernel`` is the query pass: a program has complete rows of p and a, hence the sum
in e at once, and dq; neither the output nor anything else need have been saved. It leaves two
numbers a query, the log-sum-exp L_i and D_i = sum_j p_ij a_ij. From these the second pass,
``_short_bwd_dkv_kernel``, has p_ij = 2^(s_ij - L_i) and e_ij without the other keys: a program
owns BLOCK_N keys. But there are few keys and up to a million queries, so that a program a tile
of keys would leave the GPU idle: queries are split, each part's sums go to a slot of its own,
in float32, and a second sum adds the slots. No atomics: runs repeat bit for bit. It works on
transposed tiles, keys down and queries across, so that p and e are first factors.

A batch item may have fewer keys than others. One that has none gets zeros, as output and as
gradients, and neither its queries nor the gradients coming in are read. (Valid lengths of the
sequence itself are a matter of the projection, before.) Scores of +inf give NaN, as in PyTorch.

Moved, in numbers, for each head: forward n (d + v) of queries and output, and m (d + v) for each
program, from cache; the query pass n (2 d + v), the other n (d + v) m / BLOCK_N. FLOPs a pair:
2 (d + v) and one exponential forward; 4 d + 2 v and 4 (d + v) backward, an exponential each.
With m a constant all of it grows as n does.

Precision: as in ``kernel``; scores, softmax and sums are float32 always. Weights are rounded to the
type of the values before they meet them.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from attn_course._precision import wide_dtype
from attn_course._triton import ARCHITECTURES, INTERPRETED, Shipped, architecture, tl, triton
from attn_course.linformer.kernel import (
    MAX_DIM,
    _load,
    _store,
    add_up,
    as_shipped,
    block,
    rows_contiguous,
    slots,
    split,
)

LOG2_E = tl.constexpr(math.log2(math.e))

# The most keys: their scores fill the registers.
MAX_KEYS = 512


class Config(NamedTuple):
    """How large tiles are, and who works on them."""

    BLOCK_M: int  # queries
    BLOCK_N: int  # keys, at most
    BLOCK_D: int  # columns of a head, at most
    num_warps: int
    num_stages: int


# Architecture -> bytes of a number -> tiles, smallest first.
Configs: TypeAlias = dict[int, dict[int, tuple[Config, ...]]]

# Chosen so that they fit shared memory and registers; not yet tuned on a GPU. What 75 has no tiles
# for does not fit it.
_SMALL: dict[int, tuple[Config, ...]] = {
    2: (Config(16, 128, 16, 4, 1),),
    4: (Config(16, 128, 16, 4, 1),),
}
_SINGLE = (Config(32, 128, 32, 8, 2), Config(16, MAX_KEYS, 16, 8, 1))
FWD_CONFIGS: Configs = {
    75: _SMALL,
    80: {2: (Config(128, 128, 64, 8, 2), Config(64, MAX_KEYS, 32, 8, 2)), 4: _SINGLE},
    90: {2: (Config(128, 128, 64, 8, 2), Config(64, MAX_KEYS, 64, 8, 2)), 4: _SINGLE},
}
DQ_CONFIGS: Configs = {
    75: _SMALL,
    80: {2: (Config(64, 128, 64, 8, 2), Config(32, MAX_KEYS, 32, 8, 2)), 4: _SINGLE},
    90: {2: (Config(64, 128, 64, 8, 2), Config(32, MAX_KEYS, 64, 8, 2)), 4: _SINGLE},
}
# Here a program holds all columns, and keys pass by others.
_DKV_SMALL: dict[int, tuple[Config, ...]] = {
    2: (Config(16, 16, MAX_DIM, 4, 1),),
    4: (Config(16, 16, MAX_DIM, 4, 1),),
}
_DKV_SINGLE = (Config(32, 32, 64, 4, 2), Config(32, 32, MAX_DIM, 8, 1))
DKV_CONFIGS: Configs = {
    75: _DKV_SMALL,
    80: {2: (Config(32, 128, 64, 8, 2), Config(32, 64, MAX_DIM, 8, 2)), 4: _DKV_SINGLE},
    90: {2: (Config(64, 128, 64, 8, 2), Config(32, 128, MAX_DIM, 8, 2)), 4: _DKV_SINGLE},
}
INTERPRETED_CONFIG = Config(16, 16, 16, 4, 1)


@triton.jit
def _my_queries(n, heads, BLOCK_M: tl.constexpr):
    """Which are mine, and their batch item and head; int64, as offsets must be."""
    item = (tl.program_id(0) // tl.cdiv(n, BLOCK_M)).to(tl.int64)
    rows = tl.program_id(0) % tl.cdiv(n, BLOCK_M) * BLOCK_M + tl.arange(0, BLOCK_M)
    return rows, item, item // heads, item % heads


@triton.jit
def _present(n, m, lens_ptr, batch, HAS_LENS: tl.constexpr):
    """How many keys of a batch item count, and queries: none if there is no key."""
    if HAS_LENS:
        m = tl.minimum(tl.load(lens_ptr + batch), m)
        n = tl.where(m > 0, n, 0)
    return n, m


# The teaching path: the next two functions.
@triton.jit
def _products(
    a_ptr, b_ptr, rows, keys, stride_a, stride_b, n, m,
    COLUMNS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Products of rows of a with rows of b, BLOCK columns at a time: [BLOCK_M, BLOCK_N]."""
    tile = tl.zeros([BLOCK_M, BLOCK_N], DTYPE)
    for first in range(0, COLUMNS, BLOCK):
        c = first + tl.arange(0, BLOCK)
        a = _load(a_ptr, rows, c, stride_a, n, COLUMNS)  # [BLOCK_M, BLOCK]
        b = _load(b_ptr, keys, c, stride_b, m, COLUMNS)  # [BLOCK_N, BLOCK]
        tile += tl.dot(a, tl.trans(b), input_precision=PRECISION)
    return tile


@triton.jit
def _softmax(s, keys, m):
    """Weights of complete rows, and their log-sum-exp, to the base 2; of no keys, 0 and +inf."""
    s = tl.where((keys < m)[None, :], s, float("-inf"))
    largest = tl.max(s, 1)  # [BLOCK_M]
    largest = tl.where(largest == float("-inf"), 0.0, largest)  # nothing there: no inf - inf
    p = tl.exp2(s - largest[:, None])
    total = tl.sum(p, 1)
    some = total != 0
    total = tl.where(some, total, 1.0)
    norm = tl.where(some, largest + tl.log2(total), float("inf"))
    return p * (1 / total)[:, None], norm


@triton.jit
def _short_fwd_kernel(
    query_ptr,  # [batch, heads, n, DIM]
    key_ptr,  # [batch, heads, m, DIM]
    value_ptr,  # [batch, heads, m, VALUE_DIM]
    lens_ptr,  # [batch], int32
    output_ptr,  # [batch, heads, n, VALUE_DIM]
    n, m, heads, scale,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HAS_LENS: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    rows, item, batch, head = _my_queries(n, heads, BLOCK_M)
    keys = tl.arange(0, BLOCK_N)  # all of them
    query_ptr += batch * stride_qb + head * stride_qh
    key_ptr += batch * stride_kb + head * stride_kh
    value_ptr += batch * stride_vb + head * stride_vh
    output_ptr += item * n * VALUE_DIM
    n_here, m_here = _present(n, m, lens_ptr, batch, HAS_LENS)

    s = _products(
        query_ptr, key_ptr, rows, keys, stride_qm, stride_kn, n_here, m_here,
        DIM, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    p, _ = _softmax(s * (scale * LOG2_E), keys, m_here)
    p = p.to(value_ptr.dtype.element_ty)
    for first in range(0, VALUE_DIM, BLOCK_V):
        c = first + tl.arange(0, BLOCK_V)
        v = _load(value_ptr, keys, c, stride_vn, m_here, VALUE_DIM)  # [BLOCK_N, BLOCK_V]
        output = tl.dot(p, v, input_precision=PRECISION)  # [BLOCK_M, BLOCK_V]
        _store(output_ptr, output, rows, c, VALUE_DIM, n, VALUE_DIM)


@triton.jit
def _short_bwd_dq_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    lens_ptr,
    grad_ptr,  # [batch, heads, n, VALUE_DIM], dL/do
    dquery_ptr,  # [batch, heads, n, DIM]
    norm_ptr,  # [batch, heads, n], L_i
    delta_ptr,  # [batch, heads, n], D_i
    n, m, heads, scale,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_gb, stride_gh, stride_gm,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HAS_LENS: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    rows, item, batch, head = _my_queries(n, heads, BLOCK_M)
    keys = tl.arange(0, BLOCK_N)  # all of them
    query_ptr += batch * stride_qb + head * stride_qh
    key_ptr += batch * stride_kb + head * stride_kh
    value_ptr += batch * stride_vb + head * stride_vh
    grad_ptr += batch * stride_gb + head * stride_gh
    n_here, m_here = _present(n, m, lens_ptr, batch, HAS_LENS)

    s = _products(
        query_ptr, key_ptr, rows, keys, stride_qm, stride_kn, n_here, m_here,
        DIM, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    p, norm = _softmax(s * (scale * LOG2_E), keys, m_here)
    a = _products(
        grad_ptr, value_ptr, rows, keys, stride_gm, stride_vn, n_here, m_here,
        VALUE_DIM, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_V,
    )  # fmt: skip
    delta = tl.sum(p * a, 1)  # [BLOCK_M]
    tl.store(norm_ptr + item * n + rows, norm, mask=rows < n)
    tl.store(delta_ptr + item * n + rows, delta, mask=rows < n)

    e = (p * (a - delta[:, None])).to(key_ptr.dtype.element_ty)  # [BLOCK_M, BLOCK_N]
    for first in range(0, DIM, BLOCK_D):
        c = first + tl.arange(0, BLOCK_D)
        k = _load(key_ptr, keys, c, stride_kn, m_here, DIM)  # [BLOCK_N, BLOCK_D]
        dquery = tl.dot(e, k, input_precision=PRECISION) * scale  # [BLOCK_M, BLOCK_D]
        _store(dquery_ptr + item * n * DIM, dquery, rows, c, DIM, n, DIM)


@triton.jit
def _short_bwd_dkv_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    lens_ptr,
    grad_ptr,
    norm_ptr,
    delta_ptr,
    dkey_part_ptr,  # [parts, batch, heads, m, DIM]
    dvalue_part_ptr,  # [parts, batch, heads, m, VALUE_DIM]
    n, m, heads, scale, items, stretch,  # batch * heads; queries for each part
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_gb, stride_gh, stride_gm,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HAS_LENS: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(m, BLOCK_N)
    item, part = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(1)
    batch, head = item // heads, item % heads
    keys = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)  # mine
    d, c = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    query_ptr += batch * stride_qb + head * stride_qh
    grad_ptr += batch * stride_gb + head * stride_gh
    key_ptr += batch * stride_kb + head * stride_kh
    value_ptr += batch * stride_vb + head * stride_vh
    n_here, m_here = _present(n, m, lens_ptr, batch, HAS_LENS)
    k = _load(key_ptr, keys, d, stride_kn, m_here, DIM)  # [BLOCK_N, BLOCK_D]
    v = _load(value_ptr, keys, c, stride_vn, m_here, VALUE_DIM)  # [BLOCK_N, BLOCK_V]
    counts = (keys < m_here)[:, None]

    dkey = tl.zeros([BLOCK_N, BLOCK_D], DTYPE)
    dvalue = tl.zeros([BLOCK_N, BLOCK_V], DTYPE)
    stop = tl.minimum((part + 1) * stretch, n_here)
    for first in range(part * stretch, stop, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        q = _load(query_ptr, rows, d, stride_qm, stop, DIM)  # [BLOCK_M, BLOCK_D]
        g = _load(grad_ptr, rows, c, stride_gm, stop, VALUE_DIM)  # [BLOCK_M, BLOCK_V]
        norm = tl.load(norm_ptr + item * n + rows, mask=rows < stop, other=float("inf"))
        delta = tl.load(delta_ptr + item * n + rows, mask=rows < stop, other=0.0)  # [BLOCK_M]
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2_E)
        p = tl.where(counts, tl.exp2(s - norm[None, :]), 0.0)  # [BLOCK_N, BLOCK_M]
        dvalue += tl.dot(p.to(g.dtype), g, input_precision=PRECISION)
        a = tl.dot(v, tl.trans(g), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
        e = (p * (a - delta[None, :])).to(q.dtype)
        dkey += tl.dot(e, q, input_precision=PRECISION)

    slot = (part * items + item) * m
    _store(dkey_part_ptr + slot * DIM, dkey * scale, keys, d, DIM, m, DIM)
    _store(dvalue_part_ptr + slot * VALUE_DIM, dvalue, keys, c, VALUE_DIM, m, VALUE_DIM)


def too_many(keys: int, width: int, arch: int, size: int) -> RuntimeError:
    """What to raise where there are no tiles."""
    return RuntimeError(
        f"impl='triton' cannot be used: the kernel holds all keys of a head at once, up to "
        f"{MAX_KEYS} keys of {MAX_DIM} columns in float32 or half precision (128 keys on sm_75), "
        f"got {keys} keys of {width} columns, {size} bytes each, for sm_{arch}. Use impl='sdpa' or "
        "impl='reference'."
    )


def whole_rows(configs: Configs, arch: int, size: int, m: int, widths: tuple[int, int]) -> Config:
    """The tiles of a program that holds all keys, for numbers of so many bytes."""
    for config in configs[arch].get(size, ()):
        if m <= config.BLOCK_N and max(widths) <= MAX_DIM:
            return config._replace(BLOCK_N=block(m))
    raise too_many(m, max(widths), arch, size)


def whole_columns(
    configs: Configs, arch: int, size: int, m: int, widths: tuple[int, int]
) -> Config:
    """The tiles of a program that holds all columns."""
    for config in configs[arch].get(size, ()):
        if max(widths) <= config.BLOCK_D and m <= MAX_KEYS:
            return config._replace(BLOCK_N=min(config.BLOCK_N, block(m)), BLOCK_D=MAX_DIM)
    raise too_many(m, max(widths), arch, size)


def tiles(choose: Any, configs: Configs, query: Tensor, value: Tensor) -> Config:
    """The tiles for some heads on their device, chosen by one of the two above."""
    arch, size = architecture(query.device), query.element_size()
    m, widths = value.shape[2], (query.shape[3], value.shape[3])
    if not INTERPRETED:
        found: Config = choose(configs, arch, size, m, widths)
        return found
    found = choose(configs, ARCHITECTURES[-1], 4, m, widths)  # refuses what GPUs refuse
    narrow = INTERPRETED_CONFIG
    if choose is whole_rows:
        return narrow._replace(BLOCK_N=found.BLOCK_N)
    return narrow._replace(BLOCK_D=found.BLOCK_D)


def fit(config: Config, dim: int, value_dim: int) -> dict[str, int]:
    """Tiles no wider than what they are for."""
    widths = {
        "BLOCK_D": min(config.BLOCK_D, block(dim)),
        "BLOCK_V": min(config.BLOCK_D, block(value_dim)),
    }
    return config._asdict() | widths


def common(query: Tensor, value: Tensor, lens: Tensor | None) -> dict[str, Any]:
    """The options that all launches share."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "DIM": query.shape[3],
        "VALUE_DIM": value.shape[3],
        "HAS_LENS": lens is not None,
        "DTYPE": tl.float64 if query.dtype == torch.float64 else tl.float32,
        "PRECISION": "ieee" if exact or query.dtype != torch.float32 else "tf32",
    }


def _strides(*tensors):
    """Of batch items, heads and rows."""
    return tuple(step for tensor in tensors for step in tensor.stride()[:3])


class _ShortAttention(torch.autograd.Function):
    """Both passes, on ``[batch, heads, rows, columns]``, rows contiguous."""

    @staticmethod
    def forward(ctx, query, key, value, lens, scale):
        (batch, heads, n, dim), (m, value_dim) = query.shape, value.shape[2:]
        output = query.new_empty(batch, heads, n, value_dim)
        config = tiles(whole_rows, FWD_CONFIGS, query, value)
        if output.numel():
            _short_fwd_kernel[(triton.cdiv(n, config.BLOCK_M) * batch * heads,)](
                query, key, value, query if lens is None else lens, output, n, m, heads, scale,
                *_strides(query, key, value),
                **common(query, value, lens), **fit(config, dim, value_dim),
            )  # fmt: skip
        ctx.save_for_backward(query, key, value, lens)
        ctx.scale = scale
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        query, key, value, lens = ctx.saved_tensors
        (batch, heads, n, dim), (m, value_dim) = query.shape, value.shape[2:]
        grad = rows_contiguous(grad)
        dquery = query.new_empty(query.shape)
        norm, delta = (
            query.new_empty(batch, heads, n, dtype=wide_dtype(query.dtype)) for _ in range(2)
        )
        pointers = query, key, value, query if lens is None else lens, grad
        meta = common(query, value, lens)
        config = tiles(whole_rows, DQ_CONFIGS, query, value)
        if dquery.numel():
            _short_bwd_dq_kernel[(triton.cdiv(n, config.BLOCK_M) * batch * heads,)](
                *pointers, dquery, norm, delta, n, m, heads, ctx.scale,
                *_strides(query, key, value, grad), **meta, **fit(config, dim, value_dim),
            )  # fmt: skip
        if not any(ctx.needs_input_grad[1:3]):
            return dquery, None, None, None, None

        config = tiles(whole_columns, DKV_CONFIGS, query, value)
        programs = triton.cdiv(m, config.BLOCK_N) * batch * heads
        parts, steps = split(triton.cdiv(n, config.BLOCK_M), programs)
        dkey, dvalue = (slots(x, parts, *x.shape) for x in (key, value))
        if programs:
            _short_bwd_dkv_kernel[(programs, parts)](
                *pointers, norm, delta, dkey, dvalue, n, m, heads, ctx.scale, batch * heads,
                steps * config.BLOCK_M, *_strides(query, key, value, grad),
                **meta, **fit(config, dim, value_dim),
            )  # fmt: skip
        return dquery, add_up(dkey, key.dtype), add_up(dvalue, value.dtype), None, None


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, lens: Tensor | None = None
) -> Tensor:
    """Softmax attention to few keys, differentiable once.

    Args:
        query: ``[batch, heads, n, dim]``, any strides; float32, float16 or bfloat16, and
            interpreted float64 as well.
        key: ``[batch, heads, m, dim]``, m of ``MAX_KEYS`` at most.
        value: ``[batch, heads, m, value_dim]``.
        scale: What the dot products are multiplied by.
        lens: How many leading keys count, ``[batch]``, or ``None`` for all. A batch item
            without keys gets zeros, whatever its queries hold.

    Returns:
        ``[batch, heads, n, value_dim]``.

    Raises:
        RuntimeError: There are too many keys or columns for this GPU.
    """
    dtype = query.dtype
    if INTERPRETED and dtype == torch.bfloat16:  # NumPy has none
        query, key, value = query.float(), key.float(), value.float()
    lens = None if lens is None else lens.to(torch.int32).contiguous()
    heads = map(rows_contiguous, (query, key, value))
    output: Tensor = _ShortAttention.apply(*heads, lens, float(scale))
    return output.to(dtype)


#: What is compiled ahead of time: bytes of a number -> keys, widths of a head, and options.
SHAPES: dict[int, list[tuple[int, int, int, dict[str, Any]]]] = {
    2: [(128, 64, 64, {}), (MAX_KEYS, 80, 128, {"HAS_LENS": True})],
    4: [(128, 64, 40, {"HAS_LENS": True}), (MAX_KEYS, 128, 128, {"PRECISION": "tf32"})],
}


def compilations(kernel: Any, choose: Any, configs: Configs) -> Iterator[Shipped]:
    """A kernel of this module as its launcher calls it, for each architecture."""
    for arch in ARCHITECTURES:
        for size, shapes in SHAPES.items():
            for m, dim, value_dim, options in shapes[:1] if arch == 75 else shapes:
                config = choose(configs, arch, size, m, (dim, value_dim))
                constexprs: dict[str, Any] = fit(config, dim, value_dim)
                launch = {name: constexprs.pop(name) for name in ("num_warps", "num_stages")}
                constexprs |= {"DIM": dim, "VALUE_DIM": value_dim, "DTYPE": tl.float32}
                constexprs |= {"HAS_LENS": False, "PRECISION": "ieee", **options}
                sums = ("_part_ptr", "norm_ptr", "delta_ptr")
                yield as_shipped(kernel, arch, size, constexprs, launch, sums)


def shipped() -> Iterator[Shipped]:
    """Each kernel as its launcher calls it, for each architecture."""
    yield from compilations(_short_fwd_kernel, whole_rows, FWD_CONFIGS)
    yield from compilations(_short_bwd_dq_kernel, whole_rows, DQ_CONFIGS)
    yield from compilations(_short_bwd_dkv_kernel, whole_columns, DKV_CONFIGS)
