"""Sliding windows in PyTorch, a tile of queries at a time.

A mask of all queries times all keys hides what is outside a window after it was computed.
Here a tile of queries meets only the slice of keys that some query of the tile sees, and the
mask is as large as the tile: n (w + rows) pairs instead of n^2. The backward pass computes the
weights again, so what is kept is queries, keys and values. It is the walk of chapter 4's
kernel, and takes its place where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_course._padding import harmless

#: The queries of a tile. More share their keys better, fewer compute less outside the window.
ROWS = 64


def sliding_attention_blocked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    left: int,
    right: int,
    scale: float,
    lens: Tensor | None = None,
    rows: int = ROWS,
) -> Tensor:
    """Dot-product attention in a window, differentiable, in O(n) memory for a given window.

    Args:
        query: ``[..., query_len, dim]``.
        key: ``[..., key_len, dim]``, with the same leading dimensions.
        value: ``[..., key_len, value_dim]``, likewise.
        left: Query i sees keys from i - ``left`` on,
        right: and up to i + ``right``.
        scale: What the dot products are multiplied by.
        lens: How many leading keys count; broadcasts to ``[..., query_len]``.
        rows: The queries of a tile.

    Returns:
        ``[..., query_len, value_dim]``.

    Reference:
        Beltagy et al. (2020), Longformer, section 3.1, for the window; Dao (2023),
        FlashAttention-2, for tiles whose weights are computed again.

    Example:
        >>> key, value = torch.zeros(5, 1), torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
        >>> sliding_attention_blocked(key, key, value, left=1, right=0, scale=1.0).flatten()
        tensor([1.0000, 1.5000, 2.5000, 3.5000, 4.5000])
    """
    batch_shape = query.shape[:-2]
    if lens is not None:
        lens = lens.expand(*batch_shape, lens.shape[-1])[None].flatten(0, -2)
    query, key, value = (x[None].flatten(0, -3) for x in (query, key, value))
    window = _Window(left, right, scale, rows, not harmless(query, key, value))
    output: Tensor = _Blocked.apply(query, key, value, lens, window)
    return output.reshape(*batch_shape, *output.shape[1:])


class _Window(NamedTuple):
    """Who sees whom, how scores are scaled, the rows of a tile, and whether NaN may lurk."""

    left: int
    right: int
    scale: float
    rows: int
    clear: bool


class _Tile(NamedTuple):
    """Some queries and the keys that one of them sees: where they are, and what they hold."""

    here: slice
    there: slice
    query: Tensor  # [batch, rows, dim]
    key: Tensor  # [batch, keys, dim]
    value: Tensor  # [batch, keys, value_dim]
    weights: Tensor  # [batch, rows, keys]
    hidden: Tensor  # [batch or 1, rows, keys]


def _tiles(
    query: Tensor, key: Tensor, value: Tensor, lens: Tensor | None, window: _Window
) -> Iterator[_Tile]:
    n, m = query.shape[1], key.shape[1]
    left, right, scale, rows, clear = window
    band, shape = torch.empty(0), (0, 0, 0)  # tiles away from the edges share one
    for first in range(0, n, rows):
        end = min(first + rows, n)
        some = lens if lens is None or lens.shape[1] == 1 else lens[:, first:end]
        start, stop = max(first - left, 0), min(end + right, m)
        if some is not None and some.device.type == "cpu" and some.numel():
            stop = min(stop, int(some.max()))
        if start >= stop:  # nobody here sees anything
            continue
        here, there = slice(first, end), slice(start, stop)
        if shape != (shape := (end - first, start - first, stop - first)):
            i = torch.arange(end - first, device=query.device)[:, None]
            j = torch.arange(start - first, stop - first, device=query.device)
            band = ((j < i - left) | (j > i + right))[None]
        hidden = band
        if some is not None:
            hidden = band | (torch.arange(start, stop, device=some.device) >= some[..., None])
        q, k, v = query[:, here], key[:, there], value[:, there]
        if clear:  # a choice, not a product: 0 * NaN is NaN
            nothing, nobody = hidden.all(-1).unsqueeze(-1), hidden.all(-2).unsqueeze(-1)
            q, k, v = q.masked_fill(nothing, 0), k.masked_fill(nobody, 0), v.masked_fill(nobody, 0)
        weights = (q @ k.mT).mul_(scale).masked_fill_(hidden, -torch.inf).softmax(-1)
        if some is not None or end - left > m:  # a row may be empty, and its softmax 0 / 0
            weights = weights.masked_fill_(hidden, 0)
        yield _Tile(here, there, q, k, v, weights, hidden)


class _Blocked(torch.autograd.Function):
    """Tiles one after the other, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lens: Tensor | None,
        window: _Window,
    ) -> Tensor:
        output = query.new_zeros(*query.shape[:2], value.shape[2])
        for tile in _tiles(query, key, value, lens, window):
            output[:, tile.here] = tile.weights @ tile.value
        ctx.save_for_backward(query, key, value, lens)
        ctx.window = window
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, lens = ctx.saved_tensors
        window = ctx.window
        window = window._replace(clear=window.clear or not harmless(grad))
        dquery, dkey, dvalue = (torch.zeros_like(tensor) for tensor in (query, key, value))
        for here, there, q, k, v, weights, hidden in _tiles(query, key, value, lens, window):
            g = grad[:, here]
            if window.clear:
                g = g.masked_fill(hidden.all(-1).unsqueeze(-1), 0)
            dvalue[:, there] += weights.mT @ g
            slope = (g @ v.mT).mul_(weights)  # dL/ds: p (dL/dp - sum p dL/dp)
            slope.addcmul_(weights, slope.sum(-1, keepdim=True), value=-1)
            slope.mul_(window.scale)
            dquery[:, here] = slope @ k
            dkey[:, there] += slope.mT @ q
        return dquery, dkey, dvalue, None, None
