"""Attention to few keys in PyTorch, a tile of queries at a time.

A query's scores against all slots fit in a row, and those of a tile of queries in a
processor's cache. So the whole softmax of a tile is computed at once, without a running
maximum, and forgotten; the backward pass computes it again. What is kept is queries, keys and
values: no matrix of queries times slots, not even with dropout, whose draws are repeated from
a seed. It is the walk of the chapter's kernel, and takes its place where there is no GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attn_course._precision import widened
from attn_course.linformer import reference

#: Weights of a tile: 2 MiB in float32, which stays in a processor's second cache.
ELEMENTS = 2**19


def attend_blocked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    seen: Tensor | None = None,
    dropout_p: float = 0.0,
    groups: int = 1,
    elements: int = ELEMENTS,
) -> Tensor:
    """Softmax attention to few keys, differentiable once.

    With ``groups`` the keys are those of several heads, one head after the other, which all
    compare with the same queries. Each head has a softmax of its own, and what they find is
    summed: that is one product with all values.

    Args:
        query: ``[..., query_len, dim]``.
        key: ``[..., groups * slots, dim]``, with the same leading dimensions.
        value: ``[..., groups * slots, value_dim]``, likewise.
        scale: What the dot products are multiplied by.
        seen: Whether a slot is there, ``[..., 1, slots]``, the leading dimensions broadcast;
            with ``groups`` above 1 one more before the last, ``[..., 1, 1, slots]``.
        dropout_p: Probability with which a weight is dropped.
        groups: How many softmaxes a query has.
        elements: The most weights of a tile.

    Returns:
        ``[..., query_len, value_dim]``; where heads stand before positions they lie the
        other way round in memory, so that merging the heads copies nothing.

    Reference:
        Wang et al. (2020), Linformer, equation 7; Dao (2023), FlashAttention-2, for tiles
        whose weights are computed again.

    Example:
        >>> query, slots = torch.rand(1, 1000, 4), torch.rand(1, 8, 4)
        >>> output = attend_blocked(query, slots, slots, scale=0.5)
        >>> expected = (0.5 * query @ slots.mT).softmax(-1) @ slots
        >>> torch.allclose(output, expected, atol=1e-6)
        True
    """
    # The seed comes from PyTorch's generator, which a checkpoint knows how to set back.
    seed = int(torch.randint(2**62, ())) if dropout_p else 0
    how = _How(scale, dropout_p, seed, groups, elements)
    output: Tensor = _Blocked.apply(query, key, value, seen, how)
    return output


class _How(NamedTuple):
    """How scores become weights, and how large a tile is."""

    scale: float
    dropout_p: float
    seed: int
    groups: int
    elements: int

    def tiles(self, query: Tensor, key: Tensor) -> Iterator[slice]:
        """The rows of each tile."""
        outer = query.shape[:-2].numel()
        rows = max(16, self.elements // max(1, outer * key.shape[-2]))
        for start in range(0, query.shape[-2], rows):
            yield slice(start, start + rows)

    def generator(self, device: torch.device) -> torch.Generator | None:
        """What draws the weights to drop, the same again in the backward pass."""
        if not self.dropout_p:
            return None
        return torch.Generator(device).manual_seed(self.seed)

    def weights(self, query: Tensor, scaled_key: Tensor, seen: Tensor | None) -> Tensor:
        """Of a tile, ``[..., rows, groups, slots]``, without ``groups`` if it is 1."""
        scores = query.to(scaled_key.dtype) @ scaled_key.mT
        return reference.softmax(self.apart(scores), seen)

    def apart(self, x: Tensor) -> Tensor:
        """Give each group a dimension."""
        return x if self.groups == 1 else x.unflatten(-1, (self.groups, -1))

    def together(self, x: Tensor) -> Tensor:
        """And take it away."""
        return x if self.groups == 1 else x.flatten(-2)

    def kept(self, weights: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """What weights are multiplied with: 0 for those that are dropped."""
        if generator is None:
            return None
        keep = 1 - self.dropout_p
        return torch.empty_like(weights).bernoulli_(keep, generator=generator).div_(keep)


def _exact(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let autocast round nothing on the way."""

    @functools.wraps(method)
    def run(ctx: Any, x: Tensor, *rest: Any) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return method(ctx, x, *rest)

    return run


class _Blocked(torch.autograd.Function):
    """``attend_blocked``; half precision is computed in float32, under autocast too."""

    @staticmethod
    @_exact
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, how: _How
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, seen)
        ctx.how = how
        scaled_key, value = widened(key) * how.scale, widened(value)
        output = _positions_first(query, value.shape[-1])
        generator = how.generator(query.device)
        for rows in how.tiles(query, key):
            weights = how.weights(query[..., rows, :], scaled_key, seen)
            if (kept := how.kept(weights, generator)) is not None:
                weights = weights.mul_(kept)
            output[..., rows, :] = how.together(weights) @ value
        return output

    @staticmethod
    @once_differentiable
    @_exact
    def backward(  # type: ignore[override]
        ctx: Any, grad_output: Tensor
    ) -> tuple[Tensor | None, ...]:
        query, key, value, seen = ctx.saved_tensors
        how = ctx.how
        scaled_key, wide_value = widened(key) * how.scale, widened(value)
        grad_query = _positions_first(query, query.shape[-1])
        grad_key, grad_value = torch.zeros_like(scaled_key), torch.zeros_like(wide_value)
        generator = how.generator(query.device)
        for rows in how.tiles(query, key):
            queries, grad = (widened(x[..., rows, :]) for x in (query, grad_output))
            weights = how.weights(queries, scaled_key, seen)
            kept = how.kept(weights, generator)
            used = weights if kept is None else weights * kept
            grad_value += how.together(used).mT @ grad
            grad_weights = how.apart(grad @ wide_value.mT)
            if kept is not None:
                grad_weights = grad_weights.mul_(kept)
            grad_scores = grad_weights.mul_(weights)  # [..., rows, (groups,) slots]
            grad_scores = grad_scores - weights * grad_scores.sum(-1, keepdim=True)
            grad_scores = how.together(grad_scores)
            grad_query[..., rows, :] = grad_scores @ scaled_key
            grad_key += grad_scores.mT @ queries
        grad_key = (grad_key * how.scale).to(key.dtype)
        return grad_query, grad_key, grad_value.to(value.dtype), None, None


def _positions_first(query: Tensor, width: int) -> Tensor:
    """An empty ``[..., heads, len, width]`` that lies in memory as ``[..., len, heads, width]``."""
    if query.ndim < 4:
        return query.new_empty(*query.shape[:-1], width)
    *outer, heads, length = query.shape[:-1]
    return query.new_empty(*outer, length, heads, width).transpose(-3, -2)
