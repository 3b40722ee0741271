"""Multi-head attention as a layer, with PyTorch's and d2l's weights if you have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attn_course._padding import clear_rows, disarm_padding, harmless
from attn_course._validation import check_choice, check_counts, check_dropout
from attn_course._weights import load_named
from attn_course.dot_product import dot_product_attention
from attn_course.multi_head import loading, ops
from attn_course.multi_head.cache import KeyValueCache
from attn_course.multi_head.ops import merge_heads, split_heads
from attn_course.multi_head.packing import Packing
from attn_course.scoring import AdditiveAttention

IMPLEMENTATIONS = ("auto", "reference", "sdpa", "triton")


class MultiHeadAttention(nn.Module):
    """Several attention poolings side by side, each with projections of its own.

    Head i of h asks, compares and answers in its own ``head_dim = embed_dim / h`` numbers:

        head_i = attend(W_q,i q, W_k,i K, W_v,i V),    output = W_o [head_1; ...; head_h]

    The projections of all heads are stacked in one matrix each, so more heads do not mean
    more parameters: they share the same width.

    Args:
        embed_dim: Width of the output, and of the queries unless ``query_dim`` says
            otherwise; a multiple of ``num_heads``.
        num_heads: How many heads.
        query_dim: Width of the queries.
        key_dim: Width of the keys; ``None`` is ``embed_dim``.
        value_dim: Width of the values; ``None`` is ``embed_dim``.
        num_kv_heads: Heads of the keys and values, a divisor of ``num_heads``: each is
            shared by a group of query heads that follow each other. ``None``: as many.
        bias: Whether the four projections add a bias.
        dropout: Probability with which a weight is dropped in training.
        scoring: How heads compare: ``None`` by scaled dot products; ``"additive"`` by a
            network that all heads share, as wide as a head; or a module with
            ``project_keys`` and ``attend`` for queries and keys as wide as a head, which
            brings its own ``dropout`` and ``impl``.
        impl: As in ``dot_product_attention``, or for ``"additive"`` in
            ``additive_attention``.

    Raises:
        TypeError: ``scoring`` is a module without the methods it needs.
        ValueError: A size, a name or a combination is out of place.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.2.2; Ainslie et al.
        (2023), GQA, for ``num_kv_heads``.

    Example:
        >>> attention = MultiHeadAttention(embed_dim=100, num_heads=5)
        >>> query, key = torch.rand(2, 4, 100), torch.rand(2, 6, 100)
        >>> output, weights = attention(
        ...     query, key, valid_lens=torch.tensor([3, 2]), need_weights=True
        ... )
        >>> output.shape, weights.shape
        (torch.Size([2, 4, 100]), torch.Size([2, 5, 4, 6]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        query_dim: int | None = None,
        key_dim: int | None = None,
        value_dim: int | None = None,
        num_kv_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        scoring: str | nn.Module | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        query_dim = embed_dim if query_dim is None else query_dim
        key_dim = embed_dim if key_dim is None else key_dim
        value_dim = embed_dim if value_dim is None else value_dim
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_counts(
            embed_dim=embed_dim, num_heads=num_heads, query_dim=query_dim, key_dim=key_dim,
            value_dim=value_dim, num_kv_heads=num_kv_heads,
        )  # fmt: skip
        ops.check_heads(embed_dim, num_heads, num_kv_heads)
        check_dropout("dropout", dropout)
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, num_kv_heads
        self.head_dim = embed_dim // num_heads
        self.dropout, self.impl = dropout, impl
        self.scoring = self._make_scoring(scoring)
        kv_width = num_kv_heads * self.head_dim
        self.W_q = nn.Linear(query_dim, embed_dim, bias=bias)
        self.W_k = nn.Linear(key_dim, kv_width, bias=bias)
        self.W_v = nn.Linear(value_dim, kv_width, bias=bias)
        self.W_o = nn.Linear(embed_dim, embed_dim, bias=bias)
        self._widths = {"query": query_dim, "key": key_dim, "value": value_dim}
        self._silent: tuple[int, ...] = ()
        for projection in (self.W_q, self.W_k, self.W_v, self.W_o):
            # Queries and keys then vary as much as what they are made of: the scores of
            # chapter 2 have variance 1 before anything is learned.
            nn.init.xavier_uniform_(projection.weight)
            if bias:
                nn.init.zeros_(projection.bias)

    def _make_scoring(self, scoring: str | nn.Module | None) -> Any:
        """The module that compares, or ``None`` for the dot product."""
        if scoring is None:
            check_choice("impl", self.impl, IMPLEMENTATIONS)
            return None
        if isinstance(scoring, str):
            check_choice("scoring", scoring, ("additive",))
            width = self.head_dim
            return AdditiveAttention(width, width, width, dropout=self.dropout, impl=self.impl)
        lacking = [name for name in ("project_keys", "attend") if not hasattr(scoring, name)]
        if not isinstance(scoring, nn.Module) or lacking:
            raise TypeError(
                "scoring must be None, 'additive' or an nn.Module with project_keys and attend, "
                f"got {type(scoring).__name__}."
            )
        if self.dropout or self.impl != "auto":
            raise ValueError(
                "scoring is a module, which has a dropout and an impl of its own: give them to "
                f"it, got dropout={self.dropout} and impl={self.impl!r} here."
            )
        return scoring

    def project_keys(self, key: Tensor) -> Tensor:
        """The part that no query changes, ``[batch, key_len, num_kv_heads * head_dim]``.

        With ``project_values`` and ``attend`` it lets several heads stand where one
        scoring function is asked for, as in the decoder of chapter 3.
        """
        projected: Tensor = self.W_k(key)
        return projected

    def project_values(self, value: Tensor) -> Tensor:
        """The same for the values, ``[batch, key_len, num_kv_heads * head_dim]``."""
        projected: Tensor = self.W_v(value)
        return projected

    def attend(
        self,
        query: Tensor,
        projected_key: Tensor,
        projected_value: Tensor,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend with keys and values that are projected already; the rest as in ``forward``."""
        heads = (
            split_heads(self.W_q(query), self.num_heads),
            self._comparable(split_heads(projected_key, self.num_kv_heads)),
            split_heads(projected_value, self.num_kv_heads),
        )
        mask = ops.per_head(mask)
        return self._answer(*heads, need_weights=need_weights, valid_lens=valid_lens, mask=mask)

    def remember(
        self, key: Tensor, value: Tensor | None = None, *, valid_lens: Tensor | None = None
    ) -> KeyValueCache:
        """Project the memory of cross-attention once, to be read at every step.

        Args:
            key: ``[batch, key_len, key_dim]``.
            value: ``[batch, key_len, value_dim]``; ``None`` is ``key``.
            valid_lens: How many leading keys count, ``[batch]``. Give them to ``forward``
                too: here they only keep NaN in padding from the projections.

        Returns:
            A frozen cache: ``forward(query, cache=...)`` then reads it as if ``key`` and
            ``value`` were given.

        Raises:
            TypeError: A tensor does not hold floating-point numbers.
            ValueError: A shape is out of place.

        Example:
            >>> attention = MultiHeadAttention(8, 2)
            >>> query, memory = torch.rand(1, 3, 8), torch.rand(1, 5, 8)
            >>> cache = attention.remember(memory)
            >>> torch.equal(attention(query, cache=cache), attention(query, memory))
            True
        """
        value = key if value is None else value
        ops.check_inputs(self._widths, key=key, value=value)
        _, key, value = disarm_padding(key[:, :1], key, value, valid_lens=valid_lens)
        cache = KeyValueCache(frozen=True)
        cache.append(*self._project_memory(key, value, None, 0))
        return cache

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
        cache: KeyValueCache | None = None,
        position: ops.Position | None = None,
        packing: Packing | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Answer each query; without keys, from the queries' own sequence.

        With a cache, the given keys and values are appended to it, and all that it holds
        is attended to: ``key_len`` below counts them all, and query i stands at position
        ``past + i``, where ``past`` is what the cache held before. A frozen cache is read
        instead of ``key`` and ``value``.

        Args:
            query: ``[batch, query_len, query_dim]``.
            key: ``[batch, new_len, key_dim]``; ``None`` is ``query``: self-attention.
            value: ``[batch, new_len, value_dim]``; ``None`` is ``key``.
            valid_lens: How many leading keys count, ``[batch]`` or ``[batch, query_len]``.
            mask: ``True`` = may attend; ``[query_len, key_len]``, ``[batch, query_len,
                key_len]`` or ``[batch, num_heads, query_len, key_len]``, where any size
                may be 1.
            is_causal: The query at position p may see keys 0 to p.
            need_weights: Return the weights as well.
            cache: Earlier keys and values, of the same layer and batch. It is the one
                argument that changes.
            position: How heads know where they are. Either called on the queries and on
                the new keys of each head, as ``position(x, offset=past)``, which
                ``RotaryEmbedding`` suits; or the slopes of linear biases, ``[num_heads]``,
                from ``linear_slopes``.
            packing: What left out the padding of ``query``, whose shape is then ``[1,
                tokens, query_dim]``. Each of its sequences attends to itself; the output
                is packed likewise, and the weights, if needed, are not.

        Returns:
            ``[batch, query_len, embed_dim]``; with ``need_weights`` also the weights of
            each head before dropout, ``[batch, num_heads, query_len, key_len]``. Where a
            query may see no key, its weights and the answers of its heads are zero, and
            the output is the bias of ``W_o``.

        Raises:
            TypeError: A tensor has the wrong kind of numbers; a mask holds no booleans.
            ValueError: A shape, a length, a cache or a combination is out of place.
        """
        if cache is not None and cache.frozen and cache.length:
            if not (key is None and value is None and position is None):
                raise ValueError(
                    "cache is frozen: it is read instead of key and value and knows no "
                    "positions, so none of the three can be given."
                )
            return self._read(query, cache, valid_lens, mask, is_causal, need_weights)
        if key is None and value is not None:
            raise ValueError("value was given without key.")
        own = key is None  # self-attention
        key = query if key is None else key
        value = key if value is None else value
        ops.check_inputs(self._widths, query=query, key=key, value=value)
        if packing is not None:
            packing.check(query, alone=own and valid_lens is mask is cache is None)
        past = self._past(cache, query)
        key_len = past + key.shape[1]
        lens, mask = ops.check_masks(query, self.num_heads, key_len, valid_lens, mask)
        # Before the projections, whose gradients would multiply NaN from padding by 0.
        if (lens is not None or mask is not None) and not harmless(query, key, value):
            allowed = ops.some_head_sees(lens, mask, key_len)
            hidden, idle = ~allowed.any(-2)[:, past:], ~allowed.any(-1)
            if own and valid_lens is not None and valid_lens.ndim == 1:
                # What lies past the end of a sequence is padding as a query too.
                place = torch.arange(past, key_len, device=query.device)
                idle = idle | (place >= valid_lens.unsqueeze(1))
            query = clear_rows(query, idle)
            key, value = clear_rows(key, hidden), clear_rows(value, hidden)

        rotate, slopes = ops.two_kinds(position, self.num_heads)
        if slopes is not None and self.scoring is not None:
            raise ValueError(
                "position holds slopes, which are added to dot products: they do not go with "
                "another scoring."
            )
        if self.scoring is None and mask is cache is None and not need_weights:
            keys = packing if own else Packing.of(valid_lens, key_len)
            query_len = query.shape[1] if packing is None else packing.length
            if keys is not None and keys.is_long(query_len):
                how: dict[str, Any] = {"rotate": rotate, "is_causal": is_causal, "slopes": slopes}
                return self._one_by_one(query, key, value, packing, keys, **how)
        split = split_heads if packing is None else packing.split_heads
        q = split(self.W_q(query), self.num_heads)  # [batch, heads, query_len, head_dim]
        k, v = self._project_memory(key, value, rotate, past, packing)
        if rotate is not None:
            q = rotate(q, offset=past)
        if cache is not None:
            k, v = cache.append(k, v)
        return self._answer(
            q,
            k,
            v,
            valid_lens=valid_lens if packing is None else packing.lens,
            mask=mask,
            is_causal=is_causal,
            past=past,
            slopes=slopes,
            need_weights=need_weights,
            packing=packing,
        )

    def _one_by_one(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        packing: Packing | None,
        keys: Packing,
        *,
        rotate: Callable[..., Tensor] | None,
        is_causal: bool,
        slopes: Tensor | None,
    ) -> Tensor:
        """``forward`` for long sequences: each by itself, so that nothing is masked.

        In self-attention ``keys`` is ``packing``. Else the memory's padding is left out here,
        and not that of the queries.
        """
        if packing is None:
            shared = value is key
            key = keys.pack(key)
            value = key if shared else keys.pack(value)
        projected = self.W_q(query), self.W_k(key), self.W_v(value)
        queries = projected[0].split(1) if packing is None else packing.split(projected[0])
        answers = []
        for q, k, v in zip(queries, *(keys.split(x) for x in projected[1:]), strict=True):
            if k.shape[1] == 0:
                answers.append(torch.zeros_like(q))  # there is nothing to be seen
                continue
            q = split_heads(q, self.num_heads)
            k, v = split_heads(k, self.num_kv_heads), split_heads(v, self.num_kv_heads)
            if rotate is not None:
                q, k = rotate(q, offset=0), rotate(k, offset=0)
            heads, _ = self._pool(q, k, v, is_causal=is_causal, slopes=slopes)
            answers.append(merge_heads(heads))
        output: Tensor = self.W_o(torch.cat(answers, 0 if packing is None else 1))
        return output

    def _read(
        self,
        query: Tensor,
        memory: KeyValueCache,
        valid_lens: Tensor | None,
        mask: Tensor | None,
        is_causal: bool,
        need_weights: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """``forward`` with a frozen cache: only the queries are projected."""
        ops.check_inputs(self._widths, query=query)
        key_len = self._past(memory, query)
        lens, mask = ops.check_masks(query, self.num_heads, key_len, valid_lens, mask)
        if (lens is not None or mask is not None) and not harmless(query):
            query = clear_rows(query, ~ops.some_head_sees(lens, mask, key_len).any(-1))
        assert memory.key is not None and memory.value is not None
        return self._answer(
            split_heads(self.W_q(query), self.num_heads),
            memory.key,
            memory.value,
            valid_lens=valid_lens,
            mask=mask,
            is_causal=is_causal,
            need_weights=need_weights,
        )

    def _past(self, cache: KeyValueCache | None, query: Tensor) -> int:
        """How many positions the cache holds, once it is known to be this batch's."""
        if cache is None or cache.key is None:
            return 0
        batch = cache.key.shape[0]
        if batch != query.shape[0]:
            raise ValueError(
                f"cache holds a batch of {batch}, got a query with a batch of {query.shape[0]}: "
                "one cache serves one batch; its reorder() changes it."
            )
        return cache.length

    def _project_memory(
        self,
        key: Tensor,
        value: Tensor,
        position: Callable[..., Tensor] | None,
        past: int,
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Keys ready to be compared and values, both [batch, num_kv_heads, new_len, width]."""
        split = split_heads if packing is None else packing.split_heads
        k = split(self.W_k(key), self.num_kv_heads)
        if position is not None:
            k = position(k, offset=past)
        return self._comparable(k), split(self.W_v(value), self.num_kv_heads)

    def _comparable(self, key: Tensor) -> Tensor:
        """What the scoring function makes of the keys once, before any query comes."""
        projected: Tensor = key if self.scoring is None else self.scoring.project_keys(key)
        return projected

    def _answer(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        packing: Packing | None = None,
        **how: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Pool in every head and map the answers to the output; arguments as in ``_pool``."""
        heads, weights = self._pool(query, key, value, **how)
        merged = merge_heads(heads) if packing is None else packing.merge_heads(heads)
        output: Tensor = self.W_o(merged)  # [batch, query_len, embed_dim]
        return output if weights is None else (output, weights)

    def _pool(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = False,
        is_causal: bool = False,
        past: int = 0,
        slopes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """What each head answers, [batch, heads, len, width], and weights if needed."""
        found: Any  # the pair with need_weights, else the output
        if self.scoring is None:
            found = dot_product_attention(
                query,
                key,
                value,
                valid_lens=valid_lens,
                mask=mask,
                is_causal=is_causal,
                query_offset=past,
                bias_slopes=slopes,
                dropout_p=self.dropout if self.training else 0.0,
                need_weights=need_weights,
                impl=self.impl,
            )
        else:
            if is_causal:
                shape = query.shape[-2], key.shape[-2]
                seen = torch.ones(shape, dtype=torch.bool, device=query.device).tril(past)
                mask = seen if mask is None else mask & seen
            group = self.num_heads // self.num_kv_heads
            if group > 1:
                key = key.repeat_interleave(group, dim=1)
                value = value.repeat_interleave(group, dim=1)
            found = self.scoring.attend(
                query, key, value, valid_lens=valid_lens, mask=mask, need_weights=need_weights
            )
        heads, weights = found if need_weights else (found, None)
        if self._silent:
            off = torch.tensor([i in self._silent for i in range(self.num_heads)])
            heads = heads.masked_fill(off[:, None, None].to(heads.device), 0)
        return heads, weights

    @contextmanager
    def without_heads(self, *heads: int) -> Iterator[None]:
        """Within the ``with``, let these heads answer zero: what is lost without them?

        Their slice of what ``W_o`` reads is zero; the others are left as they are, and the
        weights are reported as usual.

        Args:
            heads: Their numbers, from 0.

        Raises:
            ValueError: There is no such head.

        Reference:
            Michel, Levy and Neubig (2019), Are sixteen heads really better than one?

        Example:
            >>> attention, x = MultiHeadAttention(8, 2), torch.rand(1, 3, 8)
            >>> with attention.without_heads(0, 1):
            ...     silence = attention(x)
            >>> torch.equal(silence, attention.W_o.bias.expand(1, 3, 8))
            True
        """
        for head in heads:
            if head not in range(self.num_heads):
                raise ValueError(f"heads must be integers in [0, {self.num_heads}), got {head!r}.")
        before = self._silent
        self._silent = tuple({*before, *heads})
        try:
            yield
        finally:
            self._silent = before

    def load_torch(self, source: nn.MultiheadAttention | Mapping[str, Tensor]) -> None:
        """Copy the weights of PyTorch's layer; outputs are then the same.

        PyTorch stacks the three input projections in one matrix, q above k above v, where
        the widths allow it. Its masks mean the opposite: there ``True`` is hidden.

        Args:
            source: The layer, or its state dict, which does not tell the number of heads.

        Raises:
            ValueError: It was made with ``add_bias_kv`` or ``add_zero_attn``, or other
                heads, widths or biases than this one.

        Example:
            >>> theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
            >>> ours, x = MultiHeadAttention(8, 2), torch.rand(1, 3, 8)
            >>> ours.load_torch(theirs)
            >>> torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-6)
            True
        """
        self._load(loading.from_torch(source, self.num_heads))

    def load_d2l(self, source: nn.Module | Mapping[str, Tensor]) -> None:
        """Copy the weights of d2l's ``MultiHeadAttention``; the names are the same.

        Args:
            source: The layer, or its state dict, which does not tell the number of heads.
                A layer has no weights before it has seen its first batch.

        Raises:
            ValueError: It has no weights yet, or other heads, widths or biases than this one.
        """
        self._load(loading.from_d2l(source, self.num_heads))

    def _load(self, state: dict[str, Tensor]) -> None:
        """Copy a state dict under this layer's names, all or nothing."""
        if self.scoring is not None:
            raise ValueError("source compares by dot products, and this layer by its scoring.")
        load_named(self, state)

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        shared = f"num_kv_heads={self.num_kv_heads}, " if self.num_kv_heads < self.num_heads else ""
        return f"num_heads={self.num_heads}, {shared}dropout={self.dropout}, impl={self.impl!r}"
