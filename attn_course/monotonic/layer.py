"""Monotonic attention with several heads: trained in expectation, decoded along one path."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_course._padding import clear_rows, disarm_padding
from attn_course._validation import check_choice, check_counts, check_dropout, check_floating
from attn_course.monotonic import ops
from attn_course.monotonic.hard import MODES, HardState, walk
from attn_course.multi_head import check_heads, merge_heads, split_heads


class MonotonicMultiheadAttention(nn.Module):
    """Heads that walk along the keys instead of weighing them.

    A head compares queries and keys as in dot-product attention, but its products are the logits
    of a path's steps. The weights of the values are the probabilities that the path visits:

    ======================  ==============================  ====================================
    ``mode``                steps of p; of q                what the weights sum to
    ======================  ==============================  ====================================
    ``many_to_many``        next key; next query            a row, to the keys that the query is
                                                            expected to visit: it may pass 1
    ``one_query_per_key``   next key, with the same query;  a column, to 1: each key belongs to
                            next key, with the next query   one query. Needs key_len >= query_len
    ``one_key_per_query``   next query, with the same key;  a row, to 1: each query has one key.
                            next query, with the next key   Needs query_len >= key_len
    ``hard_monotonic``      next key; stop here, and the    a row, to 1: each query has the key
                            next query starts here          at which it stops (Raffel et al.)
    ======================  ==============================  ====================================

    Sums of 1 are less what has walked past the last key or query. Speech to text is
    ``one_query_per_key`` (many sounds a letter), text to speech ``one_key_per_query``.

    Args:
        embed_dim: Width of the output; a multiple of ``num_heads``.
        num_heads: How many heads.
        mode: One of the names above.
        query_dim: Width of the queries; ``None`` is ``embed_dim``.
        key_dim: Width of the keys; ``None`` is ``embed_dim``.
        value_dim: Width of the values; ``None`` is ``embed_dim``.
        num_kv_heads: Heads of the keys and values, a divisor of ``num_heads``, each shared by a
            group of query heads that follow each other. ``None``: as many.
        clamp: How probabilities are kept away from 0 and 1 while training in expectation, as in
            ``squeeze``: ``"soft"``, ``"hard"``, or ``None`` for not at all.
        epsilon: How far away.
        bias: Whether the four projections add a bias.
        dropout: Probability with which a weight is dropped in training.
        impl: As in ``many_to_many``.

    Raises:
        ValueError: A size, a name or a combination is out of place.

    Reference:
        Bolte (2023), Monotonic attention; Raffel et al. (2017).

    Example:
        >>> attention = MonotonicMultiheadAttention(8, 2, mode="one_key_per_query")
        >>> query, key = torch.rand(1, 6, 8), torch.rand(1, 4, 8)
        >>> output, weights = attention(query, key, need_weights=True)
        >>> output.shape, weights.shape
        (torch.Size([1, 6, 8]), torch.Size([1, 2, 6, 4]))
        >>> state = attention.start(key)  # one query at a time, along one path
        >>> answer, state, _ = attention.step(query[:, 0], state)
        >>> answer.shape, state.position.shape
        (torch.Size([1, 8]), torch.Size([1, 2]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        mode: str = "many_to_many",
        query_dim: int | None = None,
        key_dim: int | None = None,
        value_dim: int | None = None,
        num_kv_heads: int | None = None,
        clamp: str | None = "soft",
        epsilon: float = 1e-3,
        bias: bool = True,
        dropout: float = 0.0,
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
        check_heads(embed_dim, num_heads, num_kv_heads)
        check_choice("mode", mode, MODES)
        check_choice("impl", impl, ops.IMPLEMENTATIONS)
        check_dropout("dropout", dropout)
        if clamp is not None:
            ops.squeeze(torch.zeros(1), epsilon=epsilon, how=clamp)  # says what is wrong
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, num_kv_heads
        self.head_dim = embed_dim // num_heads
        self.mode, self.clamp, self.epsilon = mode, clamp, epsilon
        self.dropout, self.impl = dropout, impl
        kv_width = num_kv_heads * self.head_dim
        self.W_q = nn.Linear(query_dim, embed_dim, bias=bias)
        self.W_k = nn.Linear(key_dim, kv_width, bias=bias)
        self.W_v = nn.Linear(value_dim, kv_width, bias=bias)
        self.W_o = nn.Linear(embed_dim, embed_dim, bias=bias)
        self._widths = {"query": query_dim, "key": key_dim, "value": value_dim}
        for projection in (self.W_q, self.W_k, self.W_v, self.W_o):
            nn.init.xavier_uniform_(projection.weight)
            if bias:
                nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        valid_lens: Tensor | None = None,
        query_lens: Tensor | None = None,
        need_weights: bool = False,
        hard: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Answer all queries: in expectation, or along the one path that decoding takes.

        Args:
            query: ``[batch, query_len, query_dim]``.
            key: ``[batch, key_len, key_dim]``.
            value: ``[batch, key_len, value_dim]``; ``None`` is ``key``.
            valid_lens: How many leading keys count, ``[batch]``.
            query_lens: How many leading queries count, ``[batch]``; the others attend to
                nothing.
            need_weights: Return the weights as well.
            hard: Walk one path instead, a query at a time, as ``step`` does. No gradient tells
                the walk where to go, and dropout takes no part.

        Returns:
            ``[batch, query_len, embed_dim]``; with ``need_weights`` also the weights before
            dropout, ``[batch, num_heads, query_len, key_len]``.

        Raises:
            TypeError: A tensor has the wrong kind of numbers.
            ValueError: A shape or a length is out of place.

        Warns:
            UserWarning: There are keys or queries that the mode cannot reach.
        """
        value = key if value is None else value
        query, key, value = self._checked(query, key, value, valid_lens, query_lens)
        if hard:
            return self._walk_all(query, key, value, valid_lens, query_lens, need_weights)
        weights = self._weigh(self.logits(query, key), query_lens, valid_lens)
        values = split_heads(self.W_v(value), self.num_kv_heads)
        values = values.repeat_interleave(self.num_heads // self.num_kv_heads, 1)
        spared = F.dropout(weights, self.dropout, self.training)
        output: Tensor = self.W_o(merge_heads(spared @ values))
        return (output, weights) if need_weights else output

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """What the steps of the paths are decided by: x, with ``p = sigmoid(x)``, clamped.

        For ``best_path`` and its like. In ``one_query_per_key``, where keys are what always
        advances, they want the transpose.

        Args:
            query: ``[batch, query_len, query_dim]``.
            key: ``[batch, key_len, key_dim]``.

        Returns:
            ``[batch, num_heads, query_len, key_len]``.
        """
        queries = split_heads(self.W_q(query), self.num_heads)
        keys = split_heads(self.W_k(key), self.num_kv_heads)
        keys = keys.repeat_interleave(self.num_heads // self.num_kv_heads, 1)
        logits = queries @ keys.mT / math.sqrt(self.head_dim)
        if self.clamp is None:
            return logits
        return ops.squeeze(logits, epsilon=self.epsilon, how=self.clamp)

    def start(
        self, key: Tensor, value: Tensor | None = None, *, valid_lens: Tensor | None = None
    ) -> HardState:
        """Stand at the first key, to decode a query at a time.

        Args:
            key: ``[batch, key_len, key_dim]``.
            value: ``[batch, key_len, value_dim]``; ``None`` is ``key``.
            valid_lens: How many leading keys count, ``[batch]``.

        Returns:
            The state for ``step``.

        Raises:
            TypeError: A tensor has the wrong kind of numbers.
            ValueError: A shape or a length is out of place.
        """
        value = key if value is None else value
        _, key, value = self._checked(None, key, value, valid_lens, None)
        batch, key_len, _ = key.shape
        lens = (
            torch.full((batch,), key_len, device=key.device) if valid_lens is None else valid_lens
        )
        position = torch.zeros(batch, self.num_heads, dtype=torch.long, device=key.device)
        keys = split_heads(self.W_k(key), self.num_kv_heads)
        values = split_heads(self.W_v(value), self.num_kv_heads)
        return HardState(keys, values, lens, position)

    def step(self, query: Tensor, state: HardState) -> tuple[Tensor, HardState, Tensor]:
        """Answer the next query along the path: the likelier step at each node.

        A look at a key either moves the head on or ends its query, so the time is linear in the
        lengths; keys ahead of the path are not needed yet.

        Args:
            query: ``[batch, query_dim]``.
            state: From ``start``, or from the step before.

        Returns:
            The answer, ``[batch, embed_dim]``; the new state; and what was attended to, 0 or 1,
            ``[batch, num_heads, key_len]``.

        Raises:
            TypeError: ``query`` does not hold floating-point numbers.
            ValueError: Its shape does not fit the layer or the state.
        """
        check_floating("query", query)
        wanted = (len(state.key), self._widths["query"])
        if tuple(query.shape) != wanted:
            raise ValueError(f"query must have shape {list(wanted)}, got {list(query.shape)}.")
        heads = self.W_q(query).unflatten(-1, (self.num_heads, self.head_dim))
        scale = 1 / math.sqrt(self.head_dim)
        output, state, weights = walk(heads, state, mode=self.mode, scale=scale)
        return self.W_o(output.flatten(1)), state, weights

    def _weigh(self, logits: Tensor, query_lens: Tensor | None, key_lens: Tensor | None) -> Tensor:
        """Weights from logits, both ``[batch, num_heads, query_len, key_len]``."""
        lens: dict[str, Any] = {"row_lens": query_lens, "column_lens": key_lens}
        # Products of positive numbers may well lie in [0, 1]: they are logits all the same.
        options: dict[str, Any] = {"impl": self.impl, "validate": False}
        if self.mode == "one_query_per_key":  # keys are what always advances
            lens = {"row_lens": key_lens, "column_lens": query_lens}
            return ops.one_to_many(logits.mT, **lens, **options).mT
        visit = {
            "many_to_many": ops.many_to_many,
            "one_key_per_query": ops.one_to_many,
            "hard_monotonic": ops.expected_alignment,
        }[self.mode]
        return visit(logits, **lens, **options)

    def _walk_all(
        self, query: Tensor, key: Tensor, value: Tensor, valid_lens: Tensor | None,
        query_lens: Tensor | None, need_weights: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        """``step`` for each query in turn."""
        state = self.start(key, value, valid_lens=valid_lens)
        heads = self.W_q(query).unflatten(-1, (self.num_heads, self.head_dim))
        scale, found = 1 / math.sqrt(self.head_dim), []
        for i in range(query.shape[1]):
            output, state, weights = walk(heads[:, i], state, mode=self.mode, scale=scale)
            found.append((output, weights))
        outputs, rows = (torch.stack(parts, -2) for parts in zip(*found, strict=True))
        if query_lens is not None:
            real = torch.arange(query.shape[1], device=query.device) < query_lens[:, None]
            outputs, rows = (x * real[:, None, :, None] for x in (outputs, rows))
        result: Tensor = self.W_o(merge_heads(outputs))
        return (result, rows) if need_weights else result

    def _checked(
        self, query: Tensor | None, key: Tensor, value: Tensor, valid_lens: Tensor | None,
        query_lens: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Check shapes and lengths, and take NaN out of padding."""
        given = {"key": key, "value": value} | ({} if query is None else {"query": query})
        for name, x in given.items():
            check_floating(name, x)
            width = self._widths[name]
            if x.ndim != 3 or x.shape[2] != width or x.shape[1] == 0:
                raise ValueError(
                    f"{name} must have shape [batch, len, {width}], len at least 1, got "
                    f"{list(x.shape)}."
                )
        if len({len(x) for x in given.values()}) > 1 or key.shape[1] != value.shape[1]:
            listed = ", ".join(f"{name} {list(x.shape)}" for name, x in given.items())
            raise ValueError(
                f"query, key and value must share their batch, and key and value their length, "
                f"got {listed}."
            )
        for name, lens, cut in (("valid_lens", valid_lens, key), ("query_lens", query_lens, query)):
            if cut is not None:
                ops.check_lens(name, lens, (len(cut),), cut.shape[1], cut.device)
        asked = key[:, :1] if query is None else query
        if query is not None and query_lens is not None:
            place = torch.arange(query.shape[1], device=query.device)
            asked = clear_rows(query, place >= query_lens[:, None])
        _, key, value = disarm_padding(key[:, :1], key, value, valid_lens=valid_lens)
        return asked, key, value
