"""Layers one upon the other: what encoder and decoder have in common."""

from __future__ import annotations

from typing import Any

from torch import nn

from attn_course._validation import check_choice, check_counts
from attn_course.positional import RotaryEmbedding, linear_slopes
from attn_course.transformer.embedding import TokenEmbedding

#: How a Transformer may know positions, besides ``None``: not at all.
POSITIONS = ("sinusoidal", "learned", "rotary", "linear")


class Stack(nn.Module):
    """Embedded tokens and layers, whose kind a subclass says; see ``TransformerEncoder``."""

    layer: type[nn.Module]

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        num_layers: int,
        *,
        dropout: float = 0.0,
        norm: str = "post",
        activation: str = "relu",
        bias: bool = True,
        position: str | None = "sinusoidal",
        max_len: int | None = None,
        scale_embedding: bool = True,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_counts(num_layers=num_layers)
        if position is not None:
            check_choice("position", position, POSITIONS)
        self.vocab_size, self.embed_dim, self.num_layers = vocab_size, embed_dim, num_layers
        relative = position in ("rotary", "linear")
        self.embedding = TokenEmbedding(
            vocab_size,
            embed_dim,
            position=None if relative else position,
            max_len=max_len,
            scale=scale_embedding,
            dropout=dropout,
            impl=impl,
        )
        self.layers = nn.ModuleList(
            self.layer(
                embed_dim, num_heads, hidden_dim, dropout=dropout, norm=norm,
                activation=activation, bias=bias, impl=impl,
            )
            for _ in range(num_layers)
        )  # fmt: skip
        self.rotary = RotaryEmbedding(embed_dim // num_heads) if position == "rotary" else None
        slopes = linear_slopes(num_heads) if position == "linear" else None
        self.register_buffer("slopes", slopes, persistent=False)
        self.final_norm = nn.LayerNorm(embed_dim, bias=bias) if norm == "pre" else nn.Identity()

    @property
    def position(self) -> Any:
        """What self-attention is told of positions: rotations, slopes, or ``None``."""
        return self.slopes if self.rotary is None else self.rotary
