"""The form of Linformer that is causal: projections of blocks that are over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course import _triton
from attn_course._masks import shorter
from attn_course._precision import widened
from attn_course._validation import check_choice, check_need_weights
from attn_course.dot_product import dot_product_attention
from attn_course.linformer import ops, reference

IMPLEMENTATIONS = ("auto", "reference", "sdpa", "triton")


@overload
def causal_linformer_attention(
    query: Tensor, key: Tensor, value: Tensor, key_projection: Tensor, value_projection: Tensor,
    *, block_len: int | None = ..., valid_lens: Tensor | None = ..., scale: float | None = ...,
    dropout_p: float = ..., need_weights: Literal[False] = ..., impl: str = ...,
) -> Tensor: ...  # fmt: skip


@overload
def causal_linformer_attention(
    query: Tensor, key: Tensor, value: Tensor, key_projection: Tensor, value_projection: Tensor,
    *, block_len: int | None = ..., valid_lens: Tensor | None = ..., scale: float | None = ...,
    dropout_p: float = ..., need_weights: Literal[True], impl: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def causal_linformer_attention(
    query: Tensor, key: Tensor, value: Tensor, key_projection: Tensor, value_projection: Tensor,
    *, block_len: int | None = ..., valid_lens: Tensor | None = ..., scale: float | None = ...,
    dropout_p: float = ..., need_weights: bool, impl: str = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


def causal_linformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_projection: Tensor,
    value_projection: Tensor,
    *,
    block_len: int | None = None,
    valid_lens: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    need_weights: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Linformer whose queries see no later position: earlier blocks as slots, then their own.

    The sequence is cut into blocks of c positions. A block that is over is projected to k
    slots, always by the same matrix. Query i sees the slots of all blocks before its own, and
    the keys of its own block up to itself: exact nearby, and compressed far away.

    It is causal, and no longer linear: n (n k / c + c) / 2 pairs, so k / c of full causal
    attention's for a long sequence. With c about ``sqrt(k n)`` that grows as ``n^1.5``.

    Args:
        query: ``[batch, (num_heads,) len, dim]``.
        key: ``[batch, (num_heads,) len, dim]``; query i stands where key i does.
        value: ``[batch, (num_heads,) len, value_dim]``.
        key_projection: ``[projected_len, block_len]``, or one for each head,
            ``[num_heads, projected_len, block_len]``.
        value_projection: Likewise; may be the same tensor.
        block_len: How many positions make a block; ``None``: as the projections say. The
            last block may be shorter.
        valid_lens: How many leading positions count, ``[batch]``.
        scale: What the dot products are multiplied by; ``None`` is ``1/sqrt(dim)``.
        dropout_p: As in ``linformer_attention``.
        need_weights: Return the weights as well.
        impl: Which implementation:

            ============= ======================================================
            ``reference`` PyTorch with a mask of all pairs; holds all weights
            ``sdpa``      PyTorch's fused operation, a block of queries after
                          the other; no weights
            ``triton``    chapter 4's GPU kernel, twice: own block and slots
                          (interpreted where there is no GPU: slow); no weights,
                          no dropout
            ``auto``      ``reference`` with ``need_weights``; on CUDA ``triton``
                          where it can be had; else ``sdpa``
            ============= ======================================================

    Returns:
        The output ``[batch, (num_heads,) len, value_dim]``; with ``need_weights`` then the
        weights, before dropout, ``[batch, (num_heads,) len, blocks * projected_len + len]``:
        of the slots of each complete block, then of the keys.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape, a length, a name or a combination is out of place.
        RuntimeError: ``impl="triton"`` cannot be had here; the message says why.

    Reference:
        Wang et al. (2020), Linformer, whose projection it is; the paper has encoders only.

    Example:
        >>> x, projection = torch.rand(1, 10, 4), torch.rand(2, 4)
        >>> output = causal_linformer_attention(x, x, x, projection, projection)
        >>> start = causal_linformer_attention(*[x[:, :7]] * 3, projection, projection)
        >>> torch.allclose(output[:, :7], start, atol=1e-6)
        True
    """
    check_choice("impl", impl, IMPLEMENTATIONS)
    scale = ops.check_attention(query, key, value, scale, dropout_p, impl)
    length = key.shape[-2]
    if query.shape[-2] != length:
        raise ValueError(
            f"query must have a position for each key, {length}, got {query.shape[-2]}."
        )
    ops.check_projections(key_projection, value_projection, key[..., :1, :], value[..., :1, :])
    width = key_projection.shape[-1]
    if block_len is not None and block_len != width:
        raise ValueError(
            f"block_len must be the columns of key_projection, {width}, which is "
            f"[projected_len, block_len], got {block_len}."
        )
    check_need_weights(need_weights, impl)
    lens = shorter(ops.check_lens(valid_lens, key), length)
    query, key, value = (reference.clear_padding(x, lens) for x in (query, key, value))
    impl = _choose(impl, query, dropout_p, need_weights)
    if impl == "reference":
        every = torch.full(query.shape[:1], length, device=query.device) if lens is None else lens
        wide = [widened(x) for x in (query, key, value, key_projection, value_projection)]
        columns = length // width * key_projection.shape[-2] + length
        kept = ops.draw_kept(dropout_p, (*query.shape[:-1], columns), wide[0])
        output, weights = reference.causal_linformer_attention(
            *wide, scale=scale, lens=every, kept=kept
        )
        output, weights = output.to(query.dtype), weights.to(query.dtype)
        return (output, weights) if need_weights else output
    key_slots, value_slots = (
        reference.project_blocks(widened(x), widened(E)).to(x.dtype)
        for x, E in ((key, key_projection), (value, value_projection))
    )
    blocks = _Blocks(query, key, value, key_slots, value_slots, width, lens)
    if impl == "triton":
        return blocks.merged(scale)
    return torch.cat(
        [
            dot_product_attention(*block, mask=mask, scale=scale, dropout_p=dropout_p, impl="sdpa")
            for block, mask in blocks.each()
        ],
        -2,
    )


