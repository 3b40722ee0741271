"""Multi-head attention: chapter 4.

Several attention poolings side by side, each with projections of its own, and a cache of
what they have seen.
"""

from attn_course.multi_head.cache import KeyValueCache
from attn_course.multi_head.layer import MultiHeadAttention
from attn_course.multi_head.ops import merge_heads, split_heads

__all__ = ["KeyValueCache", "MultiHeadAttention", "merge_heads", "split_heads"]
