"""The Vision Transformer: chapter 7.

An image as a sequence of patches, a Transformer over them, and what can be read from its
attention: rollout, distance, and what happens to an answer when patches are painted over.
"""

from attn_course.vision.convolution import attention_convolution
from attn_course.vision.layer import PatchEmbedding, ViTBlock
from attn_course.vision.model import ViT, load_vit
from attn_course.vision.ops import occlude, patch_embedding, patchify, resize_positions
from attn_course.vision.rollout import attention_distance, attention_rollout, class_rollout

__all__ = [
    "PatchEmbedding",
    "ViT",
    "ViTBlock",
    "attention_convolution",
    "attention_distance",
    "attention_rollout",
    "class_rollout",
    "load_vit",
    "occlude",
    "patch_embedding",
    "patchify",
    "resize_positions",
]
