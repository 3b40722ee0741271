"""Attention, from kernel regression to monotonic alignments: the course's package.

Importing this module is cheap: neither torch nor triton is loaded until a
mechanism is imported, e.g. ``from attn_course.kernel_regression import ...``.

Example:
    >>> import attn_course
    >>> attn_course.CHAPTERS[1]
    'kernel_regression'
"""

__version__ = "0.1.0"

#: Chapter number -> the package that holds its mechanism. The sources of a
#: chapter are named ``NN_<mechanism>``.
CHAPTERS: dict[int, str] = {
    1: "kernel_regression",
}

__all__ = ["CHAPTERS", "__version__"]
