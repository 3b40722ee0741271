"""The decoder's attention network: how it looks up the memory, whatever the score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attn_course.dot_product import (
    BilinearAttention,
    CosineAttention,
    DotProductAttention,
    dot_product_attention,
)
from attn_course.scoring import AdditiveAttention, AttentionLayer


class UniformAttention(AttentionLayer):
    """Weigh all keys that count alike: what attention has to beat.

    Example:
        >>> value = torch.tensor([[[2.0], [4.0], [9.0]]])
        >>> UniformAttention()(value[:, :1], value, value, valid_lens=torch.tensor([2]))
        tensor([[[3.]]])
    """

    def __init__(self) -> None:
        super().__init__(dropout=0.0, impl="auto", implementations=("auto",))

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
        """Average the values; arguments as in ``AdditiveAttention.attend``."""
        # Equal scores make equal weights: a scaled dot product of zeros.
        zeros = value.new_zeros(*query.shape[:-1], 1), value.new_zeros(*value.shape[:-1], 1)
        return dot_product_attention(
            *zeros, value, valid_lens=valid_lens, mask=mask, need_weights=need_weights
        )


#: Name -> what scores, from the widths of query, memory and hidden layer.
SCORINGS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "additive": AdditiveAttention,
    "no_v": lambda query, memory, hidden: AdditiveAttention(query, memory, hidden, weighted=False),
    "dot": lambda query, memory, hidden: DotProductAttention(scale=1.0),
    "scaled_dot": lambda query, memory, hidden: DotProductAttention(),
    "bilinear": lambda query, memory, hidden: BilinearAttention(query, memory),
    "cosine": lambda query, memory, hidden: CosineAttention(),
    "uniform": lambda query, memory, hidden: UniformAttention(),
}

#: Those that compare query and key coordinate by coordinate.
SAME_WIDTH = ("dot", "scaled_dot", "cosine")


class MemoryAttention(nn.Module):
    """Everything between the decoder's query and its context vector.

    It is a module of its own so that it can live on a device of its own.

    Args:
        query_dim: Width of a query.
        memory_dim: Width of a state of the encoder.
        hidden_dim: Width of a state of the decoder, and of the hidden layer of a score.
        scoring: A name of ``SCORINGS``, or a module with ``project_keys`` and ``attend``; if
            it has ``project_values`` too, ``attend`` gets the memory through that.
        window: Allow keys at most this far from the current step; ``None`` for all.
        attend_generated: Whether the decoder's own states are added to the memory.

    Raises:
        TypeError: A module lacks one of the two methods.
        ValueError: The name or the window is out of place.
    """

    def __init__(
        self,
        query_dim: int,
        memory_dim: int,
        hidden_dim: int,
        *,
        scoring: str | nn.Module,
        window: int | None,
        attend_generated: bool,
    ) -> None:
        super().__init__()
        self.window, self.attend_generated = window, attend_generated
        self.match_query: nn.Module = nn.Identity()
        self.scoring: Any  # a module with two more methods, for which there is no type
        if isinstance(scoring, str):
            if scoring not in SCORINGS:
                listed = ", ".join(repr(name) for name in SCORINGS)
                raise ValueError(
                    f"scoring must be one of {listed}, None or a module, got {scoring!r}."
                )
            if scoring in SAME_WIDTH and query_dim != memory_dim:
                self.match_query = nn.Linear(query_dim, memory_dim, bias=False)
            self.scoring = SCORINGS[scoring](query_dim, memory_dim, hidden_dim)
        else:
            lacking = [n for n in ("project_keys", "attend") if not hasattr(scoring, n)]
            if not isinstance(scoring, nn.Module) or lacking:
                raise TypeError(
                    "scoring must be a name, None, or an nn.Module with project_keys and attend, "
                    f"got {type(scoring).__name__}."
                )
            self.scoring = scoring
        if window is not None and (not isinstance(window, int) or window < 0):
            raise ValueError(f"window must be None or an integer of at least 0, got {window!r}.")
        self.match_generated: nn.Module = nn.Identity()
        if attend_generated and hidden_dim != memory_dim:
            self.match_generated = nn.Linear(hidden_dim, memory_dim, bias=False)
        # Knows where the module is, even if nothing in it is learned.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the memory has to be."""
        return self.get_buffer("_anchor").device

    def project_keys(self, memory: Tensor) -> Tensor:
        """Do once for a memory what does not depend on the query."""
        keys: Tensor = self.scoring.project_keys(memory)
        return keys

    def project_values(self, memory: Tensor) -> Tensor:
        """What is mixed: the memory itself, unless the score projects that as well."""
        project = getattr(self.scoring, "project_values", None)
        values: Tensor = memory if project is None else project(memory)
        return values

    def forward(
        self,
        query: Tensor,
        values: Tensor,
        keys: Tensor,
        lens: Tensor,
        step: int,
        *,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Look up the memory, for one step or several that follow each other.

        Args:
            query: ``[batch, steps, query_dim]``.
            values: What ``project_values`` made of the encoder's states and, with
                ``attend_generated``, of the ``step`` states that the decoder has been in,
                ``[batch, key_len, memory_dim]``.
            keys: What ``project_keys`` made of them.
            lens: How many of the encoder's states count, ``[batch]``.
            step: How many steps went before.
            need_weights: Return the weights as well.

        Returns:
            The contexts ``[batch, steps, memory_dim]``, and the weights ``[batch, steps,
            key_len]`` or ``None``; of several heads ``[batch, num_heads, steps, key_len]``.
        """
        query = self.match_query(query.to(self.device))
        allowed = {}
        if self.window is not None or self.attend_generated:
            allowed["mask"] = self._mask(lens, values.shape[1], step, query.shape[1])
        elif lens.is_cuda or int(lens.amin()) < values.shape[1]:  # else nothing is padding
            allowed["valid_lens"] = lens
        found = self.scoring.attend(query, keys, values, need_weights=need_weights, **allowed)
        context, weights = found if need_weights else (found, None)
        return context, weights

    def _mask(self, lens: Tensor, key_len: int, step: int, steps: int) -> Tensor:
        """Which keys each step may attend to, ``[batch, steps or 1, key_len]``."""
        key = torch.arange(key_len, device=lens.device)
        allowed = (key < lens.unsqueeze(1)).unsqueeze(1)
        if self.window is not None:
            now = torch.arange(step, step + steps, device=lens.device).unsqueeze(1)
            allowed = allowed & ((key - now).abs() <= self.window)
        return allowed | (key >= key_len - step) if self.attend_generated else allowed
