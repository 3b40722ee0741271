r"""Masked softmax on the GPU: one program a row, one read and one write a number.

For a row x of scores, of which the keys j in A may be seen,

    forward    M = max_A x_j      p_j = exp(x_j - M) / sum_A exp(x_j - M), 0 outside A

    backward   dL/dx_j = p_j (g_j - sum_k p_k g_k)                         (g = dL/dp)

The backward line is the chain rule with dp_k/dx_j = p_k (1[k=j] - p_j). Without M, a score
of 89 would overflow in float32; with it the largest exponent is 0. If A is empty, M is
-inf, and x - M would be NaN: M is then taken as 0, the sum is 0, and 0 is divided by 1.

Grid: a program for each row, batch * query_len of them. A row of up to MAX_COLUMNS keys is
held in the program's registers, BLOCK_N of them, the next power of two: it is read once,
its maximum and its sum are taken there, and the weights are written. A wider row passes by
in tiles of WIDE_BLOCK_N, twice: first for the maximum and the sum together (whenever the
maximum grows from M to M', the sum so far is multiplied by exp(M - M')), then for the
weights (Milakov and Gimelshein, 2018). What lies past a row's valid length is not read.

Saved for backward: the weights, which the caller holds anyway, and the lengths.

Moved, in numbers a key: forward 1 read and 1 written, backward 2 read and 1 written; wide
rows 2 and 1, and 4 and 1, the second reading perhaps from cache. FLOPs a key: 5 and one
exponential forward, 4 backward. At a few FLOPs a byte the memory decides: reaching its
bandwidth is the goal, and the plain form, five passes over the matrix, is 2 to 4 times
further from it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attn_course._triton import ARCHITECTURES, REASON, Shipped, tl, triton

if triton is None:
    raise ImportError(f"attn_course.scoring.kernel needs triton: {REASON}.")

# Keys that one program holds in registers: at 16 warps, 32 a thread.
MAX_COLUMNS = 16384

# Keys that a program holds at a time of a row that is wider.
WIDE_BLOCK_N = 4096


@triton.jit
def _place(n, heads):
    """Which row is mine, and its batch item, head and query; int64, as offsets must be."""
    row = tl.program_id(0).to(tl.int64)
    return row, row // n // heads, row // n % heads, row % n


@triton.jit
def _scores(
    scores_ptr,  # at the first number of the row
    mask_ptr,  # likewise
    columns,
    length,
    stride_sn,
    stride_mn,
    HAS_MASK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Some scores of the row: [BLOCK_N], -inf where the key may not be seen."""
    columns = columns.to(tl.int64)
    allowed = columns < length
    if HAS_MASK:
        mask = tl.load(mask_ptr + columns * stride_mn, mask=allowed, other=0)  # [BLOCK_N]
        allowed = allowed & (mask != 0)
    # A lane that is masked off reads nothing, so that NaN in padding never arrives.
    x = tl.load(scores_ptr + columns * stride_sn, mask=allowed, other=float("-inf"))  # [BLOCK_N]
    return x.to(DTYPE)


