"""Heatmaps: every chapter.

Pictures of attention weights: small matrices drawn as they are, large ones pooled
without ever being stored, and sliders over frames that need no kernel.
"""

from attn_course.heatmaps.explorer import explore
from attn_course.heatmaps.influence import influence_map, influence_through, word_influence
from attn_course.heatmaps.pooled import pooled_weights
from attn_course.heatmaps.show import show_heatmaps
from attn_course.heatmaps.slider import Slider, slider
from attn_course.heatmaps.style import DIVERGING, PALETTE, SEQUENTIAL, use_style
from attn_course.heatmaps.words import WordRows, rows_by_word

__all__ = [
    "DIVERGING",
    "PALETTE",
    "SEQUENTIAL",
    "Slider",
    "WordRows",
    "explore",
    "influence_map",
    "influence_through",
    "pooled_weights",
    "rows_by_word",
    "show_heatmaps",
    "slider",
    "use_style",
    "word_influence",
]
