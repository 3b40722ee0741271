"""A layer of the Linformer: attention and a feed-forward network, each with a way around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn_course._validation import check_choice, check_counts, check_dropout
from attn_course.linformer.layer import LinformerAttention, check_input, clear
from attn_course.transformer import AddNorm, PositionwiseFeedForward

CHECKPOINT_LEVELS = ("C0", "C1", "C2")
NORMS = ("post", "pre")


class _FeedForward(PositionwiseFeedForward):
    """Chapter 6's network, to another width if need be."""

    def __init__(self, embed_dim: int, hidden_dim: int, output_dim: int, **options: Any) -> None:
        super().__init__(embed_dim, hidden_dim, **options)
        if output_dim != embed_dim:
            self.linear2 = nn.Linear(hidden_dim, output_dim)
            nn.init.xavier_uniform_(self.linear2.weight)
            nn.init.zeros_(self.linear2.bias)


class LinformerBlock(nn.Module):
    """Chapter 6's encoder layer with ``LinformerAttention`` in it.

        post: x = LayerNorm(x + sublayer(x))      pre: x = x + sublayer(LayerNorm(x))

    Args:
        embed_dim: Width of a token.
        num_heads: Heads of the attention.
        input_len: The longest sequence, n.
        projected_len: Slots, k.
        hidden_dim: Width within the feed-forward network; ``None``: there is none.
        output_dim: Width of a token when it leaves, to which the feed-forward network and a
            linear map beside it bring it; ``None``: ``embed_dim``.
        dropout: In training, of attention weights and of what attention adds.
        feed_forward_dropout: Of the network's hidden numbers and of what it adds; ``None``:
            as ``dropout``.
        norm: ``"post"`` or ``"pre"``.
        activation: ``"gelu"`` or ``"relu"``.
        checkpoint_level: What is kept for the backward pass and what is computed again.
            ``"C0"``: everything is kept. ``"C1"``: the inputs of attention and of the
            feed-forward network alone. ``"C2"``: and attention is computed again head by
            head. Gradients are the same, with dropout as well.
        impl: As in ``linformer_attention``.
        attention: Options of ``LinformerAttention``: ``head_dim``, ``projection``,
            ``projection_bias``, ``sharing``, ``shared``, ``full_attention``, ``causal``,
            ``block_len``, ``output_rank``.

    Raises:
        ValueError: A number, a name or a combination is out of place.

    Reference:
        Wang et al. (2020), Linformer: Self-attention with linear complexity; Chen et al.
        (2016), Training deep nets with sublinear memory cost, for checkpoints.

    Example:
        >>> block = LinformerBlock(8, 2, input_len=100, projected_len=16, hidden_dim=32)
        >>> block(torch.rand(3, 50, 8)).shape
        torch.Size([3, 50, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        input_len: int,
        projected_len: int,
        hidden_dim: int | None,
        *,
        output_dim: int | None = None,
        dropout: float = 0.0,
        feed_forward_dropout: float | None = None,
        norm: str = "post",
        activation: str = "gelu",
        checkpoint_level: str = "C0",
        impl: str = "auto",
        **attention: Any,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, NORMS)
        check_choice("checkpoint_level", checkpoint_level, CHECKPOINT_LEVELS)
        if feed_forward_dropout is None:
            feed_forward_dropout = dropout
        check_dropout("feed_forward_dropout", feed_forward_dropout)
        self.embed_dim, self.input_len = embed_dim, input_len
        self.output_dim = embed_dim if output_dim is None else output_dim
        self.norm, self.checkpoint_level = norm, checkpoint_level
        self.attention = LinformerAttention(
            embed_dim, num_heads, input_len, projected_len, dropout=dropout,
            checkpoint_heads=checkpoint_level == "C2", impl=impl, **attention,
        )  # fmt: skip
        self.norm1, self.dropout1 = _norm(norm, embed_dim, dropout)
        self.feed_forward: _FeedForward | None = None
        self.resample: nn.Linear | None = None
        check_counts(output_dim=self.output_dim)
        if hidden_dim is None:
            if self.output_dim != embed_dim:
                raise ValueError(
                    "output_dim must be embed_dim without a feed-forward network, which would "
                    f"change the width, got {output_dim} for {embed_dim}."
                )
            return
        self.feed_forward = _FeedForward(
            embed_dim, hidden_dim, self.output_dim, activation=activation,
            dropout=feed_forward_dropout,
        )  # fmt: skip
        if self.output_dim != embed_dim:
            self.resample = nn.Linear(embed_dim, self.output_dim)
        width = self.output_dim if norm == "post" else embed_dim
        self.norm2, self.dropout2 = _norm(norm, width, feed_forward_dropout)

    def forward(
        self, x: Tensor, *, valid_lens: Tensor | None = None, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Transform a sequence.

        Args:
            x: ``[batch, len, embed_dim]``, at most ``input_len`` long.
            valid_lens: How many leading positions count, ``[batch]``.
            need_weights: Return the weights as well.

        Returns:
            ``[batch, len, output_dim]``, where rows of padding mean nothing; with
            ``need_weights`` also the weights, as in ``LinformerAttention``.

        Raises:
            TypeError: ``x`` holds no floating-point numbers, ``valid_lens`` no integers.
            ValueError: A shape or a length is out of place.
        """
        lens = check_input(x, self.embed_dim, self.input_len, valid_lens)
        x, weights = self._run(self._attend, clear(x, lens), lens, need_weights)
        if self.feed_forward is not None:
            x = self._run(self._think, x)
        return (x, weights) if need_weights else x

    def _run(self, sublayer: Callable[..., Any], *arguments: Any) -> Any:
        """Call, and keep no more than the arguments from C1 on."""
        if self.checkpoint_level == "C0" or not torch.is_grad_enabled():
            return sublayer(*arguments)
        return checkpoint(sublayer, *arguments, use_reentrant=False)

    def _attend(
        self, x: Tensor, lens: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        inside = x if self.norm == "post" else self.norm1(x)
        found: Any = self.attention(inside, valid_lens=lens, need_weights=need_weights)
        update, weights = found if need_weights else (found, None)
        if self.norm == "post":
            return self.norm1(x, update), weights
        return x + self.dropout1(update).to(x.dtype), weights

    def _think(self, x: Tensor) -> Tensor:
        assert self.feed_forward is not None
        past = x if self.resample is None else self.resample(x).to(x.dtype)
        if self.norm == "post":
            output: Tensor = self.norm2(past, self.feed_forward(x))
            return output
        update = self.dropout2(self.feed_forward(self.norm2(x)))
        return past + update.to(x.dtype)

    def extra_repr(self) -> str:
        """What ``print`` shows of the block."""
        return f"norm={self.norm!r}, checkpoint_level={self.checkpoint_level!r}"


def _norm(norm: str, width: int, dropout: float) -> tuple[Any, nn.Dropout]:
    """The norm of a sublayer, and the dropout of what it adds, which is part of ``AddNorm``."""
    if norm == "post":
        return AddNorm(width, dropout=dropout), nn.Dropout(0.0)
    return nn.LayerNorm(width), nn.Dropout(dropout)
