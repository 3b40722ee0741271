"""The two layers that a Transformer is stacked from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from attn_course._validation import check_choice, check_ids, check_tokens
from attn_course._weights import load_named
from attn_course.multi_head import KeyValueCache, MultiHeadAttention, Packing
from attn_course.transformer import loading
from attn_course.transformer.sublayers import AddNorm, PositionwiseFeedForward

#: Where layers normalise: after each addition, or before each sublayer.
NORMS = ("post", "pre")


class _Layer(nn.Module):
    """What both layers have: self-attention, a feed-forward network and a norm for each."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        dropout: float = 0.0,
        norm: str = "post",
        activation: str = "relu",
        bias: bool = True,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("norm", norm, NORMS)
        check_choice("impl", impl, ("auto", "reference", "triton"))
        self.embed_dim, self.norm = embed_dim, norm
        self.self_attention = MultiHeadAttention(
            embed_dim, num_heads, dropout=dropout, bias=bias, impl=impl
        )
        self.feed_forward = PositionwiseFeedForward(
            embed_dim, hidden_dim, activation=activation, dropout=dropout, bias=bias
        )
        self.norm1: Any = (
            AddNorm(embed_dim, dropout=dropout, bias=bias, impl=impl)
            if norm == "post"
            else nn.LayerNorm(embed_dim, bias=bias)  # comes first: there is nothing to add yet
        )
        self.norm2 = AddNorm(embed_dim, dropout=dropout, bias=bias, impl=impl)
        self.dropout = nn.Dropout(dropout)

    def load_torch(self, source: nn.Module | Mapping[str, Tensor]) -> None:
        """Copy the weights of PyTorch's layer; outputs are then the same in evaluation mode.

        Args:
            source: An ``nn.TransformerEncoderLayer`` for an encoder layer and an
                ``nn.TransformerDecoderLayer`` for a decoder layer; or its state dict, which
                tells nothing of heads, activation and where it normalises.

        Raises:
            ValueError: It was made with other options or widths than this layer.

        Example:
            >>> import torch
            >>> theirs = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
            >>> ours, x = EncoderLayer(8, 2, 16), torch.rand(1, 3, 8)
            >>> ours.load_torch(theirs)
            >>> torch.allclose(ours(x), theirs(x), atol=1e-6)
            True
        """
        load_named(self, loading.from_torch(source, self._options()))

    def load_d2l(self, source: nn.Module | Mapping[str, Tensor]) -> None:
        """Copy the weights of d2l's block; outputs are then the same in evaluation mode.

        d2l's attention has no biases unless it is asked for them; here they become zeros.
        d2l's decoder block agrees in training mode only: in evaluation mode it lets a token
        see those after it.

        Args:
            source: A ``TransformerEncoderBlock`` for an encoder layer and a
                ``TransformerDecoderBlock`` for a decoder layer; or its state dict, which
                does not tell the number of heads. A block has no weights before it has seen
                its first batch.

        Raises:
            ValueError: It has no weights yet, or other heads or widths than this layer, or
                this layer does what d2l's do not (normalise first, GELU, no biases).
        """
        load_named(self, loading.from_d2l(source, self._options()))

    def _options(self) -> dict[str, Any]:
        """What weights do not tell."""
        return {
            "norm": self.norm,
            "activation": self.feed_forward.activation,
            "num_heads": self.self_attention.num_heads,
            "eps": self.norm2.eps,
        }

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return f"norm={self.norm!r}"


