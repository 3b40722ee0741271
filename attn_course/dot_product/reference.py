"""Dot-product attention in plain PyTorch, in the order of the chapter's equations.

``dot_product_attention`` is the oracle that everything else is held against. It stores
every weight. The functions before it say what its options mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.scoring import masked_softmax


def in_sight(
    query_len: int, key_len: int, low: int | None, high: int | None, device: torch.device
) -> Tensor:
    """Whether query i may see key j: i + low <= j <= i + high. ``[query_len, key_len]``."""
    ahead = _ahead(query_len, key_len, device)
    seen = torch.ones_like(ahead, dtype=torch.bool)
    if low is not None:
        seen = seen & (ahead >= low)
    return seen if high is None else seen & (ahead <= high)


def distance_bias(slopes: Tensor, query_len: int, key_len: int, offset: int) -> Tensor:
    """What is added to the scores of each head: -slope |i + offset - j|.

    Args:
        slopes: ``[heads]``.
        query_len: Number of queries.
        key_len: Number of keys.
        offset: The position of the first query.

    Returns:
        ``[heads, query_len, key_len]``.

    Reference:
        Press et al. (2022), Train short, test long (ALiBi), section 3.
    """
    distance = (_ahead(query_len, key_len, slopes.device) - offset).abs()
    return -slopes[:, None, None] * distance


def _ahead(query_len: int, key_len: int, device: torch.device) -> Tensor:
    """How far key j is ahead of query i, j - i: ``[query_len, key_len]``."""
    i, j = torch.arange(query_len, device=device), torch.arange(key_len, device=device)
    return j - i[:, None]


def scores(query: Tensor, key: Tensor, scale: float | Tensor, bias: Tensor | None = None) -> Tensor:
    """Dot products times the scale, plus the bias: ``[..., query_len, key_len]``."""
    products = (query * scale) @ key.mT
    return products if bias is None else products + bias


def log_sum_exp(scores: Tensor, allowed: Tensor | None = None) -> Tensor:
    """The log of the sum of exp(score) over the keys that count, ``[..., query_len]``."""
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.logsumexp(-1)


def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | Tensor,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Average the values, weighted by softmax(scale * query . key + bias).

    Args:
        query: ``[..., query_len, dim]``.
        key: ``[..., key_len, dim]``.
        value: ``[..., key_len, value_dim]``.
        scale: What the dot products are multiplied by.
        allowed: Booleans that broadcast to ``[..., query_len, key_len]``.
        bias: Added to the scores; broadcasts likewise.
        dropout_p: Probability with which a weight is dropped.
        kept: Which weights dropout spares, ``[..., query_len, key_len]``; ``None``:
            PyTorch draws them.

    Returns:
        The output ``[..., query_len, value_dim]`` and the weights before dropout,
        ``[..., query_len, key_len]``.

    Reference:
        Vaswani et al. (2017), equation 1.
    """
    weights = masked_softmax(scores(query, key, scale, bias), mask=allowed, impl="reference")
    if not dropout_p:
        return weights @ value, weights
    if kept is None:
        return F.dropout(weights, dropout_p) @ value, weights
    return (weights * kept / (1 - dropout_p)) @ value, weights


def dropout_kept(
    seed: int, dropout_p: float, batch_shape: tuple[int, ...], query_len: int, key_len: int
) -> Tensor:
    """Which weights the kernel's dropout spares.

    No generator with a state decides, but a function of the seed and a counter, (key, query,
    head, 0), where heads are counted through all batch items. So a kernel can ask again in
    its backward pass, in any order. Of the 32 bits, the upper 31 are compared.

    Args:
        seed: In [0, 2^31).
        dropout_p: Probability with which a weight is dropped.
        batch_shape: The leading dimensions.
        query_len: Number of queries.
        key_len: Number of keys.

    Returns:
        Booleans, ``[*batch_shape, query_len, key_len]``.

    Reference:
        Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3; Philox-4x32-10.
    """
    head = torch.arange(math.prod(batch_shape)).reshape(*batch_shape, 1, 1)
    query, key = torch.arange(query_len)[:, None], torch.arange(key_len)
    bits = _philox((key, query, head, torch.tensor(0)), (seed, 0))
    return (bits >> 1) >= min(round(dropout_p * 2**31), 2**31 - 1)


def _philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Tensor:
    """The first of the four words of Philox-4x32-10; int64 that hold 32 bits each."""
    (a, b, c, d), word = counter, 0xFFFFFFFF
    k0, k1 = key
    for _ in range(10):
        high_a, low_a = _product(a, 0xD2511F53)
        high_c, low_c = _product(c, 0xCD9E8D57)
        a, b, c, d = high_c ^ b ^ k0, low_c, high_a ^ d ^ k1, low_a
        k0, k1 = (k0 + 0x9E3779B9) & word, (k1 + 0xBB67AE85) & word
    return a


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of a product of two 32-bit numbers."""
    lower, upper = (x & 0xFFFF) * factor, (x >> 16) * factor  # below 2^48: no overflow
    upper = upper + (lower >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16) | (lower & 0xFFFF)