@triton.jit
def _finite(largest):
    """The maximum to subtract: of an empty row, 0 instead of -inf."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def _exp_below(x, largest):
    """exp(x - largest), and 1 where both are +inf: inf - inf would be NaN."""
    same = x == largest
    return tl.exp(tl.where(same, 0.0, x) - tl.where(same, 0.0, largest))


# The teaching path: this kernel, with the helpers above, and the next one.
@triton.jit
def _softmax_fwd_kernel(
    scores_ptr,  # [batch, heads, n, m], any strides
    lens_ptr,  # [batch, heads, n], how many leading keys each query may see
    mask_ptr,  # [batch, heads, n, m]
    weights_ptr,  # [batch, heads, n, m], contiguous
    heads,
    n,
    m,
    stride_sb,
    stride_sh,
    stride_sm,
    stride_sn,
    stride_lb,
    stride_lh,
    stride_lm,
    stride_mb,
    stride_mh,
    stride_mm,
    stride_mn,
    HAS_MASK: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row, b, h, i = _place(n, heads)
    scores_ptr += b * stride_sb + h * stride_sh + i * stride_sm
    mask_ptr += b * stride_mb + h * stride_mh + i * stride_mm
    length = tl.load(lens_ptr + b * stride_lb + h * stride_lh + i * stride_lm)

    columns = tl.arange(0, BLOCK_N)  # the whole row: BLOCK_N >= m
    x = _scores(scores_ptr, mask_ptr, columns, length, stride_sn, stride_mn, HAS_MASK, DTYPE)
    e = _exp_below(x, _finite(tl.max(x, 0)))  # [BLOCK_N], 0 where not allowed
    total = tl.sum(e, 0)
    p = e / tl.where(total == 0, 1.0, total)  # an empty row gives 0
    tl.store(weights_ptr + row * m + columns, p, mask=columns < m)


@triton.jit
def _softmax_bwd_kernel(
    weights_ptr,  # [batch, heads, n, m], contiguous
    grad_ptr,  # [batch, heads, n, m], dL/dp, any strides
    lens_ptr,  # [batch, heads, n]
    dscores_ptr,  # [batch, heads, n, m], contiguous
    heads,
    n,
    m,
    stride_gb,
    stride_gh,
    stride_gm,
    stride_gn,
    stride_lb,
    stride_lh,
    stride_lm,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row, b, h, i = _place(n, heads)
    grad_ptr += b * stride_gb + h * stride_gh + i * stride_gm
    length = tl.load(lens_ptr + b * stride_lb + h * stride_lh + i * stride_lm)

    columns = tl.arange(0, BLOCK_N)
    p, g = _weights_and_grad(weights_ptr + row * m, grad_ptr, columns, length, stride_gn, DTYPE)
    dx = p * (g - tl.sum(p * g, 0))  # [BLOCK_N], 0 where p is
    tl.store(dscores_ptr + row * m + columns, dx, mask=columns < m)


@triton.jit
def _weights_and_grad(weights_ptr, grad_ptr, columns, length, stride_gn, DTYPE: tl.constexpr):
    """Some weights of the row and their incoming gradient: both [BLOCK_N]."""
    columns = columns.to(tl.int64)
    inside = columns < length
    p = tl.load(weights_ptr + columns, mask=inside, other=0.0).to(DTYPE)  # [BLOCK_N]
    g = tl.load(grad_ptr + columns * stride_gn, mask=inside, other=0.0).to(DTYPE)  # [BLOCK_N]
    return p, tl.where(p == 0, 0.0, g)  # the gradient of a hidden key may be NaN


@triton.jit
def _wide_softmax_fwd_kernel(
    scores_ptr,
    lens_ptr,
    mask_ptr,
    weights_ptr,
    heads,
    n,
    m,
    stride_sb,
    stride_sh,
    stride_sm,
    stride_sn,
    stride_lb,
    stride_lh,
    stride_lm,
    stride_mb,
    stride_mh,
    stride_mm,
    stride_mn,
    HAS_MASK: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row, b, h, i = _place(n, heads)
    scores_ptr += b * stride_sb + h * stride_sh + i * stride_sm
    mask_ptr += b * stride_mb + h * stride_mh + i * stride_mm
    length = tl.load(lens_ptr + b * stride_lb + h * stride_lh + i * stride_lm)

    columns = tl.arange(0, BLOCK_N)
    largest = tl.full([], float("-inf"), DTYPE)
    total = tl.zeros([], DTYPE)
    for start in range(0, length, BLOCK_N):
        x = _scores(
            scores_ptr, mask_ptr, start + columns, length, stride_sn, stride_mn, HAS_MASK, DTYPE
        )
        new = tl.maximum(largest, tl.max(x, 0))
        total *= _exp_below(largest, _finite(new))
        total += tl.sum(_exp_below(x, _finite(new)), 0)
        largest = new
    total = tl.where(total == 0, 1.0, total)
    for start in range(0, m, BLOCK_N):
        x = _scores(
            scores_ptr, mask_ptr, start + columns, length, stride_sn, stride_mn, HAS_MASK, DTYPE
        )
        p = _exp_below(x, _finite(largest)) / total
        tl.store(weights_ptr + row * m + start + columns, p, mask=start + columns < m)


@triton.jit
def _wide_softmax_bwd_kernel(
    weights_ptr,
    grad_ptr,
    lens_ptr,
    dscores_ptr,
    heads,
    n,
    m,
    stride_gb,
    stride_gh,
    stride_gm,
    stride_gn,
    stride_lb,
    stride_lh,
    stride_lm,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row, b, h, i = _place(n, heads)
    grad_ptr += b * stride_gb + h * stride_gh + i * stride_gm
    length = tl.load(lens_ptr + b * stride_lb + h * stride_lh + i * stride_lm)
    weights_ptr += row * m

    columns = tl.arange(0, BLOCK_N)
    products = tl.zeros([BLOCK_N], DTYPE)
    for start in range(0, length, BLOCK_N):
        p, g = _weights_and_grad(weights_ptr, grad_ptr, start + columns, length, stride_gn, DTYPE)
        products += p * g
    delta = tl.sum(products, 0)
    for start in range(0, m, BLOCK_N):
        p, g = _weights_and_grad(weights_ptr, grad_ptr, start + columns, length, stride_gn, DTYPE)
        tl.store(dscores_ptr + row * m + start + columns, p * (g - delta), mask=start + columns < m)


def masked_softmax(
    scores: Tensor, *, lens: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Softmax over the keys that count, differentiable once.

    Args:
        scores: ``[..., query_len, key_len]``, any strides; half precision is computed in
            float32.
        lens: How many leading keys count; broadcasts to ``[..., query_len]``.
        mask: ``True`` = may attend; broadcasts to the scores.

    Returns:
        Weights of the shape and type of the scores.
    """
    n = scores.shape[-2]
    if lens is None:
        lens = torch.full((), scores.shape[-1], device=scores.device)
    lens = lens.to(torch.int32).expand(*scores.shape[:-2], n)
    if mask is not None:
        mask = _four(mask.expand(scores.shape).view(torch.uint8))
    weights: Tensor = _MaskedSoftmax.apply(
        _four(scores), _four(lens.unsqueeze(-1)).squeeze(-1), mask
    )
    return weights.reshape(scores.shape)


