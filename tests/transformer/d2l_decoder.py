"""The decoder of Dive into Deep Learning, section 11.7.5, which its package leaves out.

Built from the package's own parts, and with its one fault: which tokens a query may see
depends on whether the module is in training mode.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(
        self, d2l: ModuleType, width: int, hidden: int, num_heads: int, dropout: float, i: int
    ) -> None:
        super().__init__()
        self.i = i
        self.attention1 = d2l.MultiHeadAttention(width, num_heads, dropout)
        self.addnorm1 = d2l.AddNorm(width, dropout)
        self.attention2 = d2l.MultiHeadAttention(width, num_heads, dropout)
        self.addnorm2 = d2l.AddNorm(width, dropout)
        self.ffn = d2l.PositionWiseFFN(hidden, width)
        self.addnorm3 = d2l.AddNorm(width, dropout)

    def forward(self, x: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        memory, memory_lens, seen = state
        own = x if seen[self.i] is None else torch.cat([seen[self.i], x], dim=1)
        seen[self.i] = own
        lens = None
        if self.training:
            lens = torch.arange(1, x.shape[1] + 1).repeat(x.shape[0], 1)
        x = self.addnorm1(x, self.attention1(x, own, own, lens))
        x = self.addnorm2(x, self.attention2(x, memory, memory, memory_lens))
        return self.addnorm3(x, self.ffn(x)), state


class Decoder(nn.Module):
    def __init__(
        self, d2l: ModuleType, vocab_size: int, width: int, hidden: int, heads: int, layers: int,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.layers = width, layers
        self.embedding = nn.Embedding(vocab_size, width)
        self.pos_encoding = d2l.PositionalEncoding(width, dropout)
        self.blks = nn.ModuleList(
            Block(d2l, width, hidden, heads, dropout, i) for i in range(layers)
        )
        self.dense = nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor, memory: Tensor, lens: Tensor | None) -> Tensor:
        state = [memory, lens, [None] * self.layers]
        x = self.pos_encoding(self.embedding(tokens) * math.sqrt(self.width))
        for block in self.blks:
            x, state = block(x, state)
        return self.dense(x)
