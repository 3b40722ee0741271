"""Masked softmax and additive scores in plain PyTorch, in the order of the chapter's equations.

These are the oracles that everything else is held against. They store every weight, and
the additive scores a number for each query, key and hidden unit on the way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_softmax(scores: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax over the keys that count; a row without any is zero.

    Args:
        scores: ``[..., query_len, key_len]``.
        allowed: Booleans that broadcast to the scores; ``None`` for all.

    Returns:
        Weights, ``[..., query_len, key_len]``.
    """
    if allowed is not None:
        scores = torch.where(allowed, scores, -torch.inf)
    weights = scores.softmax(-1)
    # A row without a key or with an infinite score is now NaN, in all columns: one tells,
    # and the sum of what is in [0, 1] otherwise.
    if not bool(weights.detach()[..., 0].sum().isnan()):
        return weights
    # There inf - inf was NaN; the largest finite number takes all the weight just as well.
    scores = scores.clamp(max=torch.finfo(scores.dtype).max)
    closed = scores == -torch.inf
    empty = closed.all(-1, keepdim=True)
    # softmax subtracts the largest score first, and an empty row has none: give it zeros.
    weights = scores.masked_fill(empty, 0).softmax(-1)
    # Zero already but in empty rows. What is filled is cut off from the gradient, too.
    return weights.masked_fill(closed, 0)


def additive_scores(query: Tensor, key: Tensor, weight: Tensor) -> Tensor:
    """Score each pair by a network with one hidden layer: ``w . tanh(q_i + k_j)``.

    Args:
        query: Projected queries, ``[..., query_len, hidden]``.
        key: Projected keys, ``[..., key_len, hidden]``.
        weight: ``[hidden]``.

    Returns:
        Scores, ``[..., query_len, key_len]``.

    Reference:
        Bahdanau et al. (2015), equation in section 3.1 and appendix A.1.2.
    """
    hidden = query.unsqueeze(-2) + key.unsqueeze(-3)  # [..., query_len, key_len, hidden]
    return hidden.tanh() @ weight


def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    allowed: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Average the values, weighted by the softmax of additive scores.

    Args:
        query: Projected queries, ``[..., query_len, hidden]``.
        key: Projected keys, ``[..., key_len, hidden]``.
        value: ``[..., key_len, value_dim]``.
        weight: ``[hidden]``.
        allowed: Booleans that broadcast to ``[..., query_len, key_len]``.
        dropout_p: Probability with which a weight is dropped.

    Returns:
        The output ``[..., query_len, value_dim]`` and the weights before dropout,
        ``[..., query_len, key_len]``.
    """
    weights = masked_softmax(additive_scores(query, key, weight), allowed)
    kept = F.dropout(weights, dropout_p) if dropout_p else weights
    return kept @ value, weights
