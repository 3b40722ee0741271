"""Linformer's multi-head attention as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from attn_course._masks import shorter
from attn_course._padding import clear_rows
from attn_course._validation import check_choice, check_counts, check_dropout, check_floating
from attn_course.dot_product import dot_product_attention
from attn_course.linformer import ops
from attn_course.linformer.causal import causal_linformer_attention
from attn_course.linformer.projection import ALL, SequenceProjection, check_length
from attn_course.multi_head import merge_heads, split_heads

SHARING = ("none", "headwise", "key_value", "layerwise")


class LinformerAttention(nn.Module):
    """Multi-head self-attention to k projected positions in place of n.

        head_h = softmax(Q_h (E_h K_h)^T / sqrt(head_dim)) (F_h V_h),   output = W_o [head_1; ...]

    Products are taken in the order that needs the least, which is a matter of brackets: where
    heads share E, it is E X that is computed, once, in place of K = X W_k and E K for each
    head; and where a head is as wide as a token or wider, queries and answers of the width of
    a head are never made, since ``Q_h K'^T = X (W_q,h K'^T)``.

    Args:
        embed_dim: Width of a token.
        num_heads: How many heads.
        input_len: The longest sequence, n.
        projected_len: Slots, k; with ``causal="block"`` of a block.
        head_dim: Width of a head; ``None``: ``embed_dim / num_heads``.
        projection: ``"learnable"``, ``"convolution"``, ``"pooling"`` or ``"random"``: see
            ``SequenceProjection``.
        projection_bias: Whether learned projections add a number to each slot (convolutions:
            to each column).
        sharing: Which projections are one. ``"none"``: each head has its E and its F.
            ``"headwise"``: all heads have the same E and the same F. ``"key_value"``: and E
            is F. ``"layerwise"``: and layers share it, which is then given as ``shared``.
        shared: The projection of all layers, with ``sharing="layerwise"``. It belongs to
            whoever made it: its parameters are not this layer's. ``None``: one is made here.
        full_attention: Attend to all n keys and values: for comparison, with the same
            parameters but the projections.
        causal: ``"block"``: the causal form, ``causal_linformer_attention``. ``True`` is
            refused, unless attention is full: a mask does not make Linformer causal.
        block_len: Positions of a block, exactly if ``causal="block"``.
        dropout: Probability with which a weight is dropped in training.
        output_rank: w: the output is mapped by two matrices, to w columns and from there;
            ``None``: by one.
        checkpoint_heads: Compute head by head, and each again in the backward pass: nothing
            that is as long as the sequence is kept for a head.
        impl: As in ``linformer_attention``.

    Raises:
        ValueError: A number, a name or a combination is out of place.

    Reference:
        Wang et al. (2020), Linformer: Self-attention with linear complexity, section 4.

    Example:
        >>> attention = LinformerAttention(8, 2, input_len=100, projected_len=16)
        >>> x, lens = torch.rand(3, 50, 8), torch.tensor([50, 20, 1])
        >>> output, weights = attention(x, valid_lens=lens, need_weights=True)
        >>> output.shape, weights.shape
        (torch.Size([3, 50, 8]), torch.Size([3, 2, 50, 16]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        input_len: int,
        projected_len: int,
        *,
        head_dim: int | None = None,
        projection: str = "learnable",
        projection_bias: bool = False,
        sharing: str = "key_value",
        shared: SequenceProjection | None = None,
        full_attention: bool = False,
        causal: bool | str = False,
        block_len: int | None = None,
        dropout: float = 0.0,
        output_rank: int | None = None,
        checkpoint_heads: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_counts(embed_dim=embed_dim, num_heads=num_heads)
        check_dropout("dropout", dropout)
        check_impl(impl, projection, full_attention, causal, dropout)
        head_dim = width_of_head(embed_dim, num_heads, head_dim)
        check_causal(causal, block_len, full_attention)
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.input_len, self.sharing, self.full_attention = input_len, sharing, full_attention
        self.causal, self.dropout = causal, dropout
        self.checkpoint_heads, self.impl = checkpoint_heads, impl
        self.W_q, self.W_k, self.W_v = (
            nn.Linear(embed_dim, num_heads * head_dim, bias=False) for _ in range(3)
        )
        if output_rank is not None:
            check_counts(output_rank=output_rank)
        self.W_o = nn.Linear(num_heads * head_dim, output_rank or embed_dim)
        self.W_o2 = None if output_rank is None else nn.Linear(output_rank, embed_dim)
        for linear in (self.W_q, self.W_k, self.W_v, self.W_o, self.W_o2):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

        self.key_projection: SequenceProjection | None = None
        self.value_projection: SequenceProjection | None = None
        # In a tuple: a module that is shared is registered, saved and moved where it was made.
        self._shared: tuple[SequenceProjection, ...] = ()
        check_choice("sharing", sharing, SHARING)
        if shared is not None and (sharing != "layerwise" or full_attention):
            raise ValueError(
                f"shared is for sharing='layerwise', got sharing={sharing!r} and "
                f"full_attention={full_attention}."
            )
        if full_attention:
            check_counts(input_len=input_len)
            return
        made = make_projection(
            input_len if block_len is None else block_len, projected_len, num_heads, head_dim,
            projection=projection, projection_bias=projection_bias, sharing=sharing, causal=causal,
        ) if shared is None else shared  # fmt: skip
        expected = (input_len if block_len is None else block_len, projected_len, projection)
        if (made.input_len, made.projected_len, made.kind) != expected:
            raise ValueError(
                "shared must have this layer's input_len (or block_len), projected_len and "
                f"projection, {expected}, got {(made.input_len, made.projected_len, made.kind)}."
            )
        if shared is not None:
            self._shared = (shared,)
            return
        self.key_projection = made
        if sharing in ("none", "headwise"):
            self.value_projection = make_projection(
                made.input_len, projected_len, num_heads, head_dim,
                projection=projection, projection_bias=projection_bias, sharing=sharing,
                causal=causal,
            )  # fmt: skip

    @property
    def projections(self) -> tuple[SequenceProjection, SequenceProjection]:
        """That of the keys and that of the values, which may be one.

        Raises:
            ValueError: Attention is full: there is none.
        """
        if self.full_attention:
            raise ValueError("full_attention=True: there is no projection.")
        keys = self._shared[0] if self._shared else self.key_projection
        assert keys is not None
        return keys, self.value_projection or keys

    def forward(
        self, x: Tensor, *, valid_lens: Tensor | None = None, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend.

        Args:
            x: ``[batch, len, embed_dim]``, at most ``input_len`` long.
            valid_lens: How many leading positions count, ``[batch]``.
            need_weights: Return the weights as well.

        Returns:
            ``[batch, len, embed_dim]``; rows of padding mean nothing in particular. With
            ``need_weights`` also the weights of each head, ``[batch, num_heads, len, slots]``:
            as many slots as ``projected_len``, or, for pooling and convolution, as stretches
            that ``x`` reaches; with ``causal="block"`` as in ``causal_linformer_attention``,
            with full attention one for each position.

        Raises:
            TypeError: ``x`` holds no floating-point numbers, ``valid_lens`` no integers.
            ValueError: ``x`` is longer than ``input_len``, or a shape or a length is out of
                place.
        """
        lens = check_input(x, self.embed_dim, self.input_len, valid_lens)
        x = clear(x, lens)
        reduced = self._reduced(x, lens)
        if self.checkpoint_heads or (self.dropout and self.training):
            # Also with dropout: each head then draws the same, whether checkpointed or not.
            heads = [slice(h, h + 1) for h in range(self.num_heads)]
        else:
            heads = [ALL]
        found: list[Any] = []
        output: Tensor | None = None
        for h in heads:
            if self.checkpoint_heads and torch.is_grad_enabled():
                part, weights = checkpoint(
                    self._heads, x, *reduced, lens, h, need_weights, use_reentrant=False
                )
            else:
                part, weights = self._heads(x, *reduced, lens, h, need_weights)
            output = part if output is None else output + part
            found.append(weights)
        assert output is not None
        assert self.W_o.bias is not None
        output = output + self.W_o.bias.to(output.dtype)
        if self.W_o2 is not None:
            output = self.W_o2(output)
        return (output, torch.cat(found, 1)) if need_weights else output

    def _reduced(self, x: Tensor, lens: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """E X and F X, ``[batch, slots, embed_dim]``, where heads share them."""
        if self.full_attention or self.causal or not self.projections[0].before_heads:
            return None, None
        keys, values = self.projections
        projected = keys.project(x, lens, impl=self._projecting)
        return projected, projected if values is keys else values.project(
            x, lens, impl=self._projecting
        )

    @property
    def _projecting(self) -> str:
        return self.impl if self.impl in ("reference", "triton") else "auto"

    def _heads(
        self, x: Tensor, reduced_key: Tensor | None, reduced_value: Tensor | None,
        lens: Tensor | None, heads: slice, need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """What some heads add to the output before its bias, ``[batch, len, width]``."""
        count = len(range(self.num_heads)[heads])
        first = (heads.start or 0) * self.head_dim
        rows = slice(first, first + count * self.head_dim)
        W_q, W_k, W_v = (w.weight[rows] for w in (self.W_q, self.W_k, self.W_v))
        W_o = self.W_o.weight[:, rows]
        key = split_heads(F.linear(x if reduced_key is None else reduced_key, W_k), count)
        value = split_heads(F.linear(x if reduced_value is None else reduced_value, W_v), count)
        slots = None
        if not (self.full_attention or self.causal):
            keys, values = self.projections
            if reduced_key is None:
                key = keys.project(key, lens, heads=heads, impl=self._projecting)
                value = values.project(value, lens, heads=heads, impl=self._projecting)
            key, value = keys.shift(key, heads), values.shift(value, heads)
            slots = keys.slot_lens(x.shape[1], lens)
            if self._folds(need_weights):
                return self._folded(x, W_q, key, value, W_o, slots), None
        query = split_heads(F.linear(x, W_q), count)
        found: Any = self._attend(query, key, value, lens, slots, heads, need_weights)
        answers, weights = found if need_weights else (found, None)
        return F.linear(merge_heads(answers), W_o), weights

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, lens: Tensor | None,
        slots: Tensor | None, heads: slice, need_weights: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        """Pool in some heads, ``[batch, heads, len, head_dim]``."""
        dropout_p = self.dropout if self.training else 0.0
        asked: dict[str, Any] = {"dropout_p": dropout_p, "need_weights": need_weights}
        if self.full_attention:
            return dot_product_attention(
                query, key, value, valid_lens=lens, is_causal=bool(self.causal),
                impl=self.impl, **asked,
            )  # fmt: skip
        if self.causal:
            E, F_ = (
                p.matrix() if p.num_heads is None else p.matrix()[heads] for p in self.projections
            )
            return causal_linformer_attention(
                query, key, value, E.to(key.dtype), F_.to(key.dtype), valid_lens=lens,
                impl=self.impl, **asked,
            )  # fmt: skip
        scale = self.head_dim**-0.5
        return ops.attend(query, key, value, scale=scale, slots=slots, impl=self.impl, **asked)

    def _folds(self, need_weights: bool) -> bool:
        """Whether W_q and W_o are better multiplied with the few slots than with all tokens."""
        narrow = max(self.embed_dim, self.W_o.out_features) <= self.head_dim
        return narrow and not need_weights and self.impl in ("auto", "blocked")

    def _folded(
        self, x: Tensor, W_q: Tensor, key: Tensor, value: Tensor, W_o: Tensor,
        slots: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Attention of tokens, as they are, to slots: the sum over heads is part of a product."""
        count = key.shape[1]
        key = key @ W_q.unflatten(0, (count, -1)).to(key.dtype)  # [batch, heads, slots, embed_dim]
        value = value @ W_o.unflatten(1, (count, -1)).permute(1, 2, 0).to(value.dtype)
        return ops.attend_summed(
            x, key, value, scale=self.head_dim**-0.5, slots=slots,
            dropout_p=self.dropout if self.training else 0.0,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        kind = "full_attention=True" if self.full_attention else f"sharing={self.sharing!r}"
        causal = f", causal={self.causal!r}" if self.causal else ""
        return (
            f"num_heads={self.num_heads}, head_dim={self.head_dim}, {kind}{causal}, "
            f"dropout={self.dropout}, impl={self.impl!r}"
        )


def make_projection(
    input_len: int, projected_len: int, num_heads: int, head_dim: int, *,
    projection: str, projection_bias: bool, sharing: str, causal: bool | str = False,
) -> SequenceProjection:  # fmt: skip
    """One projection, with a matrix for each head exactly if nothing is shared."""
    if causal and (projection == "convolution" or projection_bias):
        raise ValueError(
            "causal='block' projects blocks by a matrix: projection may not be 'convolution', "
            f"and projection_bias must be False, got {projection!r} and {projection_bias}."
        )
    return SequenceProjection(
        input_len, projected_len, kind=projection, bias=projection_bias, head_dim=head_dim,
        num_heads=num_heads if sharing == "none" and projection != "pooling" else None,
    )  # fmt: skip


def width_of_head(embed_dim: int, num_heads: int, head_dim: int | None) -> int:
    """The width of a head, from what was asked for."""
    if head_dim is not None:
        check_counts(head_dim=head_dim)
        return head_dim
    if embed_dim % num_heads:
        raise ValueError(
            "embed_dim must be a multiple of num_heads, unless head_dim says how wide a head "
            f"is, got {embed_dim} for {num_heads} heads."
        )
    return embed_dim // num_heads


def check_causal(causal: bool | str, block_len: int | None, full_attention: bool) -> None:
    """Raise unless what is asked for is causal."""
    if causal is True and not full_attention:
        raise ValueError(
            "causal=True cannot be had: every slot is a sum over the whole sequence, so a query "
            "that sees any slot sees the future, and a mask on the [len, projected_len] weights "
            "hides slots, not positions. causal='block' projects block by block and is causal; "
            "so is full_attention=True."
        )
    if not isinstance(causal, bool) and (causal != "block" or full_attention):
        kinds = "False or True with full_attention=True" if full_attention else "False or 'block'"
        raise ValueError(f"causal must be {kinds}, got {causal!r}.")
    if (causal == "block") != (block_len is not None):
        raise ValueError(
            f"block_len must be given exactly if causal='block', got {block_len!r} with "
            f"causal={causal!r}."
        )
    if block_len is not None:
        check_counts(block_len=block_len)


def check_impl(
    impl: str, projection: str, full_attention: bool, causal: bool | str, dropout: float
) -> None:
    """Raise unless an implementation does what is asked for."""
    check_choice("impl", impl, ops.IMPLEMENTATIONS)
    if impl == "blocked" and (full_attention or causal):
        raise ValueError("impl='blocked' is for few keys, not for full or causal attention.")
    if impl != "triton" or full_attention:
        return
    if projection in ("pooling", "convolution") and not causal:
        raise ValueError(
            "impl='triton' has kernels for projections by a matrix, 'learnable' and 'random', "
            f"got projection={projection!r}."
        )
    if dropout:
        raise ValueError(f"dropout must be 0 with impl='triton', got {dropout}.")


def check_input(
    x: Tensor, embed_dim: int, input_len: int, valid_lens: Tensor | None
) -> Tensor | None:
    """Check a layer's input; the lengths if they hide anything."""
    check_floating("x", x)
    if x.ndim != 3 or x.shape[2] != embed_dim or x.shape[1] == 0:
        raise ValueError(f"x must have shape [batch, len, {embed_dim}], got {list(x.shape)}.")
    check_length("x", x.shape[1], input_len)
    return shorter(ops.check_lens(valid_lens, x), x.shape[1])


def clear(x: Tensor, lens: Tensor | None) -> Tensor:
    """Zero padding that holds what could do harm, NaN above all, ``[batch, len, embed_dim]``."""
    if lens is None:
        return x
    return clear_rows(x, torch.arange(x.shape[1], device=x.device) >= lens[:, None])
