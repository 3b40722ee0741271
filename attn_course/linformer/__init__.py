"""Linformer: chapter 9.

Attention whose keys and values are projected from n positions to k slots, in time and memory
linear in n; the layers and models built of it; the form of it that is causal; and what its
weights mean for positions.
"""

from attn_course.linformer.block import LinformerBlock
from attn_course.linformer.causal import causal_linformer_attention
from attn_course.linformer.layer import LinformerAttention
from attn_course.linformer.model import Linformer, LinformerLM
from attn_course.linformer.ops import effective_weights, linformer_attention, project_sequence
from attn_course.linformer.projection import SequenceProjection
from attn_course.linformer.visualize import HeadMaps, head_maps

__all__ = [
    "HeadMaps",
    "Linformer",
    "LinformerAttention",
    "LinformerBlock",
    "LinformerLM",
    "SequenceProjection",
    "causal_linformer_attention",
    "effective_weights",
    "head_maps",
    "linformer_attention",
    "project_sequence",
]
