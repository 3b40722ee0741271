"""Linformer in plain PyTorch, in the order of the chapter's equations.

These are the oracles: they store every weight. Keys and values are mapped from their many
positions to a few slots, K' = E K and V' = F V, and queries attend to the slots:

    P = softmax(scale Q K'^T),    output = P V' = (P F) V
"""

from __future__ import annotations

import torch
from torch import Tensor


def clear_padding(x: Tensor, lens: Tensor | None) -> Tensor:
    """Zero the positions from a length on, whatever they hold.

    Args:
        x: ``[batch, ..., len, dim]``.
        lens: ``[batch]``, or ``None``: all count.

    Returns:
        A copy, or ``x`` itself without lengths.
    """
    if lens is None:
        return x
    padding = torch.arange(x.shape[-2], device=x.device) >= lens[:, None]  # [batch, len]
    padding = padding.reshape(len(lens), *[1] * (x.ndim - 3), x.shape[-2], 1)
    return x.masked_fill(padding, 0)


def project_sequence(x: Tensor, projection: Tensor, lens: Tensor | None = None) -> Tensor:
    """Map positions to slots: E x, where padding counts as zero.

    Args:
        x: ``[batch, (num_heads,) len, dim]``.
        projection: ``[projected_len, key_len]`` or ``[num_heads, projected_len, key_len]``,
            of which the first ``len`` columns are used.
        lens: ``[batch]``, or ``None``.

    Returns:
        ``[batch, (num_heads,) projected_len, dim]``.
    """
    x, projection = clear_padding(x, lens), projection[..., : x.shape[-2]]
    if projection.ndim == 3 and x.shape[0] > 1:
        # A product for each item would make a gradient of E for each item as well.
        return torch.einsum("hkn,bhnd->bhkd", projection, x)
    return projection @ x


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    seen: Tensor | None = None,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention to slots.

    Args:
        query: ``[..., query_len, dim]``.
        key: ``[..., slots, dim]``.
        value: ``[..., slots, value_dim]``.
        scale: What the dot products are multiplied by.
        seen: Whether a slot is there; broadcasts to ``[..., query_len, slots]``. A query that
            sees none gets zeros.
        kept: What weights are multiplied with after the softmax: dropout.

    Returns:
        The output ``[..., query_len, value_dim]`` and the weights
        ``[..., query_len, slots]``, before dropout.
    """
    weights = softmax((query * scale) @ key.mT, seen)
    return (weights if kept is None else weights * kept) @ value, weights


def softmax(scores: Tensor, seen: Tensor | None) -> Tensor:
    """Softmax over what is seen: zeros elsewhere, and where nothing is."""
    if seen is None:
        return scores.softmax(-1)
    nothing = ~seen.any(-1, keepdim=True)  # their softmax is thrown away below
    return scores.masked_fill(~(seen | nothing), -torch.inf).softmax(-1).masked_fill(~seen, 0)


def causal_mask(length: int, projected_len: int, block_len: int, lens: Tensor) -> Tensor:
    """What a query may see of the slots of all complete blocks, and of the keys after them.

    Slots of earlier blocks, and keys of its own block up to itself; neither past the valid
    length, where a block counts from its first position.

    Args:
        length: How many positions there are.
        projected_len: Slots of a block.
        block_len: Positions of a block.
        lens: ``[batch]``.

    Returns:
        ``[batch, length, blocks * projected_len + length]``.
    """
    i = torch.arange(length, device=lens.device)
    block = i // block_len
    slot_block = torch.arange(length // block_len, device=lens.device)
    slot_block = slot_block.repeat_interleave(projected_len)
    slots = slot_block < block[:, None]  # [length, blocks * projected_len]
    keys = (block == block[:, None]) & (i <= i[:, None])  # [length, length]
    there = torch.cat([slot_block * block_len, i]) < lens[:, None]  # [batch, slots + length]
    return torch.cat([slots, keys], -1) & there[:, None]


def causal_linformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_projection: Tensor,
    value_projection: Tensor,
    *,
    scale: float,
    lens: Tensor,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Block-wise causal attention with every pair in one matrix.

    Args:
        query: ``[batch, (num_heads,) len, dim]``.
        key: ``[batch, (num_heads,) len, dim]``.
        value: ``[batch, (num_heads,) len, value_dim]``.
        key_projection: ``[projected_len, block_len]`` or with ``num_heads`` first.
        value_projection: The same shape.
        scale: What the dot products are multiplied by.
        lens: ``[batch]``.
        kept: As in ``attend``.

    Returns:
        The output ``[..., len, value_dim]`` and the weights
        ``[..., len, blocks * projected_len + len]``: first slots, then keys.
    """
    length, (projected_len, block_len) = query.shape[-2], key_projection.shape[-2:]
    key, value = clear_padding(key, lens), clear_padding(value, lens)
    slots = [project_blocks(x, E) for x, E in ((key, key_projection), (value, value_projection))]
    seen = causal_mask(length, projected_len, block_len, lens)
    if query.ndim == 4:
        seen = seen[:, None]
    key, value = (torch.cat(pair, -2) for pair in zip(slots, (key, value), strict=True))
    return attend(query, key, value, scale=scale, seen=seen, kept=kept)


def project_blocks(x: Tensor, projection: Tensor) -> Tensor:
    """Map each complete block of positions to slots of its own.

    Args:
        x: ``[batch, (num_heads,) len, dim]``.
        projection: ``[(num_heads,) projected_len, block_len]``.

    Returns:
        ``[batch, (num_heads,) blocks * projected_len, dim]``.
    """
    block_len = projection.shape[-1]
    blocks = x.shape[-2] // block_len
    apart = x[..., : blocks * block_len, :].unflatten(-2, (blocks, block_len))
    if projection.ndim == 3:
        projection = projection[:, None]  # the same for each block
    return (projection @ apart).flatten(-3, -2)
