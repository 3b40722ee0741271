r"""Dot-product attention on the GPU, without ever storing the weights: the forward pass.

FlashAttention-2 (Dao, 2023). With a scale c, n queries and m keys,

    s_ij = c q_i . k_j       p_ij = exp(s_ij) / sum_j exp(s_ij)       o_i = sum_j p_ij v_j.

Written so, it takes n m scores and n m weights to and from memory, twice each, and the
memory is what one waits for. Here a program owns BLOCK_M queries, keeps them and their
output in registers, and lets all keys and values pass by, BLOCK_N at a time. A tile of
scores lives for one round of that loop. What makes it possible is that a softmax can be
taken as one goes: with M_i the largest score so far,

    l_i <- l_i exp(M_old - M_i) + sum_j exp(s_ij - M_i)
    o_i <- o_i exp(M_old - M_i) + sum_j exp(s_ij - M_i) v_j,

and o_i / l_i at the end. exp(x) is computed as 2^(x log2 e), which is what a GPU has, so
scores carry a factor log2 e. Saved for the backward pass: the output, and per query the
log-sum-exp L_i = M_i + log2 l_i, from which p_ij = 2^(s_ij - L_i) comes back in one step.

Who may see what. Query i sees key j if i + low <= j <= i + high; a causal mask is high = 0,
a window of w to the left is low = -w, and queries that begin at position t of their
sequence add t to both. Besides, j must be below the valid length and allowed by the mask.
Whole tiles out of sight are not visited: each loop runs over the keys that some query of
the tile sees, and only where a tile is seen in part, at its edges, is each pair asked. A
query that sees nothing has l_i = 0: its output is 0 and its L_i is +inf, so that 2^(s - L)
is 0 in the backward pass. (Whoever asks for the log-sum-exp is told -inf.) A hidden key may
hold NaN, and 0 * NaN is NaN: rows that no query of the tile sees are cleared.

More: a bias -slope |i + offset - j| grows with the distance (ALiBi; Press et al., 2022).
Heads can come in groups that share their keys and values (Ainslie et al., 2023). Dropout
keeps no mask: whether a weight stays is a function of a seed and of the weight's head, query
and key (Philox; Salmon et al., 2011), asked again in the backward pass.

Precision: products of half-precision numbers on tensor cores, added up in float32; float32
products in float32 ("ieee", no tensor core) unless torch.set_float32_matmul_precision allows
less, and then in TF32. Softmax and sums are float32 always. Weights are rounded to the
type of the values before they meet them, as everywhere.

Grid: one axis, tiles of queries within heads within batch items. Each output has one owner:
no atomics, runs repeat bit for bit.

Moved, in numbers: n (d + v) + m (d + v) (n / BLOCK_M) read, most of the latter from cache,
n v written. FLOPs a pair: 2 (d + v), and one exponential; a causal mask halves the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from attn_course._precision import wide_dtype
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
    raise ImportError(f"attn_course.dot_product.kernel needs triton: {REASON}.")

LOG2_E = tl.constexpr(math.log2(math.e))

# The widest head: its tiles fill shared memory.
MAX_DIM = 256

# Up to this many queries, as where a decoder asks one at a time, a program owns no more.
FEW_ROWS = 16


class Config(NamedTuple):
    """How large tiles are, and who works on them."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int
    num_stages: int


# Architecture -> (bytes of a number, width of a head up to) -> tiles.
Configs: TypeAlias = dict[int, dict[tuple[int, int], Config]]

# Chosen so that they fit shared memory and, nearly, registers; not yet tuned on a GPU. What 75 has
# no tiles for does not fit it.
_SINGLE = {
    (4, 64): Config(64, 32, 8, 2),
    (4, 128): Config(64, 32, 8, 2),
    (4, 256): Config(32, 16, 8, 1),
}
CONFIGS: Configs = {
    75: {(2, 256): Config(16, 16, 4, 1), (4, 128): Config(16, 16, 4, 1)},
    80: {
        (2, 64): Config(128, 64, 4, 3),
        (2, 128): Config(128, 64, 8, 3),
        (2, 256): Config(64, 32, 8, 2),
        **_SINGLE,
    },
    90: {
        (2, 64): Config(128, 128, 8, 3),
        (2, 128): Config(128, 128, 8, 2),
        (2, 256): Config(128, 32, 8, 2),
        **_SINGLE,
    },
}
INTERPRETED_CONFIG = Config(16, 16, 4, 1)


