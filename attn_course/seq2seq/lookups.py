"""What the decoder asks for, and what the encoder's states offer, word by word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attn_course.data import Pair
from attn_course.seq2seq.translator import Translator

#: A word of the source, and the vector that stands for it.
WordVector = tuple[str, Tensor]

#: Words of the grammar that are frequent, kind by kind: nouns, adjectives, colours, negation.
FREQUENT_WORDS = (
    "cat", "dog", "horse", "cow", "woman", "man", "boy", "king",
    "old", "small", "beautiful", "black", "red", "not",
)  # fmt: skip


@torch.no_grad()
def asked_and_known(
    translator: Translator, pairs: Sequence[Pair]
) -> tuple[list[WordVector], list[WordVector]]:
    """Queries and keys of the attention, as it compares them, by the word of the source.

    The right translations are written, so a query belongs to the words of the source that
    its word translates.

    Args:
        translator: One with a recurrent encoder and decoder, in evaluation mode; its scoring
            projects queries by ``W_q``, and keys.
        pairs: Sentences, their translations and the links between their words.

    Returns:
        ``(word, vector)`` of each query that has a link, once for each, and of each key.

    Raises:
        TypeError: The attention of the translator has no ``W_q``.
        ValueError: There are no pairs, or a word is unknown.

    Example:
        >>> from attn_course.data import SIGNPOST
        >>> from attn_course.seq2seq import load_translator
        >>> queries, keys = asked_and_known(load_translator(), [SIGNPOST])
        >>> [word for word, _ in keys] == SIGNPOST.source.split()
        True
        >>> keys[0][1].shape == queries[0][1].shape
        True
    """
    if not pairs:
        raise ValueError("pairs must hold at least one pair, got none.")
    attention = getattr(translator.model.decoder, "attention", None)
    scoring: Any = getattr(attention, "scoring", None)
    if not hasattr(scoring, "W_q"):
        raise TypeError(
            "translator must have a recurrent decoder whose scoring projects queries by W_q, "
            f"got {type(scoring or translator.model.decoder).__name__}."
        )
    queries: list[WordVector] = []
    keys: list[WordVector] = []
    for pair in pairs:
        (one,) = translator.batches([pair])
        asked: list[Tensor] = []
        with scoring.W_q.register_forward_hook(lambda *call, to=asked: to.append(call[2][0])):
            translator.model(**one.inputs)
        steps = torch.cat(asked)  # [target_len, dim], from one call a step or one for all
        states = translator.model.encoder(one.source, one.source_lens).states
        known = scoring.project_keys(states)[0]
        words = pair.source.split()
        keys += list(zip(words, known, strict=False))  # the last state is that of <eos>
        queries += [(words[i], steps[j]) for i, j in pair.links]
    return queries, keys
