r"""Patch embedding on the GPU: the backward pass, and both passes as one operation.

Forward (see ``kernel``), y_bt = W x_bt + b + p_t for token t of image b, and y_b0 = c + p_0
if there is a class token. With g = dL/dy, and sums over images b and patches t alone,

    dL/dW = sum_bt g_bt x_bt^T        dL/dx_bt = W^T g_bt        dL/db = sum_bt g_bt
    dL/dp_t = sum_b g_bt, of every token t;                      dL/dc = dL/dp_0.

Three kernels; each is launched only if what it gives is needed.

``_patch_embed_bwd_weight_kernel`` is a product G^T X whose long side, all patches of all
images, is the one that is summed over. dL/dW itself has few tiles: 36 of 128 x 128 for 768 x
768, which would leave most of a large GPU idle. So the patches are split into as many parts
as give about PROGRAMS programs. Each adds up its part in registers and writes it to a slot
of its own, and torch.sum adds the parts. X is implicit here, too.

``_patch_embed_bwd_image_kernel`` is a product G W, a row for each patch, written to where the
pixels of the patch lie. Patches do not overlap: each pixel has one owner. (Only those who ask
which pixels mattered need it; the first layer of a network learns without.)

``_patch_embed_bwd_token_kernel`` adds up g over images, for each token and column; likewise in
parts, in slots. From dL/dp, dL/db and dL/dc are sums of its rows, whether or not there are
positions, so that g is read once for the three.

No atomics: runs repeat bit for bit.

Moved, in numbers, with B images of M patches and D columns: for W, B M (K + D) read, pixels D /
BLOCK_N times and gradients K / BLOCK_K times, mostly from cache, and 2 K D for each part; for
the images, B M (K + D); for the tokens, B M D. FLOPs: 2 B M K D for W, and as many for the
images.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attn_course._precision import wide_dtype
from attn_course._triton import ARCHITECTURES, INTERPRETED, Shipped, tl, triton
from attn_course.vision.kernel import (
    Config,
    Configs,
    _corner,
    _within,
    common,
    compilations,
    embed,
    tiles,
)

# As in ``kernel``, and likewise not yet tuned. For W, BLOCK_M patches are summed over at a time;
# for the images, BLOCK_N columns.
WEIGHT_CONFIGS: Configs = {
    75: {2: Config(32, 32, 32, 4, 2), 4: Config(16, 32, 32, 4, 2)},
    80: {2: Config(32, 128, 128, 8, 3), 4: Config(32, 64, 64, 4, 3)},
    90: {2: Config(64, 128, 128, 8, 3), 4: Config(32, 64, 64, 4, 3)},
}
IMAGE_CONFIGS: Configs = {
    75: {2: Config(32, 32, 32, 4, 2), 4: Config(32, 16, 32, 4, 2)},
    80: {2: Config(128, 32, 128, 8, 3), 4: Config(64, 32, 64, 4, 3)},
    90: {2: Config(128, 64, 128, 8, 3), 4: Config(64, 32, 64, 4, 3)},
}

# Programs at which a sum is no longer split: about two for each multiprocessor of a large GPU.
PROGRAMS = 256

# A tile of the sums over images.
TOKENS, COLUMNS = 4, 256


@triton.jit
def _patch_embed_bwd_weight_kernel(
    grad_ptr,  # [batch, tokens, dim], dL/dy, any strides
    image_ptr,  # [batch, CHANNELS, height, width], any strides
    partial_ptr,  # [parts, dim, K], of dL/dW
    rows, patches, columns, dim, steps,  # batch * patches; tiles of patches for each part
    stride_gb, stride_gt, stride_gn, stride_ib, stride_ic, stride_ih, stride_iw,
    CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
    HAS_CLASS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    K: tl.constexpr = CHANNELS * PATCH_H * PATCH_W
    TILES: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    n = tl.program_id(0) // TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(0) % TILES * BLOCK_K + tl.arange(0, BLOCK_K)
    part = tl.program_id(1)
    grad_ptr += n.to(tl.int64)[None, :] * stride_gn
    image_ptr += _within(k, stride_ic, stride_ih, stride_iw, PATCH_H, PATCH_W)[None, :]

    dw = tl.zeros([BLOCK_N, BLOCK_K], DTYPE)
    for step in range(steps):
        m = (part * steps + step) * BLOCK_M + tl.arange(0, BLOCK_M)  # patches of all images
        item, patch, here = m // patches, m % patches, (m < rows)[:, None]
        token = patch + 1 if HAS_CLASS else patch
        gs = grad_ptr + (item.to(tl.int64) * stride_gb + token.to(tl.int64) * stride_gt)[:, None]
        g = tl.load(gs, mask=here & (n < dim)[None, :], other=0.0)  # [BLOCK_M, BLOCK_N]
        corner = _corner(item, patch, columns, stride_ib, stride_ih, stride_iw, PATCH_H, PATCH_W)
        pixels = image_ptr + corner[:, None]
        x = tl.load(pixels, mask=here & (k < K)[None, :], other=0.0)  # [BLOCK_M, BLOCK_K]
        dw += tl.dot(tl.trans(g), x, input_precision=PRECISION)  # [BLOCK_N, BLOCK_K]

    place = (part.to(tl.int64) * dim + n[:, None]) * K + k[None, :]
    tl.store(partial_ptr + place, dw, mask=(n < dim)[:, None] & (k < K)[None, :])


@triton.jit
def _patch_embed_bwd_image_kernel(
    grad_ptr,  # [batch, tokens, dim], dL/dy, any strides
    weight_ptr,  # [dim, K]
    image_ptr,  # [batch, CHANNELS, height, width], dL/dx is written here
    rows, patches, columns, dim,  # batch * patches; patches across an image
    stride_gb, stride_gt, stride_gn, stride_ib, stride_ic, stride_ih, stride_iw,
    CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
    HAS_CLASS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    K: tl.constexpr = CHANNELS * PATCH_H * PATCH_W
    TILES: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    m = tl.program_id(0) // TILES * BLOCK_M + tl.arange(0, BLOCK_M)  # patches of all images
    k = tl.program_id(0) % TILES * BLOCK_K + tl.arange(0, BLOCK_K)
    item, patch, here = m // patches, m % patches, (m < rows)[:, None]
    token = patch + 1 if HAS_CLASS else patch
    grad_ptr += (item.to(tl.int64) * stride_gb + token.to(tl.int64) * stride_gt)[:, None]

    dx = tl.zeros([BLOCK_M, BLOCK_K], DTYPE)
    for first in range(0, dim, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        gs = grad_ptr + n.to(tl.int64)[None, :] * stride_gn
        g = tl.load(gs, mask=here & (n < dim)[None, :], other=0.0)  # [BLOCK_M, BLOCK_N]
        ws = weight_ptr + n.to(tl.int64)[:, None] * K + k[None, :]
        w = tl.load(ws, mask=(n < dim)[:, None] & (k < K)[None, :], other=0.0)  # [BLOCK_N, BLOCK_K]
        dx += tl.dot(g, w, input_precision=PRECISION)  # [BLOCK_M, BLOCK_K]

    corner = _corner(item, patch, columns, stride_ib, stride_ih, stride_iw, PATCH_H, PATCH_W)
    within = _within(k, stride_ic, stride_ih, stride_iw, PATCH_H, PATCH_W)
    pixels = image_ptr + corner[:, None] + within[None, :]
    tl.store(pixels, dx, mask=here & (k < K)[None, :])


@triton.jit
def _patch_embed_bwd_token_kernel(
    grad_ptr,  # [batch, tokens, dim], dL/dy, any strides
    partial_ptr,  # [parts, tokens, dim], of its sum over images
    batch, tokens, dim, steps,  # images for each part
    stride_gb, stride_gt, stride_gn,
    DTYPE: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(dim, COLUMNS)
    t = (tl.program_id(0) // tiles * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    n = (tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    mine = (t < tokens)[:, None] & (n < dim)[None, :]
    grad_ptr += t[:, None] * stride_gt + n[None, :] * stride_gn
    total = tl.zeros([TOKENS, COLUMNS], DTYPE)
    for step in range(steps):
        item = part * steps + step
        g = tl.load(grad_ptr + item * stride_gb, mask=mine & (item < batch), other=0.0)
        total += g.to(DTYPE)  # [TOKENS, COLUMNS]
    tl.store(partial_ptr + (part * tokens + t[:, None]) * dim + n[None, :], total, mask=mine)


def split(count: int, programs: int) -> tuple[int, int]:
    """Into how many parts to split a sum of ``count`` steps, and how many each part has.

    Args:
        count: If there is none, one part adds up nothing, and writes zeros.
        programs: How many programs there would be without.
    """
    parts = max(1, min(count, PROGRAMS // programs))
    steps: int = triton.cdiv(count, parts)
    return triton.cdiv(count, steps) if steps else 1, steps  # no part is empty


def weight_gradient(grad: Tensor, images: Tensor, weight: Tensor, has_class: bool) -> Tensor:
    """dL/dW, of the shape of ``weight``, in float32 at least."""
    dim, numbers = len(weight), weight[0].numel()
    config = tiles(WEIGHT_CONFIGS, images, dim, numbers)
    patches = grad.shape[1] - has_class
    rows = len(images) * patches
    programs = triton.cdiv(dim, config.BLOCK_N) * triton.cdiv(numbers, config.BLOCK_K)
    parts, steps = split(triton.cdiv(rows, config.BLOCK_M), programs)
    partial = grad.new_empty(parts, *weight.shape, dtype=wide_dtype(grad.dtype))
    _patch_embed_bwd_weight_kernel[(programs, parts)](
        grad, images, partial, rows, patches, images.shape[3] // weight.shape[3], dim, steps,
        *grad.stride(), *images.stride(), HAS_CLASS=has_class,
        **common(images, weight), **config._asdict(),
    )  # fmt: skip
    return partial.sum(0)


def image_gradient(grad: Tensor, images: Tensor, weight: Tensor, has_class: bool) -> Tensor:
    """dL/dx, of the shape and type of ``images``, contiguous."""
    dim, numbers = len(weight), weight[0].numel()
    config = tiles(IMAGE_CONFIGS, images, dim, numbers)
    patches = grad.shape[1] - has_class
    rows = len(images) * patches
    dimage = images.new_empty(images.shape)
    grid = (triton.cdiv(rows, config.BLOCK_M) * triton.cdiv(numbers, config.BLOCK_K),)
    if rows:
        _patch_embed_bwd_image_kernel[grid](
            grad, weight, dimage, rows, patches, images.shape[3] // weight.shape[3], dim,
            *grad.stride(), *dimage.stride(), HAS_CLASS=has_class,
            **common(images, weight), **config._asdict(),
        )  # fmt: skip
    return dimage


def token_gradient(grad: Tensor) -> Tensor:
    """The sum of dL/dy over images, ``[tokens, dim]``, in float32 at least."""
    batch, tokens, dim = grad.shape
    programs = triton.cdiv(tokens, TOKENS) * triton.cdiv(dim, COLUMNS)
    parts, steps = split(batch, programs)
    partial = grad.new_empty(parts, tokens, dim, dtype=wide_dtype(grad.dtype))
    _patch_embed_bwd_token_kernel[(programs, parts)](
        grad, partial, batch, tokens, dim, steps, *grad.stride(),
        DTYPE=tl.float64 if grad.dtype == torch.float64 else tl.float32,
        TOKENS=TOKENS, COLUMNS=COLUMNS, num_warps=4, num_stages=3,
    )  # fmt: skip
    return partial.sum(0)


class _PatchEmbedding(torch.autograd.Function):
    """Both passes."""

    @staticmethod
    def forward(ctx, images, weight, bias, position, class_token):
        ctx.save_for_backward(images, weight)
        ctx.has_class = class_token is not None
        return embed(images, weight, bias, position, class_token)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        images, weight = ctx.saved_tensors
        gradients = [None] * 5
        if ctx.needs_input_grad[0]:
            gradients[0] = image_gradient(grad, images, weight, ctx.has_class)
        if ctx.needs_input_grad[1]:
            gradients[1] = weight_gradient(grad, images, weight, ctx.has_class).to(weight.dtype)
        if any(ctx.needs_input_grad[2:]):
            total = token_gradient(grad)
            sums = total[int(ctx.has_class) :].sum(0), total, total[0]
            gradients[2:] = [
                each.to(weight.dtype) if needed else None
                for each, needed in zip(sums, ctx.needs_input_grad[2:], strict=True)
            ]
        return tuple(gradients)


def patch_embedding(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    class_token: Tensor | None,
) -> Tensor:
    """Patch embedding, differentiable once.

    Args:
        images: ``[batch, channels, height, width]``, any strides; float32, float16 or
            bfloat16, and interpreted float64 as well.
        weight: ``[dim, channels, patch_height, patch_width]``.
        bias: ``[dim]``, or ``None``.
        position: ``[tokens, dim]``, or ``None``.
        class_token: ``[dim]``, or ``None``.

    Returns:
        ``[batch, tokens, dim]``, of the type of ``images``.
    """
    dtype = images.dtype
    given = [images, weight, bias, position, class_token]
    if INTERPRETED and dtype == torch.bfloat16:  # NumPy has none
        given = [None if tensor is None else tensor.float() for tensor in given]
    given[1:] = [None if tensor is None else tensor.contiguous() for tensor in given[1:]]
    output: Tensor = _PatchEmbedding.apply(*given)
    return output.to(dtype)


def shipped() -> Iterator[Shipped]:
    """Each kernel of the backward pass as its launcher calls it, for each architecture."""
    yield from compilations(_patch_embed_bwd_weight_kernel, WEIGHT_CONFIGS)
    yield from compilations(_patch_embed_bwd_image_kernel, IMAGE_CONFIGS)
    any_size = dict.fromkeys((2, 4), Config(16, 16, 16, num_warps=4, num_stages=3))
    yield from compilations(
        _patch_embed_bwd_token_kernel, dict.fromkeys(ARCHITECTURES, any_size),
        TOKENS=TOKENS, COLUMNS=COLUMNS,
    )  # fmt: skip
