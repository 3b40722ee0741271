"""Sentences as integers: tokens and vocabularies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from attn_course._validation import check_choice

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def tokenize(text: str) -> list[str]:
    """Cut a sentence at its spaces.

    Example:
        >>> tokenize("le chat n' a pas mangé")
        ['le', 'chat', "n'", 'a', 'pas', 'mangé']
    """
    return text.split()


def detokenize(tokens: Iterable[str]) -> str:
    """Write tokens as one would read them: no space after ``l'``, around ``-``, before ``,``.

    Example:
        >>> detokenize("l' homme , quatre - vingt chats".split())
        "l'homme, quatre-vingt chats"
        >>> detokenize("the king 's cat .".split())
        "the king's cat."
    """
    text = " ".join(tokens)
    text = re.sub(r"(\w') (?=\w)", r"\1", text)
    text = re.sub(r" - ", "-", text)
    return re.sub(r" (?=[.,!?](?: |$)|'s\b)", "", text)


class Vocabulary:
    """All tokens that a model knows; the place of each is its id.

    Four special tokens come first: ``<pad>``, ``<bos>``, ``<eos>`` and ``<unk>``. The
    others follow by falling frequency, equal ones in alphabetical order.

    Args:
        sentences: Texts with spaces between the tokens, or lists of tokens.
        min_freq: Tokens that occur less often are left out.

    Attributes:
        tokens: All tokens; ``tokens[id]`` is the token of an id.
        pad: The id that fills short rows up.
        bos: The id that a decoder reads first.
        eos: The id that ends each sentence.
        unk: The id of every unknown token.

    Raises:
        TypeError: ``sentences`` is one string, or one of them is neither text nor tokens.
        ValueError: No token is left, one has the name of a special token, or
            ``min_freq`` is below 1.

    Example:
        >>> vocabulary = Vocabulary(["the cat", "the dog"])
        >>> vocabulary.tokens
        ['<pad>', '<bos>', '<eos>', '<unk>', 'the', 'cat', 'dog']
        >>> vocabulary.encode("the cat")
        [4, 5]
        >>> vocabulary.encode("the purple cat", unknown="unk")
        [4, 3, 5]
        >>> vocabulary.decode([1, 4, 5, 2, 0])
        ['the', 'cat']
    """

    pad, bos, eos, unk = range(4)

    def __init__(self, sentences: Iterable[str] | Iterable[Sequence[str]], *, min_freq: int = 1):
        if isinstance(sentences, str):
            raise TypeError(
                "sentences must be several sentences, got one string: put it in a list."
            )
        if not isinstance(min_freq, int) or min_freq < 1:
            raise ValueError(f"min_freq must be an integer of at least 1, got {min_freq!r}.")
        counts = Counter(token for sentence in sentences for token in _tokens(sentence))
        if reserved := counts.keys() & set(SPECIAL):
            raise ValueError(f"sentences must not contain the special token {min(reserved)!r}.")
        kept = [token for token, count in counts.items() if count >= min_freq]
        if not kept:
            raise ValueError(f"sentences must hold a token that occurs {min_freq} times or more.")
        self.tokens = [*SPECIAL, *sorted(kept, key=lambda token: (-counts[token], token))]
        self._ids = {token: i for i, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        """The number of tokens, special ones included."""
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        """Whether the vocabulary knows a token."""
        return token in self._ids

    def __repr__(self) -> str:
        """The size."""
        return f"Vocabulary({len(self)} tokens)"

    def encode(self, sentence: str | Sequence[str], *, unknown: str = "error") -> list[int]:
        """The id of each token; neither ``<bos>`` nor ``<eos>`` is added.

        Args:
            sentence: Text with spaces between the tokens, or a list of tokens.
            unknown: What to do about unknown tokens: ``"error"``, or ``"unk"`` to give
                each the id of ``<unk>``.

        Returns:
            As many ids as tokens.

        Raises:
            ValueError: The sentence is empty, or has an unknown token.
        """
        check_choice("unknown", unknown, ("error", "unk"))
        tokens = _tokens(sentence)
        if not tokens:
            raise ValueError("sentence must hold at least one token, got an empty one.")
        if unknown == "error":
            for position, token in enumerate(tokens):
                if token not in self._ids:
                    raise ValueError(
                        f"the vocabulary lacks {token!r}, token {position} of "
                        f"{' '.join(tokens)!r}. Pass unknown='unk' to read it as <unk>."
                    )
        return [self._ids.get(token, self.unk) for token in tokens]

    def decode(self, ids: Iterable[int] | Tensor) -> list[str]:
        """The tokens up to the first ``<eos>``, without ``<pad>`` and ``<bos>``.

        Args:
            ids: Integers, a list or a tensor ``[len]``.

        Raises:
            ValueError: An id lies outside the vocabulary.
        """
        tokens = []
        for i in ids.tolist() if isinstance(ids, Tensor) else ids:
            if not 0 <= i < len(self.tokens):
                raise ValueError(f"ids must lie in [0, {len(self) - 1}], got {i}.")
            if i == self.eos:
                break
            if i not in (self.pad, self.bos):
                tokens.append(self.tokens[i])
        return tokens


def _tokens(sentence: Any) -> list[str]:
    if isinstance(sentence, str):
        return tokenize(sentence)
    if isinstance(sentence, Iterable):
        tokens = list(sentence)
        if all(isinstance(token, str) for token in tokens):
            return tokens
    raise TypeError(f"a sentence must be text or a list of tokens, got {type(sentence).__name__}.")
