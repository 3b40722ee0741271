"""Benchmarks: every chapter's kernels against their peers, and the runs that are stored.

``python -m attn_course.benchmarks`` checks, measures and stores; a chapter draws what is
stored with ``plot_results``.
"""

from attn_course.benchmarks.plot import describe_run, plot_results
from attn_course.benchmarks.results import RESULTS, find_run, load_results

__all__ = ["RESULTS", "describe_run", "find_run", "load_results", "plot_results"]
