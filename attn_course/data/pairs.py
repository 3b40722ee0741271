"""What a translation data set is made of: pairs of sentences, in three parts."""

from __future__ import annotations

from typing import NamedTuple


class Pair(NamedTuple):
    """A sentence and its translation, as tokens separated by single spaces.

    Attributes:
        source: The sentence.
        target: Its translation.
        slices: The names of the slices that it is scored in.
        links: Which tokens translate each other: ``(source index, target index)``, in
            ascending order. Empty where that is not known.
    """

    source: str
    target: str
    slices: frozenset[str] = frozenset()
    links: tuple[tuple[int, int], ...] = ()


class Translations(NamedTuple):
    """Pairs in three parts that share no source sentence.

    Attributes:
        train: To learn from.
        validation: To choose by.
        test: To judge by.
    """

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
