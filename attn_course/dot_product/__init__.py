"""Dot-product attention: chapter 2, and on the GPU chapter 4.

Scores that are dot products: of queries and keys, of queries and transformed keys
(bilinear), of normalised queries and keys (cosine).
"""

from attn_course.dot_product.layer import BilinearAttention, CosineAttention, DotProductAttention
from attn_course.dot_product.ops import dot_product_attention

__all__ = [
    "BilinearAttention",
    "CosineAttention",
    "DotProductAttention",
    "dot_product_attention",
]
