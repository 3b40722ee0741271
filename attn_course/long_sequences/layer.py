"""Windowed self-attention as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attn_course._masks import check_valid_lens
from attn_course._padding import clear_rows
from attn_course._validation import check_choice, check_tokens
from attn_course.long_sequences import ops
from attn_course.multi_head import MultiHeadAttention, merge_heads, split_heads


class WindowedSelfAttention(nn.Module):
    """Multi-head self-attention in which each position sees its neighbours alone.

    The projections are those of ``MultiHeadAttention``, here called ``heads``: a window adds
    no parameter and takes none away, and ``layer.heads(x)`` is full attention with the same
    weights.

    Args:
        embed_dim: Width of what comes and goes; a multiple of ``num_heads``.
        num_heads: How many heads.
        window: As in ``windowed_attention``, and so the next three.
        kind: ``"sliding"`` or ``"block"``.
        dilation: Positions in a step of a sliding window.
        is_causal: Whether positions see no later ones.
        bias: Whether the four projections add a bias.
        impl: As in ``windowed_attention``.

    Raises:
        TypeError: An option has the wrong type.
        ValueError: A size, a name or a combination is out of place.

    Reference:
        Beltagy et al. (2020), Longformer, section 3.1.

    Example:
        >>> attention = WindowedSelfAttention(8, 2, window=3)
        >>> attention(torch.rand(2, 50, 8), valid_lens=torch.tensor([50, 20])).shape
        torch.Size([2, 50, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        window: ops.Window,
        *,
        kind: str = "sliding",
        dilation: int = 1,
        is_causal: bool = False,
        bias: bool = True,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        ops.check_window(window, kind, dilation, is_causal)
        check_choice("impl", impl, ops.IMPLEMENTATIONS)
        self.window, self.kind, self.dilation = window, kind, dilation
        self.is_causal, self.impl = is_causal, impl
        self.heads = MultiHeadAttention(embed_dim, num_heads, bias=bias)

    def forward(
        self, x: Tensor, *, valid_lens: Tensor | None = None, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Answer each position from its neighbours.

        Args:
            x: ``[batch, len, embed_dim]``.
            valid_lens: How many leading positions count, ``[batch]``.
            need_weights: Return the weights as well.

        Returns:
            ``[batch, len, embed_dim]``; with ``need_weights`` also the weights of each head,
            ``[batch, num_heads, len, len]``, zeros outside the window. A position that sees
            none gets the bias of the last projection.

        Raises:
            TypeError: ``x`` holds no floating-point numbers, ``valid_lens`` no integers.
            ValueError: A shape or a length is out of place.
        """
        heads = self.heads
        check_tokens("x", x, "len", heads.embed_dim)
        (batch, length, _), device = x.shape, x.device
        if valid_lens is not None:
            lens = check_valid_lens(valid_lens, (batch,), length, length, device)
            if valid_lens.ndim != 1:
                raise ValueError(
                    f"valid_lens must have shape [{batch}], got {list(valid_lens.shape)}."
                )
            assert lens is not None
            # Before the projections, whose gradients would multiply NaN from padding by 0.
            x = clear_rows(x, torch.arange(length, device=device) >= lens)
        query = split_heads(heads.W_q(x), heads.num_heads)  # [batch, heads, len, head_dim]
        key = split_heads(heads.project_keys(x), heads.num_heads)
        value = split_heads(heads.project_values(x), heads.num_heads)
        found = ops.windowed_attention(
            query,
            key,
            value,
            window=self.window,
            kind=self.kind,
            dilation=self.dilation,
            is_causal=self.is_causal,
            valid_lens=valid_lens,
            need_weights=need_weights,
            impl=self.impl,
        )
        if isinstance(found, tuple):
            return heads.W_o(merge_heads(found[0])), found[1]
        output: Tensor = heads.W_o(merge_heads(found))
        return output

    def extra_repr(self) -> str:
        """Shown when the layer is printed."""
        return (
            f"window={self.window}, kind={self.kind!r}, dilation={self.dilation}, "
            f"is_causal={self.is_causal}"
        )
