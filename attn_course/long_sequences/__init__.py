"""Attention for long sequences: chapter 8.

Windows that slide, skip or end with their block, at a cost that grows with the window and not
with the sequence; a ledger of what autograd keeps; the forum's approaches, rebuilt; and a text
recogniser with attention, whose answers CTC reads.
"""

from attn_course.long_sequences.counting import tiles
from attn_course.long_sequences.crnn import AttentionCRNN
from attn_course.long_sequences.ctc import (
    BLANK,
    Segment,
    ctc_collapse,
    ctc_enumerate,
    ctc_loss,
    ctc_loss_recursion,
    ctc_segments,
    steps_needed,
)
from attn_course.long_sequences.decoding import (
    character_error_rate,
    ctc_beam,
    ctc_best_path,
    ctc_greedy,
    edit_distance,
)
from attn_course.long_sequences.forum import (
    FAULTS,
    Approach1,
    Approach21,
    Approach22,
    ConvolutionStack,
    item_influence,
)
from attn_course.long_sequences.layer import WindowedSelfAttention
from attn_course.long_sequences.ledger import MemoryLedger, Row, memory_ledger
from attn_course.long_sequences.ops import windowed_attention
from attn_course.long_sequences.reading import (
    Reading,
    attention_inputs,
    columns_read,
    load_recogniser,
    read_lines,
)
from attn_course.long_sequences.recurrent import BothWays, LineNorm

__all__ = [
    "BLANK",
    "FAULTS",
    "Approach1",
    "Approach21",
    "Approach22",
    "AttentionCRNN",
    "BothWays",
    "ConvolutionStack",
    "LineNorm",
    "MemoryLedger",
    "Reading",
    "Row",
    "Segment",
    "WindowedSelfAttention",
    "attention_inputs",
    "character_error_rate",
    "columns_read",
    "ctc_beam",
    "ctc_best_path",
    "ctc_collapse",
    "ctc_enumerate",
    "ctc_greedy",
    "ctc_loss",
    "ctc_loss_recursion",
    "ctc_segments",
    "edit_distance",
    "item_influence",
    "load_recogniser",
    "memory_ledger",
    "read_lines",
    "steps_needed",
    "tiles",
    "windowed_attention",
]
