"""Attention, from kernel regression to monotonic alignments: the course's package.

Importing this module is cheap: neither torch nor triton is loaded until a
mechanism is imported, e.g. ``from attn_course.kernel_regression import ...``.

Example:
    >>> import attn_course
    >>> attn_course.CHAPTERS[1]
    'kernel_regression'
"""

__version__ = "0.1.0"

#: Chapter number -> the package that its files are named after: the sources of a
#: chapter are ``NN_<mechanism>``.
CHAPTERS: dict[int, str] = {
    1: "kernel_regression",
    2: "scoring",
    3: "seq2seq",
    4: "multi_head",
    5: "positional",
    6: "transformer",
    7: "vision",
    8: "long_sequences",
    9: "linformer",
    10: "monotonic",
}

#: Every package that holds a mechanism, in the order in which the course needs them; one
#: may import those before it. A chapter can bring more than the one it is named after.
MECHANISMS: tuple[str, ...] = (
    "kernel_regression",
    "scoring",
    "dot_product",
    "seq2seq",
    "multi_head",
    "positional",
    "transformer",
    "vision",
    "long_sequences",
    "linformer",
    "monotonic",
)

__all__ = ["CHAPTERS", "MECHANISMS", "__version__"]
