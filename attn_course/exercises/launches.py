"""A record of a launch: which program touched what.

The interpreter runs programs one after another. Two programs that write the same slot,
a race on a GPU, then give the right answer; so does a load past the end of a tensor, if
what lies there is multiplied by zero. Numbers cannot show either. ``watch`` records the
addresses that every program loads from and stores to, and a check looks at those. A lane
that a load's mask leaves out is 0 here unless ``other=`` says what it is, and undefined on
a GPU: ``watch`` makes it NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from attn_course import _triton


@dataclass
class Accesses:
    """What the programs of a launch did to memory.

    Attributes:
        recorded: Whether anything was recorded; a GPU does not tell.
        loads: Each load: the program's index in the grid, and the addresses read.
        stores: Each store or atomic operation, likewise.
        scans: How often a program scanned, sums and products included; None if nobody
            could count.
    """

    recorded: bool = False
    loads: list[tuple[tuple[int, ...], list[int]]] = field(default_factory=list)
    stores: list[tuple[tuple[int, ...], list[int]]] = field(default_factory=list)
    scans: int | None = None

    def writers(self, tensor: Tensor) -> list[list[tuple[int, ...]]]:
        """The programs that wrote each element of a contiguous tensor.

        Args:
            tensor: What was passed to the launch.

        Returns:
            A list for each element, in memory's order; a program that wrote it twice
            stands there twice.
        """
        slots: list[list[tuple[int, ...]]] = [[] for _ in range(tensor.numel())]
        for program, addresses in self.stores:
            for address in addresses:
                slot = (address - tensor.data_ptr()) // tensor.element_size()
                if 0 <= slot < len(slots):
                    slots[slot].append(program)
        return slots

    def outside(self, *tensors: Tensor) -> bool:
        """Whether a load read what belongs to none of these contiguous tensors."""
        spans = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors]
        return any(
            not any(start <= address < stop for start, stop in spans)
            for _, addresses in self.loads
            for address in addresses
        )


@contextmanager
def watch() -> Iterator[Accesses]:
    """Record what kernels launched in the ``with`` load and store, if interpreted.

    Yields:
        The record, filled while the body runs. Where kernels are compiled, or this triton
        has another interpreter than the one known here, ``recorded`` stays False.

    Example:
        >>> with watch() as accesses:
        ...     pass  # launch a kernel
        >>> accesses.stores
        []
    """
    accesses = Accesses()
    runtime = getattr(_triton.triton, "runtime", None)
    interpreter = getattr(runtime, "interpreter", None)
    builder = getattr(interpreter, "interpreter_builder", None)
    scanner = getattr(interpreter, "ScanOps", None)
    names = {
        "create_masked_load": (accesses.loads, 1),
        "create_masked_store": (accesses.stores, 2),
        "create_atomic_rmw": (accesses.stores, 3),
    }
    # Which argument holds the addresses, and which the mask: (ptrs, mask, ...),
    # (ptrs, value, mask, ...), (operation, ptrs, value, mask, ...).
    pointer = {"create_masked_load": 0, "create_masked_store": 0, "create_atomic_rmw": 1}
    if not (_triton.INTERPRETED and builder and all(hasattr(builder, name) for name in names)):
        yield accesses
        return

    def recording(name: str) -> Callable[..., Any]:
        original = getattr(builder, name)
        record, mask = names[name]

        def wrapper(*args: Any) -> Any:
            where, active = np.broadcast_arrays(args[pointer[name]].data, args[mask].data)
            record.append((tuple(builder.grid_idx), where[active.astype(bool)].tolist()))
            result = original(*args)
            if name == "create_masked_load" and args[2] is None:  # no `other=`
                kind = result.data.dtype
                if np.issubdtype(kind, np.floating):
                    result.data = np.where(active.astype(bool), result.data, np.nan).astype(kind)
            return result

        return wrapper

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            accesses.scans = (accesses.scans or 0) + 1
            return original(*args)

        return wrapper

    wrappers = {name: recording(name) for name in names}
    accesses.recorded = True
    scan = getattr(scanner, "apply_impl", None)
    if scanner and scan:
        accesses.scans = 0
        scanner.apply_impl = counting(scan)
    try:
        for name, wrapper in wrappers.items():
            setattr(builder, name, wrapper)
        # NumPy warns of inf - inf; a GPU does not, and the answer shows what became of it.
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield accesses
    finally:
        if scanner and scan:
            scanner.apply_impl = scan
        for name in wrappers:
            delattr(builder, name)