@triton.jit
def _my_tile(length, heads, BLOCK: tl.constexpr, REVERSED: tl.constexpr):
    """Where my tile begins, and in which batch item and head."""
    tiles = tl.cdiv(length, BLOCK)
    tile = tl.program_id(0) % tiles
    if REVERSED:  # the last queries of a causal mask see most: who works longest begins first
        tile = tiles - 1 - tile
    item = tl.program_id(0) // tiles
    return tile * BLOCK, (item // heads).to(tl.int64), (item % heads).to(tl.int64)


@triton.jit
def _rows(
    ptr, rows, stride, start, stop,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Some rows of a matrix: [rows, BLOCK]. At an edge, 0 before ``start`` and from ``stop`` on."""
    columns = tl.arange(0, BLOCK)
    where = ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    if EDGE:
        inside = ((rows >= start) & (rows < stop))[:, None] & (columns < COLUMNS)[None, :]
        tile = tl.load(where, mask=inside, other=0.0)
    elif COLUMNS < BLOCK:
        tile = tl.load(where, mask=(columns < COLUMNS)[None, :], other=0.0)
    else:
        tile = tl.load(where)
    return tile


@triton.jit
def _key_len(lens_ptr, batch, head, m, stride_lb, stride_lh, LENS: tl.constexpr):
    """How many leading keys there are for this batch item."""
    if LENS == "item":
        m = tl.minimum(tl.load(lens_ptr + batch * stride_lb + head * stride_lh), m)
    return m


@triton.jit
def _in_sight(
    first, last, stop, whole_stop, low, high,
    BLOCK: tl.constexpr, HAS_LOW: tl.constexpr, HAS_HIGH: tl.constexpr,
):  # fmt: skip
    """What is in sight of ``first`` to ``last``, which see x + low to x + high, below ``stop``.

    Returns ``start``, ``stop``: somebody sees these; and ``whole_start``, ``whole_stop``, multiples
    of BLOCK: everybody sees these. So start <= whole_start <= whole_stop.
    """
    start, whole_start = 0, 0
    if HAS_LOW:
        start = tl.maximum(first + low, 0)
        whole_start = tl.cdiv(tl.maximum(last + low, 0), BLOCK) * BLOCK
    if HAS_HIGH:
        stop = tl.minimum(stop, last + high + 1)
        whole_stop = tl.minimum(whole_stop, first + high + 1)
    whole_stop = tl.maximum(tl.maximum(whole_stop, 0) // BLOCK * BLOCK, whole_start)
    if HAS_LOW:  # nobody sees anything: visit no tile, not even the one that start lies in
        stop = tl.where(start < stop, stop, 0)
    return start, whole_start, whole_stop, stop


@triton.jit
def _allowed(
    i, j, n, key_len, lens, mask_ptr, low, high, stride_mm, stride_mn,
    LENS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_LOW: tl.constexpr, HAS_HIGH: tl.constexpr,
):  # fmt: skip
    """Which pairs of a tile count, i queries and j keys, one of them a row and one a column."""
    allowed = (i < n) & (j < key_len)
    if LENS == "query":
        allowed = allowed & (j < lens)
    if HAS_LOW:
        allowed = allowed & (j >= i + low)
    if HAS_HIGH:
        allowed = allowed & (j <= i + high)
    if HAS_MASK:
        where = i.to(tl.int64) * stride_mm + j.to(tl.int64) * stride_mn
        allowed = allowed & (tl.load(mask_ptr + where, mask=allowed, other=0) != 0)
    return allowed


@triton.jit
def _clear(tile, allowed):
    """Zero the rows that belong to a column of ``allowed`` in which nothing is."""
    seen = tl.max(allowed.to(tl.int32), 0) > 0
    return tl.where(seen[:, None], tile, 0.0).to(tile.dtype)


@triton.jit
def _scores(
    a, b, i, j, scale, slope, offset, HAS_SLOPES: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Scores times log2 e: queries down and keys across, or the other way round."""
    s = tl.dot(a, tl.trans(b), input_precision=PRECISION) * (scale * LOG2_E)
    if HAS_SLOPES:
        s -= slope * tl.abs(i + offset - j).to(s.dtype)
    return s


@triton.jit
def _kept(i, j, item, seed, threshold):
    """Which weights dropout spares: 31 bits from a counter, against ``threshold`` of 2^31."""
    bits, _, _, _ = tl.philox(seed, j, i, item.to(tl.int32), 0)
    return (bits >> 1).to(tl.int32) >= threshold


# The teaching path: this function, then the kernel, which calls it. Read past what stands under
# an ``if``.
@triton.jit
def _attend(
    numerator, denominator, largest, q, rows, key_ptr, value_ptr, lens, mask_ptr, slope,
    begin, end, start, stop, n, key_len, low, high, offset, scale, item, seed, threshold, inflate,
    stride_kn, stride_vn, stride_mm, stride_mn,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, LENS: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_LOW: tl.constexpr, HAS_HIGH: tl.constexpr, HAS_SLOPES: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Let the keys from ``begin`` to ``end`` pass by: the softmax as one goes."""
    i, lens = rows[:, None], lens[:, None]  # [BLOCK_M, 1]
    for first in range(begin, end, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        j = keys[None, :]  # [1, BLOCK_N]
        k = _rows(key_ptr, keys, stride_kn, start, stop, DIM, BLOCK_D, EDGE)  # [BLOCK_N, BLOCK_D]
        s = _scores(q, k, i, j, scale, slope, offset, HAS_SLOPES, PRECISION)  # [BLOCK_M, BLOCK_N]
        v = _rows(value_ptr, keys, stride_vn, start, stop, VALUE_DIM, BLOCK_V, EDGE)
        if EDGE:
            allowed = _allowed(
                i, j, n, key_len, lens, mask_ptr, low, high, stride_mm, stride_mn,
                LENS, HAS_MASK, HAS_LOW, HAS_HIGH,
            )  # fmt: skip
            s = tl.where(allowed, s, float("-inf"))
            if HAS_MASK or LENS == "query":
                v = _clear(v, allowed)
        new = tl.maximum(largest, tl.max(s, 1))  # [BLOCK_M]
        anchor = tl.where(new == float("-inf"), 0.0, new)  # nothing seen yet: no inf - inf
        rescale = tl.exp2(largest - anchor)
        p = tl.exp2(s - anchor[:, None])  # [BLOCK_M, BLOCK_N], 0 where not allowed
        denominator = denominator * rescale + tl.sum(p, 1)
        if DROPOUT:
            p = tl.where(_kept(i, j, item, seed, threshold), p * inflate, 0.0)
        numerator = numerator * rescale[:, None]
        numerator += tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        largest = new
    return numerator, denominator, largest


@triton.jit(do_not_specialize=["seed", "threshold"])
def _flash_fwd_kernel(
    query_ptr,  # [batch, heads, n, DIM]
    key_ptr,  # [batch, heads / group, m, DIM]
    value_ptr,  # [batch, heads / group, m, VALUE_DIM]
    lens_ptr,  # [batch, heads, 1 or n], how many leading keys an item or a query may see
    mask_ptr,  # [batch, heads, n, m]
    slopes_ptr,  # [heads], times log2 e
    output_ptr,  # [batch, heads, n, VALUE_DIM]
    norm_ptr,  # [batch, heads, n], L_i
    n, m, heads, group, low, high, offset, scale, seed, threshold, inflate,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_lb, stride_lh, stride_lm,
    stride_mb, stride_mh, stride_mm, stride_mn,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, LENS: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_LOW: tl.constexpr, HAS_HIGH: tl.constexpr, HAS_SLOPES: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    first, batch, head = _my_tile(n, heads, BLOCK_M, HAS_HIGH)
    item = batch * heads + head
    rows = first + tl.arange(0, BLOCK_M)  # my queries
    key_ptr += batch * stride_kb + head // group * stride_kh
    value_ptr += batch * stride_vb + head // group * stride_vh
    mask_ptr += batch * stride_mb + head * stride_mh
    query_ptr += batch * stride_qb + head * stride_qh
    q = _rows(query_ptr, rows, stride_qm, 0, n, DIM, BLOCK_D, True)  # [BLOCK_M, BLOCK_D]
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
        whole_stop = whole_start  # a mask may hide anything, everywhere

    dtype = norm_ptr.dtype.element_ty
    numerator = tl.zeros([BLOCK_M, BLOCK_V], dtype)
    denominator = tl.zeros([BLOCK_M], dtype)
    largest = tl.full([BLOCK_M], float("-inf"), dtype)
    # From the left: keys that some of my queries see, keys that all see, and some again.
    for part in tl.static_range(3):
        if (part == 0 and HAS_LOW) or (part == 1 and not HAS_MASK) or part == 2:
            begin, end = whole_start, whole_stop
            if part == 0:
                begin, end = start // BLOCK_N * BLOCK_N, tl.minimum(whole_start, stop)
            if part == 2:
                begin, end = whole_stop, stop
            numerator, denominator, largest = _attend(
                numerator, denominator, largest, q, rows, key_ptr, value_ptr, lens, mask_ptr,
                slope, begin, end, start, stop, n, key_len, low, high, offset, scale, item, seed,
                threshold, inflate, stride_kn, stride_vn, stride_mm, stride_mn,
                DIM, VALUE_DIM, LENS, HAS_MASK, HAS_LOW, HAS_HIGH, HAS_SLOPES, DROPOUT, PRECISION,
                BLOCK_N, BLOCK_D, BLOCK_V, part != 1,
            )  # fmt: skip

    some = denominator > 0
    denominator = tl.where(some, denominator, 1.0)
    output = numerator / denominator[:, None]  # nothing to attend to: 0 / 1
    columns = tl.arange(0, BLOCK_V)
    where = (item * n + rows[:, None]) * VALUE_DIM + columns[None, :]
    inside = (rows < n)[:, None] & (columns < VALUE_DIM)[None, :]
    tl.store(output_ptr + where, output.to(output_ptr.dtype.element_ty), mask=inside)
    norm = tl.where(some, largest + tl.log2(denominator), float("inf"))
    tl.store(norm_ptr + item * n + rows, norm, mask=rows < n)


class Options(NamedTuple):
    """What a launch is told beside queries, keys and values.

    Attributes:
        scale: c in the derivation above.
        lens: How many leading keys count, ``[batch, heads, 1 or n]``, int32.
        mask: uint8, ``[batch, heads, n, m]``.
        low: Query i sees keys from i + low on; ``None``: from the first.
        high: And up to i + high; ``None``: up to the last.
        offset: The position of query 0, for ``slopes``.
        slopes: ``[heads]``, times log2 e.
        dropout_p: Probability with which a weight is dropped.
        seed: Decides which, below 2^31.
    """

    scale: float
    lens: Tensor | None = None
    mask: Tensor | None = None
    low: int | None = None
    high: int | None = None
    offset: int = 0
    slopes: Tensor | None = None
    dropout_p: float = 0.0
    seed: int = 0


def block(columns: int) -> int:
    """The tile's width for so many columns: a power of two, and no less than a product needs."""
    width: int = triton.next_power_of_2(columns)
    return max(16, width)


def choose(configs: Configs, arch: int, size: int, *columns: int) -> Config:
    """The tiles for numbers of so many bytes and heads of so many columns."""
    for (bytes_, width), config in configs[arch].items():
        if bytes_ == size and max(columns) <= width:
            return config
    raise RuntimeError(
        f"impl='triton' cannot be used: heads of {max(columns)} columns, {size} bytes each, do not "
        f"fit the shared memory of this GPU (sm_{arch}). Use impl='sdpa' or impl='reference'."
    )


def tiles(configs: Configs, query: Tensor, value: Tensor) -> Config:
    """The tiles for some heads on their device."""
    if INTERPRETED:
        return INTERPRETED_CONFIG
    arch = architecture(query.device)
    return choose(configs, arch, query.element_size(), query.shape[-1], value.shape[-1])


def few_rows(config: Config) -> Config:
    """The tiles for no more than ``FEW_ROWS`` queries."""
    return config._replace(BLOCK_M=FEW_ROWS, num_warps=4)


def common(query, key, value, options):
    """What all launches share: pointers, sizes, and options by name."""
    (_, heads, n, dim), (m, value_dim) = query.shape, value.shape[2:]
    lens, mask, slopes = options.lens, options.mask, options.slopes
    nothing = query  # something to point at
    pointers = (
        *(query, key, value),
        *(nothing if tensor is None else tensor for tensor in (lens, mask, slopes)),
    )
    sizes = (
        *(n, m, heads, heads // key.shape[1], options.low or 0, options.high or 0),
        *(options.offset, options.scale, options.seed, dropout_threshold(options.dropout_p)),
        *(1 / (1 - options.dropout_p), *query.stride()[:3], *key.stride()[:3]),
        *(*value.stride()[:3], *((0, 0, 0) if lens is None else lens.stride())),
        *((0, 0, 0, 0) if mask is None else mask.stride()),
    )
    exact = torch.get_float32_matmul_precision() == "highest"
    meta = {
        "DIM": dim,
        "VALUE_DIM": value_dim,
        "LENS": "none" if lens is None else "item" if lens.shape[2] == 1 else "query",
        "HAS_MASK": mask is not None,
        "HAS_LOW": options.low is not None,
        "HAS_HIGH": options.high is not None,
        "HAS_SLOPES": slopes is not None,
        "DROPOUT": options.dropout_p > 0,
        "PRECISION": "ieee" if exact or query.dtype != torch.float32 else "tf32",
        "BLOCK_D": block(dim),
        "BLOCK_V": block(value_dim),
    }
    return pointers, sizes, meta


def dropout_threshold(dropout_p: float) -> int:
    """Of the 31 bits that decide, how many values drop a weight."""
    return min(round(dropout_p * 2**31), 2**31 - 1)


def attend(query: Tensor, key: Tensor, value: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel.

    Args:
        query: ``[batch, heads, n, dim]``; here and below, rows are contiguous.
        key: ``[batch, heads / group, m, dim]``.
        value: ``[batch, heads / group, m, value_dim]``.
        options: What to attend to.

    Returns:
        The output ``[batch, heads, n, value_dim]``, and L_i, ``[batch, heads, n]``.
    """
    (batch, heads, n, _), value_dim = query.shape, value.shape[3]
    output = query.new_empty(batch, heads, n, value_dim)
    wide = wide_dtype(query.dtype)
    norm = query.new_empty(batch, heads, n, dtype=wide)
    pointers, sizes, meta = common(query, key, value, options)
    config = tiles(CONFIGS, query, value)
    if n <= FEW_ROWS:
        config = few_rows(config)
    grid = (triton.cdiv(n, config.BLOCK_M) * batch * heads,)
    if output.numel():
        _flash_fwd_kernel[grid](*pointers, output, norm, *sizes, **meta, **config._asdict())
    return output, norm


#: What is compiled ahead of time: bytes of a number -> the widths of a head, and the options.
#: Every configuration and, between them, every option.
Shapes: TypeAlias = dict[int, list[tuple[int, int, dict[str, Any]]]]
_SHIPPED: Shapes = {
    2: [
        (64, 64, {"HAS_HIGH": True}),
        (80, 128, {"HAS_HIGH": True, "HAS_LOW": True, "LENS": "item", "HAS_SLOPES": True}),
        (256, 256, {"HAS_HIGH": True, "LENS": "query", "HAS_MASK": True, "DROPOUT": True}),
    ],
    4: [
        (64, 64, {"LENS": "item", "HAS_MASK": True}),
        (128, 128, {"PRECISION": "tf32", "DROPOUT": True}),
        (256, 256, {"HAS_HIGH": True, "LENS": "query"}),
    ],
}


def compilations(kernel: Any, configs: Configs, some: Shapes = _SHIPPED) -> Iterator[Shipped]:
    """A kernel as its launcher calls it, for each architecture.

    Args:
        kernel: A ``@triton.jit`` function.
        configs: Its tiles.
        some: Bytes of a number -> the widths of a head, and the options.
    """
    for arch in ARCHITECTURES:
        for size, shapes in some.items():
            for dim, value_dim, options in shapes[:1] if arch == 75 else shapes:
                dtype = {2: "bf16" if arch >= 80 else "fp16", 4: "fp32"}[size]
                config = choose(configs, arch, size, dim, value_dim)
                flags = dict.fromkeys(("HAS_MASK", "HAS_LOW", "HAS_HIGH", "HAS_SLOPES"), False)
                constexprs = flags | {"LENS": "none", "DROPOUT": False, "PRECISION": "ieee"}
                constexprs |= {"DIM": dim, "VALUE_DIM": value_dim, **options}
                constexprs |= {"BLOCK_D": block(dim), "BLOCK_V": block(value_dim)}
                constexprs |= {"BLOCK_M": config.BLOCK_M, "BLOCK_N": config.BLOCK_N}
                launch = {"num_warps": config.num_warps, "num_stages": config.num_stages}
                types = {"lens_ptr": "*i32", "mask_ptr": "*u8", "slopes_ptr": "*fp32"}
                types |= dict.fromkeys(("norm_ptr", "delta_ptr"), "*fp32")
                types |= dict.fromkeys(constexprs, "constexpr") | {"scale": "fp32"}
                types |= {"inflate": "fp32"}
                signature = {
                    name: types.get(name, f"*{dtype}" if name.endswith("_ptr") else "i32")
                    for name in kernel.arg_names
                }
                constexprs = {n: c for n, c in constexprs.items() if n in kernel.arg_names}
                yield Shipped(kernel, arch, signature, constexprs, launch)


def shipped() -> Iterator[Shipped]:
    """The forward kernel as the launcher calls it, for each architecture."""
    yield from compilations(_flash_fwd_kernel, CONFIGS)
    few = {
        arch: {key: few_rows(config) for key, config in configs.items()}
        for arch, configs in CONFIGS.items()
    }
    yield from compilations(_flash_fwd_kernel, few, {2: [(128, 128, {"LENS": "item"})]})
