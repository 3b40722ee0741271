"""The decoder: each token of the target looks at those before it and at the source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attn_course._masks import shorter
from attn_course._validation import check_ids, check_tokens
from attn_course.multi_head import KeyValueCache
from attn_course.transformer.layer import DecoderLayer
from attn_course.transformer.stack import Stack


class TransformerDecoder(Stack):
    """Read a target, all tokens at once, none of which sees those after it.

    Args:
        vocab_size: As in ``TransformerEncoder``.
        embed_dim: As in ``TransformerEncoder``, and as wide as the memory.
        num_heads: As in ``TransformerEncoder``.
        hidden_dim: As in ``TransformerEncoder``.
        num_layers: As in ``TransformerEncoder``.
        dropout: As in ``TransformerEncoder``.
        norm: As in ``TransformerEncoder``.
        activation: As in ``TransformerEncoder``.
        bias: As in ``TransformerEncoder``.
        position: As in ``TransformerEncoder``. Cross-attention is not told of positions
            by ``"rotary"`` and ``"linear"``: source and target do not share any.
        max_len: As in ``TransformerEncoder``.
        scale_embedding: As in ``TransformerEncoder``.
        impl: As in ``TransformerEncoder``.

    Raises:
        TypeError: ``max_len`` is not an integer.
        ValueError: A number, a name or a combination is out of place.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.1.

    Example:
        >>> decoder = TransformerDecoder(200, 24, num_heads=8, hidden_dim=48, num_layers=2)
        >>> memory, lens = torch.rand(2, 7, 24), torch.tensor([7, 2])
        >>> decoder(torch.tensor([[1, 5, 6], [1, 8, 9]]), memory, lens).shape
        torch.Size([2, 3, 24])
    """

    layer = DecoderLayer

    def forward(
        self,
        target_input: Tensor,
        memory: Tensor,
        memory_lens: Tensor,
        *,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Read a target that is known (teacher forcing).

        Args:
            target_input: Token ids, ``[batch, target_len]``.
            memory: The encoder's output, ``[batch, source_len, embed_dim]``.
            memory_lens: How many of its vectors count, ``[batch]``.
            need_weights: Return the weights as well.

        Returns:
            What each token has come to, ``[batch, target_len, embed_dim]``: it knows of the
            tokens up to itself. With ``need_weights`` also the weights of self-attention,
            ``[batch, num_layers, num_heads, target_len, target_len]``, and of
            cross-attention, ``[batch, num_layers, num_heads, target_len, source_len]``.

        Raises:
            TypeError: An argument has the wrong kind of numbers.
            ValueError: A shape, an id or a length is out of place.
        """
        here = self.embedding.tokens.weight.device
        check_tokens("memory", memory, "source_len", self.embed_dim)
        batch, source_len = memory.shape[:2]
        check_ids("memory_lens", memory_lens, (batch,), source_len + 1)
        check_ids("target_input", target_input, (batch, "target_len"), self.vocab_size)
        x, own, cross = self.advance(
            target_input.to(here),
            [memory.to(here)] * self.num_layers,
            shorter(memory_lens.to(here), source_len),
            need_weights=need_weights,
        )
        return x if own is None or cross is None else (x, own, cross)

    def remember(self, memory: Tensor, lens: Tensor | None) -> tuple[KeyValueCache, ...]:
        """Project the memory once for each layer, for ``advance`` to read at every step.

        Args:
            memory: The encoder's states, ``[batch, source_len, memory_dim]``.
            lens: How many of them count, ``[batch]``; ``None``: all.
        """
        layers: Any = self.layers
        return tuple(layer.cross_attention.remember(memory, valid_lens=lens) for layer in layers)

    def advance(
        self,
        tokens: Tensor,
        memory: Sequence[Tensor | KeyValueCache],
        lens: Tensor | None,
        *,
        past: Sequence[KeyValueCache] | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Read the next tokens of a target. Arguments are taken on trust.

        Args:
            tokens: Their ids, ``[batch, length]``.
            memory: For each layer, the memory or what ``remember`` made of it.
            lens: How many of its vectors count, ``[batch]``; ``None`` for all.
            past: For each layer, keys and values of the tokens before, to which those of
                ``tokens`` are appended; ``None`` if there are none to be kept.
            need_weights: Return the weights as well.

        Returns:
            As ``forward``, with ``None`` for weights that are not needed.
        """
        x: Any = self.embedding(tokens, 0 if past is None else past[0].length)
        own: list[Tensor] = []
        cross: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            x = layer(
                x,
                memory[i],
                memory_lens=lens,
                position=self.position,
                cache=None if past is None else past[i],
                need_weights=need_weights,
            )
            if need_weights:
                x, *rows = x
                own.append(rows[0])
                cross.append(rows[1])
        x = self.final_norm(x)
        return (x, torch.stack(own, 1), torch.stack(cross, 1)) if need_weights else (x, None, None)
