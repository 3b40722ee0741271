r"""Add & norm on the GPU: a row is added, normalised, scaled and shifted in registers.

For a row s = x + u of d numbers, with scale w and shift b,

    forward    m = sum_j s_j / d    r = (sum_j (s_j - m)^2 / d + eps)^(-1/2)
               h_j = (s_j - m) r    y_j = w_j h_j + b_j

With g = dL/dy and c_j = g_j w_j = dL/dh_j, and bars for means over the row,

    backward   dL/ds_j = r (c_j - mean(c) - h_j mean(c h))    = dL/dx_j = dL/du_j
               dL/dw_j = sum_rows g_j h_j      dL/db_j = sum_rows g_j

The first line is the chain rule with dh_k/ds_j = r (1[k=j] - 1/d - h_k h_j / d). Shifting a
row, or stretching it, does not change h: the two means take these directions out of c. Where
the sum is asked for as well, as a pre-norm stack does, its gradient is added to dL/ds before
that is written.

**The variance.** E[s^2] - E[s]^2 would need one pass, and is the small difference of two
large numbers where the mean is far from 0: in float32, at 10,000 with a deviation of 1,
nothing is left of it. The mean of the centred squares needs two passes, which cost no
reading here, since the row lies in registers.

Grid: forward, a program for BLOCK_M rows, of which it holds all BLOCK_D columns, the next
power of two; together TILE numbers, or one row where that is wider, MAX_COLUMNS at most.
Backward, at most PROGRAMS programs, each with ``steps`` tiles one after another: it adds up
g h and g of its own rows, in registers, and writes two rows of partial sums. These are
added by a second launch, torch.sum. No atomics: runs repeat bit for bit. It holds four
tiles, s, g and the two sums. Compiled code shows that up to 8,192 columns they fit; at
16,384 they are as many as a multiprocessor has registers, and 40 to 130 numbers a thread go
to its cache.

Saved for backward: the sum, and a mean and an r for each row. Keeping x and u instead would
move as much: one number less written forward, one more read backward. In a post-norm stack
it would also hold as much, as x is held by the projections before it anyway, so that u or
the sum is what comes on top; in a pre-norm stack, where the sum is an output that others
hold, it would hold more. Where no gradient is needed and the sum is not asked for, it is
not written. In half precision it is rounded, as on the unfused path.

Moved, in numbers an element of the sum: forward 2 read and 1 written, 2 with the sum;
backward 2 read (3 with a gradient of the sum) and 1 written, which serves as both
gradients; besides 2 rows of partial sums a program, written and read. An addition and
torch's layer_norm on a GPU move 3 + 2 and 5, since g and s are read once more for w and b;
the formula, an operation after the other, 15 forward. FLOPs an element: 8 forward, 13
backward. At about one a byte the memory decides: reaching its bandwidth is the goal.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attn_course._precision import wide_dtype
from attn_course._triton import ARCHITECTURES, REASON, Shipped, tl, triton

if triton is None:
    raise ImportError(f"attn_course.transformer.kernel needs triton: {REASON}.")

# Columns of the widest row that one program holds in registers.
MAX_COLUMNS = 16384

# Numbers that a program holds at a time of rows that are narrower.
TILE = 2048

# Programs of the backward pass at most: about four for each multiprocessor of a large GPU.
PROGRAMS = 512


# The teaching path: these two kernels, as they are. Rows and columns are int64, as offsets
# must be.
@triton.jit
def _add_norm_fwd_kernel(
    x_ptr,  # [n, d], any strides
    update_ptr,  # [n, d], any strides
    weight_ptr,  # [d]
    bias_ptr,  # [d]
    normed_ptr,  # [n, d], contiguous
    sum_ptr,  # [n, d], contiguous
    mean_ptr,  # [n]
    rstd_ptr,  # [n]
    n,
    d,
    stride_xm,
    stride_xd,
    stride_um,
    stride_ud,
    EPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_SUM: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D).to(tl.int64)
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    x_ptr += rows[:, None] * stride_xm + columns[None, :] * stride_xd
    update_ptr += rows[:, None] * stride_um + columns[None, :] * stride_ud
    x = tl.load(x_ptr, mask=inside, other=0.0)  # [BLOCK_M, BLOCK_D]
    update = tl.load(update_ptr, mask=inside, other=0.0)  # [BLOCK_M, BLOCK_D]
    w = tl.load(weight_ptr + columns, mask=columns < d, other=0.0).to(DTYPE)  # [BLOCK_D]

    s = x.to(DTYPE) + update.to(DTYPE)
    mean = tl.sum(s, 1) / d  # [BLOCK_M]
    centred = tl.where(inside, s - mean[:, None], 0.0)  # columns that are not there do not count
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / d + EPS)  # [BLOCK_M]
    y = centred * rstd[:, None] * w[None, :]
    if HAS_BIAS:
        b = tl.load(bias_ptr + columns, mask=columns < d, other=0.0).to(DTYPE)  # [BLOCK_D]
        y += b[None, :]

    place = rows[:, None] * d + columns[None, :]
    tl.store(normed_ptr + place, y, mask=inside)
    if KEEP_SUM:
        tl.store(sum_ptr + place, s, mask=inside)
        tl.store(mean_ptr + rows, mean, mask=rows < n)
        tl.store(rstd_ptr + rows, rstd, mask=rows < n)


@triton.jit
def _add_norm_bwd_kernel(
    grad_ptr,  # [n, d], dL/dy, any strides
    grad_sum_ptr,  # [n, d], dL/ds from whoever else uses the sum, any strides
    sum_ptr,  # [n, d], contiguous
    mean_ptr,  # [n]
    rstd_ptr,  # [n]
    weight_ptr,  # [d]
    dx_ptr,  # [n, d], contiguous
    partial_ptr,  # [programs, 2, d], of dL/dw and dL/db
    n,
    d,
    steps,  # tiles for each program
    stride_gm,
    stride_gd,
    stride_sm,
    stride_sd,
    HAS_GRAD_SUM: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D).to(tl.int64)
    w = tl.load(weight_ptr + columns, mask=columns < d, other=0.0).to(DTYPE)  # [BLOCK_D]
    dweight = tl.zeros([BLOCK_M, BLOCK_D], DTYPE)
    dbias = tl.zeros([BLOCK_M, BLOCK_D], DTYPE)
    for step in range(steps):
        rows = (program * steps + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = (rows < n)[:, None] & (columns < d)[None, :]
        place = rows[:, None] * d + columns[None, :]
        from_y = grad_ptr + rows[:, None] * stride_gm + columns[None, :] * stride_gd
        g = tl.load(from_y, mask=inside, other=0.0).to(DTYPE)  # [BLOCK_M, BLOCK_D]
        s = tl.load(sum_ptr + place, mask=inside, other=0.0).to(DTYPE)  # [BLOCK_M, BLOCK_D]
        mean = tl.load(mean_ptr + rows, mask=rows < n, other=0.0)  # [BLOCK_M]
        rstd = tl.load(rstd_ptr + rows, mask=rows < n, other=0.0)  # [BLOCK_M]

        h = (s - mean[:, None]) * rstd[:, None]
        dweight += g * h  # g is 0 where nothing is, and so are c and all the sums
        dbias += g
        c = g * w[None, :]
        along = tl.sum(c * h, 1) / d  # [BLOCK_M]
        dx = rstd[:, None] * (c - (tl.sum(c, 1) / d)[:, None] - h * along[:, None])
        if HAS_GRAD_SUM:
            from_s = grad_sum_ptr + rows[:, None] * stride_sm + columns[None, :] * stride_sd
            dx += tl.load(from_s, mask=inside, other=0.0).to(DTYPE)  # [BLOCK_M, BLOCK_D]
        tl.store(dx_ptr + place, dx, mask=inside)

    partial_ptr += program * 2 * d + columns
    tl.store(partial_ptr, tl.sum(dweight, 0), mask=columns < d)
    tl.store(partial_ptr + d, tl.sum(dbias, 0), mask=columns < d)


def add_norm(
    x: Tensor, update: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, return_sum: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """LayerNorm(x + update), differentiable once.

    Args:
        x: ``[..., dim]``, at most MAX_COLUMNS columns; half precision is computed in
            float32. Any strides; leading dimensions that are not one stride apart (as a
            transposed batch) are copied first.
        update: Of the shape and type of ``x``.
        weight: ``[dim]``.
        bias: ``[dim]``, or ``None``.
        eps: Added to the variance.
        return_sum: Return x + update as well.

    Returns:
        One tensor of the shape and type of ``x``, or two.
    """
    needs_grad = any(t is not None and t.requires_grad for t in (x, update, weight, bias))
    keep_sum = return_sum or (needs_grad and torch.is_grad_enabled())
    normed, total = _AddNorm.apply(x, update, weight, bias, eps, return_sum, keep_sum)
    return (normed, total) if return_sum else normed


class _AddNorm(torch.autograd.Function):
    """Launches the kernels on ``[n, d]`` tensors."""

    @staticmethod
    def forward(ctx, x, update, weight, bias, eps, return_sum, keep_sum):
        d = x.shape[-1]
        n = x.numel() // d
        meta = _meta(x.dtype, d)
        weight = weight.contiguous()
        normed = x.new_empty(x.shape)
        total = x.new_empty(x.shape if keep_sum else 0)
        mean, rstd = x.new_empty(2, n if keep_sum else 0, dtype=wide_dtype(x.dtype))
        x, update = x.reshape(n, d), update.reshape(n, d)
        if n:
            _add_norm_fwd_kernel[(triton.cdiv(n, meta["BLOCK_M"]),)](
                x, update, weight, weight if bias is None else bias.contiguous(),
                normed, total, mean, rstd, n, d, *x.stride(), *update.stride(),
                EPS=eps, HAS_BIAS=bias is not None, KEEP_SUM=keep_sum, **meta,
            )  # fmt: skip
        ctx.save_for_backward(total, mean, rstd, weight)
        ctx.has_bias = bias is not None
        ctx.set_materialize_grads(False)
        return normed, total if return_sum else None

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_sum):
        if grad is None:  # whoever asked for both used the sum alone
            return grad_sum, grad_sum, None, None, None, None, None
        total, mean, rstd, weight = ctx.saved_tensors
        n, d = len(mean), len(weight)
        meta = _meta(total.dtype, d)
        tiles = triton.cdiv(n, meta["BLOCK_M"])
        steps = triton.cdiv(tiles, PROGRAMS)
        programs = triton.cdiv(tiles, max(1, steps))
        dx = torch.empty_like(total)
        partial = mean.new_empty(programs, 2, d)
        if n:
            g = grad.reshape(n, d)
            gs = g if grad_sum is None else grad_sum.reshape(n, d)
            _add_norm_bwd_kernel[(programs,)](
                g, gs, total, mean, rstd, weight, dx, partial, n, d, steps,
                *g.stride(), *gs.stride(), HAS_GRAD_SUM=grad_sum is not None, **meta,
            )  # fmt: skip
        dweight, dbias = partial.sum(0).to(weight.dtype)
        # The same tensor twice: then autograd knows that it must not give it away as it is.
        return dx, dx, dweight, dbias if ctx.has_bias else None, None, None, None


def _meta(dtype, d):
    """Whole rows, TILE numbers of them; 8 numbers a thread, up to 1,024 threads."""
    block_d = triton.next_power_of_2(d)
    block_m = max(1, TILE // block_d)
    return {
        "DTYPE": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK_M": block_m,
        "BLOCK_D": block_d,
        "num_warps": min(32, max(1, block_m * block_d // 256)),  # not yet tuned on a GPU
    }


def shipped() -> Iterator[Shipped]:
    """Each kernel as the launchers call it, for each architecture.

    The widths are that of this course's models and the most that registers hold; what suits
    a width suits it on every architecture.
    """
    wide = ("x", "update", "normed", "sum", "grad", "grad_sum", "dx")
    exact = ("mean", "rstd", "partial")
    columns = ("stride_xd", "stride_ud", "stride_gd", "stride_sd")
    for arch in ARCHITECTURES:
        for number, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
            types = {f"{name}_ptr": f"*{number}" for name in (*wide, "weight", "bias")}
            types |= {f"{name}_ptr": "*fp32" for name in exact}
            for width in (64, MAX_COLUMNS):
                for flag in (False, True):
                    for kernel, flags in (
                        (_add_norm_fwd_kernel, {"EPS": 1e-5, "HAS_BIAS": flag, "KEEP_SUM": flag}),
                        (_add_norm_bwd_kernel, {"HAS_GRAD_SUM": flag}),
                    ):
                        meta = _meta(dtype, width)
                        options = {"num_warps": meta.pop("num_warps")}
                        # Triton makes a constant of a stride that is 1, as those of columns are.
                        ones = {name: 1 for name in kernel.arg_names if name in columns}
                        constexprs = flags | meta | ones
                        signature = {
                            name: "constexpr" if name in constexprs else types.get(name, "i32")
                            for name in kernel.arg_names
                        }
                        yield Shipped(kernel, arch, signature, constexprs, options)
