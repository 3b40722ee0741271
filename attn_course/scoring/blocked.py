"""Additive attention in PyTorch, a block of queries at a time.

The plain form stores tanh(q_i + k_j), a number for each query, key and hidden unit, and
keeps it for the backward pass. Queries do not see each other, so a block of them can be
answered alone, and the backward pass can compute its tanh again: memory is that of one
block, whatever the number of queries. Where there is no GPU this takes the kernel's place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_course._masks import combine
from attn_course.scoring.reference import masked_softmax

#: How many hidden numbers are held at a time, or those of one query, if that is more.
BLOCK_ELEMENTS = 1 << 18


def additive_attention_blocked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    lens: Tensor | None = None,
    mask: Tensor | None = None,
    block_elements: int | None = None,
) -> Tensor:
    """The output of ``reference.additive_attention``, a block of queries at a time.

    Args:
        query: Projected queries, ``[..., query_len, hidden]``.
        key: Projected keys, ``[..., key_len, hidden]``.
        value: ``[..., key_len, value_dim]``.
        weight: ``[hidden]``.
        lens: How many leading keys count; broadcasts to ``[..., query_len]``.
        mask: ``True`` = may attend; broadcasts to ``[..., query_len, key_len]``.
        block_elements: How many hidden numbers to hold; ``BLOCK_ELEMENTS`` by default.

    Returns:
        ``[..., query_len, value_dim]``.

    Reference:
        Bahdanau et al. (2015), appendix A.1.2, for the scores.

    Example:
        >>> query, key = torch.tensor([[0.0], [9.0]]), torch.tensor([[0.0], [0.0]])
        >>> additive_attention_blocked(query, key, torch.tensor([[1.0], [3.0]]), torch.ones(1))
        tensor([[2.],
                [2.]])
    """
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    of_a_query = batch.numel() * key.shape[-2] * key.shape[-1]
    rows = max(1, (block_elements or BLOCK_ELEMENTS) // max(1, of_a_query))
    output: Tensor = _Blocked.apply(query, key, value, weight, lens, mask, rows)
    return output


class _Block(NamedTuple):
    """Some queries: where they are, tanh(q + k), and their weights."""

    here: slice
    hidden: Tensor  # [..., rows, key_len, hidden]
    weights: Tensor  # [..., rows, key_len]


def _blocks(
    query: Tensor, key: Tensor, weight: Tensor, lens: Tensor | None, mask: Tensor | None, rows: int
) -> Iterator[_Block]:
    for start in range(0, query.shape[-2], rows):
        here = slice(start, start + rows)
        some_lens = lens if lens is None or lens.shape[-1] == 1 else lens[..., here]
        some_mask = mask if mask is None or mask.shape[-2] == 1 else mask[..., here, :]
        hidden = (query[..., here, :].unsqueeze(-2) + key.unsqueeze(-3)).tanh_()
        scores = hidden @ weight
        allowed = combine(some_lens, some_mask, key.shape[-2])
        if allowed is not None:  # whose leading dimensions may be more than the scores'
            scores = scores.expand(torch.broadcast_shapes(scores.shape, allowed.shape))
        yield _Block(here, hidden, masked_softmax(scores, allowed))


class _Blocked(torch.autograd.Function):
    """Blocks one after the other, forward and backward, each written where it belongs."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        weight: Tensor,
        lens: Tensor | None,
        mask: Tensor | None,
        rows: int,
    ) -> Tensor:
        batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        output = query.new_empty(*batch, query.shape[-2], value.shape[-1])
        for block in _blocks(query, key, weight, lens, mask, rows):
            output[..., block.here, :] = block.weights @ value
        ctx.save_for_backward(query, key, value, weight, lens, mask)
        ctx.rows = rows
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weight, lens, mask = ctx.saved_tensors
        dquery, dkey, dvalue, dweight = (
            torch.zeros_like(tensor) for tensor in (query, key, value, weight)
        )
        for here, hidden, weights in _blocks(query, key, weight, lens, mask, ctx.rows):
            g = grad[..., here, :]
            dvalue += (weights.mT @ g).sum_to_size(value.shape)
            slope = g @ value.mT  # dL/dp, then dL/ds: [..., rows, key_len]
            slope = weights * (slope - (weights * slope).sum(-1, keepdim=True))
            slope = slope.sum_to_size(hidden.shape[:-1])
            dweight += slope.flatten() @ hidden.flatten(0, -2)
            # tanh' = 1 - tanh^2, where tanh was: [..., rows, key_len, hidden]
            change = hidden.square_().neg_().add_(1).mul_(slope.unsqueeze(-1))
            dquery[..., here, :] = change.sum(-2).sum_to_size(query[..., here, :].shape)
            dkey += change.sum(-3).sum_to_size(key.shape)
        return dquery * weight, dkey * weight, dvalue, dweight, None, None, None