def _four(tensor: Tensor) -> Tensor:
    """``[batch, heads, n, m]``: a view, unless there are more than two leading dimensions."""
    return tensor[(None,) * (4 - tensor.ndim)].flatten(0, -4)


class _MaskedSoftmax(torch.autograd.Function):
    """Launches the kernels on ``[batch, heads, n, m]`` tensors."""

    @staticmethod
    def forward(ctx, scores, lens, mask):
        weights = scores.new_empty(scores.shape)
        kernel, meta = _choose(scores, _softmax_fwd_kernel, _wide_softmax_fwd_kernel)
        strides = (*scores.stride(), *lens.stride(), *((0,) * 4 if mask is None else mask.stride()))
        if weights.numel():
            kernel[(scores[..., 0].numel(),)](
                scores, lens, scores if mask is None else mask, weights,
                *scores.shape[1:], *strides, HAS_MASK=mask is not None, **meta,
            )  # fmt: skip
        ctx.save_for_backward(weights, lens)
        return weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        weights, lens = ctx.saved_tensors
        dscores = torch.empty_like(weights)
        kernel, meta = _choose(weights, _softmax_bwd_kernel, _wide_softmax_bwd_kernel)
        if dscores.numel():
            kernel[(weights[..., 0].numel(),)](
                weights, grad, lens, dscores, *weights.shape[1:], *grad.stride(), *lens.stride(),
                **meta,
            )  # fmt: skip
        return dscores, None, None


def _choose(scores, narrow, wide):
    """The kernel for rows of this width, and its options."""
    dtype = tl.float64 if scores.dtype == torch.float64 else tl.float32
    is_wide = scores.shape[-1] > MAX_COLUMNS
    block = WIDE_BLOCK_N if is_wide else triton.next_power_of_2(scores.shape[-1])
    return wide if is_wide else narrow, {"DTYPE": dtype, "BLOCK_N": block, **_warps(block)}


def _warps(block):
    """Enough threads that each holds 32 numbers at most; not yet tuned on a GPU."""
    return {"num_warps": min(16, max(1, block // 256))}


def shipped() -> Iterator[Shipped]:
    """Each kernel as the launchers call it, for each architecture.

    The widths go from the sentences of a chapter to the most that registers hold; what
    suits a width suits it on every architecture.
    """
    sizes = ("heads", "n", "m")
    lens = ("stride_lb", "stride_lh", "stride_lm")
    four = [f"stride_{{}}{axis}" for axis in "bhmn"]
    scores, masks, grads = ([name.format(letter) for name in four] for letter in "smg")
    widths = [(block, False) for block in (32, 1024, MAX_COLUMNS)] + [(WIDE_BLOCK_N, True)]
    for arch in ARCHITECTURES:
        for number in ("fp32", "fp16"):
            for block, is_wide in widths:
                meta = {"DTYPE": tl.float32, "BLOCK_N": block}
                for has_mask in (False, True):
                    pointers = {
                        "scores_ptr": f"*{number}",
                        "lens_ptr": "*i32",
                        "mask_ptr": "*u8" if has_mask else f"*{number}",
                        "weights_ptr": f"*{number}",
                    }
                    integers = dict.fromkeys((*sizes, *scores, *lens, *masks), "i32")
                    constexprs = {"HAS_MASK": has_mask, **meta}
                    signature = pointers | integers | dict.fromkeys(constexprs, "constexpr")
                    kernel = _wide_softmax_fwd_kernel if is_wide else _softmax_fwd_kernel
                    yield Shipped(kernel, arch, signature, constexprs, _warps(block))
                pointers = dict.fromkeys(("weights_ptr", "grad_ptr", "dscores_ptr"), f"*{number}")
                pointers["lens_ptr"] = "*i32"
                integers = dict.fromkeys((*sizes, *grads, *lens), "i32")
                signature = pointers | integers | dict.fromkeys(meta, "constexpr")
                kernel = _wide_softmax_bwd_kernel if is_wide else _softmax_bwd_kernel
                yield Shipped(kernel, arch, signature, meta, _warps(block))