def _choose(impl: str, query: Tensor, dropout_p: float, need_weights: bool) -> str:
    """The last row of the table."""
    if impl != "auto":
        return impl
    if need_weights:
        return "reference"
    fits = query.is_cuda and _triton.AVAILABLE and query.dtype != torch.float64
    return "triton" if fits and not dropout_p else "sdpa"


class _Blocks(NamedTuple):
    """Queries, keys and values, and the slots of each complete block: ``[..., len, dim]``."""

    query: Tensor
    key: Tensor
    value: Tensor
    key_slots: Tensor
    value_slots: Tensor
    width: int
    lens: Tensor | None

    @property
    def number(self) -> int:
        """How many blocks there are, the last one complete or not."""
        return -(-self.query.shape[-2] // self.width)

    @property
    def slots(self) -> int:
        """How many slots a block has."""
        whole = self.query.shape[-2] // self.width
        return self.key_slots.shape[-2] // whole if whole else 0

    def inner(self) -> tuple[int, ...]:
        """Ones in place of heads."""
        return (1,) * (self.query.ndim - 3)

    def each(self) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor], Tensor]]:
        """Each block's queries with what they may see of keys and values, and the mask."""
        for i in range(self.number):
            here = slice(i * self.width, (i + 1) * self.width)
            past = slice(0, i * self.slots)
            query = self.query[..., here, :]
            key, value = (
                torch.cat([slots[..., past, :], x[..., here, :]], -2)
                for slots, x in ((self.key_slots, self.key), (self.value_slots, self.value))
            )
            rows = query.shape[-2]
            mask = torch.ones(rows, past.stop + rows, dtype=torch.bool, device=query.device)
            mask = mask.tril(past.stop)
            if self.lens is not None:
                place = torch.arange(rows, device=query.device) + here.start
                first = torch.arange(i, device=query.device) * self.width
                place = torch.cat([first.repeat_interleave(self.slots), place])
                there = (place < self.lens[:, None]).reshape(-1, *self.inner(), 1, len(place))
                mask = mask & there
            yield (query, key, value), mask

    def merged(self, scale: float) -> Tensor:
        """Two attentions, to the own block and to the slots, put together by their sums."""
        parts = [self._near(scale)]
        if self.number > 1:
            parts.append(self._far(scale))
        lse = torch.stack([part[1] for part in parts])  # [parts, ..., len]
        nothing = lse == -torch.inf
        # Where no part sees anything each is zero, and any share of it.
        shares = lse.masked_fill(nothing.all(0), 0).softmax(0).unsqueeze(-1)
        output: Tensor = sum(
            share.to(part[0].dtype) * part[0] for share, part in zip(shares, parts, strict=True)
        )
        return output

    def _near(self, scale: float) -> tuple[Tensor, Tensor]:
        """The own block up to oneself: blocks are items of the batch."""
        length, count = self.query.shape[-2], self.number
        missing = count * self.width - length
        lens = self.lens
        if lens is None:
            lens = torch.full(self.query.shape[:1], length, device=self.query.device)
        starts = torch.arange(count, device=lens.device) * self.width
        lens = (lens[:, None] - starts).clamp(0, self.width).flatten()

        def split(x: Tensor) -> Tensor:  # [batch * blocks, ..., width, dim]
            apart = F.pad(x, (0, 0, 0, missing)).unflatten(-2, (count, self.width))
            return apart.movedim(-3, 1).flatten(0, 1)

        output, lse = dot_product_attention(
            split(self.query), split(self.key), split(self.value), valid_lens=lens,
            is_causal=True, scale=scale, need_lse=True, impl="triton",
        )  # fmt: skip
        output = output.unflatten(0, (-1, count)).movedim(1, -3).flatten(-3, -2)
        lse = lse.unflatten(0, (-1, count)).movedim(1, -2).flatten(-2)
        return output[..., :length, :], lse[..., :length]

    def _far(self, scale: float) -> tuple[Tensor, Tensor]:
        """The slots of earlier blocks: so many leading ones for each query."""
        device, batch = self.query.device, self.query.shape[0]
        earlier = torch.arange(self.query.shape[-2], device=device) // self.width
        earlier = earlier.expand(batch, -1)
        if self.lens is not None:
            there = (self.lens + self.width - 1).div(self.width, rounding_mode="floor")
            earlier = torch.minimum(earlier, there[:, None])
        output, lse = dot_product_attention(
            self.query, self.key_slots, self.value_slots, valid_lens=earlier * self.slots,
            scale=scale, need_lse=True, impl="triton",
        )  # fmt: skip
        return output, lse
