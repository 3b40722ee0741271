"""Attention as a layer; and additive attention, whose projections are learned."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from attn_course._padding import disarm_padding
from attn_course._validation import check_choice, check_counts, check_dropout
from attn_course.scoring import ops


class AttentionLayer(nn.Module):
    """What layers share, however they score: keys are projected once, then queries attend.

    A subclass says with ``project_keys`` and ``attend`` what a score is.

    Args:
        dropout: Probability with which a weight is dropped in training.
        impl: As in the operation that the subclass calls.
        implementations: The names that ``impl`` may have.

    Raises:
        ValueError: ``dropout`` or ``impl`` is out of place.
    """

    def __init__(self, dropout: float, impl: str, implementations: Collection[str]) -> None:
        super().__init__()
        check_dropout("dropout", dropout)
        check_choice("impl", impl, implementations)
        self.dropout = dropout
        self.impl = impl

    def project_keys(self, key: Tensor) -> Tensor:
        """The part that no query changes: here the keys as they are."""
        return key

    def attend(
        self,
        query: Tensor,
        projected_key: Tensor,
        value: Tensor,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend with keys from ``project_keys``; the rest as in ``forward``."""
        raise NotImplementedError

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Answer each query.

        Args:
            query: ``[..., query_len, query_dim]``.
            key: ``[..., key_len, key_dim]``.
            value: ``[..., key_len, value_dim]``.
            valid_lens: How many leading keys count, ``[batch]`` or ``[batch, query_len]``.
            mask: ``True`` = may attend; broadcasts to ``[..., query_len, key_len]``.
            need_weights: Return the weights as well.

        Returns:
            ``[..., query_len, value_dim]``; with ``need_weights`` also the weights,
            ``[..., query_len, key_len]``.
        """
        query, key, value = disarm_padding(query, key, value, valid_lens=valid_lens, mask=mask)
        return self.attend(
            query,
            self.project_keys(key),
            value,
            valid_lens=valid_lens,
            mask=mask,
            need_weights=need_weights,
        )


class AdditiveAttention(AttentionLayer):
    """Attention whose scores a small network computes: ``w_v . tanh(W_q q + W_k k)``.

    Queries and keys may differ in width.

    Args:
        query_dim: Width of the queries.
        key_dim: Width of the keys.
        hidden_dim: Hidden units of the network.
        dropout: Probability with which a weight is dropped in training.
        weighted: Whether ``w_v`` is learned; else every hidden unit counts 1.
        impl: As in ``additive_attention``.

    Raises:
        ValueError: A size, the dropout or the impl is out of place.

    Reference:
        Bahdanau et al. (2015), appendix A.1.2.

    Example:
        >>> attention = AdditiveAttention(query_dim=4, key_dim=6, hidden_dim=8)
        >>> query, key, value = torch.rand(2, 3, 4), torch.rand(2, 5, 6), torch.rand(2, 5, 7)
        >>> attention(query, key, value, valid_lens=torch.tensor([5, 2])).shape
        torch.Size([2, 3, 7])
    """

    w_v: Tensor

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        *,
        dropout: float = 0.0,
        weighted: bool = True,
        impl: str = "auto",
    ) -> None:
        super().__init__(dropout, impl, ops.ADDITIVE_IMPLEMENTATIONS)
        check_counts(query_dim=query_dim, key_dim=key_dim, hidden_dim=hidden_dim)
        self.weighted = weighted
        self.W_q = nn.Linear(query_dim, hidden_dim, bias=False)
        self.W_k = nn.Linear(key_dim, hidden_dim, bias=False)
        if weighted:
            bound = hidden_dim**-0.5  # as nn.Linear(hidden_dim, 1) starts
            self.w_v = nn.Parameter(torch.empty(hidden_dim).uniform_(-bound, bound))
        else:
            self.register_buffer("w_v", torch.ones(hidden_dim), persistent=False)

    def project_keys(self, key: Tensor) -> Tensor:
        """The part that no query changes, ``[..., key_len, hidden_dim]``: W_k k."""
        projected: Tensor = self.W_k(key)
        return projected

    def attend(
        self,
        query: Tensor,
        projected_key: Tensor,
        value: Tensor,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend with keys from ``project_keys``; the rest as in ``forward``."""
        return ops.additive_attention(
            self.W_q(query),
            projected_key,
            value,
            self.w_v,
            valid_lens=valid_lens,
            mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            need_weights=need_weights,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return f"weighted={self.weighted}, dropout={self.dropout}, impl={self.impl!r}"
