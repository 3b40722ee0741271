"""The encoder: every token of the source looks at every other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_course._masks import shorter
from attn_course._validation import check_ids, check_tensor
from attn_course.multi_head import Packing
from attn_course.transformer.layer import EncoderLayer
from attn_course.transformer.stack import Stack


class TransformerEncoder(Stack):
    """Read a batch of sentences, all tokens at once: embed them, then layer upon layer.

    Args:
        vocab_size: How many token ids there are.
        embed_dim: Width of a token throughout, a multiple of ``num_heads``.
        num_heads: Heads of each attention.
        hidden_dim: Width within the feed-forward networks.
        num_layers: How many layers.
        dropout: Of the embedded tokens, and as in the layers.
        norm: ``"post"`` or ``"pre"``, which ends in one more norm.
        activation: As in the layers.
        bias: As in the layers.
        position: ``"sinusoidal"`` and ``"learned"`` are added to the tokens; ``"rotary"``
            turns queries and keys in self-attention, and ``"linear"`` lowers its scores by
            distance. ``None``: order is not known.
        max_len: The most tokens of a sequence; needed if positions are learned, else ``None``.
        scale_embedding: As ``scale`` in ``TokenEmbedding``.
        impl: As in the layers.

    Raises:
        TypeError: ``max_len`` is not an integer.
        ValueError: A number, a name or a combination is out of place.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.1.

    Example:
        >>> encoder = TransformerEncoder(
        ...     vocab_size=200, embed_dim=24, num_heads=8, hidden_dim=48, num_layers=2
        ... )
        >>> source, lens = torch.ones(2, 100, dtype=torch.long), torch.tensor([3, 2])
        >>> memory, weights = encoder(source, lens, need_weights=True)
        >>> memory.shape, weights.shape
        (torch.Size([2, 100, 24]), torch.Size([2, 2, 8, 100, 100]))
    """

    layer = EncoderLayer

    def forward(
        self, source: Tensor, source_lens: Tensor, *, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Read.

        Args:
            source: Token ids, ``[batch, source_len]``. What stands past a sentence's length
                is not read.
            source_lens: How many tokens each sentence has, ``[batch]``.
            need_weights: Return the weights as well.

        Returns:
            A vector for each token, ``[batch, source_len, embed_dim]``; they do not depend
            on padding nor on the other sentences of the batch, and at padding they are zero.
            With ``need_weights`` also the weights, ``[batch, num_layers, num_heads,
            source_len, source_len]``, where rows of padding mean nothing.

        Raises:
            TypeError: An argument does not hold integers.
            ValueError: A shape, an id or a length is out of place.
        """
        here = self.embedding.tokens.weight.device
        check_tensor("source", source)
        if source.ndim != 2 or 0 in source.shape:
            raise ValueError(
                f"source must have shape [batch, source_len], got {list(source.shape)}."
            )
        batch, source_len = source.shape
        check_ids("source_lens", source_lens, (batch,), source_len + 1)
        source, lens = source.to(here), shorter(source_lens.to(here), source_len)
        if lens is not None:
            padding = torch.arange(source_len, device=here) >= lens.unsqueeze(1)
            source = source.masked_fill(padding, 0)
        check_ids("source", source, (batch, source_len), self.vocab_size)

        x: Any = self.embedding(source)
        # Layers compute nothing for padding where it can be left out: on a CPU.
        packing = Packing.of(lens, source_len)
        if packing is not None:
            x = packing.pack(x)
        asked = {"valid_lens": lens} if packing is None else {"packing": packing}
        rows: list[Tensor] = []
        for layer in self.layers:
            x = layer(x, position=self.position, need_weights=need_weights, **asked)
            if need_weights:
                x, weights = x
                rows.append(weights)
        memory: Tensor = self.final_norm(x)
        if packing is not None:
            memory = packing.unpack(memory)
        elif lens is not None:
            memory = memory.masked_fill(padding.unsqueeze(2), 0)
        return (memory, torch.stack(rows, 1)) if need_weights else memory
