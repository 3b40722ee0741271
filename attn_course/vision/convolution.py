"""Attention that acts as a convolution: what heads could learn, written down."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course._precision import wide_dtype
from attn_course._validation import check_floating, check_positive, check_together
from attn_course.dot_product import dot_product_attention
from attn_course.vision.ops import check_images


@overload
def attention_convolution(
    images: Tensor, weight: Tensor, *, sharpness: float, need_weights: Literal[False] = ...
) -> Tensor: ...


@overload
def attention_convolution(
    images: Tensor, weight: Tensor, *, sharpness: float, need_weights: Literal[True]
) -> tuple[Tensor, Tensor]: ...


def attention_convolution(
    images: Tensor, weight: Tensor, *, sharpness: float, need_weights: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve by multi-head attention over pixels, one head for each weight of the window.

    Head h has an offset Delta_h, one place in the window. Its score for two pixels that are
    delta apart depends on nothing else:

        score_h = -sharpness |delta - Delta_h|^2
                = sharpness (2 Delta_h . delta - |delta|^2) + what all keys share

    The sharper, the more of the weight lies on the pixel at Delta_h, which the head's own
    output map multiplies by the convolution's weight there; heads are added, as always. Pixels
    are surrounded by zeros that can be attended to: that is the convolution's padding.

    Args:
        images: ``[batch, channels, height, width]``.
        weight: A convolution's, ``[out_channels, channels, window_height, window_width]``,
            both odd.
        sharpness: Above 0. From about 20 on, float32 has no weight left for other pixels
            that matters; at 1, heads see a blurred window.
        need_weights: Return the weights as well.

    Returns:
        ``[batch, out_channels, height, width]``: in the limit ``conv2d`` with as much zero
        padding as keeps the size. With ``need_weights`` also the weights of each head, the
        same for all images, ``[batch, heads, height * width, padded_height * padded_width]``.

    Raises:
        TypeError: A tensor does not hold floating-point numbers, or ``sharpness`` is no
            number.
        ValueError: A shape or a number is out of place.

    Reference:
        Cordonnier, Loukas and Jaggi (2020), On the relationship between self-attention and
        convolutional layers, theorem 1 and lemma 2.

    Example:
        >>> from torch.nn import functional as F
        >>> images, weight = torch.rand(1, 2, 5, 6), torch.rand(4, 2, 3, 3)
        >>> ours = attention_convolution(images, weight, sharpness=50.0)
        >>> torch.allclose(ours, F.conv2d(images, weight, padding=1), atol=1e-5)
        True
    """
    check_images(images)
    check_floating("weight", weight)
    if weight.ndim != 4 or weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        raise ValueError(
            "weight must have shape [out_channels, channels, window_height, window_width], the "
            f"last two odd, got {list(weight.shape)}."
        )
    if images.shape[1] != weight.shape[1]:
        raise ValueError(
            f"images must have {weight.shape[1]} channels, as weight has, got {images.shape[1]}."
        )
    check_together(images=images, weight=weight)
    if isinstance(sharpness, Tensor):
        raise TypeError("sharpness must be a number, got a tensor.")
    check_positive("sharpness", sharpness)

    height, width = images.shape[2:]
    up, left = weight.shape[2] // 2, weight.shape[3] // 2
    wide = wide_dtype(images.dtype)

    def places(rows: range, columns: range) -> Tensor:
        """Every row with every column, ``[count, 2]``."""
        pairs = [(row, column) for row in rows for column in columns]
        return torch.tensor(pairs, dtype=wide, device=images.device).view(-1, 2)

    pixels = places(range(height), range(width))
    keys = places(range(-up, height + up), range(-left, width + left))
    offsets = places(range(-up, up + 1), range(-left, left + 1))  # [heads, 2]
    # |delta - Delta|^2 = |k - a|^2 with a = q + Delta. |a|^2 is the same for all keys; what is
    # left, 2 a . k - |k|^2, is the dot product of (2 a, -1) and (k, |k|^2).
    aims = pixels + offsets[:, None]  # [heads, pixels, 2]
    query = torch.cat([2 * aims, -torch.ones_like(aims[..., :1])], -1)
    key = torch.cat([keys, keys.square().sum(-1, keepdim=True)], -1)
    values = F.pad(images.to(wide), (left, left, up, up)).flatten(2).mT  # [batch, keys, channels]
    found: Any = dot_product_attention(
        query, key, values.unsqueeze(1), scale=float(sharpness), need_weights=need_weights
    )
    answers, weights = found if need_weights else (found, None)
    # Each head's answer times its own slice of the output map, and the sum of heads.
    output = torch.einsum("bhqc,och->boq", answers, weight.flatten(2).to(wide))
    output = output.unflatten(2, (height, width)).to(images.dtype)
    return output if weights is None else (output, weights)
