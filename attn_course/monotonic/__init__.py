"""Monotonic attention: chapter 10.

Weights that are the visits of a path which never turns back: the source's steps towards them
node by node (``reference``) and many nodes at once (``fronts``), ours as one scan, the paths
themselves, and a layer that is trained in expectation and decodes along one path.
"""

from attn_course.monotonic.counting import count_paths, enumerate_paths, path_log_prob
from attn_course.monotonic.fronts import (
    column_scan,
    diagonal_backward,
    diagonal_forward,
    linear_scan,
    row_backward,
    row_forward,
    row_scan,
)
from attn_course.monotonic.hard import HardState
from attn_course.monotonic.layer import MonotonicMultiheadAttention
from attn_course.monotonic.ops import expected_alignment, many_to_many, one_to_many, squeeze
from attn_course.monotonic.path import best_path, posterior, sample_paths
from attn_course.monotonic.reference import (
    log_1mexp,
    logaddexp,
    serial_backward,
    serial_forward,
    serial_log_backward,
    serial_log_backward_by_sign,
    serial_log_forward,
)

__all__ = [
    "HardState",
    "MonotonicMultiheadAttention",
    "best_path",
    "column_scan",
    "count_paths",
    "diagonal_backward",
    "diagonal_forward",
    "enumerate_paths",
    "expected_alignment",
    "linear_scan",
    "log_1mexp",
    "logaddexp",
    "many_to_many",
    "one_to_many",
    "path_log_prob",
    "posterior",
    "row_backward",
    "row_forward",
    "row_scan",
    "sample_paths",
    "serial_backward",
    "serial_forward",
    "serial_log_backward",
    "serial_log_backward_by_sign",
    "serial_log_forward",
    "squeeze",
]
