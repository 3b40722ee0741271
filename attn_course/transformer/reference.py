"""Layer normalisation and add & norm in plain PyTorch, in the order of the chapter's equations.

These are the oracles that everything else is held against.
"""

from __future__ import annotations

from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Give each row mean 0 and variance 1, then scale and shift its columns.

    Args:
        x: ``[..., dim]``.
        weight: The scale of each column, ``[dim]``.
        bias: The shift of each column, ``[dim]``, or ``None`` for none.
        eps: Added to the variance.

    Returns:
        A tensor of the shape of ``x``.

    Reference:
        Ba, Kiros and Hinton (2016), Layer normalization, equation 4.
    """
    mean = x.mean(-1, keepdim=True)  # [..., 1]
    centred = x - mean
    variance = centred.square().mean(-1, keepdim=True)  # [..., 1]
    scaled = centred / (variance + eps).sqrt() * weight
    return scaled if bias is None else scaled + bias


def add_norm(
    x: Tensor, update: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Layer-normalise the sum of a residual connection.

    Args:
        x: What went into the sublayer, ``[..., dim]``.
        update: What came out of it, of the same shape.
        weight: ``[dim]``.
        bias: ``[dim]``, or ``None``.
        eps: Added to the variance.

    Returns:
        LayerNorm(x + update), and x + update.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.1.
    """
    total = x + update
    return layer_norm(total, weight, bias, eps), total
