"""Multi-head attention: chapter 4.

Several attention poolings side by side, each with projections of its own, a cache of what
they have seen, and the translator of chapter 3 with several heads.
"""

from attn_course.multi_head.cache import KeyValueCache
from attn_course.multi_head.layer import MultiHeadAttention
from attn_course.multi_head.ops import check_heads, merge_heads, split_heads
from attn_course.multi_head.packing import Packing
from attn_course.multi_head.translator import build_translator, load_translator

__all__ = [
    "KeyValueCache",
    "MultiHeadAttention",
    "Packing",
    "build_translator",
    "check_heads",
    "load_translator",
    "merge_heads",
    "split_heads",
]