class EncoderLayer(_Layer):
    """Let each token look at all of them, then think about what it saw.

    Two sublayers, each with a way around it. ``norm`` says where the normalisation stands:

        post: x = LayerNorm(x + sublayer(x))      pre: x = x + sublayer(LayerNorm(x))

    With ``"pre"`` nothing stands on the way around: gradients reach the lowest layer as they
    left the highest. The sum is never normalised then, so a stack ends in one more norm.

    Args:
        embed_dim: Width of a token, a multiple of ``num_heads``.
        num_heads: Heads of the attention.
        hidden_dim: Width within the feed-forward network.
        dropout: In training, of attention weights, of the network's hidden numbers, and of
            what each sublayer adds: where PyTorch's layer has it. d2l's has none within
            the network.
        norm: ``"post"`` or ``"pre"``.
        activation: ``"relu"`` or ``"gelu"``.
        bias: Whether linear maps and norms add a bias, as in PyTorch's layer.
        impl: As in ``add_norm`` and ``dot_product_attention``: ``"auto"``, ``"reference"`` or
            ``"triton"``.

    Raises:
        ValueError: A number or a name is out of place.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.1; Xiong et al. (2020),
        On layer normalization in the Transformer architecture, for ``"pre"``.

    Example:
        >>> import torch
        >>> layer = EncoderLayer(embed_dim=24, num_heads=8, hidden_dim=48)
        >>> x, lens = torch.ones(2, 100, 24), torch.tensor([3, 2])
        >>> output, weights = layer(x, valid_lens=lens, need_weights=True)
        >>> output.shape, weights.shape
        (torch.Size([2, 100, 24]), torch.Size([2, 8, 100, 100]))
    """

    def forward(
        self,
        x: Tensor,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        position: Any = None,
        need_weights: bool = False,
        packing: Packing | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Transform a sequence.

        Args:
            x: ``[batch, length, embed_dim]``.
            valid_lens: How many leading tokens count, ``[batch]`` or ``[batch, length]``.
            mask: As in ``MultiHeadAttention``.
            position: Rotations or slopes, as in ``MultiHeadAttention``.
            need_weights: Return the weights as well.
            packing: What left out the padding of ``x``, ``[1, tokens, embed_dim]``, and in
                place of lengths and mask; the output is packed likewise.

        Returns:
            ``[batch, length, embed_dim]``, where rows of padding mean nothing;
            with ``need_weights`` also the weights, ``[batch, num_heads, length, length]``.

        Raises:
            TypeError: A tensor has the wrong kind of numbers; a mask holds no booleans.
            ValueError: A shape, a length or a combination is out of place.
        """
        check_tokens("x", x, "length", self.embed_dim)
        asked = {"valid_lens": valid_lens, "mask": mask, "position": position, "packing": packing}
        if self.norm == "post":
            update, weights = _attend(self.self_attention, x, need_weights, **asked)
            x = self.norm1(x, update)
            x = self.norm2(x, self.feed_forward(x))
        else:
            update, weights = _attend(self.self_attention, self.norm1(x), need_weights, **asked)
            normed, x = self.norm2(x, update, return_sum=True)
            x = x + self.dropout(self.feed_forward(normed))
        return x if weights is None else (x, weights)


class DecoderLayer(_Layer):
    """Let each token look at those before it, then at the source, then think.

    As ``EncoderLayer``, with a third sublayer between the two: cross-attention, whose keys
    and values are the memory, the encoder's output. Self-attention is causal in training and
    evaluation alike: token i sees tokens 0 to i.

    Args:
        embed_dim: As in ``EncoderLayer``; also the width of the memory.
        num_heads: As in ``EncoderLayer``, for each of the two attentions.
        hidden_dim: As in ``EncoderLayer``.
        dropout: As in ``EncoderLayer``.
        norm: As in ``EncoderLayer``.
        activation: As in ``EncoderLayer``.
        bias: As in ``EncoderLayer``.
        impl: As in ``EncoderLayer``.

    Raises:
        ValueError: A number or a name is out of place.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.1.

    Example:
        >>> import torch
        >>> layer = DecoderLayer(embed_dim=24, num_heads=8, hidden_dim=48)
        >>> x, memory, lens = torch.rand(2, 5, 24), torch.rand(2, 7, 24), torch.tensor([7, 2])
        >>> output = layer(x, memory, memory_lens=lens)
        >>> start = layer(x[:, :3], memory, memory_lens=lens)  # without the last two tokens
        >>> output.shape, torch.allclose(start, output[:, :3], atol=1e-6)
        (torch.Size([2, 5, 24]), True)
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        dropout: float = 0.0,
        norm: str = "post",
        activation: str = "relu",
        bias: bool = True,
        impl: str = "auto",
    ) -> None:
        super().__init__(
            embed_dim, num_heads, hidden_dim, dropout=dropout, norm=norm, activation=activation,
            bias=bias, impl=impl,
        )  # fmt: skip
        self.cross_attention = MultiHeadAttention(
            embed_dim, num_heads, dropout=dropout, bias=bias, impl=impl
        )
        self.norm3 = AddNorm(embed_dim, dropout=dropout, bias=bias, impl=impl)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | KeyValueCache,
        *,
        memory_lens: Tensor | None = None,
        position: Any = None,
        cache: KeyValueCache | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Transform a sequence, or the next tokens of one.

        Args:
            x: ``[batch, length, embed_dim]``.
            memory: The encoder's output, ``[batch, memory_len, embed_dim]``; or what
                ``cross_attention.remember`` made of it.
            memory_lens: How many leading vectors of the memory count, ``[batch]``.
            position: Rotations or slopes for self-attention, as in ``MultiHeadAttention``.
            cache: Keys and values of the tokens before ``x``, to which those of ``x`` are
                appended: it is the one argument that changes.
            need_weights: Return the weights as well.

        Returns:
            ``[batch, length, embed_dim]``; with ``need_weights`` also the weights of
            self-attention, ``[batch, num_heads, length, earlier + length]``, and of
            cross-attention, ``[batch, num_heads, length, memory_len]``.

        Raises:
            TypeError: A tensor has the wrong kind of numbers.
            ValueError: A shape, a length, a cache or a combination is out of place.
        """
        check_tokens("x", x, "length", self.embed_dim)
        past = {"is_causal": True, "cache": cache, "position": position}
        source: dict[str, Any] = {"valid_lens": memory_lens}
        if isinstance(memory, KeyValueCache):
            source["cache"] = memory
        else:
            check_tokens("memory", memory, "memory_len", self.embed_dim)
            if memory_lens is not None:
                check_ids("memory_lens", memory_lens, x.shape[:1], memory.shape[1] + 1)
            source["key"] = memory
        if self.norm == "post":
            update, own = _attend(self.self_attention, x, need_weights, **past)
            x = self.norm1(x, update)
            update, cross = _attend(self.cross_attention, x, need_weights, **source)
            x = self.norm2(x, update)
            x = self.norm3(x, self.feed_forward(x))
        else:
            update, own = _attend(self.self_attention, self.norm1(x), need_weights, **past)
            normed, x = self.norm2(x, update, return_sum=True)
            update, cross = _attend(self.cross_attention, normed, need_weights, **source)
            normed, x = self.norm3(x, update, return_sum=True)
            x = x + self.dropout(self.feed_forward(normed))
        return x if own is None or cross is None else (x, own, cross)


def _attend(
    attention: nn.Module, query: Tensor, need_weights: bool, **asked: Any
) -> tuple[Tensor, Tensor | None]:
    """Output and weights, which are ``None`` unless needed."""
    found = attention(query, need_weights=need_weights, **asked)
    return found if need_weights else (found, None)
