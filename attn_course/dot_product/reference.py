"""Dot-product attention in plain PyTorch, in the order of the chapter's equations.

``dot_product_attention`` is the oracle that everything else is held against. It stores
every weight.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from attn_course.scoring import masked_softmax


def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | Tensor,
    allowed: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Average the values, weighted by softmax(scale * query . key).

    Args:
        query: ``[..., query_len, dim]``.
        key: ``[..., key_len, dim]``.
        value: ``[..., key_len, value_dim]``.
        scale: What the dot products are multiplied by.
        allowed: Booleans that broadcast to ``[..., query_len, key_len]``.
        dropout_p: Probability with which a weight is dropped.

    Returns:
        The output ``[..., query_len, value_dim]`` and the weights before dropout,
        ``[..., query_len, key_len]``.

    Reference:
        Vaswani et al. (2017), equation 1.
    """
    scores = (query * scale) @ key.mT
    weights = masked_softmax(scores, mask=allowed, impl="reference")
    kept = F.dropout(weights, dropout_p) if dropout_p else weights
    return kept @ value, weights
