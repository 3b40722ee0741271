"""The Transformer: chapter 6.

Attention that is stacked: residual connections and normalisation, an encoder and a causal
decoder, decoding with a cache of keys and values, and what training asks for.
"""

from attn_course.transformer.decoder import TransformerDecoder
from attn_course.transformer.embedding import TokenEmbedding
from attn_course.transformer.encoder import TransformerEncoder
from attn_course.transformer.layer import DecoderLayer, EncoderLayer
from attn_course.transformer.model import Transformer, TransformerWeights
from attn_course.transformer.ops import add_norm
from attn_course.transformer.state import TransformerState
from attn_course.transformer.sublayers import AddNorm, PositionwiseFeedForward
from attn_course.transformer.training import label_smoothing_loss, warmup_factor
from attn_course.transformer.translator import build_translator, load_translator

__all__ = [
    "AddNorm",
    "DecoderLayer",
    "EncoderLayer",
    "PositionwiseFeedForward",
    "TokenEmbedding",
    "Transformer",
    "TransformerDecoder",
    "TransformerEncoder",
    "TransformerState",
    "TransformerWeights",
    "add_norm",
    "build_translator",
    "label_smoothing_loss",
    "load_translator",
    "warmup_factor",
]
