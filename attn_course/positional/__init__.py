"""Where a token stands: chapter 5.

Sinusoids that are added, vectors that are learned, queries and keys that are turned, and
scores that fall with distance.
"""

from attn_course.positional.layer import LearnedEncoding, RotaryEmbedding, SinusoidalEncoding
from attn_course.positional.ops import (
    add_sinusoid,
    linear_biases,
    linear_slopes,
    rotate,
    rotation_matrix,
    sinusoid,
)

__all__ = [
    "LearnedEncoding",
    "RotaryEmbedding",
    "SinusoidalEncoding",
    "add_sinusoid",
    "linear_biases",
    "linear_slopes",
    "rotate",
    "rotation_matrix",
    "sinusoid",
]
