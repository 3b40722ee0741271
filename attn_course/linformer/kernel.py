r"""Sequence projection on the GPU, n rows become k: a sum that many programs share. Forward.

Linformer (Wang et al., 2020), equation 7: keys and values of a head, a row for each of n
positions, are multiplied from the left by matrices E and F of k rows and n columns. With l_b
the valid length of batch item b, and x its keys or values,

    y_b = E x_b:   y_bk = sum_{i < l_b} E_ki x_bi.

Heads count as batch items, unless each has an E of its own. Rows past the length are not zeroed
somewhere in memory: they are never read, so that it does not matter what they hold.

The product has one short side, k, another one, the width d of a head, and a sum over n, which
may be a million. Tiles of the output are too few for a GPU: with k = 128, one for each head. So
the sum is split. Each program adds up one stretch of positions in its registers, in float32,
and writes the result to a slot of its own; a second, small sum adds the slots, always in the
same order. (Adding to one place with atomics would need no second sum, but the order would be
whoever comes first, and float32 sums would differ from run to run.)

The matrix is what one waits for: at k = 128 a stretch of E has twice as many numbers as the
same stretch of 64 columns of keys. Where keys and values share it (E = F, "key-value
sharing"), one program computes both, and a tile of E that has been loaded meets first the
keys, then the values.

Grid: two axes, tiles of the k rows within heads within batch items, so that those who read the
same stretch of E run at the same time and find it in the cache; and parts of the sum. No
atomics: runs repeat bit for bit. Saved for the backward pass: the inputs.

Moved, in numbers, with B items: B n d of x, for keys and for values; k n of E at least, B k n if
no cache helps; slots, PROGRAMS tiles at most, whatever n is. FLOPs: 2 B k n d. At k = 128 and
half precision that is 128 FLOPs a byte of x.

Precision: products of half-precision numbers on tensor cores, added up in float32; float32
products in float32 ("ieee", no tensor core) unless torch.set_float32_matmul_precision allows
less, and then in TF32.
"""

from __future__ import annotations

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
    raise ImportError(f"attn_course.linformer.kernel needs triton: {REASON}.")

# The widest head: a program holds all its columns.
MAX_DIM = 128

# Programs at which a sum is no longer split: about two for each multiprocessor of a large GPU.
PROGRAMS = 256


class Config(NamedTuple):
    """How large tiles are, and who works on them."""

    BLOCK_K: int  # rows of the projection
    BLOCK_N: int  # positions
    num_warps: int
    num_stages: int


# Architecture -> (bytes of a number, width of a head up to) -> tiles.
Configs: TypeAlias = dict[int, dict[tuple[int, int], Config]]

# Chosen so that they fit shared memory and registers; not yet tuned on a GPU.
SMALL = {(2, MAX_DIM): Config(16, 16, 4, 1), (4, MAX_DIM): Config(16, 16, 4, 1)}
SINGLE = {(4, 64): Config(64, 32, 8, 2), (4, MAX_DIM): Config(32, 32, 8, 2)}
FWD_CONFIGS: Configs = {
    75: SMALL,
    80: {(2, 64): Config(128, 64, 8, 3), (2, MAX_DIM): Config(128, 32, 8, 3), **SINGLE},
    90: {(2, 64): Config(128, 64, 8, 4), (2, MAX_DIM): Config(128, 64, 8, 3), **SINGLE},
}
INTERPRETED_CONFIG = Config(16, 16, 4, 1)


@triton.jit
def _load(ptr, rows, columns, stride, n, m):
    """A tile of a matrix whose rows are contiguous; 0 from row ``n`` and column ``m`` on."""
    inside = (rows < n)[:, None] & (columns < m)[None, :]
    where = ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(where, mask=inside, other=0.0)


