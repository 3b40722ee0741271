"""Benchmarks: every chapter's kernels against their peers, and the runs that are stored.

``python -m attn_course.benchmarks`` checks, measures and stores; a chapter draws what is
stored with ``plot_results``. What a cell measures in passing, it measures with
``median_ms``, ``kept_megabytes``, ``share_right`` and ``likeness``, and a kernel it holds
against its reference with ``kernel_agreement``.
"""

from attn_course.benchmarks.measures import (
    kept_megabytes,
    kernel_agreement,
    likeness,
    median_ms,
    share_right,
)
from attn_course.benchmarks.plot import describe_run, plot_results
from attn_course.benchmarks.results import RESULTS, find_run, load_results

__all__ = [
    "RESULTS",
    "describe_run",
    "find_run",
    "kept_megabytes",
    "kernel_agreement",
    "likeness",
    "load_results",
    "median_ms",
    "plot_results",
    "share_right",
]
