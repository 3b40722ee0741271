"""What kernels touch, seen through the interpreter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attn_course import _triton

interpreted = pytest.mark.skipif(not _triton.INTERPRETED, reason="needs the interpreter")


class Touched:
    """By launch: how often each address was read and written, and which programs wrote."""

    def __init__(self) -> None:
        self.reads: list[Counter[int]] = []
        self.writes: list[Counter[int]] = []
        self.programs: list[set[tuple[int, ...]]] = []


@contextmanager
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Touched]:
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    touched = Touched()
    load, store, start = (
        Builder.create_masked_load,
        Builder.create_masked_store,
        Builder.set_grid_dim,
    )

    def begin(self: Any, *dims: int) -> None:
        touched.reads.append(Counter())
        touched.writes.append(Counter())
        touched.programs.append(set())
        start(self, *dims)

    def read(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        at, inside = np.broadcast_arrays(ptrs.data, mask.data)
        touched.reads[-1].update(at[inside].tolist())
        return load(self, ptrs, mask, *rest)

    def write(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        at, inside = np.broadcast_arrays(ptrs.data, mask.data)
        touched.writes[-1].update(at[inside].tolist())
        touched.programs[-1].add(self.grid_idx)
        return store(self, ptrs, value, mask, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Builder, "set_grid_dim", begin)
        patch.setattr(Builder, "create_masked_load", read)
        patch.setattr(Builder, "create_masked_store", write)
        yield touched


def addresses(tensor: Tensor) -> list[int]:
    """Of each element of a tensor, in their order."""
    offsets = torch.zeros(tensor.shape, dtype=torch.int64)
    for axis, step in enumerate(tensor.stride()):
        shape = [-1 if a == axis else 1 for a in range(tensor.ndim)]
        offsets = offsets + torch.arange(tensor.shape[axis]).reshape(shape) * step
    at: list[int] = (tensor.data_ptr() + offsets.flatten() * tensor.element_size()).tolist()
    return at