@triton.jit
def _store(ptr, tile, rows, columns, stride, n, m):
    """Its counterpart; rounds to the type of what it writes to."""
    inside = (rows < n)[:, None] & (columns < m)[None, :]
    where = ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    tl.store(where, tile.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _length(lens_ptr, batch, n, HAS_LENS: tl.constexpr):
    """How many leading positions of a batch item count."""
    if HAS_LENS:
        n = tl.minimum(tl.load(lens_ptr + batch), n)
    return n


# The teaching path: this kernel, with the helpers above. PAIR means: the values, too.
@triton.jit
def _project_fwd_kernel(
    matrix_ptr,  # [1 or heads, k, >= n], E
    lens_ptr,  # [batch], int32
    key_ptr,  # [batch, heads, n, DIM]
    value_ptr,  # [batch, heads, n, VALUE_DIM]
    key_part_ptr,  # [parts, batch, heads, k, DIM]
    value_part_ptr,  # [parts, batch, heads, k, VALUE_DIM]
    n, k, heads, items, stretch,  # batch * heads; positions for each part
    stride_eh, stride_ek, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PAIR: tl.constexpr, HAS_LENS: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(k, BLOCK_K)
    item, part = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(1)
    batch, head = item // heads, item % heads
    rows = tl.program_id(0) % tiles * BLOCK_K + tl.arange(0, BLOCK_K)  # of E, and of the result
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    matrix_ptr += head * stride_eh
    key_ptr += batch * stride_kb + head * stride_kh
    value_ptr += batch * stride_vb + head * stride_vh

    keys = tl.zeros([BLOCK_K, BLOCK_D], DTYPE)
    values = tl.zeros([BLOCK_K, BLOCK_V], DTYPE)
    stop = tl.minimum((part + 1) * stretch, _length(lens_ptr, batch, n, HAS_LENS))
    for first in range(part * stretch, stop, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)  # positions
        e = _load(matrix_ptr, rows, i, stride_ek, k, stop)  # [BLOCK_K, BLOCK_N]
        x = _load(key_ptr, i, d, stride_kn, stop, DIM)  # [BLOCK_N, BLOCK_D]
        keys += tl.dot(e, x, input_precision=PRECISION)
        if PAIR:
            y = _load(value_ptr, i, v, stride_vn, stop, VALUE_DIM)  # [BLOCK_N, BLOCK_V]
            values += tl.dot(e, y, input_precision=PRECISION)

    slot = (part * items + item) * k
    _store(key_part_ptr + slot * DIM, keys, rows, d, DIM, k, DIM)
    if PAIR:
        _store(value_part_ptr + slot * VALUE_DIM, values, rows, v, VALUE_DIM, k, VALUE_DIM)


def block(columns: int) -> int:
    """The tile's width for so many columns: a power of two, and no less than a product needs."""
    width: int = triton.next_power_of_2(columns)
    return max(16, width)


def choose(configs: Configs, arch: int, size: int, width: int) -> Config:
    """The tiles for numbers of so many bytes and heads of so many columns."""
    for (bytes_, most), config in configs[arch].items():
        if bytes_ == size and width <= most:
            return config
    raise RuntimeError(
        f"impl='triton' cannot be used: the kernels take float32 and half precision, and heads of "
        f"up to {MAX_DIM} columns, got {width} of {size} bytes each. Use impl='reference'."
    )


def tiles(configs: Configs, *sequences: Tensor) -> Config:
    """The tiles for some heads on their device."""
    arch, size = architecture(sequences[0].device), sequences[0].element_size()
    if INTERPRETED:
        arch, size = ARCHITECTURES[0], 4  # interpreted, double precision will do
    config = choose(configs, arch, size, max(x.shape[-1] for x in sequences))
    return INTERPRETED_CONFIG if INTERPRETED else config


def split(count: int, programs: int) -> tuple[int, int]:
    """Into how many parts to split a sum of ``count`` steps, and how many steps each part has.

    Args:
        count: If there is none, one part adds up nothing, and writes zeros.
        programs: How many programs there would be without.
    """
    parts = max(1, min(count, PROGRAMS // max(1, programs)))
    steps: int = triton.cdiv(count, parts)
    return (triton.cdiv(count, steps) if steps else 1), steps  # no part is empty


def slots(like: Tensor, parts: int, *shape: int) -> Tensor:
    """A place for each part of a sum, in float32 at least; where there is one, it is the sum."""
    return like.new_empty(parts, *shape, dtype=like.dtype if parts == 1 else wide_dtype(like.dtype))


def add_up(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """The second sum, over the parts."""
    return partial[0] if len(partial) == 1 else partial.sum(0).to(dtype)


def rows_contiguous(tensor: Tensor) -> Tensor:
    """The tensor, or a copy whose rows are contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def common(matrix: Tensor, sequences: tuple[Tensor, ...], lens: Tensor | None) -> dict[str, Any]:
    """The options that all launches share; ``sequences`` are keys, and values if both are."""
    exact = torch.get_float32_matmul_precision() == "highest"
    dim, value_dim = sequences[0].shape[-1], sequences[-1].shape[-1]
    return {
        "DIM": dim,
        "VALUE_DIM": value_dim,
        "PAIR": len(sequences) == 2,
        "HAS_LENS": lens is not None,
        "DTYPE": tl.float64 if matrix.dtype == torch.float64 else tl.float32,
        "PRECISION": "ieee" if exact or matrix.dtype != torch.float32 else "tf32",
        "BLOCK_D": block(dim),
        "BLOCK_V": block(value_dim),
    }


def project_forward(matrix: Tensor, lens: Tensor | None, *sequences: Tensor) -> tuple[Tensor, ...]:
    """Launch the forward kernel and the second sum.

    Args:
        matrix: ``[1 or heads, k, >= n]``; here and below, rows are contiguous.
        lens: ``[batch]``, int32, or ``None``.
        sequences: Keys ``[batch, heads, n, dim]``, and perhaps values.

    Returns:
        ``[batch, heads, k, dim]`` for each.
    """
    (batch, heads, n, _), k = sequences[0].shape, matrix.shape[1]
    config = tiles(FWD_CONFIGS, *sequences)
    programs = triton.cdiv(k, config.BLOCK_K) * batch * heads
    parts, steps = split(triton.cdiv(n, config.BLOCK_N), programs)
    partial = [slots(x, parts, batch, heads, k, x.shape[-1]) for x in sequences]
    key, value = sequences[0], sequences[-1]
    if programs:
        _project_fwd_kernel[(programs, parts)](
            matrix, matrix if lens is None else lens, key, value, partial[0], partial[-1],
            n, k, heads, batch * heads, steps * config.BLOCK_N,
            *matrix_strides(matrix), *key.stride()[:3], *value.stride()[:3],
            **common(matrix, sequences, lens), **config._asdict(),
        )  # fmt: skip
    return tuple(add_up(sums, matrix.dtype) for sums in partial)


def matrix_strides(matrix: Tensor) -> tuple[int, int]:
    """Of a head and of a row; heads that share the matrix do not step."""
    return (matrix.stride(0) if len(matrix) > 1 else 0), matrix.stride(1)


#: What is compiled ahead of time: bytes of a number -> widths of keys and values, and options.
SHAPES: dict[int, list[tuple[int, int, dict[str, Any]]]] = {
    2: [(64, 64, {"PAIR": True}), (80, 128, {"PAIR": True, "HAS_LENS": True, "SHARED": False})],
    4: [(64, 40, {"PAIR": True, "HAS_LENS": True}), (128, 128, {"PRECISION": "tf32"})],
}


def compilations(kernel: Any, configs: Configs) -> Iterator[Shipped]:
    """A kernel of this module as its launcher calls it, for each architecture."""
    for arch in ARCHITECTURES:
        for size, shapes in SHAPES.items():
            for dim, value_dim, options in shapes[:1] if arch == 75 else shapes:
                config = choose(configs, arch, size, max(dim, value_dim))._asdict()
                launch = {name: config.pop(name) for name in ("num_warps", "num_stages")}
                constexprs: dict[str, Any] = {"PAIR": False, "HAS_LENS": False, "SHARED": True}
                constexprs |= {"DTYPE": tl.float32, "PRECISION": "ieee", **config}
                constexprs |= {"DIM": dim, "VALUE_DIM": value_dim, **options}
                constexprs |= {"BLOCK_D": block(dim), "BLOCK_V": block(value_dim)}
                yield as_shipped(kernel, arch, size, constexprs, launch, ("_part_ptr",))


def as_shipped(
    kernel: Any,
    arch: int,
    size: int,
    constexprs: dict[str, Any],
    launch: dict[str, int],
    sums: tuple[str, ...],
) -> Shipped:
    """A kernel with its arguments' types.

    Args:
        kernel: A ``@triton.jit`` function.
        arch: The architecture.
        size: Bytes of a number.
        constexprs: Its constants, and perhaps more.
        launch: Warps and stages.
        sums: How the names of pointers to float32 numbers end.
    """
    number = {2: "bf16" if arch >= 80 else "fp16", 4: "fp32"}[size]
    constexprs = {name: c for name, c in constexprs.items() if name in kernel.arg_names}
    types = dict.fromkeys(constexprs, "constexpr") | {"lens_ptr": "*i32", "scale": "fp32"}
    for name in kernel.arg_names:
        pointer = "*fp32" if name.endswith(sums) else f"*{number}"
        types.setdefault(name, pointer if name.endswith("_ptr") else "i32")
    signature = {name: types[name] for name in kernel.arg_names}
    return Shipped(kernel, arch, signature, constexprs, launch)


def shipped() -> Iterator[Shipped]:
    """The forward kernel as the launcher calls it, for each architecture."""
    yield from compilations(_project_fwd_kernel, FWD_CONFIGS)
