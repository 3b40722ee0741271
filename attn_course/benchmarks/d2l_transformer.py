"""The Transformer of Dive into Deep Learning, whose package leaves out the decoder.

``d2l.TransformerEncoder``, and the decoder of the book's section 11.7.5, rebuilt from the
package's parts with the one fault that it has: whether a token sees those after it depends on
whether the module is in training mode. Importing this needs no d2l; making a module does.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attn_course import _d2l


class LectureState(NamedTuple):
    """What the decoder reads besides its tokens.

    Attributes:
        memory: The encoder's output, ``[batch, source_len, width]``.
        memory_lens: How many of its vectors count, ``[batch]``, or ``None`` for all.
        seen: For each block, the tokens that it was given in earlier calls, ``None`` at
            first. Each call changes it: for a fresh sentence, make a fresh state.
    """

    memory: Tensor
    memory_lens: Tensor | None
    seen: list[Tensor | None]


class LectureDecoderBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward network, each with add & norm.

    In training mode token i sees tokens 0 to i. In evaluation mode it sees every token there
    is: right as long as tokens come one by one, as in decoding; wrong for a whole target, as
    where a validation loss is computed.

    Args:
        width: Of a token.
        hidden: Width within the feed-forward network.
        num_heads: Of each attention.
        dropout: As d2l's parts have it.
        index: Which place of ``LectureState.seen`` is this block's.

    Raises:
        ImportError: d2l is missing.

    Reference:
        Zhang et al. (2023), Dive into Deep Learning, section 11.7.5.
    """

    def __init__(
        self, width: int, hidden: int, num_heads: int, dropout: float = 0.0, index: int = 0
    ) -> None:
        super().__init__()
        d2l = _d2l.load()
        self.index = index
        self.attention1 = d2l.MultiHeadAttention(width, num_heads, dropout)
        self.addnorm1 = d2l.AddNorm(width, dropout)
        self.attention2 = d2l.MultiHeadAttention(width, num_heads, dropout)
        self.addnorm2 = d2l.AddNorm(width, dropout)
        self.ffn = d2l.PositionWiseFFN(hidden, width)
        self.addnorm3 = d2l.AddNorm(width, dropout)

    def forward(self, x: Tensor, state: LectureState) -> Tensor:
        """From ``[batch, length, width]`` to the same; ``state.seen`` grows by ``x``."""
        earlier = state.seen[self.index]
        own = x if earlier is None else torch.cat([earlier, x], dim=1)
        state.seen[self.index] = own
        lens = None
        if self.training:  # the fault
            batch, length = x.shape[:2]
            lens = torch.arange(1, length + 1, device=x.device).repeat(batch, 1)
        x = self.addnorm1(x, self.attention1(x, own, own, lens))
        x = self.addnorm2(x, self.attention2(x, state.memory, state.memory, state.memory_lens))
        output: Tensor = self.addnorm3(x, self.ffn(x))
        return output


class LectureDecoder(nn.Module):
    """Scaled embeddings and sinusoids, blocks, and a linear map to logits.

    Args:
        vocab_size: How many token ids there are.
        width: Of a token.
        hidden: Width within the feed-forward networks.
        num_heads: Of each attention.
        num_layers: How many blocks.
        dropout: As d2l's parts have it.

    Raises:
        ImportError: d2l is missing.

    Reference:
        Zhang et al. (2023), Dive into Deep Learning, section 11.7.5.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        hidden: int,
        num_heads: int,
        num_layers: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale = math.sqrt(width)
        self.embedding = nn.Embedding(vocab_size, width)
        self.pos_encoding: Any = _d2l.load().PositionalEncoding(width, dropout)
        blocks = (
            LectureDecoderBlock(width, hidden, num_heads, dropout, i) for i in range(num_layers)
        )
        # Under the names that the encoder's blocks have.
        self.blks = nn.Sequential(OrderedDict((f"block{b.index}", b) for b in blocks))
        self.dense = nn.Linear(width, vocab_size)

    def start(self, memory: Tensor, memory_lens: Tensor | None) -> LectureState:
        """The state of a fresh target."""
        return LectureState(memory, memory_lens, [None] * len(self.blks))

    def forward(self, tokens: Tensor, state: LectureState) -> Tensor:
        """From ids ``[batch, length]`` to logits ``[batch, length, vocab_size]``."""
        x = self.pos_encoding(self.embedding(tokens) * self.scale)
        for block in self.blks:
            x = block(x, state)
        logits: Tensor = self.dense(x)
        return logits


class LectureTransformer(nn.Module):
    """d2l's encoder and the decoder above, called as our ``Transformer`` is.

    As often with d2l, most weights are made when the first batch tells their widths.

    Args:
        source_vocab: How many token ids the source has.
        target_vocab: How many the target has.
        width: As in ``LectureDecoder``, and so on.
        hidden: As in ``LectureDecoder``.
        num_heads: As in ``LectureDecoder``.
        num_layers: Of each of the two.
        dropout: As in ``LectureDecoder``.

    Raises:
        ImportError: d2l is missing.

    Reference:
        Zhang et al. (2023), Dive into Deep Learning, sections 11.7.4 and 11.7.5.

    Example:
        >>> model = LectureTransformer(9, 7, 8, 16, 2, 1)  # doctest: +SKIP
        >>> source, lens = torch.tensor([[5, 3, 2], [4, 2, 0]]), torch.tensor([3, 2])
        >>> model(source, lens, torch.tensor([[1, 4], [1, 3]])).shape  # doctest: +SKIP
        torch.Size([2, 2, 7])
    """

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        width: int,
        hidden: int,
        num_heads: int,
        num_layers: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder: Any = _d2l.load().TransformerEncoder(
            source_vocab, width, hidden, num_heads, num_layers, dropout
        )
        self.decoder = LectureDecoder(target_vocab, width, hidden, num_heads, num_layers, dropout)

    def forward(self, source: Tensor, source_lens: Tensor | None, target_input: Tensor) -> Tensor:
        """The logits of each step's next token, ``[batch, target_len, target_vocab]``."""
        memory = self.encoder(source, source_lens)
        logits: Tensor = self.decoder(target_input, self.decoder.start(memory, source_lens))
        return logits
