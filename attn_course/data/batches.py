"""Sentences as tensors: padded batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attn_course.data.pairs import Pair
from attn_course.data.vocabulary import Vocabulary


class TranslationBatch(NamedTuple):
    """Sentences and their translations, padded.

    Attributes:
        source: Ids that end in ``<eos>``, int64, ``[batch, source_len]``.
        source_lens: How many of them count, ``<eos>`` included, ``[batch]``.
        target: Ids from ``<bos>`` to ``<eos>``, int64, ``[batch, target_len]``.
        target_lens: How many of them count, both included, ``[batch]``.
        language: The id of each target's language, ``[batch]``, if there are several.
    """

    source: Tensor
    source_lens: Tensor
    target: Tensor
    target_lens: Tensor
    language: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model reads: ``source``, ``source_lens``, ``target_input``.

        ``target_input`` is the target without its last column, ``[batch, target_len - 1]``.
        Where there are several languages, ``language`` as well.
        """
        inputs = {
            "source": self.source,
            "source_lens": self.source_lens,
            "target_input": self.target[:, :-1],
        }
        return inputs if self.language is None else {**inputs, "language": self.language}

    @property
    def labels(self) -> Tensor:
        """What it has to write: the target without ``<bos>``, ``[batch, target_len - 1]``."""
        return self.target[:, 1:]


class TranslationBatches:
    """Batches, anew each time they are iterated over; see ``translation_batches``."""

    #: So many batches are shuffled together before sentences are sorted by length.
    POOL = 50

    def __init__(
        self,
        examples: list[tuple[list[int], list[int]]],
        languages: Sequence[int] | None,
        padding: int,
        batch_size: int,
        seed: int | None,
        device: torch.device | str | None,
    ) -> None:
        self._examples = examples
        self._languages = languages
        self._padding = padding
        self._batch_size = batch_size
        self._random = None if seed is None else random.Random(seed)
        self._device = device

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self._examples) // self._batch_size)

    def __iter__(self) -> Iterator[TranslationBatch]:
        """One pass over all pairs."""
        for rows in self._order():
            columns: list[Tensor] = []
            for side in range(2):
                ids = [torch.tensor(self._examples[row][side]) for row in rows]
                columns.append(pad_sequence(ids, batch_first=True, padding_value=self._padding))
                columns.append(torch.tensor([len(i) for i in ids]))
            if self._languages is not None:
                columns.append(torch.tensor([self._languages[row] for row in rows]))
            yield TranslationBatch(*(column.to(self._device) for column in columns))

    def _order(self) -> list[list[int]]:
        """The rows of each batch."""
        rows, size = list(range(len(self._examples))), self._batch_size
        if self._random is None:
            return [rows[i : i + size] for i in range(0, len(rows), size)]
        self._random.shuffle(rows)
        batches: list[list[int]] = []
        for start in range(0, len(rows), self.POOL * size):
            pool = rows[start : start + self.POOL * size]
            pool.sort(key=lambda row: (len(self._examples[row][0]), len(self._examples[row][1])))
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        self._random.shuffle(batches)
        return batches

    def for_fit(self) -> FitBatches:
        """The same batches as ``(inputs, labels)``, the pairs that ``fit`` takes."""
        return FitBatches(self)


class FitBatches:
    """``(batch.inputs, batch.labels)`` of each batch; what ``fit`` iterates over."""

    def __init__(self, batches: TranslationBatches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """One pass over all pairs."""
        for batch in self._batches:
            yield batch.inputs, batch.labels


def translation_batches(
    pairs: Sequence[Pair],
    source_vocab: Vocabulary,
    target_vocab: Vocabulary,
    *,
    batch_size: int,
    seed: int | None = None,
    languages: Sequence[int] | None = None,
    unknown: str = "error",
    device: torch.device | str | None = None,
) -> TranslationBatches:
    """Padded batches of pairs, in order or shuffled.

    Shuffled batches hold sentences of like length, so that little is padding: the pairs
    are shuffled, cut into pools of 50 batches, sorted by length within each pool, and the
    batches shuffled again.

    Args:
        pairs: What to put into batches.
        source_vocab: The ids of the source's tokens.
        target_vocab: The ids of the target's tokens.
        batch_size: How many pairs a batch holds; the last one may hold fewer.
        seed: Chooses the order, another one at each pass; ``None`` for that of ``pairs``.
        languages: The id of each pair's target language, for a model that knows several.
        unknown: As in ``Vocabulary.encode``.
        device: Where to put the tensors; ``None`` for the CPU.

    Returns:
        A sequence of ``TranslationBatch`` that can be iterated over again and again; its
        ``for_fit()`` gives the ``(inputs, labels)`` that ``fit`` takes.

    Raises:
        ValueError: There are no pairs, ``batch_size`` is below 1, a sentence is empty or
            has an unknown token (the message names the pair), or there is not one language
            for each pair.

    Example:
        >>> pairs = [Pair("the cat", "le chat"), Pair("the black cat", "le chat noir")]
        >>> english = Vocabulary(pair.source for pair in pairs)
        >>> french = Vocabulary(pair.target for pair in pairs)
        >>> (batch,) = translation_batches(pairs, english, french, batch_size=2)
        >>> batch.source
        tensor([[5, 4, 2, 0],
                [5, 6, 4, 2]])
        >>> batch.source_lens, batch.target_lens
        (tensor([3, 4]), tensor([4, 5]))
        >>> batch.target
        tensor([[1, 5, 4, 2, 0],
                [1, 5, 4, 6, 2]])

        Two languages in one training set, the same sentences in each:

        >>> from attn_course.data import grammar
        >>> french, spanish = grammar("french", size=2_000), grammar("spanish", size=2_000)
        >>> pairs = french.train + spanish.train
        >>> languages = [0] * len(french.train) + [1] * len(spanish.train)
        >>> english = Vocabulary(pair.source for pair in pairs)
        >>> both = Vocabulary(pair.target for pair in pairs)
        >>> batches = translation_batches(
        ...     pairs, english, both, batch_size=64, seed=0, languages=languages
        ... )
        >>> next(iter(batches)).language.shape
        torch.Size([64])
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}.")
    if not pairs:
        raise ValueError("pairs must hold at least one pair, got none.")
    if languages is not None and len(languages) != len(pairs):
        raise ValueError(
            f"languages must name one for each of {len(pairs)} pairs, got {len(languages)}."
        )
    examples = []
    for number, pair in enumerate(pairs):
        try:
            source = source_vocab.encode(pair.source, unknown=unknown)
            target = target_vocab.encode(pair.target, unknown=unknown)
        except ValueError as error:
            raise ValueError(f"pairs[{number}]: {error}") from None
        start, end = target_vocab.bos, target_vocab.eos
        examples.append(([*source, source_vocab.eos], [start, *target, end]))
    return TranslationBatches(examples, languages, source_vocab.pad, batch_size, seed, device)
