"""Letters that are merged and repeated: a translation that never turns back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attn_course._validation import check_counts

#: The letters, in the order of their numbers: "a" is 1.
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"

#: The number that pads targets.
_PAD = 0


class Letters(NamedTuple):
    """Pairs of letter sequences. Letter k of the alphabet is the number k, from 1.

    Attributes:
        source: Runs of equal letters, int64, ``[count, length]``.
        target: Each run as ``repeats`` letters, int64, ``[count, longest]``; padded with 0.
        target_lens: How many letters each target has, int64, ``[count]``.
        run: For each letter of the source, which run it belongs to, from 0, int64,
            ``[count, length]``. Letter t of the target says run ``t // repeats``.
        repeats: How often a target says each run.
    """

    source: Tensor
    target: Tensor
    target_lens: Tensor
    run: Tensor
    repeats: int

    @property
    def sources(self) -> list[str]:
        """The sources as text."""
        return [_spell(row) for row in self.source.tolist()]

    @property
    def targets(self) -> list[str]:
        """The targets as text, without padding."""
        return [_spell(row) for row in self.target.tolist()]


def letters(
    count: int,
    *,
    repeats: int = 3,
    num_letters: int = 10,
    length: int = 32,
    seed: int = 0,
) -> Letters:
    """Sequences of letters in which each run of equal ones becomes ``repeats`` of them.

    A source is made of runs of 1 to ``2 * repeats`` letters, neighbours different; the last is
    cut to ``length``. ``"abbbcc"`` becomes ``"aaabbbccc"`` with three repeats, which asks for a
    many-to-many alignment, and ``"abc"`` with one, the restricted task: each letter of the source
    then belongs to one of the target.

    Args:
        count: How many pairs.
        repeats: How often the target says each run.
        num_letters: How many letters there are, 2 to 26.
        length: Of the sources.
        seed: The same seed gives the same pairs.

    Returns:
        The pairs.

    Raises:
        ValueError: A number is out of place.

    Reference:
        Bolte (2023), Monotonic attention, "Toy example" and "Toy problem".

    Example:
        >>> pairs = letters(2, length=8)
        >>> for source, target in zip(pairs.sources, pairs.targets):
        ...     print(source, target)
        gggccccg gggcccggg
        iieeeecc iiieeeccc
    """
    check_counts(count=count, repeats=repeats, num_letters=num_letters, length=length)
    if not 2 <= num_letters <= len(_ALPHABET):
        raise ValueError(f"num_letters must lie in [2, {len(_ALPHABET)}], got {num_letters}.")
    generator = torch.Generator().manual_seed(seed)
    # More runs than can be needed, each cut at the end of its source.
    sizes = torch.randint(1, 2 * repeats + 1, (count, length), generator=generator)
    starts = sizes.cumsum(1) - sizes
    runs = (starts < length).sum(1)
    # A letter differs from the one before it by 1 to num_letters - 1, going round.
    first = torch.randint(num_letters, (count, 1), generator=generator)
    change = torch.randint(1, num_letters, (count, length - 1), generator=generator)
    said = torch.cat((first, change), 1).cumsum(1) % num_letters + 1  # the letter of each run

    place = torch.arange(length).expand(count, length).contiguous()
    run = torch.searchsorted(starts, place, right=True) - 1
    place = torch.arange(repeats * int(runs.max())).expand(count, -1)
    target_lens = repeats * runs
    target = said.gather(1, place // repeats).where(place < target_lens[:, None], _PAD)
    return Letters(said.gather(1, run), target, target_lens, run, repeats)


class LetterBatches:
    """Letters to train on: each step has pairs of its own.

    Made for ``fit``: it gives ``({"source": ..., "target_input": ...},
    target)``. A model reads the target one letter late, ``target_input``, which starts with the
    number ``num_letters + 1`` and has 0 for padding as ``target`` has. Iterating again gives the
    same batches.

    Args:
        batch_size: Pairs a step.
        steps: How many steps.
        repeats: As in ``letters``.
        num_letters: As in ``letters``.
        length: As in ``letters``.
        seed: Of everything that is drawn.

    Raises:
        ValueError: A number is out of place.

    Example:
        >>> batches = LetterBatches(batch_size=2, steps=3, num_letters=5, length=8)
        >>> inputs, target = next(iter(batches))
        >>> inputs["target_input"][:, 0]
        tensor([6, 6])
    """

    def __init__(
        self,
        batch_size: int = 16,
        steps: int = 100,
        *,
        repeats: int = 3,
        num_letters: int = 10,
        length: int = 32,
        seed: int = 0,
    ) -> None:
        check_counts(batch_size=batch_size, steps=steps)
        letters(1, repeats=repeats, num_letters=num_letters, length=length)  # says what is wrong
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self.repeats, self.num_letters, self.length = repeats, num_letters, length

    def __len__(self) -> int:
        """How many steps there are."""
        return self.steps

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Draw the pairs of each step."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            drawn = int(torch.randint(2**62, (), generator=generator))
            pairs = letters(
                self.batch_size, repeats=self.repeats, num_letters=self.num_letters,
                length=self.length, seed=drawn,
            )  # fmt: skip
            inputs = {"source": pairs.source, "target_input": delayed(pairs, self.num_letters)}
            yield inputs, pairs.target


def delayed(pairs: Letters, num_letters: int) -> Tensor:
    """The target one letter late, after a start that is no letter: ``num_letters + 1``.

    Args:
        pairs: From ``letters``.
        num_letters: How many letters there are.

    Returns:
        ``[count, longest]``, 0 from the end of each target on.

    Example:
        >>> pairs = letters(1, repeats=2, num_letters=2, length=2, seed=1)
        >>> pairs.targets, delayed(pairs, 2)
        (['aa'], tensor([[3, 1]]))
    """
    start = torch.full_like(pairs.target[:, :1], num_letters + 1)
    late = torch.cat((start, pairs.target[:, :-1]), 1)
    place = torch.arange(late.shape[1])
    return late.where(place < pairs.target_lens[:, None], _PAD)


def _spell(row: list[int]) -> str:
    return "".join(_ALPHABET[k - 1] for k in row if k != _PAD)
