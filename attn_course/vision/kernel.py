r"""Patch embedding on the GPU, a matrix product whose left matrix is never made: forward.

Dosovitskiy et al. (2021), equation 1. An image of C channels is cut into patches of P x Q
pixels, each a vector x of K = C P Q numbers. Token t of image b is

    y_bt = W x_bt + b + p_t        and, if there is a class token c,        y_b0 = c + p_0,

the patches then being tokens 1, 2, ... Over all tokens that is a product of a matrix X, a
patch in each row, and W^T. One could write X down and multiply (reshape + linear): that is
the image once more, written and read. Here X is *implicit*: a tile of it is read from where
its pixels lie. Its address is a sum of two parts, one of the row and one of the column,

    address(X[m, k]) = corner(patch m) + within(k),
    corner = b s_b + P (patch // columns) s_h + Q (patch mod columns) s_w,
    within = (k // PQ) s_c + (k // Q mod P) s_h + (k mod Q) s_w,

for an image with strides s, whatever they are. Within a row of a patch neighbours in k are
neighbours in memory: Q numbers at a time are read as one.

Everything that comes after the product is done while its tile is still in registers, the
*epilogue*: bias, position, and the class token. The rows of the product are tokens, not
patches, so that a class token has a row, too: it reads no pixels, and the epilogue puts c in
the place of the bias. One row in 1 + patches is worked out for nothing, which is less than
a launch of its own would take; and no row is written twice.

Grid: one axis, tiles of BLOCK_N columns of the output within tiles of BLOCK_M tokens, so
that programs that read the same pixels run at the same time and find them in the cache.
Each loops over K in steps of BLOCK_K, a constant. Saved for the backward pass: nothing but
the inputs.

Moved, in numbers, with B images of M patches and D columns: B M K pixels and K D weights
read, B M D written. Reshape + linear, concatenation and addition: 3 B M K, and 5 B M D; a
convolution in place of the first two, B M K and 5 B M D. FLOPs: 2 B M K D, and a few for each
number of the output: for color patches of 16 x 16 and 768 columns about 770 a number moved, so
that tensor cores decide and not the memory; for gray ones of 2 x 2 and 48 columns, 7.

Precision: products of half-precision numbers on tensor cores, added up in float32; float32
products in float32 ("ieee", no tensor core) unless torch.set_float32_matmul_precision allows
less, and then in TF32. Bias and position are added in float32, and the sum is rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

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
    raise ImportError(f"attn_course.vision.kernel needs triton: {REASON}.")


class Config(NamedTuple):
    """How large tiles are, and who works on them."""

    BLOCK_M: int  # tokens
    BLOCK_N: int  # columns of the output
    BLOCK_K: int  # numbers of a patch
    num_warps: int
    num_stages: int


# Architecture -> bytes of a number -> tiles.
Configs: TypeAlias = dict[int, dict[int, Config]]

# Chosen so that they fit shared memory and registers; not yet tuned on a GPU.
CONFIGS: Configs = {
    75: {2: Config(32, 32, 32, 4, 2), 4: Config(32, 32, 16, 4, 2)},
    80: {2: Config(128, 128, 32, 8, 3), 4: Config(64, 64, 32, 4, 3)},
    90: {2: Config(128, 128, 64, 8, 3), 4: Config(64, 64, 32, 4, 3)},
}
INTERPRETED_CONFIG = Config(16, 16, 16, 4, 1)


# The teaching path: two addresses, and the kernel that adds them.
@triton.jit
def _corner(
    item, patch, columns, stride_ib, stride_ih, stride_iw,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
):  # fmt: skip
    """Where a patch begins in the batch of images."""
    down, across = patch // columns * PATCH_H, patch % columns * PATCH_W
    down, across = down.to(tl.int64) * stride_ih, across.to(tl.int64) * stride_iw
    return item.to(tl.int64) * stride_ib + down + across


@triton.jit
def _within(k, stride_ic, stride_ih, stride_iw, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr):
    """Where number k of a patch lies, from where it begins: channel by channel, row by row."""
    down, across = k // PATCH_W % PATCH_H, k % PATCH_W
    down, across = down.to(tl.int64) * stride_ih, across.to(tl.int64) * stride_iw
    return (k // (PATCH_H * PATCH_W)).to(tl.int64) * stride_ic + down + across


@triton.jit
def _patch_embed_fwd_kernel(
    image_ptr,  # [batch, CHANNELS, height, width], any strides
    weight_ptr,  # [dim, K], K = CHANNELS * PATCH_H * PATCH_W
    bias_ptr,  # [dim]
    position_ptr,  # [tokens, dim]
    class_ptr,  # [dim]
    output_ptr,  # [batch, tokens, dim]
    rows, tokens, columns, dim,  # batch * tokens; patches across an image
    stride_ib, stride_ic, stride_ih, stride_iw,
    CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_CLASS: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    K: tl.constexpr = CHANNELS * PATCH_H * PATCH_W
    tiles_n = tl.cdiv(dim, BLOCK_N)
    m = tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)  # my rows: tokens
    n = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)  # my columns
    token = m % tokens
    patch = token - 1 if HAS_CLASS else token  # -1: no patch, the class token
    item, inside = m // tokens, n < dim
    corner = _corner(item, patch, columns, stride_ib, stride_ih, stride_iw, PATCH_H, PATCH_W)
    image_ptr += corner[:, None]
    weight_ptr += n.to(tl.int64)[None, :] * K
    has_pixels = (m < rows) & (patch >= 0)

    y = tl.zeros([BLOCK_M, BLOCK_N], DTYPE)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        pixels = image_ptr + _within(k, stride_ic, stride_ih, stride_iw, PATCH_H, PATCH_W)[None, :]
        # [BLOCK_M, BLOCK_K] and [BLOCK_K, BLOCK_N]
        x = tl.load(pixels, mask=has_pixels[:, None] & (k < K)[None, :], other=0.0)
        w = tl.load(weight_ptr + k[:, None], mask=(k < K)[:, None] & inside[None, :], other=0.0)
        y += tl.dot(x, w, input_precision=PRECISION)

    if HAS_BIAS:
        y += tl.load(bias_ptr + n, mask=inside, other=0.0).to(DTYPE)[None, :]  # [BLOCK_N]
    if HAS_CLASS:
        c = tl.load(class_ptr + n, mask=inside, other=0.0).to(DTYPE)  # [BLOCK_N]
        y = tl.where((patch < 0)[:, None], c[None, :], y)
    mine = (m < rows)[:, None] & inside[None, :]
    if HAS_POSITION:
        place = token.to(tl.int64)[:, None] * dim + n[None, :]
        y += tl.load(position_ptr + place, mask=mine, other=0.0).to(DTYPE)  # [BLOCK_M, BLOCK_N]
    tl.store(output_ptr + m.to(tl.int64)[:, None] * dim + n[None, :], y, mask=mine)


def tiles(configs: Configs, images: Tensor, dim: int, numbers: int) -> Config:
    """The tiles for some images on their device, no wider than what they are for."""
    if INTERPRETED:
        return fit(INTERPRETED_CONFIG, dim, numbers)
    return fit(configs[architecture(images.device)][images.element_size()], dim, numbers)


def fit(config: Config, dim: int, numbers: int) -> Config:
    """Tiles for so many columns of the output and numbers of a patch; a product needs 16."""
    narrow = max(16, triton.next_power_of_2(dim)), max(16, triton.next_power_of_2(numbers))
    return config._replace(
        BLOCK_N=min(config.BLOCK_N, narrow[0]), BLOCK_K=min(config.BLOCK_K, narrow[1])
    )


def common(images: Tensor, weight: Tensor) -> dict[str, Any]:
    """The options that all products share."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "CHANNELS": weight.shape[1],
        "PATCH_H": weight.shape[2],
        "PATCH_W": weight.shape[3],
        "DTYPE": tl.float64 if images.dtype == torch.float64 else tl.float32,
        "PRECISION": "ieee" if exact or images.dtype != torch.float32 else "tf32",
    }


