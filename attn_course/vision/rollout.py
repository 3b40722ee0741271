"""What the weights of a whole stack say: rollout through the layers, and distance."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_course._validation import check_floating
from attn_course.vision.ops import Size, as_pair


def attention_rollout(weights: Tensor, *, residual: float = 0.5) -> Tensor:
    """How much of each token's input is in each output, if layers only averaged.

    A layer with its way around is read as ``A' = (1 - residual) mean_heads(A) + residual I``; one
    after the other they are ``A'_L ... A'_2 A'_1``, the first layer on the right. Value maps,
    feed-forward networks and norms are left out: what is drawn is attention's routing, not
    what the model makes of it.

    Args:
        weights: Of every layer, ``[batch, layers, heads, tokens, tokens]``.
        residual: The share of the way around, in [0, 1].

    Returns:
        ``[batch, tokens, tokens]``; each row sums to 1.

    Raises:
        TypeError: ``weights`` does not hold floating-point numbers.
        ValueError: A shape or a number is out of place.

    Reference:
        Abnar and Zuidema (2020), Quantifying attention flow in transformers, section 3.

    Example:
        >>> weights = torch.rand(1, 3, 2, 5, 5).softmax(-1)
        >>> rollout = attention_rollout(weights)
        >>> torch.allclose(rollout.sum(-1), torch.ones(1, 5))
        True
    """
    layers = _mean_of_heads(weights, residual)
    identity = torch.eye(weights.shape[-1], dtype=layers.dtype, device=weights.device)
    rollout = identity.expand(len(weights), -1, -1)
    for layer in layers.unbind(1):
        rollout = (1 - residual) * layer @ rollout + residual * rollout
    return rollout.to(weights.dtype)


def class_rollout(weights: Tensor, *, residual: float = 0.5) -> Tensor:
    """The first token's row of ``attention_rollout``, without the other rows.

    From the last layer down it is a vector times a matrix for each layer: ``tokens^2`` products
    rather than ``tokens^3``. A model that answers from the mean of its tokens has no such row; the
    mean of all rows, ``attention_rollout(weights).mean(1)``, stands for its answer.

    Args:
        weights: ``[batch, layers, heads, tokens, tokens]``.
        residual: As in ``attention_rollout``.

    Returns:
        ``[batch, tokens]``, its own share first; the sum is 1.

    Raises:
        TypeError: ``weights`` does not hold floating-point numbers.
        ValueError: A shape or a number is out of place.

    Example:
        >>> weights = torch.rand(1, 3, 2, 5, 5).softmax(-1)
        >>> torch.allclose(class_rollout(weights), attention_rollout(weights)[:, 0])
        True
    """
    layers = _mean_of_heads(weights, residual)
    share = layers.new_zeros(len(weights), 1, weights.shape[-1])
    share[..., :1] = 1
    for layer in layers.flip(1).unbind(1):
        share = (1 - residual) * share @ layer + residual * share
    return share.squeeze(1).to(weights.dtype)


def attention_distance(weights: Tensor, grid: tuple[int, int], patch_size: Size = 1) -> Tensor:
    """How far heads look: the mean distance between a patch and what it reads, by weight.

    From the middle of a patch to the middle of another. A class token lies nowhere: it is
    left out, and what a patch gives to the other patches counts as the whole.

    Args:
        weights: ``[batch, layers, heads, tokens, tokens]``, with as many tokens as patches,
            or one more, the class token, before them.
        grid: Rows and columns of patches.
        patch_size: Of a patch in pixels, one number or (height, width).

    Returns:
        The mean over patches and images in pixels, ``[layers, heads]``. Patches that read
        no patch do not count; it is NaN where there are no others.

    Raises:
        TypeError: ``weights`` does not hold floating-point numbers, or a size is not an
            integer or a pair of them.
        ValueError: A shape is out of place.

    Reference:
        Dosovitskiy et al. (2021), An image is worth 16x16 words, figure 7.

    Example:
        >>> own = torch.eye(4).expand(1, 1, 1, 4, 4)  # each patch reads itself
        >>> attention_distance(own, (2, 2)), attention_distance(own.flip(-1), (2, 2))
        (tensor([[0.]]), tensor([[1.4142]]))
    """
    rows, columns = as_pair("grid", grid)
    height, width = as_pair("patch_size", patch_size)
    exact = _exact(weights)
    extra = weights.shape[-1] - rows * columns
    if extra not in (0, 1):
        raise ValueError(
            f"weights must be of {rows * columns} tokens, for a grid of {rows} x {columns}, or of "
            f"one more with a class token, got {weights.shape[-1]}."
        )
    exact = exact[..., extra:, extra:]
    places = torch.cartesian_prod(
        torch.arange(rows, device=weights.device) * height,
        torch.arange(columns, device=weights.device) * width,
    ).to(exact.dtype)  # [patches, 2]
    apart = (places[:, None] - places).square().sum(-1).sqrt()  # [patches, patches]
    distance = (exact * apart).sum(-1) / exact.sum(-1)  # [batch, layers, heads, patches]
    return distance.nanmean((0, 3)).to(weights.dtype)


def _mean_of_heads(weights: Tensor, residual: float) -> Tensor:
    """``[batch, layers, tokens, tokens]``, half precision as float32."""
    exact = _exact(weights)
    if (
        isinstance(residual, bool)
        or not isinstance(residual, int | float)
        or not 0 <= residual <= 1
    ):
        raise ValueError(f"residual must be a number in [0, 1], got {residual!r}.")
    return exact.mean(2)


def _exact(weights: Tensor) -> Tensor:
    """The checked weights, half precision as float32."""
    check_floating("weights", weights)
    if weights.ndim != 5 or weights.shape[-1] != weights.shape[-2] or 0 in weights.shape[1:]:
        raise ValueError(
            "weights must have shape [batch, layers, heads, tokens, tokens], got "
            f"{list(weights.shape)}."
        )
    return weights.float() if weights.dtype.itemsize < 4 else weights
