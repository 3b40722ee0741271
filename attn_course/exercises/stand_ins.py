"""``triton`` and ``tl`` for exercises' cells: the real ones, or stand-ins without triton.

With the stand-ins a cell that defines a kernel still runs; the kernel cannot be launched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attn_course import _triton


class _Missing:
    """In triton's place: any attribute, and a decorator that leaves functions alone."""

    def __getattr__(self, name: str) -> _Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function


#: Triton, for ``@triton.jit``; without triton a stand-in, so that the cell still runs.
triton: Any = _Missing() if _triton.triton is None else _triton.triton
#: Triton's language, as kernels import it, or a stand-in.
tl: Any = _Missing() if _triton.tl is None else _triton.tl
