"""Patches and their embedding in plain PyTorch, in the order of the chapter's equations.

The oracles that everything else is held against, and the same as a convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def patchify(images: Tensor, patch_height: int, patch_width: int) -> Tensor:
    """Cut images into patches, and lay each of them out as a row.

    Args:
        images: ``[batch, channels, height, width]``.
        patch_height: Divides ``height``.
        patch_width: Divides ``width``.

    Returns:
        ``[batch, patches, channels * patch_height * patch_width]``.
    """
    cut = images.unflatten(3, (-1, patch_width)).unflatten(2, (-1, patch_height))
    # [batch, channels, rows, patch_height, columns, patch_width]: which patch, then what in it
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def patch_embedding(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    class_token: Tensor | None,
) -> Tensor:
    """Embed patches by one linear map.

    Args:
        images: ``[batch, channels, height, width]``.
        weight: ``[embed_dim, channels, patch_height, patch_width]``.
        bias: ``[embed_dim]``, or ``None``.
        position: ``[tokens, embed_dim]``, or ``None``.
        class_token: ``[embed_dim]``, or ``None``.

    Returns:
        ``[batch, tokens, embed_dim]``.

    Reference:
        Dosovitskiy et al. (2021), An image is worth 16x16 words, equation 1.
    """
    patches = patchify(images, *weight.shape[2:])
    return _with_class(F.linear(patches, weight.flatten(1), bias), position, class_token)


def convolution(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    class_token: Tensor | None,
) -> Tensor:
    """The same as a convolution whose windows touch and do not overlap."""
    steps = (weight.shape[2], weight.shape[3])
    maps = F.conv2d(images, weight, bias, stride=steps)  # [batch, embed_dim, rows, columns]
    return _with_class(maps.flatten(2).mT, position, class_token)


def _with_class(x: Tensor, position: Tensor | None, class_token: Tensor | None) -> Tensor:
    """The class token before the patches, and its position added to each."""
    if class_token is not None:
        x = torch.cat([class_token.expand(x.shape[0], 1, -1), x], 1)
    return x if position is None else x + position
