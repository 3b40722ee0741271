"""Sequences of different lengths side by side, without the padding between them."""

from __future__ import annotations

import torch
from torch import Tensor

#: Queries times keys from which on a CPU is faster with one sequence after the other. Measured
#: with 8 sequences, of 1/3 to all of the length: 64 x 64 take 1.4 of the time, 128 x 128 0.8.
_LONG = 128 * 128


class Packing:
    """The tokens of a padded batch without its padding: as one sequence, and back.

    Linear maps, norms and feed-forward networks treat each token alike. Given the packed
    tokens, ``[1, tokens, width]``, they compute nothing for padding and never read it, so
    that NaN in it cannot leak. Attention has to tell the sequences apart again.

    Args:
        lens: How many leading tokens of each sequence are no padding, ``[batch]``, on a CPU.
        length: How many there are with padding.

    Attributes:
        lens: As given.
        length: As given.
        tokens: How many tokens are no padding, in all sequences together.

    Example:
        >>> packing = Packing(torch.tensor([2, 1]), length=2)
        >>> x = torch.tensor([[[1.0], [2.0]], [[3.0], [torch.nan]]])
        >>> packing.pack(x).flatten(), packing.unpack(packing.pack(x)).flatten()
        (tensor([1., 2., 3.]), tensor([1., 2., 3., 0.]))
    """

    def __init__(self, lens: Tensor, length: int) -> None:
        self.lens, self.length = lens, length
        self._sizes: list[int] = lens.tolist()
        self.tokens = sum(self._sizes)
        self._rows: dict[int, Tensor] = {}

    @classmethod
    def of(cls, lens: Tensor | None, length: int) -> Packing | None:
        """The packing, or ``None`` where there is no padding to be left out.

        Nor is it left out where each query has a length of its own, and on CUDA devices:
        looking at lengths would make the host wait.
        """
        if lens is None or lens.ndim != 1 or lens.is_cuda or not lens.numel():
            return None
        return cls(lens, length) if int(lens.amin()) < length else None

    def check(self, query: Tensor, *, alone: bool) -> None:
        """Raise ``ValueError`` unless ``query`` is what this packed, and came ``alone``.

        Args:
            query: What goes into attention.
            alone: Whether neither keys nor lengths, masks or a cache came with it.
        """
        if not alone:
            raise ValueError(
                "packing says which tokens attend to each other: key, value, valid_lens, mask "
                "and cache cannot be given with it."
            )
        if query.shape[:2] != (1, self.tokens):
            raise ValueError(
                f"query must hold what packing packed, [1, {self.tokens}, width], "
                f"got {list(query.shape)}."
            )

    def pack(self, x: Tensor) -> Tensor:
        """From ``[batch, length, width]`` to ``[1, tokens, width]``."""
        return self.merge_heads(x.unsqueeze(1))

    def unpack(self, x: Tensor) -> Tensor:
        """From ``[1, tokens, width]`` to ``[batch, length, width]``, zeros at padding."""
        return self.split_heads(x, 1).squeeze(1)

    def split_heads(self, x: Tensor, num_heads: int) -> Tensor:
        """Unpack and split: to ``[batch, num_heads, length, head_dim]``, zeros at padding."""
        batch, width = len(self.lens), x.shape[2] // num_heads
        heads = x.new_zeros(batch * num_heads * self.length, width)
        heads.index_copy_(0, self._places(num_heads), x.reshape(self.tokens * num_heads, width))
        return heads.view(batch, num_heads, self.length, width)

    def merge_heads(self, heads: Tensor) -> Tensor:
        """Merge and pack what ``split_heads`` gives, to ``[1, tokens, width]``."""
        rows = heads.flatten(0, 2).index_select(0, self._places(heads.shape[1]))
        return rows.view(1, self.tokens, heads.shape[1] * heads.shape[3])

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """From ``[1, tokens, width]`` to each sequence by itself, ``[1, its length, width]``."""
        return x.split(self._sizes, dim=1)

    def is_long(self, query_len: int) -> bool:
        """Whether attending to one sequence after the other takes less time than padding."""
        return query_len * self.length >= _LONG

    def _places(self, num_heads: int) -> Tensor:
        """Which row of [batch * num_heads * length] each head of each token is."""
        if num_heads not in self._rows:
            real = torch.arange(self.length) < self.lens.unsqueeze(1)
            sequence, position = real.nonzero().unbind(1)
            head = torch.arange(num_heads)
            rows = (sequence.unsqueeze(1) * num_heads + head) * self.length
            self._rows[num_heads] = (rows + position.unsqueeze(1)).flatten()
        return self._rows[num_heads]
