"""The translator of chapter 3 with several heads in its decoder."""

from __future__ import annotations

from typing import Any

from attn_course import seq2seq
from attn_course.data import Vocabulary
from attn_course.multi_head.layer import MultiHeadAttention
from attn_course.seq2seq import AttentionDecoder, Encoder, Seq2Seq, Translator


def build_translator(
    encoder: dict[str, Any], decoder: dict[str, Any], source: Vocabulary, target: Vocabulary
) -> Translator:
    """A recurrent translator whose decoder looks the source up with several heads, untrained.

    Args:
        encoder: Options of ``Encoder``.
        decoder: Options of ``AttentionDecoder``, and ``num_heads``. Not among them
            are ``memory_dim``, ``scoring`` and ``query``: the state asks.
        source: The vocabulary to read.
        target: The vocabulary to write.

    Raises:
        ValueError: The encoder's width is no multiple of ``num_heads``, or an option is refused by
            ``Encoder`` or ``AttentionDecoder``.

    Example:
        >>> from attn_course.data import Vocabulary
        >>> english, french = Vocabulary(["the cat"]), Vocabulary(["le chat"])
        >>> sizes = {"embed_dim": 4, "hidden_dim": 4}
        >>> translator = build_translator(sizes, sizes | {"num_heads": 2}, english, french)
        >>> (translation,) = translator.translate(["the cat"], max_len=3, need_weights=True)
        >>> translation.weights.shape[0]
        2
    """
    reader = Encoder(len(source), **encoder)
    options = dict(decoder)
    heads = MultiHeadAttention(
        reader.width, options.pop("num_heads"), query_dim=options["hidden_dim"]
    )
    writer = AttentionDecoder(len(target), memory_dim=reader.width, scoring=heads, **options)
    return Translator(Seq2Seq(reader, writer), source, target)


def load_translator(name: str = "grammar_french_heads") -> Translator:
    """The translator with four heads that comes with the course, in evaluation mode.

    Args:
        name: Which one, a file of ``attn_course/data/pretrained``.

    Raises:
        ValueError: There is none of that name.

    Example:
        >>> translator = load_translator()  # doctest: +SKIP
        >>> translator.translate(["the black cat sleeps"])[0].text  # doctest: +SKIP
        'le chat noir dort'
    """
    return seq2seq.load_translator(name, build=build_translator)
