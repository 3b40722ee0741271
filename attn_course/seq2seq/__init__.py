"""Sequence to sequence with attention: chapter 3.

A recurrent encoder, a decoder that looks the source up before each token, and the two
ways to write with them: greedy decoding and beam search.
"""

from attn_course.seq2seq.attention import SCORINGS, UniformAttention
from attn_course.seq2seq.decoder import AttentionDecoder
from attn_course.seq2seq.encoder import Encoder, EncoderOutput
from attn_course.seq2seq.lookups import FREQUENT_WORDS, asked_and_known
from attn_course.seq2seq.model import Seq2Seq, place
from attn_course.seq2seq.search import Decoded, beam_search, greedy_decode
from attn_course.seq2seq.state import DecoderState
from attn_course.seq2seq.translator import (
    Translation,
    Translator,
    build_translator,
    load_translator,
)

__all__ = [
    "FREQUENT_WORDS",
    "SCORINGS",
    "AttentionDecoder",
    "Decoded",
    "DecoderState",
    "Encoder",
    "EncoderOutput",
    "Seq2Seq",
    "Translation",
    "Translator",
    "UniformAttention",
    "asked_and_known",
    "beam_search",
    "build_translator",
    "greedy_decode",
    "load_translator",
    "place",
]
