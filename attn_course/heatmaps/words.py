"""Vectors sorted by their words, so that a heatmap of thousands falls into blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from attn_course._validation import check_counts, check_positive


class WordRows(NamedTuple):
    """Vectors in blocks, one block a word.

    Attributes:
        vectors: ``[rows, dim]``, block after block.
        counts: How many rows each word has.
    """

    vectors: Tensor
    counts: list[int]

    def edges(self) -> list[int]:
        """Where the blocks begin, and where the last one ends.

        Example:
            >>> WordRows(torch.zeros(5, 2), [2, 3]).edges()
            [0, 2, 5]
        """
        return [0, *accumulate(self.counts)]

    def centres(self, size: float) -> list[float]:
        """The middle of each block where all of them together are ``size`` long.

        Args:
            size: E.g. the number of bins of a heatmap, for its ticks.

        Raises:
            TypeError: It is no number.
            ValueError: It is not positive.

        Example:
            >>> WordRows(torch.zeros(4, 2), [2, 2]).centres(60)
            [15.0, 45.0]
        """
        check_positive("size", size)
        edges = self.edges()
        return [size * (a + b) / 2 / edges[-1] for a, b in pairwise(edges)]


def rows_by_word(
    pairs: Sequence[tuple[str, Tensor]], words: Sequence[str], *, most: int
) -> WordRows:
    """Sort vectors by their words.

    Args:
        pairs: ``(word, vector)``, each vector ``[dim]``.
        words: The words to keep, in the order that their blocks shall have.
        most: The most vectors of a word; the first ones are taken.

    Raises:
        ValueError: ``words`` is empty, one of them has no vector, or ``most`` is below 1.

    Example:
        >>> pairs = [("cat", torch.ones(2)), ("dog", torch.zeros(2)), ("cat", torch.ones(2))]
        >>> rows_by_word(pairs, ["dog", "cat"], most=9).vectors
        tensor([[0., 0.],
                [1., 1.],
                [1., 1.]])
    """
    check_counts(most=most)
    if isinstance(words, str) or not words:
        raise ValueError(f"words must be a list of at least one word, got {words!r}.")
    blocks = [[vector for name, vector in pairs if name == word][:most] for word in words]
    missing = [word for word, block in zip(words, blocks, strict=True) if not block]
    if missing:
        raise ValueError(f"words must all be among the pairs, got no vector of {missing}.")
    return WordRows(torch.stack([*chain(*blocks)]), [len(block) for block in blocks])
