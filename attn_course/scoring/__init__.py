"""Scoring functions and the masked softmax: chapter 2.

Weights from scores, where some keys may not be seen; and additive scores, which a
small network computes from a query and a key.
"""

from attn_course.scoring.layer import AdditiveAttention, AttentionLayer
from attn_course.scoring.ops import additive_attention, additive_scores, masked_softmax

__all__ = [
    "AdditiveAttention",
    "AttentionLayer",
    "additive_attention",
    "additive_scores",
    "masked_softmax",
]
