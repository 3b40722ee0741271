"""A model with its two vocabularies: text in, text out; and the trained one that is shipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attn_course.data import (
    Pair,
    TranslationBatches,
    Vocabulary,
    pretrained,
    translation_batches,
)
from attn_course.seq2seq.decoder import AttentionDecoder
from attn_course.seq2seq.encoder import Encoder
from attn_course.seq2seq.model import Seq2Seq
from attn_course.seq2seq.search import Decoded, beam_search, greedy_decode


class Translation(NamedTuple):
    """One sentence, translated.

    Attributes:
        source: The tokens that were read, ``<eos>`` included.
        target: The tokens that were written, ``<eos>`` included unless it was cut off.
        weights: What each written token attended to, ``[..., len(target), len(source)]``,
            if asked for. Models with heads and layers have one matrix for each.
    """

    source: list[str]
    target: list[str]
    weights: Tensor | None

    @property
    def text(self) -> str:
        """The translation, tokens separated by single spaces."""
        return " ".join(token for token in self.target if token != "<eos>")


class Translator(NamedTuple):
    """A model and the vocabularies of the languages that it reads and writes.

    Attributes:
        model: Translates ids: a ``Seq2Seq``, or what else the searches can use.
        source: The vocabulary that it reads.
        target: The vocabulary that it writes.

    Example:
        >>> from attn_course.data import Vocabulary
        >>> english, french = Vocabulary(["the cat"]), Vocabulary(["le chat"])
        >>> config = {"embed_dim": 4, "hidden_dim": 4}
        >>> translator = build_translator(config, config, english, french)
        >>> (translation,) = translator.translate(["the cat"], max_len=3, need_weights=True)
        >>> translation.source, translation.weights.shape[1]
        (['the', 'cat', '<eos>'], 3)
    """

    model: Any
    source: Vocabulary
    target: Vocabulary

    def translate(
        self,
        sentences: Sequence[str],
        *,
        width: int = 1,
        length_penalty: float = 0.0,
        max_len: int = 60,
        language: int | None = None,
        unknown: str = "error",
        need_weights: bool = False,
    ) -> list[Translation]:
        """Translate sentences, all in one batch.

        Args:
            sentences: Tokens separated by spaces.
            width: Of the beam; 1 is greedy.
            length_penalty: As in ``beam_search``.
            max_len: The most tokens to write.
            language: The id of the language to write, if the model knows several.
            unknown: What to do about unknown tokens, as in ``Vocabulary.encode``.
            need_weights: Return the attention weights as well.

        Returns:
            A translation for each.

        Raises:
            ValueError: There are no sentences, one has an unknown token, or the search
                refuses.
        """
        if isinstance(sentences, str) or not sentences:
            raise ValueError(f"sentences must be a list of at least one text, got {sentences!r}.")
        ids = [
            torch.tensor([*self.source.encode(text, unknown=unknown), self.source.eos])
            for text in sentences
        ]
        source = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.source.pad)
        lens = torch.tensor([len(row) for row in ids])
        options: dict[str, Any] = {
            "bos": self.target.bos,
            "eos": self.target.eos,
            "max_len": max_len,
            "language": None if language is None else torch.full((len(ids),), language),
            "need_weights": need_weights,
        }
        if width == 1:
            written = greedy_decode(self.model, source, lens, **options)
        else:
            written = beam_search(
                self.model, source, lens, width=width, length_penalty=length_penalty, **options
            )
        return [self._translation(written, i, ids[i]) for i in range(len(ids))]

    def batches(
        self, pairs: Sequence[Pair], *, batch_size: int = 500, seed: int | None = None
    ) -> TranslationBatches:
        """Pairs as the model reads them: padded batches of ids.

        Args:
            pairs: Sentences and their translations, in the languages of the vocabularies.
            batch_size: How many pairs a batch holds.
            seed: As in ``translation_batches``.

        Raises:
            ValueError: As in ``translation_batches``.
        """
        return translation_batches(
            pairs, self.source, self.target, batch_size=batch_size, seed=seed
        )

    @torch.no_grad()
    def forced_weights(self, pair: Pair) -> Any:
        """What the model attends to while the right translation is written, not its own.

        Args:
            pair: A sentence and its translation. A model with dropout has to be in
                evaluation mode.

        Returns:
            What the model returns with ``need_weights=True`` for a batch of one, such as
            ``[1, ..., target_len, source_len]`` from ``Seq2Seq``; both lengths count ``<eos>``.

        Raises:
            ValueError: A token is unknown.
        """
        (one,) = self.batches([pair])
        return self.model(**one.inputs, need_weights=True)[1]

    def _translation(self, written: Decoded, i: int, source: Tensor) -> Translation:
        steps = min(int(written.lengths[i]) + 1, written.tokens.shape[1])
        tokens = [self.target.tokens[token] for token in written.tokens[i, :steps].tolist()]
        weights = None
        if written.weights is not None:
            weights = written.weights[i, ..., :steps, : len(source)]
        return Translation([self.source.tokens[j] for j in source.tolist()], tokens, weights)


def build_translator(
    encoder: dict[str, Any], decoder: dict[str, Any], source: Vocabulary, target: Vocabulary
) -> Translator:
    """A translator, untrained.

    Args:
        encoder: Options of ``Encoder``.
        decoder: Options of ``AttentionDecoder``, without ``memory_dim``.
        source: The vocabulary to read.
        target: The vocabulary to write.
    """
    reader = Encoder(len(source), **encoder)
    writer = AttentionDecoder(len(target), memory_dim=reader.width, **decoder)
    return Translator(Seq2Seq(reader, writer), source, target)


def load_translator(
    name: str = "grammar_french", *, build: Callable[..., Translator] = build_translator
) -> Translator:
    """The translator that comes with the course, trained, in evaluation mode.

    Args:
        name: Which one, a file of ``attn_course/data/pretrained``.
        build: Makes it, untrained, from what is stored as ``encoder`` and ``decoder``, from
            the two vocabularies and, as keywords, from what is stored as ``model``.

    Raises:
        ValueError: There is none of that name.

    Example:
        >>> translator = load_translator()  # doctest: +SKIP
        >>> translator.translate(["the black cat sleeps"])[0].text  # doctest: +SKIP
        'le chat noir dort'
    """
    config, state = pretrained(name)
    # Each token occurs once, so they stand in alphabetical order: the one they are stored in.
    source, target = (Vocabulary([config[side]]) for side in ("source", "target"))
    options = config.get("model", {})
    translator = build(config["encoder"], config["decoder"], source, target, **options)
    translator.model.load_state_dict(state)
    translator.model.eval()
    return translator
