"""A Transformer with its two vocabularies; and the trained one that is shipped."""

from __future__ import annotations

from typing import Any

from attn_course import seq2seq
from attn_course.data import Vocabulary
from attn_course.seq2seq import Translator
from attn_course.transformer.decoder import TransformerDecoder
from attn_course.transformer.encoder import TransformerEncoder
from attn_course.transformer.model import Transformer


def build_translator(
    encoder: dict[str, Any],
    decoder: dict[str, Any],
    source: Vocabulary,
    target: Vocabulary,
    **options: Any,
) -> Translator:
    """A translator, untrained.

    Args:
        encoder: Options of ``TransformerEncoder``.
        decoder: Options of ``TransformerDecoder``.
        source: The vocabulary to read.
        target: The vocabulary to write.
        options: Options of ``Transformer``.

    Example:
        >>> from attn_course.data import Vocabulary
        >>> english, french = Vocabulary(["the cat"]), Vocabulary(["le chat"])
        >>> size = {"embed_dim": 8, "num_heads": 2, "hidden_dim": 16, "num_layers": 1}
        >>> translator = build_translator(size, size, english, french, tie_weights=True)
        >>> (translation,) = translator.translate(["the cat"], max_len=3, need_weights=True)
        >>> translation.weights.shape[:2]  # layers, heads
        torch.Size([1, 2])
    """
    model = Transformer(
        TransformerEncoder(len(source), **encoder),
        TransformerDecoder(len(target), **decoder),
        **options,
    )
    return Translator(model, source, target)


def load_translator(name: str = "grammar_transformer") -> Translator:
    """The Transformer that comes with the course, trained, in evaluation mode.

    Args:
        name: Which one, a file of ``attn_course/data/pretrained`` whose configuration has
            ``encoder``, ``decoder`` and ``model`` as ``build_translator`` takes them, and the
            tokens of ``source`` and ``target``.

    Raises:
        ValueError: There is none of that name.

    Example:
        >>> translator = load_translator()  # doctest: +SKIP
        >>> translator.translate(["the black cat sleeps"])[0].text  # doctest: +SKIP
        'le chat noir dort'
    """
    return seq2seq.load_translator(name, build=build_translator)
