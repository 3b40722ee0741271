"""What the Transformer carries from step to step."""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

from torch import Tensor

from attn_course.multi_head import KeyValueCache


class TransformerState(NamedTuple):
    """All that the decoder knows before a step. A step makes a new one.

    Attributes:
        memory: For each layer, the keys and values of the source, projected once; without
            a cache the encoder's output, ``[batch, source_len, embed_dim]``.
        lens: How many of the source's tokens count, ``[batch]``; ``None`` if all do.
        past: For each layer, the keys and values of the tokens so far; without a cache
            ``None``.
        tokens: Those that have been read, ``[batch, steps so far]``.
    """

    memory: tuple[Tensor | KeyValueCache, ...]
    lens: Tensor | None
    past: tuple[KeyValueCache, ...] | None
    tokens: Tensor

    def select(self, index: Tensor) -> TransformerState:
        """The state of some items of the batch, in this order; an item may come twice.

        Args:
            index: Which ones, ``[new batch]``.

        Example:
            >>> import torch
            >>> memory = (torch.rand(2, 3, 4),)
            >>> state = TransformerState(memory, None, None, torch.tensor([[1, 5], [1, 6]]))
            >>> state.select(torch.tensor([1, 1, 0])).tokens[:, 1]
            tensor([6, 6, 5])
        """
        index = index.to(self.tokens.device)
        return TransformerState(
            memory=tuple(
                _pick(part, index) if isinstance(part, KeyValueCache) else part[index]
                for part in self.memory
            ),
            lens=None if self.lens is None else self.lens[index],
            past=None if self.past is None else tuple(_pick(part, index) for part in self.past),
            tokens=self.tokens[index],
        )


def _pick(cache: KeyValueCache, index: Tensor) -> KeyValueCache:
    """Some sequences of a cache, which stays as it is."""
    picked = copy(cache)  # its tensors are never changed in place
    if picked.length:
        picked.reorder(index)
    return picked