def embed(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    class_token: Tensor | None,
) -> Tensor:
    """Launch the forward kernel.

    Args:
        images: ``[batch, channels, height, width]``, any strides.
        weight: ``[dim, channels, patch_height, patch_width]``; from here on contiguous.
        bias: ``[dim]``, or ``None``.
        position: ``[tokens, dim]``, or ``None``.
        class_token: ``[dim]``, or ``None``.

    Returns:
        ``[batch, tokens, dim]``.
    """
    batch, dim = len(images), len(weight)
    down, columns = images.shape[2] // weight.shape[2], images.shape[3] // weight.shape[3]
    tokens = down * columns + (class_token is not None)
    output = images.new_empty(batch, tokens, dim)
    config = tiles(CONFIGS, images, dim, weight[0].numel())
    grid = (triton.cdiv(batch * tokens, config.BLOCK_M) * triton.cdiv(dim, config.BLOCK_N),)
    optional = (weight if tensor is None else tensor for tensor in (bias, position, class_token))
    if batch:
        _patch_embed_fwd_kernel[grid](
            images, weight, *optional, output, batch * tokens, tokens, columns, dim,
            *images.stride(), HAS_BIAS=bias is not None, HAS_POSITION=position is not None,
            HAS_CLASS=class_token is not None, **common(images, weight), **config._asdict(),
        )  # fmt: skip
    return output


def compilations(kernel: Any, configs: Configs, **more: int) -> Iterator[Shipped]:
    """A kernel of this package as its launcher calls it, for each architecture.

    Two shapes, the paper's base model and digits, and between them every option. On 75 the
    second one alone: there, no tensor core works.

    Args:
        kernel: A ``@triton.jit`` function.
        configs: Its tiles.
        more: Constants that only it has.
    """
    shapes = (((3, 16, 16), 768, True), ((1, 2, 2), 48, False))
    for arch in ARCHITECTURES:
        for size, config in configs[arch].items():
            for patch, dim, full in shapes[1:] if arch == 75 else shapes:
                number = {2: "bf16" if arch >= 80 else "fp16", 4: "fp32"}[size]
                fitted = fit(config, dim, patch[0] * patch[1] * patch[2])._asdict()
                options = {name: fitted.pop(name) for name in ("num_warps", "num_stages")}
                constexprs: dict[str, Any] = dict(
                    zip(("CHANNELS", "PATCH_H", "PATCH_W"), patch, strict=True)
                )
                constexprs |= dict.fromkeys(("HAS_BIAS", "HAS_POSITION"), full)
                constexprs |= {"HAS_CLASS": full or arch == 75, "DTYPE": tl.float32, **fitted}
                constexprs["PRECISION"] = "tf32" if size == 4 and full else "ieee"
                # Triton makes a constant of a stride that is 1, as that of a row of pixels is.
                constexprs |= {"stride_iw": 1, "stride_gn": 1, **more}
                constexprs = {n: c for n, c in constexprs.items() if n in kernel.arg_names}
                types = {"partial_ptr": "*fp32"} | dict.fromkeys(constexprs, "constexpr")
                signature = {
                    name: types.get(name, f"*{number}" if name.endswith("_ptr") else "i32")
                    for name in kernel.arg_names
                }
                yield Shipped(kernel, arch, signature, constexprs, options)


def shipped() -> Iterator[Shipped]:
    """The forward kernel as the launcher calls it, for each architecture."""
    yield from compilations(_patch_embed_fwd_kernel, CONFIGS)
