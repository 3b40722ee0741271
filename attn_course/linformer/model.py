"""The Linformer: an encoder over vectors, and one over tokens."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from attn_course._masks import shorter
from attn_course._validation import check_counts, check_ids, check_tensor
from attn_course.linformer import ops
from attn_course.linformer.block import LinformerBlock
from attn_course.linformer.layer import check_causal, check_input, make_projection, width_of_head
from attn_course.linformer.projection import SequenceProjection, check_length
from attn_course.transformer import TokenEmbedding


class Linformer(nn.Module):
    """Blocks one upon the other, over sequences of vectors, in time and memory linear in n.

    Args:
        embed_dim: Width of a token, before and after.
        num_heads: How many heads.
        input_len: The longest sequence, n; shorter ones need no padding.
        projected_len: Slots, k; with ``causal="block"`` of a block.
        hidden_dim: Width within the feed-forward networks; ``None``: there are none.
        num_layers: How many blocks.
        intermediate_dim: Width of a token between the blocks; ``None``: ``embed_dim``. The
            feed-forward networks change it.
        head_dim: Width of a head; ``None``: ``embed_dim / num_heads``.
        projection: As in ``LinformerAttention``, and so the next four.
        projection_bias: Whether learned projections add a bias.
        sharing: ``"none"``, ``"headwise"``, ``"key_value"`` or ``"layerwise"``.
        reduce_by_layer: By how much each block has fewer slots than the one before; it needs
            a projection for each block.
        full_attention: Attend to all positions: for comparison.
        causal: As in ``LinformerAttention``.
        block_len: As in ``LinformerAttention``.
        dropout: As in ``LinformerBlock``, and so the next four.
        feed_forward_dropout: ``None``: as ``dropout``.
        norm: ``"post"``, or ``"pre"``, which ends in one more norm.
        activation: ``"gelu"`` or ``"relu"``.
        checkpoint_level: ``"C0"``, ``"C1"`` or ``"C2"``.
        output_rank: As in ``LinformerAttention``.
        impl: As in ``linformer_attention``.

    Raises:
        ValueError: A number, a name or a combination is out of place.

    Reference:
        Wang et al. (2020), Linformer: Self-attention with linear complexity.

    Example:
        >>> model = Linformer(8, 2, input_len=100, projected_len=16, hidden_dim=32, num_layers=3)
        >>> x, lens = torch.rand(3, 50, 8), torch.tensor([50, 20, 1])
        >>> output, weights = model(x, valid_lens=lens, need_weights=True)
        >>> output.shape, len(weights), weights[0].shape
        (torch.Size([3, 50, 8]), 3, torch.Size([3, 2, 50, 16]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        input_len: int,
        projected_len: int,
        hidden_dim: int | None,
        num_layers: int,
        *,
        intermediate_dim: int | None = None,
        head_dim: int | None = None,
        projection: str = "learnable",
        projection_bias: bool = False,
        sharing: str = "layerwise",
        reduce_by_layer: int = 0,
        full_attention: bool = False,
        causal: bool | str = False,
        block_len: int | None = None,
        dropout: float = 0.0,
        feed_forward_dropout: float | None = None,
        norm: str = "post",
        activation: str = "gelu",
        checkpoint_level: str = "C0",
        output_rank: int | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_counts(
            embed_dim=embed_dim, num_heads=num_heads, input_len=input_len,
            projected_len=projected_len, num_layers=num_layers,
        )  # fmt: skip
        check_causal(causal, block_len, full_attention)
        slots = _slots(projected_len, num_layers, reduce_by_layer, sharing)
        inside = embed_dim if intermediate_dim is None else intermediate_dim
        if inside != embed_dim and hidden_dim is None:
            raise ValueError(
                "intermediate_dim needs feed-forward networks, which change the width: give "
                f"hidden_dim, got {hidden_dim} with intermediate_dim={intermediate_dim}."
            )
        check_counts(intermediate_dim=inside)
        head_dim = width_of_head(embed_dim, num_heads, head_dim)
        self.embed_dim, self.num_heads, self.num_layers = embed_dim, num_heads, num_layers
        self.input_len, self.full_attention = input_len, full_attention
        self.projection: SequenceProjection | None = None
        if sharing == "layerwise" and not full_attention:
            self.projection = make_projection(
                input_len if block_len is None else block_len, projected_len, num_heads, head_dim,
                projection=projection, projection_bias=projection_bias, sharing=sharing,
                causal=causal,
            )  # fmt: skip
        self.blocks = nn.ModuleList(
            LinformerBlock(
                embed_dim if layer == 0 else inside, num_heads, input_len, slots[layer],
                hidden_dim, output_dim=embed_dim if layer == num_layers - 1 else inside,
                dropout=dropout, feed_forward_dropout=feed_forward_dropout, norm=norm,
                activation=activation, checkpoint_level=checkpoint_level, impl=impl,
                head_dim=head_dim, projection=projection, projection_bias=projection_bias,
                sharing=sharing, shared=self.projection, full_attention=full_attention,
                causal=causal, block_len=block_len, output_rank=output_rank,
            )
            for layer in range(num_layers)
        )  # fmt: skip
        self.final_norm = nn.LayerNorm(embed_dim) if norm == "pre" else nn.Identity()

    @overload
    def forward(
        self, x: Tensor, *, valid_lens: Tensor | None = ..., need_weights: Literal[False] = ...
    ) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, *, valid_lens: Tensor | None = ..., need_weights: Literal[True]
    ) -> tuple[Tensor, list[Tensor]]: ...

    @overload
    def forward(
        self, x: Tensor, *, valid_lens: Tensor | None = ..., need_weights: bool
    ) -> Tensor | tuple[Tensor, list[Tensor]]: ...

    def forward(
        self, x: Tensor, *, valid_lens: Tensor | None = None, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Encode.

        Args:
            x: ``[batch, len, embed_dim]``, at most ``input_len`` long.
            valid_lens: How many leading positions count, ``[batch]``.
            need_weights: Return the weights as well.

        Returns:
            ``[batch, len, embed_dim]``; what padding holds changes nothing, and rows of
            padding mean nothing in particular. With ``need_weights`` also a list of each
            layer's weights, as in ``LinformerAttention``: layers may have more or fewer slots.

        Raises:
            TypeError: ``x`` holds no floating-point numbers, ``valid_lens`` no integers.
            ValueError: ``x`` is longer than ``input_len``, or a shape or a length is out of
                place.
        """
        lens = check_input(x, self.embed_dim, self.input_len, valid_lens)
        layers: list[Tensor] = []
        for block in self.blocks:
            x = block(x, valid_lens=lens, need_weights=need_weights)
            if need_weights:
                x, weights = x
                layers.append(weights)
        output: Tensor = self.final_norm(x)
        return (output, layers) if need_weights else output


class LinformerLM(nn.Module):
    """A Linformer over tokens: embedding, positions, blocks, and scores of all tokens.

    Without ``causal="block"`` every position sees all, as for masked language models.

    Args:
        vocab_size: How many token ids there are.
        embed_dim: As in ``Linformer``, and so the next five.
        num_heads: How many heads.
        input_len: The longest sequence.
        projected_len: Slots.
        hidden_dim: Width within the feed-forward networks, or ``None``.
        num_layers: How many blocks.
        token_dim: Width of the embedding and of what the scores are computed from; linear
            maps lead from it to ``embed_dim`` and back. ``None``: ``embed_dim``, without maps.
        position: ``"sinusoidal"``, ``"learned"``, a module that adds positions to
            ``[batch, len, token_dim]``, called with an offset as second argument; or ``None``.
        scale_embedding: As ``scale`` in ``TokenEmbedding``.
        token_dropout: Probability with which a number of an embedded token is dropped.
        output_head: Whether scores are computed; else vectors are returned.
        options: The others of ``Linformer``.

    Raises:
        ValueError: A number, a name or a combination is out of place.

    Reference:
        Wang et al. (2020), Linformer: Self-attention with linear complexity, section 5.

    Example:
        >>> model = LinformerLM(200, 8, 2, input_len=100, projected_len=16, hidden_dim=32,
        ...                     num_layers=2, token_dim=4)
        >>> model(torch.randint(200, (3, 50))).shape
        torch.Size([3, 50, 200])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_heads: int,
        input_len: int,
        projected_len: int,
        hidden_dim: int | None,
        num_layers: int,
        *,
        token_dim: int | None = None,
        position: str | nn.Module | None = "sinusoidal",
        scale_embedding: bool = True,
        token_dropout: float = 0.0,
        output_head: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        token_dim = embed_dim if token_dim is None else token_dim
        check_counts(token_dim=token_dim)
        self.vocab_size, self.input_len = vocab_size, input_len
        module = isinstance(position, nn.Module)
        self.embedding = TokenEmbedding(
            vocab_size, token_dim, position=None if module else position,  # type: ignore[arg-type]
            max_len=input_len if position == "learned" else None, scale=scale_embedding,
            dropout=token_dropout,
        )  # fmt: skip
        if isinstance(position, nn.Module):
            self.embedding.position = position
        self.linformer = Linformer(
            embed_dim, num_heads, input_len, projected_len, hidden_dim, num_layers, **options
        )
        self.project_in: nn.Linear | None = None
        self.project_out: nn.Linear | None = None
        if token_dim != embed_dim:
            self.project_in = nn.Linear(token_dim, embed_dim)
            self.project_out = nn.Linear(embed_dim, token_dim)
        self.head = nn.Linear(token_dim, vocab_size) if output_head else None

    def forward(
        self, ids: Tensor, *, valid_lens: Tensor | None = None, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Score all tokens at each position.

        Args:
            ids: Token ids, ``[batch, len]``, at most ``input_len`` of them. What stands past
                a sequence's length is not read.
            valid_lens: How many leading tokens count, ``[batch]``.
            need_weights: Return the weights as well.

        Returns:
            Logits, ``[batch, len, vocab_size]``; without a head, vectors,
            ``[batch, len, token_dim]``; with ``need_weights`` also a list of each layer's
            weights.

        Raises:
            TypeError: An argument does not hold integers.
            ValueError: A sequence is longer than ``input_len``, or a shape, an id or a length
                is out of place.
        """
        check_tensor("ids", ids)
        if ids.ndim != 2 or ids.shape[1] == 0:
            raise ValueError(f"ids must have shape [batch, len], got {list(ids.shape)}.")
        check_length("ids", ids.shape[1], self.input_len)
        lens = ops.check_lens(valid_lens, ids.unsqueeze(-1))
        lens = shorter(lens, ids.shape[1])
        if lens is not None:
            padding = torch.arange(ids.shape[1], device=ids.device) >= lens[:, None]
            ids = ids.masked_fill(padding, 0)
        if ids.numel():
            check_ids("ids", ids, tuple(ids.shape), self.vocab_size)
        x = embedded = self.embedding(ids)
        if self.project_in is not None:
            x = self.project_in(x).to(embedded.dtype)  # half precision under autocast
        found: Any = self.linformer(x, valid_lens=lens, need_weights=need_weights)
        x, weights = found if need_weights else (found, None)
        if self.project_out is not None:
            x = self.project_out(x)
        output: Tensor = x if self.head is None else self.head(x)
        return output if weights is None else (output, weights)


def _slots(projected_len: int, num_layers: int, less: int, sharing: str) -> list[int]:
    """How many slots each layer has."""
    if isinstance(less, bool) or not isinstance(less, int) or less < 0:
        raise ValueError(f"reduce_by_layer must be an integer of at least 0, got {less!r}.")
    if less and sharing == "layerwise":
        raise ValueError(
            "reduce_by_layer asks for fewer slots in each layer, and sharing='layerwise' for one "
            f"projection for all, got reduce_by_layer={less}: share 'key_value' at most."
        )
    last = projected_len - less * (num_layers - 1)
    if last < 1:
        raise ValueError(
            f"reduce_by_layer must leave at least 1 slot, got {less}: the last of {num_layers} "
            f"layers would have {last} of projected_len = {projected_len}."
        )
    return [projected_len - less * layer for layer in range(num_layers)]
